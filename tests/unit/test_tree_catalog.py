"""What the tree shows for a set of keys, and which requests that costs."""

import itertools
import logging
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optfs.errors import InvalidResponse, NotAFolder, NotFound
from optfs.tree.folders import File, Folder, Link
from optfs.tree.held import MAX_WARNINGS
from optfs.values import ListPage, ObjectInfo, decode_name, encode_name
from tests.support.trees import PREFIX, WALL, MemoryStore, Rig, by_bytes

DAY = "type=decisions/date=2026-10-30"
PART = "part-00000.snappy.parquet"


def _export(dates: int = 3, experiments: int = 2, types: tuple[str, ...] = ("decisions", "events")) -> list[str]:
    keys = []
    for kind in types:
        for day in range(1, dates + 1):
            folder = f"type={kind}/date=2026-10-{day:02d}" if day < 32 else f"type={kind}/date=2026-11-{day - 31:02d}"
            keys += [f"{folder}/experiment={number}/{PART}" for number in range(experiments)]
            keys.append(f"{folder}/_SUCCESS")
    return keys


def _walk(rig: Rig, path: str = "") -> tuple[set[str], set[str]]:
    """Return all files and folders as a walk finds them."""
    files, folders = set(), set()
    for name in rig.names(path):
        below = f"{path}/{name}".lstrip("/")
        node = rig.lookup(below)
        if isinstance(node, Folder):
            folders.add(below)
            more_files, more_folders = _walk(rig, below)
            files |= more_files
            folders |= more_folders
        else:
            files.add(below)
    return files, folders


def _expected(keys: list[str]) -> tuple[set[str], set[str]]:
    """Say naively what a tree of valid keys shows."""
    files, folders = set(), set()
    for key in keys:
        parts = key.split("/")
        folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        if parts[-1]:
            files.add(key)
    return files - folders, folders


# What is shown


def test_the_root_holds_the_account_and_asks_nothing() -> None:
    """The account's id is the one name at the top."""
    store = MemoryStore()
    rig = Rig([store])
    assert [name for name, _ in rig.catalog.children("/", rig.deadline())] == ["123"]
    assert isinstance(rig.catalog.lookup("/", rig.deadline()), Folder)
    assert isinstance(rig.catalog.lookup("/123", rig.deadline()), Folder)
    with pytest.raises(NotFound):
        rig.catalog.lookup("/124", rig.deadline())
    assert store.asked == []


def test_an_empty_account_is_an_empty_folder() -> None:
    """It exists since the API has told it."""
    assert Rig([MemoryStore()]).names() == []


def test_keys_are_shown_verbatim_below_the_account() -> None:
    """At every level, also objects beside the types and dates."""
    keys = [f"{DAY}/experiment=42/{PART}", f"{DAY}/_SUCCESS", "readme", "type=decisions/notes.txt", "other/deep/er/x"]
    rig = Rig([MemoryStore(keys=keys)])
    assert _walk(rig) == _expected(keys)
    node = rig.lookup(f"{DAY}/experiment=42/{PART}")
    assert isinstance(node, File)
    assert node.info.key == f"{PREFIX}{DAY}/experiment=42/{PART}"
    assert (node.info.size, node.mtime) == (7, 1000.0)


def test_markers_make_folders_and_a_folder_hides_the_object_of_its_name() -> None:
    """In a date as well as at a level."""
    keys = [f"{DAY}/", f"{DAY}/empty/", f"{DAY}/a", f"{DAY}/a/b", "top", "top/x", "top/", "marker/"]
    rig = Rig([MemoryStore(keys=keys)])
    assert _walk(rig) == _expected(keys)
    assert rig.names(f"{DAY}/empty") == []
    assert rig.names("marker") == []
    assert isinstance(rig.lookup("top"), Folder)
    assert isinstance(rig.lookup(f"{DAY}/a"), Folder)


_COMPONENT = st.one_of(
    st.sampled_from(["type=a", "type=b", "date=2026-10-30", "date=x", "experiment=1", "event=a%2Fb", "a", "a.b", "a\nb", "é", "e\u0301"]),
    st.binary(min_size=1, max_size=4).filter(lambda raw: not set(raw) & {0, 47} and raw not in {b".", b".."}).map(decode_name),
)
_KEYS = st.lists(
    st.lists(_COMPONENT, min_size=1, max_size=5).map("/".join).flatmap(lambda key: st.sampled_from([key, key + "/"])), max_size=12
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(keys=_KEYS, page_size=st.sampled_from([1, 2, 7, 1000]))
def test_any_keys_are_shown_as_a_naive_reading_of_them_says(keys: list[str], page_size: int) -> None:
    """Odd bytes, shadowing, markers, unknown shapes, pages of any size; each folder in the order of bytes, and no name twice."""
    rig = Rig([MemoryStore(keys=keys, page_size=page_size)])
    files, folders = _expected(keys)
    assert _walk(rig) == (files, folders)
    for folder in ["", *folders]:
        names = rig.names(folder)
        assert names == by_bytes(set(names))


@pytest.mark.parametrize("key", ["x" * 256, "é" * 128, ".", "..", "a/../b", "a//b", "/a", "a\0b", "a//", "\ud800", f"{'y' * 256}/b"])
@pytest.mark.parametrize("folder", [DAY, "other"])
def test_a_name_that_no_file_system_holds_is_left_out_with_one_warning(key: str, folder: str, caplog: pytest.LogCaptureFixture) -> None:
    """The rest is shown, and the key is named, escaped, once."""
    rig = Rig([MemoryStore(keys=[f"{folder}/{key}", f"{folder}/good"])], ttl=0)
    with caplog.at_level(logging.WARNING, "optfs"):
        for _ in range(3):
            files, _folders = _walk(rig)
    assert files == {f"{folder}/good"}
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert ascii(PREFIX + folder)[1:-1] in warnings[0]
    assert "\0" not in warnings[0]


def test_warnings_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A broken export can't fill the log."""
    rig = Rig([MemoryStore(keys=[f"{DAY}/{'x' * 256}{number}" for number in range(MAX_WARNINGS + 50)])])
    with caplog.at_level(logging.WARNING, "optfs"):
        assert rig.names(DAY) == []
    assert len(caplog.records) == MAX_WARNINGS + 1


@pytest.mark.parametrize("tokens", [*(itertools.cycle(map(str, range(pages))) for pages in (1, 2, 7)), map(str, itertools.count())])
def test_a_listing_without_end_fails(tokens: Iterator[str]) -> None:
    """Rather than filling the memory; pages may repeat by turns, or be empty and new each time."""

    class Endless(MemoryStore):
        def list_page(self, *args: object, **kwargs: object) -> ListPage:
            return ListPage((), (), next(tokens))

    with pytest.raises(InvalidResponse):
        Rig([Endless()]).names()


def test_what_lies_below_a_file_and_what_a_file_holds_is_no_folder() -> None:
    """Not a missing name: ENOTDIR."""
    rig = Rig([MemoryStore(keys=[f"{DAY}/a"])])
    with pytest.raises(NotAFolder):
        rig.lookup(f"{DAY}/a/b")
    with pytest.raises(NotAFolder):
        rig.names(f"{DAY}/a")


# Attributes


def test_folders_have_the_newest_objects_time_dates_their_day_and_others_the_mounts_start() -> None:
    """And the same before and after they are listed."""
    store = MemoryStore()
    store.put(f"{DAY}/experiment=1/a", mtime=5.0)
    store.put(f"{DAY}/experiment=1/b", mtime=9.0)
    rig = Rig([store])
    day = 1_793_318_400.0  # 2026-10-30 00:00 UTC
    for _ in range(2):
        assert rig.lookup(f"{DAY}/experiment=1").mtime == 9.0
        assert rig.lookup(DAY).mtime == day
        assert rig.lookup("type=decisions").mtime == WALL
        rig.names(DAY)
        rig.names("type=decisions")


def test_inode_numbers_are_stable_and_differ() -> None:
    """Over catalogs, over versions, and never 0 or 1."""
    keys = _export(5, 5)
    store = MemoryStore(keys=keys)
    rig, other = Rig([store], ttl=0), Rig([MemoryStore(keys=keys)])
    files, folders = _walk(rig)
    numbers = {path: rig.lookup(path).ino for path in files | folders}
    assert len(set(numbers.values())) == len(numbers)
    assert min(numbers.values()) > 1
    store.put(keys[0], version="v2")
    assert {path: rig.lookup(path).ino for path in numbers} == numbers
    assert {path: other.lookup(path).ino for path in numbers} == numbers


# Short names


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("decisions", "type=decisions"),
        ("decisions-rerun", "type=decisions-rerun"),
        ("type=decisions/2026-10-30", "date=2026-10-30"),
        ("decisions/2026-10-30", "date=2026-10-30"),
        ("decisions/2026-10-30/42", "experiment=42"),
        ("type=events/date=2026-10-30/a%3Ab c", "event=a%3Ab c"),
        ("type=events/date=2026-10-30/7", "experiment=7"),
        ("type=decisions/latest", "date=2026-10-30"),
    ],
)
def test_short_names_are_links_that_no_folder_lists(path: str, target: str) -> None:
    """Experiment before event where both have the value."""
    keys = [f"{DAY}/experiment=42/x", f"{DAY}/_SUCCESS", "type=decisions/date=2026-10-31/experiment=1/x", "type=decisions-rerun/x"]
    keys += [f"type=events/date=2026-10-30/{name}/x" for name in ("event=a%3Ab c", "event=7", "experiment=7")]
    rig = Rig([MemoryStore(keys=keys)])
    node = rig.lookup(path)
    assert isinstance(node, Link)
    assert node.target == target
    assert node.name == path.rpartition("/")[2]
    parent = path.rpartition("/")[0]
    assert node.name not in rig.names(parent)
    assert target in rig.names(parent)
    assert _walk(rig) == _expected(keys)


def test_short_names_in_the_middle_of_a_path_are_followed() -> None:
    """So that callers without a kernel can use them."""
    rig = Rig([MemoryStore(keys=[f"{DAY}/experiment=42/x", f"{DAY}/_SUCCESS"])])
    assert isinstance(rig.lookup("decisions/latest/42/x"), File)
    assert rig.names("decisions/2026-10-30/42") == ["x"]


def test_a_verbatim_name_comes_before_a_short_one_and_files_have_none() -> None:
    """A short name stands for a folder only."""
    keys = [f"{DAY}/experiment=42/x", f"{DAY}/42", f"{DAY}/event=file", "decisions/y", "type=decisions/latest/z", f"{DAY}/_SUCCESS"]
    rig = Rig([MemoryStore(keys=keys)])
    assert isinstance(rig.lookup(f"{DAY}/42"), File)
    assert isinstance(rig.lookup("decisions"), Folder)
    assert isinstance(rig.lookup("type=decisions/latest"), Folder)
    with pytest.raises(NotFound):
        rig.lookup(f"{DAY}/file")


def test_latest_is_the_newest_complete_date_or_missing() -> None:
    """Incomplete dates are passed over, from the newest on; it moves on with the export."""
    store = MemoryStore(keys=[f"type=a/date=2026-10-{day:02d}/x" for day in range(1, 30)])
    rig = Rig([store], ttl=0)
    with pytest.raises(NotFound):
        rig.lookup("type=a/latest")
    for newest in ("date=2026-10-03", "date=2026-10-20"):
        store.put(f"type=a/{newest}/_SUCCESS")
        node = rig.lookup("type=a/latest")
        assert isinstance(node, Link)
        assert node.target == newest
    with pytest.raises(NotFound):
        rig.lookup(f"type=a/{newest}/latest")
    with pytest.raises(NotFound):
        rig.lookup("latest")


# Requests


def test_a_date_is_one_listing_for_everything_below_it() -> None:
    """However deep, and whether it exists."""
    store = MemoryStore(keys=_export(1, 50, ("decisions",)))
    rig = Rig([store])
    _walk(rig)
    assert store.asked == [(PREFIX, "/"), (f"{PREFIX}type=decisions/", "/"), (f"{PREFIX}type=decisions/date=2026-10-01/", None)]
    for name in (".crc", "_metadata", "777", "experiment=77", "experiment=1/.x.crc"):
        with pytest.raises(NotFound):
            rig.lookup(f"type=decisions/date=2026-10-01/{name}")
    for name in ("_metadata", "type=decisions/_metadata", "type=decisions/date=2030-01-01", "type=decisions/2030-01-01/x"):
        with pytest.raises(NotFound):
            rig.lookup(name)
    assert len(store.asked) == 3


def test_attributes_of_dates_cost_no_listing_of_theirs() -> None:
    """`ls -l` of a type asks for the type alone."""
    store = MemoryStore(keys=_export(30))
    rig = Rig([store])
    for name in rig.names("type=decisions"):
        rig.lookup(f"type=decisions/{name}")
    assert store.units() == ["", "type=decisions/"]
    assert rig.run_jobs() == 0


def test_a_walk_over_dates_lists_each_once_most_of_them_ahead() -> None:
    """None is wasted, and none asked for twice."""
    store = MemoryStore(keys=_export(60))
    rig = Rig([store])
    files = 0
    for kind in rig.names():
        for date in rig.names(kind):
            files += len(rig.names(f"{kind}/{date}"))
            rig.run_jobs()
    assert files == 2 * 60 * 3
    assert sorted(store.units()) == sorted(
        ["", "type=decisions/", "type=events/"] + [key.removesuffix("_SUCCESS") for key in _export(60, 0)]
    )
    assert rig.catalog.statistics().prefetched == 2 * 58


def test_latest_lists_dates_ahead_where_the_newest_two_are_incomplete() -> None:
    """Else a type whose export stopped would cost one listing after the other; none is made twice, nor beyond the eight."""
    store = MemoryStore(keys=[f"type=a/date=2026-10-{day:02d}/x" for day in range(1, 31)])
    store.put("type=a/date=2026-10-25/_SUCCESS")
    rig = Rig([store])

    def gate(unit: str) -> None:
        if unit == "type=a/date=2026-10-28/":
            rig.run_jobs()

    store.gate = gate
    node = rig.lookup("type=a/latest")
    assert isinstance(node, Link)
    assert node.target == "date=2026-10-25"
    assert rig.catalog.statistics().prefetched == 7
    assert sorted(store.units()) == ["", "type=a/", *(f"type=a/date=2026-10-{day}/" for day in range(21, 31))]


def test_what_is_listed_on_demand_meanwhile_is_not_listed_again_when_its_turn_comes() -> None:
    """A walk faster than the pool wastes nothing."""
    store = MemoryStore(keys=_export(20, types=("a",)))
    rig = Rig([store])
    for date in rig.names("type=a"):
        rig.names(f"type=a/{date}")
    assert rig.run_jobs() == 18
    assert len(store.asked) == 2 + 20


def test_opening_one_file_deep_down_costs_a_listing_a_level() -> None:
    """The first time, and nothing the second."""
    store = MemoryStore(keys=_export())
    rig = Rig([store])
    for _ in range(2):
        rig.lookup(f"type=decisions/date=2026-10-02/experiment=1/{PART}")
        assert len(store.asked) == 3


# Following


def test_following_walks_on_through_what_is_held_without_a_request() -> None:
    """The folder's files, those of the day's next folders, and those of the next held day."""
    keys = _export(3, 2, ("a",))
    store = MemoryStore(keys=keys)
    rig = Rig([store])
    for day in (1, 2):
        rig.names(f"type=a/date=2026-10-{day:02d}")
    asked = len(store.asked)
    first = store.objects[f"type=a/date=2026-10-01/experiment=0/{PART}"]
    expected = [PREFIX + key for key in by_bytes(keys) if "date=2026-10-03" not in key]
    # A walk visits `_SUCCESS` before `experiment=`, as bytes have it.
    after = expected[expected.index(first.key) + 1 :]
    assert [info.key for info in rig.catalog.following(first, 100)] == after
    assert [info.key for info in rig.catalog.following(first, 2)] == after[:2]
    assert len(store.asked) == asked


def test_following_an_unknown_file_is_empty() -> None:
    """Nothing held, another account, the last file."""
    store = MemoryStore(keys=_export(1, 1, ("a",)))
    rig = Rig([store])
    info = store.objects[f"type=a/date=2026-10-01/experiment=0/{PART}"]
    assert rig.catalog.following(info, 5) == []
    rig.names("type=a/date=2026-10-01")
    assert rig.catalog.following(info, 5) == []
    assert rig.catalog.following(ObjectInfo("elsewhere", 1, 1.0, "v", "gcp"), 5) == []


# Memory


def test_objects_stay_compact() -> None:
    """A million fit into 600 MiB: an object with its key, version and folder takes under 629 bytes."""
    count = 20_000
    keys = [
        f"{DAY}/experiment={number // 10:010d}/part-00000-{number:08d}-aaaa-bbbb-cccc-dddddddddddd.c000.snappy.parquet"
        for number in range(count)
    ]

    class Fresh(MemoryStore):
        def list_page(self, prefix: str, **kwargs: object) -> ListPage:
            flat = prefix.endswith(f"{DAY}/")
            infos = (
                ObjectInfo("".join([PREFIX, key]), 10**6 + place, 1e9 + place, f"{place:032x}", "gcp") for place, key in enumerate(keys)
            )
            return ListPage(tuple(infos), (), None) if flat else super().list_page(prefix, **kwargs)  # type: ignore[arg-type] # passed on

    store = Fresh(keys=[f"{DAY}/x"])
    rig = Rig([store])
    rig.lookup(DAY)
    tracemalloc.start()
    try:
        rig.names(DAY)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert rig.catalog.statistics().objects == count
    assert used / count < 629


def test_names_compare_by_bytes_not_by_code_points() -> None:
    """A byte that is no UTF-8 sorts before the private use area, as it does in the store."""
    names = ["\ue000", "\udcff", "z", "é"]
    rig = Rig([MemoryStore(keys=[f"{DAY}/{name}" for name in names])])
    assert [encode_name(name) for name in rig.names(DAY)] == sorted(map(encode_name, names))
    for name in names:
        assert isinstance(rig.lookup(f"{DAY}/{name}"), File)
