"""Makes the store that everything above uses: the provider's, with retries around it. Imports the provider's module only when asked for it."""

from dataclasses import dataclass

import optfs
from optfs.credentials.protocol import CredentialSource
from optfs.stores.counters import StoreCounters
from optfs.stores.protocol import Store
from optfs.stores.retry import RetryingStore
from optfs.values import AccountRoot

USER_AGENT = f"optfs/{optfs.__version__}"


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What the configuration says about stores.

    Attributes:
        s3_endpoint_url: None: Amazon's own.
        gcs_endpoint_url: None: Google's own.
        gcs_user_project: the project that is billed for requests to GCS, or None.
        timeout: `--timeout`, seconds.

    """

    s3_endpoint_url: str | None
    gcs_endpoint_url: str | None
    gcs_user_project: str | None
    timeout: float


def open_store(root: AccountRoot, source: CredentialSource, options: StoreOptions, counters: StoreCounters) -> RetryingStore:
    """Return a store for the account's data; nothing is sent.

    Args:
        root: where the data lies.
        source: of the provider's credentials.
        options: endpoints and limits.
        counters: where requests, retries and bytes are counted; one for several stores, or one each.

    Raises:
        ConfigError: an endpoint's URL, a proxy's or the CA bundle is unusable.

    """
    store: Store
    if root.provider == "aws":
        from optfs.stores.s3 import S3Store  # noqa: PLC0415 - a mount of GCS alone doesn't pay for botocore

        store = S3Store(root, source, counters, endpoint_url=options.s3_endpoint_url, timeout=options.timeout, user_agent=USER_AGENT)
    else:
        from optfs.stores.gcs import GcsStore  # noqa: PLC0415 - nor the other way round

        store = GcsStore(
            root,
            source,
            counters,
            endpoint_url=options.gcs_endpoint_url,
            user_project=options.gcs_user_project,
            timeout=options.timeout,
            user_agent=USER_AGENT,
        )
    return RetryingStore(store, source, counters)
