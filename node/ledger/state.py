"""A block's changes on top of the state before it, undone transaction by transaction.

Reads come from the overlay, else from the state of the block before, which is read once per key.
Every write leaves an undo entry, so a savepoint costs nothing and a rollback what it undoes. After
each transaction `settle` drops them: a block that rewrites one large row a thousand times holds it
once.
"""

from collections.abc import Callable

from consensus.errors import require

_ABSENT = object()


class StateView:
    """An overlay over `base(key) -> value | None`. Not safe to share between threads."""

    __slots__ = ("_base", "_changes", "_index", "_known", "_undo")

    def __init__(self, base: Callable[[bytes], bytes | None]) -> None:
        self._base = base
        self._known: dict[bytes, bytes | None] = {}
        self._changes: dict[bytes, bytes | None] = {}
        self._undo: list[tuple[bytes, object]] = []
        self._index: list[tuple[str, tuple[bytes, ...], bytes | None]] = []

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None."""
        value = self._changes.get(key, _ABSENT)
        if value is _ABSENT:
            value = self._known.get(key, _ABSENT)
            if value is _ABSENT:
                value = self._known[key] = self._base(key)
        return value  # type: ignore[return-value]

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key` to `value`."""
        self._undo.append((key, self._changes.get(key, _ABSENT)))
        self._changes[key] = value

    def delete(self, key: bytes) -> None:
        """Remove `key`; a key that is not there is no error."""
        self._undo.append((key, self._changes.get(key, _ABSENT)))
        self._changes[key] = None

    def index(self, name: str, parts: tuple[bytes, ...], value: bytes | None) -> None:
        """Set a row of a secondary index, or remove it with None."""
        self._index.append((name, parts, value))

    def checkpoint(self) -> tuple[int, int]:
        """Return a savepoint to roll back to. Savepoints nest; forgetting one is free."""
        return len(self._undo), len(self._index)

    def rollback(self, savepoint: tuple[int, int]) -> None:
        """Undo everything since `savepoint`, and with it every later savepoint."""
        writes, rows = savepoint
        require(
            writes <= len(self._undo) and rows <= len(self._index),
            "a savepoint that was already undone cannot be rolled back to",
        )
        while len(self._undo) > writes:
            key, before = self._undo.pop()
            if before is _ABSENT:
                del self._changes[key]
            else:
                self._changes[key] = before  # type: ignore[assignment]
        del self._index[rows:]

    def settle(self) -> None:
        """Let what was written stay for good; earlier savepoints are over."""
        self._undo.clear()

    def changes(self) -> dict[bytes, bytes | None]:
        """Return what differs from the state below: new values, and None for what is removed."""
        known = self._known
        base = self._base
        return {
            key: value
            for key, value in self._changes.items()
            if value != (known[key] if key in known else base(key))
        }

    def index_changes(self) -> list[tuple[str, tuple[bytes, ...], bytes | None]]:
        """Return the index rows to set or, where the value is None, to remove, in order."""
        return self._index
