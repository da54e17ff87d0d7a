"""Which providers a mount uses: asks for credentials, proves by one page of a listing that the data can be reached, and chooses.

With a token the Authentication API gives the credentials; without one, and with `--account`, the provider's own chain does. Both providers are
asked at the same time, each by a thread of its own that ends with its answer. Only the packages of the providers that are asked are imported.

Rules of `--provider auto` (`choose`): providers with data are used, both where both have some. One that refuses us is left out with a
warning when the other works; so is one that the API has no credentials for (404, also 400: what it says of accounts without isn't documented).
One that can't be reached is an error even so: half of the data must not look like all of it.

A service that is down is told within seconds, not after `--timeout`: failures that come at once are tried again for `PATIENCE` only.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import optfs
from optfs.config import Carrier, Config
from optfs.credentials.api import LIFETIME, ApiClient, documented_root
from optfs.credentials.protocol import CredentialSource
from optfs.credentials.renewal import RenewalStatus, RenewingSource
from optfs.credentials.tokens import VARIABLES, TokenSource, find_token
from optfs.errors import (
    AccessError,
    ConfigError,
    DeadlineExceeded,
    NoExport,
    OptfsError,
    RequestRefused,
    ServiceError,
    ServiceUnavailable,
    TokenRefused,
)
from optfs.service.logs import remember_secret
from optfs.stores.counters import StoreCounters
from optfs.stores.protocol import Store
from optfs.stores.rejection import RejectedCredential
from optfs.values import AccountRoot, Deadline, Provider

if TYPE_CHECKING:
    from optfs.stores.gcs import GcsStore
    from optfs.stores.gcs_sdk import GcsSdkStore
    from optfs.stores.s3 import S3Store
    from optfs.stores.s3_sdk import S3SdkStore

logger = logging.getLogger(__name__)

PATIENCE = 2.0  # seconds of trying again at mount time: a service that is just restarting, not one that is down
PAUSE = 0.25
USER_AGENT = f"optfs/{optfs.__version__}"
NAMES: dict[Provider, str] = {"aws": "S3", "gcp": "Google Cloud Storage"}

MISSING = (
    "no token was found: give --token-file or --token-command, or set OPTIMIZELY_API_TOKEN; "
    "to use AWS's or Google's own credentials instead, give --account"
)


class Source(CredentialSource, Protocol):
    """A source of credentials that tells how it fares."""

    def status(self) -> RenewalStatus:
        """Return what `optfs status` shows."""
        ...

    def close(self, timeout: float = 5.0) -> None:
        """End its thread, if it has one."""
        ...


@dataclass(frozen=True, slots=True)
class Connected:
    """A provider that answered.

    Attributes:
        store: without retries.
        has_data: whether the account's folder holds anything.

    """

    provider: Provider
    source: Source
    store: Store
    counters: StoreCounters
    has_data: bool

    def close(self) -> None:
        """Let go of it."""
        self.source.close()
        self.store.close()


Outcome = Connected | OptfsError


def connect(config: Config) -> list[Connected]:
    """Return the providers to mount, at least one.

    Raises:
        ConfigError: see `openers`.
        AccessError, ServiceError, DeadlineExceeded: see the module.

    """
    makers = openers(config)
    outcomes: dict[Provider, Outcome] = {}

    def ask(provider: Provider) -> None:
        try:
            outcomes[provider] = reach(config, provider, makers[provider]())
        except OptfsError as error:
            outcomes[provider] = error
        except Exception as error:  # a bug; the mount must fail by it rather than hang
            logger.exception("%s can't be asked", NAMES[provider])
            outcomes[provider] = ServiceError(f"{NAMES[provider]} can't be asked: unexpected {type(error).__name__}")

    threads = [threading.Thread(target=ask, args=(provider,), name=f"connect-{provider}", daemon=True) for provider in makers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return choose({provider: outcomes[provider] for provider in makers})


def choose(outcomes: Mapping[Provider, Outcome]) -> list[Connected]:
    """Return which of the providers that were asked are used; close the others that answered.

    Raises:
        OptfsError: the most telling failure, where none can be used, or where one can't be reached.

    """
    answered = [outcome for outcome in outcomes.values() if isinstance(outcome, Connected)]
    failed = {provider: outcome for provider, outcome in outcomes.items() if isinstance(outcome, OptfsError)}
    lost = {
        provider: error
        for provider, error in failed.items()
        if isinstance(error, ServiceError | DeadlineExceeded) and not (answered and isinstance(error, RequestRefused))
    }
    if not answered or lost:
        for outcome in answered:
            outcome.close()
        provider, error = min((lost or failed).items(), key=lambda item: _rank(item[1]))
        if answered:
            others = ", ".join(outcome.provider for outcome in answered)
            raise type(error)(f"{NAMES[provider]}: {error.message}; --provider {others} mounts without it", detail=error.detail)
        raise error
    for provider, error in failed.items():
        if not isinstance(error, NoExport):
            logger.warning("%s is left out of the mount: %s (%s)", NAMES[provider], error.message, error.detail)
    used = [outcome for outcome in answered if outcome.has_data] or answered
    if len({outcome.source.root.account for outcome in used}) > 1:
        for outcome in answered:
            outcome.close()
        accounts = " and ".join(f"{outcome.source.root.account} on {NAMES[outcome.provider]}" for outcome in used)
        raise ConfigError(f"the token leads to two accounts, {accounts}, and a mount shows one; choose by --account or --provider")
    for outcome in answered:
        if outcome not in used:
            logger.info("%s holds nothing of this account and is left out; the next mount looks again", NAMES[outcome.provider])
            outcome.close()
    return used


def _rank(error: OptfsError) -> int:
    """Return how little a failure tells; the most telling comes first."""
    order = (TokenRefused, ServiceError, DeadlineExceeded)
    found = next((number for number, kind in enumerate(order) if isinstance(error, kind)), None)
    if found is not None:
        return found
    return 5 if isinstance(error, NoExport) else 4 if isinstance(error, ConfigError) else 3 if isinstance(error, AccessError) else 6


def has_token(config: Config) -> bool:
    """Return whether there is a token, which isn't read; else the provider's own credentials are used. To be asked before `openers`."""
    return find_token(config.token_file, config.token_command, os.environ, folder=config.folder) is not None


def openers(config: Config) -> dict[Provider, Callable[[], Source]]:
    """Return for each provider that may be used what gets its credentials.

    The token's environment variables are removed, so that no child inherits them.

    Raises:
        ConfigError: no token, or an unusable one, or none from the command that is to give it, and no account for the provider's own
            credentials.

    """
    providers: list[Provider] = ["aws", "gcp"] if config.provider == "auto" else [config.provider]
    environment = dict(os.environ)
    token = find_token(config.token_file, config.token_command, environment, folder=config.folder)
    for name in VARIABLES:
        os.environ.pop(name, None)
    if token is not None:
        first = _first(token)
        remember_secret(first)
        return {provider: partial(_from_token, config, provider, _reader(token, first)) for provider in providers}
    if config.account is None:
        raise ConfigError(MISSING)
    return {provider: partial(_from_chain, provider, documented_root(provider, config.account)) for provider in providers}


def _first(token: TokenSource) -> str:
    """Return the token. A command that fails at the start is a mistake in the settings; later, trying again may help."""
    try:
        return token.read()
    except ServiceUnavailable as error:
        raise ConfigError(error.message, detail=error.detail) from error


def _reader(token: TokenSource, first: str) -> Callable[[float], str]:
    """Return what reads the token anew each time but the first: a command is not run twice for two providers at once."""
    held = [first]

    def read(timeout: float) -> str:
        if held:
            return held.pop()
        secret = token.read(timeout)
        remember_secret(secret)
        return secret

    return read


def _from_token(config: Config, provider: Provider, read_token: Callable[[float], str]) -> Source:
    # Less than --timeout, so that whoever waits for a renewal learns in time that it failed, not only that it took too long.
    client = ApiClient(config.api_url, read_token, account=config.account, timeout=config.timeout * 0.75)
    requested = config.credential_duration if provider == "aws" else LIFETIME
    fetch = partial(client.fetch_aws, requested) if provider == "aws" else client.fetch_gcp
    source = RenewingSource(provider, fetch, requested=requested, on_close=client.close)
    source.start()
    return source


def _from_chain(provider: Provider, root: AccountRoot) -> Source:
    from optfs.credentials.chain import AwsSource, GoogleSource  # noqa: PLC0415 - only without a token

    return AwsSource(root) if provider == "aws" else GoogleSource(root, time.time)


def reach(config: Config, provider: Provider, source: Source) -> Connected:
    """Get the first page of the account's folder; the source is closed where that fails."""
    counters = StoreCounters()
    try:
        store = make_store(config, source, counters)
    except BaseException:
        source.close()
        raise
    try:
        has_data = _probe(store, source, config.timeout)
    except BaseException:
        source.close()
        store.close()
        raise
    return Connected(provider, source, store, counters, has_data)


def make_store(config: Config, source: CredentialSource, counters: StoreCounters) -> Store:
    """Return the store of a source's account, by the carrier that was chosen; imports only that provider's and that carrier's packages."""
    root = source.root
    if root.provider == "aws":
        return _s3_class(config.carrier)(
            root, source, counters, endpoint_url=config.s3_endpoint_url, timeout=config.timeout, user_agent=USER_AGENT
        )
    return _gcs_class(config.carrier)(
        root,
        source,
        counters,
        endpoint_url=config.gcs_endpoint_url,
        user_project=config.gcs_user_project,
        timeout=config.timeout,
        user_agent=USER_AGENT,
    )


def _s3_class(carrier: Carrier) -> "type[S3Store | S3SdkStore]":
    if carrier == "sdk":
        from optfs.stores.s3_sdk import S3SdkStore  # noqa: PLC0415 - only where S3 is used, by this carrier

        return S3SdkStore
    from optfs.stores.s3 import S3Store  # noqa: PLC0415 - only where S3 is used

    return S3Store


def _gcs_class(carrier: Carrier) -> "type[GcsStore | GcsSdkStore]":
    if carrier == "sdk":
        from optfs.stores.gcs_sdk import GcsSdkStore  # noqa: PLC0415 - only where GCS is used, by this carrier

        return GcsSdkStore
    from optfs.stores.gcs import GcsStore  # noqa: PLC0415 - only where GCS is used

    return GcsStore


def _probe(store: Store, source: Source, timeout: float) -> bool:
    """Return whether the account's folder holds anything. A credential that is refused is renewed once."""
    deadline = Deadline.after(time.monotonic, timeout)
    patience = Deadline.after(time.monotonic, min(PATIENCE, timeout / 2))
    renewed = False
    while True:
        try:
            page = store.list_page(store.root.prefix, delimiter="/", continuation=None, deadline=deadline)
        except RejectedCredential as error:
            if renewed:
                raise
            source.reject(error.credential, max(0.0, deadline.remaining()))
            renewed = True
        except ServiceUnavailable:
            if patience.remaining() <= 0:
                raise
            time.sleep(PAUSE)
        else:
            if renewed:
                source.accept(source.current(0.0))
            return bool(page.objects or page.prefixes or page.continuation)
