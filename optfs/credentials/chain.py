"""A user's own credentials instead of a token: AWS's or Google's default chain, with the account named by `--account`.

The providers' SDKs find, hold and refresh these credentials; they are imported only when used. A refresh by the SDK happens in `current`,
in the thread of whoever asks; AWS's begins 15 minutes before expiry and keeps the held credential in use meanwhile.

Lock: `GoogleSource._lock` and `AwsSource._lock` guard the SDK's object and are held over its refresh: Google's objects aren't made for
several threads, and one refresh is enough for all who wait.
"""

import logging
import threading
from typing import Any

from optfs.credentials.protocol import AwsCredential, Credential, GcpCredential
from optfs.credentials.renewal import RenewalStatus
from optfs.errors import AccessError, ConfigError, CredentialRejected, DeadlineExceeded, ServiceUnavailable
from optfs.values import AccountRoot, Clock

logger = logging.getLogger(__name__)

SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
REFRESH_EARLY = 300.0
"""Seconds before a Google token's expiry from which it is refreshed."""


class AwsSource:
    """AWS's default chain: environment, profile, SSO, container or instance role."""

    def __init__(self, root: AccountRoot) -> None:
        """Find credentials.

        Raises:
            ConfigError: there are none.

        """
        import botocore.exceptions  # noqa: PLC0415 - the SDK is loaded only when its chain is used
        import botocore.session  # noqa: PLC0415

        self._root = root
        self._errors: tuple[type[Exception], ...] = (botocore.exceptions.BotoCoreError,)
        self._lock = threading.Lock()
        try:
            self._credentials: Any = botocore.session.get_session().get_credentials()
        except self._errors as error:
            raise ConfigError(f"AWS's credentials can't be used: {error}") from error
        if self._credentials is None:
            raise ConfigError("no token and no AWS credentials were found; give --token-file, or set AWS's credentials and --account")

    @property
    def root(self) -> AccountRoot:
        """Where the data lies, as documented."""
        return self._root

    def current(self, timeout: float) -> Credential:
        """Return what the chain holds; see the protocol."""
        if not self._lock.acquire(timeout=max(0.0, timeout)):
            raise DeadlineExceeded("refreshing AWS's credentials took longer than --timeout")
        try:
            frozen = self._credentials.get_frozen_credentials()
        except self._errors as error:
            raise AccessError(f"AWS's credentials can't be refreshed: {error}") from error
        finally:
            self._lock.release()
        return AwsCredential(frozen.access_key, frozen.secret_key, frozen.token, None)

    def reject(self, credential: Credential, timeout: float) -> Credential:
        """Return what the chain holds now, if that is another; see the protocol."""
        fresh = self.current(timeout)
        if fresh == credential:
            raise CredentialRejected("the service refuses your AWS credentials; renew them (aws sso login, or a new session token)")
        return fresh

    def status(self) -> RenewalStatus:
        """Return what `optfs status` shows."""
        return RenewalStatus("aws", self._root.account, self._root.bucket, None, 0.0, "", 0)

    def close(self, timeout: float = 0.0) -> None:
        """Nothing runs in the background."""


class GoogleSource:
    """Application default credentials of Google."""

    def __init__(self, root: AccountRoot, wall_clock: Clock) -> None:
        """Find credentials.

        Raises:
            ConfigError: there are none.

        """
        import google.auth  # noqa: PLC0415 - the SDK is loaded only when its chain is used
        import google.auth.exceptions  # noqa: PLC0415
        import google.auth.transport.requests  # noqa: PLC0415

        self._root = root
        self._wall_clock = wall_clock
        self._transport_error: type[Exception] = google.auth.exceptions.TransportError
        self._error: type[Exception] = google.auth.exceptions.GoogleAuthError
        self._lock = threading.Lock()
        self._request: Any = google.auth.transport.requests.Request()
        self._last_refresh = 0.0
        try:
            self._credentials: Any = google.auth.default(scopes=[SCOPE])[0]
        except self._error as error:
            raise ConfigError(
                "no token and no Google credentials were found; give --token-file, or run: gcloud auth application-default login"
            ) from error

    @property
    def root(self) -> AccountRoot:
        """Where the data lies, as documented."""
        return self._root

    def current(self, timeout: float) -> Credential:
        """Return a token, refreshed where its time is nearly over; see the protocol."""
        return self._token(timeout, None)

    def reject(self, credential: Credential, timeout: float) -> Credential:
        """Return a newer token; see the protocol."""
        fresh = self._token(timeout, credential)
        if fresh == credential:
            raise CredentialRejected("the service refuses your Google credentials; run: gcloud auth application-default login")
        return fresh

    def status(self) -> RenewalStatus:
        """Return what `optfs status` shows."""
        expiry = self._expiry()
        return RenewalStatus("gcp", self._root.account, self._root.bucket, expiry, self._last_refresh, "", 0)

    def close(self, timeout: float = 0.0) -> None:
        """Nothing runs in the background."""

    def _token(self, timeout: float, rejected: Credential | None) -> GcpCredential:
        if not self._lock.acquire(timeout=max(0.0, timeout)):
            raise DeadlineExceeded("refreshing Google's credentials took longer than --timeout")
        try:
            held = self._credentials.token
            expiry = self._expiry()
            late = expiry is not None and expiry - self._wall_clock() < REFRESH_EARLY
            if held is None or late or (isinstance(rejected, GcpCredential) and rejected.token == held):
                self._credentials.refresh(self._request)
                self._last_refresh = self._wall_clock()
            return GcpCredential(self._credentials.token, self._expiry())
        except self._transport_error as error:
            raise ServiceUnavailable("Google's token service can't be reached; check the network", detail=str(error)) from error
        except self._error as error:
            raise AccessError(
                "Google's credentials can't be refreshed; run: gcloud auth application-default login", detail=str(error)
            ) from error
        finally:
            self._lock.release()

    def _expiry(self) -> float | None:
        """Return the held token's expiry; google-auth keeps it as UTC without saying so."""
        import datetime  # noqa: PLC0415 - of this function alone

        expiry = self._credentials.expiry
        return None if expiry is None else float(expiry.replace(tzinfo=datetime.UTC).timestamp())
