"""Copies of erased studies are destroyed and that is attested, without anybody asking.

    erased on the ledger -> noted on disk -> key, index, chunks destroyed, and every wrapped copy of
    the key -> attested on the ledger

The note is there from before the destruction until the attestation is final, so a crash anywhere
is gone on with. A custodian destroys first and records it then; what should be left of it here goes
too, and needs no attestation.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from node.exchange.store.errors import StoreError, StudyUnknown
from node.exchange.store.store import StudyStore
from node.gateway.acting import Acting
from node.gateway.backlog import Backlog
from node.gateway.index import SpoolError
from node.gateway.ledger_events import LedgerEvents, id_in
from node.ledger.block import OK

log = logging.getLogger(__name__)

_EVERYTHING = b""
_ID_DIGITS = 32
_DONE = frozenset({OK, "erasure_attested", "erasure_own"})


class KeepsKeys(Protocol):
    """Keeps study keys that are wrapped to somebody, by request."""

    def forget_study(self, study_id: bytes) -> None:
        """Remove all of a study. Waits for the disk."""


class Erasures:
    """Destroys and attests."""

    def __init__(
        self,
        acting: Acting,
        store: StudyStore,
        kept: Sequence[KeepsKeys],
        folder: Path,
        on_erased: Callable[[bytes], None] = lambda study_id: None,
    ) -> None:
        """`kept` keep wrapped keys, of what came and of what was given out; `folder` the notes;
        `on_erased` is called in a thread for every study that is erased on the ledger, once its key
        is destroyed here; it may raise `SpoolError`, and is called again. Raises `OSError`."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._on_erased = on_erased
        self._acting, self._store, self._kept, self._folder = acting, store, kept, folder
        self.backlog: Backlog[bytes] = Backlog("erase", self._work)

    def attach(self, events: LedgerEvents) -> None:
        """Hear of erasures."""
        events.on(lambda view: self.backlog.add(id_in(view)), "study_erased")
        events.on_start(lambda: self.backlog.add(_EVERYTHING))

    async def erase(self, study_id: bytes) -> bool:
        """Destroy one study, if it is erased on the ledger, and attest it if it came here from
        elsewhere; return whether it is done. Raises what `Client`, the store and `on_erased` raise:
        to be called again."""
        study = await self._acting.client.study(study_id)
        if study is None or study.summary.status != "erased":
            return True
        was_held = await asyncio.to_thread(self._destroy, study_id)
        await asyncio.to_thread(self._on_erased, study_id)
        if was_held and study.summary.custodian != self._acting.institution:
            submitted = await self._acting.submit("study.attest_erasure", (study_id,))
            if submitted.code not in _DONE:
                log.error("erasure not attested study=%s code=%s", study_id.hex(), submitted.code)
                return False
            log.info("erasure attested study=%s", study_id.hex())
        await asyncio.to_thread(self._note(study_id).unlink, missing_ok=True)
        return True

    async def _work(self, study_id: bytes) -> bool:
        if study_id != _EVERYTHING:
            try:
                return await self.erase(study_id)
            except (StoreError, SpoolError) as error:
                log.error("an erasure is not done yet study=%s: %s", study_id.hex(), error)
                return False
        for known in await asyncio.to_thread(self._known):
            study = await self._acting.client.study(known)
            if study is not None and study.summary.status == "erased":
                self.backlog.add(known)
        return True

    def _known(self) -> list[bytes]:
        notes = [path.name for path in self._folder.iterdir() if len(path.name) == _ID_DIGITS]
        return [*self._store.studies(), *self._store.claimed(), *map(bytes.fromhex, notes)]

    def _destroy(self, study_id: bytes) -> bool:
        """Return whether the study, or its key alone, was held here, now or before a crash."""
        note = self._note(study_id)
        was_held = note.exists() or self._store.has_key(study_id)
        if was_held:
            note.touch(mode=0o600)
            with contextlib.suppress(StudyUnknown):
                self._store.erase(study_id)
        self._forget_keys(study_id)
        return was_held

    def _forget_keys(self, study_id: bytes) -> None:
        """Destroy wrapped keys: with the receiver's own key they would open study and salt."""
        for each in self._kept:
            each.forget_study(study_id)

    def _note(self, study_id: bytes) -> Path:
        return self._folder / study_id.hex()
