"""Nodes in the state: which sets of validators reign when, and who may connect to follow.

    "validator_sets"                    -> (format, count)
    "validator_set/" + index (4 bytes)  -> (format, height, ((institution, key, certificate), ...))
    "observers"                         -> (format, count)
    "observer/" + key (32)              -> (format, institution, certificate)

Set 0 is that of the genesis. Set i reigns from its height until the height of set i + 1 begins; the
heights ascend, and no row of a set is ever changed: whoever has seen a set has seen it for good. A
change executed at height h reigns from h + CHANGE_DELAY, which is beyond every height that
consensus may work on meanwhile, and is planned only when no other change is.

One index row for each observer, with the bytes of its state row, so that a node can list them:

    node_observer (key)                 -> as "observer/" + key
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from consensus.errors import require
from consensus.validators import Validator, ValidatorSet
from consensus.wire import NotCanonical, pack, unpack
from node.ledger.accounts import Get, IndexRow
from node.ledger.genesis import Genesis, NodeIdentity
from node.ledger.state import StateView
from storage.errors import CorruptRecord

RECORD_FORMAT = 1
# Twice the window of consensus: every replica knows of a change before its window reaches it.
CHANGE_DELAY = 64
INDEX_OBSERVER = "node_observer"

Put: TypeAlias = Callable[[bytes, bytes], None]

_SETS_KEY = b"validator_sets"
_OBSERVERS_KEY = b"observers"


@dataclass(frozen=True, slots=True)
class PlannedSet:
    """The validators that reign from `height` on, in voting order."""

    height: int
    nodes: tuple[NodeIdentity, ...]

    def validator_set(self) -> ValidatorSet:
        """Return the same for consensus: without certificates, with the quorum."""
        return ValidatorSet(tuple(Validator(n.institution, n.public_key) for n in self.nodes))

    def node_of(self, institution: str) -> NodeIdentity | None:
        """Return the validator of `institution`, or None if it has none in this set."""
        return next((node for node in self.nodes if node.institution == institution), None)


def genesis_rows(genesis: Genesis) -> dict[bytes, bytes]:
    """Return the rows of the state at height 0: set 0 and the observers."""
    rows = {
        observer_key(node.public_key): encode_observer(node.institution, node.certificate)
        for node in genesis.observers
    }
    rows[set_key(0)] = _encode_set(PlannedSet(0, genesis.validators))
    rows[_SETS_KEY] = _encode_count(1)
    rows[_OBSERVERS_KEY] = _encode_count(len(genesis.observers))
    return rows


def genesis_index(genesis: Genesis) -> list[IndexRow]:
    """Return the index rows at height 0: one for each observer."""
    return [
        (INDEX_OBSERVER, (node.public_key,), encode_observer(node.institution, node.certificate))
        for node in genesis.observers
    ]


def set_key(index: int) -> bytes:
    """Return the state key of set `index`."""
    return b"validator_set/" + index.to_bytes(4, "big")


def observer_key(public_key: bytes) -> bytes:
    """Return the state key of an observer; `public_key` has 32 bytes."""
    return b"observer/" + public_key


def set_count(get: Get) -> int:
    """Return how many sets there are, at least 1. Raises `CorruptRecord`."""
    return _count(get, _SETS_KEY)


def observer_count(get: Get) -> int:
    """Return how many observers there are. Raises `CorruptRecord`."""
    return _count(get, _OBSERVERS_KEY)


def planned_set(get: Get, index: int) -> PlannedSet:
    """Return set `index`, which must be below `set_count`. Raises `CorruptRecord`."""
    row = get(set_key(index))
    return decode_set(b"" if row is None else row)


def latest(get: Get) -> PlannedSet:
    """Return the set that was planned last, whether it reigns already or not."""
    return planned_set(get, set_count(get) - 1)


def reigning(get: Get, height: int) -> PlannedSet:
    """Return the set that orders and seals `height`, as far as the state has planned.

    For the height that is executed, at most two rows are read: one change is planned at a time.
    """
    index = set_count(get) - 1
    while (planned := planned_set(get, index)).height > height:
        index -= 1
    return planned


def is_change_planned(get: Get, height: int) -> bool:
    """Return whether a set waits that does not reign yet at `height`."""
    return latest(get).height > height


def append(put: Put, get: Get, planned: PlannedSet) -> int:
    """Write `planned` as the next set and return its index; its height must be above the last's."""
    count = set_count(get)
    require(
        planned.height > planned_set(get, count - 1).height,
        "a validator set must begin after the one planned before it",
    )
    planned.validator_set()  # a set that consensus cannot use must not get into the state
    put(set_key(count), _encode_set(planned))
    put(_SETS_KEY, _encode_count(count + 1))
    return count


def observer(get: Get, public_key: bytes) -> NodeIdentity | None:
    """Return the observer with this key, or None. Raises `CorruptRecord`."""
    row = get(observer_key(public_key))
    return None if row is None else decode_observer(public_key, row)


def add_observer(state: StateView, node: NodeIdentity) -> None:
    """Write a new observer, with its index row; how many there may be is the caller's rule."""
    key = observer_key(node.public_key)
    require(state.get(key) is None, "an observer is added once")
    row = encode_observer(node.institution, node.certificate)
    state.put(key, row)
    state.put(_OBSERVERS_KEY, _encode_count(observer_count(state.get) + 1))
    state.index(INDEX_OBSERVER, (node.public_key,), row)


def remove_observer(state: StateView, public_key: bytes) -> None:
    """Remove an observer, which must be there."""
    key = observer_key(public_key)
    require(state.get(key) is not None, "only an observer can be removed")
    state.delete(key)
    state.put(_OBSERVERS_KEY, _encode_count(observer_count(state.get) - 1))
    state.index(INDEX_OBSERVER, (public_key,), None)


def encode_observer(institution: str, certificate: bytes) -> bytes:
    """Return the row of an observer, in the state and in the index."""
    return pack((RECORD_FORMAT, institution, certificate))


def decode_observer(public_key: bytes, row: bytes) -> NodeIdentity:
    """Return the observer that a row of the state or the index describes.

    Raises `CorruptRecord`.
    """
    match _unpack(row):
        case (1, str(institution), bytes(certificate)):
            return NodeIdentity(institution, public_key, certificate)
    raise CorruptRecord("the state holds an observer record that cannot be read")


# Every vote of governance and every block asks, and there are few sets.
@lru_cache(maxsize=16)
def decode_set(row: bytes) -> PlannedSet:
    """Return the stored set. Raises `CorruptRecord`."""
    match _unpack(row):
        case (1, int(height), tuple(rows)) if type(height) is int and height >= 0 and rows:
            return PlannedSet(height, tuple([_decode_node(node) for node in rows]))
    raise CorruptRecord("the state holds a validator set that cannot be read")


def _decode_node(row: object) -> NodeIdentity:
    match row:
        case (str(institution), bytes(public_key), bytes(certificate)):
            return NodeIdentity(institution, public_key, certificate)
    raise CorruptRecord("the state holds a validator set that cannot be read")


def _encode_set(planned: PlannedSet) -> bytes:
    return pack((RECORD_FORMAT, planned.height, _node_rows(planned.nodes)))


def _node_rows(nodes: Sequence[NodeIdentity]) -> tuple[tuple[str, bytes, bytes], ...]:
    return tuple((node.institution, node.public_key, node.certificate) for node in nodes)


def _encode_count(count: int) -> bytes:
    return pack((RECORD_FORMAT, count))


def _count(get: Get, key: bytes) -> int:
    row = get(key)
    match None if row is None else _unpack(row):
        case (1, int(count)) if type(count) is int and count >= 0:
            return count
    raise CorruptRecord(f"the state holds no readable number of {key.decode()}")


def _unpack(row: bytes) -> object:
    try:
        return unpack(row)
    except NotCanonical as error:
        raise CorruptRecord("the state holds a membership record that cannot be read") from error
