"""What Google Cloud Storage's answers mean: which read may be believed, and which exception an error is. The same for every carrier.

Facts from Google's reference (Objects: get, HTTP status and error codes).
"""

import json
from collections.abc import Mapping

from optfs.credentials.protocol import CredentialSource, GcpCredential
from optfs.errors import AccessDenied, AccessError, InvalidResponse, OptfsError, ReadDenied, ServiceError, ServiceUnavailable
from optfs.stores.entries import check_page
from optfs.stores.ranges import check_range, gone, looks_like_html, retry_after
from optfs.stores.rejection import RejectedCredential
from optfs.values import AccountRoot, Deadline, ListPage, ObjectInfo

_MEMBERS = frozenset({"kind", "items", "prefixes", "nextPageToken"})
_BUSY = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "backendError", "internalError"})


def current_credential(source: CredentialSource, deadline: Deadline) -> GcpCredential:
    """Return the credential for a request; raises as `CredentialSource.current` does, and AccessError for one of another provider."""
    credential = source.current(deadline.check("a request to Google Cloud Storage"))
    if not isinstance(credential, GcpCredential):
        raise AccessError("the credential that is held isn't for Google Cloud Storage; check the provider")
    return credential


def check_read(status: int, headers: Mapping[str, str], info: ObjectInfo, start: int, length: int) -> None:
    """Check that an answer announces exactly the bytes asked for, of exactly this version.

    Raises:
        VersionGone, InvalidResponse: see `ranges.check_range`; VersionGone also for another generation, InvalidResponse for none: a web page
            may have the length of the object.

    """
    try:
        check_range(status, headers, info, start, length)
        got = headers.get("X-Goog-Generation")
        if got is None:
            message = "the answer isn't Google Cloud Storage's; is a proxy or a sign-in page in between?"
            raise InvalidResponse(message, detail="no generation")
        if got != info.version:
            raise gone(info, f"generation {got[:40]} instead of {info.version}")
        if headers.get("Content-Encoding") and headers.get("X-Goog-Stored-Content-Encoding") == "identity":
            raise InvalidResponse(
                "something between here and Google Cloud Storage packs what it sends; ask whose proxy that is", detail="packed"
            )
    except OptfsError as error:
        error.detail = f"{error.detail}; upload id {_request_id(headers)}"
        raise


def check_prefix(page: ListPage, prefix: str) -> ListPage:
    """Return the page; raises as `entries.check_page` does, also where names are no text."""
    try:
        return check_page(page, prefix, "Google Cloud Storage")
    except (AttributeError, TypeError) as error:
        raise no_listing(error) from error


def check_members(answer: Mapping[str, object]) -> None:
    """Raise InvalidResponse for JSON that is no listing: GCS sends the members asked for and no others, none of them for an empty one."""
    if not answer.keys() <= _MEMBERS:
        raise no_listing(ValueError(f"members {sorted(answer)}"))


def no_listing(error: Exception) -> InvalidResponse:
    """Return the exception for a body that isn't a listing, or lacks something."""
    message = "the answer isn't a listing of Google Cloud Storage; is a proxy or a sign-in page in between?"
    return InvalidResponse(message, detail=repr(error)[:200])


def failure(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    root: AccountRoot,
    credential: GcpCredential,
    billed: bool,
    info: ObjectInfo | None,
    now: float,
) -> OptfsError:
    """Return the exception for an answer that isn't the wanted one.

    Args:
        status: the answer's.
        headers: the answer's, whatever the case of their names.
        body: the answer's; empty where it couldn't be read.
        root: the bucket and prefix asked for.
        credential: what the request carried.
        billed: whether the request named a project to bill.
        info: what was read; None: a listing was asked for.
        now: seconds since the epoch, for Retry-After with a date.

    """
    reason = _reason(body)
    detail = f"status {status}, reason {reason or '-'}, upload id {_request_id(headers)}"
    bucket = root.bucket
    if status == 401:
        return RejectedCredential(
            "Google Cloud Storage doesn't accept the credential; check the token, or Google's credentials and clock",
            credential,
            detail=detail,
        )
    if status in {408, 429, 500, 502, 503, 504} or reason in _BUSY:
        wait = retry_after(headers, now)
        return ServiceUnavailable("Google Cloud Storage is overloaded or has a failure; try again later", detail=detail, retry_after=wait)
    if looks_like_html(body) or 300 <= status < 400:
        return InvalidResponse("the answer isn't Google Cloud Storage's; is a proxy or a sign-in page in between?", detail=detail)
    if reason in {"userProjectMissing", "required"} and not billed:
        return AccessDenied(f"the bucket {bucket} wants a project to bill; set --gcs-user-project", detail=detail)
    if info is not None and status in {404, 412, 416}:
        return gone(info, detail)
    if status == 404:
        return AccessDenied(f"there is no bucket {bucket}; check the account and the provider", detail=detail)
    if status == 403:
        message = f"Google Cloud Storage denies access to {bucket}/{root.prefix}; check the account and the token's rights"
        return (AccessDenied if info is None else ReadDenied)(message, detail=detail)
    if 400 <= status < 500:
        return ServiceError(f"Google Cloud Storage refused a request ({reason or status}); the log tells which", detail=detail)
    return InvalidResponse(f"Google Cloud Storage answered with the unexpected status {status}", detail=detail)


def _reason(body: bytes) -> str:
    """Return what the body of an error says; empty where it says nothing."""
    try:
        return ascii(str(json.loads(body)["error"]["errors"][0]["reason"])[:80])[1:-1]  # one line, whatever it holds
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return ""


def _request_id(headers: Mapping[str, str]) -> str:
    return headers.get("X-GUploader-UploadID", "-")[:200]
