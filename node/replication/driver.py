"""Performs what the replica asks for.

One task steps the replica through everything that has arrived, writes all rows that must be durable
in one synced batch, and only then sends. While the disk works, more input gathers: the slower the
disk, the larger the group. `intake` checks signatures before the replica sees a message, and
`payload_frames` has to do with batches that peers ask for and send.
"""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from consensus.effects import (
    Broadcast,
    CancelTimer,
    Effect,
    Evidence,
    Execute,
    Forget,
    Halt,
    NeedSync,
    ObtainPayload,
    Persist,
    Send,
    SetTimer,
    Stable,
    ViewEntered,
)
from consensus.errors import InvalidMessage
from consensus.inputs import (
    Executed,
    Input,
    PayloadReady,
    PayloadRefused,
    Propose,
    TimerFired,
)
from consensus.messages import (
    Message,
    NewView,
    PrePrepare,
    SealCertificate,
    ViewChange,
    decode,
    encode,
)
from consensus.replica import Replica
from consensus.validators import ValidatorSchedule
from consensus.view_change import stable_certificate
from consensus.wire import pack
from node.ledger.block import encode_certificate
from node.ledger.execution import ExecutedBlock
from node.ledger.transaction import Transaction
from node.ledger.verifier import SignatureVerifier
from node.network.frames import Kind
from node.network.transport import Priority
from node.replication.chain import Chain, Payload, put_payload
from node.replication.codec import (
    decode_proposal,
    encode_payload_request,
    encode_proposal,
)
from node.replication.intake import Intake
from node.replication.links import Links
from node.replication.payload_frames import PayloadFrames
from node.replication.payloads import PayloadDesk, Pool, Rules, VerifyBodies
from node.replication.proposer import Proposer
from node.worker import Worker
from storage.chain import ChainStore
from storage.kv import KeyValueStore, WriteBatch

log = logging.getLogger(__name__)

STEPS_PER_TURN = 512  # inputs taken before the loop lets others run
EVIDENCE_MAX = 1_000  # pairs stored per run: a liar must not fill the disk
LAZY_FLUSH_S = 0.005


class Halted(Exception):
    """The replica stopped for safety; the text is for the operator."""


class Listener(Protocol):
    """Who is told what happened, on the event loop, in order."""

    def executed(self, block: ExecutedBlock) -> None:
        """A block is final and durable here."""
        ...

    def stable(self, certificate: SealCertificate) -> None:
        """A height is sealed by a quorum."""
        ...

    def evidence(self, first: Message, second: Message) -> None:
        """A validator contradicted itself."""
        ...

    def need_sync(self, height: int) -> None:
        """The replica fell behind the window."""
        ...

    def view_entered(self, view: int) -> None:
        """The replica works in another view."""
        ...


@dataclass(frozen=True, slots=True)
class _Fired:
    name: str
    handle: asyncio.TimerHandle


class Driver:
    """The loop around one replica."""

    def __init__(
        self,
        *,
        replica: Replica,
        schedule: ValidatorSchedule,
        chain_id: bytes,
        own_key: bytes,
        store: KeyValueStore,
        chain_store: ChainStore,
        chain: Chain,
        proposer: Proposer,
        pool: Pool,
        verify_bodies: VerifyBodies,
        rules: Rules,
        now_ms: Callable[[], int],
        verifier: SignatureVerifier,
        links: Links,
        listener: Listener,
    ) -> None:
        self._replica = replica
        self._schedule = schedule
        self._own_key = own_key
        self._store = store
        self._chain_store = chain_store
        self._chain = chain
        self._proposer = proposer
        self._links = links
        self._listener = listener
        self._desk = PayloadDesk(pool, verify_bodies, self._ask, self._answered, now_ms, rules)
        self._thread = Worker("wal")
        self._inputs: deque[Input | _Fired] = deque()
        self._woken = asyncio.Event()
        self._intake = Intake(
            replica=replica,
            schedule=schedule,
            chain_id=chain_id,
            verifier=verifier,
            punish=links.punish,
            feed=self.feed,
            backlog=lambda: len(self._inputs),
        )
        self._payloads = PayloadFrames(self._desk, links, chain_store.payload)
        self._executions: deque[Execute] = deque()
        self._execution_woken = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._rows = WriteBatch()  # in order; durable with the next Persist or Execute, or soon
        self._has_new_payload = False  # among the rows
        self._sealed: list[SealCertificate] = []  # whose certificates are among the rows
        self._flush: asyncio.TimerHandle | None = None
        self._flush_due = False
        self._written: dict[int, set[bytes]] = {}
        self._evidence_kept = 0

    @property
    def view(self) -> int:
        """The replica's view."""
        return self._replica.view

    def feed(self, happened: Input) -> None:
        """Hand one input to the replica; it is taken in order on the driver's task."""
        self._inputs.append(happened)
        self._woken.set()

    def wake(self) -> None:
        """Look again whether there is something to propose."""
        self._woken.set()

    def transactions_arrived(self, transactions: Sequence[Transaction]) -> None:
        """Take note of verified transactions that entered the mempool."""
        self._desk.arrived(transactions)
        self._woken.set()

    def consensus_frame(self, peer: bytes, payload: bytes) -> None:
        """Take one CONSENSUS frame, an encoded message. Raises `InvalidMessage`."""
        if self._intake.admit(peer):
            self._intake.frame(peer, payload)

    def proposal_frame(self, peer: bytes, payload: bytes) -> None:
        """Take one PROPOSAL frame: a pre-prepare and its batch. Raises `InvalidMessage`."""
        if not self._intake.admit(peer):
            return
        encoded, batch = decode_proposal(payload)
        message = decode(encoded)
        if not isinstance(message, PrePrepare):
            raise InvalidMessage("a proposal begins with a pre-prepare")
        if not self._replica.is_relevant(message):
            return
        if not self._desk.offer(message.digest, batch, peer):
            raise InvalidMessage("the batch is not the one that its digest names")
        self._intake.take(peer, message, len(encoded))

    def payload_frame(self, peer: bytes, payload: bytes) -> None:
        """Take one PAYLOAD frame, an answer to our request. Raises `InvalidMessage`."""
        self._payloads.answer_frame(peer, payload)

    def payload_request_frame(self, peer: bytes, payload: bytes) -> None:
        """Take one FETCH_PAYLOAD frame. Raises `InvalidMessage`."""
        self._payloads.request_frame(peer, payload)

    async def run(self, effects: Sequence[Effect]) -> None:
        """Perform `effects` (what `Replica.start` returned), then work until cancelled.

        Raises `Halted` when the replica stops for safety.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._consensus_loop(effects), name="consensus")
                tasks.create_task(self._execution_loop(), name="execution")
                tasks.create_task(self._intake.run(), name="verification")
                tasks.create_task(self._payloads.run(), name="payloads")
        finally:
            self._close()

    # The consensus loop.

    async def _consensus_loop(self, effects: Sequence[Effect]) -> None:
        await self._perform([e for e in effects if not self._perform_early(e)])
        while True:
            await self._woken.wait()
            self._woken.clear()
            later = self._step()
            self._propose(later)
            await self._perform(later)
            if self._flush_due:
                await self._write(sync=False)
            if self._inputs:
                self._woken.set()
                await asyncio.sleep(0)

    def _step(self) -> list[Effect]:
        later: list[Effect] = []
        for _ in range(STEPS_PER_TURN):
            if not self._inputs:
                break
            happened = self._inputs.popleft()
            if isinstance(happened, _Fired):
                if self._timers.get(happened.name) is not happened.handle:
                    continue  # cancelled or started anew after it fired
                del self._timers[happened.name]
                happened = TimerFired(happened.name)
            self._collect(self._replica.step(happened), later)
        self._intake.wake()
        return later

    def _propose(self, later: list[Effect]) -> None:
        replica = self._replica
        while replica.can_propose:
            height = replica.next_height
            payload = self._proposer.next(
                height,
                in_flight=height - 1 - self._chain.height,
            )
            if payload is None:
                return
            self._desk.keep(payload)
            self._write_payload(height, payload)
            self._collect(replica.step(Propose(payload.digest)), later)

    def _collect(self, effects: Sequence[Effect], later: list[Effect]) -> None:
        for effect in effects:
            if not self._perform_early(effect):
                later.append(effect)

    def _perform_early(self, effect: Effect) -> bool:
        """Perform what need not wait for the disk; False for everything else."""
        match effect:
            case SetTimer(name, delay_ms):
                self._set_timer(name, delay_ms)
            case CancelTimer(name):
                handle = self._timers.pop(name, None)
                if handle is not None:
                    handle.cancel()
            case ObtainPayload(height, digest, fresh):
                self._obtain(height, digest, fresh=fresh)
            case ViewEntered():
                # Before anything is proposed in the new view; the listener is told in its turn.
                self._proposer.view_entered(self._replica.proposals())
                return False
            case _:
                return False
        return True

    async def _perform(self, effects: Sequence[Effect]) -> None:
        must_sync = False
        for effect in effects:
            match effect:
                case Persist(key, value):
                    self._chain_store.put_wal(self._rows, key, value)
                    must_sync = True
                case Forget(key):
                    self._chain_store.delete_wal(self._rows, key)
                case Execute():
                    # The batch may have come after the votes that decided it: no Persist then.
                    must_sync = must_sync or self._has_new_payload
                case Stable(certificate):
                    self._became_stable(certificate)
                case _:
                    pass
        if must_sync:
            await self._write(sync=True)
        for effect in effects:
            self._act(effect)
        if self._rows.operations and self._flush is None:
            loop = asyncio.get_running_loop()
            self._flush = loop.call_later(LAZY_FLUSH_S, self._flush_soon)

    def _act(self, effect: Effect) -> None:
        match effect:
            case Broadcast(message):
                self._broadcast(message)
            case Send(to, message):
                self._send(to, message)
            case Execute():
                self._executions.append(effect)
                self._execution_woken.set()
            case Evidence(first, second):
                self._keep_evidence(first, second)
                self._listener.evidence(first, second)
            case NeedSync(height):
                self._listener.need_sync(height)
            case ViewEntered(view):
                self._listener.view_entered(view)
            case Halt(reason):
                raise Halted(reason)
            case _:
                pass  # Persist, Forget and Stable are rows already

    # Rows.

    async def _write(self, *, sync: bool) -> None:
        rows, self._rows = self._rows, WriteBatch()
        sealed, self._sealed = self._sealed, []
        sync, self._has_new_payload = sync or self._has_new_payload, False
        if self._flush is not None:
            self._flush.cancel()
        self._flush, self._flush_due = None, False
        await self._thread.call(partial(self._store.write, rows, sync=sync))
        for certificate in sealed:
            self._listener.stable(certificate)

    def _flush_soon(self) -> None:
        self._flush_due = True
        self._woken.set()

    def _write_payload(self, height: int, payload: Payload) -> None:
        if payload.batch is not None:
            put_payload(self._chain_store, self._rows, height, payload)
            self._written.setdefault(height, set()).add(payload.digest)
            self._has_new_payload = True

    def _became_stable(self, certificate: SealCertificate) -> None:
        height = certificate.height
        self._chain_store.put_certificate(self._rows, height, encode_certificate(certificate))
        self._sealed.append(certificate)

    def _keep_evidence(self, first: Message, second: Message) -> None:
        """Store two signed messages that together convict their sender."""
        if self._evidence_kept < EVIDENCE_MAX:
            self._evidence_kept += 1
            pair = pack((encode(first), encode(second)))
            name = f"evidence/{hashlib.sha256(pair).hexdigest()[:32]}"
            self._chain_store.put_meta(self._rows, name, pair)

    def _drop_superseded(self, height: int, executed: bytes) -> None:
        """Delete payload rows of this height that another view proposed in vain."""
        for digest in self._written.pop(height, set()) - {executed}:
            self._chain_store.delete_payload(self._rows, height, digest)
            self._desk.release(digest)

    # Messages.

    def _broadcast(self, message: Message) -> None:
        keys = [v.public_key for v in self._schedule.at(_height_of(message)).validators]
        peers = [key for key in keys if key != self._own_key]
        kind, frame = self._frame(message)
        self._links.broadcast(peers, kind, frame, Priority.CONSENSUS)

    def _send(self, to: bytes, message: Message) -> None:
        kind, frame = self._frame(message)
        self._links.send(to, kind, frame, Priority.CONSENSUS)

    def _frame(self, message: Message) -> tuple[Kind, bytes]:
        encoded = encode(message)
        if isinstance(message, PrePrepare):
            batch = self._desk.batch_of(message.digest)
            if batch is not None:
                return Kind.PROPOSAL, encode_proposal(encoded, batch.encode())
        return Kind.CONSENSUS, encoded

    # Payloads.

    def _obtain(self, height: int, digest: bytes, *, fresh: bool) -> None:
        if height <= self._chain.height:
            # Voted for anew, so that others can commit it. It is final, and its rows are here.
            if self._chain_store.payload_digest(height) == digest:
                self.feed(PayloadReady(height, digest))
            return
        if self._desk.payload(digest) is None:
            stored = self._chain.stored_payload(height, digest)
            if stored is not None:
                self._desk.keep(stored)
        self._desk.obtain(height, digest, fresh=fresh)

    def _ask(
        self,
        height: int,
        digest: bytes,
        missing: tuple[bytes, ...],
        source: bytes | None,
        turn: int,
    ) -> None:
        keys = [v.public_key for v in self._schedule.at(height).validators]
        others = [key for key in keys if key not in (self._own_key, source)]
        order = ([source] if source in keys else []) + others
        if order:
            request = encode_payload_request(height, digest, missing)
            peer = order[turn % len(order)]
            self._links.send(peer, Kind.FETCH_PAYLOAD, request, Priority.PAYLOAD)

    def _answered(self, height: int, payload: Payload | None, digest: bytes) -> None:
        if payload is None:
            self.feed(PayloadRefused(height, digest))
            return
        self._write_payload(height, payload)
        if payload.batch is not None:
            self._proposer.reserve(height, payload.batch.transactions)
        self.feed(PayloadReady(height, digest))

    # Execution.

    async def _execution_loop(self) -> None:
        while True:
            await self._execution_woken.wait()
            self._execution_woken.clear()
            while self._executions:
                effect = self._executions.popleft()
                payload = self._desk.payload(effect.digest)
                if payload is None:
                    payload = self._chain.stored_payload(effect.height, effect.digest)
                if payload is None:
                    raise Halted(f"the committed batch of height {effect.height} is not on disk")
                executed = await self._chain.execute(effect.height, payload)
                if executed is not None:
                    self.after_execution(executed, effect.digest)
                    self.feed(Executed(effect.height, executed.header_digest))

    def after_execution(self, executed: ExecutedBlock, digest: bytes) -> None:
        """Let go of what a final block no longer needs and tell the listener."""
        height = executed.header.height
        self._proposer.executed(height, executed)
        self._drop_superseded(height, digest)
        self._desk.release(digest)
        self._desk.forget(height)
        self._listener.executed(executed)

    # Timers.

    def _set_timer(self, name: str, delay_ms: int) -> None:
        old = self._timers.pop(name, None)
        if old is not None:
            old.cancel()
        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(delay_ms / 1000, self._fire, name)

    def _fire(self, name: str) -> None:
        handle = self._timers.get(name)
        if handle is not None:
            self._inputs.append(_Fired(name, handle))
            self._woken.set()

    def _close(self) -> None:
        for handle in self._timers.values():
            handle.cancel()
        if self._flush is not None:
            self._flush.cancel()
        self._desk.close()
        self._thread.close()


def _height_of(message: Message) -> int:
    """Return a height whose validators `message` is for."""
    match message:
        case ViewChange():
            return message.stable.height + 1
        case NewView():
            return stable_certificate(message.view_changes).height + 1
        case _:
            return message.height
