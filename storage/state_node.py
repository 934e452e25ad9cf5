"""One node of the state tree: sixteen slots and the binary Merkle tree over them.

The root is defined without nodes. Over the set of pairs (key hash, value hash), both SHA-256:

    root(set, depth) = 32 zero bytes                                   if the set is empty
                     = SHA-256(0x00 | key hash | value hash)           if it has one pair
                     = SHA-256(0x01 | root(left) | root(right))        otherwise, where the
                       bit `depth` of the key hash, from the highest, says left (0) or right (1)

A node packs four levels of that tree, so that one row is read and written where a binary tree
would need four. Positions are those of a heap: 1 is the top, 2i and 2i+1 lie below i, 16..31 are
the slots. The hash of a pair rises unchanged as long as the pair is alone.

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

_MASKS = struct.Struct(">HH")
_LEVEL_OF = [0] + [position.bit_length() - 1 for position in range(1, 2 * SLOTS)]
_FIRST_SLOT = [(p << (4 - level)) - SLOTS for p, level in enumerate(_LEVEL_OF)]
# The slots below each position, as a mask.
_BELOW = [0] + [((1 << (SLOTS >> _LEVEL_OF[p])) - 1) << _FIRST_SLOT[p] for p in range(1, 2 * SLOTS)]
# The positions above each slot, lowest first, as a list and as a mask.
_ABOVE = [tuple((SLOTS + slot) >> rise for rise in (1, 2, 3, 4)) for slot in range(SLOTS)]
_ABOVE_MASK = [sum(1 << position for position in above) for above in _ABOVE]


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
        self._heap = heap  # 32 bytes per position
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
            return bytes(self._heap[32:64])
        return bytes(self._body + self._heap[32:64]) if pair_mask else b""

    def entry(self, slot: int) -> bytes:
        """Return what `slot` (0..15) holds."""
        bit = 1 << slot
        if self._hash_mask & bit:
            start = 32 * (SLOTS + slot)
            return bytes(self._heap[start : start + 32])
        if self._pair_mask & bit:
            start, place = self._offset(bit), 32 * (SLOTS + slot)
            return bytes(self._body[start : start + PAIR_SIZE] + self._heap[place : place + 32])
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
        place = 32 * (SLOTS + slot)
        self._heap[place : place + 32] = entry_hash(entry)

    def rehash(self, slots: Sequence[int]) -> None:
        """Bring the hashes above `slots` up to date."""
        if len(slots) == 1:
            self._rehash(_ABOVE[slots[0]])
        else:
            dirty = 0
            for slot in slots:
                dirty |= _ABOVE_MASK[slot]
            self._rehash([p for p in range(SLOTS - 1, 0, -1) if dirty >> p & 1])

    def path(self, slot: int) -> tuple[list[bytes], bytes]:
        """Return the hashes beside the way from the top to `slot`, and the entry where it ends.

        The way ends early where at most one pair is left.
        """
        siblings = []
        for position in reversed((SLOTS + slot, *_ABOVE[slot][:-1])):
            beside = 32 * (position ^ 1)
            siblings.append(bytes(self._heap[beside : beside + 32]))
            below = _BELOW[position]
            pairs = self._pair_mask & below
            if not (self._hash_mask & below or pairs & (pairs - 1)):
                return siblings, self.entry(pairs.bit_length() - 1) if pairs else b""
        return siblings, self.entry(slot)

    def encode(self) -> bytes:
        """Return the row."""
        return _MASKS.pack(self._hash_mask, self._pair_mask) + self._body

    def _offset(self, bit: int) -> int:
        before = bit - 1
        hashes = (self._hash_mask & before).bit_count()
        return 32 * hashes + 64 * (self._pair_mask & before).bit_count()

    def _rehash(self, positions: Sequence[int]) -> None:
        heap, hash_mask = self._heap, self._hash_mask
        used = hash_mask | self._pair_mask
        is_full = used == 0xFFFF
        for position in positions:
            below = used & _BELOW[position]
            place = 64 * position  # of both children, side by side
            if is_full or below & (below - 1) or below & hash_mask:
                hashed: bytes | bytearray = sha256(b"\x01" + heap[place : place + 64]).digest()
            elif not below:
                hashed = EMPTY_HASH
            elif below & _BELOW[2 * position]:
                hashed = heap[place : place + 32]
            else:
                hashed = heap[place + 32 : place + 64]
            heap[32 * position : 32 * position + 32] = hashed


def new_node() -> Node:
    """Return a node with empty slots."""
    return Node(bytearray(32 * 2 * SLOTS), bytearray(), 0, 0)


def decode_node(row: bytes, expected: bytes) -> Node:
    """Return the node of a row. Raises `CorruptRecord` unless its top is `expected`, 32 bytes."""
    if len(row) < _MASKS.size:
        raise damaged("a node of the state tree")
    hash_mask, pair_mask = _MASKS.unpack_from(row)
    heap = bytearray(32 * 2 * SLOTS)
    used = hash_mask | pair_mask
    offset = _MASKS.size
    dirty = 0
    for slot in range(SLOTS):
        if used >> slot & 1:
            if hash_mask >> slot & 1:
                hashed = row[offset : offset + HASH_SIZE]
                offset += HASH_SIZE
            else:
                hashed = sha256(b"\x00" + row[offset : offset + PAIR_SIZE]).digest()
                offset += PAIR_SIZE
            place = 32 * (SLOTS + slot)
            heap[place : place + 32] = hashed
            dirty |= _ABOVE_MASK[slot]
    if offset != len(row) or hash_mask & pair_mask:
        raise damaged("a node of the state tree")
    node = Node(heap, bytearray(row[_MASKS.size :]), hash_mask, pair_mask)
    node._rehash([p for p in range(SLOTS - 1, 0, -1) if dirty >> p & 1])
    if heap[32:64] != expected:
        raise damaged("a node of the state tree")
    return node
