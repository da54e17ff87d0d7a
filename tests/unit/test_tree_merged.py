"""One tree of two stores: nothing counted twice, nothing silently missing."""

import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optfs.errors import AccessDenied, NoExport, NotRenewed, OptfsError, ServiceUnavailable
from optfs.tree.catalog import Catalog
from optfs.tree.folders import File, Folder
from optfs.values import AccountRoot
from tests.support.trees import HandPool, MemoryStore, Rig

DAY = "type=a/date=2026-10-20"


def _rig(s3: list[str], gcs: list[str], ttl: float = 60.0) -> tuple[Rig, MemoryStore, MemoryStore]:
    aws, gcp = MemoryStore("aws", s3), MemoryStore("gcp", gcs)
    return Rig([aws, gcp], ttl=ttl), aws, gcp


@pytest.mark.parametrize(
    ("s3", "gcs", "shown"),
    [
        (["s", "_SUCCESS"], ["g", "_SUCCESS"], "g"),
        (["s", "_SUCCESS"], ["g"], "s"),
        (["s"], ["g", "_SUCCESS"], "g"),
        (["s"], ["g"], "g"),
        (["s"], [], "s"),
        ([], ["g"], "g"),
    ],
)
def test_a_date_comes_from_the_store_that_completed_it_else_from_gcs(s3: list[str], gcs: list[str], shown: str) -> None:
    """Never from both."""
    rig, _, _ = _rig([f"{DAY}/{name}" for name in s3], [f"{DAY}/{name}" for name in gcs])
    names = rig.names(DAY)
    assert [name for name in names if name != "_SUCCESS"] == [shown]
    assert ("_SUCCESS" in names) == ("_SUCCESS" in (s3 if shown == "s" else gcs))
    node = rig.lookup(f"{DAY}/{shown}")
    assert isinstance(node, File)
    assert node.info.provider == ("aws" if shown == "s" else "gcp")


def test_levels_are_the_union_of_both_stores() -> None:
    """Types, dates, objects beside them; a folder beats a file, and GCS's file S3's."""
    rig, _, _ = _rig(
        ["type=a/date=2026-01-01/x", "type=old/x", "both", "mixed/x", "other/s"],
        ["type=a/date=2026-10-20/x", "type=new/x", "both", "mixed", "other/g"],
    )
    assert rig.names() == ["both", "mixed", "other", "type=a", "type=new", "type=old"]
    assert rig.names("type=a") == ["date=2026-01-01", "date=2026-10-20"]
    assert rig.names("other") == ["g", "s"]
    both = rig.lookup("both")
    assert isinstance(both, File)
    assert both.info.provider == "gcp"
    assert isinstance(rig.lookup("mixed"), Folder)


def test_a_date_is_asked_of_the_stores_that_hold_it_alone() -> None:
    """And not of S3 where GCS has completed it."""
    only_s3, only_gcs, both = (f"type=a/date=2026-10-{day}" for day in (10, 11, 12))
    rig, aws, gcp = _rig([f"{only_s3}/x", f"{both}/x"], [f"{only_gcs}/x", f"{both}/x", f"{both}/_SUCCESS"])
    for day in (only_s3, only_gcs, both):
        rig.names(day)
    rig.run_jobs()
    assert aws.units() == ["", "type=a/", f"{only_s3}/"]
    assert gcp.units() == ["", "type=a/", f"{only_gcs}/", f"{both}/"]


@pytest.mark.parametrize("failing", ["aws", "gcp"])
@pytest.mark.parametrize("error", [AccessDenied("no"), ServiceUnavailable("down")])
def test_half_a_tree_is_never_shown_as_a_whole_one(failing: str, error: OptfsError) -> None:
    """A failing store fails what needs it, or the former listing stays."""
    rig, aws, gcp = _rig(["type=a/date=2026-01-01/x"], [f"{DAY}/x"])
    store = aws if failing == "aws" else gcp
    store.error = error
    with pytest.raises(type(error)):
        rig.names("type=a")
    store.error = None
    whole = rig.names("type=a")
    store.error = error
    rig.now += 61
    assert rig.names("type=a") == whole


def _refused(*_unit: str) -> None:
    raise AccessDenied("refused", detail="request 3")


@pytest.mark.parametrize("error", [AccessDenied("refused"), NoExport("ended")], ids=["store", "api"])
def test_what_is_new_on_one_store_appears_though_the_other_refuses_us(error: OptfsError, caplog: pytest.LogCaptureFixture) -> None:
    """S3 will refuse everybody one day: the days that it alone was seen to hold stay in sight, and it is warned of once."""
    rig, aws, gcp = _rig(["type=a/date=2026-05-01/s", "type=a/date=2026-10-20/s", "type=old/x"], ["type=a/date=2026-10-20/g"])
    assert rig.names() == ["type=a", "type=old"]
    assert rig.names("type=a") == ["date=2026-05-01", "date=2026-10-20"]
    aws.error = error
    gcp.put("type=a/date=2026-10-21/g")
    gcp.put("type=a/date=2026-10-21/_SUCCESS")
    gcp.put("type=new/x")
    with caplog.at_level(logging.WARNING, "optfs.tree.held"):
        for _ in range(3):
            rig.now += 61
            rig.names("type=a")
            rig.names()
            rig.run_jobs()
    assert rig.names("type=a") == ["date=2026-05-01", "date=2026-10-20", "date=2026-10-21"]
    assert rig.names() == ["type=a", "type=new", "type=old"]
    assert rig.names("type=a/date=2026-10-21") == ["_SUCCESS", "g"]
    with pytest.raises(type(error)):
        rig.names("type=a/date=2026-05-01")
    told = [record.getMessage() for record in caplog.records]
    assert len([line for line in told if line.startswith("'type=a/' can't be listed any more on aws")]) == 1
    aws.error = None
    del gcp.objects["type=a/date=2026-10-20/g"]
    rig.now += 61
    rig.names("type=a/date=2026-05-01")
    rig.run_jobs()
    rig.now += 61
    assert rig.names("type=a/date=2026-05-01") == ["s"]


def test_credentials_that_cannot_be_renewed_now_are_a_failure_not_a_refusal() -> None:
    """The former listing is shown, whole, and tried again soon."""
    rig, aws, gcp = _rig(["type=a/x"], ["type=b/x"])
    assert rig.names() == ["type=a", "type=b"]
    aws.error = NotRenewed("no answer")
    gcp.put("type=c/x")
    rig.now += 61
    assert rig.names() == ["type=a", "type=b"]
    aws.error = None
    rig.now += 2
    rig.names()
    rig.run_jobs()
    assert rig.names() == ["type=a", "type=b", "type=c"]


def test_a_level_that_one_store_was_never_asked_for_is_not_shown_by_half() -> None:
    """Though the other one's half was seen."""
    rig, aws, gcp = _rig(["type=x/s"], ["type=a/x"])
    assert rig.names() == ["type=a", "type=x"]
    assert rig.names("type=a") == ["x"]
    aws.put("type=a/y")
    rig.now += 61
    assert rig.names() == ["type=a", "type=x"]
    aws.gate = _refused
    gcp.put("type=a/z")
    assert rig.names("type=a") == ["x"]


def test_a_level_that_both_refuse_goes_on_being_shown_as_it_was() -> None:
    """And one that was never seen isn't shown by half."""
    rig, aws, gcp = _rig(["type=a/date=2026-05-01/s"], ["type=a/date=2026-10-20/g"])
    assert rig.names() == ["type=a"]
    aws.gate = _refused
    with pytest.raises(AccessDenied):
        rig.names("type=a")
    gcp.gate = _refused
    rig.now += 61
    assert rig.names() == ["type=a"]
    with pytest.raises(AccessDenied):
        rig.names("type=a")


def test_a_day_that_gcs_completed_stays_readable_while_s3_fails() -> None:
    """S3 isn't needed for it."""
    rig, aws, _ = _rig([f"{DAY}/s"], [f"{DAY}/g", f"{DAY}/_SUCCESS"])
    rig.names("type=a")
    aws.error = ServiceUnavailable("down")
    assert rig.names(DAY) == ["_SUCCESS", "g"]


def test_a_day_moves_to_the_store_that_completes_it() -> None:
    """With the next listing."""
    rig, _, gcp = _rig([f"{DAY}/s", f"{DAY}/_SUCCESS"], [f"{DAY}/g"], ttl=0)
    assert rig.names(DAY) == ["_SUCCESS", "s"]
    gcp.put(f"{DAY}/_SUCCESS")
    assert rig.names(DAY) == ["_SUCCESS", "g"]


_DATES = st.dictionaries(
    st.sampled_from(["type=a/date=2026-10-20", "type=a/date=2026-10-21", "type=b/date=2026-10-20"]),
    st.lists(st.sampled_from(["_SUCCESS", "experiment=1/x", "experiment=2/y", "z"]), min_size=1, unique=True),
)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(s3=_DATES, gcs=_DATES)
def test_each_date_shows_exactly_one_stores_objects(s3: dict[str, list[str]], gcs: dict[str, list[str]]) -> None:
    """Against a naive choice."""
    rig, _, _ = _rig(
        [f"{day}/{name}" for day, names in s3.items() for name in names], [f"{day}/{name}" for day, names in gcs.items() for name in names]
    )
    shown: dict[str, list[tuple[str, str]]] = {}
    for kind in rig.names():
        for date in rig.names(kind):
            found = shown.setdefault(f"{kind}/{date}", [])
            pending = [f"{kind}/{date}"]
            while pending:
                folder = pending.pop()
                for name, node in rig.catalog.children(f"/123/{folder}", rig.deadline()):
                    if isinstance(node, File):
                        found.append((f"{folder}/{name}"[len(f"{kind}/{date}/") :], node.info.provider))
                    else:
                        pending.append(f"{folder}/{name}")
    expected = {}
    for day in {*s3, *gcs}:
        in_s3, in_gcs = s3.get(day, []), gcs.get(day, [])
        takes_gcs = bool(in_gcs) and ("_SUCCESS" in in_gcs or "_SUCCESS" not in in_s3)
        expected[day] = sorted((name, "gcp" if takes_gcs else "aws") for name in (in_gcs if takes_gcs else in_s3))
    assert {day: sorted(files) for day, files in shown.items()} == expected


def test_stores_of_two_accounts_make_no_tree() -> None:
    """One account a mount."""

    class Other(MemoryStore):
        @property
        def root(self) -> AccountRoot:
            return AccountRoot("999", "aws", "bucket", "v1/account_id=999/")

    with pytest.raises(ValueError, match="one account"):
        Catalog({"aws": Other("aws"), "gcp": MemoryStore("gcp")}, pool=HandPool(), listing_ttl=1.0, timeout=1.0)
