"""The file system against the reference model: any keys, any order of calls, changes, restarts and harm to the cache, by a clock moved by hand.

While a listing may still be believed, the former tree may be seen, each listing of it as a whole; after that only the present one. Each look
at a path is made as a kernel makes it: name by name from the account's folder down.
"""

import copy
import errno
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from optfs.bridge.errnos import errno_of
from optfs.errors import OptfsError
from optfs.filesystem import Attributes
from optfs.tree.held import SETTLED_TTL
from optfs.values import Provider
from tests.support import model, model_inputs, model_world
from tests.support.model import AFile, AFolder, ALink, Failure, Keys, Outcome, Path, Shown, Stored
from tests.support.model_world import ACCOUNT, PREFIX, World

STEPS = settings(
    max_examples=35,
    stateful_step_count=30,
    deadline=None,
    database=None,
    # the machine's rules draw from what earlier ones made, so that filtering and large examples are in its nature
    suppress_health_check=list(HealthCheck),
)

GONE = {errno.ENOENT, errno.ENOTDIR}

HARMS = (model_world.delete_all, model_world.flip, model_world.cut, model_world.confuse)

T = TypeVar("T")


def attempt(call: Callable[[], T]) -> T | Failure:
    """Return what a call returns, or its errno."""
    try:
        return call()
    except OptfsError as error:
        return Failure(errno_of(error))


class Machine(RuleBasedStateMachine):
    """One account on one store, looked at through one file system after another."""

    provider: Provider = "aws"
    ttl = 60.0

    def __init__(self) -> None:
        super().__init__()
        self.folder = FilePath(tempfile.mkdtemp())
        self.world = World(self.folder, self.provider, self.ttl)
        self.keys: dict[str, Stored] = {}
        self.past: list[tuple[float, Keys]] = []
        """Former states of the bucket since the mount, each with the moment at which it ended."""
        self.versions: dict[str, Stored] = {}
        self.handles: list[tuple[int, str, Stored]] = []
        self.puts = 0

    def teardown(self) -> None:
        """Look at everything once more, when nothing of the past may be seen any more."""
        try:
            self.world.clock.now += SETTLED_TTL
            self.read_all()
            for handle, _, _ in self.handles:
                self.world.filesystem.close(handle)
            assert self.world.filesystem.open_files() == 0
        finally:
            self.world.stop()
            shutil.rmtree(self.folder)

    # What happens to the bucket, the clock, the cache, the mount

    @initialize(keys=st.lists(model_inputs.keys, min_size=2, max_size=12), lengths=st.lists(model_inputs.lengths, min_size=3, max_size=3))
    def begin(self, keys: list[str], lengths: list[int]) -> None:
        """Begin with some objects."""
        for number, key in enumerate(keys):
            self.put(key, lengths[number % len(lengths)])

    @rule(keys=st.lists(model_inputs.keys, min_size=1, max_size=3), length=model_inputs.lengths)
    def add(self, keys: list[str], length: int) -> None:
        """Put objects, new or over others."""
        for key in keys:
            self.put(key, length)

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), tail=st.sampled_from(["", "", "/b", "/", "/experiment=42/b", "b"]), length=model_inputs.lengths)
    def renew(self, data: st.DataObject, tail: str, length: int) -> None:
        """Put another version of an object, or an object below or beside it."""
        key = data.draw(self.a_key()) + tail
        if len(model.raw(key)) <= model_inputs.KEY_LIMIT:
            self.put(key, length)

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Delete an object."""
        key = data.draw(self.a_key())
        self.change()
        self.world.delete(key)
        del self.keys[key]

    def a_key(self) -> st.SearchStrategy[str]:
        """Return what draws a key; of open files most often, since those are looked at."""
        pinned = [key for _, key, _ in self.handles if key in self.keys]
        return st.sampled_from([*pinned, *sorted(self.keys)])

    def put(self, key: str, length: int) -> None:
        """Put an object."""
        self.puts += 1
        self.change()
        stored = self.world.put(key, model_inputs.content(self.puts, length), 1_700_000_000.5 + self.puts)
        self.keys[key] = self.versions[stored.tag] = stored

    def change(self) -> None:
        """Keep the present state as a former one."""
        self.past.append((self.world.clock.now, copy.copy(self.keys)))

    @rule(seconds=st.sampled_from([30.0, 61.0, SETTLED_TTL + 1]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.world.clock.now += seconds

    @rule(harm=st.sampled_from([model_world.nothing, *HARMS]))
    def restart(self, harm: Callable[[list[FilePath]], None]) -> None:
        """Fill the cache, unmount, and mount again: what is read then comes from a cache that may have been harmed."""
        self.read_all()
        self.world.damage(harm)
        self.world.stop()
        self.handles.clear()
        self.past.clear()
        self.world.start()
        self.read_all()

    @rule(harm=st.sampled_from(HARMS))
    def harm(self, harm: Callable[[list[FilePath]], None]) -> None:
        """Evict or damage what the cache holds while it is in use."""
        self.world.damage(harm)

    # What is asked

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        """Look at paths that may exist."""
        for _ in range(3):
            here, node = self.walk(self.draw_path(data))
            if isinstance(node, AFile):
                self.check_attributes(here, node)
            elif isinstance(node, AFolder):
                self.list_folder(here)

    @rule()
    def walk_all(self) -> None:
        """Walk the whole tree."""
        self.every_file()

    @rule(data=st.data(), offset=model_inputs.offsets, count=model_inputs.counts)
    def open(self, data: st.DataObject, offset: int, count: int) -> None:
        """Open a file and read some of it; it is pinned to a version that may be seen now."""
        files = self.every_file()
        if files:
            self.open_at(data.draw(st.sampled_from(files)))
            self.pread(offset, count)

    @rule(offset=model_inputs.offsets, count=model_inputs.counts)
    def pread(self, offset: int, count: int) -> None:
        """Read the pinned versions' bytes, or learn that they are gone."""
        for handle, key, stored in self.handles:
            self.compare(handle, key, stored, offset, count)

    @rule()
    def read_all(self) -> None:
        """Read every file whole."""
        for path in self.every_file():
            if self.open_at(path):
                handle, key, stored = self.handles.pop()
                self.compare(handle, key, stored, 0, 10 * model_inputs.PIECE)
                self.world.filesystem.close(handle)

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        """Close a file."""
        opened = data.draw(st.sampled_from(self.handles))
        self.handles.remove(opened)
        self.world.filesystem.close(opened[0])

    def every_file(self) -> list[Path]:
        """Walk the whole tree; return the files."""
        pending: list[Path] = [()]
        files: list[Path] = []
        while pending:
            here = pending.pop()
            for name, node in self.list_folder(here).items():
                (pending if isinstance(node, AFolder) else files).append((*here, name))
        return files

    def open_at(self, here: Path) -> bool:
        """Open a file that was just seen."""
        opened = attempt(lambda: self.world.filesystem.open(self.text(here)))
        if isinstance(opened, Failure):
            assert opened.number in GONE | {errno.EISDIR}
            assert len(self.views(here[:-1])) > 1, "a file that was just seen can't be opened"
            return False
        stored = self.versions[opened.version]
        assert AFile(stored) in self.shown(here[:-1], here[-1])
        self.handles.append((opened.handle, "/".join(here), stored))
        return True

    def compare(self, handle: int, key: str, stored: Stored, offset: int, count: int) -> None:
        """Read from an open file, and compare with the version that it is pinned to."""
        found = attempt(lambda: b"".join(self.world.filesystem.read(handle, offset, count)))
        if isinstance(found, Failure):
            assert found.number == errno.ESTALE
            assert self.keys.get(key) is not stored, "ESTALE, but the version is there"
            return
        assert found == stored.content[offset : offset + count]

    # How an answer is judged

    def draw_path(self, data: st.DataObject) -> Path:
        """Draw a path: along a key, mostly; then something else at its end, or a short name on the way."""
        known = [key.split("/") for key in sorted(self.keys)] + [["type=decisions", model_inputs.DAY]]
        parts = data.draw(st.sampled_from(known))
        parts = parts[: data.draw(st.integers(1, len(parts)))]
        if data.draw(st.booleans()):
            parts = [part.partition("=")[2] or part if data.draw(st.booleans()) else part for part in parts]
        end = data.draw(st.sampled_from(["", "", "", "_metadata", "latest", "42"]) | model_inputs.names)
        return tuple(part for part in "/".join([*parts, end]).split("/") if part not in {"", ".", ".."} and "\0" not in part)

    @staticmethod
    def text(path: Path) -> str:
        """Return a path as the file system wants it."""
        return "/".join(("", ACCOUNT, *path))

    def views(self, folder: Path, name: str = "") -> list[Keys]:
        """Return the states of the bucket that the listings which decide about a name in a folder may show; the present one first."""
        now = self.world.clock.now
        found: list[Keys] = [self.keys]
        for end, keys in self.past:
            settled = model.in_a_date((*folder, "")) and folder[1] == model_inputs.OLD_DAY
            complete = settled and isinstance(model.shown(keys, (*folder[:2], "_SUCCESS")), AFile)
            latest = name == "latest" and len(folder) == 1  # its dates' listings decide too
            lifetime = SETTLED_TTL if self.ttl and (complete or latest) else self.ttl
            if now - end < lifetime and keys != self.keys:
                found.append(keys)
        return found

    def shown(self, folder: Path, name: str) -> list[Shown | None]:
        """Return all that may be seen under a name now."""
        return [model.child(keys, folder, name) for keys in self.views(folder, name)]

    def walk(self, path: Path) -> tuple[Path, Outcome]:
        """Look each name of a path up; return where that led, and what is there."""
        here: Path = ()
        node: Outcome = AFolder()
        for place, name in enumerate(path):
            node = self.lookup(here, name)
            here = (*here, name)
            if isinstance(node, ALink) and place < len(path) - 1:
                here = (*here[:-1], node.target)
                node = self.lookup(here[:-1], here[-1])
            if not isinstance(node, AFolder):
                break
        return here, node

    def lookup(self, folder: Path, name: str) -> Outcome:
        """Look one name in a folder up, and demand that what is seen may be seen."""
        expected = self.shown(folder, name)
        views = self.views(folder, name)
        path = self.text((*folder, name))
        attributes = attempt(lambda: self.world.filesystem.attributes(path))
        if isinstance(attributes, Failure):
            assert None in expected or len(views) > 1, (path, attributes, expected)
            absent = errno.ENOENT if len(model.raw(name)) <= 255 else errno.ENAMETOOLONG
            assert attributes.number in ({absent, *GONE} if len(views) > 1 else {absent}), path
            return attributes
        node = self.seen(path, attributes)
        if isinstance(node, ALink) and name == "latest" and len(views) > 1:
            return node  # two listings of different age decide together
        assert node in expected, (path, node, expected)
        return node

    def seen(self, path: str, attributes: Attributes) -> Shown:
        """Return what attributes tell."""
        if stat.S_ISDIR(attributes.mode):
            return AFolder()
        if stat.S_ISLNK(attributes.mode):
            return ALink(self.world.filesystem.target(path))
        assert attributes.version is not None
        stored = self.versions[attributes.version]
        assert (attributes.size, attributes.mtime) == (len(stored.content), stored.mtime)
        assert attributes.mode == stat.S_IFREG | 0o444
        return AFile(stored)

    def check_attributes(self, here: Path, node: AFile) -> None:
        """Look at a file's extended attributes."""
        name = "user.optfs.etag" if self.provider == "aws" else "user.optfs.generation"
        if len(self.views(here[:-1])) > 1:
            return
        filesystem, path = self.world.filesystem, self.text(here)
        scheme = "s3" if self.provider == "aws" else "gs"
        assert filesystem.xattr(path, name) == node.stored.tag.encode()
        assert filesystem.xattr(path, "user.optfs.uri") == model.raw(f"{scheme}://bucket/{PREFIX}{'/'.join(here)}")
        assert 0 <= int(filesystem.xattr(path, "user.optfs.cached")) <= len(node.stored.content)

    def list_folder(self, here: Path) -> dict[str, Shown]:
        """List a folder that was just seen, and demand that the listing is one that may be seen, as a whole."""
        views = self.views(here)
        path = self.text(here)
        entries = attempt(lambda: self.world.filesystem.entries(path))
        if isinstance(entries, Failure):
            assert entries.number in GONE
            assert len(views) > 1, path
            return {}
        found = {name: self.seen(f"{path}/{name}", attributes) for name, attributes in entries}
        assert len(found) == len(entries), "a name twice"
        assert list(found.items()) in [list(model.children(keys, here).items()) for keys in views], path
        return found


@pytest.mark.timeout(600)  # a failing example takes a while to be made small; a passing test takes seconds
@pytest.mark.parametrize(("provider", "ttl", "number"), [("aws", 60.0, 1), ("gcp", 60.0, 2), ("gcp", 0.0, 3)])
def test_the_file_system_agrees_with_the_model(provider: Provider, ttl: float, number: int) -> None:
    """On every name, attribute, byte and errno. `number` makes examples differ from one run of the machine to the other."""
    machine = type("Machine", (Machine,), {"provider": provider, "ttl": ttl})
    run_state_machine_as_test(seed(number)(machine), settings=STEPS)


@pytest.mark.parametrize("head", model_inputs.HEADS)
def test_every_odd_name_is_shown_as_the_model_says(head: str) -> None:
    """As a file and as a folder, at each level, with short names."""
    machine = Machine()
    try:
        for key in model_inputs.odd_keys(head):
            machine.put(key, 5)
        machine.past.clear()
        machine.read_all()
        folder = tuple(head.split("/")[:-1])
        for name in model.children(machine.keys, folder):
            machine.walk((*folder, name))
            machine.walk((*folder, name.partition("=")[2] or "latest"))
            machine.walk((*folder, name, "part-0"))
        assert isinstance(machine.lookup(folder, "42"), ALink), "several short names meet"
    finally:
        machine.teardown()


@pytest.mark.parametrize("name", ["n" * 256, "..", "nul\0", "//x"])
def test_a_key_in_a_date_that_cannot_be_shown_makes_no_folder(name: str) -> None:
    """Neither by a name that can't be shown, nor by a folder's: an empty folder would look like an experiment without data."""
    machine = Machine()
    try:
        machine.put(f"type=decisions/{model_inputs.DAY}/experiment=42/{name}", 5)
        machine.past.clear()
        assert machine.every_file() == []
        assert machine.lookup(("type=decisions", model_inputs.DAY), "experiment=42") == Failure(errno.ENOENT)
    finally:
        machine.teardown()
