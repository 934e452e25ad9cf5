"""Gets and checks the batches that proposals name only by digest.

A pre-prepare travels with its batch (a time and a list of transaction digests); the bodies come
from the mempool, where gossip has usually brought them already. What is missing is asked of the
proposer first, then of every other validator in turn, until the replica needs it no more.
Nothing is voted for before every body is here and its signature verified (PBFT requirement 17).

A digest names its batch, and the batch names its bodies, signatures included. So a wrong answer is
the answering peer's fault and costs it points, while a right answer with a body that no node could
accept is the proposer's fault and refuses the batch.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from node.ledger.block import Batch
from node.ledger.errors import InvalidBlock, Refused
from node.ledger.limits import Limits
from node.ledger.transaction import Transaction, transaction_digest
from node.replication.chain import NULL_PAYLOAD, Payload

log = logging.getLogger(__name__)

GRACE_S = 0.004  # gossip that is on its way usually arrives within this
RETRY_S = 0.25
KNOWN_MAX = 256  # batches kept in memory; the window bounds what is needed
BATCH_OVERHEAD = 64  # bytes of an encoded batch beside its digests
DIGEST_BYTES = 34  # of one digest in an encoded batch

VerifyBodies = Callable[[Sequence[bytes]], Awaitable[list[Transaction | Refused]]]


class Pool(Protocol):
    """What the desk needs of the mempool."""

    def get(self, digest: bytes) -> Transaction | None:
        """Return the verified transaction of this digest, or None."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """What a fresh proposal must satisfy besides its form."""

    limits: Limits
    clock_skew_max_ms: int


@dataclass(slots=True)
class _Wanted:
    heights: set[int]  # usually one; a lying primary may propose one batch at several
    fresh: bool
    source: bytes | None  # peer that proposed it
    batch: Batch | None = None
    bodies: dict[bytes, Transaction] = field(default_factory=dict)
    missing: set[bytes] = field(default_factory=set)
    asked: int = 0
    timer: asyncio.TimerHandle | None = None


class PayloadDesk:
    """Turns "obtain this digest" into "ready" or "refused"; holds payloads until they execute."""

    def __init__(
        self,
        pool: Pool,
        verify: VerifyBodies,
        ask: Callable[[int, bytes, tuple[bytes, ...], bytes | None, int], None],
        answer: Callable[[int, Payload | None, bytes], None],
        now_ms: Callable[[], int],
        rules: Rules,
    ) -> None:
        """`ask(height, digest, missing, source, attempt)` sends a request to some peer;
        `answer(height, payload | None, digest)` reports the outcome, None for a refusal."""
        self._pool = pool
        self._verify = verify
        self._ask = ask
        self._answer = answer
        self._now_ms = now_ms
        self._rules = rules
        self._wanted: dict[bytes, _Wanted] = {}
        self._waiting: dict[bytes, set[bytes]] = {}  # transaction digest -> batch digests
        self._offered: OrderedDict[bytes, tuple[Batch, bytes | None]] = OrderedDict()
        self._ready: OrderedDict[bytes, Payload] = OrderedDict({NULL_PAYLOAD.digest: NULL_PAYLOAD})

    def payload(self, digest: bytes) -> Payload | None:
        """Return the complete payload of this digest while it is in memory."""
        return self._ready.get(digest)

    def batch_of(self, digest: bytes) -> Batch | None:
        """Return the batch of this digest, complete or only offered."""
        ready = self._ready.get(digest)
        if ready is not None:
            return ready.batch
        offered = self._offered.get(digest)
        return offered[0] if offered else None

    def keep(self, payload: Payload) -> None:
        """Remember a complete payload: our own proposal, or one read back after a restart."""
        self._ready[payload.digest] = payload

    def offer(self, digest: bytes, encoded: bytes, source: bytes | None) -> bool:
        """Remember the batch that came with a proposal; False when it is not what it claims."""
        if digest in self._ready or digest in self._offered:
            return True
        transactions_max = self._rules.limits.batch_transactions_max
        if len(encoded) > BATCH_OVERHEAD + DIGEST_BYTES * transactions_max:
            return False
        try:
            batch = Batch.decode(encoded, self._rules.limits)
        except InvalidBlock:
            return False
        if batch.digest != digest:
            return False
        self._offered[digest] = (batch, source)
        while len(self._offered) > KNOWN_MAX:
            self._offered.popitem(last=False)
        wanted = self._wanted.get(digest)
        if wanted is not None and wanted.batch is None:
            wanted.source = source
            self._begin(digest, wanted, batch)
        return True

    def wants(self, digest: bytes) -> bool:
        """Return whether an answer about this digest would be of use."""
        return digest in self._wanted

    def obtain(self, height: int, digest: bytes, *, fresh: bool) -> None:
        """Start to get the payload; answers at once when everything is here.

        With `fresh` its time must be near the clock's, also when it is known from before.
        """
        ready = self._ready.get(digest)
        if ready is not None:
            stale = fresh and ready.batch is not None and not self._is_timely(ready.batch)
            self._answer(height, None if stale else ready, digest)
            return
        wanted = self._wanted.get(digest)
        if wanted is not None:
            wanted.heights.add(height)
            wanted.fresh = wanted.fresh and fresh
            return
        offered = self._offered.get(digest)
        wanted = self._wanted[digest] = _Wanted({height}, fresh, offered[1] if offered else None)
        if offered is not None:
            self._begin(digest, wanted, offered[0])
        else:
            self._ask_next(digest)

    def arrived(self, transactions: Iterable[Transaction]) -> None:
        """Tell the desk of verified transactions that entered the mempool."""
        if not self._waiting:
            return
        for transaction in transactions:
            for digest in self._waiting.pop(transaction.digest, ()):
                wanted = self._wanted.get(digest)
                if wanted is not None:
                    wanted.bodies[transaction.digest] = transaction
                    wanted.missing.discard(transaction.digest)
                    self._finish_if_complete(digest, wanted)

    async def received(self, digest: bytes, encoded: bytes, bodies: Sequence[bytes]) -> bool:
        """Take a peer's answer; False when any part of it is not what was asked for.

        What came by another way in the meantime is no fault. Only bodies that are still missing
        are verified, so that an answer never costs more than the batch that it is about.
        """
        wanted = self._wanted.get(digest)
        if wanted is None:
            return True
        if encoded and wanted.batch is None and not self.offer(digest, encoded, wanted.source):
            return False
        if wanted.batch is None:
            return not bodies
        named = set(wanted.batch.transactions)
        by_name = {transaction_digest(body): body for body in bodies}
        if len(by_name) != len(bodies) or not named.issuperset(by_name):
            return False
        missing = [body for name, body in by_name.items() if name in wanted.missing]
        if self._wanted.get(digest) is wanted and missing:
            self._take_verified(digest, wanted, await self._verify(missing))
        return True

    def _take_verified(
        self, digest: bytes, wanted: _Wanted, results: Sequence[Transaction | Refused]
    ) -> None:
        if self._wanted.get(digest) is not wanted:
            return  # complete, refused or forgotten while the signatures were checked
        refused = [r for r in results if isinstance(r, Refused) and r.permanent]
        if refused:
            self._refuse(digest, wanted, f"it names a transaction that is {refused[0].code}")
        else:
            self.arrived([r for r in results if isinstance(r, Transaction)])

    def forget(self, height: int) -> None:
        """Drop everything wanted at or below an executed height."""
        for digest, wanted in list(self._wanted.items()):
            wanted.heights = {h for h in wanted.heights if h > height}
            if not wanted.heights:
                self._drop(digest, wanted)

    def release(self, digest: bytes) -> None:
        """Drop a payload that was executed or can no longer be."""
        self._offered.pop(digest, None)
        if digest != NULL_PAYLOAD.digest:
            self._ready.pop(digest, None)

    def close(self) -> None:
        """Cancel all retries."""
        for digest, wanted in list(self._wanted.items()):
            self._drop(digest, wanted)

    def _begin(self, digest: bytes, wanted: _Wanted, batch: Batch) -> None:
        wanted.batch = batch
        if wanted.fresh and not self._is_timely(batch):
            ahead_ms = batch.time_ms - self._now_ms()
            self._refuse(digest, wanted, f"its time is {ahead_ms} ms from this node's clock")
            return
        for name in batch.transactions:
            transaction = self._pool.get(name)
            if transaction is None:
                wanted.missing.add(name)
                self._waiting.setdefault(name, set()).add(digest)
            else:
                wanted.bodies[name] = transaction
        if not self._finish_if_complete(digest, wanted):
            self._arm(digest, wanted, GRACE_S)

    def _finish_if_complete(self, digest: bytes, wanted: _Wanted) -> bool:
        batch = wanted.batch
        if batch is None or wanted.missing:
            return False
        payload = Payload(digest, batch, tuple(wanted.bodies[name] for name in batch.transactions))
        size = sum(len(transaction.raw) for transaction in payload.transactions)
        if size > self._rules.limits.batch_bytes_max:
            self._refuse(digest, wanted, f"its bodies have {size} bytes")
            return True
        self._drop(digest, wanted)
        self.keep(payload)
        for height in sorted(wanted.heights):
            self._answer(height, payload, digest)
        return True

    def _refuse(self, digest: bytes, wanted: _Wanted, reason: str) -> None:
        heights = sorted(wanted.heights)
        log.warning("batch refused height=%d digest=%s reason=%s", heights[0], digest.hex(), reason)
        self._drop(digest, wanted)
        for height in heights:
            self._answer(height, None, digest)

    def _is_timely(self, batch: Batch) -> bool:
        return abs(batch.time_ms - self._now_ms()) <= self._rules.clock_skew_max_ms

    def _ask_next(self, digest: bytes) -> None:
        wanted = self._wanted.get(digest)
        if wanted is None:
            return
        missing = tuple(sorted(wanted.missing)) if wanted.batch is not None else ()
        self._ask(min(wanted.heights), digest, missing, wanted.source, wanted.asked)
        wanted.asked += 1
        self._arm(digest, wanted, RETRY_S)

    def _arm(self, digest: bytes, wanted: _Wanted, delay_s: float) -> None:
        if wanted.timer is not None:
            wanted.timer.cancel()
        wanted.timer = asyncio.get_running_loop().call_later(delay_s, self._ask_next, digest)

    def _drop(self, digest: bytes, wanted: _Wanted) -> None:
        if wanted.timer is not None:
            wanted.timer.cancel()
        self._wanted.pop(digest, None)
        for name in wanted.missing:
            waiting = self._waiting.get(name)
            if waiting is not None:
                waiting.discard(digest)
                if not waiting:
                    del self._waiting[name]
