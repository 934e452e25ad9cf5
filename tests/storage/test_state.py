"""The state tree against the definition of its root, written down as plainly as possible."""

import hashlib
import random
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.errors import InvariantViolation
from storage import schema
from storage.errors import CorruptRecord
from storage.kv import WriteBatch
from storage.memory import MemoryStore
from storage.state import StateTree
from storage.state_node import Node, decode_node, leaf, new_node
from storage.state_proof import verify
from tests.storage.tools import contents, write

EMPTY = bytes(32)
ONE_KEY = "c7b213d16310f04657bed1671d39d3611f9fe6040a910194e1493b91ebcaad82"
TWO_KEYS = "6f3df35775fc136205e1c62db1a1c4ab72b0a8d66399f3e6bd73ad4913f5345f"
THREE_KEYS = "658cc494950ce9c90dd21521819bbdc8d4b0e248aea30dd9696cfd344537a46d"
KEYS = st.integers(0, 60).map(b"%d".__mod__)
CHANGES = st.dictionaries(KEYS, st.none() | st.sampled_from([b"", b"x", b"y"]), max_size=25)


def digits(key_hash: bytes) -> list[int]:
    return [byte >> shift & 3 for byte in key_hash for shift in (6, 4, 2, 0)]


def root_by_definition(pairs, depth=0):
    if not pairs:
        return EMPTY
    if len(pairs) == 1:
        return sha256(b"\x00" + pairs[0][0] + pairs[0][1]).digest()
    below = [[pair for pair in pairs if digits(pair[0])[depth] == i] for i in range(4)]
    return sha256(b"\x01" + b"".join(root_by_definition(p, depth + 1) for p in below)).digest()


def expected_root(model):
    return root_by_definition([(sha256(k).digest(), sha256(v).digest()) for k, v in model.items()])


def apply(model, changes):
    return {k: v for k, v in (model | changes).items() if v is not None}


def advance(store, tree, changes, *, sync=False):
    batch = WriteBatch()
    root = tree.update(changes, batch)
    store.write(batch, sync=sync)
    tree.adopt()
    return root


def node_rows(store):
    return {k: v for k, v in contents(store).items() if k.startswith(schema.STATE_NODE)}


def test_the_root_of_nothing_is_zeros(store):
    tree = StateTree(store)
    assert (tree.root, tree.key_count, tree.node_count) == (EMPTY, 0, 0)
    assert advance(store, tree, {}) == EMPTY
    assert advance(store, tree, {b"not there": None}) == EMPTY


def test_the_roots_of_one_two_and_three_keys_are_pinned():
    """Golden values: a change of any of these is another protocol version."""
    store = MemoryStore()
    tree = StateTree(store)
    advance(store, tree, {b"study/1": b"registered"})
    assert tree.root.hex() == ONE_KEY
    advance(store, tree, {b"study/2": b"registered"})
    assert tree.root.hex() == TWO_KEYS
    advance(store, tree, {b"study/3": b""})
    assert tree.root.hex() == THREE_KEYS


@settings(max_examples=150)
@given(st.lists(st.tuples(CHANGES, st.booleans()), max_size=8), st.integers(0, 3))
def test_any_history_gives_the_root_of_its_outcome(history, cache_nodes):
    store, model = MemoryStore(), {}
    tree = StateTree(store, cache_nodes=cache_nodes)
    for changes, is_adopted in history:
        batch = WriteBatch()
        root = tree.update(changes, batch)
        assert root == expected_root(apply(model, changes))
        if is_adopted:
            model = apply(model, changes)
            store.write(batch, sync=True)
            tree.adopt()
        else:
            tree.discard()
        assert tree.root == expected_root(model)
        assert tree.key_count == len(model)
        assert tree.node_count == len(node_rows(store))
    reopened = StateTree(store)
    assert (reopened.root, reopened.key_count) == (tree.root, tree.key_count)
    assert reopened.node_count == tree.node_count


@settings(max_examples=60)
@given(st.dictionaries(KEYS, st.sampled_from([b"x", b"y"]), max_size=30), st.randoms(), st.data())
def test_equal_sets_have_equal_rows_whatever_the_order_of_inserts_and_deletes(model, chance, data):
    at_once, one_by_one = MemoryStore(), MemoryStore()
    advance(at_once, StateTree(at_once), model)
    tree = StateTree(one_by_one)
    passing = data.draw(st.dictionaries(KEYS, st.just(b"passing"), max_size=10))
    advance(one_by_one, tree, passing)
    steps = [*model.items(), *[(k, None) for k in passing if k not in model]]
    chance.shuffle(steps)
    for key, value in steps:
        advance(one_by_one, tree, {key: value})
    assert tree.root == expected_root(model)
    assert node_rows(one_by_one) == node_rows(at_once)
    assert contents(one_by_one).get(schema.STATE_ROOT) == contents(at_once).get(schema.STATE_ROOT)


def test_thousands_of_keys_over_many_blocks_on_either_store(store):
    chance, model = random.Random(5), {}
    tree = StateTree(store, cache_nodes=50)
    for block in range(12):
        changes = {b"%d" % chance.randrange(6000): b"%d" % chance.randrange(9) for _ in range(500)}
        changes |= dict.fromkeys(chance.sample(sorted(model), len(model) // 5))
        model = apply(model, changes)
        advance(store, tree, changes, sync=block % 3 == 0)
        if block % 4 == 3:
            tree = StateTree(store, cache_nodes=50)
    assert len(model) > 1500
    assert (tree.root, tree.key_count) == (expected_root(model), len(model))
    assert tree.node_count == len(node_rows(store))
    advance(store, tree, dict.fromkeys(model))
    assert (tree.root, tree.key_count, tree.node_count) == (EMPTY, 0, 0)
    assert node_rows(store) == {}


class PlainHash:
    """Stands in for SHA-256 of keys, so that a test chooses the key hashes."""

    def __init__(self, data):
        self._data = data

    def digest(self):
        # Short data is a key of the test, long data what the tree itself hashes.
        short = len(self._data) < 32
        return self._data.ljust(32, b"\x00") if short else sha256(self._data).digest()


def test_deep_prefixes_of_hashes_that_somebody_ground(monkeypatch):
    """Keys that share 240 bits of their hash: a long chain of nodes, and none left behind."""
    monkeypatch.setattr("storage.state.sha256", PlainHash)
    store = MemoryStore()
    tree = StateTree(store)
    near = [b"\xab" * 30 + bytes([n]) for n in (0x10, 0x11, 0x20, 0x90)]
    pairs = [(k.ljust(32, b"\x00"), b"v".ljust(32, b"\x00")) for k in near]
    advance(store, tree, dict.fromkeys(near, b"v"))
    assert tree.root == root_by_definition(pairs)
    assert tree.node_count == 62
    advance(store, tree, {near[0]: None})
    assert tree.root == root_by_definition(pairs[1:])
    assert tree.node_count == 61
    advance(store, tree, dict.fromkeys(near[1:3]))
    assert (tree.root, tree.node_count) == (root_by_definition(pairs[3:]), 0)


def test_only_nodes_on_the_way_to_a_change_are_written(store):
    tree = StateTree(store)
    advance(store, tree, {b"%d" % n: b"v" for n in range(3000)})
    batch = WriteBatch()
    tree.update({b"7": b"w"}, batch)
    path = sha256(b"7").digest().hex().encode()
    written = [key for key, _ in batch.operations]
    nodes = [key for key in written if key.startswith(schema.STATE_NODE)]
    assert all(path.startswith(key[1:]) for key in nodes)
    assert 3 <= len(nodes) == len(written) - 1 <= 6
    tree.discard()
    batch = WriteBatch()
    tree.update({b"7": b"v", b"never there": None}, batch)
    assert [key for key, _ in batch.operations] == [schema.STATE_ROOT]


def test_many_changes_share_the_upper_nodes(store):
    tree = StateTree(store)
    advance(store, tree, {b"%d" % n: b"v" for n in range(3000)})
    batch = WriteBatch()
    tree.update({b"%d" % n: b"w" for n in range(500)}, batch)
    keys = [key for key, _ in batch.operations]
    assert len(keys) == len(set(keys))
    assert keys.count(schema.STATE_NODE) == 1


def test_an_update_must_be_adopted_or_discarded_before_the_next(store):
    tree = StateTree(store)
    tree.update({b"a": b"1"}, WriteBatch())
    with pytest.raises(InvariantViolation, match="adopted or discarded"):
        tree.update({b"b": b"1"}, WriteBatch())
    tree.discard()
    tree.discard()
    with pytest.raises(InvariantViolation, match="no update"):
        tree.adopt()
    assert tree.root == EMPTY


def test_the_cache_stays_within_its_bound():
    store = MemoryStore()
    tree = StateTree(store, cache_nodes=10)
    for block in range(10):
        advance(store, tree, {b"%d/%d" % (block, n): b"v" for n in range(2000)})
        assert len(tree._lower) <= 10
        assert len(tree._upper) <= 1 + 16 + 256 + 4096
        tree.update({b"%d/%d" % (block, n): b"w" for n in range(2000)}, WriteBatch())
        tree.discard()
        assert len(tree._lower) <= 10


def test_a_proof_is_of_the_durable_state_or_of_the_snapshot(store):
    tree = StateTree(store)
    advance(store, tree, {b"%d" % n: b"old" for n in range(50)})
    old_root, snapshot = tree.root, store.snapshot()
    batch = WriteBatch()
    new_root = tree.update({b"7": b"new"}, batch)
    verify(old_root, b"7", b"old", tree.prove(b"7"))
    store.write(batch, sync=True)
    verify(new_root, b"7", b"new", tree.prove(b"7"))
    verify(old_root, b"7", b"old", tree.prove(b"7", snapshot))


@pytest.fixture
def filled():
    store = MemoryStore()
    advance(store, StateTree(store), {b"%d" % n: b"v" for n in range(400)})
    return store


def test_a_flipped_byte_in_any_node_is_found_when_the_node_is_used(filled):
    rows = node_rows(filled)
    for key in sorted(rows)[::7]:
        for offset in range(0, len(rows[key]), 11):
            damaged = bytearray(rows[key])
            damaged[offset] ^= 0x10
            write(filled, {key: bytes(damaged)})
            with pytest.raises(CorruptRecord, match="state tree"):
                StateTree(filled).update({b"%d" % n: b"w" for n in range(400)}, WriteBatch())
        write(filled, {key: rows[key]})


def test_a_missing_node_is_found_and_the_tree_stays_usable(filled):
    key = max(node_rows(filled), key=len)
    row = filled.get(key)
    tree = StateTree(filled)
    write(filled, {key: None})
    with pytest.raises(CorruptRecord, match=f"'{key[1:].decode()}'"):
        tree.update({b"%d" % n: b"w" for n in range(400)}, WriteBatch())
    write(filled, {key: row})
    advance(filled, tree, {b"%d" % n: b"w" for n in range(400)})
    assert tree.root == expected_root({b"%d" % n: b"w" for n in range(400)})


@pytest.mark.parametrize("row", [b"", b"x" * 15, b"x" * 17, bytes(16) + b"x" * 96, bytes(48)])
def test_a_root_row_of_another_form_is_corrupt(filled, row):
    write(filled, {schema.STATE_ROOT: row})
    with pytest.raises(CorruptRecord):
        StateTree(filled)


@given(st.binary(max_size=200), st.binary(min_size=32, max_size=32))
def test_bytes_that_are_no_node_are_corrupt(row, expected):
    with pytest.raises(CorruptRecord):
        decode_node(row, expected)


@given(st.lists(st.sampled_from(["empty", "pair", "hash"]), min_size=16, max_size=16))
def test_a_node_comes_back_from_its_row(kinds):
    node: Node = new_node()
    for slot, kind in enumerate(kinds):
        word = hashlib.sha256(b"%d" % slot).digest()
        node.put(slot, {"empty": b"", "pair": leaf(word + word), "hash": word}[kind])
    node.rehash(range(16))
    top = node.top()
    if len(top) != 32:
        assert kinds.count("pair") + kinds.count("hash") < 2
        return
    again = decode_node(node.encode(), top)
    assert [again.entry(slot) for slot in range(16)] == [node.entry(slot) for slot in range(16)]
    assert again.top() == top
