"""The gateway with its exchange, joined: what the ledger says reaches what is shown and delivered.

Without `[exchange]` in the config nothing is given to other hospitals or fetched from them; the
ledger still decides what of the store may be shown, and what must be destroyed.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from node.config.model import GatewayConfig, NodeConfig
from node.exchange.federation.ports import FederationEvent
from node.exchange.store.store import StudyStore
from node.exchange.transfer.ports import TransferEvent
from node.exchange.transfer.state import Deliveries
from node.gateway.acting import Acting
from node.gateway.audit import hearing
from node.gateway.audit.anchorer import Anchorer
from node.gateway.daemon import Gateway, GatewayRefused, Parts
from node.gateway.deliveries import DeliveriesUnusable
from node.gateway.erasures import Erasures
from node.gateway.exchange import Exchange
from node.gateway.exchange_opening import belongings_of, settings_of
from node.gateway.hand_over import HandOver
from node.gateway.health_server import HOST, HealthServer
from node.gateway.ledger_events import LedgerEvents, id_in, word_in
from node.gateway.mending import Mended
from node.gateway.metrics import GatewayMetrics
from node.gateway.monitor import Monitor, Watched
from node.gateway.quiet import silence_libraries
from node.gateway.requester import Received
from node.gateway.scrubbing import DAY_MS, Scrubbing
from node.gateway.shown import Shown
from node.imaging.vault import Vault
from node.ledger.genesis import Genesis
from node.ledger.queries.blocks import EventView
from node.network.errors import CertificateRefused
from node.provision import InvalidCard
from node.rpc.client import Client
from node.studies import Signer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """What is open already when the gateway starts."""

    client: Client
    vault: Vault
    signer: Signer
    store: StudyStore
    genesis: Genesis


@asynccontextmanager
async def running(
    config: NodeConfig, opened: Opened, *, log_level: int = logging.INFO
) -> AsyncIterator[Gateway]:
    """Serve as the config says while the context lasts; ends it when a part fails.

    Raises `GatewayRefused`, `KeyFileError`, and what `Client` raises.
    """
    if config.gateway is None:
        raise GatewayRefused("the config has no [gateway]")
    silence_libraries()
    acting = Acting(opened.client, opened.signer)
    sides = _Sides()
    if config.exchange is None:
        alone = await asyncio.to_thread(_Alone, config.gateway, acting, opened.store, sides.erased)
        shown, events, context = alone.shown, alone.events, alone.running
        exchange = None
    else:
        exchange = await asyncio.to_thread(_exchange, config, acting, opened, sides)
        shown, events, context = exchange.shown, exchange.events, exchange.running
    parts = Parts(
        config.gateway,
        opened.client,
        opened.vault,
        opened.signer,
        opened.store,
        shown.may_show,
        shown.may_deliver,
        shown.as_of,
        on_kept=lambda study_id: None if exchange is None else exchange.finding.add(study_id),
    )
    gateway = await asyncio.to_thread(Gateway, parts, log_level=log_level)
    sides.gateway = gateway
    events.on(lambda view: sides.registered(view, acting.institution), "study_registered")
    work: list[Coroutine[Any, Any, None]] = []
    hand_over: HandOver | None = None
    if exchange is not None:
        hand_over = _hand_over(config.gateway, acting, exchange, gateway)
        hand_over.attach(events)
        conflicts = exchange.conflicts(gateway.spool)
        conflicts.attach(events)
        work += [hand_over.backlog.run(), conflicts.backlog.run(), conflicts.run()]
    metrics = GatewayMetrics(version("radledger"))
    anchorer, scrubbing = await asyncio.to_thread(_keepers, config, acting, opened, exchange)
    work += [each.run() for each in (anchorer, scrubbing) if each is not None]
    monitor = Monitor(Watched(gateway, opened.client, exchange, anchorer, scrubbing), metrics)
    monitor.metrics.spool_bytes_max.set(config.gateway.limits.spool_bytes_max)
    work.append(monitor.run())
    async with (
        gateway.running(),
        _ready(hand_over),
        context(),
        _told(config.gateway, monitor),
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(each) for each in work]
        yield gateway
        for task in tasks:
            task.cancel()


def _hand_over(
    config: GatewayConfig, acting: Acting, exchange: Exchange, gateway: Gateway
) -> HandOver:
    takers = [peer.ae_title for peer in config.peers if peer.takes_fetched]
    return HandOver(
        acting,
        exchange.requester,
        gateway.deliverer,
        gateway.deliveries,
        takers,
        gateway.deliverable,
        gateway.delivered,
    )


@asynccontextmanager
async def _ready(hand_over: HandOver | None) -> AsyncIterator[None]:
    """Know what is to be handed over before anything can be received. Raises `GatewayRefused`."""
    if hand_over is not None:
        try:
            await hand_over.open()
        except DeliveriesUnusable as error:
            raise GatewayRefused(str(error)) from error
    yield


@asynccontextmanager
async def _told(config: GatewayConfig, monitor: Monitor) -> AsyncIterator[None]:
    """Serve /health and /metrics where the config names a port. Raises `GatewayRefused`."""
    if config.metrics_port is None:
        yield
        return
    server = HealthServer(lambda: monitor.health, monitor.metrics)
    try:
        await server.start(config.metrics_port)
    except OSError as error:
        sentence = f"[gateway] metrics_port: cannot listen on {HOST}:{config.metrics_port}"
        raise GatewayRefused(f"{sentence}: {error.strerror}") from error
    log.info("health and metrics listen port=%d", server.port)
    try:
        yield
    finally:
        await server.stop()


def _keepers(
    config: NodeConfig, acting: Acting, opened: Opened, exchange: Exchange | None
) -> tuple[Anchorer | None, Scrubbing | None]:
    """Return what anchors the trail and what scrubs the store, where the config wants it."""
    anchorer = scrubbing = None
    if config.gateway is not None and config.gateway.audit.anchor_hours:
        anchorer = Anchorer(config.gateway, acting, opened.genesis.time_ms)
    if config.store is not None and config.store.scrub_days:
        slow = opened.store.slow_scrub(config.store.scrub_days * DAY_MS)
        scrubbing = Scrubbing(slow, _unheard if exchange is None else exchange.mending.found)
    return anchorer, scrubbing


def _unheard(study_id: bytes) -> None:
    """Without an exchange nobody else has the study."""


class _Sides:
    """Lets the exchange, which is made first, reach the gateway."""

    def __init__(self) -> None:
        self.gateway: Gateway | None = None

    def erased(self, study_id: bytes) -> None:
        if self.gateway is not None:
            self.gateway.forget(study_id)

    def registered(self, view: EventView, institution: str) -> None:
        if self.gateway is not None and word_in(view, 1) == institution:
            self.gateway.registered_elsewhere(id_in(view))

    def inquired(self, event: FederationEvent) -> None:
        if self.gateway is not None:
            self.gateway.inquired(event)

    async def may_transfer(self, event: TransferEvent) -> bool:
        return self.gateway is not None and await self.gateway.auditor.may_transfer(event)

    def transferred(self, event: TransferEvent) -> None:
        if self.gateway is not None:
            self.gateway.auditor.transferred(event)

    def received(self, received: Received) -> None:
        if self.gateway is not None:
            act = hearing.fetched(received.request_id, received.study_id, received.instances)
            self.gateway.auditor.tell_later(act)

    def mended(self, mended: Mended) -> None:
        if self.gateway is not None:
            counts = mended.chunks, mended.bytes
            act = hearing.mended(mended.study_id, mended.request_id, *counts)
            self.gateway.auditor.tell_later(act)


class _Alone:
    """What hears the ledger where there is no exchange."""

    def __init__(
        self,
        config: GatewayConfig,
        acting: Acting,
        store: StudyStore,
        on_erased: Callable[[bytes], None],
    ) -> None:
        self.events = LedgerEvents(acting.client)
        self.shown = Shown(acting, store)
        received = Deliveries(config.spool_dir / "received")
        notes = config.spool_dir / "erasures"
        self._erasures = Erasures(acting, store, [received], notes, on_erased)
        self.shown.attach(self.events)
        self._erasures.attach(self.events)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        work = (self.events.run(), self.shown.run(), self._erasures.backlog.run())
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
            yield
            for task in tasks:
                task.cancel()


def _exchange(config: NodeConfig, acting: Acting, opened: Opened, sides: _Sides) -> Exchange:
    if config.exchange is None:
        raise GatewayRefused("the config has no [exchange]")
    try:
        given = belongings_of(config, acting, opened.store, opened.vault, opened.genesis)
        return Exchange(
            given,
            settings_of(config.exchange),
            on_erased=sides.erased,
            on_inquiry=sides.inquired,
            report=sides.transferred,
            admit=sides.may_transfer,
            on_received=sides.received,
            on_mended=sides.mended,
        )
    except (InvalidCard, CertificateRefused) as error:
        raise GatewayRefused(f"[exchange]: {error}") from error
