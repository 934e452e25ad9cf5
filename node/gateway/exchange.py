"""The exchange half of the gateway: its parts are built, started in order, and supervised.

key service   this hospital's encryption keys, and challenges to those of others
custodian     wraps study keys to those whom this hospital granted access
server        gives out ciphertext and wrapped keys, as long as the ledger permits
requester     fetches what was granted to this hospital
mending       brings back chunks that the store has lost, from whoever holds them
finding       answers searches of other hospitals, as policy lets them see
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.exchange.federation.ports import FederationEvent
from node.exchange.store.errors import StoreError
from node.exchange.store.store import StudyStore
from node.exchange.transfer.errors import NotPermitted, TransferIncomplete
from node.exchange.transfer.holders import Identity
from node.exchange.transfer.limits import ClientLimits, ServerLimits
from node.exchange.transfer.ports import Admit, Ground, Happening, Report, TransferEvent
from node.exchange.transfer.server import ExchangeServer
from node.exchange.transfer.state import Deliveries
from node.gateway.acting import PASSING, Acting
from node.gateway.backlog import Backlog
from node.gateway.chunks import StoreChunks
from node.gateway.custodian import Custodian, Manifests
from node.gateway.directory import CHANGES, Directory, Place
from node.gateway.elsewhere import Conflicts, conflict_post
from node.gateway.erasures import Erasures
from node.gateway.finding import Finding, FindingSettings
from node.gateway.key_service import KeyService, Pace
from node.gateway.knocking import unanswered
from node.gateway.ledger_events import LedgerEvents, id_in, word_in
from node.gateway.mending import Mended, Mending
from node.gateway.permits import LedgerPermits
from node.gateway.requester import (
    NotAuthentic,
    NotReady,
    Received,
    Requester,
    Unreachable,
)
from node.gateway.shown import Shown
from node.gateway.spool import Spool
from node.ledger.genesis import Genesis
from node.ledger.queries.blocks import EventView
from node.network.tls import TrustedContexts

log = logging.getLogger(__name__)

REFRESH_S = 60.0
TIDY_S = 60.0
_TIDY_WAITS: tuple[type[Exception], ...] = (*PASSING, StoreError)
KEYS = "keys"
DELIVERIES = "deliveries"
CATALOGUE = "catalogue.db"
_EVERYTHING = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeSettings:
    """What the config says of the exchange."""

    folder: Path  # keys, deliveries, transfers and uses
    host: str
    port: int  # 0: the system chooses
    places: tuple[Place, ...] = ()
    fetch_at_once: bool = False  # fetch by itself what is delivered to this hospital
    server: ServerLimits = field(default_factory=ServerLimits)
    client: ClientLimits = field(default_factory=ClientLimits)
    pace: Pace = field(default_factory=Pace)
    finding: FindingSettings = field(default_factory=FindingSettings)


@dataclass(frozen=True, slots=True)
class Belongings:
    """What the exchange is given."""

    acting: Acting
    store: StudyStore
    manifests: Manifests
    identity: Identity  # by which other hospitals know this one
    genesis: Genesis
    passphrase: bytes = field(repr=False)  # of the encryption keys


class Exchange:
    """One hospital's exchange; it serves while `running` lasts."""

    def __init__(
        self,
        given: Belongings,
        settings: ExchangeSettings,
        *,
        report: Report | None = None,
        admit: Admit | None = None,
        on_received: Callable[[Received], None] = lambda received: None,
        on_mended: Callable[[Mended], None] = lambda mended: None,
        on_erased: Callable[[bytes], None] = lambda study_id: None,
        on_inquiry: Callable[[FederationEvent], None] | None = None,
        stretch: bool = True,
    ) -> None:
        """`report` gets what is to be audited of the server, in the event loop, and `admit` is
        awaited before anything leaves, as by `ExchangeServer`; `on_inquiry` questions of
        other hospitals, and conflicts they found; `on_received` each study that came
        by itself, `on_mended` chunks that came back; `on_erased`, in a thread, each that is
        erased on the ledger. Raises `OSError`, `CertificateRefused`."""
        self._given, self._settings = given, settings
        self._on_received, self._on_erased = on_received, on_erased
        self._report = report or _told
        inquired = on_inquiry or _inquired
        acting, folder = given.acting, settings.folder
        self.events = LedgerEvents(acting.client)
        self.directory = Directory(given.genesis, settings.places, acting.institution)
        self.keys = KeyService(
            acting, folder / KEYS, given.passphrase, pace=settings.pace, stretch=stretch
        )
        deliveries = Deliveries(folder / DELIVERIES)
        self.custodian = Custodian(acting, given.store, given.manifests, deliveries)
        self.requester = Requester(
            acting,
            given.store,
            lambda: self.keys.keys,
            self.directory,
            given.identity,
            folder,
            limits=settings.client,
        )
        self.mending = Mending(
            acting,
            given.store,
            self.requester,
            self.directory,
            given.identity,
            report=self._report,
            on_mended=on_mended,
            limits=settings.client,
        )
        self.shown = Shown(acting, given.store)
        kept = (self.requester.received, self.requester.transfers, deliveries)
        self.erasures = Erasures(acting, given.store, kept, folder / "erasures", self._erased)
        self.finding = Finding(acting, given.store, folder / CATALOGUE, settings.finding, inquired)
        identity = given.identity
        self._contexts = TrustedContexts(identity.private_key, identity.certificate)
        self._trusted: tuple[bytes, ...] = ()
        self._permits = LedgerPermits(acting.client, self._refused)
        self.server = ExchangeServer(
            self._contexts,
            self.directory.institution_of,
            self._permits,
            StoreChunks(given.store),
            deliveries,
            limits=settings.server,
            report=self._report,
            admit=admit,
            posts=(self.finding.post, conflict_post(acting, inquired)),
        )
        self._fetching: Backlog[bytes] = Backlog("fetch", self._fetch, at_once=2)
        self._stale = asyncio.Event()
        self._attach()

    @property
    def port(self) -> int:
        """Where the server listens."""
        return self.server.port

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while the context lasts; ends it when a part fails. Raises `KeyFileError`,
        `OSError`, and what `Client` raises."""
        await self.keys.open()
        await self.refresh()
        await asyncio.to_thread(self.finding.open)
        try:
            await self.server.start(self._settings.host, self._settings.port)
            log.info("exchange listens port=%d", self.port)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work) for work in self._work()]
                yield
                for task in tasks:
                    task.cancel()
        finally:
            await self.server.close()
            self.finding.close()

    def conflicts(self, spool: Spool) -> Conflicts:
        """Return what compares copies from other hospitals with what is in `spool`, and arrives."""
        given = self._given
        return Conflicts(given.acting, self.requester, self.directory, given.identity, spool)

    async def unanswered(self) -> dict[str, str]:
        """Return the hospitals whose exchange does not let this one in, and why."""
        return await unanswered(self.directory, self._given.identity)

    async def refresh(self) -> None:
        """Learn anew which hospitals there are. Raises what `Client` raises."""
        await self.directory.refresh(self._given.acting)
        gone = await asyncio.to_thread(self.directory.apply, self._contexts, self._trusted)
        self._trusted = self.directory.keys
        for key in gone:
            self.server.drop(key)

    def _attach(self) -> None:
        self.keys.attach(self.events)
        self.custodian.attach(self.events)
        self._permits.attach(self.events)
        self.shown.attach(self.events)
        self.erasures.attach(self.events)
        self.finding.attach(self.events)
        self.events.on(lambda _: self._stale.set(), *CHANGES)
        self.events.on_start(self._stale.set)
        if self._settings.fetch_at_once:
            self.events.on(self._delivered, "access_delivered")
            self.events.on_start(lambda: self._fetching.add(_EVERYTHING))

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        backlogs = (
            self.keys.backlog.run(),
            self.custodian.backlog.run(),
            self.erasures.backlog.run(),
            self.finding.backlog.run(),
            self._fetching.run(),
            self.mending.backlog.run(),
            self.mending.run(),
        )
        return [self.events.run(), self.shown.run(), self._keep_fresh(), self._tidy(), *backlogs]

    async def _tidy(self) -> None:
        """Drop, for ever, what was being fetched under grants that have ended."""
        while True:
            try:
                await self.requester.drop_what_is_over()
            except _TIDY_WAITS as error:
                log.warning("what is over cannot be dropped reason=%s", error)
            await asyncio.sleep(TIDY_S)

    async def _keep_fresh(self) -> None:
        while True:
            try:
                async with asyncio.timeout(REFRESH_S):
                    await self._stale.wait()
            except TimeoutError:
                pass
            self._stale.clear()
            try:
                await self.refresh()
            except PASSING as error:
                log.warning("who is who cannot be asked reason=%s", error)
                self._stale.set()
                await asyncio.sleep(1.0)

    def _erased(self, study_id: bytes) -> None:
        self.finding.forget(study_id)
        self._on_erased(study_id)

    def _refused(self, ground: Ground, code: str) -> None:
        self.server.revoke(ground, code)

    def _delivered(self, view: EventView) -> None:
        if word_in(view, 2) == self._given.acting.institution:
            self._fetching.add(id_in(view))

    async def _fetch(self, request_id: bytes) -> bool:
        if request_id == _EVERYTHING:
            for found in await self.requester.granted():
                self._fetching.add(found)
            return True
        try:
            received = await self.requester.fetch(request_id)
        except (NotPermitted, NotAuthentic) as error:
            log.error("a study was not taken request=%s: %s", request_id.hex(), error)
            code = error.code if isinstance(error, NotPermitted) else "not_authentic"
            self._report(TransferEvent(Happening.NOT_TAKEN, None, request_id, code))
            return True
        except (TransferIncomplete, NotReady, Unreachable, StoreError) as error:
            log.warning("a fetch waits request=%s: %s", request_id.hex(), error)
            return False
        self._on_received(received)
        return True


def _told(event: TransferEvent) -> None:
    request = "" if event.request_id is None else event.request_id.hex()
    fields = event.kind, event.institution, request, event.code
    log.info("exchange %s institution=%s request=%s code=%s", *fields)


def _inquired(event: FederationEvent) -> None:
    log.info(
        "search %s institution=%s question=%s purpose=%s code=%s told=%d",
        event.kind,
        event.institution,
        event.question,
        event.purpose,
        event.code,
        event.told,
    )
