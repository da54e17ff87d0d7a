"""The SDKs' own clients as a carrier: what they would do of themselves and mustn't, and that waits, certificates and proxies are the stores'."""

import contextlib
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from optfs.config import Carrier
from optfs.credentials.protocol import AwsCredential, Credential, GcpCredential
from optfs.demo.faults import Answer, Fault
from optfs.errors import ConfigError, DeadlineExceeded, OptfsError, ServiceError, ServiceUnavailable
from optfs.stores.counters import StoreCounters
from optfs.stores.protocol import Store
from optfs.stores.receiver import Stalled
from optfs.stores.s3_sdk import S3SdkStore
from optfs.values import AccountRoot, MiB, ObjectInfo, Provider
from tests.support.certificates import certificate
from tests.support.faulty_server import Exchange, FaultyServer, answer
from tests.support.stores import CARRIERS, PREFIX, ROOTS, HeldSource, deadline, demo_ground, find, list_all, make_store, read

CREDENTIALS: dict[Provider, Credential] = {
    "aws": AwsCredential("AKIAIOSFODNN7EXAMPLE", "secret", "session", None),
    "gcp": GcpCredential("ya29.token", None),
}
VERSION = 'ETag: "17"\r\nX-Goog-Generation: 17\r\n'
EMPTY: dict[Provider, bytes] = {"aws": b"<ListBucketResult></ListBucketResult>", "gcp": b"{}"}


@pytest.fixture(params=["aws", "gcp"])
def provider(request: pytest.FixtureRequest) -> Provider:
    """Give each provider in turn."""
    found: Provider = request.param
    return found


@pytest.fixture(params=CARRIERS)
def carrier(request: pytest.FixtureRequest) -> Carrier:
    """Give each carrier in turn: the SDKs', and beside it the one that it must be like."""
    found: Carrier = request.param
    return found


@contextlib.contextmanager
def store_at(url: str, provider: Provider, carrier: Carrier = "sdk", *, timeout: float = 30.0) -> Iterator[Store]:
    """Make a store on a server."""
    source = HeldSource(ROOTS[provider], lambda: CREDENTIALS[provider])
    with contextlib.closing(make_store(provider, carrier, source, StoreCounters(), endpoint_url=url, timeout=timeout)) as store:
        yield store


def info_of(provider: Provider, size: int) -> ObjectInfo:
    """Return an object as a listing would show it."""
    return ObjectInfo(PREFIX + "p", size, 0.0, "17", provider)


def list_by(store: Store, seconds: float = 60.0) -> object:
    """List until a deadline."""
    return store.list_page(PREFIX, delimiter=None, continuation=None, deadline=deadline(seconds))


def lists(provider: Provider) -> Exchange:
    """Return what answers with an empty listing."""

    def exchange(connection: socket.socket, head: bytes) -> bool:
        connection.sendall(answer(EMPTY[provider]))
        return True

    return exchange


def trickle(connection: socket.socket, head: bytes) -> bool:
    """Announce much and send a byte now and then."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b"<")
        time.sleep(0.05)


def keep_silent(connection: socket.socket, head: bytes) -> bool:
    """Send nothing until the client leaves."""
    return bool(connection.recv(1))


def test_a_listing_that_trickles_cant_outlive_the_deadline(provider: Provider, carrier: Carrier) -> None:
    """Though bytes come all the time, so that the connection never counts as silent."""
    with FaultyServer(trickle) as server, store_at(server.url, provider, carrier) as store:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            list_by(store, 0.5)
        assert time.monotonic() - began < 20


def test_a_wait_for_an_answer_ends_with_the_deadline(provider: Provider, carrier: Carrier) -> None:
    """Not only with the longest silence that is allowed, a third of --timeout."""
    with FaultyServer(keep_silent) as server, store_at(server.url, provider, carrier, timeout=300.0) as store:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            list_by(store, 0.5)
        with pytest.raises(DeadlineExceeded):
            read(store, info_of(provider, 10), until=deadline(0.5))
        assert time.monotonic() - began < 30
        assert len(server.requests) == 2


def test_silence_is_stalled_before_the_deadline(provider: Provider, carrier: Carrier) -> None:
    """After a third of --timeout, at least a second, with a deadline that is far."""
    with FaultyServer(keep_silent) as server, store_at(server.url, provider, carrier, timeout=3.0) as store:
        with pytest.raises(Stalled):
            list_by(store)
        with pytest.raises(Stalled):
            read(store, info_of(provider, 10))
        assert len(server.requests) == 2


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
def test_redirects_are_never_followed(provider: Provider, carrier: Carrier, status: str) -> None:
    """Not to another server, nor to another region's; the server that sends one gets one request an operation, and no HEAD."""
    with FaultyServer(lists(provider)) as elsewhere:

        def exchange(connection: socket.socket, head: bytes) -> bool:
            to = f"Location: {elsewhere.url}/x\r\nx-amz-bucket-region: eu-central-1\r\n"
            connection.sendall(answer(b"<Error><Code>PermanentRedirect</Code></Error>", status=status, head=to))
            return True

        with FaultyServer(exchange) as server, store_at(server.url, provider, carrier) as store:
            with pytest.raises(ServiceError):
                list_by(store)
            with pytest.raises(ServiceError):
                read(store, info_of(provider, 10))
            assert [head[:4] for head in server.requests] == [b"GET ", b"GET "]
        assert elsewhere.requests == []


OWN_REQUESTS: dict[Provider, Callable[[Any], object]] = {
    "aws": lambda store: store._client.head_bucket(Bucket=store.root.bucket),
    "gcp": lambda store: store._client.get_bucket(store.root.bucket, retry=None),
}


def test_what_a_client_asks_for_of_itself_is_not_sent(provider: Provider) -> None:
    """Neither beside an operation of the store, nor in the middle of one."""
    with demo_ground(provider, "sdk") as ground:
        raw: Any = ground.raw
        with pytest.raises(ServiceError, match="nobody asked for"):
            OWN_REQUESTS[provider](raw)
        with raw._exchanges.entered(raw._exchange(deadline(), None)), pytest.raises(ServiceError, match="nobody asked for"):
            OWN_REQUESTS[provider](raw)
        assert ground.services.requests.entries() == []
        assert list_all(ground.store) == ([], [], 1)


def test_nothing_is_sent_to_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another bucket's at AWS, Google's for client certificates: neither by mistake nor because the environment says so."""
    source = HeldSource(ROOTS["aws"], lambda: CREDENTIALS["aws"])
    s3 = S3SdkStore(ROOTS["aws"], source, StoreCounters(), endpoint_url=None, timeout=1.0, user_agent="optfs/test")
    with (
        contextlib.closing(s3),
        s3._exchanges.entered(s3._exchange(deadline(), None)),
        pytest.raises(ServiceError, match="nobody asked for"),
    ):
        s3._client.list_objects_v2(Bucket="another-bucket")
    monkeypatch.setenv("GOOGLE_API_USE_MTLS_ENDPOINT", "always")
    with FaultyServer(lists("gcp")) as server, store_at(server.url, "gcp") as store:
        with pytest.raises(ServiceError, match="nobody asked for"):
            list_by(store)
        assert server.requests == []


class _Watch:
    """What this process opens and connects to while it is watched; an audit hook can't be taken away, only told to be quiet."""

    def __init__(self) -> None:
        self.watching = False
        self.opened: list[str] = []
        self.connected: list[object] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.watching and event == "open":
            self.opened.append(str(arguments[0]))
        elif self.watching and event == "socket.connect":
            self.connected.append(arguments[1])


def test_neither_the_home_folder_nor_any_other_server_is_looked_at(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lies there, and whatever else the environment says to the SDKs."""
    files = {
        ".aws/config": "[broken",
        ".aws/credentials": "[broken",
        ".netrc": "machine 127.0.0.1 login me password of-netrc",
        ".config/gcloud/application_default_credentials.json": "broken",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    for name, value in {
        "HOME": str(tmp_path),
        "AWS_PROFILE": "missing",
        "AWS_DEFAULTS_MODE": "auto",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "AWS_MAX_ATTEMPTS": "5",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_CONFIG_FILE": str(tmp_path / ".aws/config"),
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "missing"),
        "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9",
        "GOOGLE_API_USE_CLIENT_CERTIFICATE": "true",
    }.items():
        monkeypatch.setenv(name, value)
    watch = _Watch()
    watch.watching = True
    try:
        with demo_ground(provider, "sdk") as ground:
            ground.put("p", b"data")
            assert read(ground.store, find(ground.store, "p")) == b"data"
            ground.services.faults.add(Fault(lambda _: True, Answer(503), 1))
            with pytest.raises(ServiceUnavailable):
                list_all(ground.raw)
            assert ground.services.requests.count() == 3
            ports = {int(url.rpartition(":")[2]) for url in (ground.services.s3_url, ground.services.gcs_url)}
    finally:
        watch.watching = False
    assert [path for path in watch.opened if path.startswith(str(tmp_path))] == []
    assert watch.connected
    assert [to for to in watch.connected if not isinstance(to, tuple) or to[0] != "127.0.0.1" or to[1] not in ports] == []


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_bundle_of_the_environment_is_trusted(provider: Provider, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By both SDKs, whichever of the two names it has; the connection is kept."""
    file = certificate(tmp_path)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(variable, str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with FaultyServer(lists(provider), tls=context) as server, store_at(server.url, provider) as store:
        for _ in range(2):
            list_by(store)
        assert server.connections == 1


def test_a_certificate_that_nobody_vouches_for_is_refused_with_advice(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent, and trying again isn't suggested."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))
    with FaultyServer(lists(provider), tls=context) as server, store_at(server.url, provider) as store:
        with pytest.raises(ServiceError, match="AWS_CA_BUNDLE") as caught:
            list_by(store)
        assert not isinstance(caught.value, ServiceUnavailable)
        assert server.requests == []


def test_a_proxy_of_the_environment_is_used_for_https(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """By CONNECT, with its login; a proxy that refuses is told as such, without its password; NO_PROXY and loopback go past it."""

    def exchange(connection: socket.socket, head: bytes) -> bool:
        connection.sendall(answer(b"", status="403 Forbidden"))
        return False

    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with FaultyServer(exchange) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@127.0.0.1:{proxy.port}")
        with store_at("https://storage.example.com", provider) as store, pytest.raises(ServiceUnavailable, match="proxy") as caught:
            list_by(store)
        assert proxy.requests[0].startswith(b"CONNECT storage.example.com:443 ")
        assert b"roxy-authorization: basic bwu6cebzcw==" in proxy.requests[0].lower()
        assert "p@ss" not in caught.value.detail + str(caught.value)
        assert "p%40ss" not in caught.value.detail + str(caught.value)
        asked = len(proxy.requests)
        with FaultyServer(lists(provider)) as server, store_at(server.url, provider) as store:
            list_by(store)
        monkeypatch.setenv("NO_PROXY", "storage.example.invalid")
        with store_at("https://storage.example.invalid", provider) as store, pytest.raises((ServiceUnavailable, DeadlineExceeded)):
            list_by(store, 1.0)
        assert len(proxy.requests) == asked


@pytest.mark.parametrize("url", ["http://example.com", "http://10.0.0.1:9000", "https://user:hunter2@host", "https://host/path"])
def test_urls_that_are_no_safe_endpoints_are_refused(provider: Provider, carrier: Carrier, url: str) -> None:
    """When the store is made."""
    with pytest.raises(ConfigError) as caught, store_at(url, provider, carrier):
        pass
    assert "hunter2" not in str(caught.value)


def test_packed_objects_are_read_as_they_are_stored(provider: Provider, carrier: Carrier) -> None:
    """Whatever Content-Encoding says; no SDK unpacks, or takes them for damaged."""

    def exchange(connection: socket.socket, head: bytes) -> bool:
        told = "Content-Range: bytes 0-7/8\r\nContent-Encoding: gzip\r\nX-Goog-Stored-Content-Encoding: gzip\r\n"
        told += "X-Goog-Hash: md5=AAAA,crc32c=AAAA\r\nx-amz-checksum-crc32: AAAA\r\nLast-Modified: never\r\n" + VERSION
        connection.sendall(answer(b"not gzip", status="206 Partial Content", head=told))
        return True

    with FaultyServer(exchange) as server, store_at(server.url, provider, carrier) as store:
        assert read(store, info_of(provider, 8)) == b"not gzip"


def test_requests_carry_what_they_need_and_say_who_asks(provider: Provider, carrier: Carrier) -> None:
    """The user agent is optfs's, nothing may be packed on its way, and a read names range and version."""
    encodings = {"aws": b"identity", "gcp": b"gzip"}  # of media: gzip keeps Google from unpacking

    def exchange(connection: socket.socket, head: bytes) -> bool:
        if b"range: " in head.lower():
            connection.sendall(answer(b"12345", status="206 Partial Content", head="Content-Range: bytes 3-7/8\r\n" + VERSION))
        else:
            connection.sendall(answer(EMPTY[provider], head="Set-Cookie: session=1\r\n"))
        return True

    with FaultyServer(exchange) as server, store_at(server.url, provider, carrier) as store:
        list_by(store)
        read(store, info_of(provider, 8), 3)
        listing, media = (dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:]) for head in server.requests)
    assert listing[b"user-agent"] == media[b"user-agent"] == b"optfs/test"
    assert (listing[b"accept-encoding"], media[b"accept-encoding"]) == (b"identity", encodings[provider])
    assert media[b"range"] == b"bytes=3-7"
    assert media.get(b"if-match") == b'"17"' if provider == "aws" else b"generation=17" in server.requests[1].split()[1]
    assert not {b"cookie", b"x-amz-checksum-mode"} & {*listing, *media}


def test_a_bucket_that_boto3_doesnt_take_is_told_as_such() -> None:
    """With the way out; nothing is sent, and nothing of botocore's own is raised."""
    root = AccountRoot("123", "aws", "not a bucket", PREFIX)
    source = HeldSource(root, lambda: CREDENTIALS["aws"])
    with FaultyServer(lists("aws")) as server:
        store = S3SdkStore(root, source, StoreCounters(), endpoint_url=server.url, timeout=30.0, user_agent="optfs/test")
        with contextlib.closing(store):
            with pytest.raises(ServiceError, match="--carrier direct"):
                list_by(store)
            with pytest.raises(ServiceError, match="--carrier direct"):
                read(store, info_of("aws", 10))
        assert server.requests == []


def test_threads_dont_mix_their_reads(provider: Provider) -> None:
    """Each gets its own object's bytes, though all share one client."""
    with demo_ground(provider, "sdk") as ground:
        contents = {f"type=x/{number}": bytes([number]) * (MiB // 4 + number) for number in range(16)}
        for name, content in contents.items():
            ground.put(name, content)
        infos = {info.key.removeprefix(PREFIX): info for info in list_all(ground.store)[0]}
        with ThreadPoolExecutor(8) as threads:
            for _ in range(4):
                found = threads.map(lambda name: (name, read(ground.raw, infos[name])), contents)
                assert dict(found) == contents


def test_an_exchange_ends_also_when_it_fails(provider: Provider) -> None:
    """So that nothing that a client sends later goes by its credential."""
    with demo_ground(provider, "sdk") as ground:
        raw: Any = ground.raw
        ground.services.faults.add(Fault(lambda _: True, Answer(403), 1))
        with pytest.raises(OptfsError):
            list_all(raw)
        with pytest.raises(ServiceError, match="nobody asked for"):
            raw._exchanges.current("a client")
