"""Everybody who waits for a transaction or a height gets one answer, and waiting is bounded."""

import pytest

from node.ledger.block import Receipt
from node.ledger.errors import Refused
from node.replication import waiters as module
from node.replication.waiters import Outcome, Waiters

ID, OTHER = b"\x01" * 32, b"\x02" * 32


async def test_all_who_wait_for_a_transaction_learn_its_receipt():
    waiters = Waiters()
    first, second, other = waiters.final(ID), waiters.final(ID), waiters.final(OTHER)
    waiters.executed(7, [Receipt(b"\x03" * 32), Receipt(ID, "study_exists", 0)])
    expected = Outcome(7, 1, Receipt(ID, "study_exists", 0))
    assert first.result() == second.result() == expected
    assert not other.done()


async def test_a_replay_answers_nobody():
    waiters = Waiters()
    future = waiters.final(ID)
    waiters.executed(7, [Receipt(ID, "replayed")])
    assert not future.done()
    waiters.executed(8, [Receipt(ID)])
    assert future.result().height == 8


async def test_a_dropped_transaction_is_refused_to_all_who_wait():
    waiters = Waiters()
    futures = [waiters.final(ID), waiters.final(ID)]
    waiters.dropped(ID, Refused("expired", "too late"))
    for future in futures:
        with pytest.raises(Refused, match="expired"):
            future.result()


async def test_a_waiter_that_gave_up_does_not_disturb_the_others():
    waiters = Waiters()
    gone, cancelled, patient = (waiters.final(ID) for _ in range(3))
    waiters.give_up(ID, gone)
    waiters.give_up(ID, gone)
    cancelled.cancel()
    waiters.executed(1, [Receipt(ID)])
    assert not gone.done()
    assert patient.result().height == 1


async def test_the_number_of_waiters_is_bounded_and_every_end_makes_room(monkeypatch):
    monkeypatch.setattr(module, "WAITERS_MAX", 3)
    waiters = Waiters()
    for end in (
        lambda future: waiters.executed(1, [Receipt(ID)]),
        lambda future: waiters.dropped(ID, Refused("expired", "")),
        lambda future: waiters.give_up(ID, future),
    ):
        futures = [waiters.final(ID), waiters.final(OTHER), waiters.final(OTHER)]
        with pytest.raises(Refused, match="busy"):
            waiters.final(ID)
        end(futures[0])
        waiters.final(ID).cancel()
        for future in futures[1:]:
            waiters.give_up(OTHER, future)
            future.cancel()
        waiters.executed(2, [Receipt(ID)])
        futures[0].done() and futures[0].exception()


async def test_a_height_is_sealed_with_every_later_one():
    waiters = Waiters()
    fifth, sixth, shared = waiters.sealed(5), waiters.sealed(6), waiters.sealed(6)
    assert sixth is shared
    waiters.stable(5)
    assert fifth.done()
    assert not sixth.done()
    waiters.stable(9)
    assert sixth.done()
    assert waiters.sealed(8).done()
    assert not waiters.sealed(10).done()


async def test_what_was_sealed_before_a_restart_is_answered_at_once():
    waiters = Waiters(stable_height=12)
    assert waiters.sealed(12).done()
    assert not waiters.sealed(13).done()
