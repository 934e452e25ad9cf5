"""What a contract is: named operations, who may send them, their form, and what they do.

A contract is deterministic. It reads its arguments, the context's height, time, sender and state,
and nothing else. Its checks come before its writes, and it refuses by raising `Rejected`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from consensus.wire import Value
from node.ledger.block import Event
from node.ledger.state import StateView

# (study id, ordinal, number of the event in its receipt): what happened to a study after it began.
INDEX_TRAIL = "study_trail"


@dataclass(frozen=True, slots=True)
class OperationKind:
    """One operation that transactions may carry."""

    name: str
    roles: frozenset[str]  # a sender needs one of these
    parse: Callable[[tuple[Value, ...]], Any]  # form only; raises Refused("operation_invalid")
    apply: Callable[["Context", Any], None]  # takes what `parse` returned; raises Rejected


class Context:
    """What one transaction's operations see of the world, and where they leave their effects."""

    __slots__ = (
        "chain_id",
        "events",
        "height",
        "institution",
        "member_key",
        "operation",
        "position",
        "roles",
        "state",
        "time_ms",
    )

    def __init__(
        self,
        state: StateView,
        height: int,
        time_ms: int,
        position: int,
        institution: str,
        member_key: bytes,
        roles: frozenset[str],
        chain_id: bytes = b"",
    ) -> None:
        self.state = state
        self.height = height
        self.time_ms = time_ms  # of the block, milliseconds since 1970
        self.position = position  # of the transaction in the block
        self.institution = institution
        self.member_key = member_key  # 32 bytes
        self.roles = roles
        self.chain_id = chain_id  # 32 bytes, for what is signed outside of transactions
        self.operation = 0  # index in the transaction; the executor moves it on
        self.events: list[Event] = []

    def emit(self, name: str, *fields: Value, about: bytes | None = None) -> None:
        """Record an event; it is kept only if the whole transaction succeeds.

        `about` is the study whose audit trail shows the event.
        """
        if about is not None:
            number = len(self.events)
            self.index(INDEX_TRAIL, (about, self.ordinal(), _sortable(number)))
        self.events.append(Event(name, self.operation, fields))

    def index(self, name: str, parts: tuple[bytes, ...], value: bytes = b"") -> None:
        """Set a row of a secondary index; indexes serve queries and are no part of the state."""
        self.state.index(name, parts, value)

    def unindex(self, name: str, parts: tuple[bytes, ...]) -> None:
        """Remove a row of a secondary index."""
        self.state.index(name, parts, None)

    def ordinal(self) -> bytes:
        """Return bytes unique to this operation, that order as the chain does."""
        return _sortable(self.height) + _sortable(self.position) + _sortable(self.operation)


def ordinal_floor(height: int) -> bytes:
    """Return bytes that order after every ordinal below `height` and before every one at it."""
    return _sortable(height)


def ordinal_height(ordinal: bytes) -> int:
    """Return the height that `ordinal` carries."""
    return int.from_bytes(ordinal[1 : ordinal[0] - 1], "big")


@lru_cache(maxsize=4096)
def _sortable(number: int) -> bytes:
    """Return a length and as few bytes as hold `number`, so that byte order is numeric order.

    The length counts from 2, because an index key spends two bytes on each 0 and 1.
    """
    length = (number.bit_length() + 7) >> 3
    return bytes((length + 2,)) + number.to_bytes(length, "big")
