"""The driver: what is durable before what leaves, what survives liars, and what ends the node."""

import asyncio
import threading
from dataclasses import replace

import pytest

from consensus.effects import Broadcast, CancelTimer, Forget, Halt, Persist, SetTimer
from consensus.errors import InvalidMessage
from consensus.inputs import TimerFired, WorkPending
from consensus.messages import (
    NULL_DIGEST,
    Commit,
    NewView,
    Prepare,
    PreparedCertificate,
    PrePrepare,
    Seal,
    SealCertificate,
    ViewChange,
    encode,
)
from node.network.frames import Kind
from node.network.serving import RequestServer
from node.replication import chain, intake, payload_frames
from node.replication.codec import (
    decode_payload,
    decode_payload_request,
    encode_payload,
    encode_payload_request,
    encode_proposal,
)
from node.replication.driver import Halted
from storage import schema
from storage.memory import MemoryStore
from tests.replication.stage import on_stage
from tests.replication.world import (
    KEYS,
    NEW_KEY,
    PATIENCE_S,
    forged,
    payload,
    settle,
    signed,
    transaction,
    until,
)

OTHERS = {KEYS[index] for index in (0, 2, 3)}


@pytest.fixture
async def stage(monkeypatch):
    async with on_stage(monkeypatch) as made:
        yield made


@pytest.fixture
async def primary(monkeypatch):
    async with on_stage(monkeypatch, index=0) as made:
        yield made


@pytest.fixture
def one():
    return transaction()


def genesis_stable(stage):
    return SealCertificate(0, stage.chain.stored_header(0).digest, ())


# Durable first.


async def test_a_vote_leaves_after_it_and_its_batch_are_durable(stage, one):
    stage.pool(one)
    stage.store.hold()
    stage.propose(1, payload(one))
    await until(lambda: stage.store.waiting)
    await settle()
    assert stage.links.sent == []
    stage.store.release()
    await until(lambda: stage.sent(Prepare))
    (rows, is_synced) = stage.store.writes[-1]
    assert is_synced
    assert {key[:1] for key, _ in rows} == {schema.PAYLOAD, schema.WAL}
    assert {frame.to for frame in stage.frames(Kind.CONSENSUS)} == OTHERS


async def test_a_commit_leaves_after_its_certificate_is_durable(stage, one):
    stage.pool(one)
    proposed = payload(one)
    stage.propose(1, proposed)
    await until(lambda: stage.sent(Prepare))
    stage.store.hold()
    stage.prepare(1, proposed)
    await until(lambda: stage.store.waiting)
    await settle()
    assert stage.sent(Commit) == []
    stage.store.release()
    await until(lambda: stage.sent(Commit))


async def test_a_proposal_leaves_after_it_is_durable(primary, one):
    primary.store.hold()
    primary.pool(one)
    await until(lambda: primary.store.waiting)
    await settle()
    assert primary.links.sent == []
    primary.store.release()
    await until(lambda: primary.frames(Kind.PROPOSAL))
    assert {frame.to for frame in primary.frames(Kind.PROPOSAL)} == {KEYS[i] for i in (1, 2, 3)}
    assert primary.chain.stored_payload(1, primary.sent(PrePrepare)[0].digest).transactions == (
        one,
    )


async def test_a_view_change_leaves_after_it_is_durable(stage):
    stage.store.hold()
    await stage.leave_view()
    await until(lambda: stage.store.waiting)
    assert stage.sent(ViewChange) == []
    stage.store.release()
    await until(lambda: stage.sent(ViewChange))
    assert b"v" in stage.chain_store.wal()


async def test_what_gathers_while_the_disk_works_is_one_write(stage):
    batches = [payload(transaction()) for _ in range(6)]
    for each in batches:
        stage.pool(*each.transactions)
    stage.store.hold()
    before = len(stage.store.writes)
    for height, each in enumerate(batches, 1):
        stage.propose(height, each)
        if height == 1:
            await until(lambda: stage.store.waiting)
    await until(lambda: len(stage.driver._inputs) == 5)
    stage.store.release()
    await until(lambda: len(stage.sent(Prepare)) == 6)
    assert [is_synced for _, is_synced in stage.store.writes[before:]] == [True, True]


async def test_a_batch_that_comes_after_the_decision_is_durable_before_its_block(stage, one):
    """Nothing is voted for, so nothing but the execution itself asks for the disk."""
    await stage.leave_view()
    proposed = payload(one)
    stage.commit(1, proposed)
    await until(lambda: stage.frames(Kind.FETCH_PAYLOAD))
    answer = encode_payload(proposed.digest, proposed.batch.encode(), [one.raw])
    stage.driver.payload_frame(KEYS[2], answer)
    await until(lambda: stage.chain.height == 1)
    (row,), (block,) = stage.writes_of(schema.PAYLOAD), stage.writes_of(schema.BLOCK)[1:]
    assert row < block
    assert stage.store.writes[row][1]


async def test_a_row_written_after_it_was_forgotten_stays(monkeypatch):
    script = {"forget": [Forget(b"v")], "write": [Persist(b"v", b"new"), Broadcast(VOTE)]}
    async with on_stage(monkeypatch, replica=Scripted(script)) as stage:
        await until(lambda: not stage.driver._inputs)
        stage.driver.feed(TimerFired("forget"))
        stage.driver.feed(TimerFired("write"))
        await until(lambda: stage.links.sent)
        assert stage.chain_store.wal() == {b"v": b"new"}


async def test_a_height_is_sealed_when_its_certificate_can_be_read(stage, one):
    stage.pool(one)
    await stage.decide(1, payload(one))
    await until(lambda: stage.sent(Seal))
    header = stage.sent(Seal)[0].header
    stage.receive(*[Seal(1, header, sender) for sender in (0, 2)])
    await until(lambda: stage.timers.named("_flush_soon"))
    assert stage.listener.sealed == []  # `Listener.stable` itself looks for the certificate
    stage.timers.fire("_flush_soon")
    await until(lambda: stage.listener.sealed == [1])
    assert stage.chain_store.wal() == {}


# The way of a block.


async def test_a_block_is_executed_told_and_sealed(stage, one):
    stage.pool(one)
    await stage.decide(1, payload(one))
    await until(lambda: stage.sent(Seal))
    (block,) = stage.listener.blocks
    assert block.transactions == (one,)
    assert stage.sent(Seal)[0].header == block.header_digest
    assert len(stage.mempool) == 0
    assert stage.driver._desk.payload(block.payload_digest) is None


async def test_decisions_in_any_order_execute_in_the_order_of_heights(stage):
    batches = [payload(transaction()) for _ in range(3)]
    for height, each in reversed(list(enumerate(batches, 1))):
        stage.pool(*each.transactions)
        stage.propose(height, each)
        stage.prepare(height, each)
        stage.commit(height, each)
    await until(lambda: stage.chain.height == 3)
    await until(lambda: len(stage.listener.blocks) == 3)
    assert [block.payload_digest for block in stage.listener.blocks] == [b.digest for b in batches]


async def test_missing_bodies_are_fetched_of_the_primary_and_then_of_another(stage, one):
    proposed = payload(one)
    stage.propose(1, proposed)
    await until(lambda: stage.timers.named("_ask_next"))
    for _ in range(2):
        stage.timers.fire("_ask_next")
    first, second = stage.frames(Kind.FETCH_PAYLOAD)
    assert first.to == KEYS[0]
    assert second.to in OTHERS - {KEYS[0]}
    assert decode_payload_request(first.payload) == (1, proposed.digest, (one.digest,))
    stage.driver.payload_frame(second.to, encode_payload(proposed.digest, b"", [one.raw]))
    await until(lambda: stage.sent(Prepare))
    assert stage.links.punished == []


async def test_one_digest_at_two_heights_is_executed_twice_and_takes_effect_once(stage, one):
    """A lying primary names one batch at two heights, and this node learns of both as decided."""
    await stage.leave_view()
    proposed = payload(one)
    for height in (1, 2):
        stage.commit(height, proposed)
    await until(lambda: stage.frames(Kind.FETCH_PAYLOAD))
    answer = encode_payload(proposed.digest, proposed.batch.encode(), [one.raw])
    stage.driver.payload_frame(KEYS[2], answer)
    await until(lambda: stage.chain.height == 2)
    await until(lambda: len(stage.listener.blocks) == 2)
    codes = [receipt.code for block in stage.listener.blocks for receipt in block.receipts]
    assert codes == ["ok", "replayed"]


async def test_a_listener_that_fails_ends_the_driver(stage, one):
    stage.listener.on_executed = lambda block: {}[block]
    stage.pool(one)
    stage.propose(1, payload(one))
    stage.prepare(1, payload(one))
    stage.commit(1, payload(one))
    (error,) = await stage.end()
    assert isinstance(error, KeyError)


async def test_a_store_that_fails_ends_the_driver_with_nothing_sent(stage, one):
    stage.store.failure = OSError("no space left")
    stage.pool(one)
    stage.propose(1, payload(one))
    assert await stage.end() == (stage.store.failure,)
    assert stage.links.sent == []


# View changes.


async def test_what_a_dead_primary_proposed_in_vain_is_proposed_again(stage, one):
    stage.pool(one)
    stage.propose(1, payload(one))
    await until(lambda: stage.sent(Prepare))
    await stage.leave_view()
    stage.receive(*[ViewChange(1, genesis_stable(stage), (), sender) for sender in (2, 3)])
    await until(lambda: stage.frames(Kind.PROPOSAL))
    (again,) = stage.sent(PrePrepare)
    assert (again.view, again.height, again.sender) == (1, 1, 1)
    assert stage.driver._desk.payload(again.digest).transactions == (one,)


async def test_what_a_new_view_carries_over_is_not_proposed_twice(stage, one):
    proposed, another = payload(one), transaction()
    stage.pool(one)
    stage.propose(1, proposed)
    stage.prepare(1, proposed)
    await until(lambda: stage.sent(Commit))
    stage.pool(another)
    await stage.leave_view()
    stage.receive(*[ViewChange(1, genesis_stable(stage), (), sender) for sender in (2, 3)])
    await until(lambda: stage.frames(Kind.PROPOSAL))
    (new_view,) = stage.sent(NewView)
    assert [vote.digest for vote in new_view.pre_prepares] == [proposed.digest]
    (fresh,) = stage.sent(PrePrepare)
    assert fresh.height == 2
    assert stage.driver._desk.payload(fresh.digest).transactions == (another,)


async def test_a_restart_brings_back_nothing_of_what_is_final(monkeypatch, one):
    disk = MemoryStore()
    async with on_stage(monkeypatch, inner=disk) as stage:
        stage.pool(one)
        await stage.decide(1, payload(one))
    async with on_stage(monkeypatch, inner=disk) as stage:
        await until(lambda: stage.sent(Seal))
        await settle()
        assert list(stage.driver._desk._ready) == [NULL_DIGEST]
        assert stage.mempool._reservations == {}
        assert stage.driver._written == {}
        await stage.leave_view()
        await until(lambda: stage.sent(ViewChange))
        (asked,) = stage.sent(ViewChange)[0].prepared
        assert asked.pre_prepare.digest == payload(one).digest


# Liars.


async def test_a_bad_signature_is_punished_and_changes_nothing(stage, one):
    stage.pool(one)
    proposed = payload(one)
    stage.propose(1, proposed)
    await until(lambda: stage.sent(Prepare))
    stage.receive(Prepare(0, 1, proposed.digest, 2, bytes(64)), sign=False)
    await until(lambda: stage.links.punished)
    await settle()
    assert stage.links.punished == [(KEYS[2], 20, "a consensus message with a bad signature")]
    assert stage.sent(Commit) == []
    stage.receive(Prepare(0, 1, proposed.digest, 3, bytes(64)), sign=False)
    stage.receive(Prepare(0, 1, proposed.digest, 2))
    await until(lambda: stage.sent(Commit))


async def test_a_wrong_form_is_punished_and_the_others_messages_count(stage, one):
    stage.pool(one)
    proposed = payload(one)
    stage.propose(1, proposed)
    await until(lambda: stage.sent(Prepare))
    stage.receive(PrePrepare(0, 2, proposed.digest, 3))  # not the primary
    stage.prepare(1, proposed)
    await until(lambda: stage.sent(Commit))
    assert [key for key, *_ in stage.links.punished] == [KEYS[3]]


async def test_votes_after_their_quorum_are_not_verified(monkeypatch, one):
    checked = []
    monkeypatch.setattr(intake, "verify_all", lambda checks: checked.append(checks) or [True])
    async with on_stage(monkeypatch) as stage:
        stage.pool(one)
        proposed = payload(one)
        stage.propose(1, proposed)
        for sender in (2, 3):
            stage.receive(Prepare(0, 1, proposed.digest, sender))
            await until(lambda: not stage.driver._intake and not stage.driver._inputs)
        await until(lambda: stage.sent(Commit))
        before = len(checked)
        stage.receive(Prepare(0, 1, proposed.digest, 2), Prepare(0, 1, proposed.digest, 3))
        stage.receive(Prepare(0, 1, bytes(32), 3))
        await settle()
        assert len(checked) == before


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x93\x01", bytes(100), b"\xdd\xff\xff\xff\xff"])
async def test_frames_that_are_no_message_are_refused(stage, frame):
    for take in (
        stage.driver.consensus_frame,
        stage.driver.proposal_frame,
        stage.driver.payload_frame,
        stage.driver.payload_request_frame,
    ):
        with pytest.raises(InvalidMessage):
            take(KEYS[2], frame)


async def test_a_proposal_must_be_a_pre_prepare_with_its_batch(stage, one):
    proposed, other = payload(one), payload(transaction())
    vote = encode(signed(Prepare(0, 1, proposed.digest, 2)))
    with pytest.raises(InvalidMessage, match="begins with a pre-prepare"):
        stage.driver.proposal_frame(KEYS[2], encode_proposal(vote, proposed.batch.encode()))
    vote = encode(signed(PrePrepare(0, 1, proposed.digest, 0)))
    with pytest.raises(InvalidMessage, match="not the one that its digest names"):
        stage.driver.proposal_frame(KEYS[0], encode_proposal(vote, other.batch.encode()))


async def test_megabytes_are_refused_before_they_are_decoded(monkeypatch, stage):
    monkeypatch.setattr(intake, "decode", None)
    with pytest.raises(InvalidMessage, match="bytes for a quorum of 3"):
        stage.driver.consensus_frame(KEYS[2], bytes(2**20))


@pytest.mark.parametrize("validators", [4, 10])
def test_the_largest_honest_message_is_within_the_bound(validators):
    quorum, window, large = 2 * (validators - 1) // 3 + 1, 32, 2**50
    quorum = -(-(validators + (validators - 1) // 3 + 1) // 2)
    entries = tuple((sender, bytes(64)) for sender in range(quorum))
    votes = [PrePrepare(large, large + h, bytes(32), 0, bytes(64)) for h in range(window)]
    prepared = tuple(PreparedCertificate(vote, entries[1:]) for vote in votes)
    stable = SealCertificate(large, bytes(32), entries)
    view_changes = [ViewChange(large, stable, prepared, s, bytes(64)) for s in range(quorum)]
    largest = encode(NewView(large, tuple(view_changes), tuple(votes), 0, bytes(64)))
    assert len(largest) <= intake.message_bytes_max(quorum) < 4 * len(largest)


async def test_a_batch_with_a_forged_body_is_refused_and_the_node_goes_on(stage, one):
    proposed = payload(one, forged(transaction()))
    stage.propose(1, proposed)
    await until(lambda: stage.timers.named("_ask_next"))
    bodies = [each.raw for each in proposed.transactions]
    stage.driver.payload_frame(KEYS[0], encode_payload(proposed.digest, b"", bodies))
    await until(lambda: stage.sent(ViewChange))
    assert stage.sent(Prepare) == []
    assert stage.replica.view == 1
    assert stage.chain_store.payload_digests(1) == []


async def test_a_proposal_far_from_the_clock_gets_no_vote(stage, one):
    stage.pool(one)
    stage.propose(1, payload(one, time_ms=stage.now_ms - 15_001))
    await until(lambda: stage.sent(ViewChange))
    assert stage.sent(Prepare) == []


async def test_bodies_that_nobody_asked_for_are_punished(stage, one):
    proposed = payload(one)
    stage.propose(1, proposed)
    await until(lambda: stage.timers.named("_ask_next"))
    answer = encode_payload(proposed.digest, b"", [transaction().raw])
    stage.driver.payload_frame(KEYS[3], answer)
    await until(lambda: stage.links.punished)
    assert stage.links.punished == [(KEYS[3], 5, "the payload is not what was asked for")]
    stage.driver.payload_frame(KEYS[3], encode_payload(bytes(32), b"", [one.raw]))
    await settle()
    assert len(stage.links.punished) == 1  # of no interest is no lie


async def test_a_slow_disk_holds_the_intake_back(monkeypatch, stage, one):
    monkeypatch.setattr(intake, "BACKLOG_MAX", 20)
    stage.pool(one)
    stage.store.hold()
    stage.propose(1, payload(one))
    await until(lambda: stage.store.waiting)
    for height in range(2, 30):
        for sender in (2, 3):
            stage.receive(Prepare(0, height, bytes([height]) * 32, sender))
        await settle(5)
    assert len(stage.driver._inputs) <= 22  # and the two that were taken with the last
    assert len(stage.driver._intake) >= 30
    stage.store.release()
    await until(lambda: not stage.driver._intake)


async def test_frames_of_a_peer_without_a_vote_are_dropped_undecoded(stage, one):
    vote = signed(PrePrepare(0, 1, payload(one).digest, 0))
    proposal = encode_proposal(encode(vote), payload(one).batch.encode())
    for frame in (proposal, b""):
        stage.driver.proposal_frame(NEW_KEY, frame)
        stage.driver.consensus_frame(NEW_KEY, frame)
    assert [(key, points) for key, points, _ in stage.links.punished] == [(NEW_KEY, 1)] * 4
    assert len(stage.driver._intake) == 0


async def test_answers_wait_within_a_bound_of_bytes(monkeypatch, stage, one):
    gate = asyncio.Event()

    async def held(raws):
        await gate.wait()
        return [one]

    stage.driver._desk._verify = held
    proposed = payload(one)
    stage.propose(1, proposed)
    await until(lambda: stage.timers.named("_ask_next"))
    answer = encode_payload(proposed.digest, b"", [one.raw])
    monkeypatch.setattr(payload_frames, "WAITING_BYTES_MAX", 3 * len(answer))
    for _ in range(10):
        stage.driver.payload_frame(KEYS[3], answer)
    assert len(stage.driver._payloads._waiting) == 3
    gate.set()
    await until(lambda: stage.sent(Prepare))
    assert stage.links.punished == []
    assert stage.driver._payloads._waiting_bytes == 0


async def test_two_votes_of_one_validator_are_kept_as_evidence(stage, one):
    stage.receive(Prepare(0, 1, b"\x01" * 32, 2))
    await settle()
    stage.receive(Prepare(0, 1, b"\x02" * 32, 2))
    await until(lambda: stage.listener.accused)
    (pair,) = stage.listener.accused
    assert {vote.digest for vote in pair} == {b"\x01" * 32, b"\x02" * 32}
    await until(lambda: stage.timers.named("_flush_soon"))
    stage.timers.fire("_flush_soon")
    await until(lambda: stage.writes_of(schema.META + b"evidence/"))


# Answering others.


async def test_payloads_are_handed_out_from_memory_and_from_the_disk(stage, one):
    two = transaction()
    proposed = payload(one, two)
    stage.pool(one, two)
    stage.propose(1, proposed)
    await until(lambda: stage.sent(Prepare))
    some = encode_payload_request(1, proposed.digest, (two.digest, bytes(32)))
    stage.driver.payload_request_frame(KEYS[2], some)
    await until(lambda: stage.frames(Kind.PAYLOAD))
    (frame,) = stage.frames(Kind.PAYLOAD)
    assert frame.to == KEYS[2]
    expected = (proposed.digest, proposed.batch.encode(), (two.raw,))
    assert decode_payload(frame.payload) == expected
    await stage.decide(1, proposed)
    await until(lambda: stage.listener.blocks)
    stage.links.take()
    stage.driver.payload_request_frame(KEYS[3], encode_payload_request(1, proposed.digest, ()))
    await until(lambda: stage.frames(Kind.PAYLOAD))
    (frame,) = stage.frames(Kind.PAYLOAD)
    assert decode_payload(frame.payload)[2] == (one.raw, two.raw)


async def test_a_payload_is_handed_out_of_the_disk_as_it_is_stored(monkeypatch, stage, one):
    two = transaction()
    proposed = payload(one, two)
    stage.pool(one, two)
    await stage.decide(1, proposed)
    await until(lambda: stage.listener.blocks)
    stage.links.take()
    monkeypatch.setattr(chain, "decode_transaction", None)
    some = encode_payload_request(1, proposed.digest, (two.digest, bytes(32)))
    stage.driver.payload_request_frame(KEYS[2], some)
    await until(lambda: stage.frames(Kind.PAYLOAD))
    (frame,) = stage.frames(Kind.PAYLOAD)
    expected = (proposed.digest, proposed.batch.encode(), (two.raw,))
    assert decode_payload(frame.payload) == expected


async def test_what_is_not_here_is_answered_with_silence(stage):
    stage.driver.payload_request_frame(KEYS[2], encode_payload_request(9, b"\x07" * 32, ()))
    stage.driver.payload_request_frame(KEYS[2], encode_payload_request(9, NULL_DIGEST, ()))
    await until(lambda: not is_serving(stage))
    assert stage.links.sent == []


async def test_one_peer_has_one_answer_at_a_time_and_few_that_wait(monkeypatch, stage):
    gate, reads = threading.Event(), []

    def stored(height, digest):
        reads.append(digest)
        assert gate.wait(PATIENCE_S)

    monkeypatch.setattr(stage.driver._payloads, "_stored", stored)
    await settle()
    for number in range(1, 101):
        request = encode_payload_request(1, number.to_bytes(32, "big"), ())
        stage.driver.payload_request_frame(KEYS[2], request)
    stage.driver.payload_request_frame(KEYS[3], encode_payload_request(1, b"\xff" * 32, ()))
    await until(lambda: len(reads) == 2)
    await settle()
    assert b"\xff" * 32 in reads
    assert len(reads) == 2
    gate.set()
    await until(lambda: not is_serving(stage))
    assert len(reads) == 1 + payload_frames.SERVING.waiting_max + 1


@pytest.mark.parametrize("is_executed", [False, True])
async def test_what_is_read_for_a_peer_is_paid_out_of_its_bytes_a_second(
    monkeypatch, stage, one, is_executed
):
    now_ms = 0
    large = transaction(size=200)
    size = len(large.raw)
    monkeypatch.setattr(stage.driver._payloads, "_now_ms", lambda: now_ms)
    budget = replace(payload_frames.SERVING, bytes_per_s=2 * size)
    monkeypatch.setattr(stage.driver._payloads, "_server", RequestServer(budget))
    proposed = payload(one, large)
    stage.pool(one, large)
    if is_executed:
        await stage.decide(1, proposed)
        await until(lambda: stage.listener.blocks)
    else:
        stage.propose(1, proposed)
        await until(lambda: stage.sent(Prepare))
    stage.links.take()
    small = encode_payload_request(1, proposed.digest, (one.digest,))  # all of it is read for that
    for _ in range(5):
        stage.driver.payload_request_frame(KEYS[2], small)
    await until(lambda: stage.driver._payloads._server.waiting == 3)
    await until(lambda: not stage.driver._payloads._server._in_hand)
    assert len(stage.frames(Kind.PAYLOAD)) == 2
    stage.driver.payload_request_frame(KEYS[3], small)
    await until(lambda: stage.frames(Kind.PAYLOAD)[2:])
    assert [frame.to for frame in stage.frames(Kind.PAYLOAD)] == [KEYS[2], KEYS[2], KEYS[3]]
    stage.timers.fire("_serve_again")
    assert stage.driver._payloads._server.waiting == 3
    now_ms = 1_000
    stage.timers.fire("_serve_again")
    await until(lambda: stage.frames(Kind.PAYLOAD)[3:])


async def test_requests_from_before_the_start_are_answered_and_the_end_leaves_no_timer(monkeypatch):
    async with on_stage(monkeypatch) as stage:
        for number in range(1, 5):
            request = encode_payload_request(1, number.to_bytes(32, "big"), ())
            stage.driver.payload_request_frame(KEYS[2], request)
        assert stage.driver._payloads._server.waiting == 4
        await until(lambda: not is_serving(stage))
        assert stage.timers.named("_serve_again")
    assert not stage.timers.named("_serve_again")


def is_serving(stage):
    """Whether an answer is being read or a request waits."""
    server = stage.driver._payloads._server
    return server.waiting or server._in_hand


# Timers and the end.

VOTE = signed(Prepare(0, 1, b"\x01" * 32, 1))


class Scripted:
    """A replica that answers each timer with effects that the test wrote."""

    view = low = executed_height = 0
    can_propose = False

    def __init__(self, script):
        self._script = script
        self.fired = []

    def start(self, *_, **__):
        return []

    def is_relevant(self, _):
        return True

    def proposals(self):
        return {}

    def step(self, happened):
        if not isinstance(happened, TimerFired):
            return []
        self.fired.append(happened.name)
        return self._script.get(happened.name, [])


async def test_a_timer_fires_once(monkeypatch):
    replica = Scripted({"go": [SetTimer("view", 2_000)]})
    async with on_stage(monkeypatch, replica=replica) as stage:
        stage.driver.feed(TimerFired("go"))
        await until(lambda: stage.timers.named("view"))
        stage.timers.fire("view")
        await until(lambda: replica.fired == ["go", "view"])
        assert stage.driver._timers == {}


@pytest.mark.parametrize("then", [[CancelTimer("view")], [SetTimer("view", 9_000)]])
async def test_a_timer_that_was_cancelled_or_replaced_never_fires(monkeypatch, then):
    """Not even when it had gone off and its firing waits behind what cancels it."""
    replica = Scripted({"go": [SetTimer("view", 2_000)], "then": then})
    async with on_stage(monkeypatch, replica=replica) as stage:
        stage.driver.feed(TimerFired("go"))
        await until(lambda: stage.timers.named("view"))
        stage.driver.feed(TimerFired("then"))
        stage.timers.fire("view")
        await until(lambda: "then" in replica.fired)
        await settle()
        assert replica.fired == ["go", "then"]
        assert len(stage.timers.named("view")) == len(then) - isinstance(then[0], CancelTimer)


async def test_work_that_is_done_cancels_the_view_timer(stage):
    stage.driver.feed(WorkPending(True))
    await until(lambda: stage.timers.named("view"))
    stage.driver.feed(WorkPending(False))
    stage.timers.fire("view")
    await until(lambda: not stage.driver._inputs)
    await settle()
    assert stage.replica.view == 0
    assert stage.timers.named("view") == []


async def test_a_halt_ends_the_driver_with_its_reason(monkeypatch):
    script = {"go": [Persist(b"v", b"x"), Broadcast(VOTE), Halt("two digests"), Broadcast(VOTE)]}
    async with on_stage(monkeypatch, replica=Scripted(script)) as stage:
        stage.driver.feed(TimerFired("go"))
        (error,) = await stage.end()
        assert isinstance(error, Halted)
        assert str(error) == "two digests"
        assert len(stage.links.sent) == 3  # what came before the halt, and nothing after it


async def test_the_end_cancels_every_timer(monkeypatch, one):
    async with on_stage(monkeypatch) as stage:
        stage.driver.feed(WorkPending(True))
        stage.propose(1, payload(one))
        await until(lambda: stage.timers.named("view") and stage.timers.named("_ask_next"))
    assert all(handle.cancelled() for handle, *_ in stage.timers.armed)
