"""The database on disk: LevelDB through plyvel, which is imported here only.

Opening changes nothing unless it succeeds. LevelDB writes as soon as it opens (a new MANIFEST, the
log turned into a table, files removed that it thinks are stale), so a damaged database is first
opened in a rehearsal: CURRENT, MANIFEST and logs are copied, the tables, which LevelDB never
modifies, are linked, and what goes wrong there is what would have gone wrong here. Damage inside a
table is found when the block is read: every read verifies checksums and raises `CorruptRecord`.
"""

import functools
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import plyvel

from storage.errors import CorruptRecord, StorageError
from storage.folder import RESTORE, DatabaseFolder, lock_folder, locked, unusable
from storage.kv import WriteBatch
from storage.log_damage import hidden_damage

CACHE_BYTES = 32 * 1024 * 1024  # uncompressed blocks of tables
WRITE_BUFFER_BYTES = 32 * 1024 * 1024  # at most two are in memory; also what an opening replays
TABLE_BYTES = 8 * 1024 * 1024
OPEN_FILES_MAX = 500  # half of the usual limit of a process, the rest is for connections
BLOOM_BITS_PER_KEY = 10

_ROWS_FIRST, _ROWS_AT_ONCE = 8, 64  # that a scan takes from LevelDB in one call

# What LevelDB calls a file that is gone, one that is too short, and a CURRENT that is gone.
_DAMAGE = ("No such file", "Invalid argument", "does not exist")

P = ParamSpec("P")
T = TypeVar("T")


class LevelDbStore:
    """A `KeyValueStore` on disk. Safe to call from several threads; calls let go of the GIL.

    Methods raise `CorruptRecord` for damage met on the way, `StorageError` for what the disk
    refuses, and ValueError after `close`. After a failed write LevelDB refuses all further ones
    until the database is opened again.
    """

    def __init__(self, database: Any, folder: DatabaseFolder) -> None:
        self._database = database
        self._folder = folder
        self._get = functools.partial(database.get, verify_checksums=True)
        # plyvel frees memory in `close` that calls of other threads still use, so close waits for
        # them. Appending to and popping from a list are atomic and cost less than a lock.
        self._calls: list[None] = []
        self._is_closed = False

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None."""
        value: bytes | None = self.call(self._get, key)
        return value

    def iterate(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) with start <= key < stop as they are at the time of this call."""
        return self.scan(self._database, start, stop, reverse)

    def write(self, batch: WriteBatch, *, sync: bool) -> None:
        """Apply `batch` atomically. With `sync` it is durable when this returns."""
        self.call(self._write, batch, sync)

    def snapshot(self) -> "LevelDbSnapshot":
        """Return a view that later writes do not change. Close it, it keeps old rows on disk."""
        return LevelDbSnapshot(self, self.call(self._database.snapshot))

    def close(self) -> None:
        """Close the database once calls under way have ended; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        while self._calls:
            time.sleep(0.001)
        self._database.close()
        self._folder.release()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a function of plyvel returns, its errors translated."""
        self._calls.append(None)
        try:
            self._check_open()
            return function(*args, **kwargs)
        except plyvel.Error as error:
            raise _translated(error, self._folder.path, self._folder.database) from error
        finally:
            self._calls.pop()

    def scan(
        self, source: Any, start: bytes, stop: bytes, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        """Return rows of a plyvel database or snapshot, as they are at the time of this call."""
        rows = self.call(
            source.iterator, start=start, stop=stop, reverse=reverse, verify_checksums=True
        )
        return self._pull(rows)

    def _pull(self, rows: Any) -> Iterator[tuple[bytes, bytes]]:
        try:
            count = _ROWS_FIRST
            while batch := self.call(_take, rows, count):
                for row in batch:
                    self._check_open()
                    yield row
                count = _ROWS_AT_ONCE
        finally:
            # Not through `call`: a scan that is dropped after `close` must not raise.
            rows.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("the database is closed")

    def _write(self, batch: WriteBatch, sync: bool) -> None:
        rows = self._database.write_batch(sync=sync)
        put, delete = rows.put, rows.delete
        for key, value in batch.operations:
            if value is None:
                delete(key)
            else:
                put(key, value)
        rows.write()


class LevelDbSnapshot:
    """A consistent view of one moment, for one thread at a time."""

    def __init__(self, store: LevelDbStore, snapshot: Any) -> None:
        self._store = store
        self._snapshot = snapshot
        self._get = functools.partial(snapshot.get, verify_checksums=True)
        self._is_closed = False

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None."""
        self._check_open()
        value: bytes | None = self._store.call(self._get, key)
        return value

    def iterate(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) with start <= key < stop, ascending, or descending if `reverse`."""
        self._check_open()
        rows = self._store.scan(self._snapshot, start, stop, reverse)
        return self._while_open(rows)

    def close(self) -> None:
        """Let go of the moment; reading afterwards raises ValueError."""
        if not self._is_closed:
            self._is_closed = True
            self._snapshot.close()

    def _while_open(self, rows: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for row in rows:
            self._check_open()
            yield row

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("the snapshot is closed")


def open_leveldb(
    path: Path, *, cache_bytes: int = CACHE_BYTES, create: bool = True
) -> LevelDbStore:
    """Return the database in the folder `path`, made anew if `create` and there is none.

    Raises `DatabaseLocked`, `DatabaseTooNew`, `CorruptRecord` for a damaged one, and `StorageError`
    for a folder that is missing, not ours or not permitted. The sentence says what, where and what
    to do, and nothing in the folder was changed.
    """
    folder = lock_folder(path, create=create)
    try:
        if not folder.is_complete():
            if not create:
                raise StorageError(
                    f"There is no database in '{path}'. Name another folder, or create one first."
                )
            _create(folder)
        folder.finish_creation()
        folder.remove(folder.rehearsal)
        try:
            _rehearse(folder)
            folder.check_database()
        finally:
            folder.remove(folder.rehearsal)
        return LevelDbStore(_open(folder, folder.database, cache_bytes=cache_bytes), folder)
    except OSError as error:
        folder.release()
        raise unusable(path, error) from error
    except BaseException:
        folder.release()
        raise


def _take(rows: Any, count: int) -> list[tuple[bytes, bytes]]:
    return list(itertools.islice(rows, count))


def _create(folder: DatabaseFolder) -> None:
    folder.remove(folder.creating)
    folder.creating.mkdir(mode=0o700)
    _open(folder, folder.creating, create=True).close()


def _rehearse(folder: DatabaseFolder) -> None:
    """Raise what opening the database would raise, without touching it."""
    folder.rehearsal.mkdir(mode=0o700)
    for source in folder.database.iterdir():
        target = folder.rehearsal / source.name
        if source.suffix in (".ldb", ".sst"):
            target.symlink_to(source.absolute())
        elif source.suffix == ".log" or source.name.startswith("MANIFEST-"):
            data = source.read_bytes()
            damage = hidden_damage(data)
            if damage is not None:
                raise _damaged(folder.path, f"{source.name}: {damage}")
            target.write_bytes(data)
        elif source.name == "CURRENT":
            shutil.copyfile(source, target)
    _open(folder, folder.rehearsal).close()


def _open(
    folder: DatabaseFolder, where: Path, *, create: bool = False, cache_bytes: int = 0
) -> Any:
    try:
        return plyvel.DB(
            os.fspath(where),
            create_if_missing=create,
            error_if_exists=create,
            paranoid_checks=True,
            lru_cache_size=cache_bytes,
            write_buffer_size=WRITE_BUFFER_BYTES,
            max_file_size=TABLE_BYTES,
            max_open_files=OPEN_FILES_MAX,
            bloom_filter_bits=BLOOM_BITS_PER_KEY,
            # Most rows are hashes, keys and signatures, which Snappy tries in vain to make smaller.
            compression=None,
        )
    except plyvel.Error as error:
        raise _translated(error, folder.path, where) from error


def _translated(error: Exception, path: Path, where: Path) -> StorageError:
    """Return the error of this room; the sentence names the folder as the operator gave it."""
    words = error.args[0] if error.args else ""
    reason = words.decode(errors="replace") if isinstance(words, bytes) else str(words)
    reason = reason.replace(f"{where}{os.sep}", "").replace(str(where), "the database")
    if reason.startswith("IO error: lock "):
        return locked(path)
    if isinstance(error, plyvel.CorruptionError) or any(sign in reason for sign in _DAMAGE):
        return _damaged(path, reason)
    return StorageError(
        f"The database in '{path}' cannot be used: {reason}. "
        "Check its disk, its free space and its permissions, then start the node again."
    )


def _damaged(path: Path, reason: str) -> CorruptRecord:
    return CorruptRecord(f"The database in '{path}' is damaged ({reason}). {RESTORE}.")
