"""A network and services that fail in every way, under a real mount.

Whatever happens, a program gets the right bytes or an error within `--timeout`: never a wrong byte, never an end before the file's end,
never an empty folder that isn't empty, and never another's fault.
"""

import errno
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from optfs.demo.faults import Action, Answer, Fault, Html, Redirect, Reset, Stall, Truncate, WrongContentRange, WrongLength
from optfs.demo.services import Services
from optfs.demo.traffic import Request
from optfs.values import MiB
from tests.support.broken import SLACK, TIMEOUT, Ground, Outcome, all_at_once, ground, names, read, readable
from tests.support.mounting import LIMIT, eventually

SMALL = random.Random(1).randbytes(700_001)
BIG = random.Random(2).randbytes(24 * MiB + 5)
SLOW_DOWN = Answer(503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")
ELSEWHERE = Redirect("http://127.0.0.1:1/")

BROKEN: dict[str, Action] = {
    "500": Answer(500),
    "502 of a proxy": Html(502),
    "slow-down": SLOW_DOWN,
    "429": Answer(429),
    "sign-in page": Html(200),
    "empty answer": Answer(200),
    "reset": Reset(None),
    "stalled": Stall(None),
}
BROKEN_BODIES: dict[str, Action] = {
    "reset at the body": Reset(0),
    "reset in the body": Reset(300_000),
    "stalled at the body": Stall(0),
    "stalled in the body": Stall(300_000),
    "cut at the body": Truncate(0),
    "cut a byte early": Truncate(len(SMALL) - 1),
    "wrong range": WrongContentRange(),
    "no range": WrongContentRange(None),
    "another range": WrongContentRange(f"bytes 1-{len(SMALL)}/{len(SMALL) + 1}"),
    "shorter": WrongLength(-1),
    "longer": WrongLength(7),
}

FAILED = {errno.EIO, errno.ETIMEDOUT}
"""What is tried again until it is given up: whether tries or time come to their end first depends on the length of random pauses."""

LASTING: dict[str, tuple[Action, set[int]]] = {
    "500": (Answer(500), FAILED),
    "slow-down": (SLOW_DOWN, FAILED),
    "sign-in page": (Html(200), FAILED),
    "redirect": (ELSEWHERE, {errno.EIO}),
    "empty answer": (Answer(200), FAILED),
    "reset": (Reset(None), FAILED),
    "reset at the body": (Reset(0), FAILED),
    "cut at the body": (Truncate(0), FAILED),
    "stalled": (Stall(None), {errno.ETIMEDOUT}),
    "stalled at the body": (Stall(0), {errno.ETIMEDOUT}),
    "wrong range": (WrongContentRange("bytes 1-5/*"), FAILED),
    "no range": (WrongContentRange(None), FAILED),
    "shorter": (WrongLength(-1), FAILED),
    "longer": (WrongLength(7), FAILED),
    "another size": (WrongContentRange("bytes 0-9/10"), {errno.EIO, errno.ESTALE}),
    "deleted": (Answer(404), {errno.ESTALE}),
    "overwritten": (Answer(412), {errno.ESTALE}),
    "out of range": (Answer(416), {errno.ESTALE}),
    "refused": (Answer(403, b"<Error><Code>AccessDenied</Code></Error>"), {errno.EACCES}),
}
FOREVER = {"stalled", "reset", "sign-in page", "empty answer", "slow-down"}


def folder_of(name: str) -> str:
    """Return a folder of its own for a test's file, so that no walk fetches others ahead."""
    return f"type={name.replace(' ', '-')}/date=2026-11-01/"


def file_of(name: str) -> str:
    """Return the key of a test's file."""
    return folder_of(name) + "part-0.parquet"


EITHER = [("aws", "fuse3"), ("gcp", "fuse3")]
with_either_binding = pytest.mark.parametrize("shared", [*EITHER, ("aws", "fuse2")], ids="-".join, indirect=True)


@pytest.fixture(scope="module", params=EITHER, ids="-".join)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A mount for many tests; each has files of its own, and takes its faults away."""
    provider, binding = request.param
    with ground(Services(), tmp_path_factory.mktemp("network"), provider, binding, "--listing-ttl", "0s") as ready:
        yield ready


@with_either_binding
def test_a_fault_that_goes_away_is_not_seen(shared: Ground) -> None:
    """Each kind once, all at the same time: every file is read whole, and each fault did strike."""
    actions = {f"once {name}": action for name, action in {**BROKEN, **BROKEN_BODIES}.items()}
    for name in actions:
        shared.services.put(file_of(name), SMALL)
    faults = {name: shared.break_key("get", file_of(name), action, times=1) for name, action in actions.items()}
    got = all_at_once({name: shared.path(file_of(name)) for name in actions}, read)
    assert {name: outcome.errno for name, outcome in got.items()} == dict.fromkeys(actions, 0)
    assert [name for name, outcome in got.items() if outcome.content != SMALL] == []
    assert {name: fault.hits for name, fault in faults.items()} == dict.fromkeys(actions, 1)


@with_either_binding
def test_a_fault_that_stays_is_an_error_in_time(shared: Ground) -> None:
    """Never an end that isn't one; and the same file is read without a remount when the fault is gone."""
    for name in LASTING:
        shared.services.put(file_of(name), SMALL)
    paths = {name: shared.path(file_of(name)) for name in LASTING}
    for path in paths.values():
        path.stat()
    faults = [shared.break_key("get", file_of(name), action) for name, (action, _) in LASTING.items()]
    got = all_at_once(paths, read)
    assert {name: outcome.errno for name, outcome in got.items() if outcome.errno not in LASTING[name][1]} == {}
    assert [name for name, outcome in got.items() if outcome.content != b""] == []
    assert {name: outcome.seconds for name, outcome in got.items() if outcome.seconds > TIMEOUT + SLACK} == {}
    for fault in faults:
        shared.services.faults.remove(fault)
    for path in paths.values():
        readable(path, SMALL)


def test_a_listing_that_fails_is_no_empty_folder(shared: Ground) -> None:
    """One failure isn't seen, lasting ones are errors in time, and the folder is listed when they end."""
    once = {name: f"list once {name}" for name in [*BROKEN, "reset at the body", "cut at the body", "stalled at the body"]}
    for folder in once.values():
        shared.services.put(file_of(folder), b"x")
    assert len(names(shared.mount.account)[0]) >= len(once)
    for name, folder in once.items():
        shared.break_key("list", folder_of(folder), {**BROKEN, **BROKEN_BODIES}[name], times=1)
    got = all_at_once({name: shared.path(folder_of(folder)) for name, folder in once.items()}, names)
    assert {name: (found, number) for name, (found, number, _) in got.items()} == dict.fromkeys(once, (["part-0.parquet"], 0))


def test_a_listing_that_goes_on_failing_is_an_error_in_time(shared: Ground) -> None:
    """And a name that only such a listing could tell of isn't called missing."""
    lasting = {name: f"list {name}" for name in FOREVER}
    for folder in lasting.values():
        shared.services.put(file_of(folder), b"x")
    faults = [shared.break_key("list", folder_of(folder), LASTING[name][0]) for name, folder in lasting.items()]
    with ThreadPoolExecutor(1) as other:
        opening = other.submit(all_at_once, {name: shared.path(file_of(folder)) for name, folder in lasting.items()}, read)
        failed = all_at_once({name: shared.path(folder_of(folder)) for name, folder in lasting.items()}, names)
        opened = opening.result()
    assert {name: number for name, (_, number, _) in failed.items() if number not in FAILED} == {}
    assert {name: outcome.errno for name, outcome in opened.items() if outcome.errno not in FAILED} == {}
    assert max(seconds for _, _, seconds in failed.values()) < TIMEOUT + SLACK
    assert max(outcome.seconds for outcome in opened.values()) < TIMEOUT + SLACK
    for fault in faults:
        shared.services.faults.remove(fault)
    for folder in lasting.values():
        readable(shared.path(file_of(folder)), b"x")


@pytest.mark.parametrize("provider", ["aws", "gcp"])
def test_a_stream_survives_faults_in_its_ranges(tmp_path: Path, provider: str) -> None:
    """A big file's parallel ranges break in many ways, and every byte is right. All may meet one range: there is time for that."""
    services = Services()
    key = file_of("stream")
    services.put(key, BIG)
    # Two wrong answers: more could all meet the same range, and a third one in a row is believed.
    actions: list[Action] = [Reset(500_000), Truncate(700_000), WrongContentRange(), SLOW_DOWN, WrongLength(-3), Reset(None)]
    with ground(services, tmp_path, provider, "fuse3", "--timeout", "45s") as ready:
        faults = [ready.break_key("get", key, action, times=1) for action in actions]
        got = read(ready.path(key))
        assert got.errno == 0
        assert got.content == BIG
        assert [fault.hits for fault in faults] == [1] * len(faults)


def test_a_stream_ends_with_an_error_where_its_bytes_end(shared: Ground) -> None:
    """The beginning of a file can be read, the rest can't: what came is right, and no end is feigned."""
    actions: dict[str, Action] = {"half reset": Reset(0), "half stalled": Stall(1000), "half overwritten": Answer(412)}
    paths = {name: shared.path(file_of(name)) for name in actions}
    faults = []
    for name, action in actions.items():
        shared.services.put(file_of(name), BIG)
        whole = shared.services.prefix + file_of(name)

        def later_half(request: Request, whole: str = whole) -> bool:
            return request.kind == "get" and request.key == whole and int((request.range or "bytes=0-")[6:].split("-")[0]) >= 12 * MiB

        faults.append(shared.services.faults.add(Fault(later_half, action)))
    got = all_at_once(paths, read)
    assert got["half reset"].errno in FAILED
    assert got["half stalled"].errno == errno.ETIMEDOUT
    assert got["half overwritten"].errno == errno.ESTALE
    assert [name for name, outcome in got.items() if not BIG.startswith(outcome.content)] == []
    assert max(outcome.seconds for outcome in got.values()) < TIMEOUT + SLACK
    for fault in faults:
        shared.services.faults.remove(fault)
    for path in paths.values():
        readable(path, BIG)


def test_bursts_of_slow_down_cost_time_only(shared: Ground) -> None:
    """A third of all requests is turned away while many files are read, none of them more than three times."""
    keys = [file_of(f"burst {number}") for number in range(40)]
    for key in keys:
        shared.services.put(key, SMALL[: 1000 + len(key)])
    counted = iter(range(1_000_000))
    refused: Counter[tuple[str, str]] = Counter()

    def is_refused(request: Request) -> bool:
        if request.kind == "credentials" or next(counted) % 3 or refused[request.kind, request.key] >= 3:
            return False
        refused[request.kind, request.key] += 1
        return True

    fault = shared.services.faults.add(Fault(is_refused, SLOW_DOWN))
    got = all_at_once({key: shared.path(key) for key in keys}, read)
    shared.services.faults.remove(fault)
    assert fault.hits > len(keys) // 3
    assert got == {key: Outcome(SMALL[: 1000 + len(key)], 0, got[key].seconds) for key in keys}


def test_stalled_readers_hold_up_nobody_else(tmp_path: Path) -> None:
    """Neither those who read another file, nor those who list; and each of them can be killed at once."""
    services = Services(gcs=False)
    stuck = [file_of(f"stuck {number}") for number in range(8)]
    for key in [*stuck, file_of("free")]:
        services.put(key, SMALL)
    with ground(services, tmp_path, "aws", "fuse3", "--timeout", "120s") as ready:
        paths = [ready.path(key) for key in stuck]
        for path in paths:
            path.stat()
        fault = services.faults.add(Fault(lambda request: request.kind == "get" and "stuck" in request.key, Stall(1000)))
        readers = [subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for path in paths]
        try:
            eventually(lambda: fault.hits >= len(stuck), "all of them wait")
            free = read(ready.path(file_of("free")))
            assert free.content == SMALL
            assert free.seconds < SLACK
            assert names(ready.path(folder_of("stuck 0")))[2] < SLACK
            for number, reader in enumerate(readers):
                reader.send_signal(signal.SIGKILL if number % 2 else signal.SIGINT)
            assert [reader.wait(LIMIT) for reader in readers] == [-signal.SIGINT, -signal.SIGKILL] * 4
        finally:
            services.faults.remove(fault)
            for reader in readers:
                reader.kill()
                reader.wait(LIMIT)
        for path in paths:
            readable(path, SMALL)


HANDLERS = 576
"""`bridge.fuse3.MAX_THREADS`, which can't be imported without loading libfuse."""

CROWD = """
import os, sys, threading
for path in sys.argv[1:]:
    threading.Thread(target=os.stat, args=(path,)).start()
"""
"""A program that looks many files up at once."""

BUSY = """
import os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.5, 0.02)
print(os.stat(sys.argv[1]).st_size)
"""
"""A program that gets signals as it waits, all of which it handles."""


def threads_of(process: int) -> int:
    """Count a process's threads."""
    return len(list(Path(f"/proc/{process}/task").iterdir()))


def pending(process: int, number: signal.Signals) -> bool:
    """Tell whether a signal waits for a process to come back from the kernel."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return any(int(line.split()[1], 16) & 1 << number - 1 for line in status.splitlines() if line.startswith("ShdPnd:"))


@pytest.mark.parametrize("binding", ["fuse3", "fuse2"])
def test_who_waits_for_a_listing_can_be_killed_and_other_signals_change_nothing(tmp_path: Path, binding: str) -> None:
    """At once, though the listing is never answered; a program with a timer waits on and gets its answer.

    Each looks into a folder of its own: Linux lets only one look a name up, and those who wait for that one can't be killed.
    """
    services = Services(gcs=False)
    stuck = [file_of(f"stuck {number}") for number in range(4)]
    for key in stuck:
        services.put(key, SMALL)
    with ground(services, tmp_path, "aws", binding, "--timeout", "120s", "--listing-ttl", "0s") as ready:
        fault = services.faults.add(Fault(lambda request: request.kind == "list" and "stuck" in request.key, Stall(None)))
        programs: list[subprocess.Popen[str]] = []
        try:
            for line, key in zip((["stat"], ["ls", "-l"], ["cat"], [sys.executable, "-c", BUSY]), stuck, strict=True):
                started = subprocess.Popen([*line, str(ready.path(key))], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                programs.append(started)
            busy = programs[-1]
            eventually(lambda: fault.hits >= len(stuck) and pending(busy.pid, signal.SIGALRM), "they wait")
            for program, number in zip(programs, (signal.SIGINT, signal.SIGKILL, signal.SIGTERM), strict=False):
                program.send_signal(number)
                assert program.wait(LIMIT) == -number
            assert busy.poll() is None
            services.faults.remove(fault)
            assert busy.communicate(timeout=LIMIT)[0].split()[-1] == str(len(SMALL))
        finally:
            services.faults.remove(fault)
            for program in programs:
                program.kill()
                program.communicate(timeout=LIMIT)


def test_who_waits_can_be_killed_though_all_of_libfuses_threads_wait(tmp_path: Path) -> None:
    """None of them is left to read from the kernel that somebody got a signal."""
    services = Services(gcs=False)
    stuck = [file_of(f"stuck {number}") for number in range(HANDLERS + 6)]
    for key in stuck:
        services.put(key, SMALL[:10])
    with ground(services, tmp_path, "aws", "fuse3", "--timeout", "120s") as ready:
        fault = services.faults.add(Fault(lambda request: request.kind == "list" and "stuck" in request.key, Stall(None)))
        programs: list[subprocess.Popen[bytes]] = []
        try:
            for share in range(4):
                paths = [str(ready.path(key)) for key in stuck[share::4]]
                programs.append(subprocess.Popen([sys.executable, "-c", CROWD, *paths]))
            eventually(lambda: threads_of(ready.mount.pid) >= HANDLERS, "all threads wait")
            for program in programs:
                program.kill()
            assert {program.wait(LIMIT) for program in programs} == {-signal.SIGKILL}
            services.faults.remove(fault)
            readable(ready.path(stuck[0]), SMALL[:10])
        finally:
            services.faults.remove(fault)
            for program in programs:
                program.kill()
                program.wait(LIMIT)


NAME_SERVICE = """
import os, socket
_proper = socket.getaddrinfo
def getaddrinfo(*arguments, **settings):
    if os.path.exists({flag!r}):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return _proper(*arguments, **settings)
socket.getaddrinfo = getaddrinfo
"""


@pytest.mark.parametrize("provider", ["aws", "gcp"])
def test_no_connection_and_no_name_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    """What was read stays readable, the rest is EIO in time, and all recovers; each cause is one line in the log, its end another."""
    flag = tmp_path / "no-names"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NAME_SERVICE.format(flag=str(flag)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    services = Services()
    kept = file_of("kept")
    # Files of its own for each cause: a failure is the answer for half a second more, whatever the cause.
    files = {cause: [file_of(f"{cause} {number}") for number in range(4)] for cause in ("refused", "names")}
    keys = [kept, *files["refused"], *files["names"]]
    for key in keys:
        services.put(key, SMALL)
    with ground(services, tmp_path, provider, "fuse3", "--cache-size", "1GiB", "--listing-ttl", "0s") as ready:
        for key in keys:
            ready.path(key).stat()
        readable(ready.path(kept), SMALL)
        for cause in ("refused", "names"):
            before = len(ready.mount.text())
            services.outage()
            if cause == "names":
                flag.touch()
                services.end_outage()
            lost = all_at_once({key: ready.path(key) for key in files[cause]}, read)
            assert read(ready.path(kept)).content == SMALL
            assert {key: outcome.errno for key, outcome in lost.items() if outcome.errno not in FAILED} == {}
            assert max(outcome.seconds for outcome in lost.values()) < TIMEOUT + SLACK
            if cause == "names":
                flag.unlink()
            else:
                services.end_outage()
            readable(ready.path(files[cause][0]), SMALL)
            lines = ready.warnings(since=before)
            assert 1 <= len(lines) <= 5, lines  # each layer's change of state, and each errno's first time
