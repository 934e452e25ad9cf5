"""Which of the stored studies may be shown: this hospital's own, and those that are granted now.

What is stored stays stored when a grant ends; it is not shown any more. After the last use that
was granted it is not shown either, but what was counted as a use goes on: `may_deliver`. Both
answer from memory, at once and in any thread; events of the ledger and a look every half minute,
for terms that end by height, keep them right. A study of which nothing is known yet is not shown.
"""

import asyncio
import logging

from node.exchange.store.store import StudyStore
from node.gateway.acting import PASSING, Acting
from node.gateway.ledger_events import LedgerEvents, id_in, word_in
from node.ledger.contracts.access_record import RECEIVED
from node.ledger.queries.access_views import RequestQuery, RequestView
from node.ledger.queries.blocks import EventView

log = logging.getLogger(__name__)

LOOK_S = 30.0
_PAUSE_S = 0.1  # many events at a time are one look
_AT_ONCE = 16
_OF_REQUESTS = ("access_received", "access_used", "access_revoked", "access_expired")
_OF_ALL = (
    "study_derived",
    "consent_granted",
    "consent_restricted",
    "consent_withdrawn",
    "consent_opted_out",
    "consent_opted_in",
    "consent_carried",
    "study_accepted",
    "study_retired",
    "study_erased",
    "governance_institution_suspended",
    "governance_institution_resumed",
)


class Shown:
    """What may be shown, as of the last look."""

    def __init__(self, acting: Acting, store: StudyStore) -> None:
        self._acting, self._store = acting, store
        self._own: set[bytes] = set()
        self._granted: frozenset[bytes] = frozenset()
        self._in_force: frozenset[bytes] = frozenset()
        self._stale = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_known = False
        self.looks = 0

    def may_show(self, study_id: bytes) -> bool:
        """Return whether the study (id, 16 bytes) is this hospital's, or granted to it now."""
        return study_id in self._own or study_id in self._granted

    def may_deliver(self, study_id: bytes) -> bool:
        """Return the same for what was counted as a use already, be it the last one."""
        return study_id in self._own or study_id in self._in_force

    def as_of(self) -> int | None:
        """Have everything looked at anew; return the number of the last look, None while nothing is
        known: before the first look, and when the node cannot be asked. In any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stale.set)
        return self.looks if self._is_known else None

    def attach(self, events: LedgerEvents) -> None:
        """Hear of what changes the answer."""
        events.on(self._registered, "study_registered")
        events.on(self._moved, "study_accepted", "study_erased")
        events.on(self._of_request, *_OF_REQUESTS)
        events.on(lambda _: self._stale.set(), *_OF_ALL)
        events.on_start(self._stale.set)

    async def run(self) -> None:
        """Keep the answer right, for ever."""
        self._loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._stale.wait()
            except TimeoutError:
                pass
            self._stale.clear()
            try:
                await self.look()
            except PASSING as error:
                # What cannot be asked is not permitted.
                self._granted = self._in_force = frozenset()
                self._is_known = False
                self._stale.set()
                log.warning("granted studies are not shown for now reason=%s", error)
                await asyncio.sleep(1.0)
            await asyncio.sleep(_PAUSE_S)

    async def look(self) -> None:
        """Ask the ledger about everything that is stored. Raises what `Client` raises."""
        held = set(await asyncio.to_thread(list, self._store.studies()))
        self._own &= held
        turns = asyncio.Semaphore(_AT_ONCE)
        found = await asyncio.gather(*(self._ask(each, turns) for each in held - self._own))
        self._granted = frozenset(each.study_id for each in found if each and each.permitted)
        self._in_force = frozenset(each.study_id for each in found if each is not None)
        self.looks += 1
        self._is_known = True

    async def _ask(self, study_id: bytes, turns: asyncio.Semaphore) -> RequestView | None:
        """Return the request by which the study was received and is in force, one that permits
        uses before one whose uses are spent."""
        found: RequestView | None = None
        own = self._acting.institution
        async with turns:
            study = await self._acting.client.study(study_id)
            if study is None or study.summary.status == "erased":
                return None
            if study.summary.custodian == own:
                self._own.add(study_id)
                return None
            query = RequestQuery(institution=own, study_id=study_id)
            async for request in self._acting.requests(query):
                if request.recorded_state != RECEIVED:
                    continue
                if request.permitted:
                    return request
                found = request if request.in_force else found
        return found

    def _registered(self, view: EventView) -> None:
        if word_in(view, 1) == self._acting.institution:
            self._own.add(id_in(view))

    def _moved(self, view: EventView) -> None:
        self._own.discard(id_in(view))

    def _of_request(self, view: EventView) -> None:
        if word_in(view, 2) == self._acting.institution:
            self._stale.set()
