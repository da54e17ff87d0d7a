"""A user's own credentials instead of a token: AWS's or Google's default chain, with the account named by `--account`.

The providers' SDKs find the credentials; they are imported only when used. Each renewal goes through the chain from its start, so that
changed keys, a new profile or a new login are seen. When to renew, who waits, what failures mean: as with a token (`renewal`), whose
thread this uses, so that no reader waits for an SDK.
"""

import datetime
import functools
from collections.abc import Callable

from optfs.credentials.protocol import AwsCredential, GcpCredential, Grant
from optfs.credentials.renewal import RenewingSource
from optfs.errors import AccessError, ConfigError, ServiceUnavailable
from optfs.values import AccountRoot, Clock

SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
LIFETIME = 3600.0
"""Seconds after which credentials that announce no end, or a later one, are looked up again."""
REQUEST_TIMEOUT = 15.0  # seconds for one request of Google's SDK, whose own bound is two minutes


class AwsSource(RenewingSource):
    """AWS's default chain: environment, profile, SSO, container or instance role."""

    def __init__(self, root: AccountRoot) -> None:
        """Find credentials and start the thread that renews them.

        Raises:
            ConfigError: there are none.
            AccessError: AWS refuses to give some.
            ServiceUnavailable: AWS can't be reached.

        """
        super().__init__("aws", functools.partial(fetch_aws, root), requested=LIFETIME)
        self.start()


class GoogleSource(RenewingSource):
    """Application default credentials of Google."""

    def __init__(self, root: AccountRoot, wall_clock: Clock) -> None:
        """Find credentials and start the thread that renews them. Raises as `AwsSource` does."""
        super().__init__("gcp", functools.partial(fetch_gcp, root), requested=LIFETIME, wall_clock=wall_clock)
        self.start()


def fetch_aws(root: AccountRoot) -> Grant:
    """Return what AWS's chain gives now. Raises as `AwsSource` does."""
    import botocore.exceptions  # noqa: PLC0415 - the SDK is loaded only when its chain is used
    import botocore.session  # noqa: PLC0415 - as above

    try:
        found = botocore.session.get_session().get_credentials()
        if found is None:
            raise ConfigError("no token and no AWS credentials were found; give --token-file, or set up AWS's credentials (aws configure)")
        keys = found.get_frozen_credentials()
    except (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError) as error:
        raise ServiceUnavailable("AWS's credential service can't be reached; check the network", detail=str(error)) from error
    except botocore.exceptions.ClientError as error:
        raise AccessError("AWS refuses to give credentials; check the profile or role", detail=str(error)) from error
    except botocore.exceptions.CredentialRetrievalError as error:
        raise AccessError("AWS's credentials can't be renewed; log in again (aws sso login)", detail=str(error)) from error
    except botocore.exceptions.BotoCoreError as error:
        raise ConfigError(f"AWS's credentials can't be used: {_line(error)}") from error
    if not keys.access_key or not keys.secret_key:
        raise ConfigError("AWS's credentials lack the access key or the secret key; set both")
    # botocore has no public name for the expiry; without it the credential is taken to live `LIFETIME` seconds.
    expiry = getattr(found, "_expiry_time", None)
    expires_at = expiry.timestamp() if isinstance(expiry, datetime.datetime) else None
    return Grant(root, AwsCredential(keys.access_key, keys.secret_key, keys.token, expires_at), announced=expires_at is not None)


def fetch_gcp(root: AccountRoot) -> Grant:
    """Return what Google's chain gives now. Raises as `AwsSource` does."""
    import google.auth  # noqa: PLC0415 - the SDK is loaded only when its chain is used
    import google.auth.exceptions  # noqa: PLC0415 - as above
    import google.auth.transport.requests  # noqa: PLC0415 - as above

    transport = google.auth.transport.requests.Request()
    request: Callable[..., object] = functools.partial(transport, timeout=REQUEST_TIMEOUT)
    try:
        found = google.auth.default(scopes=[SCOPE])[0]
        found.refresh(request)
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise ConfigError(
            "no token and no usable Google credentials were found; give --token-file, or run: gcloud auth application-default login",
            detail=str(error),
        ) from error
    except google.auth.exceptions.TransportError as error:
        raise ServiceUnavailable("Google's token service can't be reached; check the network", detail=str(error)) from error
    except google.auth.exceptions.GoogleAuthError as error:
        raise AccessError(
            "Google's credentials can't be refreshed; run: gcloud auth application-default login", detail=_line(error)
        ) from error
    # google-auth keeps the expiry as UTC without saying so.
    expires_at = None if found.expiry is None else found.expiry.replace(tzinfo=datetime.UTC).timestamp()
    return Grant(root, GcpCredential(found.token, expires_at), announced=expires_at is not None)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
