"""Looks after the gateway: measures, counts, and says what keeps it from progress.

Everything is read where it is kept anyway; nothing here stands in the way of an image. The disk is
asked in threads.
"""

import asyncio
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from node.exchange.store.errors import StoreError
from node.exchange.store.records import Usage as StoreUsage
from node.exchange.store.scrub import Scrubbed
from node.gateway import health, totals
from node.gateway.acting import PASSING
from node.gateway.audit.anchorer import Anchorer
from node.gateway.chunks import Arrived
from node.gateway.condition import Condition, Finding, findings_of
from node.gateway.daemon import Gateway
from node.gateway.deliveries import DeliveriesUnusable, State
from node.gateway.exchange import Exchange
from node.gateway.health import Health
from node.gateway.index import Event, Gathering, SpoolError, Usage
from node.gateway.metrics import GatewayMetrics
from node.gateway.scrubbing import Scrubbing
from node.rpc.client import Client
from node.rpc.errors import NotAuthorized

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
LONG_LOOK_SECONDS = 60.0  # the store's size, and whether other hospitals answer
AGAIN_SECONDS = 15.0  # the same, while one does not
LAG_SECONDS = 0.25
NODE_SECONDS = 5.0
EVENTS_AT_ONCE = 1_000
_UNREACHABLE: tuple[type[Exception], ...] = (*PASSING, NotAuthorized)


class _Spool(NamedTuple):
    """What the disk says of the spool and of deliveries."""

    usage: Usage
    gatherings: list[Gathering]
    room: str
    free: int
    totals: dict[str, int]
    events: list[tuple[int, Event]]
    deliveries: dict[State, int]
    stuck: dict[str, str]


class _Store(NamedTuple):
    usage: StoreUsage | None
    problem: str
    scrubbed: Scrubbed | None


@dataclass(frozen=True, slots=True)
class Watched:
    """What is looked after."""

    gateway: Gateway
    client: Client
    exchange: Exchange | None
    anchorer: Anchorer | None = None
    scrubbing: Scrubbing | None = None


class Monitor:
    """Keeps `metrics` and `health` up to date while `run` goes on."""

    def __init__(
        self,
        watched: Watched,
        metrics: GatewayMetrics,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._watched, self.metrics, self._now_ms = watched, metrics, now_ms
        self._store = _Store(None, "", None)
        self._silent: dict[str, str] = {}
        self._last_event: int | None = None
        self._contact_ms: int | None = None
        self._height: int | None = None
        self._started_ms = now_ms()
        self.health = Health(self._started_ms, self._started_ms, None, None, ())

    async def run(self) -> None:
        """Look after the gateway until cancelled."""
        folder = self._watched.gateway.spool.folder
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._look_for_ever())
                group.create_task(self._look_long_for_ever())
                group.create_task(self._probe_lag())
        finally:
            health.remove(folder)

    async def look(self) -> Health:
        """Measure what is cheap, and say what is wrong. Raises `SpoolError` and the like."""
        problem, reason = await self._ask_node()
        found = await asyncio.to_thread(self._measure_spool)
        anchorer = self._watched.anchorer
        condition = Condition(
            node_problem=problem,
            node_reason=reason,
            is_receiving=self._watched.gateway.receiving.pid is not None,
            room=found.room,
            store_problem=self._store.problem,
            quota_left=self._quota_left(),
            waiting=[each.reason for each in found.gatherings if each.reason],
            pacs=found.stuck,
            exchange=self._silent,
            missing_chunks=0 if self._store.usage is None else self._store.usage.missing_chunks,
            quarantine=found.usage.aside_files,
            deliveries_failed=found.deliveries[State.FAILED],
            anchoring_problem="" if anchorer is None else anchorer.problem,
        )
        now_ms = self._now_ms()
        findings = health.with_times(findings_of(condition), self.health.findings, now_ms)
        self._tell_changes(findings)
        self.health = Health(
            now_ms, self._started_ms, self._height, self._contact_ms, tuple(findings)
        )
        self._show_spool(found, now_ms)
        self._show_live()
        return self.health

    async def look_long(self) -> None:
        """Measure what costs more: the store, and the way to every other hospital."""
        self._store = await asyncio.to_thread(self._measure_store)
        exchange = self._watched.exchange
        if exchange is not None:
            self._silent = await exchange.unanswered()
            self.metrics.exchange_peers.set(len(exchange.directory.placed))
            self.metrics.exchange_peers_silent.set(len(self._silent))
        self._show_store()

    async def _look_for_ever(self) -> None:
        folder = self._watched.gateway.spool.folder
        while True:
            try:
                await self.look()
                await asyncio.to_thread(health.save, folder, self.health)
            except (SpoolError, DeliveriesUnusable, OSError) as error:
                log.error("the gateway cannot look after itself: %s", error)
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_long_for_ever(self) -> None:
        while True:
            await self.look_long()
            await asyncio.sleep(AGAIN_SECONDS if self._silent else LONG_LOOK_SECONDS)

    async def _probe_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self.metrics.loop_lag_seconds.observe(max(0.0, loop.time() - due))

    async def _ask_node(self) -> tuple[str, str]:
        """Return why the node cannot be asked, and why it makes no progress; "" for no reason."""
        try:
            async with asyncio.timeout(NODE_SECONDS):
                readiness = await self._watched.client.readiness()
        except TimeoutError:
            return f"no answer within {NODE_SECONDS:.0f} s", ""
        except _UNREACHABLE as error:
            return str(error) or type(error).__name__, ""
        self._contact_ms, self._height = self._now_ms(), readiness.height
        return "", readiness.reason

    def _measure_spool(self) -> _Spool:
        gateway = self._watched.gateway
        spool = gateway.spool
        if self._last_event is None:
            self._last_event = max((n for n, _ in spool.index.last_events(1)), default=0)
        refused = spool.room()
        return _Spool(
            spool.usage(),
            spool.gatherings(),
            "" if refused is None else refused.reason,
            shutil.disk_usage(spool.folder).free,
            spool.index.totals(),
            spool.index.events(self._last_event, EVENTS_AT_ONCE),
            gateway.deliveries.counts(),
            gateway.deliveries.stuck(),
        )

    def _measure_store(self) -> _Store:
        store = self._watched.gateway.store
        try:
            store.check_place()
            return _Store(store.usage(), "", store.last_scrub())
        except (StoreError, OSError) as error:
            return _Store(self._store.usage, str(error), self._store.scrubbed)

    def _quota_left(self) -> int | None:
        usage = self._store.usage
        if usage is None or usage.quota_bytes is None:
            return None
        return usage.quota_bytes - usage.stored_bytes

    def _tell_changes(self, findings: list[Finding]) -> None:
        """Log what has begun or ended, once."""
        before = {each.code for each in self.health.findings}
        now = {each.code for each in findings}
        for each in findings:
            if each.code not in before:
                level = logging.WARNING if each.is_stopping else logging.INFO
                log.log(level, "finding code=%s: %s", each.code, each.sentence)
        for code in sorted(before - now):
            log.info("finding is over code=%s", code)

    def _show_spool(self, found: _Spool, now_ms: int) -> None:
        metrics = self.metrics
        metrics.received_instances.follow(found.totals[totals.INSTANCES])
        metrics.received_bytes.follow(found.totals[totals.BYTES])
        metrics.duplicate_instances.follow(found.totals[totals.DUPLICATES])
        for number, event in found.events:
            self._last_event = number
            self._count_event(event)
        metrics.spool_instances.set(found.usage.files)
        metrics.spool_bytes.set(found.usage.bytes)
        metrics.spool_free_bytes.set(found.free)
        metrics.quarantine_instances.set(found.usage.aside_files)
        metrics.quarantine_bytes.set(found.usage.aside_bytes)
        first_ms = min((each.first_ms for each in found.gatherings), default=now_ms)
        metrics.studies_waiting.set(len(found.gatherings))
        metrics.studies_stuck.set(sum(bool(each.reason) for each in found.gatherings))
        metrics.oldest_study_seconds.set(max(0, now_ms - first_ms) / 1_000)
        for state, count in found.deliveries.items():
            metrics.deliveries.labels(state.value).set(count)

    def _count_event(self, event: Event) -> None:
        code = event.code.partition(" ")[0]  # what follows may be an id
        if event.kind in ("refused", "conflict"):
            self.metrics.refused_instances.inc(code)
        elif event.kind == "association_refused":
            self.metrics.refused_associations.inc(code)

    def _show_live(self) -> None:
        metrics, gateway, exchange = self.metrics, self._watched.gateway, self._watched.exchange
        metrics.connections.set(gateway.front.connections)
        metrics.associations.set(gateway.front.associations)
        metrics.is_receiving.set(gateway.receiving.pid is not None)
        metrics.versions_registered.follow(gateway.registered)
        metrics.versions_stored.follow(gateway.stored)
        arrived = Arrived() if exchange is None else exchange.requester.chunks.arrived
        metrics.chunks_verified.follow(arrived.chunks)
        metrics.fetched_bytes.follow(arrived.bytes)
        metrics.chunks_refused.follow(arrived.refused)
        metrics.served_bytes.follow(0 if exchange is None else exchange.server.bytes_sent)
        metrics.node_height.set(self._height or 0)
        metrics.node_contact_seconds.set((self._contact_ms or 0) / 1_000)
        metrics.is_well.set(self.health.is_well)
        metrics.show_findings(Counter(each.code for each in self.health.findings))

    def _show_store(self) -> None:
        metrics, usage, scrubbed = self.metrics, self._store.usage, self._store.scrubbed
        if usage is not None:
            metrics.store_studies.set(usage.studies)
            metrics.store_bytes.set(usage.stored_bytes)
            metrics.store_quota_bytes.set(usage.quota_bytes or 0)
            metrics.store_free_bytes.set(usage.free_bytes or 0)
            metrics.store_missing_chunks.set(usage.missing_chunks)
        if self._watched.scrubbing is not None:
            metrics.scrub_progress.set(self._watched.scrubbing.progress)
        if scrubbed is not None:
            metrics.scrub_time_seconds.set(scrubbed.time_ms / 1_000)
            for kind, count in scrubbed.found.items():
                metrics.scrub_findings.labels(kind).set(count)
