"""One node of the state tree: sixteen slots and the small Merkle tree over them.

The root is defined without nodes. A key hash is a string of 128 digits of two bits, highest first.
Over the set of pairs (key hash, value hash), both SHA-256:

    root(set, depth) = 32 zero bytes                                   if the set is empty
                     = SHA-256(0x00 | key hash | value hash)           if it has one pair
                     = SHA-256(0x01 | root 0 | root 1 | root 2 | root 3)  otherwise, where root i is
                       root(pairs whose digit number `depth` is i, depth + 1)

A node packs two such levels, so that one row is read and written where one level per row would need
two. Position 0 is the top, 4i+1 to 4i+4 lie below i, 5..20 are the slots. The hash of a pair rises
unchanged as long as the pair is alone.

A slot is empty, or holds one pair, or the hash of a deeper node with at least two. What it holds
is called an entry: empty bytes; 96 bytes (key hash, value hash, leaf hash); or 32 bytes.

A row is 2 bytes with a bit per slot that holds a hash (slot 0 is the lowest bit), 2 bytes with a
bit per slot that holds a pair, then the slots in order: a hash as 32 bytes, a pair as 64.
"""

import struct
from collections.abc import Sequence
from hashlib import sha256

from storage.schema import damaged

EMPTY_HASH = bytes(32)
HASH_SIZE = 32
PAIR_SIZE = 64
LEAF_SIZE = 96
SLOTS = 16
ARITY = 4
DIGIT_BITS = 2

_MASKS = struct.Struct(">HH")
_FIRST_SLOT = (SLOTS - 1) // (ARITY - 1)  # the position of slot 0; below it lie the inner ones
_HEAP_BYTES = HASH_SIZE * (_FIRST_SLOT + SLOTS)
_ALL = (1 << SLOTS) - 1


def _way_up(position: int) -> tuple[int, ...]:
    """Return the positions above `position`, the top last."""
    above = []
    while position:
        position = (position - 1) // ARITY
        above.append(position)
    return tuple(above)


_ABOVE = tuple(_way_up(_FIRST_SLOT + slot) for slot in range(SLOTS))
_ABOVE_MASK = tuple(sum(1 << position for position in above) for above in _ABOVE)
_BELOW = tuple(  # for each position a mask of the slots in or below it
    sum(1 << s for s in range(SLOTS) if position in (_FIRST_SLOT + s, *_ABOVE[s]))
    for position in range(_FIRST_SLOT + SLOTS)
)

_LOW_SLOTS = tuple(tuple(s for s in range(8) if mask >> s & 1) for mask in range(256))
_HIGH_SLOTS = tuple(tuple(s + 8 for s in slots) for slots in _LOW_SLOTS)


def leaf(pair: bytes) -> bytes:
    """Return the entry of a pair: key hash and value hash, 64 bytes together."""
    return pair + sha256(b"\x00" + pair).digest()


def entry_hash(entry: bytes) -> bytes:
    """Return the 32 bytes by which `entry` goes into the hash above it."""
    return entry[-HASH_SIZE:] or EMPTY_HASH


class Node:
    """A decoded node. One bytes object per part: many small ones would miss the CPU's caches."""

    __slots__ = ("_body", "_hash_mask", "_heap", "_pair_mask")

    def __init__(self, heap: bytearray, body: bytearray, hash_mask: int, pair_mask: int) -> None:
        self._heap = heap  # the hash at every position, 32 bytes each
        self._body = body  # the slots as in the row
        self._hash_mask = hash_mask
        self._pair_mask = pair_mask

    def copy(self) -> "Node":
        """Return a node that may be changed while this one stays."""
        return Node(self._heap.copy(), self._body.copy(), self._hash_mask, self._pair_mask)

    def top(self) -> bytes:
        """Return the entry that stands for this node: a hash, unless it holds one pair or none."""
        pair_mask = self._pair_mask
        if self._hash_mask or pair_mask & (pair_mask - 1):
            return bytes(self._heap[:HASH_SIZE])
        return bytes(self._body + self._heap[:HASH_SIZE]) if pair_mask else b""

    def entry(self, slot: int) -> bytes:
        """Return what `slot` (0..15) holds."""
        bit = 1 << slot
        if self._hash_mask & bit:
            place = HASH_SIZE * (_FIRST_SLOT + slot)
            return bytes(self._heap[place : place + HASH_SIZE])
        if self._pair_mask & bit:
            place = HASH_SIZE * (_FIRST_SLOT + slot)
            start = self._offset(bit)
            pair = self._body[start : start + PAIR_SIZE]
            return bytes(pair + self._heap[place : place + HASH_SIZE])
        return b""

    def put(self, slot: int, entry: bytes) -> None:
        """Let `slot` hold `entry`; the hashes above it wait for `rehash`."""
        bit = 1 << slot
        start = stop = self._offset(bit)
        if self._hash_mask & bit:
            stop += HASH_SIZE
            self._hash_mask ^= bit
        elif self._pair_mask & bit:
            stop += PAIR_SIZE
            self._pair_mask ^= bit
        if len(entry) == HASH_SIZE:
            self._hash_mask |= bit
        elif entry:
            self._pair_mask |= bit
        self._body[start:stop] = entry[:PAIR_SIZE]
        place = HASH_SIZE * (_FIRST_SLOT + slot)
        self._heap[place : place + HASH_SIZE] = entry_hash(entry)

    def rehash(self, slots: Sequence[int]) -> None:
        """Bring the hashes above `slots` up to date."""
        if len(slots) == 1:
            self._rehash(_ABOVE[slots[0]])
        else:
            dirty = 0
            for slot in slots:
                dirty |= _ABOVE_MASK[slot]
            self._rehash(_lowest_first(dirty))

    def path(self, slot: int) -> tuple[list[bytes], bytes]:
        """Return the hashes beside the way from the top to `slot`, and the entry where it ends.

        There are ARITY - 1 of them per level. The way ends early where at most one pair is left.
        """
        beside = []
        for position in (*_ABOVE[slot][-2::-1], _FIRST_SLOT + slot):
            first = (position - 1) // ARITY * ARITY + 1
            for other in range(first, first + ARITY):
                if other != position:
                    place = HASH_SIZE * other
                    beside.append(bytes(self._heap[place : place + HASH_SIZE]))
            pairs = self._pair_mask & _BELOW[position]
            if not (self._hash_mask & _BELOW[position] or pairs & (pairs - 1)):
                return beside, self.entry(pairs.bit_length() - 1) if pairs else b""
        return beside, self.entry(slot)

    def encode(self) -> bytes:
        """Return the row."""
        return _MASKS.pack(self._hash_mask, self._pair_mask) + self._body

    def _offset(self, bit: int) -> int:
        before = bit - 1
        hashes = (self._hash_mask & before).bit_count()
        return HASH_SIZE * hashes + PAIR_SIZE * (self._pair_mask & before).bit_count()

    def _rehash(self, positions: Sequence[int]) -> None:
        heap, hash_mask = self._heap, self._hash_mask
        used = hash_mask | self._pair_mask
        for position in positions:
            below = used & _BELOW[position]
            place = HASH_SIZE * (ARITY * position + 1)  # of the children, side by side
            children = heap[place : place + HASH_SIZE * ARITY]
            if below == _ALL or below & (below - 1) or below & hash_mask:
                hashed: bytes | bytearray = sha256(b"\x01" + children).digest()
            elif below:
                hashed = _only_hash(children)
            else:
                hashed = EMPTY_HASH
            place = HASH_SIZE * position
            heap[place : place + HASH_SIZE] = hashed


def new_node() -> Node:
    """Return a node with empty slots."""
    return Node(bytearray(_HEAP_BYTES), bytearray(), 0, 0)


def decode_node(row: bytes, expected: bytes) -> Node:
    """Return the node of a row. Raises `CorruptRecord` unless its top is `expected`, 32 bytes."""
    if len(row) < _MASKS.size:
        raise damaged("a node of the state tree")
    hash_mask, pair_mask = _MASKS.unpack_from(row)
    heap = bytearray(_HEAP_BYTES)
    used = hash_mask | pair_mask
    offset = _MASKS.size
    dirty = 0
    for slot in _LOW_SLOTS[used & 255] + _HIGH_SLOTS[used >> 8]:
        if hash_mask >> slot & 1:
            hashed = row[offset : offset + HASH_SIZE]
            offset += HASH_SIZE
        else:
            hashed = sha256(b"\x00" + row[offset : offset + PAIR_SIZE]).digest()
            offset += PAIR_SIZE
        place = HASH_SIZE * (_FIRST_SLOT + slot)
        heap[place : place + HASH_SIZE] = hashed
        dirty |= _ABOVE_MASK[slot]
    if offset != len(row) or hash_mask & pair_mask:
        raise damaged("a node of the state tree")
    node = Node(heap, bytearray(row[_MASKS.size :]), hash_mask, pair_mask)
    node._rehash(_lowest_first(dirty))
    if heap[:HASH_SIZE] != expected:
        raise damaged("a node of the state tree")
    return node


def _lowest_first(dirty: int) -> list[int]:
    return [p for p in range(_FIRST_SLOT - 1, -1, -1) if dirty >> p & 1]


def _only_hash(children: bytearray) -> bytearray:
    """Return the one hash among `children` that is not empty."""
    for place in range(0, len(children), HASH_SIZE):
        if any(children[place : place + HASH_SIZE]):
            return children[place : place + HASH_SIZE]
    raise damaged("a node of the state tree")
