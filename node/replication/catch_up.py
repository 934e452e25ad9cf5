"""Brings a node that is behind, wiped, new or an observer to where the chain is.

Sealed blocks come from several peers at once (`node.network.sync` decides whom to ask for what).
Here they are verified: every block descends from our head, and the newest of a run carries a
quorum's seals of the set of its height. Then they are executed, and what we compute must be what
was sealed. Signatures of transactions are not checked again: a quorum did, before it voted. Those
of seals all are, since seals are stored, handed on, and quoted in view changes.

A change of the validators is planned `CHANGE_DELAY` heights ahead, and no block is judged that is
further above our head than that; so every certificate meets the set that reigned at its height. A
node that is behind by more knows of it only from the heights that its peers name.

Blocks without seals wait as *unproven* for a later one that has them. A chain never goes on for
longer than its window without seals, so what waits too long, or does not fit together, holds a lie
of one of the peers that sent it. When it cannot be said whose, nobody is punished, and what has no
seals is fetched anew from others.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from consensus.authentication import seal_checks
from consensus.errors import InvalidMessage
from consensus.inputs import MessageReceived, Synced
from consensus.messages import SealCertificate
from consensus.validators import ValidatorSchedule
from node.ledger.block import Batch, Block, Header, check_block, decode_certificate
from node.ledger.errors import InvalidBlock, Refused
from node.ledger.genesis import Genesis
from node.ledger.membership import CHANGE_DELAY
from node.ledger.transaction import decode_transaction
from node.ledger.verifier import Check, SignatureVerifier
from node.network.frames import Kind
from node.network.payloads import (
    FetchBlocks,
    Status,
    decode_blocks,
    decode_fetch_blocks,
    decode_sealed,
    decode_status,
    encode_blocks,
    encode_fetch_blocks,
    encode_sealed,
    encode_status,
)
from node.network.peers import Peer
from node.network.send_queue import Priority
from node.network.serving import RequestServer, Serve, read_blocks
from node.network.sync import Action, Ask, Blame, BlockSync, Deliver, SyncOptions
from node.replication.chain import NULL_PAYLOAD, Chain, Diverged, Payload
from node.replication.clocks import monotonic_ms
from node.replication.driver import Driver
from node.replication.links import Links
from storage.chain import ChainStore
from storage.errors import CorruptRecord

log = logging.getLogger(__name__)

TICK_S = 0.1
STATUS_TICKS = 5
# Of an honest peer at most a window of 32 heights in a row is without seals; two such may meet.
OPTIONS = SyncOptions(deliver_ahead=CHANGE_DELAY)
UNPROVEN_MAX_MS = 10_000  # how long blocks may wait for seals before they are fetched anew
PUSHES_MAX = 64  # sealed heights that wait to be handed to observers; the oldest make way
CERTAIN_POINTS = 20


@dataclass(frozen=True, slots=True)
class _Row:
    """A block that descends from our head, and how it came."""

    delivery: Deliver
    block: Block


@dataclass(frozen=True, slots=True)
class _Misfit:
    """What ended a run: a block that is wrong in itself, or that does not descend from the last."""

    delivery: Deliver
    reason: str
    is_unlinked: bool


class CatchUp:
    """Fetches, verifies and executes sealed blocks, and serves them to others."""

    def __init__(
        self,
        *,
        chain: Chain,
        chain_store: ChainStore,
        schedule: ValidatorSchedule,
        genesis: Genesis,
        driver: Driver,
        verifier: SignatureVerifier,
        links: Links,
        readers: ThreadPoolExecutor,
        stable_height: int,
        own_key: bytes,
        on_sealed: Callable[[SealCertificate], None] | None = None,
        now_ms: Callable[[], int] = monotonic_ms,
    ) -> None:
        """A node whose key does not vote follows: it wants every block that its peers have.
        `on_sealed` hears of every height that became stable here because its seals came with it.
        `now_ms` is monotonic.
        """
        self._chain = chain
        self._chain_store = chain_store
        self._schedule = schedule
        self._limits = genesis.limits
        self._chain_id = genesis.chain_id
        self._driver = driver
        self._verifier = verifier
        self._links = links
        self._readers = readers
        self.stable_height = stable_height
        self._on_sealed = on_sealed
        self._now_ms = now_ms
        self._own_key = own_key
        self._sync = BlockSync(chain.height, now_ms(), options=OPTIONS)
        self._server = RequestServer[FetchBlocks]()
        self._is_far_behind = False
        self._heights: dict[bytes, int] = {}
        self._deliveries: deque[Deliver] = deque()
        self._unproven: list[_Row] = []
        self._unproven_since_ms = 0
        self._woken = asyncio.Event()
        self._pushes: deque[int] = deque(maxlen=PUSHES_MAX)
        self._push_woken = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None  # while it runs
        self._look_around()

    @property
    def is_behind(self) -> bool:
        """Whether a height is known to be sealed that this node has not executed."""
        return self._sync.is_behind or self._is_far_behind

    @property
    def target(self) -> int:
        """The highest block that any peer says it has."""
        return max(self._sync.best_height, self._chain.height)

    def heights(self) -> dict[bytes, int]:
        """Return what connected peers last said of their height."""
        return dict(self._heights)

    def need(self, height: int) -> None:
        """Fetch blocks up to at least this height."""
        self._perform(self._sync.target(height))

    def executed(self, height: int) -> None:
        """Take note that the chain has grown, by whatever way."""
        self._look_around()
        self._perform(self._sync.accepted(height))

    def stable(self, height: int) -> None:
        """Take note that a height is sealed, and hand the block to those who did not vote on it:
        observers, and the validators to come."""
        self.stable_height = max(self.stable_height, height)
        if self._audience(height):
            self._pushes.append(height)
            self._push_woken.set()

    def _audience(self, height: int) -> list[bytes]:
        voters = self._schedule.at(height)
        return [key for key in self._heights if voters.index_of(key) is None]

    # Peers and their frames.

    def peer_connected(self, peer: Peer) -> None:
        """A peer can be asked."""
        self._on_height(peer.key, peer.hello.height)

    def peer_disconnected(self, peer: Peer) -> None:
        """A peer cannot be asked any more."""
        self._heights.pop(peer.key, None)
        self._server.disconnected(peer.key)
        self._perform(self._sync.on_disconnected(peer.key))

    def status_frame(self, peer: bytes, payload: bytes) -> None:
        """Take a STATUS frame. Raises `InvalidFrame`."""
        self._on_height(peer, decode_status(payload).height)

    def _on_height(self, peer: bytes, height: int) -> None:
        self._heights[peer] = height
        if height > self._chain.height + CHANGE_DELAY:
            self._look_around()
        self._perform(self._sync.on_status(peer, height))

    def _look_around(self) -> None:
        """Say whether consensus brings the blocks to come, or peers must."""
        height = self._chain.height
        voters = self._schedule.at(height + 1)
        far = [
            key
            for key, named in self._heights.items()
            if named > height + CHANGE_DELAY and voters.index_of(key) is not None
        ]
        # Of f+1 validators one is correct; what it votes for is too far above for our replica.
        self._is_far_behind = len(far) > voters.f
        self._sync.follows = self._is_far_behind or voters.index_of(self._own_key) is None

    def blocks_frame(self, peer: bytes, payload: bytes) -> None:
        """Take a BLOCKS frame. Raises `InvalidFrame`."""
        answer = decode_blocks(payload)
        self._perform(self._sync.on_blocks(peer, answer.request_id, answer.first, answer.blocks))

    def sealed_frame(self, peer: bytes, payload: bytes) -> None:
        """Take a SEALED frame. Raises `InvalidFrame`."""
        height, block = decode_sealed(payload)
        self._perform(self._sync.on_sealed(peer, height, block))

    def fetch_frame(self, peer: bytes, payload: bytes) -> None:
        """Take a FETCH_BLOCKS frame. Raises `InvalidFrame`."""
        self._server.asked(peer, decode_fetch_blocks(payload), self._now_ms())
        self._serve()

    async def run(self) -> None:
        """Work until cancelled.

        Raises `Diverged` when this node must stop, `CorruptRecord` when a block that a peer asked
        for cannot be read.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._tick_for_ever(), name="sync-tick")
                tasks.create_task(self._adopt(), name="sync-adopt")
                tasks.create_task(self._push(), name="sync-push")
        finally:
            self._tasks = None

    async def _tick_for_ever(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK_S)
            ticks += 1
            self.tick()
            if ticks % STATUS_TICKS == 0:
                status = encode_status(Status(self.stable_height, self._driver.view))
                self._links.broadcast(list(self._heights), Kind.STATUS, status, Priority.CONSENSUS)

    def tick(self) -> None:
        """Let time pass; called a few times a second while this runs."""
        self._perform(self._sync.tick(self._now_ms()))
        self._serve()
        if self._is_overdue():
            self._woken.set()

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Ask(peer, request_id, first, last):
                    request = encode_fetch_blocks(FetchBlocks(request_id, first, last))
                    self._links.send(peer, Kind.FETCH_BLOCKS, request, Priority.PAYLOAD)
                case Deliver():
                    self._deliveries.append(action)
                    self._woken.set()
                case Blame(peer, reason):
                    self._links.punish(peer, 10, reason)
                case _:
                    log.info("caught up height=%d", self._chain.height)

    # Verification and execution.

    async def _adopt(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._deliveries:
                await self._adopt_waiting()
            if self._is_overdue():
                self._doubt()

    async def _adopt_waiting(self) -> None:
        """Take what was delivered up to the newest block with seals; keep the rest for later."""
        taken = list(self._deliveries)
        self._deliveries.clear()
        # After a refusal the same heights are delivered again; the newest delivery counts.
        run = [row for row in self._unproven if row.delivery.height < taken[0].height]
        if run and run[-1].delivery.height <= self._chain.height:
            run = []  # consensus was faster
        parent = run[-1].block.header if run else self._chain.head
        loop = asyncio.get_running_loop()
        decode = partial(self._decode_run, taken, parent)
        decoded, misfit = await loop.run_in_executor(self._readers, decode)
        run += decoded
        proved, bad = await self._judge_seals(run)
        await self._execute(run[:proved])
        self._unproven = run[proved:] if bad is None else run[proved:bad]
        self._unproven_since_ms = self._now_ms()
        if bad is not None:
            self._blame(run[bad].delivery, "its seals are not those of a quorum")
        elif misfit is not None:
            self._on_misfit(misfit)

    async def _judge_seals(self, run: list[_Row]) -> tuple[int, int | None]:
        """Return how many blocks genuine seals prove, and the index of the lowest block above them
        with others. What has others below is a good block: only its seals are taken away."""
        certified = [index for index, row in enumerate(run) if row.block.certificate is not None]
        genuine = await self._genuine([run[index].block for index in certified])
        proved = max((i + 1 for i, good in zip(certified, genuine, strict=True) if good), default=0)
        bad = [i for i, good in zip(certified, genuine, strict=True) if not good]
        for index in [i for i in bad if i < proved]:
            row = run[index]
            run[index] = replace(row, block=replace(row.block, certificate=None))
            reason = f"seals of height {row.delivery.height} that are not a quorum's"
            self._links.punish(row.delivery.peer, CERTAIN_POINTS, reason)
        return proved, min((i for i in bad if i >= proved), default=None)

    def _decode_run(
        self, deliveries: Sequence[Deliver], parent: Header
    ) -> tuple[list[_Row], _Misfit | None]:
        """Return the blocks that follow one another from `parent`, and the first that does not."""
        run: list[_Row] = []
        for delivery in deliveries:
            if delivery.height <= parent.height and not run:
                continue  # consensus was faster
            is_unlinked = False
            try:
                block = Block.decode(delivery.block, self._limits)
                header = block.header
                is_ours = (header.chain_id, header.height) == (self._chain_id, delivery.height)
                is_unlinked = is_ours and header.parent != parent.digest
                check_block(block, parent, self._limits)
            except InvalidBlock as error:
                return run, _Misfit(delivery, str(error), is_unlinked)
            run.append(_Row(delivery, block))
            parent = block.header
        return run, None

    def _blame(self, delivery: Deliver, reason: str) -> None:
        """Punish who sent a block that is wrong whatever the others are; fetch it elsewhere."""
        log.warning("block refused height=%d reason=%s", delivery.height, reason)
        self._deliveries.clear()
        self._unproven = [r for r in self._unproven if r.delivery.height < delivery.height]
        self._links.punish(delivery.peer, CERTAIN_POINTS, f"a block that is not valid: {reason}")
        self._perform(self._sync.refused(delivery.peer, delivery.height))

    def _on_misfit(self, misfit: _Misfit) -> None:
        below = self._unproven[-1].delivery.peer if self._unproven else misfit.delivery.peer
        if not misfit.is_unlinked or below == misfit.delivery.peer:
            self._blame(misfit.delivery, misfit.reason)
            return
        log.warning("blocks of two peers do not fit together height=%d", misfit.delivery.height)
        self._doubt()

    def _doubt(self) -> None:
        """Fetch what has no seals anew, from other peers than before."""
        rows, self._unproven = self._unproven, []
        self._deliveries.clear()
        lowest: dict[bytes, int] = {}
        for row in rows:
            lowest.setdefault(row.delivery.peer, row.delivery.height)
        if len(lowest) == 1 and len(rows) >= OPTIONS.deliver_ahead:
            reason = "blocks without seals, beyond any window"
            self._links.punish(rows[0].delivery.peer, CERTAIN_POINTS, reason)
        for peer, height in lowest.items():
            self._perform(self._sync.refused(peer, height))

    def _is_overdue(self) -> bool:
        """Whether unproven blocks wait for longer, or are more, than an honest chain explains."""
        if not self._unproven or self._deliveries:
            return False
        waited_ms = self._now_ms() - self._unproven_since_ms
        above = self._unproven[-1].delivery.height - self._chain.height
        return waited_ms > UNPROVEN_MAX_MS or above >= OPTIONS.deliver_ahead

    async def _genuine(self, blocks: Sequence[Block]) -> list[bool]:
        """Return for each block, all of which have seals, whether they are those of a quorum."""
        spans: list[range] = []
        checks: list[Check] = []
        for block in blocks:
            start = len(checks)
            wanted = self._seal_checks(block.certificate)
            checks += wanted
            spans.append(range(start, start + len(wanted)))
        verdicts = await self._verifier.verify(checks)
        return [len(span) > 0 and all(verdicts[index] for index in span) for span in spans]

    def _seal_checks(self, certificate: SealCertificate | None) -> list[Check]:
        if certificate is None:
            return []
        validators = self._schedule.at(certificate.height)
        try:
            checks = seal_checks(certificate, validators, self._chain_id)
        except InvalidMessage:
            return []
        return [(c.public_key, c.signed, c.signature) for c in checks]

    async def _execute(self, run: Sequence[_Row]) -> None:
        for row in run:
            block = row.block
            payload = await asyncio.get_running_loop().run_in_executor(
                self._readers, self._payload, block
            )
            executed = await self._chain.adopt_sealed(block, payload)
            if executed is not None:
                self._driver.after_execution(executed, payload.digest)
            if block.certificate is not None:
                self._learn_seals(block.certificate, is_adopted=executed is not None)

    def _learn_seals(self, certificate: SealCertificate, *, is_adopted: bool) -> None:
        if not is_adopted:
            # Consensus executed the height, and the certificate is not stored yet: it is news.
            self._driver.feed(MessageReceived(certificate))
            return
        self.stable_height = max(self.stable_height, certificate.height)
        self._driver.feed(Synced(certificate))
        if self._on_sealed is not None:
            self._on_sealed(certificate)

    def _payload(self, block: Block) -> Payload:
        if block.batch is None:
            return NULL_PAYLOAD
        try:
            bodies = tuple(decode_transaction(body, self._limits) for body in block.bodies)
        except Refused as error:
            raise Diverged(
                f"a quorum sealed a transaction at height {block.header.height} that this node "
                f"cannot read ({error}): compare its version with the others'"
            ) from error
        return Payload(block.batch.digest, block.batch, bodies)

    # Serving.

    def _serve(self) -> None:
        if self._tasks is None:
            return
        while (serve := self._server.next(self._now_ms())) is not None:
            self._tasks.create_task(self._answer(serve), name="sync-answer")

    async def _answer(self, serve: Serve[FetchBlocks]) -> None:
        size = 0
        try:
            read = partial(read_blocks, self._stored_block, serve.request)
            answer = await asyncio.get_running_loop().run_in_executor(self._readers, read)
            encoded = encode_blocks(answer)
            size = len(encoded)
            self._links.send(serve.peer, Kind.BLOCKS, encoded, Priority.PAYLOAD)
        finally:
            self._server.served(serve.peer, size)
        self._serve()

    async def _push(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._push_woken.wait()
            self._push_woken.clear()
            while self._pushes:
                height = self._pushes.popleft()
                block = await loop.run_in_executor(self._readers, self._stored_block, height)
                keys = self._audience(height)
                if block is not None:
                    frame = encode_sealed(height, block)
                    self._links.broadcast(keys, Kind.SEALED, frame, Priority.PAYLOAD)

    def _stored_block(self, height: int) -> bytes | None:
        """Return a sealed block, encoded; None above the stable height. Raises `CorruptRecord`."""
        if height > self.stable_height:
            return None
        header = self._chain_store.header(height)
        digest = self._chain_store.payload_digest(height)
        if header is None or digest is None:
            return None
        stored = self._chain_store.payload(height, digest)
        if stored is None and digest != NULL_PAYLOAD.digest:
            raise CorruptRecord(f"the transactions of height {height} are missing on the disk")
        certificate = self._chain_store.certificate(height)
        try:
            batch = None if stored is None else Batch.decode(stored[0], self._limits)
            seals = None if certificate is None else decode_certificate(certificate)
            bodies = () if stored is None else tuple(stored[1])
            return Block(Header.decode(header), batch, bodies, seals).encode()
        except InvalidBlock as error:
            raise CorruptRecord(f"the block of height {height} cannot be read: {error}") from error
