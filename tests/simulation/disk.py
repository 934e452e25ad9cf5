"""A disk that takes its time and forgets what it had not synced when the power went.

Writes are grouped as in production: while one sync runs, others gather for the next. A crash keeps
a random prefix of the transactions in the running sync and none of those behind it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from consensus.messages import SealCertificate
from tests.simulation.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Block:
    """What a height came to."""

    digest: bytes
    header: bytes
    payload: bytes | None  # None: the null block


@dataclass(slots=True)
class Transaction:
    """Rows that become durable together or not at all."""

    wal: list[tuple[bytes, bytes | None]] = field(default_factory=list)  # None: deleted
    payloads: list[tuple[int, bytes, bytes]] = field(default_factory=list)  # height, digest, bytes
    blocks: list[tuple[int, Block]] = field(default_factory=list)
    certificate: SealCertificate | None = None
    then: Callable[[], None] | None = None  # called once durable


class Disk:
    """Durable state of one node; survives its crashes."""

    def __init__(self, scheduler: Scheduler, rng: Random, genesis: Block) -> None:
        self.sync_ms: tuple[float, float] = (0.1, 1.0)
        self.wal: dict[bytes, bytes] = {}
        self.payloads: dict[bytes, bytes] = {}
        self.blocks: list[Block] = [genesis]
        self.certificates: dict[int, SealCertificate] = {}
        self.submitted = self.durable = 0  # transactions
        self.on_synced: Callable[[], None] = lambda: None
        self._scheduler = scheduler
        self._rng = rng
        self._genesis = genesis
        self._heights: dict[int, set[bytes]] = {}
        self._waiting: list[Transaction] = []
        self._syncing: list[Transaction] = []
        self._power = 0  # counts power cuts

    @property
    def head(self) -> int:
        """The last durable height."""
        return len(self.blocks) - 1

    def submit(self, transaction: Transaction) -> int:
        """Queue a transaction; durable once `self.durable` has reached the result."""
        self._waiting.append(transaction)
        self.submitted += 1
        if not self._syncing:
            self._start()
        return self.submitted

    def has(self, height: int, digest: bytes) -> bool:
        """Tell whether the batch `digest` is durable for `height`."""
        return digest in self._heights.get(height, ())

    def crash(self) -> None:
        """Cut the power."""
        kept = self._rng.randint(0, len(self._syncing))
        for transaction in self._syncing[:kept]:
            self._apply(transaction)
        self._waiting, self._syncing = [], []
        self.submitted = self.durable = 0
        self._power += 1

    def wipe(self) -> None:
        """Cut the power and lose everything."""
        self.crash()
        self.wal, self.payloads, self._heights = {}, {}, {}
        self.blocks, self.certificates = [self._genesis], {}

    def _start(self) -> None:
        self._syncing, self._waiting = self._waiting, []
        low, high = self.sync_ms
        delay = low + (high - low) * self._rng.random()
        self._scheduler.later(delay, self._finish, self._power)

    def _finish(self, power: int) -> None:
        if power != self._power:
            return
        done, self._syncing = self._syncing, []
        for transaction in done:
            self._apply(transaction)
        self.durable += len(done)
        if self._waiting:
            self._start()
        for transaction in done:
            if transaction.then is not None and power == self._power:
                transaction.then()
        if power == self._power:
            self.on_synced()

    def _apply(self, transaction: Transaction) -> None:
        for key, value in transaction.wal:
            if value is None:
                self.wal.pop(key, None)
            else:
                self.wal[key] = value
        for height, digest, payload in transaction.payloads:
            self.payloads[digest] = payload
            self._heights.setdefault(height, set()).add(digest)
        for height, block in transaction.blocks:
            if height == self.head + 1:
                self.blocks.append(block)
        certificate = transaction.certificate
        if certificate is not None:
            self.certificates[certificate.height] = certificate
            self._prune(certificate.height)

    def _prune(self, stable: int) -> None:
        """Drop the payloads that lost, as the node may once their height is stable."""
        done = [height for height in self._heights if height <= min(stable, self.head)]
        lost = {d for h in done for d in self._heights.pop(h) if d != self.blocks[h].digest}
        for digest in lost.difference(*self._heights.values()):
            self.payloads.pop(digest, None)
