"""What every store promises (`optfs.stores.protocol.Store`), on every service that there is one for, by every carrier."""

import contextlib
import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from optfs.config import Carrier
from optfs.errors import VersionGone
from optfs.values import Provider, encode_name
from tests.support.stores import CARRIERS, PREFIX, DemoGround, Ground, MotoGround, demo_ground, find, list_all, read

ODD = [
    "type=x/a b",
    "type=x/a+b",
    "type=x/event=Main_Nav_javascript%3Avoid(0);/p",
    "type=x/quotes\"'<&>/p",
    "type=x/caf\u00e9",
    "type=x/cafe\u0301",
    "type=x/\U0001f600",
    "type=x/\uffee",
    "type=x/?query#fragment",
    "type=x/folder/",
    "type=x/folder/part",
    "type=x/~-_.!*'()",
    "type=x/back\\slash",
]
# moto's web framework joins slashes, takes out dots, and knows no newline in a path.
NO_MOTO = ["type=x//two", "/leading", "type=x/new\nline", "type=x/./dot", "type=x/../dots"]


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    """Start moto's server once."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


SERVICES: dict[str, Provider] = {"s3": "aws", "gcs": "gcp"}


@contextlib.contextmanager
def empty_ground(service: str, carrier: Carrier, moto_url: str) -> Iterator[Ground]:
    """Give a service without objects."""
    if service == "moto":
        with contextlib.closing(MotoGround(moto_url, carrier)) as moto:
            yield moto
    else:
        with demo_ground(SERVICES[service], carrier) as demo:
            yield demo


@pytest.fixture(params=CARRIERS)
def carrier(request: pytest.FixtureRequest) -> Carrier:
    """Give each carrier in turn."""
    found: Carrier = request.param
    return found


@pytest.fixture(params=["s3", "gcs", "moto"])
def ground(request: pytest.FixtureRequest, carrier: Carrier, moto_url: str) -> Iterator[Ground]:
    """Give each service in turn, empty, by each carrier."""
    with empty_ground(request.param, carrier, moto_url) as found:
        yield found


def test_odd_names_are_listed_verbatim_in_order_of_bytes_and_can_be_read(ground: Ground) -> None:
    """Spaces, percent and plus signs, quotes, newlines, both normal forms, and names ending in a slash survive listing and reading."""
    names = ODD + (NO_MOTO if isinstance(ground, DemoGround) else [])
    for name in names:
        ground.put(name, encode_name(name))
    objects, _, _ = list_all(ground.store)
    assert [info.key for info in objects] == sorted((PREFIX + name for name in names), key=encode_name)
    for info in objects:
        assert info.size == len(encode_name(info.key)) - len(PREFIX)
        assert read(ground.store, info) == encode_name(info.key.removeprefix(PREFIX))


@pytest.mark.parametrize("provider", ["aws", "gcp"])
def test_bytes_that_are_no_utf8_survive(provider: Provider, carrier: Carrier) -> None:
    """A key that isn't valid UTF-8 is listed and read as it is."""
    with demo_ground(provider, carrier) as ground:
        name = "type=x/caf\udce9"
        ground.put(name, b"latin-1")
        info = find(ground.store, name)
        assert read(ground.store, info) == b"latin-1"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("provider", ["aws", "gcp"])
def test_pages_of_any_size_join_without_gap_or_repetition(provider: Provider, size: int, carrier: Carrier) -> None:
    """With and without a delimiter, and with names on which a page's token might stumble."""
    with demo_ground(provider, carrier) as ground:
        ground.services.paging.size = size
        names = ODD + NO_MOTO + [f"type=y/date={day:02}/part" for day in range(8)]
        for name in names:
            ground.put(name, b".")
        objects, prefixes, pages = list_all(ground.store)
        assert [info.key for info in objects] == sorted((PREFIX + name for name in names), key=encode_name)
        assert prefixes == []
        assert pages == -(-len(names) // size)
        objects, prefixes, _ = list_all(ground.store, PREFIX, "/")
        assert [info.key for info in objects] == []
        assert prefixes == [PREFIX + folder for folder in ("/", "type=x/", "type=y/")]


def test_more_keys_than_one_page_holds(ground: Ground) -> None:
    """1,203 keys come in two pages, in order."""
    names = [f"type=x/date={number // 40:03}/p-{number:05}" for number in range(1203)]
    for name in names:
        ground.put(name, b"")
    objects, _, pages = list_all(ground.store)
    assert [info.key for info in objects] == [PREFIX + name for name in names]
    assert pages == 2


def test_a_delimiter_tells_folders_from_objects(ground: Ground) -> None:
    """Common prefixes are whole and end in a slash; objects at that level are listed beside them."""
    for name in ("type=x/date=2/e=1/p", "type=x/date=2/_SUCCESS", "type=x/date=1/e=1/p", "type=x/top"):
        ground.put(name, b"1")
    objects, prefixes, _ = list_all(ground.store, PREFIX + "type=x/", "/")
    assert [info.key for info in objects] == [PREFIX + "type=x/top"]
    assert prefixes == [PREFIX + "type=x/date=1/", PREFIX + "type=x/date=2/"]


def test_nothing_there_is_an_empty_page(ground: Ground) -> None:
    """A prefix without objects isn't an error."""
    assert list_all(ground.store, PREFIX + "type=none/", "/") == ([], [], 1)


def test_sizes_and_times_are_the_objects(ground: Ground) -> None:
    """An empty object has size 0, and modification times are seconds since the epoch."""
    before = time.time()
    ground.put("type=x/_SUCCESS", b"")
    ground.put("type=x/part", b"12345")
    empty, part = list_all(ground.store)[0]
    assert (empty.size, part.size) == (0, 5)
    assert before - 2 <= part.mtime <= time.time() + 2
    assert empty.version
    assert part.version
    assert not part.version.startswith('"')


@pytest.mark.parametrize("service", ["s3", "gcs", "moto"])
def test_any_range_gives_exactly_its_bytes(service: str, carrier: Carrier, moto_url: str) -> None:
    """First byte, last byte, everything, and whatever lies between."""
    data = random.Random(7).randbytes(700_001)
    with empty_ground(service, carrier, moto_url) as ground:
        ground.put("type=x/part", data)
        info = find(ground.store, "type=x/part")
        for start, length in ((0, 1), (len(data) - 1, 1), (0, len(data)), (1, len(data) - 1)):
            assert read(ground.store, info, start, length) == data[start : start + length]

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.integers(0, len(data) - 1), st.integers(1, len(data)))
        def check(start: int, length: int) -> None:
            end = min(len(data), start + length)
            assert read(ground.store, info, start, end - start) == data[start:end]

        check()


def test_an_overwritten_version_is_gone(ground: Ground) -> None:
    """A read of the version that was listed fails, also when the new one has the same size; a new listing shows the new one."""
    ground.put("type=x/part", b"old")
    old = find(ground.store, "type=x/part")
    ground.put("type=x/part", b"new")
    with pytest.raises(VersionGone):
        read(ground.store, old)
    new = find(ground.store, "type=x/part")
    assert new.version != old.version
    assert read(ground.store, new) == b"new"


def test_a_shorter_version_in_its_place_is_gone_too(ground: Ground) -> None:
    """A range beyond the new version's end is no other error."""
    ground.put("type=x/part", bytes(1000))
    old = find(ground.store, "type=x/part")
    ground.put("type=x/part", b"short")
    with pytest.raises(VersionGone):
        read(ground.store, old, 900, 100)


def test_a_deleted_version_is_gone(ground: Ground) -> None:
    """And the store goes on working."""
    ground.put("type=x/part", b"old")
    old = find(ground.store, "type=x/part")
    ground.delete("type=x/part")
    with pytest.raises(VersionGone):
        read(ground.store, old)
    assert list_all(ground.store, PREFIX + "type=x/")[0] == []


def test_a_listing_never_leaves_the_accounts_prefix(ground: Ground) -> None:
    """Asking for more is a bug of the caller, not a request."""
    with pytest.raises(ValueError, match="below the account's prefix"):
        list_all(ground.store, "v1/")
    assert ground.counters.snapshot().requests == {}
