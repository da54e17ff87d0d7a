"""Range headers of one range, as RFC 9110 (14.1.2) defines them and both stores answer them."""

import re


class Unsatisfiable(ValueError):
    """The range lies beyond the object's end: 416."""


def resolve(header: str | None, size: int) -> tuple[int, int] | None:
    """Return (start, length) of what a Range header asks of `size` bytes, or None where it asks for everything or can't be understood.

    Raises:
        Unsatisfiable: nothing of it exists.

    """
    matched = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if matched is None or matched[1] == matched[2] == "":
        return None
    if matched[1] == "":
        length = min(int(matched[2]), size)
        if length == 0:
            raise Unsatisfiable
        return size - length, length
    start = int(matched[1])
    end = min(int(matched[2]), size - 1) if matched[2] else size - 1
    if start >= size:
        raise Unsatisfiable
    if end < start:
        return None
    return start, end - start + 1
