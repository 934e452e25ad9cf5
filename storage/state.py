"""The authenticated state: a map from keys to values whose 32-byte root names it exactly.

`StateTree` keeps only hashes; the values themselves are rows of `ChainStore`. What a root means and
how a node looks is in state_node.py, what a proof shows in state_proof.py. A pair sits in the node
at its shortest unique prefix of hexadecimal digits, and a node exists where two pairs or more share
a prefix, so a set of pairs has one tree, whatever the order of changes.
"""

import struct
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256

from consensus.errors import InvariantViolation, require
from storage import schema
from storage.kv import KeyValueStore, Reader, WriteBatch
from storage.state_node import (
    HASH_SIZE,
    LEAF_SIZE,
    PAIR_SIZE,
    SLOTS,
    Node,
    decode_node,
    entry_hash,
    leaf,
    new_node,
)
from storage.state_proof import encode_proof

CACHE_NODES = 16384
UPPER_DEPTH = 3  # nodes down to here stay in the cache: 1 + 16 + 256 + 4096 at most

_COUNTS = struct.Struct(">QQ")
_DIGITS = tuple(b"%x" % digit for digit in range(SLOTS))

_Item = tuple[bytes, bytes]  # key hash, and its leaf entry or empty bytes to remove it


class StateTree:
    """The tree in `store`: one thread updates it, once per block; any thread may `prove`.

    At most `cache_nodes` nodes below the upper levels stay decoded, 1 to 2 KB each. Raises
    `CorruptRecord` when the stored root and its node do not belong together.
    """

    def __init__(self, store: KeyValueStore, *, cache_nodes: int = CACHE_NODES) -> None:
        self._store = store
        self._cache_nodes = cache_nodes
        self._upper: dict[bytes, Node] = {}
        self._lower: OrderedDict[bytes, Node] = OrderedDict()
        self._keys, self._nodes, self._entry = _read_root(store)
        self._changed: dict[bytes, Node | None] = {}  # by path; None where a node goes
        self._pending: tuple[int, int, bytes] | None = None  # keys, nodes, root entry
        self._added_keys = 0
        if len(self._entry) == HASH_SIZE:
            self._load(b"", self._entry)

    @property
    def root(self) -> bytes:
        """The root of the last adopted state, 32 bytes; zeros when it is empty."""
        return entry_hash(self._entry)

    @property
    def key_count(self) -> int:
        """How many keys the last adopted state has."""
        return self._keys

    @property
    def node_count(self) -> int:
        """How many node rows the last adopted state has."""
        return self._nodes

    def update(self, changes: Mapping[bytes, bytes | None], batch: WriteBatch) -> bytes:
        """Return the root after `changes` (None removes a key) and append the changed rows.

        The tree itself moves on with `adopt` once `batch` is durable, and forgets the changes with
        `discard`; one of them must come before the next update.
        """
        require(self._pending is None, "the last update of the state was not adopted or discarded")
        items = sorted(map(_item, changes.items()))
        self._added_keys = 0
        try:
            entry = self._merge(b"", self._entry, items) if items else self._entry
        except BaseException:
            self._changed = {}
            raise
        nodes = self._nodes
        for path, node in self._changed.items():
            if node is None:
                nodes -= 1
                batch.delete(schema.STATE_NODE + path)
            else:
                nodes += not self._is_stored(path)
                batch.put(schema.STATE_NODE + path, node.encode())
        keys = self._keys + self._added_keys
        batch.put(schema.STATE_ROOT, _COUNTS.pack(keys, nodes) + entry[:PAIR_SIZE])
        self._pending = keys, nodes, entry
        return entry_hash(entry)

    def adopt(self) -> None:
        """Take over the last update, whose rows are durable now."""
        if self._pending is None:
            raise InvariantViolation("there is no update of the state to adopt")
        self._keys, self._nodes, self._entry = self._pending
        for path, node in self._changed.items():
            cache = self._upper if len(path) <= UPPER_DEPTH else self._lower
            if node is None:
                cache.pop(path, None)
            else:
                cache[path] = node
        self.discard()

    def discard(self) -> None:
        """Forget the last update, whose rows were not written. Without one nothing happens."""
        self._pending = None
        self._changed = {}
        while len(self._lower) > self._cache_nodes:
            self._lower.popitem(last=False)

    def prove(self, key: bytes, reader: Reader | None = None) -> bytes:
        """Return the proof of what is stored under `key`, or that nothing is.

        It holds for the root that is durable at the time of the call, or in the snapshot `reader`.
        Its size is about 32 bytes times log2 of the number of keys.
        """
        if reader is not None:
            return prove(reader, key)
        snapshot = self._store.snapshot()
        try:
            return prove(snapshot, key)
        finally:
            snapshot.close()

    def _merge(self, path: bytes, entry: bytes, items: list[_Item]) -> bytes:
        """Return the entry at `path` after `items` (ascending, not empty), given the one before."""
        if len(entry) == HASH_SIZE:
            node = self._load(path, entry).copy()
        else:
            items = _with_leaf(entry, items)
            self._added_keys -= entry != b""
            if len(items) < 2:
                self._added_keys += len(items)
                return items[0][1] if items else b""
            node = new_node()
        touched = self._merge_slots(path, node, items)
        if not touched:
            return entry
        node.rehash(touched)
        top = node.top()
        self._changed[path] = node if len(top) == HASH_SIZE else None
        return top

    def _merge_slots(self, path: bytes, node: Node, items: list[_Item]) -> list[int]:
        """Merge `items` into the slots of `node`; return the slots that changed."""
        touched = []
        index, shift = len(path) >> 1, 0 if len(path) & 1 else 4
        start, count = 0, len(items)
        while start < count:
            key_hash, after = items[start]
            digit = key_hash[index] >> shift & 15
            stop = start + 1
            while stop < count and items[stop][0][index] >> shift & 15 == digit:
                stop += 1
            before = node.entry(digit)
            is_alone = stop - start == 1
            if is_alone and not before:
                self._added_keys += after != b""
            elif is_alone and len(before) == LEAF_SIZE and before.startswith(key_hash):
                self._added_keys -= after == b""
            else:
                after = self._merge(path + _DIGITS[digit], before, items[start:stop])
            if after != before:
                node.put(digit, after)
                touched.append(digit)
            start = stop
        return touched

    def _load(self, path: bytes, expected: bytes) -> Node:
        if len(path) <= UPPER_DEPTH:
            node = self._upper.get(path)
            if node is None:
                node = self._upper[path] = _read_node(self._store, path, expected)
            return node
        node = self._lower.get(path)
        if node is None:
            node = self._lower[path] = _read_node(self._store, path, expected)
        else:
            self._lower.move_to_end(path)
        return node

    def _is_stored(self, path: bytes) -> bool:
        # A node that an update changes was loaded by it, and the cache shrinks only afterwards.
        return path in (self._upper if len(path) <= UPPER_DEPTH else self._lower)


def prove(reader: Reader, key: bytes) -> bytes:
    """Return the proof for `key` out of the rows of `reader`, which shall be a snapshot."""
    key_hash = sha256(key).digest()
    entry = _read_root(reader)[2]
    path = b""
    siblings: list[bytes] = []
    while len(entry) == HASH_SIZE:
        node = _read_node(reader, path, entry)
        byte = key_hash[len(path) >> 1]
        digit = byte & 15 if len(path) & 1 else byte >> 4
        beside, entry = node.path(digit)
        siblings += beside
        path += _DIGITS[digit]
    other = entry[:PAIR_SIZE] if entry and not entry.startswith(key_hash) else b""
    return encode_proof(siblings, other)


def _item(change: tuple[bytes, bytes | None]) -> _Item:
    key, value = change
    key_hash = sha256(key).digest()
    return key_hash, b"" if value is None else leaf(key_hash + sha256(value).digest())


def _with_leaf(entry: bytes, items: list[_Item]) -> list[_Item]:
    """Return the leaves that are there after `items`, where at most the leaf `entry` was."""
    live = [item for item in items if item[1]]
    if entry:
        key_hash = entry[:HASH_SIZE]
        position = bisect_left(items, (key_hash,))
        if position == len(items) or items[position][0] != key_hash:
            live.insert(bisect_left(live, (key_hash,)), (key_hash, entry))
    return live


def _read_root(reader: Reader) -> tuple[int, int, bytes]:
    """Return the number of keys, of nodes, and the root entry."""
    row = reader.get(schema.STATE_ROOT)
    if row is None:
        return 0, 0, b""
    entry = row[_COUNTS.size :]
    if len(row) < _COUNTS.size or len(entry) not in (0, HASH_SIZE, PAIR_SIZE):
        raise schema.damaged("a root of the state tree")
    keys, nodes = _COUNTS.unpack_from(row)
    return keys, nodes, leaf(entry) if len(entry) == PAIR_SIZE else entry


def _read_node(reader: Reader, path: bytes, expected: bytes) -> Node:
    row = reader.get(schema.STATE_NODE + path)
    if row is None:
        raise schema.damaged(f"no node '{path.decode()}' of the state tree")
    return decode_node(row, expected)
