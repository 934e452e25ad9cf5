"""Admission: one verification for each signature, shared hops, fair lanes, and a clear no."""

import asyncio
import contextlib
import threading
from functools import partial

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.ledger import admission as module
from node.ledger.admission import Admission, AdmissionBounds
from node.ledger.errors import Refused
from node.ledger.limits import Limits
from node.ledger.mempool import Mempool, MempoolBounds
from node.ledger.transaction import Operation, decode_transaction, sign_transaction
from node.worker import Worker

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CHAIN = bytes(range(32))
DECODE = partial(decode_transaction, limits=Limits(), chain_id=CHAIN)


def transaction(label=0, *, sign=KEY.sign, salt=None, chain_id=CHAIN):
    return sign_transaction(
        sign,
        KEY.public_key().public_bytes_raw(),
        chain_id=chain_id,
        institution="st-anna",
        valid_until=9,
        operations=[Operation("test.label", (label,))],
        salt=salt,
    )


def forged(label=0):
    return transaction(label, sign=lambda _: bytes(64))


def unexpected(refused):
    """Nothing offered here is refused, unless the admission closes first."""
    assert refused.sentence == "the node is stopping", refused


class Desk:
    """An Admission whose worker can be held, and which writes down what the worker did."""

    def __init__(self, monkeypatch, mempool_bounds=MempoolBounds(), bounds=AdmissionBounds()):  # noqa: B008
        self.mempool = Mempool(mempool_bounds)
        self.accepted, self.batches, self.signatures, self.refuse = [], [], [], {}
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.pool = Worker("verify")
        self.admission = Admission(
            self.mempool,
            self.pool,
            self.check,
            decode=DECODE,
            now_ms=lambda: 0,
            on_accepted=lambda batch: self.accepted.append(list(batch)),
            bounds=bounds,
        )
        judge = self.admission._judge
        monkeypatch.setattr(self.admission, "_judge", partial(self.judge, judge))
        monkeypatch.setattr(module, "is_valid", self.is_valid)

    def judge(self, judge, batch):
        self.batches.append([job.transaction for job in batch])
        self.entered.set()
        assert self.gate.wait(30)
        return judge(batch)

    def is_valid(self, public_key, signed, signature):
        assert threading.current_thread() is not threading.main_thread()
        self.signatures.append(signature)
        return signature != bytes(64)

    def check(self, each):
        assert threading.current_thread() is not threading.main_thread()
        refused = self.refuse.get(each.id)
        if isinstance(refused, Refused | None):
            return refused
        raise refused

    def hold(self):
        self.gate.clear()
        self.entered.clear()

    async def until_held(self):
        assert await asyncio.to_thread(self.entered.wait, 30)


@pytest.fixture
async def make(monkeypatch):
    async with contextlib.AsyncExitStack() as stack:

        async def build(**options):
            desk = Desk(monkeypatch, **options)
            desk.task = asyncio.create_task(desk.admission.run())
            stack.push_async_callback(close, desk)
            return desk

        yield build


async def close(desk):
    desk.gate.set()
    desk.task.cancel()
    await asyncio.wait([desk.task])
    desk.pool.close()


async def refusal(awaitable):
    with pytest.raises(Refused) as refused:
        await awaitable
    return refused.value.code


async def test_a_good_transaction_enters_the_mempool_and_is_announced(make):
    desk = await make()
    each = transaction()
    assert await desk.admission.submit(each.raw) == each
    assert desk.mempool.get(each.digest) == each
    assert desk.accepted == [[each]]
    assert desk.admission.backlog == 0


async def test_each_fault_has_its_code(make):
    desk = await make()
    submit = desk.admission.submit
    assert await refusal(submit(b"")) == "malformed"
    assert await refusal(submit(bytes(70_000))) == "too_large"
    other = transaction(chain_id=bytes(32))
    assert await refusal(submit(other.raw)) == "wrong_chain"
    assert await refusal(submit(forged().raw)) == "signature_invalid"
    suspended = transaction()
    desk.refuse[suspended.id] = Refused("member_suspended", "")
    assert await refusal(submit(suspended.raw)) == "member_suspended"
    assert len(desk.mempool) == 0
    assert desk.accepted == []
    assert desk.admission.backlog == 0


async def test_the_mempool_has_the_last_word(make):
    desk = await make(mempool_bounds=MempoolBounds(institution_count_max=1))
    await desk.admission.submit(transaction(1).raw)
    assert await refusal(desk.admission.submit(transaction(2).raw)) == "quota_exceeded"


async def test_a_forged_sender_is_not_looked_up_in_the_state(make):
    desk = await make()
    bad = forged()
    desk.refuse[bad.id] = AssertionError("looked up")
    assert await refusal(desk.admission.submit(bad.raw)) == "signature_invalid"


async def test_what_arrives_meanwhile_shares_the_next_batch(make):
    desk = await make()
    desk.hold()
    first = asyncio.create_task(desk.admission.submit(transaction(0).raw))
    await desk.until_held()
    rest = [asyncio.create_task(desk.admission.submit(transaction(i).raw)) for i in range(1, 20)]
    await asyncio.sleep(0)
    desk.gate.set()
    await asyncio.gather(first, *rest)
    assert [len(batch) for batch in desk.batches] == [1, 19]
    assert [len(batch) for batch in desk.accepted] == [1, 19]


async def test_a_batch_is_bounded(make):
    desk = await make(bounds=AdmissionBounds(batch_max=4))
    desk.admission.offer([transaction(i).raw for i in range(10)], unexpected)
    await desk.admission.submit(transaction("last").raw)
    assert max(len(batch) for batch in desk.batches) == 4


async def test_a_duplicate_costs_no_signature_check(make):
    desk = await make()
    each = transaction()
    await desk.admission.submit(each.raw)
    twin = transaction(salt=each.salt, sign=lambda _: b"\x01" * 64)
    assert (twin.id, twin.digest != each.digest) == (each.id, True)
    assert await refusal(desk.admission.submit(each.raw)) == "duplicate"
    assert await refusal(desk.admission.submit(twin.raw)) == "duplicate"
    desk.admission.offer([each.raw, twin.raw], unexpected)
    assert await desk.admission.verify([each.raw]) == [each]
    desk.mempool.remove([each.digest])
    assert await refusal(desk.admission.submit(each.raw)) == "duplicate"
    assert len(desk.signatures) == 1


async def test_the_same_bytes_under_way_share_one_check_and_one_answer(make):
    desk = await make()
    desk.hold()
    each, bad = transaction(), forged()
    tasks = [asyncio.create_task(desk.admission.submit(each.raw)) for _ in range(2)]
    tasks += [asyncio.create_task(desk.admission.verify([each.raw, each.raw]))]
    tasks += [asyncio.create_task(desk.admission.submit(bad.raw)) for _ in range(2)]
    await desk.until_held()
    desk.admission.offer([each.raw], unexpected)
    tasks += [asyncio.create_task(desk.admission.verify([each.raw]))]
    await asyncio.sleep(0)
    desk.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[:3] == [each, each, [each, each]]
    assert results[5] == [each]
    assert [error.code for error in results[3:5]] == ["signature_invalid"] * 2
    assert len(desk.signatures) == 2
    assert desk.accepted == [[each]]


async def test_a_signature_is_verified_once_also_between_proposal_and_gossip(make):
    desk = await make()
    each = transaction()
    assert await desk.admission.verify([each.raw]) == [each]
    assert len(desk.mempool) == 0
    await desk.admission.submit(each.raw)
    assert desk.mempool.get(each.digest) == each
    assert len(desk.signatures) == 1


async def test_the_memory_of_verified_signatures_is_bounded(make):
    desk = await make(bounds=AdmissionBounds(verified_max=2))
    many = [transaction(i) for i in range(5)]
    assert await desk.admission.verify([each.raw for each in many]) == many
    assert len(desk.admission._verified) == 2


async def test_a_forgery_is_not_remembered_as_verified(make):
    desk = await make()
    for _ in range(2):
        assert await refusal(desk.admission.submit(forged(1).raw)) == "signature_invalid"
    assert not desk.admission._verified


async def test_bodies_are_answered_in_order_with_their_faults(make):
    desk = await make()
    good, replayed, malformed = transaction(1), transaction(2), transaction(3)
    desk.refuse[replayed.id] = Refused("replayed", "")
    desk.refuse[malformed.id] = Refused("operation_invalid", "")
    raws = [b"junk", good.raw, forged().raw, replayed.raw, malformed.raw]
    first, *rest = await desk.admission.verify(raws)
    assert first.code == "malformed"
    assert rest[0] == good
    assert rest[1].code == "signature_invalid"
    assert rest[2] == replayed  # the state may say no at execution: that stops no view
    assert rest[3].code == "operation_invalid"
    strict = await desk.admission.verify(raws, state=True)
    assert strict[3].code == "replayed"
    assert await desk.admission.verify([]) == []
    assert desk.accepted == []


async def test_bodies_of_a_proposal_overtake_everything(make):
    desk = await make(bounds=AdmissionBounds(batch_max=4))
    desk.hold()
    gossip = [transaction(i) for i in range(12)]
    desk.admission.offer([each.raw for each in gossip], unexpected)
    await desk.until_held()
    wanted = [transaction("body"), gossip[11]]
    answer = asyncio.create_task(desk.admission.verify([each.raw for each in wanted]))
    await asyncio.sleep(0)
    desk.gate.set()
    assert await answer == wanted
    await desk.admission.submit(transaction("last").raw)
    assert desk.batches[1][:2] == wanted
    assert desk.mempool.get(gossip[11].digest) == gossip[11]  # it was offered, too
    assert desk.mempool.get(wanted[0].digest) is None
    assert len(desk.signatures) == 14


async def test_a_flooding_peer_fills_its_own_lane_only(make):
    desk = await make(bounds=AdmissionBounds(lane_count_max=5, batch_max=4))
    desk.hold()
    refusals = []
    desk.admission.offer([transaction("under way").raw], unexpected, source="other")
    await desk.until_held()
    flood = [transaction(i).raw for i in range(20)]
    desk.admission.offer(flood, refusals.append, source="flood")
    assert [each.code for each in refusals] == ["busy"] * 15
    assert not refusals[0].permanent
    quiet = asyncio.create_task(desk.admission.submit(transaction("quiet").raw))
    await asyncio.sleep(0)
    desk.gate.set()
    await quiet
    assert quiet.result() in desk.batches[1]  # not behind the flood


async def test_an_offer_repeated_while_under_way_leaves_nothing_behind(make):
    desk = await make()
    desk.hold()
    each = transaction()
    for _ in range(100):
        desk.admission.offer([each.raw, each.raw], unexpected)
    await desk.until_held()
    desk.admission.offer([each.raw], unexpected)
    (job,) = desk.admission._jobs.values()
    assert len(job.admitted) == 1


async def test_a_lane_is_bounded_in_bytes(make):
    size = len(transaction().raw)
    desk = await make(bounds=AdmissionBounds(lane_bytes_max=3 * size))
    refusals = []
    desk.admission.offer([transaction(i).raw for i in range(5)], refusals.append)
    assert [each.code for each in refusals] == ["busy"] * 2


async def test_a_peer_is_told_of_each_fault_and_not_of_what_is_known(make):
    desk = await make()
    refusals = []
    known = transaction()
    await desk.admission.submit(known.raw)
    desk.admission.offer([b"junk", known.raw, forged().raw], refusals.append)
    await desk.admission.submit(transaction("last").raw)
    assert [each.code for each in refusals] == ["malformed", "signature_invalid"]
    assert all(each.permanent for each in refusals)


async def test_a_caller_that_gave_up_harms_nobody(make):
    desk = await make()
    desk.hold()
    each, other = transaction(1), transaction(2)
    tasks = [
        asyncio.create_task(desk.admission.submit(each.raw)),
        asyncio.create_task(desk.admission.verify([other.raw])),
    ]
    await desk.until_held()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    desk.gate.set()
    await desk.admission.submit(transaction("last").raw)
    assert desk.mempool.get(each.digest) == each


async def test_a_stopping_node_answers_everybody(make):
    desk = await make()
    desk.hold()
    each = transaction()
    tasks = [
        asyncio.create_task(desk.admission.submit(each.raw)),
        asyncio.create_task(desk.admission.verify([each.raw, transaction("body").raw])),
    ]
    await desk.until_held()
    waiting = asyncio.create_task(desk.admission.submit(transaction("waits").raw))
    await asyncio.sleep(0)
    desk.task.cancel()
    assert await refusal(tasks[0]) == "busy"
    assert [verdict.code for verdict in await tasks[1]] == ["busy", "busy"]
    assert await refusal(waiting) == "busy"
    desk.gate.set()
    assert await refusal(desk.admission.submit(transaction("late").raw)) == "busy"
    assert desk.admission.backlog == 0


async def test_a_failing_check_stops_the_node_and_answers_everybody(make):
    desk = await make()
    each = transaction()
    desk.refuse[each.id] = OSError("disk")
    assert await refusal(desk.admission.submit(each.raw)) == "busy"
    with pytest.raises(OSError, match="disk"):
        await desk.task
