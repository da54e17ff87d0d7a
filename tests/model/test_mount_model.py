"""Real mounts against the reference model, with each provider and each binding: any keys, any order of system calls and of changes.

One mount for each combination is kept for all examples of a test; each example begins with an empty bucket. `--listing-ttl 0` shows each
change at once, so that there is one right answer at any time. The mounts that believe listings for an hour are made anew instead.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from optfs.demo.services import Services
from tests.support import model_inputs, model_world
from tests.support.model import AFolder, Failure, Path, Stored, shown
from tests.support.model_mount import Bucket, Observer, attempt
from tests.support.model_world import block_files
from tests.support.mounting import COMBINATIONS, Mounted, require

pytestmark = pytest.mark.timeout(
    600
)  # some 500 system calls a test, each several requests: seconds, or minutes on a machine with much else to do

EXAMPLES = settings(
    max_examples=10,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    phases=[Phase.generate],  # a failing program is shown as it is: making it small takes minutes on a mount
    # a mount answers as fast as the machine allows, and one mount serves all examples: each begins with an empty bucket
    suppress_health_check=list(HealthCheck),
)

HARMS = {"evict": model_world.delete_all, "flip": model_world.flip, "cut": model_world.cut, "confuse": model_world.confuse}

steps = st.one_of(
    st.tuples(st.just("put"), model_inputs.keys, model_inputs.lengths),
    st.tuples(st.just("overwrite"), st.integers(0, 99), model_inputs.lengths),
    st.tuples(st.just("shadow"), st.integers(0, 99), st.sampled_from(["/b", "/", "b"])),
    st.tuples(st.just("delete"), st.integers(0, 99), st.none()),
    st.tuples(st.just("look"), st.integers(0, 99), model_inputs.names | st.sampled_from(["", "latest", "42", "_metadata"])),
    st.tuples(st.just("open"), st.integers(0, 99), st.none()),
    st.tuples(st.just("pread"), model_inputs.offsets, model_inputs.counts),
    st.tuples(st.just("pread"), model_inputs.offsets, model_inputs.counts),
    st.tuples(st.just("close"), st.integers(0, 99), st.none()),
    st.tuples(st.just("harm"), st.sampled_from(sorted(HARMS)), st.none()),
)
Step = tuple[str, int | str, int | str | None]


@dataclass
class Opened:
    """An open file.

    Attributes:
        replaced: whether a folder has taken its place meanwhile. The kernel gives up a file whose path shows a folder: EIO from then on,
            also when it is closed.

    """

    descriptor: int
    path: Path
    stored: Stored
    replaced: bool = False

    def close(self) -> None:
        """Close it."""
        closed = attempt(lambda: os.close(self.descriptor))
        assert closed is None or (self.replaced and closed == Failure(errno.EIO))


class Run:
    """One example on one mount."""

    def __init__(self, bucket: Bucket, observer: Observer, cache: FilePath) -> None:
        self.bucket = bucket
        self.observer = observer
        self.cache = cache
        self.count = 0
        self.opened: list[Opened] = []

    def put(self, key: str, length: int) -> None:
        """Write a version of an object."""
        if len(key.encode("utf-8", "surrogateescape")) <= model_inputs.KEY_LIMIT:
            self.count += 1
            self.bucket.put(key, model_inputs.content(self.count, length))

    def step(self, what: str, first: int | str, second: int | str | None) -> None:
        """Do one thing, and compare what it shows."""
        keys = sorted(self.bucket.keys)
        if what == "put":
            assert isinstance(first, str)
            assert isinstance(second, int)
            self.put(first, second)
        elif what == "harm":
            HARMS[str(first)](block_files(self.cache))
        elif what == "pread":
            assert isinstance(first, int)
            assert isinstance(second, int)
            for file in self.opened:
                current = self.bucket.keys.get("/".join(file.path)) is file.stored
                self.observer.pread(file.descriptor, file.stored, first, second, current=current, replaced=file.replaced)
        elif what == "close":
            if self.opened:
                self.opened.pop(int(first) % len(self.opened)).close()
        elif keys:
            self.step_on(keys[int(first) % len(keys)], what, second)
        for file in self.opened:
            file.replaced = file.replaced or shown(self.bucket.keys, file.path) == AFolder()

    def step_on(self, key: str, what: str, argument: int | str | None) -> None:
        """Do one thing with a key that there is."""
        if what == "overwrite":
            self.put(key, int(argument or 0))
        elif what == "shadow":
            self.put(f"{key}{argument}", 10)
        elif what == "delete":
            self.bucket.delete(key)
        elif what == "open":
            found = self.observer.open(self.bucket.keys, usable(key))
            if found is not None:
                self.opened.append(Opened(found[0], usable(key), found[1]))
        else:
            for path in (usable(f"{key}/{argument}"), usable(f"{key.rpartition('/')[0]}/{argument}")):
                self.observer.look(self.bucket.keys, path)
                self.observer.list_folder(self.bucket.keys, path)

    def close(self) -> None:
        """Close all files."""
        while self.opened:
            self.opened.pop().close()


def usable(key: str) -> Path:
    """Return a key's path, without components that no system call can be asked for."""
    return tuple(part for part in key.split("/") if part not in {"", ".", ".."} and "\0" not in part)


class Ground:
    """A mount with one provider and one binding."""

    def __init__(self, folder: FilePath, provider: str, binding: str) -> None:
        self.folder = folder
        self.provider = provider
        self.binding = binding
        self.services = Services(page_size=5)
        self.bucket = Bucket(self.services, provider)

    def mount(self, *options: str) -> Mounted:
        """Mount."""
        return Mounted(self.services, self.folder, self.provider, self.binding, *options)


@pytest.fixture(scope="module", params=COMBINATIONS, ids="-".join)
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Services, and where to mount."""
    provider, binding = request.param
    require(binding)
    ground = Ground(tmp_path_factory.mktemp("model"), provider, binding)
    with ground.services:
        yield ground


def test_a_mount_agrees_with_the_model_while_the_bucket_changes(ground: Ground) -> None:
    """On every name, attribute, byte and errno, and on ESTALE or the pinned version's bytes for files whose version is gone."""

    @seed(1)
    @EXAMPLES
    @given(keys=st.lists(model_inputs.keys, min_size=2, max_size=8), program=st.lists(steps, min_size=8, max_size=25))
    def check(keys: list[str], program: list[Step]) -> None:
        ground.bucket.clear()
        run = Run(ground.bucket, observer, mounted.cache)
        try:
            for key in keys:
                run.put(key, 5000)
            for step in program:
                run.step(*step)
        finally:
            run.close()
        observer.walk_all(ground.bucket.keys)

    with ground.mount("--listing-ttl", "0") as mounted:
        observer = Observer(mounted.account, ground.provider)
        check()


def test_a_mount_shows_every_odd_name_and_after_a_remount_what_has_changed(ground: Ground) -> None:
    """A mount that believes its listings shows the former tree, and its bytes or ESTALE; the next mount shows the new one, whatever its cache holds."""
    bucket = ground.bucket
    bucket.clear()
    for head in model_inputs.HEADS:
        for number, key in enumerate(model_inputs.odd_keys(head)):
            bucket.put(key, model_inputs.content(number, 100 + number))
    bucket.put("big", model_inputs.content(1, 5 * model_inputs.PIECE))
    with ground.mount("--listing-ttl", "1h") as mounted:
        observer = Observer(mounted.account, ground.provider)
        observer.walk_all(bucket.keys)
        former = dict(bucket.keys)
        for number, key in enumerate(sorted(former)):
            if number % 3 == 0:
                bucket.put(key, model_inputs.content(number, 50 + number))
            elif number % 3 == 1:
                bucket.delete(key)
        bucket.put("big", model_inputs.content(2, 5 * model_inputs.PIECE))
        observer.list_folder(former, ())
        observer.list_folder(former, ("type=decisions", model_inputs.OLD_DAY))
    model_world.flip(block_files(mounted.cache)[::2])
    with ground.mount("--listing-ttl", "1h") as mounted:
        Observer(mounted.account, ground.provider).walk_all(bucket.keys)
