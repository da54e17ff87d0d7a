"""Requests to S3: where they go, and how they are signed. The same for every carrier.

Rules:

- Virtual-host style at AWS (path style only for a bucket with dots, which the wildcard certificate doesn't cover), path style elsewhere.
- Requests are signed with the service's time: when S3 says that this computer's clock is wrong, the difference is taken from its Date
  header, once for all requests that follow.

Facts from Amazon's API reference (Signature Version 4). Lock order: `Signer._lock` is a leaf.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from botocore.auth import EMPTY_SHA256_HASH, S3SigV4Auth
from botocore.awsrequest import AWSRequest

from optfs.credentials.protocol import AwsCredential, CredentialSource
from optfs.errors import AccessDenied, AccessError, OptfsError, ServiceUnavailable
from optfs.values import AccountRoot, Deadline

logger = logging.getLogger(__name__)

REGION = "us-east-1"  # of the export's bucket, says Optimizely's documentation
PAGE_KEYS = 1000  # the most that S3 gives
SAME_CLOCK = 60.0  # seconds; a correction smaller than this wouldn't change S3's mind, whose limit is 15 minutes


class Address(NamedTuple):
    """Where a bucket is.

    Attributes:
        base: scheme, host and port.
        path: of the bucket; empty in virtual-host style.
        service: scheme, host and port without the bucket's name.

    """

    base: str
    path: str
    service: str


def address(root: AccountRoot, endpoint_url: str | None) -> Address:
    """Return where the bucket is; `endpoint_url` None: at AWS."""
    service = endpoint_url.rstrip("/") if endpoint_url is not None else f"https://s3.{REGION}.amazonaws.com"
    if endpoint_url is not None or "." in root.bucket:
        return Address(service, f"/{root.bucket}", service)
    return Address(f"https://{root.bucket}.s3.{REGION}.amazonaws.com", "", service)


def current_credential(source: CredentialSource, deadline: Deadline) -> AwsCredential:
    """Return the credential for a request; raises as `CredentialSource.current` does, and AccessError for one of another provider."""
    credential = source.current(deadline.check("a request to S3"))
    if not isinstance(credential, AwsCredential):
        raise AccessError("the credential that is held isn't for S3; check the provider")
    return credential


class Signer:
    """Signs GET requests. Any thread may call any method."""

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        """Prepare; `wall_clock` gives seconds since the epoch."""
        self.wall_clock = wall_clock
        self._lock = threading.Lock()
        self._clock_offset = 0.0  # guarded by _lock; S3's time minus this computer's, seconds
        self._used = threading.local()  # its `offset` is the one that the thread's last request was signed with

    def signed(self, url: str, headers: Mapping[str, str], credential: AwsCredential) -> dict[str, str]:
        """Return `headers` and those that sign them."""
        with self._lock:
            offset = self._used.offset = self._clock_offset
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.wall_clock() + offset))
        request = AWSRequest("GET", url, headers=headers)
        request.headers["X-Amz-Date"] = stamp
        request.headers["X-Amz-Content-SHA256"] = EMPTY_SHA256_HASH
        if credential.session_token is not None:
            request.headers["X-Amz-Security-Token"] = credential.session_token
        request.context["timestamp"] = stamp
        # Not add_auth: it reads the computer's own clock, and writes the session token into botocore's debug log.
        auth = S3SigV4Auth(credential, "s3", REGION)  # type: ignore[arg-type]  # it reads the two keys only, named alike
        signature = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
        names = auth.signed_headers(auth.headers_to_sign(request))
        request.headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={auth.scope(request)}, SignedHeaders={names}, Signature={signature}"
        )
        return dict(request.headers.items())

    def correct(self, headers: Mapping[str, str], detail: str) -> OptfsError:
        """Take the service's time from now on; return the exception that asks for another try, or says that it didn't help.

        To be called by the thread that signed the request: others may have corrected the clock since.
        """
        advice = "this computer's clock is wrong, and S3 refuses requests because of it; set the clock"
        try:
            offset = parsedate_to_datetime(headers.get("Date", "")).timestamp() - self.wall_clock()
        except (ValueError, OverflowError):
            return AccessDenied(advice, detail=detail)
        with self._lock:
            changed = abs(offset - self._clock_offset) > SAME_CLOCK
            if changed:
                self._clock_offset = offset
        if abs(offset - getattr(self._used, "offset", 0.0)) <= SAME_CLOCK:
            return AccessDenied(advice, detail=detail)
        if changed:
            logger.warning("this computer's clock is %.0f s off; requests are signed with S3's time", -offset)
        return ServiceUnavailable(advice, detail=detail, retry_after=0.0)
