"""Headers that mean the same in every service's answers. Pure.

Facts from RFC 9110 (Retry-After).
"""

import datetime
import email.utils


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks to wait (`now`: seconds since the epoch); None where it asks for nothing.

    A date without a zone counts as UTC.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return max(0.0, moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp() - now)
    except (ValueError, OverflowError):
        return None
