"""The one door into a node for transactions: from clients, from gossip, and in proposals.

What arrives while a batch is under way waits for the next one, so that a hop to the worker thread
is shared by all of it. Only decoding and the mempool happen on the event loop; the signature and
`check` (arguments and state) happen in the thread, and a signature once per node: what waits here,
in the mempool, or was verified lately is not verified again.

Each source has a lane of its own with a bound, and a batch takes one from each lane in turn, so a
peer that floods delays itself. Bodies that a proposal needs go before everything else.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from consensus.errors import require
from node.ledger.errors import Refused
from node.ledger.mempool import Mempool
from node.ledger.transaction import Transaction, transaction_digest
from node.ledger.verifier import is_valid
from node.worker import Worker

Verdict: TypeAlias = Transaction | Refused
# Told None when all is well.
_Tell: TypeAlias = Callable[[Refused | None], None]

LOCAL = "local"  # the lane of `submit`


@dataclass(frozen=True, slots=True)
class AdmissionBounds:
    """What may wait for its check. A node's own choice, not consensus."""

    lane_count_max: int = 4_096  # transactions of one source
    lane_bytes_max: int = 8 * 1024 * 1024
    batch_max: int = 128  # transactions in one hop: about 13 ms of signature checks
    verified_max: int = 32_768  # digests remembered, so that no signature is checked twice


class _Job:
    """One transaction on its way, and who wants to know.

    `verified` are told what signature and check gave; `admitted` also what the mempool said, which
    is asked only when there is somebody here.
    """

    __slots__ = ("admitted", "is_signed", "lane", "transaction", "verified")

    def __init__(self, transaction: Transaction, *, is_signed: bool) -> None:
        self.transaction = transaction
        self.is_signed = is_signed  # the signature verified, now or before
        self.lane: str | None = None  # where it waits; None once it is urgent or under way
        self.verified: list[_Tell] = []
        self.admitted: list[_Tell] = []


class Admission:
    """Decodes, verifies and lets in. For the event loop, on which `run` must be running."""

    def __init__(
        self,
        mempool: Mempool,
        worker: Worker,
        check: Callable[[Transaction], Refused | None],
        *,
        decode: Callable[[bytes], Transaction],
        now_ms: Callable[[], int],
        on_accepted: Callable[[Sequence[Transaction]], None],
        bounds: AdmissionBounds = AdmissionBounds(),
    ) -> None:
        """`decode` checks form, limits and chain; raises `Refused`. `check` runs in `worker`, one
        call at a time, and says what speaks against a transaction in the present state.
        `on_accepted` hears once per batch, on the event loop, what has entered the mempool."""
        self._mempool = mempool
        self._worker = worker
        self._check = check
        self._decode = decode
        self._now_ms = now_ms
        self._on_accepted = on_accepted
        self._bounds = bounds
        self._jobs: dict[bytes, _Job] = {}  # digest -> job, waiting or under way
        self._urgent: deque[_Job] = deque()
        self._lanes = _Lanes(bounds)
        self._verified: OrderedDict[bytes, None] = OrderedDict()
        self._woken = asyncio.Event()
        self._is_closed = False

    @property
    def backlog(self) -> int:
        """How many transactions wait or are under way."""
        return len(self._jobs)

    async def submit(self, raw: bytes) -> Transaction:
        """Return the transaction once it is verified and in the mempool. Raises `Refused`.

        The same bytes again while they are under way share the answer; later, a `duplicate`.
        """
        transaction = self._decode(raw)
        if self._is_duplicate(transaction):
            raise Refused("duplicate", "a transaction with this id waits already or was executed")
        answer: asyncio.Future[Refused | None] = asyncio.get_running_loop().create_future()
        self._enqueue(transaction, LOCAL, partial(_set_result, answer))
        refused = await answer
        if refused is not None:
            raise refused
        return transaction

    def offer(
        self,
        raws: Sequence[bytes],
        on_refused: Callable[[Refused], None],
        *,
        source: str = "gossip",
    ) -> None:
        """Take what a peer sent; `source` names its lane.

        `on_refused` hears of each refusal, now or later; `Refused.permanent` tells the peer's fault
        from bad luck. What is known or under way is passed over in silence.
        """

        def tell(refused: Refused | None) -> None:
            if refused is not None and refused.code != "duplicate":
                on_refused(refused)

        for raw in raws:
            digest = transaction_digest(raw)
            job = self._jobs.get(digest)
            if self._mempool.is_known(digest) or (job is not None and job.admitted):
                continue
            try:
                transaction = self._decode(raw) if job is None else job.transaction
                if not self._is_duplicate(transaction):
                    self._enqueue(transaction, source, tell)
            except Refused as refused:
                on_refused(refused)

    async def verify(self, raws: Sequence[bytes], *, state: bool = False) -> list[Verdict]:
        """Return for each body of a proposal its transaction, or why it is refused.

        The mempool is only read: what waits there is verified and not looked at again. Only
        permanent refusals count, since what the present state speaks against becomes a failed
        receipt and must stop no view; with `state` it counts too. A node that stops answers with
        `busy`. How much is asked at once is bounded by the proposals in the window.
        """
        bodies = _Bodies(len(raws), state=state)
        for index, raw in enumerate(raws):
            digest = transaction_digest(raw)
            known = self._mempool.get(digest)
            if known is not None:
                bodies.settle(index, known)
                continue
            job = self._jobs.get(digest)
            try:
                job = self._hasten(self._decode(raw) if job is None else job.transaction)
            except Refused as refused:
                bodies.settle(index, refused)
            else:
                job.verified.append(partial(bodies.told, index, job))
        return await bodies.verdicts()

    async def run(self) -> None:
        """Serve until cancelled. An exception of `check` ends it, and with it the node."""
        try:
            while True:
                batch = self._next_batch()
                if batch:
                    refusals = await self._worker.call(self._judge, batch)
                    self._settle(batch, refusals)
                else:
                    self._woken.clear()
                    await self._woken.wait()
        finally:
            self._close()

    def _is_duplicate(self, transaction: Transaction) -> bool:
        mempool = self._mempool
        return mempool.contains_id(transaction.id) or mempool.is_known(transaction.digest)

    def _enqueue(self, transaction: Transaction, source: str, tell: _Tell) -> None:
        """Let the transaction wait in the lane of `source`, unless it is under way already."""
        job = self._jobs.get(transaction.digest)
        if job is None:
            job = self._new_job(transaction)
            self._lanes.add(source, job)
            self._jobs[transaction.digest] = job
            self._woken.set()
        job.admitted.append(tell)

    def _hasten(self, transaction: Transaction) -> _Job:
        """Return the job for the transaction, which no longer waits in any lane."""
        job = self._jobs.get(transaction.digest)
        if job is None:
            job = self._jobs[transaction.digest] = self._new_job(transaction)
            self._urgent.append(job)
            self._woken.set()
        elif job.lane is not None:
            self._lanes.withdraw(job)
            self._urgent.append(job)
        return job

    def _new_job(self, transaction: Transaction) -> _Job:
        if self._is_closed:
            raise _stopping()
        return _Job(transaction, is_signed=transaction.digest in self._verified)

    def _next_batch(self) -> list[_Job]:
        batch: list[_Job] = []
        while self._urgent and len(batch) < self._bounds.batch_max:
            batch.append(self._urgent.popleft())
        self._lanes.take(batch, self._bounds.batch_max)
        return batch

    def _judge(self, batch: Sequence[_Job]) -> list[Refused | None]:
        """Return what speaks against each; the only part that runs in the worker thread."""
        refusals: list[Refused | None] = []
        for job in batch:
            transaction = job.transaction
            if not job.is_signed:
                job.is_signed = is_valid(
                    transaction.member_key, transaction.signed, transaction.signature
                )
            refusals.append(self._check(transaction) if job.is_signed else _bad_signature())
        return refusals

    def _settle(self, batch: Sequence[_Job], refusals: Sequence[Refused | None]) -> None:
        now_ms = self._now_ms()
        accepted = []
        for job, refused in zip(batch, refusals, strict=True):
            transaction = job.transaction
            del self._jobs[transaction.digest]
            if job.is_signed:
                self._verified[transaction.digest] = None
            for tell in job.verified:
                tell(refused)
            if job.admitted and refused is None:
                try:
                    self._mempool.add(transaction, now_ms)
                    accepted.append(transaction)
                except Refused as full:
                    refused = full
            for tell in job.admitted:
                tell(refused)
        while len(self._verified) > self._bounds.verified_max:
            self._verified.popitem(last=False)
        if accepted:
            self._on_accepted(accepted)

    def _close(self) -> None:
        """Answer everybody who still waits."""
        self._is_closed = True
        jobs, self._jobs = list(self._jobs.values()), {}
        self._urgent.clear()
        self._lanes = _Lanes(self._bounds)
        for job in jobs:
            for tell in [*job.verified, *job.admitted]:
                tell(_stopping())


def _bad_signature() -> Refused:
    return Refused("signature_invalid", "the signature is not that of the member key inside")


def _stopping() -> Refused:
    return Refused("busy", "the node is stopping")


class _Lanes:
    """Jobs that wait, by source; whoever has waited longest for a turn comes first."""

    def __init__(self, bounds: AdmissionBounds) -> None:
        self._bounds = bounds
        self._jobs: OrderedDict[str, OrderedDict[bytes, _Job]] = OrderedDict()
        self._bytes: dict[str, int] = {}

    def add(self, source: str, job: _Job) -> None:
        """Let `job` wait. Raises `Refused("busy")` when the lane of `source` is full."""
        size = self._bytes.get(source, 0) + len(job.transaction.raw)
        lane = self._jobs.get(source)
        if size > self._bounds.lane_bytes_max or (
            lane is not None and len(lane) >= self._bounds.lane_count_max
        ):
            raise Refused("busy", "too many transactions wait for their check; send more slowly")
        if lane is None:
            lane = self._jobs[source] = OrderedDict()
        lane[job.transaction.digest] = job
        self._bytes[source] = size
        job.lane = source

    def take(self, batch: list[_Job], count_max: int) -> None:
        """Move jobs to `batch`, one from each lane in turn, until it holds `count_max`."""
        while self._jobs and len(batch) < count_max:
            source = next(iter(self._jobs))
            job = next(iter(self._jobs[source].values()))
            self._jobs.move_to_end(source)
            self.withdraw(job)
            batch.append(job)

    def withdraw(self, job: _Job) -> None:
        """Take `job` out of its lane."""
        require(job.lane is not None, "only a waiting job can be withdrawn")
        source = job.lane or ""
        lane = self._jobs[source]
        del lane[job.transaction.digest]
        self._bytes[source] -= len(job.transaction.raw)
        job.lane = None
        if not lane:
            del self._jobs[source], self._bytes[source]


class _Bodies:
    """The verdicts on the bodies of one proposal, complete when each has been told."""

    def __init__(self, count: int, *, state: bool) -> None:
        self._state = state
        self._verdicts: list[Verdict | None] = [None] * count
        self._left = count
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not count:
            self._done.set_result(None)

    def settle(self, index: int, verdict: Verdict) -> None:
        self._verdicts[index] = verdict
        self._left -= 1
        if not self._left and not self._done.done():
            self._done.set_result(None)

    def told(self, index: int, job: _Job, refused: Refused | None) -> None:
        if refused is None or (job.is_signed and not self._state and not refused.permanent):
            self.settle(index, job.transaction)
        else:
            self.settle(index, refused)

    async def verdicts(self) -> list[Verdict]:
        await self._done
        return [verdict for verdict in self._verdicts if verdict is not None]


def _set_result(answer: asyncio.Future[Refused | None], refused: Refused | None) -> None:
    if not answer.done():  # the caller may have given up
        answer.set_result(refused)
