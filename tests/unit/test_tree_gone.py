"""Listings that show versions which a read has found gone."""

from dataclasses import replace

from optfs.errors import ServiceUnavailable
from optfs.tree.folders import File
from tests.support.trees import PREFIX, MemoryStore, Rig

OLD = "type=a/date=2026-10-20"
RECENT = "type=a/date=2026-10-31"


def test_a_listing_that_shows_a_version_that_is_gone_is_made_anew_when_it_is_needed() -> None:
    """Whatever its age; not for a version that it doesn't show, and not while nobody looks."""
    store = MemoryStore(keys=[f"{OLD}/e/a", f"{OLD}/e/b", f"{OLD}/_SUCCESS"])
    rig = Rig([store])
    file = rig.lookup(f"{OLD}/e/a")
    assert isinstance(file, File)
    rig.catalog.gone(replace(file.info, version="v0"))
    rig.catalog.gone(replace(file.info, key=file.info.key + "x"))
    rig.catalog.gone(replace(file.info, key="elsewhere"))
    rig.lookup(f"{OLD}/e/b")
    assert store.units().count(f"{OLD}/") == 1
    store.put(f"{OLD}/e/a", version="v2")
    rig.catalog.gone(file.info)
    assert store.units().count(f"{OLD}/") == 1
    changed = rig.lookup(f"{OLD}/e/a")
    assert isinstance(changed, File)
    assert (changed.info.version, store.units().count(f"{OLD}/")) == ("v2", 2)
    rig.catalog.gone(file.info)
    rig.lookup(f"{OLD}/e/a")
    assert store.units().count(f"{OLD}/") == 2


def test_a_store_that_goes_on_listing_what_it_does_not_give_takes_a_share_of_the_time_only() -> None:
    """Each try to read such an object would list its whole day. What takes its place in the end is seen."""
    store = MemoryStore(keys=[f"{OLD}/e/a", f"{OLD}/_SUCCESS"])
    rig = Rig([store])

    def take_a_second(_unit: str) -> None:
        rig.now += 1

    store.gate = take_a_second
    file = rig.lookup(f"{OLD}/e/a")
    assert isinstance(file, File)
    start = rig.now
    while rig.now < start + 60:
        rig.catalog.gone(file.info)
        rig.lookup(f"{OLD}/e/a")
        rig.now += 0.25
    assert store.units().count(f"{OLD}/") <= 2 + 60 / 5
    store.put(f"{OLD}/e/a", version="v2")
    rig.now += 5
    rig.catalog.gone(file.info)
    changed = rig.lookup(f"{OLD}/e/a")
    assert isinstance(changed, File)
    assert changed.info.version == "v2"


def test_a_listing_under_way_does_not_hide_that_its_version_is_gone() -> None:
    """It may have looked before the object was changed."""
    store = MemoryStore(keys=[f"{RECENT}/e/a"])
    rig = Rig([store])
    file = rig.lookup(f"{RECENT}/e/a")
    assert isinstance(file, File)
    rig.now += 61
    looked = False

    def gate(_unit: str) -> None:
        nonlocal looked
        if not looked:
            looked = True
            rig.catalog.gone(file.info)

    store.gate = gate
    assert rig.lookup(f"{RECENT}/e/a") is file
    store.put(f"{RECENT}/e/a", version="v2")
    changed = rig.lookup(f"{RECENT}/e/a")
    assert isinstance(changed, File)
    assert changed.info.version == "v2"


def test_listings_for_what_is_found_gone_take_a_share_of_the_time_only() -> None:
    """Of a day that is being deleted, each file that is read is found gone; listing it anew for each would never end."""
    store = MemoryStore(keys=[f"{OLD}/e/{number}" for number in range(20)] + [f"{OLD}/_SUCCESS"])
    rig = Rig([store])

    def take_a_second(_unit: str) -> None:
        rig.now += 1

    store.gate = take_a_second
    files = [rig.lookup(f"{OLD}/e/{number}") for number in range(20)]
    before = store.units().count(f"{OLD}/")
    for file in files:
        assert isinstance(file, File)
        rig.catalog.gone(file.info)
        rig.lookup(file.info.key.removeprefix(PREFIX))
        rig.now += 1
        if file is files[0]:
            assert store.units().count(f"{OLD}/") == before + 1, "the first is looked for at once"
    assert 2 <= store.units().count(f"{OLD}/") - before <= 5


def test_while_a_store_fails_a_listing_known_to_be_outdated_goes_on_being_shown() -> None:
    """As others do; it is made anew when the store is back."""
    store = MemoryStore(keys=[f"{OLD}/e/a", f"{OLD}/_SUCCESS"])
    rig = Rig([store])
    file = rig.lookup(f"{OLD}/e/a")
    assert isinstance(file, File)
    rig.catalog.gone(file.info)
    store.error = ServiceUnavailable("no")
    assert rig.lookup(f"{OLD}/e/a") is file
    store.error = None
    store.put(f"{OLD}/e/a", version="v2")
    rig.now += 2
    rig.lookup(f"{OLD}/e/a")
    rig.run_jobs()
    changed = rig.lookup(f"{OLD}/e/a")
    assert isinstance(changed, File)
    assert changed.info.version == "v2"
