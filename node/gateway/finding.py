"""Federated search at this hospital: the catalogue kept in step with store and ledger, questions
of others answered from it.

    kept in the store, taken over, or there at the start -> own on the ledger -> described
    erased, retired, handed over to another custodian    -> removed

Only this hospital's own studies are in the catalogue: about those that it was granted, their
custodians answer.
"""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

from node.exchange.federation.answering import Answering, Offer
from node.exchange.federation.catalogue import Catalogue
from node.exchange.federation.errors import CatalogueUnusable
from node.exchange.federation.ports import Report
from node.exchange.federation.route import find_post
from node.exchange.store.errors import StoreError, StudyErased, StudyUnknown
from node.exchange.store.store import StudyStore
from node.exchange.transfer.posts import Post
from node.gateway.acting import Acting
from node.gateway.backlog import Backlog
from node.gateway.facts import facts_of
from node.gateway.ledger_events import LedgerEvents, id_in
from node.gateway.trials import Trials
from node.ledger.queries.studies import StudyView

log = logging.getLogger(__name__)

_EVERYTHING = b""
_ACTIVE = "active"


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingSettings:
    """What the config says of federated search."""

    is_answering: bool = True
    offer: Offer = field(default_factory=Offer)
    added_words: tuple[str, ...] = ()
    per_minute: int = 60  # questions of one institution


class Finding:
    """Keeps the catalogue and answers from it."""

    def __init__(
        self,
        acting: Acting,
        store: StudyStore,
        path: Path,
        settings: FindingSettings,
        report: Report,
    ) -> None:
        """`path` is the catalogue's file; it is opened by `open`."""
        self._acting, self._store, self._path = acting, store, path
        self._settings = settings
        self._trials = Trials(acting)
        self._catalogue: Catalogue | None = None
        self._answering: Answering | None = None
        self._added = frozenset(settings.added_words)
        self.backlog: Backlog[bytes] = Backlog("catalogue", self._work)
        self.post: Post = find_post(lambda: self._answering, report, settings.per_minute)

    def attach(self, events: LedgerEvents) -> None:
        """Hear of what changes which studies are this hospital's."""
        self._trials.attach(events)
        names = "study_accepted", "study_erased", "study_retired"
        events.on(lambda view: self.backlog.add(id_in(view)), *names)
        events.on_start(lambda: self.backlog.add(_EVERYTHING))

    def open(self) -> None:
        """Open the catalogue; waits for the disk. Raises `StoreError`.

        Without one nothing is answered, but images go on: all in it can be made again.
        """
        try:
            catalogue = self._catalogue = Catalogue(self._path, self._key_of)
        except CatalogueUnusable as error:
            log.error("searches of other hospitals are not answered: %s", error)
            return
        if self._settings.is_answering:
            self._answering = Answering(catalogue.entries, self._trials, self._settings.offer)
        log.info("catalogue opened studies=%d", len(catalogue))

    def close(self) -> None:
        """Close the catalogue; nothing is answered any more."""
        self._answering = None
        if self._catalogue is not None:
            self._catalogue.close()

    def add(self, study_id: bytes) -> None:
        """Take notice of a version that came into the store; call it in the event loop."""
        self.backlog.add(study_id)

    def forget(self, study_id: bytes) -> None:
        """Remove a study that is erased; waits for the disk."""
        if self._catalogue is not None:
            try:
                self._catalogue.remove(study_id)
            except CatalogueUnusable as error:  # without the study's key nobody can read the row
                log.error("an erased study stays in the catalogue: %s", error)

    async def describe(self, study_id: bytes) -> bool:
        """Bring what the catalogue says of a study up to date; return whether it is in it.

        Raises what `Client` raises, and `StoreError`.
        """
        catalogue = self._catalogue
        if catalogue is None:
            return False
        study = await self._acting.client.study(study_id)
        if study is None or not self._is_own(study):
            await asyncio.to_thread(catalogue.remove, study_id)
            return False
        return await asyncio.to_thread(self._describe, catalogue, study)

    async def _work(self, study_id: bytes) -> bool:
        if study_id != _EVERYTHING:
            try:
                await self.describe(study_id)
            except (StoreError, CatalogueUnusable) as error:
                log.error("a study cannot be catalogued study=%s: %s", study_id.hex(), error)
            return True
        for each in await asyncio.to_thread(self._stale):
            self.backlog.add(each)
        return True

    def _stale(self) -> list[bytes]:
        """Return what is in the store or in the catalogue and must be looked at again."""
        catalogue = self._catalogue
        if catalogue is None:
            return []
        held = set(self._store.studies())
        catalogued = {entry.study_id for entry in catalogue.entries()}
        return [*held, *(catalogued - held)]

    def _describe(self, catalogue: Catalogue, study: StudyView) -> bool:
        study_id = study.summary.id
        try:
            version = max(self._store.versions(study_id), default=None)
            if version is None:
                catalogue.remove(study_id)
                return False
            if catalogue.version(study_id) == version:
                return True
            index = self._store.index(study_id, version)
        except (StudyUnknown, StudyErased):
            catalogue.remove(study_id)
            return False
        summary = study.summary
        facts = facts_of(index, summary.modality, summary.region, self._added)
        return catalogue.put(study_id, version, summary.subject_id, facts)

    def _is_own(self, study: StudyView) -> bool:
        summary = study.summary
        return summary.custodian == self._acting.institution and summary.status == _ACTIVE

    def _key_of(self, study_id: bytes) -> bytes | None:
        with contextlib.suppress(StudyUnknown, StudyErased):
            return self._store.key(study_id)
        return None
