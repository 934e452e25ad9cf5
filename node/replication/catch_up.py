"""Brings a node that is behind, wiped, new or an observer to where the chain is.

Sealed blocks come from several peers at once (`node.network.sync` decides whom to ask for what).
Here they are verified: every block descends from our head, and the newest of a run carries a
quorum's seals of the set of its height. Then they are executed, and what we compute must be what
was sealed. Signatures of transactions are not checked again: a quorum did, before it voted.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from consensus.authentication import seal_checks
from consensus.errors import InvalidMessage
from consensus.inputs import Synced
from consensus.messages import SealCertificate
from consensus.validators import ValidatorSchedule
from node.ledger.block import Batch, Block, Header, check_block, decode_certificate
from node.ledger.errors import InvalidBlock, Refused
from node.ledger.genesis import Genesis
from node.ledger.transaction import decode_transaction
from node.ledger.verifier import SignatureVerifier
from node.network.frames import Kind
from node.network.payloads import (
    FetchBlocks,
    Role,
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
from node.network.serving import BlockServer, Serve, read_blocks
from node.network.sync import Action, Ask, Blame, BlockSync, Deliver, SyncOptions
from node.replication.chain import NULL_PAYLOAD, Chain, Payload
from node.replication.clocks import monotonic_ms
from node.replication.driver import Driver
from storage.chain import ChainStore

log = logging.getLogger(__name__)

TICK_S = 0.1
STATUS_TICKS = 5
OPTIONS = SyncOptions(deliver_ahead=64)  # more than the window: a run without seals must fit in


class Links(Protocol):
    """What catching up needs of the transport."""

    def send(self, key: bytes, kind: Kind, payload: bytes, priority: Priority) -> bool:
        """Queue a frame to one peer."""
        ...

    def broadcast(
        self, keys: Iterable[bytes], kind: Kind, payload: bytes, priority: Priority
    ) -> int:
        """Queue a frame to several peers."""
        ...

    def punish(self, key: bytes, points: float, reason: str) -> None:
        """Count a peer's misbehaviour."""
        ...


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
        follows: bool,
    ) -> None:
        """`follows`: an observer, which wants every block that its peers have."""
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
        self._sync = BlockSync(chain.height, monotonic_ms(), follows, OPTIONS)
        self._server = BlockServer()
        self._roles: dict[bytes, Role] = {}
        self._heights: dict[bytes, int] = {}
        self._deliveries: deque[Deliver] = deque()
        self._uncertified: list[tuple[Deliver, Block]] = []
        self._woken = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def is_behind(self) -> bool:
        """Whether a height is known to be sealed that this node has not executed."""
        return self._sync.is_behind

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
        self._perform(self._sync.accepted(height))

    def stable(self, height: int) -> None:
        """Take note that a height is sealed, and hand the block to observers."""
        self.stable_height = max(self.stable_height, height)
        observers = [key for key, role in self._roles.items() if role is Role.OBSERVER]
        if observers:
            self._spawn(self._push(height, observers))

    # Peers and their frames.

    def peer_connected(self, peer: Peer) -> None:
        """A peer can be asked."""
        self._roles[peer.key] = peer.hello.role
        self._heights[peer.key] = peer.hello.height
        self._perform(self._sync.on_status(peer.key, peer.hello.height))

    def peer_disconnected(self, peer: Peer) -> None:
        """A peer cannot be asked any more."""
        self._roles.pop(peer.key, None)
        self._heights.pop(peer.key, None)
        self._server.disconnected(peer.key)
        self._perform(self._sync.on_disconnected(peer.key))

    def status_frame(self, peer: bytes, payload: bytes) -> None:
        """Take a STATUS frame. Raises `InvalidFrame`."""
        height = decode_status(payload).height
        self._heights[peer] = height
        self._perform(self._sync.on_status(peer, height))

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
        self._server.asked(peer, decode_fetch_blocks(payload), monotonic_ms())
        self._serve()

    async def run(self) -> None:
        """Work until cancelled. Raises `Diverged` when this node must stop."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._tick(), name="sync-tick")
                tasks.create_task(self._adopt(), name="sync-adopt")
        finally:
            for task in list(self._serving):
                task.cancel()

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK_S)
            ticks += 1
            self._perform(self._sync.tick(monotonic_ms()))
            self._serve()
            if ticks % STATUS_TICKS == 0:
                status = encode_status(Status(self.stable_height, self._driver.view))
                self._links.broadcast(list(self._roles), Kind.STATUS, status, Priority.CONSENSUS)

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

    async def _adopt_waiting(self) -> None:
        """Take what was delivered up to the newest block with seals; keep the rest for later."""
        taken = list(self._deliveries)
        self._deliveries.clear()
        # After a refusal the same heights are delivered again; the newest delivery counts.
        lowest = taken[0].height
        waiting = [row for row in self._uncertified if row[0].height < lowest]
        if waiting and waiting[-1][0].height <= self._chain.height:
            waiting = []  # consensus was faster
        loop = asyncio.get_running_loop()
        parent = waiting[-1][1].header if waiting else self._chain.head
        decoded, refused = await loop.run_in_executor(
            self._readers, self._decode_run, taken, parent
        )
        run = waiting + decoded
        self._uncertified = []
        certified = [index for index, (_, block) in enumerate(run) if block.certificate]
        if certified:
            newest = certified[-1]
            delivery, block = run[newest]
            if block.certificate is not None and await self._is_sealed(block.certificate):
                await self._execute(run[: newest + 1])
                self._uncertified = run[newest + 1 :]
            else:
                refused = delivery
        else:
            self._uncertified = run
        if refused is not None:
            self._uncertified = []
            self._deliveries.clear()
            self._links.punish(refused.peer, 20, "a block that is not valid")
            self._perform(self._sync.refused(refused.peer, refused.height))

    def _decode_run(
        self, deliveries: list[Deliver], parent: Header
    ) -> tuple[list[tuple[Deliver, Block]], Deliver | None]:
        """Return the blocks that follow one another from `parent`, and the first that does not."""
        run: list[tuple[Deliver, Block]] = []
        for delivery in deliveries:
            if delivery.height <= parent.height and not run:
                continue  # consensus was faster
            try:
                block = Block.decode(delivery.block, self._limits)
                check_block(block, parent, self._limits)
            except InvalidBlock as error:
                log.warning("block refused height=%d reason=%s", delivery.height, error)
                return run, delivery
            run.append((delivery, block))
            parent = block.header
        return run, None

    async def _is_sealed(self, certificate: SealCertificate) -> bool:
        validators = self._schedule.at(certificate.height)
        try:
            checks = seal_checks(certificate, validators, self._chain_id)
        except InvalidMessage:
            return False
        triples = [(c.public_key, c.signed, c.signature) for c in checks]
        return all(await self._verifier.verify(triples))

    async def _execute(self, run: list[tuple[Deliver, Block]]) -> None:
        for _, block in run:
            payload = await asyncio.get_running_loop().run_in_executor(
                self._readers, self._payload, block
            )
            executed = await self._chain.adopt_sealed(block, payload)
            if executed is not None:
                self._driver.after_execution(executed, payload.digest)
            if block.certificate is not None:
                self.stable_height = max(self.stable_height, block.header.height)
                self._driver.feed(Synced(block.certificate))

    def _payload(self, block: Block) -> Payload:
        if block.batch is None:
            return NULL_PAYLOAD
        try:
            bodies = tuple(decode_transaction(body, self._limits) for body in block.bodies)
        except Refused as error:
            raise InvalidBlock(f"block: a sealed transaction cannot be read: {error}") from error
        return Payload(block.batch.digest, block.batch, bodies)

    # Serving.

    def _serve(self) -> None:
        while (serve := self._server.next(monotonic_ms())) is not None:
            self._spawn(self._answer(serve))

    async def _answer(self, serve: Serve) -> None:
        size = 0
        try:
            read = partial(read_blocks, self._stored_block, serve)
            answer = await asyncio.get_running_loop().run_in_executor(self._readers, read)
            encoded = encode_blocks(answer)
            size = len(encoded)
            self._links.send(serve.peer, Kind.BLOCKS, encoded, Priority.PAYLOAD)
        finally:
            self._server.served(serve.peer, size)

    async def _push(self, height: int, observers: list[bytes]) -> None:
        loop = asyncio.get_running_loop()
        block = await loop.run_in_executor(self._readers, self._stored_block, height)
        if block is not None:
            frame = encode_sealed(height, block)
            self._links.broadcast(observers, Kind.SEALED, frame, Priority.PAYLOAD)

    def _stored_block(self, height: int) -> bytes | None:
        """Return a sealed block, encoded; None above the stable height."""
        if height > self.stable_height:
            return None
        header = self._chain_store.header(height)
        digest = self._chain_store.payload_digest(height)
        if header is None or digest is None:
            return None
        stored = self._chain_store.payload(height, digest)
        certificate = self._chain_store.certificate(height)
        batch = None if stored is None else Batch.decode(stored[0], self._limits)
        return Block(
            Header.decode(header),
            batch,
            () if stored is None else tuple(stored[1]),
            None if certificate is None else decode_certificate(certificate),
        ).encode()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
