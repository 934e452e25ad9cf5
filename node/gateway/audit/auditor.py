"""The gateway's hand that writes the trail: each part tells it, in its own words, what happened.

What gives images or keys out asks first (`may_...`, `retrieving`): without a durable record none
leaves. What has happened anyway is told; when that cannot be recorded it is counted and logged.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from node.config.model import AuditConfig, GatewayConfig
from node.exchange.federation.ports import FederationEvent
from node.exchange.transfer.ports import Happening, TransferEvent
from node.gateway.audit import hearing
from node.gateway.audit.acts import Act
from node.gateway.audit.connection import Repository
from node.gateway.audit.errors import TrailUnusable
from node.gateway.audit.hearing import StudyIds
from node.gateway.audit.message import Site
from node.gateway.audit.sender import Sender
from node.gateway.audit.trail import Trail, TrailLimits
from node.gateway.deliver import Given
from node.gateway.link import DimseAccess
from node.gateway.web.audit import Action, WebAccess

log = logging.getLogger(__name__)

THREADS = 8  # whoever waits here is written with the others, by one sync
FOLDER = "audit"  # in the spool's, where the config says nothing else


def folder_of(config: GatewayConfig) -> Path:
    """Return where the trail is."""
    return config.audit.folder or config.spool_dir / FOLDER


def limits_of(config: AuditConfig) -> TrailLimits:
    """Return what the trail may hold."""
    return TrailLimits(config.bytes_max, config.segment_bytes_max, config.study_uids)


def open_trail(config: GatewayConfig) -> Trail:
    """Open the trail that the config names. Raises `TrailUnusable`."""
    return Trail(folder_of(config), limits_of(config.audit))


def sender_of(config: GatewayConfig, institution: str) -> Sender | None:
    """Return what sends the trail to the repository, None if the config names none.

    Raises `OSError` for TLS files that cannot be used.
    """
    audit = config.audit
    if audit.host is None or audit.certificate_file is None or audit.key_file is None:
        return None
    repository = Repository(
        audit.host,
        audit.port,
        audit.certificate_file,
        audit.key_file,
        audit.trust_file,
        audit.server_certificate_file,
    )
    return Sender(folder_of(config), repository, Site(institution, config.ae_title))


class Auditor:
    """Writes acts; the methods wait for the disk unless they are coroutines or say otherwise."""

    def __init__(self, trail: Trail, ids: StudyIds) -> None:
        """`ids` names what is held of a study by its UID; it does not wait."""
        self._trail, self._ids = trail, ids
        self._with_uids = trail.limits.wants_study_uids
        self._telling: set[asyncio.Future[bool]] = set()
        # Of its own, so that an answer never waits behind other work for its record.
        self._threads = ThreadPoolExecutor(THREADS, "audit")

    def tell(self, act: Act) -> None:
        """Record what has happened."""
        self._trail.tell(act)

    def tell_later(self, act: Act) -> None:
        """Do the same off the event loop, in which this is called."""
        future = self._in_thread(self._trail.tell, act)
        self._telling.add(future)
        future.add_done_callback(self._telling.discard)

    async def settled(self) -> None:
        """Wait until all that was told is recorded."""
        while self._telling:
            await asyncio.wait(set(self._telling))

    def close(self) -> None:
        """Let go of the threads; nothing is recorded any more."""
        self._threads.shutdown(wait=False)

    def retrieving(self, access: DimseAccess) -> bool:
        """Record that instances are about to be given out; False: they must not be."""
        act = hearing.asked(access, self._ids, with_uids=self._with_uids, begun=True)
        return self._append(act)

    def given_out(self, access: DimseAccess) -> None:
        """Record the end of a search or retrieval."""
        self.tell(hearing.asked(access, self._ids, with_uids=self._with_uids))

    async def record(self, access: WebAccess) -> bool:
        """Record a DICOMweb request; False if that failed: nothing may be given out then."""
        act = hearing.browsed(access, self._ids, with_uids=self._with_uids)
        if act is None:
            return True
        is_asking = not access.code and access.action in (Action.SEARCH, Action.RETRIEVE)
        write = self._append if is_asking else self._trail.tell
        return await self._in_thread(write, act)

    def delivering(self, given: Given) -> bool:
        """Record that a delivery is about to begin; False: it must not."""
        act = hearing.delivered(given, self._ids, with_uids=self._with_uids, begun=True)
        return self._append(act)

    def delivered(self, given: Given) -> None:
        """Record what a delivery has given."""
        self.tell(hearing.delivered(given, self._ids, with_uids=self._with_uids))

    async def may_transfer(self, event: TransferEvent) -> bool:
        """Record that a key or ciphertext is about to leave; False: it must not."""
        return await self._in_thread(self._append, hearing.transferred(event))

    def transferred(self, event: TransferEvent) -> None:
        """Record what the exchange reports. Called in the event loop, does not wait."""
        if event.kind is not Happening.OFFERED:  # recorded before it began
            self.tell_later(hearing.transferred(event))

    def inquired(self, event: FederationEvent) -> None:
        """Record a question between hospitals. Called in the event loop, does not wait."""
        self.tell_later(hearing.inquired(event))

    def _in_thread(self, write: Callable[[Act], bool], act: Act) -> "asyncio.Future[bool]":
        return asyncio.get_running_loop().run_in_executor(self._threads, write, act)

    def _append(self, act: Act) -> bool:
        try:
            self._trail.append(act)
        except TrailUnusable as error:
            log.error(
                "nothing is given out, since it cannot be audited kind=%s: %s", act.kind, error
            )
            return False
        return True


def sending(sender: Sender | None) -> list[Coroutine[Any, Any, None]]:
    """Return the work that sends the trail, if there is a repository."""
    return [] if sender is None else [sender.run()]
