"""The in-memory twin of the database: same behaviour, nothing durable. For tests and simulation."""

import threading
from bisect import bisect_left
from collections.abc import Iterator

from storage.kv import WriteBatch


class MemoryStore:
    """A `KeyValueStore` in a dict. Safe to call from several threads.

    A scan or snapshot holds on to the rows of its moment, and sorts their keys; the next write
    then copies the rows first, once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[bytes, bytes] = {}
        self._sorted: list[bytes] | None = []  # the keys of `_rows`, or None after a write
        self._is_shared = False  # a scan or snapshot holds on to `_rows`
        self._is_closed = False

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None."""
        with self._lock:
            self.check_open()
            return self._rows.get(key)

    def iterate(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) with start <= key < stop as they are at the time of this call."""
        return self.snapshot().iterate(start, stop, reverse=reverse)

    def write(self, batch: WriteBatch, *, sync: bool) -> None:
        """Apply `batch` atomically. Nothing here outlives the process, with `sync` or without."""
        with self._lock:
            self.check_open()
            if self._is_shared:
                self._rows = self._rows.copy()
                self._is_shared = False
            for key, value in batch.operations:
                if value is None:
                    self._rows.pop(key, None)
                else:
                    self._rows[key] = value
            self._sorted = None

    def snapshot(self) -> "MemorySnapshot":
        """Return a view that later writes do not change."""
        with self._lock:
            self.check_open()
            if self._sorted is None:
                self._sorted = sorted(self._rows)
            self._is_shared = True
            return MemorySnapshot(self, self._rows, self._sorted)

    def close(self) -> None:
        """Close the database; a second call does nothing."""
        with self._lock:
            self._is_closed = True

    def check_open(self) -> None:
        """Raise ValueError after `close`."""
        if self._is_closed:
            raise ValueError("the database is closed")


class MemorySnapshot:
    """The rows of one moment. Nothing ever changes them."""

    def __init__(self, store: MemoryStore, rows: dict[bytes, bytes], keys: list[bytes]) -> None:
        self._store = store
        self._rows = rows
        self._keys = keys
        self._is_closed = False

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None."""
        self._check_open()
        return self._rows.get(key)

    def iterate(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) with start <= key < stop, ascending, or descending if `reverse`."""
        self._check_open()
        found = range(bisect_left(self._keys, start), bisect_left(self._keys, stop))
        return self._pairs(found[::-1] if reverse else found)

    def close(self) -> None:
        """Let go of the moment; reading afterwards raises ValueError."""
        self._is_closed = True

    def _pairs(self, positions: range) -> Iterator[tuple[bytes, bytes]]:
        for position in positions:
            self._check_open()
            key = self._keys[position]
            yield key, self._rows[key]

    def _check_open(self) -> None:
        self._store.check_open()
        if self._is_closed:
            raise ValueError("the snapshot is closed")
