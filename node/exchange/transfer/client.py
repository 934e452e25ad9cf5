"""Fetches a study's ciphertext: several chunks at a time, from any holder, once each.

    fetched = await fetch(identity, wanted, holders, sink, transfers)

The offer is kept on disk first; then every chunk is hashed on arrival and goes into the sink, which
is durable. So whatever kills either side, the next `fetch` asks only for what the sink lacks. A
holder that serves a chunk with another digest is named, kept on record and never asked again for
this request; one that fails is tried again for a while, later each time; one that refuses is left.

`recover` brings a custodian its own chunks back, which it lost: no offer, no key, the same care.
"""

import asyncio
import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Container, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from node.exchange.pages import page_buffer
from node.exchange.transfer.errors import (
    InvalidOffer,
    InvalidRecord,
    NotPermitted,
    TransferIncomplete,
    WrongDigest,
)
from node.exchange.transfer.holders import (
    Holder,
    HolderBusy,
    HolderFailed,
    HolderLied,
    HolderRefused,
    Identity,
    Link,
    NotHeld,
)
from node.exchange.transfer.limits import ClientLimits, SharedPace
from node.exchange.transfer.line import Partial
from node.exchange.transfer.offer import Offer, Wanted, decode_offer, require_wanted
from node.exchange.transfer.ports import Chunk, ChunkSink, Custody, Ground, Progress
from node.exchange.transfer.state import Transfer, Transfers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A study whose chunks are all here; `Transfers.forget` it once it is taken over."""

    offer: Offer
    chunks_fetched: int  # in this run; the others were here
    bytes_fetched: int
    liars: tuple[str, ...]  # institutions, in this run and before
    left: dict[str, str]  # institutions that were given up in this run, and why


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of chunks that were lost."""

    chunks: int  # that are here again
    bytes: int  # of these
    missing: int  # that no holder gave
    liars: tuple[str, ...]  # institutions that served wrong bytes
    left: dict[str, str]  # institutions that were given up, and why


async def fetch(
    identity: Identity,
    wanted: Wanted,
    holders: Sequence[Holder],
    sink: ChunkSink,
    transfers: Transfers,
    *,
    limits: ClientLimits | None = None,
    prepare: Callable[[Offer], object] | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """Fetch all that is missing of a study. Name the custodian first: it alone makes the offer.

    `prepare` is called in a thread once the offer is known, before the sink is asked for anything,
    in every run: there the caller unwraps the key and lets its store adopt the index.

    Raises `NotPermitted` when the ledger's no is all that the holders say, `TransferIncomplete`
    when nobody serves what is missing (both: try again later, nothing is lost), `InvalidOffer` when
    the custodian's offer is not of what the ledger says, and what `prepare` and the sink raise.
    Cancelling is safe at any point.
    """
    limits = limits or ClientLimits()
    async with AsyncExitStack() as stack:
        links = [Link(holder, identity, limits) for holder in holders]
        for link in links:
            stack.push_async_callback(link.close)
        known = await asyncio.to_thread(_resume, transfers, wanted)
        if known is None:
            known = Transfer(await _ask_for_offer(links, wanted, limits))
            await asyncio.to_thread(transfers.save, known)
        if prepare is not None:
            await asyncio.to_thread(prepare, known.offer)
        offer, kept = known.offer, _Kept(known, transfers)
        run = _Run(wanted.request_id, links, sink, limits, progress, known.liars, kept.expose)
        missing = await asyncio.to_thread(_missing, offer, sink)
        if given_up := await run.fetch(missing, offer.bytes_total):
            raise run.failure(given_up)
        liars = kept.transfer.liars
        return Fetched(offer, run.chunks, run.bytes, liars, run.left())


async def recover(
    identity: Identity,
    study_id: bytes,
    missing: Sequence[Chunk],
    holders: Sequence[Holder],
    sink: ChunkSink,
    *,
    limits: ClientLimits | None = None,
    liars: Iterable[str] = (),
) -> Recovered:
    """Fetch chunks of a study of which this hospital is the custodian, from whoever has them.

    Holders named in `liars` are not asked. Raises what the sink raises. Cancelling is safe.
    """
    limits = limits or ClientLimits()
    async with AsyncExitStack() as stack:
        links = [Link(holder, identity, limits) for holder in holders]
        for link in links:
            stack.push_async_callback(link.close)
        run = _Run(Custody(study_id), links, sink, limits, None, liars, lambda name: None)
        given_up = await run.fetch(missing, sum(chunk.size for chunk in missing))
        return Recovered(run.chunks, run.bytes, given_up, tuple(sorted(run.liars)), run.left())


def _missing(offer: Offer, sink: ChunkSink) -> list[Chunk]:
    delivery = offer.delivery
    missing = frozenset(sink.missing(delivery.study_id, delivery.version))
    return [chunk for chunk in offer.chunks if chunk.digest in missing]


def _resume(transfers: Transfers, wanted: Wanted) -> Transfer | None:
    """Return the transfer that was begun, if it is still of what the ledger says."""
    try:
        known = transfers.get(wanted.request_id)
        if known is not None:
            require_wanted(known.offer, wanted)
    except (InvalidRecord, InvalidOffer) as error:
        log.warning("a transfer begins anew request=%s reason=%s", wanted.request_id.hex(), error)
        return None
    return known


async def _ask_for_offer(links: Iterable[Link], wanted: Wanted, limits: ClientLimits) -> Offer:
    reasons: dict[str, str] = {}
    refusals: list[str] = []
    invalid: InvalidOffer | None = None
    for link in links:
        name = link.holder.institution
        try:
            offer = await asyncio.to_thread(decode_offer, await _persist(link, wanted, limits))
            require_wanted(offer, wanted)
            return offer
        except HolderRefused as error:
            reasons[name] = error.code
            refusals += [error.code] if error.is_permit else []
        except NotHeld:
            reasons[name] = "it does not hold the study"
        except (HolderBusy, HolderFailed, HolderLied) as error:
            reasons[name] = str(error)
        except InvalidOffer as error:
            invalid = invalid or InvalidOffer(f"the offer of {name}: {error}")
            reasons[name] = str(error)
    if invalid is not None:
        raise invalid
    if refusals:
        raise NotPermitted(refusals[0])
    raise TransferIncomplete(None, reasons)


async def _persist(link: Link, wanted: Wanted, limits: ClientLimits) -> bytes:
    """Ask one holder for an offer, again when it is busy or the line fails."""
    for attempt in range(1, limits.attempts_max):
        try:
            return await link.offer(wanted.request_id)
        except HolderBusy as error:
            await asyncio.sleep(error.pause_s)
        except HolderFailed:
            await asyncio.sleep(_backoff_s(attempt, limits))
    return await link.offer(wanted.request_id)


def _backoff_s(failures: int, limits: ClientLimits) -> float:
    return min(limits.backoff_max_ms, limits.backoff_min_ms << min(failures, 16)) / 1000


@dataclass(slots=True, eq=False)
class _Standing:
    """What this run knows of a holder."""

    link: Link
    left: str | None = None  # why it is not asked any more
    refused: str | None = None  # the ledger's code, when that is why
    failures: int = 0  # in a row
    busy: int = 0  # answers that it is, since a chunk came
    ready_s: float = 0.0
    in_flight: int = 0
    lacks: set[bytes] = field(default_factory=set)  # digests; bounded by the offer

    @property
    def name(self) -> str:
        return self.link.holder.institution


class _Kept:
    """A transfer whose liars are kept on record."""

    def __init__(self, transfer: Transfer, transfers: Transfers) -> None:
        self.transfer, self._transfers = transfer, transfers

    def expose(self, institution: str) -> None:
        """Wait until it is on record that this holder lied."""
        self.transfer = self.transfer.with_liar(institution)
        self._transfers.save(self.transfer)


class _Run:
    """One run over the chunks that are missing."""

    def __init__(
        self,
        ground: Ground,
        links: Iterable[Link],
        sink: ChunkSink,
        limits: ClientLimits,
        progress: Progress | None,
        liars: Iterable[str],
        expose: Callable[[str], None],
    ) -> None:
        """`expose` is called in a thread with the name of whoever lied."""
        self._ground, self._sink, self._limits, self._expose = ground, sink, limits, expose
        self._progress = progress or _unseen
        self._pace = SharedPace(limits.rate_bytes_per_s)
        self._standings = [_Standing(link) for link in links]
        self.liars = set(liars)
        for standing in self._standings:
            if standing.name in self.liars:
                standing.left = _LIED
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()  # over what follows: threads take chunks, and count them
        self._todo: deque[Chunk] = deque()
        self._given_up = self._total = self._here = 0
        self.chunks = self.bytes = 0  # fetched

    async def fetch(self, missing: Sequence[Chunk], total: int) -> int:
        """Fetch what is missing of `total` bytes; return how many chunks nobody gave."""
        self._todo.extend(missing)
        self._total = total
        self._here = total - sum(chunk.size for chunk in missing)
        self._progress(self._here, total)
        workers = min(self._limits.parallel, len(missing))
        largest = max((chunk.size for chunk in missing), default=0)
        await _all_or_first_error([self._work(largest) for _ in range(workers)])
        return self._given_up

    def failure(self, given_up: int) -> NotPermitted | TransferIncomplete:
        """Return why so many chunks are still missing."""
        refusals = {standing.refused for standing in self._standings}
        if refusals and None not in refusals:
            return NotPermitted(str(min(filter(None, refusals))))
        return TransferIncomplete(given_up, self.left())

    def left(self) -> dict[str, str]:
        """Return the holders that were given up, and why."""
        return {
            each.name: each.left or "it lacks chunks"
            for each in self._standings
            if (each.left or each.lacks)
        }

    async def _work(self, largest: int) -> None:
        buffer = memoryview(page_buffer(largest))  # a sink may hand it to the disk as it is
        while (chunk := self._next()) is not None:
            if not await self._carry(Partial(chunk, buffer)):
                self._given_up += 1

    def _next(self, lacks: Container[bytes] = ()) -> Chunk | None:
        """Return the next chunk, unless it is one of those."""
        with self._lock:
            if not self._todo or self._todo[0].digest in lacks:
                return None
            return self._todo.popleft()

    async def _carry(self, partial: Partial) -> bool:
        """Fetch and keep one chunk, and those that follow as long as nothing goes wrong.

        Return False when no holder is left that may have the one that is not whole.
        """
        while (standing := await self._choose(partial.chunk)) is not None:
            standing.in_flight += 1
            failures, chunk, filled = standing.failures, partial.chunk, partial.filled
            busy = standing.busy
            keep = functools.partial(self._keep, standing, partial)
            try:
                await standing.link.stream(partial, self._ground, self._pace, keep)
                return True
            except _SinkFailed as error:
                raise error.reason from None
            except WrongDigest:
                await self._mismatch(standing, partial)
            except HolderLied:
                partial.restart()
                await self._name(standing)
            except NotHeld:
                standing.lacks.add(partial.chunk.digest)
            except HolderRefused as error:
                standing.left = error.code
                standing.refused = error.code if error.is_permit else None
            except HolderBusy as error:
                if busy == standing.busy:  # else it is the answer that others got
                    self._busy(standing, error)
            except HolderFailed as error:
                if partial.chunk is not chunk or partial.filled - filled >= _PROGRESS_BYTES:
                    failures = standing.failures = 0  # a bad line, but it moves
                if failures == standing.failures:  # else it is the failure that others met
                    self._failed(standing, str(error))
            finally:
                standing.in_flight -= 1
        return False

    def _keep(self, standing: _Standing, partial: Partial) -> bool:
        """Keep a chunk that is whole and begin the next, if there is one to be had from there.

        Called in threads.
        """
        size = partial.chunk.size
        try:
            self._sink.put_ciphertext(partial.chunk.digest, partial.data, partial.found)
        except WrongDigest:
            raise
        except Exception as error:
            raise _SinkFailed(error) from error
        with self._lock:
            standing.failures = standing.busy = 0
            self.chunks += 1
            self.bytes += size
            self._here += size
            here = self._here
        self._loop.call_soon_threadsafe(self._progress, here, self._total)
        if standing.left is not None or (chunk := self._next(standing.lacks)) is None:
            return False
        partial.begin(chunk)
        return True

    async def _choose(self, chunk: Chunk) -> _Standing | None:
        """Return the least busy holder that may have the chunk, when one is ready."""
        while True:
            able = [
                each
                for each in self._standings
                if each.left is None and chunk.digest not in each.lacks
            ]
            if not able:
                return None
            now_s = self._loop.time()
            ready = [each for each in able if each.ready_s <= now_s]
            if ready:
                return min(ready, key=lambda each: (each.failures, each.in_flight))
            await asyncio.sleep(min(each.ready_s for each in able) - now_s)

    async def _mismatch(self, standing: _Standing, partial: Partial) -> None:
        """A chunk has another digest: the one holder it came from lied. Of several nobody knows
        which; it is fetched anew, and from one only."""
        alone = partial.sources == {standing.name}
        partial.restart()
        if alone:
            await self._name(standing)

    async def _name(self, standing: _Standing) -> None:
        if standing.left is None:
            standing.left = _LIED
            log.warning("a holder served a chunk with another digest holder=%s", standing.name)
            self.liars.add(standing.name)
            await asyncio.to_thread(self._expose, standing.name)

    def _failed(self, standing: _Standing, reason: str) -> None:
        standing.failures += 1
        if standing.failures >= self._limits.attempts_max:
            standing.left = standing.left or reason
        pause_s = _backoff_s(standing.failures, self._limits)
        standing.ready_s = self._loop.time() + pause_s

    def _busy(self, standing: _Standing, error: HolderBusy) -> None:
        standing.busy += 1
        if standing.busy >= self._limits.busy_max:
            standing.left = standing.left or f"it is busy: {error}"
        pause_s = max(error.pause_s, _backoff_s(standing.busy, self._limits))
        standing.ready_s = self._loop.time() + pause_s


class _SinkFailed(Exception):
    """What the sink raised, in a thread, where it is not to be taken for the line's."""

    def __init__(self, reason: Exception) -> None:
        super().__init__()
        self.reason = reason


_PROGRESS_BYTES = 64 * 1024
_LIED = "it served a chunk with another digest"


async def _all_or_first_error(work: list[Coroutine[Any, Any, None]]) -> None:
    """Run all; the first error, or a cancellation, ends the others before it goes on."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _unseen(here: int, total: int) -> None:
    """Nobody watches."""
