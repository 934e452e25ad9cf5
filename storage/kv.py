"""The narrow ordered key-value interface that everything durable goes through."""

from collections.abc import Iterator
from typing import Protocol


class WriteBatch:
    """Rows to be written together, all or none. A later operation on a key wins."""

    __slots__ = ("operations",)

    def __init__(self) -> None:
        self.operations: list[tuple[bytes, bytes | None]] = []

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key` to `value`."""
        self.operations.append((key, value))

    def delete(self, key: bytes) -> None:
        """Remove `key`; a key that is not there is no error."""
        self.operations.append((key, None))

    def extend(self, other: "WriteBatch") -> None:
        """Append all operations of `other`."""
        self.operations.extend(other.operations)


class Reader(Protocol):
    """Point reads and ordered scans. Keys order as unsigned bytes."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None."""
        ...

    def iterate(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) with start <= key < stop, ascending, or descending if `reverse`."""
        ...


class Snapshot(Reader, Protocol):
    """A consistent view of one moment."""

    def close(self) -> None:
        """Let go of the moment; reading afterwards raises ValueError."""
        ...


class KeyValueStore(Reader, Protocol):
    """A database. Safe to call from several threads; a call may wait for the disk."""

    def write(self, batch: WriteBatch, *, sync: bool) -> None:
        """Apply `batch` atomically. With `sync` it is durable when this returns."""
        ...

    def snapshot(self) -> Snapshot:
        """Return a view that later writes do not change."""
        ...

    def close(self) -> None:
        """Close the database; a second call does nothing."""
        ...
