"""One driver on a stage: real replica, chain, signatures and bytes. The test plays the others."""

import asyncio
from contextlib import asynccontextmanager

from consensus.inputs import WorkPending
from consensus.messages import Commit, Prepare, PrePrepare, SealCertificate, decode, encode
from consensus.options import Options
from consensus.replica import Replica
from node.ledger.block import decode_certificate
from node.ledger.errors import Refused
from node.ledger.mempool import Mempool
from node.ledger.transaction import decode_transaction
from node.ledger.verifier import SignatureVerifier, is_valid
from node.network.frames import Kind
from node.replication.codec import decode_proposal, encode_proposal
from node.replication.driver import Driver
from node.replication.payloads import Rules
from node.replication.proposer import BatchPolicy, Proposer
from storage.memory import MemoryStore
from tests.replication.world import (
    GENESIS,
    KEYS,
    NODES,
    SCHEDULE,
    TIME_MS,
    FakeLinks,
    HeldStore,
    open_chain,
    signed,
    until,
)

SKEW_MS = 15_000


class Timers:
    """Stands in for the loop's timers; they go off when the test says so."""

    def __init__(self, loop):
        self._loop = loop
        self.armed = []

    def call_later(self, delay_s, call, *arguments):
        handle = asyncio.TimerHandle(0, call, arguments, self._loop)
        self.armed.append((handle, call, arguments))
        return handle

    def named(self, word):
        """The live timers whose function or first argument has this name."""
        return [
            (handle, call, arguments)
            for handle, call, arguments in self.armed
            if not handle.cancelled() and word in (call.__name__, *arguments[:1])
        ]

    def fire(self, word):
        """Let the one live timer of this name go off."""
        (timer,) = self.named(word)
        self.armed.remove(timer)
        _, call, arguments = timer
        call(*arguments)


class Listener:
    def __init__(self, chain_store):
        self._chain_store = chain_store
        self.blocks, self.sealed, self.accused, self.behind, self.views = [], [], [], [], []
        self.on_executed = None

    def executed(self, block):
        self.blocks.append(block)
        if self.on_executed is not None:
            self.on_executed(block)

    def stable(self, certificate):
        assert decode_certificate(self._chain_store.certificate(certificate.height)) == certificate
        self.sealed.append(certificate.height)

    def evidence(self, first, second):
        self.accused.append((first, second))

    def need_sync(self, height):
        self.behind.append(height)

    def view_entered(self, view):
        self.views.append(view)


class Stage:
    """The driver of validator `index`; the network is `links`, the disk is `store`."""

    def __init__(self, index, timers, inner, replica=None):
        self.index = index
        self.timers = timers
        self.running = self.ended = None
        self.store = HeldStore(inner)
        self.chain, self.chain_store = open_chain(self.store)
        self.links = FakeLinks()
        self.listener = Listener(self.chain_store)
        self.mempool = Mempool()
        self.now_ms = TIME_MS + 1_000
        self.replica = replica or Replica(
            index, SCHEDULE, GENESIS.chain_id, NODES[index].sign, Options()
        )
        self.verifier = SignatureVerifier(1)
        policy = BatchPolicy(worthwhile_count=1)
        self.driver = Driver(
            replica=self.replica,
            schedule=SCHEDULE,
            chain_id=GENESIS.chain_id,
            own_key=KEYS[index],
            store=self.store,
            chain_store=self.chain_store,
            chain=self.chain,
            proposer=Proposer(self.mempool, GENESIS.limits, lambda: self.now_ms, policy),
            pool=self.mempool,
            verify_bodies=self._verify,
            rules=Rules(GENESIS.limits, SKEW_MS),
            now_ms=lambda: self.now_ms,
            verifier=self.verifier,
            links=self.links,
            listener=self.listener,
        )

    async def _verify(self, raws):
        results = []
        for raw in raws:
            each = decode_transaction(raw, GENESIS.limits, GENESIS.chain_id)
            good = is_valid(each.member_key, each.signed, each.signature)
            results.append(each if good else Refused("signature_invalid", "it does not verify"))
        return results

    def start_effects(self):
        stable = SealCertificate(0, self.chain.stored_header(0).digest, ())
        height = self.chain.height
        return self.replica.start(
            self.chain_store.wal(), height, self.chain.head.digest, stable, work_pending=False
        )

    # What the others do.

    def pool(self, *transactions):
        for each in transactions:
            self.mempool.add(each, self.now_ms)
        self.driver.transactions_arrived(transactions)

    def receive(self, *messages, sign=True):
        """Take messages with their senders' signatures, each from its sender."""
        for message in messages:
            genuine = signed(message) if sign else message
            self.driver.consensus_frame(KEYS[message.sender], encode(genuine))

    def propose(self, height, proposed, view=0):
        vote = signed(PrePrepare(view, height, proposed.digest, view % 4))
        frame = encode_proposal(encode(vote), proposed.batch.encode())
        self.driver.proposal_frame(KEYS[vote.sender], frame)

    def prepare(self, height, proposed, senders=(2, 3), view=0):
        self.receive(*[Prepare(view, height, proposed.digest, sender) for sender in senders])

    def commit(self, height, proposed, senders=(0, 2, 3), view=0):
        self.receive(*[Commit(view, height, proposed.digest, sender) for sender in senders])

    async def decide(self, height, proposed):
        self.propose(height, proposed)
        self.prepare(height, proposed)
        self.commit(height, proposed)
        await until(lambda: self.chain.height >= height)

    async def leave_view(self):
        """Let the view timer go off."""
        self.driver.feed(WorkPending(True))
        await until(lambda: self.timers.named("view"))
        self.timers.fire("view")
        await until(lambda: self.replica.view == 1)

    async def end(self):
        """Return the exceptions that ended the driver by itself."""
        await asyncio.wait([self.running])
        self.ended = self.running.exception()
        return self.ended.exceptions

    # What it does.

    def sent(self, kind):
        """The consensus messages of one kind that have left, in order, whoever got them."""
        messages = []
        for frame in self.links.sent:
            if frame.kind in (Kind.CONSENSUS, Kind.PROPOSAL):
                encoded = frame.payload
                if frame.kind is Kind.PROPOSAL:
                    encoded, _ = decode_proposal(encoded)
                message = decode(encoded)
                if isinstance(message, kind) and message not in messages:
                    messages.append(message)
        return messages

    def frames(self, kind):
        return [frame for frame in self.links.sent if frame.kind is kind]

    def writes_of(self, prefix):
        """The numbers of the writes that put a row of this table."""
        return [
            number
            for number, (rows, _) in enumerate(self.store.writes)
            if any(key.startswith(prefix) and value is not None for key, value in rows)
        ]


@asynccontextmanager
async def on_stage(monkeypatch, index=1, inner=None, replica=None, effects=None):
    """Run a driver; an exception that ends it unexpectedly is raised at the end of the block."""
    timers = Timers(asyncio.get_running_loop())
    stage = Stage(index, timers, inner or MemoryStore(), replica)
    with monkeypatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "call_later", timers.call_later)
        begin = stage.start_effects() if effects is None else effects
        running = stage.running = asyncio.create_task(stage.driver.run(begin))
        try:
            yield stage
        finally:
            running.cancel()
            await asyncio.wait([running])
            await stage.chain.close()
            stage.verifier.close()
    if stage.ended is None and not running.cancelled():
        running.result()
