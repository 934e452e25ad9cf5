"""When a primary proposes, what it takes, and what happens to transactions that it held in vain."""

import pytest

from node.ledger.limits import Limits
from node.ledger.mempool import Mempool
from node.replication.proposer import BatchPolicy, Proposer
from storage.memory import MemoryStore
from tests.replication.world import NULL, TIME_MS, open_chain, payload, transaction


class Clock:
    def __init__(self):
        self.now = TIME_MS

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def mempool():
    return Mempool()


@pytest.fixture
def proposer(mempool, clock):
    policy = BatchPolicy(worthwhile_count=3, wait_max_ms=100)
    return Proposer(mempool, Limits(batch_transactions_max=4), clock, policy)


def fill(mempool, clock, count=1):
    added = [transaction() for _ in range(count)]
    for each in added:
        mempool.add(each, clock())
    return added


def test_an_idle_chain_proposes_the_first_transaction_at_once(proposer, mempool, clock):
    assert proposer.next(1, in_flight=0) is None
    (only,) = fill(mempool, clock)
    proposed = proposer.next(1, in_flight=0)
    assert proposed.transactions == (only,)
    assert proposed.batch.transactions == (only.digest,)
    assert proposed.digest == proposed.batch.digest


@pytest.mark.parametrize(("waiting", "waited_ms", "proposes"), [
    (2, 99, False), (2, 100, True), (3, 0, True),
])  # fmt: skip
def test_beside_others_a_batch_is_full_enough_or_old_enough(
    proposer, mempool, clock, waiting, waited_ms, proposes
):
    fill(mempool, clock, waiting)
    clock.now += waited_ms
    assert (proposer.next(2, in_flight=1) is not None) == proposes


def test_a_transaction_is_in_one_proposal_at_a_time(proposer, mempool, clock):
    first = fill(mempool, clock, 4)
    second = fill(mempool, clock, 2)
    assert proposer.next(1, in_flight=0).transactions == tuple(first)
    clock.now += 100
    assert proposer.next(2, in_flight=1).transactions == tuple(second)
    assert proposer.next(3, in_flight=2) is None


def test_what_others_propose_is_left_to_them(proposer, mempool, clock):
    theirs, ours = fill(mempool, clock, 2)
    proposer.reserve(1, (theirs.digest,))
    assert proposer.next(2, in_flight=0).transactions == (ours,)


def test_only_expired_transactions_make_no_proposal(proposer, mempool, clock):
    mempool.add(transaction(valid_until=4), clock())
    assert proposer.next(5, in_flight=0) is None


def test_the_time_is_the_clocks_and_never_follows_a_wrong_parent(proposer, mempool, clock):
    fill(mempool, clock)
    assert proposer.next(1, in_flight=0).batch.time_ms == clock.now


async def test_a_null_block_gives_back_what_its_height_held(proposer, mempool, clock):
    chain, _ = open_chain(MemoryStore())
    (only,) = fill(mempool, clock)
    proposer.next(1, in_flight=0)
    assert proposer.next(2, in_flight=1) is None
    from_null = await chain.execute(1, NULL)
    proposer.executed(1, from_null)
    assert proposer.next(2, in_flight=0).transactions == (only,)
    await chain.close()


async def test_what_was_executed_never_comes_back(proposer, mempool, clock):
    chain, _ = open_chain(MemoryStore())
    (only,) = fill(mempool, clock)
    proposer.next(1, in_flight=0)
    proposer.executed(1, await chain.execute(1, payload(only)))
    assert len(mempool) == 0
    assert proposer.next(2, in_flight=0) is None
    await chain.close()


def test_a_view_change_frees_what_the_new_view_does_not_carry_over(proposer, mempool, clock):
    carried, lost = fill(mempool, clock, 2)
    proposer.reserve(5, (carried.digest,))
    proposer.reserve(6, (lost.digest,))
    proposer.view_entered({5: b"digest"})
    assert proposer.next(6, in_flight=0).transactions == (lost,)
    proposer.view_entered({})
    assert proposer.next(5, in_flight=0).transactions == (carried, lost)
