"""The gateway's composition root: its parts are built, started in order, and supervised.

It is a process of its own beside the node and reaches the ledger by the node's RPC only, so that
images never delay consensus.
"""

import asyncio
import hashlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from node.config.model import DicomPeer, GatewayConfig
from node.exchange.federation.ports import FederationEvent
from node.exchange.store.errors import StoreError
from node.exchange.store.store import StudyStore
from node.gateway.audit.acts import Act
from node.gateway.audit.auditor import (
    Auditor,
    folder_of,
    limits_of,
    open_trail,
    sender_of,
    sending,
)
from node.gateway.audit.errors import TrailUnusable
from node.gateway.closing import Rules
from node.gateway.deliver import Given
from node.gateway.deliveries import DeliveriesUnusable
from node.gateway.delivering import WayUnusable, deliverer, open_deliveries, ways_of
from node.gateway.dialing import Dialer, Peer
from node.gateway.front import Front, FrontRules
from node.gateway.holdings import StoreHoldings
from node.gateway.index import SpoolError
from node.gateway.inquiries import kept_line
from node.gateway.intake import Intake, Kept
from node.gateway.keeping import Keeper
from node.gateway.link import DimseAccess, Lender
from node.gateway.parsing import Parsing
from node.gateway.receiver import Receiving
from node.gateway.scp import Settings
from node.gateway.spool import Quota, Spool, reference
from node.gateway.tls import server_context
from node.gateway.watch import Watch
from node.gateway.web.server import WebServer
from node.imaging.errors import VaultError
from node.imaging.parts import rules_of_config
from node.imaging.register import Options
from node.imaging.vault import Vault
from node.keys import KeyFileError
from node.ledger.errors import Refused
from node.rpc.client import Client
from node.rpc.errors import ConnectionLost, RpcError
from node.studies import Registrations, Signer, register

log = logging.getLogger(__name__)

# After these a study waits and is tried again.
PASSING: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    RpcError,
    ConnectionLost,
    Refused,
    StoreError,
    SpoolError,
    VaultError,
)


class GatewayRefused(Exception):
    """The gateway cannot start; the text says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the gateway is given."""

    config: GatewayConfig
    client: Client
    vault: Vault
    signer: Signer
    store: StudyStore
    # Whether a study (id, 16 bytes) is this hospital's own or granted to it now.
    may_show: Callable[[bytes], bool] = lambda _: True
    # The same for a delivery that was counted as a use.
    may_deliver: Callable[[bytes], bool] = lambda _: True
    # The number of the last look at the ledger by which those two answer; see `Deliverer`.
    as_of: Callable[[], int | None] | None = None
    # Told of each study (id) of which a version came into the store, in the event loop.
    on_kept: Callable[[bytes], None] = lambda _: None


class Gateway:
    """Receives, registers and stores until it is cancelled."""

    def __init__(self, parts: Parts, *, log_level: int = logging.INFO) -> None:
        """Raises `GatewayRefused` for settings and files that cannot be used."""
        config = self._config = parts.config
        self._is_started = False
        self._parts, self.store = parts, parts.store
        self.registered = self.stored = 0  # versions, since the start
        rules = rules_of(config)
        try:
            self._trail = open_trail(config)
            self._sending = sending(sender_of(config, parts.signer.institution))
            self.parsing = Parsing(config.limits.memory_bytes_max)
            self.spool = Spool(
                config.spool_dir,
                quota_of(config),
                rules,
                trail=self._trail,
                read=self.parsing.read,
            )
            tls, pins, trusts = _trust(config)
            ways = ways_of(config, Dialer(self.spool.note))
            self.deliveries = open_deliveries(self.spool)
        except (SpoolError, WayUnusable, DeliveriesUnusable, TrailUnusable) as error:
            raise GatewayRefused(str(error)) from error
        except OSError as error:
            raise GatewayRefused(f"[gateway.audit]: {error.strerror or error}") from error
        settings = _settings(config, trusts, log_level)
        self.holdings = StoreHoldings(parts.store, parts.may_show)
        auditor = self.auditor = Auditor(self._trail, self.holdings.ids_of)
        self.deliverer = deliverer(
            self.deliveries,
            self.spool,
            self.holdings.judged_by(parts.may_deliver),
            ways,
            self.delivered,
            parts.as_of,
            auditor.delivering,
            self.parsing.read,
        )
        lender = Lender(self.holdings, self._given_out, may_give=auditor.retrieving)
        self.receiving = Receiving(settings, self._report, lender)
        known = {peer.ae_title: pins.get(peer.ae_title) for peer in config.peers}
        self.front = Front(_front_rules(config, known), self.receiving.hand, self._report, tls)
        keeper = Keeper(parts.store)
        self.intake = Intake(
            self.spool,
            rules,
            self._register,
            keeper,
            PASSING,
            on_kept=self._kept,
        )
        self.web: WebServer | None = None
        try:
            if config.web is not None:
                self.web = WebServer(config.web, self.holdings, self.spool, auditor)
        except ValueError as error:
            raise GatewayRefused(f"[gateway.web]: {error}") from error

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while the context lasts; ends it when a part fails. Raises `GatewayRefused`."""
        try:
            await asyncio.to_thread(self.spool.recover)
            await asyncio.to_thread(self.auditor.tell, Act("started"))
            self._is_started = True
            await asyncio.to_thread(self.holdings.refresh)
            await self._open_door()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work) for work in self._work()]
                yield
                for task in tasks:
                    task.cancel()
        finally:
            if self.web is not None:
                await self.web.stop()
            await self.front.stop()
            await self.receiving.stop()
            await asyncio.to_thread(self.parsing.close)
            self.deliveries.close()
            await self.auditor.settled()
            if self._is_started:  # not if the folder is another gateway's
                await asyncio.to_thread(self.auditor.tell, Act("stopped"))
            self.auditor.close()
            self.spool.close()
            self._trail.close()

    async def _open_door(self) -> None:
        config = self._config
        try:
            await self.receiving.start()
        except (OSError, TimeoutError) as error:
            raise GatewayRefused(f"the receiving process does not start: {error}") from error
        try:
            await self.front.start(config.listen_host, config.listen_port)
        except OSError as error:
            place = f"{config.listen_host}:{config.listen_port}"
            raise GatewayRefused(f"cannot listen on {place}: {error.strerror}") from error
        if self.web is not None:
            try:
                await self.web.start()
            except (OSError, KeyFileError) as error:
                raise GatewayRefused(str(error)) from error
            log.info("DICOMweb listens port=%d", self.web.port)
        log.info("gateway listens port=%d ae_title=%s", self.front.port, config.ae_title)

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        warming = asyncio.to_thread(self.parsing.warm)
        work = [warming, self.intake.run(), self.deliverer.run(), *self._sending]
        if self._config.watch_dir is not None:
            watch = Watch(self._config.watch_dir, self.spool, self.parsing.media)
            work.append(watch.run())
        return work

    async def _register(self, paths: Sequence[Path]) -> Registrations:
        parts = self._parts
        # The spool knows what came here; what else is registered was by hand, and is not stored.
        options = Options(apart=rules_of_config(parts.config), replace_encoding=True)
        given = parts.client, parts.vault, parts.signer
        done = await register(paths, *given, options=options, mapper=self.parsing.map)
        self.registered += sum(each.is_done and each.submitted is not None for each in done.studies)
        return done

    def _kept(self, kept: Kept) -> None:
        self.stored += 1
        self.auditor.tell_later(
            Act(
                "registered",
                studies=(kept.study_id,),
                version=kept.version,
                instances=kept.instances,
                arriving=reference(kept.study),
            )
        )
        self.list_study(kept.study_id)
        self._parts.on_kept(kept.study_id)

    def list_study(self, study_id: bytes) -> None:
        """Let searches find a study that came into the store.

        It waits for the disk, so it is done off the event loop.
        """
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(None, self.holdings.add, study_id)
        future.add_done_callback(_tell_failure)

    def registered_elsewhere(self, study_id: bytes) -> None:
        """Let searches find a study that another process of this hospital registered and stored,
        as a part of one that was split. Called in the event loop."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(None, self._list_stored, study_id)
        future.add_done_callback(_tell_failure)
        future.add_done_callback(lambda done: self._listed(done, study_id))

    def _list_stored(self, study_id: bytes) -> bool:
        """List a study if it is stored; what comes by the spool is registered before it is."""
        return bool(self._parts.store.versions(study_id)) and bool(self.holdings.add(study_id))

    def _listed(self, done: asyncio.Future[bool], study_id: bytes) -> None:
        if not done.cancelled() and done.exception() is None and done.result():
            self._parts.on_kept(study_id)

    def deliverable(self, study_id: bytes) -> str | None:
        """List a study that came; return its UID, None if it may not be delivered now. Waits for
        disks."""
        uid = self.holdings.add(study_id)
        return uid if self._parts.may_deliver(study_id) else None

    def forget(self, study_id: bytes) -> None:
        """Let go of a study that is erased: it is not listed, and neither the spool nor the vault
        have anything of it. Waits for the disk."""
        self.auditor.tell(Act("erased", studies=(study_id,)))
        uid = self.holdings.remove(study_id)
        self._parts.vault.delete_study(study_id)
        if uid is not None and not self._parts.vault.parts(uid):  # other parts go on with it
            self.spool.forget(uid)
        self.spool.foreign.forget(study_id)

    def inquired(self, event: FederationEvent) -> None:
        """Keep a question between hospitals as an event. Called in the event loop."""
        self.auditor.inquired(event)
        self._report(*kept_line(event), is_audited=True)

    def delivered(self, given: Given) -> None:
        """Keep what was delivered, or why it was not, as an event. Called in threads."""
        self.auditor.delivered(given)
        code = given.code or f"delivered {given.instances}"
        self.spool.note("delivered", given.target, code, is_audited=True)

    def _given_out(self, access: DimseAccess) -> None:
        """Keep a retrieval, or a query that was refused, as an event. Called in threads."""
        self.auditor.given_out(access)
        if access.instances or access.code:
            code = access.code or f"{access.action.value} {access.instances}"
            self.spool.note("given_out", access.calling, code, is_audited=True)

    def _report(self, kind: str, source: str, code: str, *, is_audited: bool = False) -> None:
        """Keep an event, off the event loop since it waits for the disk."""
        loop = asyncio.get_running_loop()
        note = partial(self.spool.note, kind, source, code, is_audited=is_audited)
        future = loop.run_in_executor(None, note)
        future.add_done_callback(_tell_failure)


def rules_of(config: GatewayConfig) -> Rules:
    """Return when studies are complete."""
    return Rules(config.quiet_ms, config.age_ms_max, config.delay_ms_max)


def quota_of(config: GatewayConfig) -> Quota:
    """Return what the spool may hold."""
    limits = config.limits
    return Quota(
        limits.instance_bytes_max,
        limits.spool_bytes_max,
        limits.spool_instances_max,
        limits.quarantine_bytes_max,
        limits.disk_reserve_bytes,
    )


def _front_rules(config: GatewayConfig, known: dict[str, bytes | None]) -> FrontRules:
    limits = config.limits
    return FrontRules(
        config.ae_title,
        known,
        limits.pdu_bytes_max,
        limits.connections_max,
        limits.associations_max,
        limits.idle_timeout_ms / 1_000,
    )


def _settings(config: GatewayConfig, trusts: dict[str, str], log_level: int) -> Settings:
    limits = config.limits
    certificate, key = config.tls_certificate_file, config.tls_key_file
    return Settings(
        str(config.spool_dir),
        asdict(quota_of(config)),
        asdict(rules_of(config)),
        config.ae_title,
        [asdict(_peer(peer, trusts)) for peer in config.peers],
        pdu_bytes_max=limits.pdu_bytes_max,
        associations_max=limits.associations_max,
        idle_seconds=limits.idle_timeout_ms / 1_000,
        memory_bytes_max=limits.memory_bytes_max,
        certificate_file=None if certificate is None else str(certificate),
        key_file=None if key is None else str(key),
        log_level=log_level,
        audit=str(folder_of(config)),
        audit_limits=asdict(limits_of(config.audit)),
    )


def _peer(peer: DicomPeer, trusts: dict[str, str]) -> Peer:
    return Peer(peer.ae_title, peer.host, peer.port, trusts.get(peer.ae_title))


def check_files(config: GatewayConfig) -> None:
    """Raise `GatewayRefused` for certificates, keys and secrets that cannot be used."""
    _trust(config)
    try:
        ways_of(config)
    except WayUnusable as error:
        raise GatewayRefused(str(error)) from error


def _trust(
    config: GatewayConfig,
) -> tuple[ssl.SSLContext | None, dict[str, bytes], dict[str, str]]:
    """Return the context of the door, and of each peer the certificate's digest and its trust."""
    certificate, key = config.tls_certificate_file, config.tls_key_file
    if certificate is None or key is None:
        return None, {}, {}
    authority = "" if config.tls_trust_file is None else _read(config.tls_trust_file)
    pins: dict[str, bytes] = {}
    trusts: dict[str, str] = {}
    for peer in config.peers:
        trusts[peer.ae_title] = authority
        if peer.certificate_file is not None:
            text = trusts[peer.ae_title] = _read(peer.certificate_file)
            pins[peer.ae_title] = _digest(peer.certificate_file, text)
    try:
        context = server_context(certificate, key, "\n".join({authority, *trusts.values()}))
    except OSError as error:
        sentence = f"the TLS files of [gateway] cannot be used: {error.strerror or error}"
        raise GatewayRefused(sentence) from error
    return context, pins, trusts


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, ValueError) as error:
        raise GatewayRefused(f"{path} cannot be read as PEM text") from error


def _digest(path: Path, text: str) -> bytes:
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text.strip())).digest()
    except ValueError as error:
        raise GatewayRefused(f"{path} holds no single PEM certificate") from error


def _tell_failure(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.error("work in the background failed: %s", error)
