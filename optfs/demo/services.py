"""The three embedded services together: one account, its token, its buckets, and what tests do to them.

`Services` is what the demo mounts and what tests run against. It listens on loopback only, at ports that the system chooses.
"""

import contextlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from optfs.demo.api_server import Account, ApiHandler, TokenState
from optfs.demo.faults import FaultPlan
from optfs.demo.gcs_server import GcsHandler
from optfs.demo.http_server import HttpServer, Pace
from optfs.demo.issuer import AwsKeys, Issuer
from optfs.demo.objects import Bucket
from optfs.demo.s3_server import Paging, S3Handler
from optfs.demo.traffic import RequestLog


class Services:
    """An account with data on S3, on GCS or on both, behind an Authentication API.

    Attributes:
        account: its id.
        prefix: its prefix in the buckets, `v1/account_id=<id>/`.
        token: the personal access token that the API accepts.
        s3_bucket: what S3 holds; keys are whole.
        gcs_bucket: what GCS holds; keys are whole.
        requests: all requests so far.
        faults: what goes wrong.
        paging: `size` of a listing's pages; may be changed at any time.
        pace: `latency` and `rate`; may be changed at any time.
        issuer: the credentials given so far.

    """

    def __init__(  # noqa: PLR0913 - keywords with defaults, one for each property of the services
        self,
        *,
        account: str = "123",
        s3: bool = True,
        gcs: bool = True,
        credential_lifetime: float = 3600.0,
        page_size: int = 1000,
        latency: float = 0.0,
        rate: int | None = None,
        token: str | None = None,
        strict: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Describe the services; `start` starts them.

        Args:
            account: the account's id.
            s3: whether the account has data on S3; without, the API answers 404 there.
            gcs: the same of GCS.
            credential_lifetime: seconds after which credentials stop to work, however long they were asked for.
            page_size: entries of a listing's page, at most.
            latency: seconds before the first byte of each answer to a list or a get.
            rate: bytes a second of each body; None: no limit.
            token: the personal access token; None: a random one.
            strict: whether the stores deny all that an export's users are denied.
            clock: wall clock that credentials expire by.

        """
        self._account = Account(account, s3, gcs)
        self.account = account
        self.prefix = self._account.prefix
        self.token = token or "2:" + secrets.token_urlsafe(32)
        self.s3_bucket = Bucket()
        self.gcs_bucket = Bucket()
        self.requests = RequestLog()
        self.faults = FaultPlan()
        self.paging = Paging(page_size)
        self.pace = Pace(latency, rate)
        self.issuer = Issuer(clock, credential_lifetime)
        self._token_state = TokenState(self.token)
        self._token_state.good.set()
        handlers = (
            ApiHandler(self._account, self.issuer, self._token_state),
            S3Handler(self.s3_bucket, self._account, self.issuer, self.paging, strict=strict),
            GcsHandler(self.gcs_bucket, self._account, self.issuer, self.paging, strict=strict),
        )
        self._api, self._s3, self._gcs = self._servers = [
            HttpServer(handler, self.requests, self.faults, self.pace) for handler in handlers
        ]

    @property
    def api_url(self) -> str:
        """What `--api-url` wants."""
        return self._api.url + "/v2"

    @property
    def s3_url(self) -> str:
        """What `--s3-endpoint-url` wants."""
        return self._s3.url

    @property
    def gcs_url(self) -> str:
        """What `--gcs-endpoint-url` wants."""
        return self._gcs.url

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which `optfs mount` uses these services."""
        return {
            "OPTIMIZELY_API_TOKEN": self.token,
            "OPTFS_API_URL": self.api_url,
            "OPTFS_S3_ENDPOINT_URL": self.s3_url,
            "OPTFS_GCS_ENDPOINT_URL": self.gcs_url,
        }

    def start(self) -> Self:
        """Listen at free ports and return self."""
        with contextlib.ExitStack() as stack:
            for server in self._servers:
                server.start()
                stack.callback(server.stop)
            stack.pop_all()
        return self

    def close(self) -> None:
        """End everything within two seconds or so, faults that stall included."""
        for server in self._servers:
            server.stop()
        self.faults.clear()

    def outage(self) -> None:
        """End all connections and refuse new ones, until `end_outage`."""
        for server in self._servers:
            server.stop()

    def end_outage(self) -> None:
        """Listen again, at the same ports."""
        for server in self._servers:
            server.start()

    def put(self, key: str, data: bytes | Path, *, mtime: float | None = None) -> None:
        """Put an object below the account's prefix into every bucket that the account has."""
        for has, bucket in ((self._account.s3, self.s3_bucket), (self._account.gcs, self.gcs_bucket)):
            if has:
                bucket.put(self.prefix + key, data, mtime=mtime)

    def delete(self, key: str) -> None:
        """Delete an object below the account's prefix from every bucket that has it."""
        for bucket in (self.s3_bucket, self.gcs_bucket):
            if bucket.get(self.prefix + key) is not None:
                bucket.delete(self.prefix + key)

    def expire_credentials(self) -> None:
        """Let all credentials given so far stop to work, before the announced expiry."""
        self.issuer.expire_all()

    def static_keys(self) -> AwsKeys:
        """Return S3 keys of the user's own, which need no API and no session token."""
        return self.issuer.issue_static_keys()

    def revoke(self) -> None:
        """Revoke the personal access token: the API answers 401. Credentials given before go on working."""
        self._token_state.good.clear()

    def restore(self) -> None:
        """Undo `revoke`."""
        self._token_state.good.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
