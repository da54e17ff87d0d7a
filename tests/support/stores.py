"""Stores on the embedded services or on moto, with credentials that tests hold in their hands."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, get_args

import boto3
from botocore.config import Config

from optfs.config import Carrier
from optfs.credentials.protocol import AwsCredential, Credential, CredentialSource, GcpCredential
from optfs.demo.services import Services
from optfs.stores.counters import StoreCounters
from optfs.stores.gcs import GcsStore
from optfs.stores.gcs_sdk import GcsSdkStore
from optfs.stores.protocol import Store
from optfs.stores.retry import RetryingStore
from optfs.stores.s3 import S3Store
from optfs.stores.s3_sdk import S3SdkStore
from optfs.values import AccountRoot, Deadline, ObjectInfo, Provider

CARRIERS: tuple[Carrier, ...] = get_args(Carrier)
S3_STORES: dict[Carrier, type[S3Store] | type[S3SdkStore]] = {"direct": S3Store, "sdk": S3SdkStore}
GCS_STORES: dict[Carrier, type[GcsStore] | type[GcsSdkStore]] = {"direct": GcsStore, "sdk": GcsSdkStore}

ACCOUNT = "123"
PREFIX = f"v1/account_id={ACCOUNT}/"
ROOTS: dict[Provider, AccountRoot] = {
    "aws": AccountRoot(ACCOUNT, "aws", "optimizely-events-data", PREFIX),
    "gcp": AccountRoot(ACCOUNT, "gcp", f"optimizely-e3-{ACCOUNT}", PREFIX),
}


class HeldSource:
    """A `CredentialSource` without a thread: holds what `make` gave, and asks it again when a store rejects that."""

    def __init__(self, root: AccountRoot, make: Callable[[], Credential]) -> None:
        self._root = root
        self._make = make
        self.held = make()
        self.rejected: list[Credential] = []
        self.accepted: list[Credential] = []

    @property
    def root(self) -> AccountRoot:
        """Where the data lies."""
        return self._root

    def current(self, timeout: float) -> Credential:
        """Return what is held."""
        return self.held

    def reject(self, credential: Credential, timeout: float) -> Credential:
        """Hold another one."""
        self.rejected.append(credential)
        self.held = self._make()
        return self.held

    def accept(self, credential: Credential) -> None:
        """Note it."""
        self.accepted.append(credential)


def deadline(seconds: float = 60.0) -> Deadline:
    """Return a deadline by the real clock."""
    return Deadline.after(time.monotonic, seconds)


def list_all(store: Store, prefix: str = PREFIX, delimiter: str | None = None) -> tuple[list[ObjectInfo], list[str], int]:
    """Return objects and prefixes of all pages, and how many pages there were."""
    objects: list[ObjectInfo] = []
    prefixes: list[str] = []
    continuation: str | None = None
    pages = 0
    while True:
        page = store.list_page(prefix, delimiter=delimiter, continuation=continuation, deadline=deadline())
        pages += 1
        objects += page.objects
        prefixes += page.prefixes
        continuation = page.continuation
        if continuation is None:
            return objects, prefixes, pages


def find(store: Store, name: str) -> ObjectInfo:
    """Return an object below the account's prefix as a listing shows it."""
    return next(info for info in list_all(store, PREFIX + name)[0] if info.key == PREFIX + name)


def read(store: Store, info: ObjectInfo, start: int = 0, length: int | None = None, *, until: Deadline | None = None) -> bytes:
    """Return bytes of an object, and check that progress grew and ended with all of them."""
    buffer = bytearray(b"\xaa" * (info.size - start if length is None else length))
    told: list[int] = []
    store.read_into(info, start, memoryview(buffer), told.append, until or deadline())
    assert told == sorted(set(told)), "progress must grow"
    assert told[-1] == len(buffer)
    return bytes(buffer)


def make_store(
    provider: Provider,
    carrier: Carrier,
    source: CredentialSource,
    counters: StoreCounters,
    *,
    endpoint_url: str,
    timeout: float = 30.0,
    user_project: str | None = None,
) -> Store:
    """Return a store without retries."""
    root, agent = ROOTS[provider], "optfs/test"
    if provider == "aws":
        return S3_STORES[carrier](root, source, counters, endpoint_url=endpoint_url, timeout=timeout, user_agent=agent)
    return GCS_STORES[carrier](
        root, source, counters, endpoint_url=endpoint_url, user_project=user_project, timeout=timeout, user_agent=agent
    )


class Ground(Protocol):
    """A service that holds objects, and a store on it."""

    raw: Store
    store: RetryingStore
    source: HeldSource
    counters: StoreCounters

    def put(self, name: str, data: bytes) -> None:
        """Make or overwrite an object below the account's prefix."""

    def delete(self, name: str) -> None:
        """Delete one."""


class DemoGround:
    """An embedded service."""

    def __init__(
        self, services: Services, provider: Provider, carrier: Carrier, *, timeout: float = 30.0, user_project: str | None = None
    ) -> None:
        self.services = services
        self.provider = provider
        self.carrier = carrier
        self.source = HeldSource(ROOTS[provider], self._aws if provider == "aws" else self._gcp)
        self.counters = StoreCounters()
        self.pauses: list[float] = []
        url = services.s3_url if provider == "aws" else services.gcs_url
        self.raw = make_store(provider, carrier, self.source, self.counters, endpoint_url=url, timeout=timeout, user_project=user_project)
        self.store = RetryingStore(self.raw, self.source, self.counters, pause=self.pauses.append)

    def put(self, name: str, data: bytes) -> None:
        """Make or overwrite an object below the account's prefix."""
        self.services.put(name, data)

    def delete(self, name: str) -> None:
        """Delete one."""
        self.services.delete(name)

    def _aws(self) -> Credential:
        keys = self.services.issuer.issue_keys(3600)
        return AwsCredential(keys.access_key, keys.secret_key, keys.session_token, keys.expires_at)

    def _gcp(self) -> Credential:
        return GcpCredential(self.services.issuer.issue_token(), time.time() + 3600)


@contextmanager
def demo_ground(provider: Provider, carrier: Carrier = "direct", *, timeout: float = 30.0) -> Iterator[DemoGround]:
    """Start embedded services and make a store on one of them."""
    with Services(account=ACCOUNT) as services:
        ground = DemoGround(services, provider, carrier, timeout=timeout)
        try:
            yield ground
        finally:
            ground.store.close()


class MotoGround:
    """A running moto server, whose S3 is neither optfs's nor Amazon's."""

    def __init__(self, url: str, carrier: Carrier) -> None:
        root = ROOTS["aws"]
        self.pauses: list[float] = []
        self.source = HeldSource(root, lambda: AwsCredential("AKIAIOSFODNN7EXAMPLE", "secret", "session", None))
        self.counters = StoreCounters()
        self.raw = make_store("aws", carrier, self.source, self.counters, endpoint_url=url)
        self.store = RetryingStore(self.raw, self.source, self.counters, pause=self.pauses.append)
        self._client: Any = boto3.client(
            "s3",
            region_name="us-east-1",
            endpoint_url=url,
            aws_access_key_id="AKIAIOSFODNN7EXAMPLE",
            aws_secret_access_key="secret",
            config=Config(s3={"addressing_style": "path"}),
        )
        self._client.create_bucket(Bucket=root.bucket)

    def put(self, name: str, data: bytes) -> None:
        """Make or overwrite an object below the account's prefix."""
        self._client.put_object(Bucket=ROOTS["aws"].bucket, Key=PREFIX + name, Body=data)

    def delete(self, name: str) -> None:
        """Delete one."""
        self._client.delete_object(Bucket=ROOTS["aws"].bucket, Key=PREFIX + name)

    def close(self) -> None:
        """Delete the bucket and close all connections."""
        bucket = ROOTS["aws"].bucket
        for info in list_all(self.store)[0]:
            self._client.delete_object(Bucket=bucket, Key=info.key)
        self._client.delete_bucket(Bucket=bucket)
        self._client.close()
        self.store.close()
