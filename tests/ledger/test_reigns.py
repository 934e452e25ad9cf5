"""Validator sets out of the state: known in time, named by headers, back after a restart."""

import pytest

from consensus.errors import InvariantViolation
from consensus.options import Options
from consensus.validators import ValidatorSchedule
from node.ledger import membership
from node.ledger.contracts.base import OperationKind
from node.ledger.contracts.table import OPERATIONS
from node.ledger.execution import Executor
from node.ledger.genesis import NodeIdentity
from node.ledger.membership import CHANGE_DELAY, PlannedSet
from storage.chain import ChainStore
from storage.errors import CorruptRecord
from storage.kv import WriteBatch
from storage.state import StateTree
from tests.ledger.harness import GENESIS, Chain, digest, register, transaction

EAST = NodeIdentity("east", digest("node 3"), b"")
WIDER = (*GENESIS.validators, EAST)


def plan(context, arguments):
    """Let the first of three numbers of nodes reign after some heights."""
    count, delay = arguments
    planned = PlannedSet(context.height + delay, WIDER[:count])
    membership.append(context.state.put, context.state.get, planned)


def observe(context, arguments):
    membership.add_observer(context.state, EAST)


@pytest.fixture
def chain(monkeypatch):
    added = dict(OPERATIONS)
    for name, apply in (("test.plan", plan), ("test.observe", observe)):
        added[name] = OperationKind(name, frozenset({"gateway"}), lambda each: each, apply)
    monkeypatch.setattr("node.ledger.execution.OPERATIONS", added)
    return Chain()


def digest_of(count):
    return PlannedSet(1, WIDER[:count]).validator_set().digest


def test_every_window_ends_before_a_change_that_a_replica_cannot_know_of():
    assert Options().horizon <= CHANGE_DELAY


def test_headers_name_the_set_that_reigns_and_the_next(chain):
    planned = chain.add(transaction(("test.plan", 3, CHANGE_DELAY)))
    assert planned.changes_nodes
    headers = [chain.add_null().header for _ in range(CHANGE_DELAY + 1)]
    end = 1 + CHANGE_DELAY
    named = {h.height: (h.validators_digest, h.next_validators_digest) for h in headers}
    old, new = digest_of(2), digest_of(3)
    assert {named[height] for height in range(2, end - 1)} == {(old, old)}
    assert [named[height] for height in (end - 1, end, end + 1)] == [
        (old, new),
        (new, new),
        (new, new),
    ]


def test_a_change_is_in_the_schedule_before_its_block_is_durable(chain):
    chain.execute([transaction(("test.plan", 3, CHANGE_DELAY))])
    assert chain.schedule.next_change_after(1) == 1 + CHANGE_DELAY


def test_a_block_that_is_executed_again_plans_nothing_twice(chain):
    change = transaction(("test.plan", 3, CHANGE_DELAY))
    first = chain.execute([change])
    chain.executor.discard()
    again = chain.add(change)
    assert again.header == first.header
    assert len(chain.schedule.sets()) == 2


def test_a_refused_change_changes_nothing(chain):
    refused = chain.add(transaction(("test.plan", 3, CHANGE_DELAY), ("study.retire", 1, 2)))
    assert refused.receipts[0].code != "ok"
    assert not refused.changes_nodes
    assert len(chain.schedule.sets()) == 1


def test_a_change_that_windows_may_have_reached_stops_the_node(chain):
    with pytest.raises(InvariantViolation, match="too soon"):
        chain.execute([transaction(("test.plan", 3, CHANGE_DELAY - 1))])


def test_a_restart_knows_every_set_at_once(chain):
    for count in (3, 2, 1):
        chain.add(transaction(("test.plan", count, CHANGE_DELAY)))
        for _ in range(CHANGE_DELAY if count > 1 else 5):  # the last one waits for its height
            chain.add_null()
    before = chain.schedule
    assert len(before.sets()) == 4
    chain.reopen()
    assert chain.schedule is not before
    heights = range(chain.executor.head.height + 2 * CHANGE_DELAY)
    assert [chain.schedule.at(h).digest for h in heights] == [before.at(h).digest for h in heights]


def test_observers_are_told_of_and_studies_are_not(chain):
    assert chain.add(transaction(("test.observe",))).changes_nodes
    assert not chain.add(transaction(register("study"))).changes_nodes


def test_a_head_of_other_validators_than_the_state_has_is_refused(chain):
    chain.add(transaction(("test.plan", 3, CHANGE_DELAY)))
    for _ in range(CHANGE_DELAY):
        chain.add_null()
    rows = WriteBatch()
    forged = membership._encode_set(PlannedSet(1 + CHANGE_DELAY, WIDER[:1]))
    chain.chain.put_state(rows, membership.set_key(1), forged)
    chain.store.write(rows, sync=False)
    schedule = ValidatorSchedule(GENESIS.validator_set())
    with pytest.raises(CorruptRecord, match="not those of the head"):
        Executor(ChainStore(chain.store), StateTree(chain.store), GENESIS, schedule)
