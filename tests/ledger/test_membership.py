"""Validator sets and observers in the state."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.errors import InvariantViolation
from consensus.options import Options
from consensus.wire import pack
from node.ledger import membership
from node.ledger.genesis import NodeIdentity
from node.ledger.membership import CHANGE_DELAY, PlannedSet
from node.ledger.state import StateView
from storage.errors import CorruptRecord
from tests.ledger.harness import Chain, digest
from tests.vectors import make

GENESIS = make.genesis()
WATCHER = GENESIS.observers[0]


def node(name):
    return NodeIdentity(name, digest(name), b"certificate of " + name.encode())


@pytest.fixture
def state():
    return StateView(membership.genesis_rows(GENESIS).get)


def test_a_change_is_known_before_any_window_reaches_it():
    assert Options().window < CHANGE_DELAY


def test_set_zero_is_that_of_the_genesis(state):
    first = PlannedSet(0, GENESIS.validators)
    assert membership.set_count(state.get) == 1
    assert membership.planned_set(state.get, 0) == first == membership.latest(state.get)
    assert first.validator_set() == GENESIS.validator_set()
    assert membership.reigning(state.get, 0) == membership.reigning(state.get, 10**9) == first
    assert not membership.is_change_planned(state.get, 0)


def test_each_set_reigns_until_the_next_begins(state):
    sets = [PlannedSet(0, GENESIS.validators)]
    for count, height in enumerate((70, 71, 500), 1):
        sets.append(PlannedSet(height, (*sets[-1].nodes, node(f"n{height}"))))
        assert membership.append(state.put, state.get, sets[-1]) == count
    assert [membership.planned_set(state.get, index) for index in range(4)] == sets
    assert membership.set_count(state.get) == 4
    for height in range(600):
        expected = [each for each in sets if each.height <= height][-1]
        assert membership.reigning(state.get, height) == expected
        assert membership.is_change_planned(state.get, height) is (height < 500)


@pytest.mark.parametrize("height", [0, 69, 70])
def test_a_set_begins_after_the_one_before(state, height):
    membership.append(state.put, state.get, PlannedSet(70, GENESIS.validators))
    with pytest.raises(InvariantViolation):
        membership.append(state.put, state.get, PlannedSet(height, GENESIS.validators))


@pytest.mark.parametrize("nodes", [(), (node("a"), node("a")), (NodeIdentity("a", b"x", b""),)])
def test_a_set_that_consensus_cannot_use_is_not_written(state, nodes):
    with pytest.raises(ValueError, match="validator"):
        membership.append(state.put, state.get, PlannedSet(70, nodes))
    assert state.changes() == {}


def test_a_set_knows_each_institutions_node():
    first = PlannedSet(0, GENESIS.validators)
    assert first.node_of("north") == GENESIS.validators[1]
    assert first.node_of("university") is None


def test_observers_come_and_go_with_their_index_rows(state):
    assert membership.observer(state.get, WATCHER.public_key) == WATCHER
    assert membership.observer_count(state.get) == 1
    membership.add_observer(state, node("a"))
    assert membership.observer(state.get, node("a").public_key) == node("a")
    assert membership.observer_count(state.get) == 2
    membership.remove_observer(state, WATCHER.public_key)
    assert membership.observer(state.get, WATCHER.public_key) is None
    assert membership.observer_count(state.get) == 1
    row = membership.encode_observer("a", node("a").certificate)
    assert state.index_changes() == [
        (membership.INDEX_OBSERVER, (node("a").public_key,), row),
        (membership.INDEX_OBSERVER, (WATCHER.public_key,), None),
    ]
    assert membership.decode_observer(node("a").public_key, row) == node("a")


def test_an_observer_is_added_once_and_removed_once(state):
    with pytest.raises(InvariantViolation):
        membership.add_observer(state, WATCHER)
    with pytest.raises(InvariantViolation):
        membership.remove_observer(state, node("a").public_key)


def test_the_genesis_block_holds_the_sets_and_lists_the_observers():
    chain = Chain(genesis=GENESIS).chain
    assert membership.latest(chain.state_value) == PlannedSet(0, GENESIS.validators)
    rows = chain.scan_index(membership.INDEX_OBSERVER, limit=9)
    assert [membership.decode_observer(row.parts[0], row.value) for row in rows] == [WATCHER]


GOOD = membership.genesis_rows(GENESIS)
READS = [
    membership.latest,
    membership.observer_count,
    lambda get: membership.observer(get, WATCHER.public_key),
]


@given(
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from([row[:-1] for row in GOOD.values()]),
        st.sampled_from(
            [(2, 1), (1, -1), (1, True), (1, 0, ()), (1, True, (("a", b"k", b"c"),))]
        ).map(pack),
        st.sampled_from([(1, 0, (("a", "k", b"c"),)), (1, 0, ("a",)), (1, "a", "c")]).map(pack),
    )
)
def test_damaged_rows_are_reported_as_such(row):
    for read in READS:
        with pytest.raises(CorruptRecord):
            read(lambda _: row)


@pytest.mark.parametrize("read", READS[:2])
def test_missing_rows_are_reported_as_such(read):
    with pytest.raises(CorruptRecord):
        read({}.get)
