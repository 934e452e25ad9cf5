"""A consortium of four with real keys and signatures, a real chain, and hands instead of a network.

Nothing here waits: frames are recorded, timers fire when a test says so.
"""

import asyncio
import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consensus.messages import Domain, Seal, SealCertificate
from consensus.validators import ValidatorSchedule
from node.ledger.block import Batch, Block
from node.ledger.execution import Executor
from node.ledger.genesis import Genesis, Institution, Member, NodeIdentity
from node.ledger.transaction import Operation, Transaction, sign_transaction
from node.network.frames import Kind
from node.replication.chain import NULL_PAYLOAD, Chain, Payload
from storage.chain import ChainStore
from storage.kv import WriteBatch
from storage.state import StateTree

PATIENCE_S = 20.0  # a test that waits longer has failed
TIME_MS = 1_700_000_000_000


def secret(label: object) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(repr(label).encode()).digest())


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


GATEWAY = secret("gateway")
NODES = [secret(("node", index)) for index in range(4)]
KEYS = [public(key) for key in NODES]
NEW_NODE = secret("new node")
NEW_KEY = public(NEW_NODE)
NODE_OF = dict(zip([*KEYS, NEW_KEY], [*NODES, NEW_NODE], strict=True))
NAMES = ("north", "south", "east", "west")
GENESIS = Genesis(
    name="test",
    time_ms=TIME_MS,
    institutions=tuple(
        Institution(name, name.title(), (Member(public(GATEWAY), ("gateway",)),)) for name in NAMES
    ),
    validators=tuple(NodeIdentity(name, key, b"") for name, key in zip(NAMES, KEYS, strict=True)),
)
SCHEDULE = ValidatorSchedule(GENESIS.validator_set())
SET = SCHEDULE.at(1)
_numbers = count()


def signed(message, validators=SET):
    """Return the message with its sender's real signature."""
    node = NODE_OF[validators.validators[message.sender].public_key]
    signed_bytes = Domain(GENESIS.chain_id, validators.digest).signed_bytes(message)
    return replace(message, signature=node.sign(signed_bytes))


def transaction(label: object = None, *, valid_until: int = 1_000, size: int = 0) -> Transaction:
    """A registration with a real signature; without a label, another one at every call."""
    seed = hashlib.sha256(repr(next(_numbers) if label is None else label).encode()).digest()
    ids = hashlib.sha512(seed).digest()
    arguments = (ids[:16], ids[16:32], ids[32:], "CT", "chest", 5, 8)
    return sign_transaction(
        GATEWAY.sign,
        public(GATEWAY),
        chain_id=GENESIS.chain_id,
        institution="north",
        valid_until=valid_until,
        operations=[Operation("study.register", arguments)] * (1 + size),
        salt=seed[:16],
    )


def forged(genuine: Transaction) -> Transaction:
    """The same with a signature that does not verify; another body with another digest."""
    raw = genuine.raw[:-64] + bytes(64)
    return replace(
        genuine, raw=raw, signature=bytes(64), digest=hashlib.sha256(b"\x00" + raw).digest()
    )


def payload(*transactions: Transaction, time_ms: int = TIME_MS + 1_000) -> Payload:
    batch = Batch(time_ms, tuple(each.digest for each in transactions))
    return Payload(batch.digest, batch, transactions)


def certificate(
    height: int, header_digest: bytes, senders: Iterable[int] = (0, 1, 2), validators=SET
):
    seals = (signed(Seal(height, header_digest, sender), validators) for sender in senders)
    return SealCertificate(
        height, header_digest, tuple((seal.sender, seal.signature) for seal in seals)
    )


def open_chain(store, schedule=SCHEDULE) -> tuple[Chain, ChainStore]:
    """The executed chain of one node over a store, with its genesis block."""
    chain_store = ChainStore(store)
    executor = Executor(chain_store, StateTree(store), GENESIS, schedule)
    if not executor.is_initialised:
        rows = WriteBatch()
        first = executor.initialise(rows)
        store.write(rows, sync=True)
        executor.adopt(first)
    return Chain(store, chain_store, executor, GENESIS.limits), chain_store


async def build_blocks(chain: Chain, *payloads: Payload, schedule=SCHEDULE) -> list[Block]:
    """Execute payloads on a chain; return the blocks, each with its certificate."""
    blocks = []
    for each in payloads:
        executed = await chain.execute(chain.height + 1, each)
        bodies = tuple(transaction.raw for transaction in each.transactions)
        height = executed.header.height
        seals = certificate(height, executed.header_digest, validators=schedule.at(height))
        blocks.append(Block(executed.header, each.batch, bodies, seals))
    return blocks


NULL = NULL_PAYLOAD


@dataclass(frozen=True)
class Sent:
    to: bytes
    kind: Kind
    payload: bytes


class FakeLinks:
    """Records what is sent and who is punished."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.punished: list[tuple[bytes, float, str]] = []

    def send(self, key, kind, payload, priority) -> bool:
        self.sent.append(Sent(key, kind, payload))
        return True

    def broadcast(self, keys, kind, payload, priority) -> int:
        keys = list(keys)
        self.sent += [Sent(key, kind, payload) for key in keys]
        return len(keys)

    def punish(self, key, points, reason) -> None:
        self.punished.append((key, points, reason))

    def take(self) -> list[Sent]:
        taken, self.sent = self.sent, []
        return taken


class HeldStore:
    """A store whose writes can be held back, and that remembers each of them."""

    def __init__(self, inner) -> None:
        self._inner = inner
        self._loop = asyncio.get_running_loop()
        self._gate = None
        self.writes: list[tuple[list[tuple[bytes, bytes | None]], bool]] = []
        self.waiting = 0
        self.failure = None
        self.get, self.iterate = inner.get, inner.iterate
        self.snapshot, self.close = inner.snapshot, inner.close

    def hold(self) -> None:
        self._gate = asyncio.Event()

    def release(self) -> None:
        self._gate.set()
        self._gate = None

    def write(self, batch, *, sync) -> None:
        if self.failure is not None:
            raise self.failure
        gate = self._gate
        if gate is not None:
            self.waiting += 1
            asyncio.run_coroutine_threadsafe(gate.wait(), self._loop).result(PATIENCE_S)
            self.waiting -= 1
        self._inner.write(batch, sync=sync)
        self.writes.append((list(batch.operations), sync))


async def until(condition) -> None:
    """Let the loop and the worker threads go on until a condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0)


async def settle(turns: int = 50) -> None:
    """Let everything that is ready on the loop happen; threads are not waited for."""
    for _ in range(turns):
        await asyncio.sleep(0)


def readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="test-read")
