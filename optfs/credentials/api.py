"""The client of the Authentication API: exchanges the personal access token for temporary credentials.

Rules:

- The token goes to the API's own host only: no redirect is followed, no `.netrc` replaces the header, http is accepted on loopback alone.
- A request is tried a few times, with back-off and jitter, when the network or the service fails. A refusal is never repeated here.
- `Retry-After` is honoured where it is short; a longer one fails at once, so that readers hear of it, and whoever renews waits for it while it
  has a valid credential. Until there was a first grant no reader waits, and it is honoured where it fits into the deadline.
- Without an answer another connection is asked as well after a few seconds (`credentials.overlap`).
- The whole exchange has a deadline, also against headers or a body that trickle (what is late is ended, `credentials.watch`), and a body has
  a limit.
- What an answer says about where the data lies is believed only if it names the documented bucket and the account's prefix.

Facts about the API: Optimizely's documentation of the Experimentation Events Export.

Threads: one at a time fetches (at the start the caller's, then the renewal thread), and has others send; any may close. Lock: `_lock`, a
leaf, guards `_watch` and the setting of `_closed`; it is not held over a request.
"""

import datetime
import json
import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import requests
import requests.auth
import urllib3.exceptions

from optfs.credentials.overlap import first_answer
from optfs.credentials.protocol import AwsCredential, GcpCredential, Grant
from optfs.credentials.watch import Watch
from optfs.errors import (
    AccessError,
    ConfigError,
    InvalidResponse,
    NoExport,
    OptfsError,
    RequestRefused,
    ServiceError,
    ServiceUnavailable,
    TokenRefused,
)
from optfs.headers import parse_retry_after
from optfs.units import is_account, parse_url
from optfs.values import AccountRoot, Clock, Deadline, KiB, Provider

logger = logging.getLogger(__name__)

AWS_BUCKET = "optimizely-events-data"
GCP_BUCKET_PREFIX = "optimizely-e3-"
LIFETIME = 3600.0
"""Seconds; the API's default and longest for AWS, and always for GCP, whose answer has no expiry."""

TRIES = 4
LONGEST_BODY = 256 * KiB
CONNECT_TIMEOUT = 10.0  # seconds: a SYN has been repeated three times by then
SILENCE = 30.0  # seconds without a byte after which a connection is given up
PATIENCE = 3.5
"""Seconds, at most, after which another connection is asked as well: all goes on within 5 s of the cause being gone."""
FIRST_PAUSE = 0.4
"""Seconds, at most, before the second try; each further pause is twice as long. What they come to (2.8 s) needs no other bound."""

LONGEST_ASKED = 2.0
"""Seconds that `Retry-After` may ask for and get while readers wait: all goes on within 5 s of the cause being gone."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")

Pause = Callable[[float], bool]
"""Waits so many seconds; returns True when the wait was cut short because everything ends."""


class _Bearer(requests.auth.AuthBase):
    """Sets the header itself: without an auth object requests would take one from `.netrc`."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class ApiClient:
    """Asks for credentials. One thread at a time."""

    def __init__(
        self,
        base_url: str,
        read_token: Callable[[float], str],
        *,
        account: str | None = None,
        timeout: float = 30.0,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
        pause: Pause | None = None,
        dice: random.Random | None = None,
    ) -> None:
        """Prepare; sends nothing.

        Args:
            base_url: `https://api.optimizely.com/v2`, or http on loopback.
            read_token: gives the token for each exchange, within so many seconds.
            account: the account that the answer must be about, or None for any.
            timeout: seconds for one exchange, all tries together.
            clock: monotonic.
            wall_clock: seconds since the epoch.
            pause: waits between tries; None: until `close` at most.
            dice: for jitter.

        Raises:
            ConfigError: the URL isn't https, nor http on loopback.

        """
        try:
            self._base = parse_url(base_url)
        except ValueError as error:
            raise ConfigError(f"--api-url {error}") from None
        parts = urlsplit(self._base)
        self._host = parts.hostname or ""
        self._loopback = parts.scheme == "http"
        self._read_token = read_token
        self._account = account
        self._timeout = timeout
        self._clock = clock
        self._closed = threading.Event()
        self._wall_clock = wall_clock
        self._pause = pause or self._closed.wait
        self._dice = dice or random.Random()  # noqa: S311 - jitter
        self._granted = False  # used by the thread that fetches
        self._lock = threading.Lock()
        self._watch: Watch | None = None  # guarded by _lock; not set any more once _closed is

    def fetch_aws(self, duration: float = LIFETIME) -> Grant:
        """Return AWS credentials that live `duration` seconds (900 … 3600), and where the data lies on S3.

        Raises:
            TokenRefused, NoExport, AccessError, ServiceUnavailable, InvalidResponse, ServiceError, ConfigError.

        """
        body = self._exchange("/export/credentials", {"duration": _duration(duration)})
        credentials = body.get("credentials")
        if not isinstance(credentials, dict):
            raise InvalidResponse("the Authentication API's answer holds no credentials")
        credential = AwsCredential(
            access_key=_text(credentials, "accessKeyId"),
            secret_key=_text(credentials, "secretAccessKey"),
            session_token=_text(credentials, "sessionToken"),
            expires_at=_moment(credentials.get("expiration")),
        )
        return Grant(self._root("aws", _text(body, "s3Path"), "s3"), credential)

    def fetch_gcp(self) -> Grant:
        """Return an OAuth token for GCS, and where the data lies there. Raises as `fetch_aws` does."""
        asked_at = self._wall_clock()
        body = self._exchange("/export/credentials/gcp", {})
        credential = GcpCredential(token=_text(body, "token"), expires_at=asked_at + LIFETIME)
        return Grant(self._root("gcp", _text(body, "uri"), "gs"), credential, announced=False)

    def close(self) -> None:
        """End a request or a pause that is under way, and refuse further requests."""
        with self._lock:
            self._closed.set()
            watch = self._watch
        if watch is not None:
            watch.end()

    def _exchange(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        deadline = Deadline.after(self._clock, self._timeout)
        token = self._read_token(self._timeout / 2)  # the rest is for the API
        failure: OptfsError | None = None
        for number in range(TRIES):
            if failure is not None:
                asked = failure.retry_after if isinstance(failure, ServiceUnavailable) else None
                wait = max(FIRST_PAUSE * 2 ** (number - 1) * self._dice.uniform(0.5, 1.0), asked or 0.0)
                longest = LONGEST_ASKED if self._granted else math.inf
                if wait > longest or wait >= deadline.remaining() or self._pause(wait):
                    raise failure
            try:
                body = self._try(path, query, token, deadline)
            except (ServiceUnavailable, InvalidResponse) as error:
                logger.debug("try %d of %s failed: %s (%s)", number + 1, path, error, error.detail)
                failure = error
            else:
                self._granted = True
                return body
        assert failure is not None  # the loop ran at least once
        raise failure

    def _try(self, path: str, query: dict[str, str], token: str, deadline: Deadline) -> dict[str, Any]:
        wait = max(0.05, deadline.remaining())
        timeouts = (min(wait, CONNECT_TIMEOUT), min(wait, SILENCE))
        with Watch() as watch:
            self._begin(watch)
            try:
                ask = partial(self._get, watch, path, query, token, timeouts)
                response, body = first_answer(ask, every=min(PATIENCE, self._timeout / 3), within=wait)
            except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                raise self._unreachable(error, ended=watch.ended) from error
            if watch.ended:
                raise ServiceUnavailable("the mount is ending")
        if response.status_code == 200:
            return _json_object(body)
        raise self._refusal(response, body, token)

    def _begin(self, watch: Watch) -> None:
        with self._lock:
            if self._closed.is_set():
                raise ServiceUnavailable("the mount is ending")
            self._watch = watch

    def _get(
        self, watch: Watch, path: str, query: dict[str, str], token: str, timeouts: tuple[float, float]
    ) -> tuple[requests.Response, bytes]:
        with watch.session() as session:
            session.trust_env = not self._loopback  # a proxy of the environment must not see a token that is meant for loopback
            with session.get(
                self._base + path,
                params=query,
                auth=_Bearer(token),
                headers={"Accept": "application/json", "Accept-Encoding": "identity", "Connection": "close"},
                timeout=timeouts,
                allow_redirects=False,
                stream=True,
            ) as response:
                return response, _limited(response)

    def _unreachable(self, error: Exception, *, ended: bool) -> ServiceError:
        if isinstance(error, requests.exceptions.SSLError):
            return ServiceError(
                f"the certificate of {self._host} can't be verified; if a proxy replaces certificates, set REQUESTS_CA_BUNDLE",
                detail=str(error),
            )
        if ended or isinstance(error, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError | TimeoutError):
            return ServiceUnavailable(f"{self._host} doesn't answer in time; check the network", detail=str(error))
        return ServiceUnavailable(
            f"the Authentication API at {self._host} can't be reached; check the network, or --api-url", detail=str(error)
        )

    def _refusal(self, response: requests.Response, body: bytes, token: str) -> OptfsError:
        status = response.status_code
        said = _error_fields(body, token)
        detail = f"status {status}, code {said.get('code', '-')}, uuid {said.get('uuid', '-')}"
        message = said.get("message", "")
        if status in (401, 403):
            return TokenRefused("the personal access token was refused; make a new one in Optimizely's profile settings", detail=detail)
        if status in (404, 410):
            return NoExport("this account has no export there; check the account, or ask Optimizely to turn the export on", detail=detail)
        if status == 400:
            reason = f": {message}" if message else ""
            return RequestRefused(
                f"the Authentication API refused the request{reason}; check --account, --api-url and the token", detail=detail
            )
        if status == 429 or status >= 500:
            return ServiceUnavailable(
                f"the Authentication API is {'overloaded' if status in (429, 503) else 'failing'} (status {status}); try again later",
                detail=detail,
                retry_after=parse_retry_after(response.headers.get("Retry-After"), self._wall_clock()),
            )
        if 300 <= status < 400:
            return ServiceError(f"{self._host} redirects, and a token is sent to no other address; check --api-url", detail=detail)
        return InvalidResponse(f"the Authentication API answered with status {status}; check --api-url", detail=detail)

    def _root(self, provider: Provider, uri: str, scheme: str) -> AccountRoot:
        parts = uri.split("/")
        bucket = parts[2] if len(parts) > 2 else ""
        path = [part for part in parts[3:] if part]
        clean = (
            uri.startswith(f"{scheme}://")
            and uri.isascii()
            and uri.isprintable()
            and uri.count("//") == 1
            and ".." not in uri
            and "?" not in uri
            and "#" not in uri
        )
        if not (clean and _BUCKET.fullmatch(bucket)):
            raise InvalidResponse("the Authentication API's answer names no bucket that can be used", detail=repr(uri[:200]))
        if provider == "gcp" and not path and bucket.startswith(GCP_BUCKET_PREFIX):
            path = ["v1", "account_id=" + bucket.removeprefix(GCP_BUCKET_PREFIX)]
        account = path[-1].removeprefix("account_id=") if path else ""
        if len(path) != 2 or path[0] != "v1" or not path[1].startswith("account_id=") or not is_account(account):
            raise InvalidResponse("the Authentication API's answer doesn't name the account's folder", detail=repr(uri[:200]))
        root = documented_root(provider, account)
        if bucket != root.bucket:
            raise InvalidResponse("the Authentication API's answer names a bucket that is not Optimizely's", detail=repr(uri[:200]))
        if self._account is not None and self._account != account:
            raise AccessError(f"the token is for account {account}, not for {self._account}; check --account")
        return root


def documented_root(provider: Provider, account: str) -> AccountRoot:
    """Return where an account's data lies."""
    bucket = AWS_BUCKET if provider == "aws" else GCP_BUCKET_PREFIX + account
    return AccountRoot(account, provider, bucket, f"v1/account_id={account}/")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}h" if minutes % 60 == 0 else f"{minutes}m"


def _limited(response: requests.Response) -> bytes:
    body = bytearray()
    for piece in response.iter_content(16 * KiB):
        body += piece
        if len(body) > LONGEST_BODY:
            raise InvalidResponse("the Authentication API's answer is too long")
    return bytes(body)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidResponse("the Authentication API answered with something else than JSON; is a proxy in between?") from None
    if not isinstance(value, dict):
        raise InvalidResponse("the Authentication API's answer is no JSON object")
    return value


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value or not value.isascii() or not value.isprintable():
        raise InvalidResponse(f"the Authentication API's answer has no usable {name}")
    return value


def _moment(value: object) -> float:
    """Return seconds since the epoch from milliseconds (documented), or from ISO 8601."""
    try:
        if isinstance(value, str) and not value.isdigit():
            moment = datetime.datetime.fromisoformat(value)
            return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            seconds = float(value) / 1000
            if math.isfinite(seconds):
                return seconds
    except (ValueError, OverflowError):
        pass
    raise InvalidResponse("the Authentication API's answer has no usable expiration")


def _error_fields(body: bytes, token: str) -> dict[str, str]:
    """Return what an error says, each field one line that is short and free of the token, whatever it holds."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    lines = {name: "".join(filter(str.isprintable, str(value[name]))) for name in ("code", "message", "uuid") if value.get(name)}
    return {name: line.replace(token, "***")[:200] for name, line in lines.items()}  # in this order: a part of the token is one, too
