"""The index of blocks: a diskcache whose values are plain files, written and read by `folder`.

A row's key and file name are the block's name, its size is what the block costs on the disk (`room.charge`). diskcache brings the schema,
its counters kept by triggers, least-recently-used order and transactions. It is told to do neither of what it is slow or unsafe at:

- `BlockDisk` never pickles nor unpickles (CVE-2025-69872), and touches no file.
- Its own culling is off (`cull_limit=0`): it culls after storing, by count. `evict` makes room before.
- Statistics are off, and nothing is looked up here on the reading path: a block's name is enough to open it, so a busy, locked or damaged
  index never slows or fails a read, and reads take no transaction.

Rules:
- Rows come before files and go after them, so that the rows' sum is never less than what lies on the disk; evicted files are removed
  inside the transaction that removes their rows. A row whose file is yet to come isn't evicted: its room is promised; nor is one whose
  file is immutable. A row is forgotten only where its file is missing: another process may have written it anew.
- `expire_time` is when a promise ends, NULL once the file has come. It saves `promised` from looking for every file; whether a file is there
  decides.
- No WAL and no memory map: with either, somebody who cuts the file kills the process (SIGBUS).
- Nothing is synced: a cache may lose its index when the machine stops. It is checked when opened, its counters are counted anew, and rows
  that aren't ours are dropped. What is damaged is made anew, and the files are taken in again by their names.
- SQLite's own wait is short and repeated with jitter: its back-off starves writers.

Threads: an instance belongs to the thread that made it.
"""

import contextlib
import os
import random
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

import diskcache

from optfs.cache.blockfile import SHARDS, parse_name
from optfs.cache.folder import IN_FLIGHT, INDEX, Folder
from optfs.errors import ConfigError

T = TypeVar("T")

BUSY_LIMIT = 5.0
"""Seconds that a transaction is tried for while other processes hold the index."""

_BUSY_WAIT = 0.05
_BINARY = 2  # diskcache's mode of a value that is a file of bytes (diskcache.core.MODE_BINARY)
_READY = 1  # `user_version` of an index that knows every file
_VICTIMS = 64
_SETTINGS = {
    "eviction_policy": "least-recently-used",
    "statistics": 0,
    "cull_limit": 0,
    "size_limit": 1 << 62,
    "sqlite_auto_vacuum": 1,
    "sqlite_cache_size": 512,  # pages of 4 KiB
    "sqlite_journal_mode": "delete",
    "sqlite_mmap_size": 0,
    "sqlite_synchronous": 0,
    "disk_min_file_size": 0,
    "disk_pickle_protocol": 0,
}
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_SCHEMA}


class BlockDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types, so its classes are Any
    """How diskcache turns keys and values into rows: block names as they are, values as their size."""

    def put(self, key: object) -> tuple[str, bool]:
        """Return the row's key; only a block's name is one."""
        if not isinstance(key, str):
            _refuse()
        return key, True

    def get(self, key: object, raw: object) -> str:
        """Return the key of a row; a pickled one is refused."""
        if not isinstance(key, str) or not raw:
            _refuse()
        return key

    def store(self, value: object, read: object, key: object = None) -> tuple[int, int, str, None]:
        """Return the row of a block that costs `value` bytes."""
        if not isinstance(value, int) or not isinstance(key, str) or read:
            _refuse()
        return value, _BINARY, key, None

    def fetch(self, *row: object) -> NoReturn:
        """Refuse: blocks are read by their names, and nothing is ever loaded from a row."""
        del row
        _refuse()

    def remove(self, file_path: object) -> None:
        """Do nothing: files go before their rows (`BlockIndex.evict`)."""


class BlockIndex(diskcache.Cache):  # type: ignore[misc]  # diskcache has no types, so its classes are Any
    """An open index. Its methods raise sqlite3.Error; `is_damage` and `is_busy` tell what kind."""

    def __init__(self, folder: Folder) -> None:
        """Open the index, made where it is missing; `open_index` is the way to make one."""
        self._folder = folder
        self._inode: int | None = None
        try:
            super().__init__(str(folder.path), timeout=_BUSY_WAIT, disk=BlockDisk, **_SETTINGS)
            self._inode = _inode(folder)
        except BaseException as error:
            with contextlib.suppress(Exception):
                self.close()
            if isinstance(error, TypeError | ValueError):  # rows that diskcache can't make sense of
                raise sqlite3.DatabaseError("the index is damaged") from error
            raise

    @property
    def replaced(self) -> bool:
        """Whether the file was removed or replaced since it was opened."""
        return _inode(self._folder) != self._inode

    @property
    def ready(self) -> bool:
        """Whether the index knows every file; a new one doesn't before `set_ready`."""
        return bool(self._one("PRAGMA user_version") == _READY)

    def set_ready(self) -> None:
        """Tell that the index knows every file."""
        self._sql(f"PRAGMA user_version = {_READY}").fetchall()

    def run(self, job: Callable[[], T]) -> T:
        """Run `job` in a write transaction, and return what it returns; try for `BUSY_LIMIT` seconds while others hold the index.

        `job` may run more than once.

        Raises:
            sqlite3.Error: busy for too long, damaged, or the disk fails. Nothing was changed, but files that the job removed are gone.

        """
        until = time.monotonic() + BUSY_LIMIT
        while True:
            try:
                with self.transact():
                    return job()
            except (diskcache.Timeout, sqlite3.OperationalError) as error:
                # The cause is the context of diskcache's Timeout, which it makes of every failure to begin, and of the failure to roll
                # back what SQLite has rolled back by itself.
                cause = error.__context__ if isinstance(error.__context__, sqlite3.Error) else error
                if self._con.in_transaction:  # a COMMIT that failed leaves it open
                    self._sql("ROLLBACK")
                if not isinstance(cause, sqlite3.Error):
                    raise
                if not is_busy(cause) or time.monotonic() > until:
                    raise cause from None
            except (TypeError, ValueError) as error:  # a row or a total of the wrong kind
                raise sqlite3.DatabaseError("the index is damaged") from error
            time.sleep(random.uniform(0.001, 0.02))  # noqa: S311 - jitter, not a secret

    def used(self) -> int:
        """Return what all blocks cost, bytes."""
        return int(self._one("SELECT value FROM Settings WHERE key = 'size'"))

    def rows(self) -> int:
        """Return how many blocks there are."""
        return int(self._one("SELECT value FROM Settings WHERE key = 'count'"))

    def file_size(self) -> int:
        """Return the size of the index's own file, bytes."""
        return int(self._one("PRAGMA page_count")) * int(self._one("PRAGMA page_size"))

    def has(self, name: str) -> bool:
        """Tell whether there is a row for a block."""
        return self._sql("SELECT 1 FROM Cache WHERE key = ? AND raw = 1", (name,)).fetchone() is not None

    def add(self, name: str, cost: int, at: float) -> None:
        """Add or replace the row of a block stored and last used `at`, seconds since the epoch; within `run`."""
        self._add(name, cost, at, None)

    def promise(self, name: str, cost: int, at: float) -> None:
        """Add or replace the row of a block whose file is yet to come; as `add` else."""
        self._add(name, cost, at, at + IN_FLIGHT)

    def promised(self, now: float) -> int:
        """Return what blocks whose files are yet to come will cost, bytes; within `run`. `now`: seconds since the epoch."""
        rows = self._sql("SELECT key, size FROM Cache WHERE expire_time BETWEEN ? AND ?", (now, now + 2 * IN_FLIGHT))
        return sum(size for name, size in rows if parse_name(name) and self._folder.stat(name) is None)

    def touch(self, uses: Iterable[tuple[str, float]]) -> None:
        """Set when blocks were used last, seconds since the epoch; within `run`."""
        self._con.executemany("UPDATE Cache SET access_time = ? WHERE key = ? AND raw = 1", [(at, name) for name, at in uses])

    def remove(self, names: Iterable[str]) -> None:
        """Remove rows; within `run`."""
        self._con.executemany("DELETE FROM Cache WHERE key = ? AND raw = 1", [(name,) for name in names])

    def forget(self) -> None:
        """Remove all rows; within `run`."""
        self._sql("DELETE FROM Cache")

    def forget_missing(self, names: Iterable[str], now: float) -> None:
        """Remove rows of blocks that have no file, and that nobody is writing `now` (seconds since the epoch); within `run`."""
        self.remove([name for name in names if self._folder.stat(name) is None and not self._folder.is_in_flight(name, now)])

    def drop_unknown(self, names: Iterable[str]) -> None:
        """Remove those of the files just written that have no row, and note that the others have come; within `run`."""
        for name in names:
            if self.has(name):
                self._sql("UPDATE Cache SET expire_time = NULL WHERE key = ? AND raw = 1", (name,))
            else:
                self._folder.unlink(name)

    def evict(self, wanted: int, now: float) -> tuple[int, int]:
        """Remove the least recently used blocks until `wanted` bytes are free, or none is left; within `run`. `now`: seconds since the epoch.

        Returns:
            How many bytes were freed, and how many blocks went.

        Raises:
            OSError: the disk fails.

        """
        freed = gone = passed = 0
        while freed < wanted:
            # Those that are passed over stay the first in this order.
            query = "SELECT rowid, key, size, store_time FROM Cache ORDER BY access_time, rowid LIMIT ? OFFSET ?"
            victims = self._sql(query, (_VICTIMS, passed)).fetchall()
            if not victims:
                break
            for rowid, name, size, stored in victims:
                if parse_name(name) and self._stays(name, promised=abs(now - stored) <= IN_FLIGHT):
                    passed += 1
                    continue
                self._sql("DELETE FROM Cache WHERE rowid = ?", (rowid,))
                freed += size
                gone += 1
                if freed >= wanted:
                    break
        return freed, gone

    def shard_rows(self, shard: int) -> list[tuple[str, float]]:
        """Return the name and the time of storing (seconds since the epoch) of every block of a shard."""
        low = SHARDS[shard]
        return list(self._sql("SELECT key, store_time FROM Cache WHERE key >= ? AND key < ?", (low, chr(ord(low) + 1))))

    def repair(self) -> None:
        """Drop rows that aren't ours, and count what is left, rather than trust the counters; within `run`."""
        foreign = [
            (rowid,) for rowid, name in self._sql("SELECT rowid, key FROM Cache") if not isinstance(name, str) or not parse_name(name)
        ]
        self._con.executemany("DELETE FROM Cache WHERE rowid = ?", foreign)
        wrong = self._sql(
            "DELETE FROM Cache WHERE raw IS NOT 1 OR mode IS NOT ? OR typeof(size) != 'integer' OR size <= 0"
            " OR typeof(access_time) != 'real' OR typeof(store_time) != 'real'",
            (_BINARY,),
        )
        self._sql("UPDATE Settings SET value = (SELECT COALESCE(SUM(size), 0) FROM Cache) WHERE key = 'size'")
        self._sql("UPDATE Settings SET value = (SELECT COUNT(*) FROM Cache) WHERE key = 'count'")
        if foreign or wrong.rowcount or not self.rows():  # new, or rows lost by damage: there may be files all the same
            self._sql("PRAGMA user_version = 0").fetchall()

    def _stays(self, name: str, *, promised: bool) -> bool:
        """Remove a block's file; return whether its row must stay: the file is immutable, or is yet to come."""
        try:
            return not self._folder.unlink(name) and promised
        except PermissionError:
            return True

    def _add(self, name: str, cost: int, at: float, promised_until: float | None) -> None:
        self.set(name, cost)
        self._sql(
            "UPDATE Cache SET store_time = ?, access_time = ?, expire_time = ? WHERE key = ? AND raw = 1", (at, at, promised_until, name)
        )

    def _one(self, statement: str) -> Any:
        return self._sql(statement).fetchone()[0]


def open_index(folder: Folder) -> BlockIndex:
    """Open the index, checked; a damaged one is replaced by a new one, which isn't `ready`.

    Raises:
        sqlite3.Error: busy for too long, or the disk fails.
        OSError: the disk fails.
        ConfigError: the folder's name can't be handed to diskcache.

    """
    if os.path.expandvars(folder.path) != str(folder.path):
        # diskcache would expand it, and use another folder.
        raise ConfigError(f"the cache folder's name holds a variable ({folder.path}): choose another --cache-dir")
    inode = _prepare(folder)
    try:
        _probe(folder)
        return _repaired(BlockIndex(folder))
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
    if _inode(folder) == inode:  # else another process has made a new one
        remove_index(folder)
    _prepare(folder)
    return BlockIndex(folder)


def _repaired(index: BlockIndex) -> BlockIndex:
    try:
        index.run(index.repair)
    except BaseException:
        index.close()
        raise
    return index


def remove_index(folder: Folder) -> None:
    """Remove the index's files.

    Raises:
        OSError: the disk fails.

    """
    for suffix in ("", "-journal", "-wal", "-shm"):
        folder.unlink_beside(INDEX + suffix)


def is_busy(error: sqlite3.Error) -> bool:
    """Tell whether another connection holds the index."""
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def is_damage(error: sqlite3.Error) -> bool:
    """Tell whether the index itself is broken, rather than held by others or on a failing disk."""
    code = _code(error)
    return code is None or code in _DAMAGE


def _code(error: sqlite3.Error) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)  # missing where Python's own checks raised: of text that isn't UTF-8, say
    return code & 0xFF if isinstance(code, int) else None


def _prepare(folder: Folder) -> int:
    """Make sure that SQLite meets files alone, no links, and makes none that others may read; return the file's inode."""
    for name in (INDEX, INDEX + "-journal", INDEX + "-wal", INDEX + "-shm"):
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_mode):
                folder.unlink_beside(name)
    fd = os.open(INDEX, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder.fd)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def _probe(folder: Folder) -> None:
    """Check the index with waits that are bounded, unlike those of diskcache's own opening."""
    connection = sqlite3.connect(folder.path / INDEX, timeout=1.0, isolation_level=None)
    try:
        connection.execute("PRAGMA mmap_size = 0").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        found = connection.execute("PRAGMA quick_check(1)").fetchone()
        connection.execute("ROLLBACK")
    finally:
        connection.close()
    if found != ("ok",):
        raise sqlite3.DatabaseError("the index is damaged")


def _inode(folder: Folder) -> int | None:
    try:
        return os.stat(INDEX, dir_fd=folder.fd, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


def _refuse() -> NoReturn:
    raise OSError("the row isn't a block's")
