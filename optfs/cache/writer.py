"""The thread `cache-writer`: the only one of a mount that uses the index, writes blocks and evicts.

For each batch: uses and losses go into the index; then one transaction makes room and adds the rows of all blocks; then their files are
written, which nobody else waits for; then rows of what couldn't be written are taken back, and files whose rows another process removed
meanwhile go, too.

A new index (or one that was damaged) is filled from the files' names before anything is added, so that the limit holds. The folder is swept
once after the start, a shard at a time, between batches.

Rules: nothing ends the thread before `close`. Whatever fails, be it for want of memory, turns writing off (`health`), so that nobody waits
for the thread; the next trial opens folder and index anew.
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from optfs.cache import room
from optfs.cache.blockfile import SHARDS, block_name, header_length, identity, pieces
from optfs.cache.folder import Folder, open_folder
from optfs.cache.handover import Batch, Handover
from optfs.cache.health import Health
from optfs.cache.index import BlockIndex, open_index
from optfs.cache.maintenance import adopt, sweep_shard
from optfs.cache.protocol import BlockKey
from optfs.errors import ConfigError
from optfs.units import FreeFloor

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 200
"""Rows changed in one transaction: bounds the journal (`room`) and how long other mounts wait."""

_PAUSE = 1.0
"""Seconds that the thread rests when it could take nothing: no busy loop."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How large the cache may be.

    Attributes:
        size: bytes.
        min_free: what stays free of the file system.
        statvfs: returns (free, total) bytes; None: what the system says.

    """

    size: int
    min_free: FreeFloor
    statvfs: Callable[[Folder], tuple[int, int]] | None = None


@dataclass(slots=True)
class _Block:
    key: BlockKey
    data: memoryview
    name: str
    cost: int


class Writer:
    """Writes what a `Handover` brings."""

    def __init__(self, cache_dir: Path, limits: Limits, handover: Handover, health: Health, wall: Callable[[], float]) -> None:
        """Open the folder; `start` starts the thread, which opens the index."""
        self._cache_dir = cache_dir
        self._limits = limits
        self._handover = handover
        self.health = health
        self._wall = wall
        # Replaced as a whole by the writer's thread; read by all.
        self.folder: Folder | None = None
        # The writer's thread only.
        self._index: BlockIndex | None = None
        self._to_sweep: deque[int] = deque()
        self._swept = False
        self._thread = threading.Thread(target=self._run, name="cache-writer", daemon=True)
        try:
            self.folder = open_folder(cache_dir)
        except (OSError, ConfigError) as error:
            self._fail(error)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)

    def usable(self) -> bool:
        """Tell whether a block may be offered."""
        return self.health.usable()

    def _run(self) -> None:
        try:
            self._serve()
            self._close_index()
        finally:
            self._handover.end()

    def _serve(self) -> None:
        """Write until there is an end, whatever is raised."""
        failure: BaseException | None = None
        opened = last = False
        while not last:
            try:
                if failure is not None:
                    self._rest(failure)
                    failure = None
                elif not opened:
                    opened = True
                    self._step(Batch())
                else:
                    last = self._turn()
            except BaseException as error:  # noqa: BLE001 - handled in the next round, which may find no memory either
                failure = error

    def _turn(self) -> bool:
        """Take a batch and write it; return whether it was the last."""
        batch = self._handover.take(more_work=bool(self._to_sweep) and self.health.usable())
        self._step(batch)
        return batch.last

    def _rest(self, error: BaseException) -> None:
        """Turn writing off for what was raised outside of writing, and pause."""
        try:
            self._fail(error)
        finally:
            time.sleep(_PAUSE)

    def _step(self, batch: Batch) -> None:
        if not self.health.usable() or self._handover.overdue():
            return
        try:
            folder, index = self._ready()
            self._note(index, batch)
            self._store(folder, index, batch.blocks)
            if self._to_sweep and not batch.blocks:
                sweep_shard(folder, index, self._to_sweep[0], self._wall())
                self._to_sweep.popleft()
            self.health.works()
        except Exception as error:  # noqa: BLE001 - a bug here must end neither the thread nor a reader
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Turn writing off, and let go of the index."""
        if isinstance(error, ConfigError):
            reason = error.message
        elif isinstance(error, OSError):
            reason = f"{self._cache_dir}: {error.strerror or error}"
        elif isinstance(error, sqlite3.Error):
            reason = f"the index of {self._cache_dir}: {error}"
        elif isinstance(error, MemoryError):
            reason = "there is no memory for it"
        else:
            reason = f"unexpected {type(error).__name__}, see the log"
            logger.error("the block cache failed", exc_info=error)
        self.health.failed(reason)
        self._close_index()

    def _ready(self) -> tuple[Folder, BlockIndex]:
        folder = self.folder
        try:
            if folder is None or folder.gone():
                self._close_index()
                self.folder = folder = open_folder(self._cache_dir)
            else:
                folder.check()
        except ConfigError:
            self.folder = None  # blocks may be another's: nothing is read, either
            raise
        if self._index is not None and self._index.replaced:
            self._close_index()
        if self._index is None:
            self._index = open_index(folder)
            if not self._index.ready:
                adopt(folder, self._index)
            elif not self._swept:
                self._to_sweep.extend(range(len(SHARDS)))
            self._swept = True
        return folder, self._index

    def _close_index(self) -> None:
        index, self._index = self._index, None
        if index is not None:
            with contextlib.suppress(sqlite3.Error):
                index.close()

    def _note(self, index: BlockIndex, batch: Batch) -> None:
        for start in range(0, len(batch.gone), _ROWS_AT_ONCE):
            gone = batch.gone[start : start + _ROWS_AT_ONCE]
            index.run(lambda gone=gone: index.forget_missing(gone, self._wall()))  # type: ignore[misc]  # mypy can't infer a lambda with a default
        for start in range(0, len(batch.uses), _ROWS_AT_ONCE):
            uses = batch.uses[start : start + _ROWS_AT_ONCE]
            index.run(lambda uses=uses: index.touch(uses))  # type: ignore[misc]  # as above

    def _store(self, folder: Folder, index: BlockIndex, blocks: deque[tuple[BlockKey, memoryview]]) -> None:
        """Write blocks, taking them from the deque as they are done; what isn't released is dropped with the next batch."""
        offered: dict[str, _Block] = {}
        while blocks:
            key, data = blocks.popleft()
            block = _Block(key, data, block_name(key), room.charge(header_length(key, identity(key)) + key.length))
            del data
            if block.name in offered:
                self._handover.release(key.length, written=False)
            else:
                offered[block.name] = block
        written: list[str] = []
        reserved = False
        try:
            wanted = index.run(lambda: self._reserve(folder, index, list(offered.values())))
            reserved = True
            for name in offered.keys() - wanted:
                self._handover.release(offered.pop(name).key.length, written=False)
            while offered and not self._handover.overdue():
                name = next(iter(offered))
                block = offered[name]
                done = folder.write(name, pieces(block.key, block.data), self._wall())
                del block, offered[name]
                if done:
                    written.append(name)
                self._handover.release(_length(name), written=done)
        finally:
            # What the disk failed to hold, or there was no time for, is taken back.
            for name in offered:
                self._handover.release(_length(name), written=False)
            if offered and reserved:
                with contextlib.suppress(sqlite3.Error):
                    index.run(lambda: index.forget_missing(offered, self._wall()))
        if written:
            index.run(lambda: index.drop_unknown(written))

    def _reserve(self, folder: Folder, index: BlockIndex, blocks: list[_Block]) -> set[str]:
        """Make room, add the rows of what fits, and return the names to write; within a transaction."""
        blocks = [block for block in blocks if self._wanted(folder, index, block.name)]
        used = index.used() + room.overhead(index.file_size(), len(blocks))
        promised = index.promised(self._wall())  # before the space is looked at: a file that comes in between counts twice, not never
        free, total = self._space(folder)
        new = sum(block.cost for block in blocks)
        bounds = {"limit": self._limits.size, "used": used, "free": free - promised, "floor": self._limits.min_free.of(total)}
        largest = max(0, self._limits.size - used + index.used())
        while blocks and new > largest:  # not even an empty cache would hold them
            new -= blocks.pop().cost
        wanted = room.to_evict(new=new, **bounds)
        freed, gone = index.evict(wanted, self._wall()) if wanted else (0, 0)
        lacking = wanted - freed
        while blocks and lacking > 0:
            cost = blocks.pop().cost
            lacking -= cost
        for block in blocks:
            index.promise(block.name, block.cost, self._wall())
        self._handover.looked(index.used(), gone)
        return {block.name for block in blocks}

    def _wanted(self, folder: Folder, index: BlockIndex, name: str) -> bool:
        if not index.has(name):
            return True
        return folder.stat(name) is None and not folder.is_in_flight(name, self._wall())

    def _space(self, folder: Folder) -> tuple[int, int]:
        if self._limits.statvfs is not None:
            return self._limits.statvfs(folder)
        found = folder.statvfs()
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def _length(name: str) -> int:
    return int(name.rpartition("-")[2])
