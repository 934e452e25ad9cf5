"""The composition root: builds the parts of one node, runs their tasks, and stops them together.

No room imports this module. Whatever fails unexpectedly in a task ends the node; a replica that
halts for safety leaves the RPC up, so that an operator can ask why.
"""

import asyncio
import gc
import logging
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consensus.effects import Effect
from consensus.inputs import PrimarySuspected, WorkPending
from consensus.messages import PROTOCOL_VERSION, Message, SealCertificate
from consensus.replica import Replica
from consensus.validators import ValidatorSchedule
from node import assembly, keys
from node.config import NodeConfig
from node.ledger import genesis_file
from node.ledger.admission import Admission
from node.ledger.errors import Refused
from node.ledger.execution import ExecutedBlock, refusal
from node.ledger.genesis import Genesis
from node.ledger.mempool import Mempool
from node.ledger.policies.program import require_evaluator
from node.ledger.transaction import Transaction, decode_transaction, transaction_digest
from node.ledger.verifier import SignatureVerifier
from node.network.gossip import TransactionGossip
from node.network.payloads import Hello
from node.network.peers import Peer
from node.network.transport import Transport
from node.replication.catch_up import CatchUp
from node.replication.chain import Chain, Diverged
from node.replication.clocks import monotonic_ms, wall_ms
from node.replication.driver import Driver, Halted
from node.replication.nodes import KnownNodes
from node.replication.payloads import Rules
from node.replication.proposer import BatchPolicy, Proposer
from node.replication.router import Router
from node.rpc.metrics import Metrics
from node.rpc.server import RpcServer
from node.service import About, Service
from node.worker import Worker
from storage.chain import ChainStore
from storage.kv import KeyValueStore
from storage.leveldb import open_leveldb

log = logging.getLogger(__name__)

VERSION = version("radledger")
HOUSEKEEPING_S = 0.25
GOSSIP_TICK_S = 0.05
CLOCK_SKEW_MAX_MS = 15_000
SUSPECT_AFTER_MS = 10_000
LAG_PROBE_S = 0.1


class Node:
    """One institution's node. `start`, then `wait`; `stop` at the end."""

    def __init__(self, config: NodeConfig) -> None:
        """Read keys and genesis and open the database.

        Raises `KeyFileError`, `InvalidGenesis`, `StorageError`, `StartRefused`, and
        `InvariantViolation` for another evaluator of policies than this release is made for.
        """
        self._config = config
        private = assembly.private_key(config)
        self.public_key = keys.public_bytes(private)
        genesis = genesis_file.load(config.genesis_file)
        require_evaluator()
        self.rpc_token = keys.load_token(config.rpc.token_file)
        self.metrics = Metrics(VERSION)
        self._store: KeyValueStore = open_leveldb(config.data_dir)
        self._halted: str | None = None
        self._ended = asyncio.Event()
        self._advanced = asyncio.Event()
        self._connections = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._work_pending = False
        self._last_roomy_ms = wall_ms()
        try:
            self._build(private, genesis)
        except BaseException:
            self._store.close()
            raise

    def _build(self, private: Ed25519PrivateKey, genesis: Genesis) -> None:
        config, chain_id = self._config, genesis.chain_id
        self._genesis = genesis
        self._schedule = ValidatorSchedule(genesis.validator_set())
        chain_store = ChainStore(self._store)
        executor = assembly.open_executor(self._store, chain_store, genesis, self._schedule)
        self._last_sealed = assembly.last_certificate(chain_store, executor)
        certificate = assembly.own_certificate(chain_store, self.public_key, config)
        self._chain_store = chain_store
        self._chain = Chain(self._store, chain_store, executor, genesis.limits)
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="read")
        self._judge = Worker("verify")
        self._verifier = SignatureVerifier(2)
        self._mempool = Mempool(assembly.mempool_bounds(config))
        self._admission = Admission(
            self._mempool,
            self._judge,
            self._speaks_against,
            decode=partial(decode_transaction, limits=genesis.limits, chain_id=chain_id),
            now_ms=wall_ms,
            on_accepted=self._accepted,
        )
        stable_height = self._last_sealed.height
        self._nodes = KnownNodes(
            chain_store=chain_store,
            schedule=self._schedule,
            readers=self._readers,
            addresses={p.institution: (p.host, p.port) for p in config.network.peers},
            own_key=self.public_key,
            stable_height=stable_height,
        )
        self._router = _WatchedRouter(self._connections)
        self._transport = Transport(
            private,
            certificate,
            self._nodes.peers(),
            config.network.listen_host,
            config.network.listen_port,
            partial(self._hello, chain_id),
            self._router,
            assembly.transport_options(config),
        )
        self._gossip = TransactionGossip(
            self._transport,
            self._mempool,
            self._offer,
            transaction_digest,
            monotonic_ms,
            lambda function: asyncio.get_running_loop().call_soon(function),
        )
        self._replica = Replica(
            self._schedule.at(self._chain.height + 1).index_of(self.public_key),
            self._schedule,
            chain_id,
            keys.signer(private),
            assembly.replica_options(config),
            self.public_key,
        )
        proposer = Proposer(self._mempool, genesis.limits, wall_ms, BatchPolicy())
        self._driver = Driver(
            replica=self._replica,
            schedule=self._schedule,
            chain_id=chain_id,
            own_key=self.public_key,
            store=self._store,
            chain_store=chain_store,
            chain=self._chain,
            proposer=proposer,
            pool=self._mempool,
            verify_bodies=partial(self._admission.verify, state=False),
            rules=Rules(genesis.limits, CLOCK_SKEW_MAX_MS),
            now_ms=wall_ms,
            verifier=self._verifier,
            links=self._transport,
            listener=self,
        )
        self._catch_up = CatchUp(
            chain=self._chain,
            chain_store=chain_store,
            schedule=self._schedule,
            genesis=genesis,
            driver=self._driver,
            verifier=self._verifier,
            links=self._transport,
            readers=self._readers,
            stable_height=stable_height,
            own_key=self.public_key,
            on_sealed=self.stable,
        )
        self._router.connect(self._driver, self._gossip, self._catch_up)
        self._service = Service(
            about=About(config.institution, self.public_key, VERSION, genesis),
            store=self._store,
            chain=self._chain,
            replica=self._replica,
            mempool=self._mempool,
            admission=self._admission,
            transport=self._transport,
            catch_up=self._catch_up,
            readers=self._readers,
            halted=lambda: self._halted,
            is_listed=lambda: self._nodes.is_listed,
        )
        self._rpc = RpcServer(self._service, config.rpc, self.rpc_token, self.metrics)

    # Life.

    async def start(self) -> None:
        """Listen to peers and clients and begin to take part."""
        await self._transport.start()
        await self._rpc.start()
        self._main = asyncio.create_task(self._run(), name="node")
        log.info(
            "node started institution=%s version=%s height=%d rpc=%s",
            self._config.institution,
            VERSION,
            self._chain.height,
            self._rpc.url,
        )

    async def wait(self) -> None:
        """Return when the node was stopped; raise what ended it otherwise."""
        if self._main is not None:
            await asyncio.shield(self._main)

    async def stop(self) -> None:
        """Stop in good order: no new work, the block under way is finished, then close."""
        self._ended.set()
        try:
            await self.wait()
        finally:
            await self._rpc.close()
            await self._transport.close()
            await self._chain.close()
            self._close()

    async def kill(self) -> None:
        """Stop at once, as far as that is possible inside a process: nothing more is written."""
        if self._main is not None:
            self._main.cancel()
            await asyncio.wait([self._main])
        self._transport.block(self._transport.connected)
        await self._rpc.close()
        await self._transport.close()
        await self._chain.close()
        self._close()

    def _close(self) -> None:
        self._verifier.close()
        self._judge.close()
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._store.close()

    async def _run(self) -> None:
        effects = self._replica.start(
            self._chain_store.wal(),
            self._chain.height,
            self._chain.head.digest,
            self._last_sealed,
        )
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._replicate(effects), name="replication"),
                tasks.create_task(self._admission.run(), name="admission"),
                tasks.create_task(self._gossip_ticks(), name="gossip"),
                tasks.create_task(self._transport.wait(), name="transport"),
                tasks.create_task(self._nodes.run(self._transport), name="known-nodes"),
                tasks.create_task(self._housekeeping(), name="housekeeping"),
                tasks.create_task(self._probe_lag(), name="loop-lag"),
            ]
            await self._ended.wait()
            for task in running:
                task.cancel()

    async def _replicate(self, effects: Sequence[Effect]) -> None:
        """Vote and catch up; when one of them stops for safety, both do, and the RPC says why."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._driver.run(effects), name="driver")
                tasks.create_task(self._catch_up.run(), name="catch-up")
        except* (Halted, Diverged) as group:
            self._halted = _first_text(group)
            log.error("consensus halted reason=%s", self._halted)
            self._transport.block(self._known_keys())

    # What others ask of a node in the same process.

    @property
    def height(self) -> int:
        """The last executed height."""
        return self._chain.height

    @property
    def head_digest(self) -> bytes:
        """The digest of the last executed header."""
        return self._chain.head.digest

    @property
    def halted(self) -> str | None:
        """Why consensus stopped for safety, if it did."""
        return self._halted

    @property
    def rpc_url(self) -> str:
        """Where clients connect."""
        return self._rpc.url

    @property
    def service(self) -> Service:
        """The same answers that the RPC gives."""
        return self._service

    def header_digest(self, height: int) -> bytes | None:
        """Return the digest of an executed header."""
        digest = None
        if height <= self.height:
            header = self._chain.stored_header(height)
            digest = header.digest if header is not None else None
        return digest

    async def wait_height(self, height: int) -> None:
        """Return once `height` is executed and durable here."""
        while self.height < height:
            advanced = self._advanced
            await self._until(advanced)

    async def wait_connected(self, institutions: set[str]) -> None:
        """Return once these peers are connected."""
        while not institutions <= {p.name for p in self._transport.connected.values()}:
            self._connections.clear()
            await self._until(self._connections)

    async def wait_parted(self, institutions: set[str]) -> None:
        """Return once none of these peers is connected."""
        while institutions & {p.name for p in self._transport.connected.values()}:
            self._connections.clear()
            await self._until(self._connections)

    def cut(self, public_keys: Iterable[bytes]) -> None:
        """Refuse all connections with exactly these peers: a partition, for tests."""
        blocked = set(public_keys)
        self._transport.unblock(self._known_keys() - blocked)
        self._transport.block(blocked)

    async def _until(self, event: asyncio.Event) -> None:
        """Wait for an event, or raise what ended the node."""
        waiting = asyncio.create_task(event.wait())
        main = {self._main} if self._main is not None else set()
        try:
            await asyncio.wait({waiting, *main}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        for task in main:
            if task.done():
                task.result()
                raise asyncio.CancelledError("the node was stopped")

    # The driver's listener.

    def executed(self, block: ExecutedBlock) -> None:
        """A block is final and durable here."""
        header = block.header
        self._service.block_executed(block)
        self._nodes.executed(block)
        self._catch_up.executed(header.height)
        if len(block.transactions) < BatchPolicy().worthwhile_count:
            self._last_roomy_ms = wall_ms()
        self._update_pending()
        metrics = self.metrics
        metrics.height_executed.set(header.height)
        metrics.block_transactions.observe(len(block.transactions))
        for receipt in block.receipts:
            metrics.transactions_executed.inc(receipt.code)
        self._advanced.set()
        self._advanced = asyncio.Event()

    def stable(self, certificate: SealCertificate) -> None:
        """A height is sealed by a quorum."""
        self._service.block_stable(certificate)
        self._nodes.stable(certificate.height)
        self._catch_up.stable(certificate.height)
        self.metrics.height_stable.set(certificate.height)

    def evidence(self, first: Message, second: Message) -> None:
        """A validator contradicted itself; both signed messages are kept."""
        self.metrics.evidence.inc()
        log.warning(
            "evidence of equivocation kind=%s sender=%s",
            type(first).__name__,
            getattr(first, "sender", None),
        )

    def need_sync(self, height: int) -> None:
        """The replica fell behind the window."""
        self._catch_up.need(height)

    def view_entered(self, view: int) -> None:
        """The replica works in another view."""
        log.info("view entered view=%d", view)
        self.metrics.view.set(view)
        self.metrics.view_changes.inc()
        self._driver.wake()

    # Housekeeping.

    def _speaks_against(self, transaction: Transaction) -> Refused | None:
        """Say what in the present state speaks against a transaction; runs in a worker thread."""
        height = self._chain.height + 1
        return refusal(self._chain_store, transaction, height, self._genesis.limits)

    def _offer(self, peer: bytes, bodies: list[bytes]) -> None:
        self._admission.offer(bodies, partial(self._refused_of, peer), source=peer.hex())

    def _refused_of(self, peer: bytes, refused: Refused) -> None:
        self.metrics.transactions_refused.inc(refused.code)
        if refused.permanent:
            self._transport.punish(peer, 5, f"gossips a transaction that is {refused.code}")

    async def _gossip_ticks(self) -> None:
        while True:
            await asyncio.sleep(GOSSIP_TICK_S)
            self._gossip.tick()

    def _accepted(self, transactions: Sequence[Transaction]) -> None:
        self._gossip.entered(transactions)
        self._driver.transactions_arrived(transactions)
        self._update_pending()

    def _update_pending(self) -> None:
        pending = len(self._mempool) > 0
        if pending != self._work_pending:
            self._work_pending = pending
            self._driver.feed(WorkPending(pending))

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            now = wall_ms()
            for transaction in self._mempool.expire(self._chain.height, now):
                self._service.transaction_dropped(transaction)
            self._update_pending()
            self._suspect_censorship(now)
            self._driver.wake()
            self._measure()

    def _suspect_censorship(self, now: int) -> None:
        """Complain when blocks had room and yet left an old transaction out (requirement 27)."""
        age = self._mempool.oldest_unreserved_age(now)
        if age is not None and age > SUSPECT_AFTER_MS + (now - self._last_roomy_ms):
            self._driver.feed(PrimarySuspected(self._replica.view))

    def _measure(self) -> None:
        metrics, traffic = self.metrics, self._transport.report()
        metrics.mempool_transactions.set(len(self._mempool))
        metrics.mempool_bytes.set(self._mempool.size_bytes)
        metrics.peers_configured.set(len(traffic))
        metrics.peers_connected.set(len(self._transport.connected))
        metrics.view.set(self._replica.view)  # it begins anew with every validator set
        metrics.is_primary.set(self._replica.is_primary)
        metrics.is_syncing.set(self._catch_up.is_behind)
        metrics.is_ready.set(self._service.readiness().is_ready)

    async def _probe_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_PROBE_S
            await asyncio.sleep(LAG_PROBE_S)
            lag = max(0.0, loop.time() - due)
            self.metrics.loop_lag_seconds.observe(lag)
            self.metrics.loop_lag_seconds_last.set(lag)

    def _hello(self, chain_id: bytes) -> Hello:
        return Hello(
            PROTOCOL_VERSION,
            chain_id,
            self._nodes.own_role,
            self._catch_up.stable_height,
            self._config.network.listen_host,
            self._config.network.listen_port,
            f"radledger/{VERSION}",
        )

    def _known_keys(self) -> set[bytes]:
        return {report.key for report in self._transport.report()}


class _WatchedRouter(Router):
    """A router that also says when connections come and go."""

    def __init__(self, changed: asyncio.Event) -> None:
        super().__init__()
        self._changed = changed

    def peer_connected(self, peer: Peer) -> None:
        super().peer_connected(peer)
        self._changed.set()

    def peer_disconnected(self, peer: Peer) -> None:
        super().peer_disconnected(peer)
        self._changed.set()


def _first_text(group: BaseExceptionGroup[BaseException]) -> str:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return str(first)


def tune_interpreter() -> None:
    """Set what suits a process that is one node: rarer collections, quicker thread switches."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    sys.setswitchinterval(0.001)
