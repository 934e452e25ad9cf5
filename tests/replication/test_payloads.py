"""The payload desk: from the digest in a proposal to a batch whose every body is here and verified.

Time is in the test's hands: `hands.fire()` lets the next timer go off.
"""

import asyncio
from types import SimpleNamespace

import pytest

from node.ledger.errors import Refused
from node.ledger.limits import Limits
from node.replication import payloads as module
from node.replication.payloads import GRACE_S, RETRY_S, PayloadDesk, Rules
from tests.replication.world import NULL, TIME_MS, forged, payload, transaction

SKEW_MS = 15_000
PRIMARY, OTHER = b"primary", b"other"


class Timer:
    def __init__(self, delay_s, call, arguments):
        self.delay_s, self.call, self.arguments = delay_s, call, arguments
        self.is_cancelled = False

    def cancel(self):
        self.is_cancelled = True


class Hands:
    """A loop whose timers go off when the test says so."""

    def __init__(self):
        self.timers = []

    def call_later(self, delay_s, call, *arguments):
        self.timers.append(Timer(delay_s, call, arguments))
        return self.timers[-1]

    @property
    def armed(self):
        return [timer for timer in self.timers if not timer.is_cancelled]

    def fire(self):
        (timer,) = self.armed
        self.timers.clear()
        timer.call(*timer.arguments)
        return timer.delay_s


class World:
    """A desk, and everything around it in the test's hands."""

    def __init__(self, **limits):
        self.hands = Hands()
        self.pool = {}
        self.asked = []
        self.answers = []
        self.verified = []
        self.now_ms = TIME_MS + 1_000
        self.verdict = lambda each: each
        self.gate = None  # an event that holds verification back
        self.desk = PayloadDesk(
            self.pool,
            self.verify,
            lambda *request: self.asked.append(request),
            lambda height, found, digest: self.answers.append((height, found, digest)),
            lambda: self.now_ms,
            Rules(Limits(**limits), SKEW_MS),
        )
        self.bodies = {}

    async def verify(self, raws):
        self.verified.append(list(raws))
        if self.gate is not None:
            await self.gate.wait()
        return [self.verdict(self.bodies[raw]) for raw in raws]

    def pooled(self, *transactions):
        for each in transactions:
            self.pool[each.digest] = each
        self.desk.arrived(transactions)

    def offer(self, proposed, source=PRIMARY):
        self.bodies |= {each.raw: each for each in proposed.transactions}
        return self.desk.offer(proposed.digest, proposed.batch.encode(), source)

    async def receive(self, proposed, transactions, *, with_batch=False):
        encoded = proposed.batch.encode() if with_batch else b""
        self.bodies |= {each.raw: each for each in transactions}
        return await self.desk.received(proposed.digest, encoded, [t.raw for t in transactions])

    def is_empty(self, digest):
        """Whether nothing is kept in mind that was wanted."""
        desk = self.desk
        return not desk.wants(digest) and not desk._waiting and not self.hands.armed


@pytest.fixture
def world(monkeypatch):
    made = World()
    loop = SimpleNamespace(get_running_loop=lambda: made.hands)
    monkeypatch.setattr(module, "asyncio", loop)
    return made


@pytest.fixture
def three():
    return [transaction() for _ in range(3)]


# Everything is here.


def test_a_batch_whose_bodies_wait_in_the_mempool_is_ready_at_once(world, three):
    proposed = payload(*three)
    world.pooled(*three)
    assert world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=True)
    assert world.answers == [(1, proposed, proposed.digest)]
    assert world.desk.payload(proposed.digest) == proposed
    assert world.asked == []
    assert world.is_empty(proposed.digest)


def test_the_null_payload_is_always_ready(world):
    world.desk.obtain(4, NULL.digest, fresh=False)
    assert world.answers == [(4, NULL, NULL.digest)]
    world.desk.release(NULL.digest)
    assert world.desk.payload(NULL.digest) == NULL


def test_what_was_kept_is_ready_whatever_the_mempool_holds(world, three):
    proposed = payload(*three)
    world.desk.keep(proposed)
    world.desk.obtain(2, proposed.digest, fresh=False)
    assert world.answers == [(2, proposed, proposed.digest)]


# Bodies that arrive by one way or another.


def test_gossip_within_the_grace_costs_no_request(world, three):
    proposed = payload(*three)
    world.pooled(three[0])
    world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=True)
    assert world.answers == []
    assert [timer.delay_s for timer in world.hands.armed] == [GRACE_S]
    world.pooled(three[2])
    world.pooled(three[1])
    assert world.answers == [(1, proposed, proposed.digest)]
    assert world.asked == []
    assert world.is_empty(proposed.digest)


async def test_after_the_grace_the_proposer_is_asked_for_exactly_what_is_missing(world, three):
    proposed = payload(*three)
    world.pooled(three[1])
    world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=True)
    world.hands.fire()
    missing = tuple(sorted([three[0].digest, three[2].digest]))
    assert world.asked == [(1, proposed.digest, missing, PRIMARY, 0)]
    assert await world.receive(proposed, [three[0], three[2]])
    assert world.answers == [(1, proposed, proposed.digest)]
    assert world.answers[0][1].transactions == tuple(three)
    assert world.is_empty(proposed.digest)


async def test_a_silent_peer_is_followed_by_the_next(world, three):
    proposed = payload(*three)
    world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=True)
    assert [world.hands.fire() for _ in range(3)] == [GRACE_S, RETRY_S, RETRY_S]
    assert [(source, turn) for *_, source, turn in world.asked] == [
        (PRIMARY, 0), (PRIMARY, 1), (PRIMARY, 2),
    ]  # fmt: skip
    assert await world.receive(proposed, three)
    assert world.answers == [(1, proposed, proposed.digest)]
    assert world.is_empty(proposed.digest)


async def test_a_batch_that_is_not_here_is_asked_for_whole(world, three):
    proposed = payload(*three)
    world.desk.obtain(3, proposed.digest, fresh=False)
    assert world.asked == [(3, proposed.digest, (), None, 0)]
    assert await world.receive(proposed, three, with_batch=True)
    assert world.answers == [(3, proposed, proposed.digest)]
    assert world.is_empty(proposed.digest)


def test_a_batch_that_comes_with_a_late_proposal_is_taken_up(world, three):
    proposed = payload(*three)
    world.pooled(*three)
    world.desk.obtain(3, proposed.digest, fresh=False)
    assert world.offer(proposed)
    assert world.answers == [(3, proposed, proposed.digest)]
    assert world.is_empty(proposed.digest)


async def test_bodies_may_come_in_several_answers(world, three):
    proposed = payload(*three)
    world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=True)
    world.hands.fire()
    assert await world.receive(proposed, three[:1])
    assert await world.receive(proposed, three[1:])
    assert world.answers == [(1, proposed, proposed.digest)]


def test_a_proposal_whose_bodies_nobody_has_is_asked_for_until_it_is_forgotten(world, three):
    proposed = payload(*three)
    world.offer(proposed)
    world.desk.obtain(5, proposed.digest, fresh=True)
    for _ in range(20):
        world.hands.fire()
    assert [turn for *_, turn in world.asked] == list(range(20))
    world.desk.forget(4)
    assert world.desk.wants(proposed.digest)
    world.desk.forget(5)
    assert world.answers == []
    assert world.is_empty(proposed.digest)


# Answers that are wrong, and honest answers that only look wrong.


async def test_a_batch_that_the_digest_does_not_name_is_the_peers_fault(world, three):
    proposed, another = payload(*three), payload(*three[:2])
    assert not world.desk.offer(proposed.digest, another.batch.encode(), PRIMARY)
    world.desk.obtain(1, proposed.digest, fresh=True)
    assert not await world.desk.received(proposed.digest, another.batch.encode(), [])
    assert not await world.desk.received(proposed.digest, b"\xc0", [])
    assert world.answers == []
    assert world.desk.wants(proposed.digest)
    assert await world.receive(proposed, three, with_batch=True)
    assert world.answers == [(1, proposed, proposed.digest)]


async def test_bodies_that_the_batch_does_not_name_are_refused_unverified(world, three):
    proposed = payload(*three)
    world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=True)
    assert not await world.receive(proposed, [three[0], transaction()])
    assert not await world.receive(proposed, [three[0], three[0]])
    assert world.verified == []
    assert world.desk.wants(proposed.digest)


async def test_bodies_for_a_batch_that_is_not_here_are_refused_unverified(world, three):
    proposed = payload(*three)
    world.desk.obtain(1, proposed.digest, fresh=True)
    assert not await world.receive(proposed, three)
    assert world.verified == []
    assert await world.desk.received(proposed.digest, b"", [])  # useless, but no lie


async def test_a_batch_larger_than_any_is_refused_before_it_is_decoded(monkeypatch, three):
    world = World(batch_transactions_max=2)
    monkeypatch.setattr(module.Batch, "decode", None)
    assert not world.desk.offer(b"\x01" * 32, bytes(3 * 34 + 64), PRIMARY)


async def test_an_answer_that_gossip_overtook_is_no_fault(world, three):
    proposed = payload(*three)
    world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=True)
    world.hands.fire()
    world.pooled(three[0])
    assert await world.receive(proposed, three)
    assert world.verified == [[three[1].raw, three[2].raw]]
    assert world.answers == [(1, proposed, proposed.digest)]
    assert await world.receive(proposed, three)  # the second peer's, too late


async def test_an_answer_that_gossip_overtakes_during_verification_is_no_fault(world, three):
    proposed = payload(*three)
    world.gate = asyncio.Event()
    world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=True)
    receiving = asyncio.ensure_future(world.receive(proposed, three))
    await asyncio.sleep(0)
    world.pooled(*three)
    world.gate.set()
    assert await receiving
    assert world.answers == [(1, proposed, proposed.digest)]


async def test_a_batch_and_bodies_that_the_mempool_had_already_are_no_fault(world, three):
    proposed = payload(*three)
    world.pooled(*three)
    world.desk.obtain(1, proposed.digest, fresh=False)
    assert await world.receive(proposed, three, with_batch=True)
    assert world.verified == []
    assert world.answers == [(1, proposed, proposed.digest)]


async def test_a_verdict_about_what_was_forgotten_meanwhile_touches_nothing_new(world, three):
    proposed = payload(*three[:2], transaction())
    world.gate = asyncio.Event()
    world.verdict = lambda each: Refused("signature_invalid", "")
    world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=True)
    receiving = asyncio.ensure_future(world.receive(proposed, three[:1]))
    await asyncio.sleep(0)
    world.desk.forget(1)
    world.desk.obtain(2, proposed.digest, fresh=False)
    world.gate.set()
    assert await receiving
    assert world.answers == []
    assert world.desk.wants(proposed.digest)
    assert len(world.hands.armed) == 1


# Batches that a correct primary would not propose.


async def test_a_body_with_a_bad_signature_refuses_the_batch(world, three):
    bad = forged(three[2])
    proposed = payload(*three[:2], bad)
    world.pooled(*three[:2])
    world.verdict = lambda each: Refused("signature_invalid", "") if each is bad else each
    world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=True)
    assert await world.receive(proposed, [bad])
    assert world.answers == [(1, None, proposed.digest)]
    assert world.desk.payload(proposed.digest) is None
    assert world.is_empty(proposed.digest)


async def test_a_refusal_that_may_pass_is_asked_for_again(world, three):
    proposed = payload(*three)
    verdicts = iter([Refused("busy", ""), three[0]])
    world.pooled(*three[1:])
    world.verdict = lambda each: next(verdicts)
    world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=True)
    world.hands.fire()
    assert await world.receive(proposed, three[:1])
    assert world.answers == []
    world.hands.fire()
    assert [turn for *_, turn in world.asked] == [0, 1]
    assert await world.receive(proposed, three[:1])
    assert world.answers == [(1, proposed, proposed.digest)]


@pytest.mark.parametrize("off_ms", [-SKEW_MS - 1, -SKEW_MS, SKEW_MS, SKEW_MS + 1])
@pytest.mark.parametrize("fresh", [True, False])
def test_only_a_fresh_batch_must_have_a_time_near_the_clock(world, three, off_ms, fresh, caplog):
    proposed = payload(*three, time_ms=world.now_ms + off_ms)
    world.pooled(*three)
    world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=fresh)
    is_refused = fresh and abs(off_ms) > SKEW_MS
    assert world.answers == [(1, None if is_refused else proposed, proposed.digest)]
    assert world.is_empty(proposed.digest)
    assert (f"its time is {off_ms} ms from this node's clock" in caplog.text) == is_refused


def test_a_batch_that_is_known_from_before_must_be_timely_too(world, three):
    proposed = payload(*three, time_ms=world.now_ms)
    world.desk.keep(proposed)
    world.now_ms += SKEW_MS + 1
    world.desk.obtain(2, proposed.digest, fresh=True)
    world.desk.obtain(3, proposed.digest, fresh=False)
    assert world.answers == [(2, None, proposed.digest), (3, proposed, proposed.digest)]


def test_a_stale_batch_that_a_new_view_carries_over_is_good(world, three):
    proposed = payload(*three, time_ms=world.now_ms - 30 * 60_000)
    world.pooled(*three)
    world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=True)
    world.desk.obtain(1, proposed.digest, fresh=False)
    assert [found for _, found, _ in world.answers] == [None, proposed]


def test_asked_again_without_the_clock_the_milder_question_counts(world, three):
    proposed = payload(*three, time_ms=world.now_ms - SKEW_MS - 1)
    world.pooled(*three)
    world.desk.obtain(1, proposed.digest, fresh=True)
    world.desk.obtain(1, proposed.digest, fresh=False)
    world.offer(proposed)
    assert world.answers == [(1, proposed, proposed.digest)]


async def test_bodies_of_more_bytes_than_a_batch_may_have_are_refused(monkeypatch):
    world = World(batch_bytes_max=1_024, transaction_bytes_max=1_024)
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(get_running_loop=lambda: world.hands))
    large = [transaction(size=2) for _ in range(3)]
    assert sum(len(each.raw) for each in large) > 1_024
    proposed = payload(*large)
    world.pooled(*large)
    world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=True)
    assert world.answers == [(1, None, proposed.digest)]


# Several heights, several batches, and the end.


async def test_a_batch_named_at_two_heights_is_answered_at_both(world, three):
    proposed = payload(*three)
    world.offer(proposed)
    world.desk.obtain(6, proposed.digest, fresh=True)
    world.desk.obtain(5, proposed.digest, fresh=True)
    assert await world.receive(proposed, three)
    assert world.answers == [(5, proposed, proposed.digest), (6, proposed, proposed.digest)]


async def test_one_body_completes_every_batch_that_names_it(world, three):
    first, second = payload(*three), payload(three[0])
    for height, proposed in ((1, first), (2, second)):
        world.offer(proposed)
        world.desk.obtain(height, proposed.digest, fresh=True)
    world.pooled(three[0])
    assert world.answers == [(2, second, second.digest)]
    world.pooled(*three[1:])
    assert world.answers[1:] == [(1, first, first.digest)]
    assert world.is_empty(first.digest)


def test_executing_one_height_keeps_what_a_higher_one_wants(world, three):
    proposed = payload(*three)
    world.offer(proposed)
    world.desk.obtain(5, proposed.digest, fresh=True)
    world.desk.obtain(6, proposed.digest, fresh=True)
    world.desk.forget(5)
    world.desk.release(proposed.digest)
    world.pooled(*three)
    assert world.answers == [(6, proposed, proposed.digest)]


def test_what_was_executed_leaves_nothing_behind(world, three):
    proposed = payload(*three)
    world.pooled(*three)
    world.offer(proposed)
    world.desk.obtain(1, proposed.digest, fresh=True)
    world.desk.release(proposed.digest)
    world.desk.forget(1)
    assert world.desk.payload(proposed.digest) is None
    assert world.desk.batch_of(proposed.digest) is None
    assert list(world.desk._ready) == [NULL.digest]


def test_offers_that_nobody_wants_push_out_only_the_oldest(world, three):
    wanted = payload(three[0])
    world.offer(wanted)
    world.desk.obtain(1, wanted.digest, fresh=True)
    offers = [payload(three[1], time_ms=TIME_MS + n) for n in range(module.KNOWN_MAX + 1)]
    for each in offers:
        world.offer(each)
    assert len(world.desk._offered) == module.KNOWN_MAX
    assert world.desk.batch_of(offers[-1].digest) == offers[-1].batch
    assert world.desk.batch_of(offers[0].digest) is None
    world.pooled(three[0])  # what is wanted is held apart from the offers
    assert world.answers == [(1, wanted, wanted.digest)]


def test_closing_cancels_every_timer(world, three):
    for height, each in enumerate(three, 1):
        proposed = payload(each)
        world.offer(proposed)
        world.desk.obtain(height, proposed.digest, fresh=True)
    assert len(world.hands.armed) == 3
    world.desk.close()
    assert world.hands.armed == []
