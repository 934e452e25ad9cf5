"""Chunks that the store has lost come back from hospitals that hold the same ciphertext.

    found rotten or lost (scrub, or a read) -> missing -> asked for -> verified by digest -> here

Of a study that came from elsewhere they come under the grant by which it came, as long as that is
in force: `Requester.fetch` goes on, counts no use and acknowledges nothing again. Of a study of our
own they come from the hospitals that received it, on the ground that the ledger names us its
custodian. What nobody can give now is asked for again later, ever more seldom.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from node.exchange.store.errors import StoreError
from node.exchange.store.store import StudyStore
from node.exchange.transfer.client import recover
from node.exchange.transfer.errors import InvalidRecord, NotPermitted, TransferIncomplete
from node.exchange.transfer.holders import Holder, Identity
from node.exchange.transfer.limits import ClientLimits
from node.exchange.transfer.ports import Chunk, Custody, Happening, Report, TransferEvent, event_of
from node.gateway.acting import Acting
from node.gateway.backlog import Backlog
from node.gateway.directory import Directory
from node.gateway.requester import NotAuthentic, NotReady, Requester, Unreachable
from node.ledger.contracts.access_record import RECEIVED
from node.ledger.queries.access_views import RequestQuery

log = logging.getLogger(__name__)

LOOK_S = 60.0
STUDIES_MAX = 1_000  # taken up at one look
CHUNKS_MAX = 4_096  # of an own study, asked for at a time: 16 GiB
HOLDERS_MAX = 64
AGAIN_FIRST_S, AGAIN_LAST_S = 60.0, 3_600.0
WRONG_DIGEST = "wrong_digest"

_WAITS = (TransferIncomplete, NotReady, Unreachable, StoreError, InvalidRecord)


@dataclass(frozen=True, slots=True)
class Mended:
    """Chunks of a study that are here again."""

    study_id: bytes
    request_id: bytes | None  # by which it came; None of a study of our own
    chunks: int
    bytes: int


@dataclass(slots=True)
class _Rest:
    due_s: float
    attempts: int = 0


class Mending:
    """Brings back what is missing. Lives in the event loop."""

    def __init__(
        self,
        acting: Acting,
        store: StudyStore,
        requester: Requester,
        directory: Directory,
        identity: Identity,
        *,
        report: Report,
        on_mended: Callable[[Mended], None] = lambda mended: None,
        limits: ClientLimits | None = None,
    ) -> None:
        """`report` gets which hospitals served wrong bytes, and what was not taken."""
        self._acting, self._store, self._requester = acting, store, requester
        self._directory, self._identity, self._limits = directory, identity, limits
        self._report, self._on_mended = report, on_mended
        self._resting: dict[bytes, _Rest] = {}  # bounded by the studies that lack chunks
        self._liars: dict[bytes, set[str]] = {}  # the same
        self._told: dict[bytes, None] = {}  # found not to be whole, until they are
        self.backlog: Backlog[bytes] = Backlog("mend", self._work, at_once=2)

    async def run(self) -> None:
        """Look for ever for what is missing."""
        while True:
            try:
                await self.look()
            except (StoreError, OSError) as error:
                log.warning("the store cannot be looked at reason=%s", error)
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Take up every study that lacks chunks and does not rest. Raises `StoreError`."""
        lacking = await asyncio.to_thread(self._lacking) | self._told
        for known in (self._resting, self._liars):
            for study_id in [each for each in known if each not in lacking]:
                del known[study_id]
        now_s = asyncio.get_running_loop().time()
        for study_id in lacking:
            rest = self._resting.get(study_id)
            if rest is None or rest.due_s <= now_s:
                self.backlog.add(study_id)

    def found(self, study_id: bytes) -> None:
        """Hear that a study is not whole, be it a chunk or its index."""
        if len(self._told) < STUDIES_MAX:
            self._told[study_id] = None
        self.backlog.add(study_id)

    async def mend(self, study_id: bytes) -> bool:
        """Bring one study's missing chunks back; return whether none is missing any more.

        Raises what `Client` and the store raise.
        """
        study = await self._acting.client.study(study_id)
        if study is None:
            return False
        if study.summary.status == "erased":
            return True  # it is destroyed, not mended
        if study.summary.custodian == self._acting.institution:
            return await self._own(study_id)
        return await self._received(study_id)

    def _lacking(self) -> dict[bytes, None]:
        return dict.fromkeys(islice(self._store.lacking(), STUDIES_MAX))

    async def _work(self, study_id: bytes) -> bool:
        is_whole = False
        try:
            is_whole = await self.mend(study_id)
        except _WAITS as error:
            log.warning("missing chunks wait study=%s: %s", study_id.hex(), error)
        if is_whole:
            self._resting.pop(study_id, None)
            self._told.pop(study_id, None)
            return True
        rest = self._resting.setdefault(study_id, _Rest(0.0))
        pause_s = min(AGAIN_LAST_S, AGAIN_FIRST_S * (1 << min(rest.attempts, 16)))
        rest.due_s, rest.attempts = asyncio.get_running_loop().time() + pause_s, rest.attempts + 1
        return True  # the next look that finds it due takes it up again

    async def _received(self, study_id: bytes) -> bool:
        """Go on with every fetch of the study that was whole once and is permitted now."""
        query = RequestQuery(institution=self._acting.institution, study_id=study_id)
        async for request in self._acting.requests(query):
            if request.recorded_state != RECEIVED or not request.permitted:
                continue
            if await asyncio.to_thread(self._requester.is_whole, request):
                continue
            try:
                received = await self._requester.fetch(request.id)
            except (NotPermitted, NotAuthentic) as error:
                log.error("missing chunks were not taken request=%s: %s", request.id.hex(), error)
                code = error.code if isinstance(error, NotPermitted) else "not_authentic"
                self._report(TransferEvent(Happening.NOT_TAKEN, None, request.id, code))
                continue
            for liar in received.liars:
                self._report(TransferEvent(Happening.NOT_TAKEN, liar, request.id, WRONG_DIGEST))
            if received.chunks_fetched:
                counts = received.chunks_fetched, received.bytes_fetched
                self._tell(Mended(study_id, request.id, *counts))
        return not await asyncio.to_thread(self._store.lost, study_id)

    async def _own(self, study_id: bytes) -> bool:
        """Ask the hospitals that received the study, or held it before us."""
        missing = await asyncio.to_thread(self._lost, study_id)
        if not missing:
            return True
        holders = await self._holders(study_id)
        if not holders:
            log.warning("nobody holds what is missing of an own study study=%s", study_id.hex())
            return False
        liars = self._liars.setdefault(study_id, set())
        recovered = await recover(
            self._identity,
            study_id,
            missing,
            holders,
            self._requester.chunks,
            limits=self._limits,
            liars=liars,
        )
        for liar in sorted(set(recovered.liars) - liars):
            # Of another study it may tell the truth; of this one it is not asked again.
            liars.add(liar)
            ground = Custody(study_id)
            self._report(event_of(Happening.NOT_TAKEN, liar, ground, WRONG_DIGEST))
        if recovered.chunks:
            self._tell(Mended(study_id, None, recovered.chunks, recovered.bytes))
        if recovered.missing:
            reasons = "; ".join(f"{name}: {why}" for name, why in sorted(recovered.left.items()))
            counts = study_id.hex(), recovered.missing, reasons
            log.warning("chunks of an own study are still missing study=%s chunks=%d %s", *counts)
        return not await asyncio.to_thread(self._store.lost, study_id)

    def _lost(self, study_id: bytes) -> list[Chunk]:
        rows = self._store.lost(study_id)[:CHUNKS_MAX]
        return [Chunk(row.digest, row.stored_bytes) for row in rows]

    async def _holders(self, study_id: bytes) -> list[Holder]:
        """Return those who received the study, also those whose grant is over: they may hold the
        ciphertext still, and whoever was its custodian when they asked."""
        names: dict[str, None] = {}
        async for request in self._acting.requests(RequestQuery(study_id=study_id)):
            if request.received_height is not None:
                names |= dict.fromkeys((request.institution, request.custodian))
        found = (self._directory.holder(name) for name in names)
        return [holder for holder in found if holder is not None][:HOLDERS_MAX]

    def _tell(self, mended: Mended) -> None:
        log.info("chunks are here again study=%s chunks=%d", mended.study_id.hex(), mended.chunks)
        self._on_mended(mended)
