"""What S3's answers mean: which read may be believed, and which exception an error is. The same for every carrier.

Facts from Amazon's API reference (GetObject, Error responses).
"""

from collections.abc import Mapping
from typing import NamedTuple
from xml.etree import ElementTree

from optfs.credentials.protocol import AwsCredential
from optfs.errors import AccessDenied, InvalidResponse, OptfsError, ReadDenied, ServiceError, ServiceUnavailable
from optfs.stores.ranges import check_range, gone, looks_like_html, retry_after
from optfs.stores.rejection import RejectedCredential
from optfs.stores.s3_requests import REGION, Signer
from optfs.values import AccountRoot, ObjectInfo

_REJECTED = frozenset({"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired", "SignatureDoesNotMatch"})
_SKEWED = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_BUSY = frozenset(
    {
        "BandwidthLimitExceeded",
        "InternalError",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
"""Codes that botocore, too, takes for throttling or for a passing failure, whatever the status. The export is encrypted by KMS, whose codes S3
passes on with `KMS.` before them."""
_ELSEWHERE = frozenset({"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})


def check_read(status: int, headers: Mapping[str, str], info: ObjectInfo, start: int, length: int) -> None:
    """Check that an answer announces exactly the bytes asked for, of exactly this version.

    Raises:
        VersionGone, InvalidResponse: see `ranges.check_range`; VersionGone also for another ETag, InvalidResponse for none: a web page may
            have the length of the object.

    """
    try:
        check_range(status, headers, info, start, length)
        got = headers.get("ETag")
        if got is None:
            raise InvalidResponse("the answer isn't S3's; is a proxy or a sign-in page in between?", detail="no ETag")
        if got.removeprefix("W/").strip('"') != info.version:
            raise gone(info, f'ETag {got[:80]} instead of "{info.version}"')
    except OptfsError as error:
        error.detail = f"{error.detail}; request {_request_id(headers)}"
        raise


def failure(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    root: AccountRoot,
    credential: AwsCredential,
    signer: Signer,
    info: ObjectInfo | None,
) -> OptfsError:
    """Return the exception for an answer that isn't the wanted one.

    Args:
        status: the answer's.
        headers: the answer's, whatever the case of their names.
        body: the answer's; empty where it couldn't be read.
        root: the bucket and prefix asked for.
        credential: what the request was signed with.
        signer: what it was signed by; its clock is corrected where S3 says that it is wrong.
        info: what was read; None: a listing was asked for.

    """
    told = _parse_error(body)
    detail = f"status {status}, code {told.code or '-'}, request {_request_id(headers)}"
    bucket = root.bucket
    if told.code in _REJECTED:
        return RejectedCredential(
            "S3 doesn't accept the credential; check the token, or AWS's credentials and clock", credential, detail=detail
        )
    if told.code in _SKEWED:
        return signer.correct(headers, detail)
    if status in {408, 429, 500, 502, 503, 504} or told.code.removeprefix("KMS.") in _BUSY:
        wait = retry_after(headers, signer.wall_clock())
        return ServiceUnavailable("S3 is overloaded or has a failure; try again later", detail=detail, retry_after=wait)
    if status in {301, 307} or told.code in _ELSEWHERE:
        region = headers.get("x-amz-bucket-region") or told.region or "another region"
        return ServiceError(f"the bucket {bucket} is in {region}, not in {REGION}; check the endpoint's URL", detail=detail)
    if looks_like_html(body) or 300 <= status < 400:
        return InvalidResponse("the answer isn't S3's; is a proxy or a sign-in page in between?", detail=detail)
    if told.code == "NoSuchBucket":
        return AccessDenied(f"there is no bucket {bucket}; check the account and the provider", detail=detail)
    if info is not None and status in {404, 412, 416}:
        return gone(info, detail)
    if status in {401, 403}:
        kind = AccessDenied if info is None else ReadDenied
        return kind(f"S3 denies access to {bucket}/{root.prefix}; check the account and the token's rights", detail=detail)
    if 400 <= status < 500:
        return ServiceError(f"S3 refused a request ({told.code or status}); the log tells which", detail=detail)
    return InvalidResponse(f"S3 answered with the unexpected status {status}", detail=detail)


class _Told(NamedTuple):
    """What the body of an error says."""

    code: str
    region: str


def _parse_error(body: bytes) -> _Told:
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - expat limits the expansion of entities itself since 2.4.1
    except (ElementTree.ParseError, ValueError, LookupError):
        return _Told("", "")
    # One line each in messages and the log, whatever they hold.
    found = {child.tag.rpartition("}")[2]: ascii((child.text or "")[:80])[1:-1] for child in root}
    return _Told(found.get("Code", ""), found.get("Region", ""))


def _request_id(headers: Mapping[str, str]) -> str:
    return headers.get("x-amz-request-id", "-")[:80]
