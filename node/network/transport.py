"""Persistent, authenticated connections to the known peers: the one object that others talk to.

Everything runs on one event loop. The handler is called on it and must not wait; what it is told
about one peer comes in order: connected, frames, disconnected.
"""

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.network.budgets import Misconduct
from node.network.connection import Connection, Turned
from node.network.dialer import Dialer
from node.network.errors import CertificateRefused, InvalidFrame, Reason
from node.network.frames import Kind, encode_frame
from node.network.listener import Listener, ListenerCounters
from node.network.options import TransportOptions
from node.network.payloads import Hello, Role
from node.network.peers import KnownPeer, Peer, PeerReport, Traffic, address_text, dials
from node.network.send_queue import Priority
from node.network.tls import TrustedContexts, certificate_key

__all__ = ["Handler", "Priority", "Transport"]

log = logging.getLogger(__name__)


class Handler(Protocol):
    """Who is told what peers do; synchronous, on the event loop.

    An exception other than `InvalidFrame` is this node's own failure: `Transport.wait` raises it.
    """

    def peer_connected(self, peer: Peer) -> None:
        """The peer is authenticated, of our chain and version, and can be sent to."""
        ...

    def peer_disconnected(self, peer: Peer) -> None:
        """Nothing more comes from this connection; what was queued for it is lost."""
        ...

    def peer_changed(self, peer: Peer) -> None:
        """A connected peer has another role or name now."""
        ...

    def frame(self, key: bytes, kind: Kind, payload: bytes) -> None:
        """One frame of a connected peer. Raises `InvalidFrame` when the payload is not what its
        kind allows: the peer is told, disconnected and punished."""
        ...


class Transport:
    """`start`, then `wait` in a supervised task; `close` at the end."""

    def __init__(
        self,
        private_key: Ed25519PrivateKey,
        certificate: bytes,
        known: Iterable[KnownPeer],
        listen_host: str,
        listen_port: int,
        hello: Callable[[], Hello],
        handler: Handler,
        options: TransportOptions | None = None,
    ) -> None:
        """`hello` is asked at every connection, so that it can say the height of the moment.

        Raises `CertificateRefused` when a certificate, or the node's own, is not usable.
        """
        self._options = options or TransportOptions()
        # The own certificate is trusted so that a copied key gets a clear answer, see `identify`.
        self._contexts = TrustedContexts(private_key, certificate, [certificate])
        self.key = self._contexts.own_key
        self._listen_at = (listen_host, listen_port)
        self._hello = hello
        self._handler = handler
        self._known: dict[bytes, KnownPeer] = {}
        self._live: dict[bytes, tuple[Connection, Peer]] = {}
        self._all: set[Connection] = set()  # half-open and closing ones, too
        self._blocked: set[bytes] = set()
        self._traffic: dict[bytes, Traffic] = {}
        self._notes: dict[bytes, str] = {}
        self._dialers: dict[bytes, tuple[Dialer, asyncio.Task[None]]] = {}
        self._listener = Listener(self, self._options)
        self._misconduct = Misconduct(
            self._options.punish_threshold,
            self._options.punish_fade_per_s,
            self._options.refuse_ms / 1000,
        )
        self._tasks: asyncio.TaskGroup | None = None
        self._runner: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._stop = asyncio.Event()
        self._all_lost = asyncio.Event()
        self.closed_by: Counter[str] = Counter()  # connections that were turned away, by reason
        for peer in known:
            self._learn(peer)

    # Life.

    async def start(self) -> None:
        """Listen and begin to dial. Raises `ListenFailed`."""
        await self._listener.open(*self._listen_at)
        started = asyncio.Event()
        self._runner = asyncio.create_task(self._run(started), name="transport")
        await started.wait()
        where = ", ".join(address_text(*address) for address in self.addresses)
        log.info("listening addresses=%s peers=%d", where, len(self._known))

    async def wait(self) -> None:
        """Return when the transport was closed; raise what made it fail."""
        if self._runner is not None:
            await asyncio.shield(self._runner)

    async def close(self) -> None:
        """Say goodbye to every peer and end all connections; returns when every socket is gone."""
        self._stop.set()
        if self._runner is not None:
            await asyncio.wait([self._runner])

    async def _run(self, started: asyncio.Event) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for key in self._known:
                    self._start_dialer(key)
                running = [
                    tasks.create_task(self._listener.run(), name="listener"),
                    tasks.create_task(self._tick(), name="peer-liveness"),
                ]
                started.set()
                await self._stop.wait()
                for task in (*running, *(dialer[1] for dialer in self._dialers.values())):
                    task.cancel()
        finally:
            self._tasks = None
            await self._part()
        if self._failure is not None:
            raise self._failure

    async def _part(self) -> None:
        for connection in list(self._all):
            connection.close(Reason.SHUTDOWN, "the node stops")
        if self._all:
            try:
                async with asyncio.timeout(self._options.goodbye_timeout_ms / 1000):
                    await self._all_lost.wait()
            except TimeoutError:
                for connection in list(self._all):
                    connection.abort("the node stops")

    async def _tick(self) -> None:
        loop, options = asyncio.get_running_loop(), self._options
        step_s = min(options.ping_interval_ms, options.silence_max_ms) / 2000
        last_s = loop.time()
        while True:
            await asyncio.sleep(step_s)
            now_s = loop.time()
            # A process that was suspended has heard nobody; that is not the peers' silence.
            suspended = now_s - last_s > step_s + options.silence_max_ms / 2000
            last_s = now_s
            for connection, _ in list(self._live.values()):
                if suspended:
                    connection.forgive(now_s)
                connection.tick(now_s)

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
            self._stop.set()

    # Sending.

    def send(self, key: bytes, kind: Kind, payload: bytes, priority: Priority) -> bool:
        """Queue a frame to one peer. False when it is not connected or its queue has no room.

        Raises `ValueError` for a payload over the maximum of its kind.
        """
        live = self._live.get(key)
        return live is not None and live[0].send(encode_frame(kind, payload), priority)

    def broadcast(
        self, keys: Iterable[bytes], kind: Kind, payload: bytes, priority: Priority
    ) -> int:
        """Queue a frame, encoded once, to several peers; return for how many it was queued.

        Peers that are not connected are left out. Raises `ValueError` as `send` does.
        """
        frame, queued = encode_frame(kind, payload), 0
        for key in keys:
            live = self._live.get(key)
            queued += live is not None and live[0].send(frame, priority)
        return queued

    # Peers.

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where this node listens, as (host, port); with port 0 in the config, what it became."""
        return self._listener.addresses

    @property
    def listener_counters(self) -> ListenerCounters:
        """What happened to connections that others made."""
        return self._listener.counters

    @property
    def connected(self) -> Mapping[bytes, Peer]:
        """The peers that can be sent to now, by key."""
        return MappingProxyType({key: peer for key, (_, peer) in self._live.items()})

    def know(self, peers: Iterable[KnownPeer]) -> None:
        """Know exactly these peers from now on; the connections of those that stay go on.

        A peer whose certificate cannot be used is left out, and an error in the log says so.
        """
        kept = set()
        for peer in peers:
            try:
                key = certificate_key(peer.certificate)
                self._know(key, peer)
                kept.add(key)
            except CertificateRefused as error:
                log.error("a node cannot connect peer=%s certificate: %s", peer.name, error)
        for key in self._known.keys() - kept:
            self.distrust(key)
        for key in self._known:
            self._start_dialer(key)

    def _know(self, key: bytes, peer: KnownPeer) -> None:
        before = self._known.get(key)
        if before == peer or key == self.key:
            return
        if before is not None and (before.host, before.port) != (peer.host, peer.port):
            self._stop_dialer(key)
        self._learn(peer)
        live = self._live.get(key)
        if live is not None:
            changed = replace(live[1], name=peer.name, role=peer.role)
            self._live[key] = live[0], changed
            self._tell(self._handler.peer_changed, changed)

    def trust(self, peer: KnownPeer) -> bytes:
        """Know this peer from now on, or know it anew (address, certificate); return its key.

        Raises `CertificateRefused`.
        """
        key = certificate_key(peer.certificate)
        if key in self._known and self._known[key] != peer:
            self.distrust(key)
        self._learn(peer)
        if self._tasks is not None:
            self._start_dialer(key)
        return key

    def distrust(self, key: bytes) -> None:
        """Know this peer no longer: its connection ends, its handshakes fail."""
        if self._known.pop(key, None) is None:
            return
        self._contexts.distrust(key)
        self._stop_dialer(key)
        self._end(key, Reason.UNKNOWN_PEER, "this node does not know the other's key any more")
        for book in (self._traffic, self._notes):
            book.pop(key, None)
        self._misconduct.forget(key)

    def punish(self, key: bytes, points: float, reason: str) -> None:
        """Count misbehaviour; at the threshold the peer is disconnected and refused for a while.

        `reason` goes to the peer and into the log.
        """
        known = self._known.get(key)
        if known is None:
            return
        self._traffic[key].punishments += 1
        log.warning("peer misbehaves peer=%s points=%g reason=%s", known.name, points, reason)
        if self._misconduct.punish(key, points, asyncio.get_running_loop().time()):
            refused_ms = self._options.refuse_ms
            log.warning("peer is refused peer=%s for_ms=%d", known.name, refused_ms)
            self._end(key, Reason.PUNISHED, f"refused for {refused_ms} ms: {reason}")

    def block(self, keys: Iterable[bytes]) -> None:
        """Cut and refuse all connections with these peers, silently, as a broken network would.

        A hook for testnets: a partition without stopping a node.
        """
        self._blocked.update(keys)
        for key in self._blocked & self._live.keys():
            self._live[key][0].abort("blocked")

    def unblock(self, keys: Iterable[bytes]) -> None:
        """Allow connections with these peers again, and dial them at once."""
        for key in keys:
            self._blocked.discard(key)
            if key in self._dialers:
                self._dialers[key][0].kick()

    def report(self) -> list[PeerReport]:
        """Return one line per known peer, ordered by name."""
        return sorted((self._report(key) for key in self._known), key=lambda line: line.name)

    def _report(self, key: bytes) -> PeerReport:
        known, live = self._known[key], self._live.get(key)
        connection, peer = live or (None, None)
        configured = address_text(known.host, known.port) if known.host else ""
        rtt_s = connection.round_trip_s if connection else None
        return PeerReport(
            key=key,
            name=known.name,
            role=known.role,
            address=peer.address if peer else configured,
            state=self._state(key),
            height=peer.hello.height if peer else None,
            round_trip_ms=None if rtt_s is None else rtt_s * 1000,
            queued_bytes=connection.queued_bytes if connection else 0,
            last_error=self._notes.get(key, ""),
            traffic=self._traffic[key],
        )

    def _state(self, key: bytes) -> str:
        if key in self._live:
            return "connected"
        if key in self._blocked:
            return "blocked"
        if self._misconduct.refused_for_s(key, asyncio.get_running_loop().time()):
            return "refused"
        return "connecting" if key in self._dialers else "waiting"

    def _learn(self, peer: KnownPeer) -> None:
        key = certificate_key(peer.certificate)
        if key == self.key:
            return
        self._contexts.trust(peer.certificate)
        self._known[key] = peer
        self._traffic.setdefault(key, Traffic())

    def _start_dialer(self, key: bytes) -> None:
        peer = self._known.get(key)
        if peer is None or peer.host is None or key in self._dialers or self._tasks is None:
            return
        if peer.role is Role.VALIDATOR:
            dialer = Dialer(self, key, peer.name, (peer.host, peer.port), self._options)
            task = self._tasks.create_task(dialer.run(), name=f"dial-{peer.name}")
            self._dialers[key] = dialer, task

    def _stop_dialer(self, key: bytes) -> None:
        dialer = self._dialers.pop(key, None)
        if dialer is not None:
            dialer[1].cancel()

    def _end(self, key: bytes, reason: Reason, sentence: str) -> None:
        live = self._live.get(key)
        if live is not None:
            live[0].close(reason, sentence)

    # What the listener and the dialers need.

    def connection(self, address: str, dialled: bytes | None) -> Connection:
        """Return a protocol object for a connection that is about to be made."""
        connection = Connection(self, self._options, address, dialled)
        self._all.add(connection)
        self._all_lost.clear()
        return connection

    def server_context(self) -> ssl.SSLContext:
        """Return the context for connections that others make."""
        return self._contexts.server

    def client_context(self) -> ssl.SSLContext:
        """Return the context for connections that this node makes."""
        return self._contexts.client

    def has_room(self) -> bool:
        """Return whether another connection may exist."""
        return len(self._all) < self._options.connections_max

    def hold_off_s(self, key: bytes) -> float | None:
        """Return how long not to dial; None while blocked, connected the other way round, or no
        validator."""
        known = self._known.get(key)
        if key in self._blocked or key in self._live or known is None:
            return None
        if known.role is not Role.VALIDATOR:
            return None
        return self._misconduct.refused_for_s(key, asyncio.get_running_loop().time())

    def patience_s(self, key: bytes) -> float:
        """Return how long to leave it to the peer to dial."""
        known = self._known.get(key)
        if known is None or dials(self.key, self._hello().role, key, known.role):
            return 0.0
        return self._options.dial_patience_ms / 1000

    def note(self, key: bytes, sentence: str) -> None:
        """Remember why there is no connection."""
        if key in self._known:
            self._notes[key] = sentence

    # What connections tell.

    def identify(self, certificate: bytes, dialled: bytes | None) -> tuple[bytes, Traffic]:
        """Return whose certificate this is. TLS has proved the possession of its key."""
        try:
            key = certificate_key(certificate)
        except CertificateRefused as error:
            raise self._turned(Reason.UNKNOWN_PEER, str(error)) from error
        if key == self.key:
            sentence = "both ends use one key: a copied key, or a node that dials itself"
            log.error("%s; check addresses and never run one key on two machines", sentence)
            raise self._turned(Reason.OWN_KEY, sentence)
        known = self._known.get(key)
        if known is None:
            raise self._turned(Reason.UNKNOWN_PEER, "this node does not know the other's key")
        if dialled is not None and key != dialled:
            wanted = self._known[dialled].name if dialled in self._known else "another"
            sentence = f"dialled {wanted}, but {known.name} answered; check the addresses"
            raise self._turned(Reason.UNKNOWN_PEER, sentence)
        if key in self._blocked:
            raise Turned(None, "blocked")
        refused_s = self._misconduct.refused_for_s(key, asyncio.get_running_loop().time())
        if refused_s:
            raise self._turned(Reason.PUNISHED, f"refused for another {refused_s:.0f} s")
        return key, self._traffic[key]

    def hello(self) -> Hello:
        """Return what this node says of itself now."""
        return self._hello()

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """Make this the connection of its peer, instead of an older one."""
        key = connection.key
        known = self._known.get(key)
        if known is None:  # between the TLS handshake and HELLO
            raise self._turned(Reason.UNKNOWN_PEER, "this node does not know the other's key")
        if key in self._blocked:
            raise Turned(None, "blocked")
        self._end(key, Reason.REPLACED, "a newer connection of the same key took over")
        dialled = connection.dialled is not None
        peer = Peer(key, known.name, hello, dialled, connection.address, known.role)
        self._live[key] = connection, peer
        self._traffic[key].connections += 1
        self._notes.pop(key, None)
        log.info("connected peer=%s at=%s height=%d", peer.name, peer.address, hello.height)
        self._tell(self._handler.peer_connected, peer)

    def received(self, connection: Connection, kind: Kind, payload: bytes) -> None:
        """Hand a frame to the handler."""
        try:
            self._handler.frame(connection.key, kind, payload)
        except InvalidFrame:
            raise
        except Exception as error:
            self._fail(error)
            raise

    def misbehaved(self, connection: Connection, sentence: str) -> None:
        """Punish in full what no correct node of this version sends."""
        self.punish(connection.key, self._options.punish_threshold, sentence)

    def closed(self, connection: Connection) -> None:
        """Forget the connection; a new one may come."""
        live = self._live.get(connection.key)
        if live is None or live[0] is not connection:
            return
        del self._live[connection.key]
        self.note(connection.key, connection.error)
        log.info("disconnected peer=%s reason=%s", live[1].name, connection.error)
        if connection.key in self._dialers and connection.dialled is None:
            self._dialers[connection.key][0].wake()
        self._tell(self._handler.peer_disconnected, live[1])

    def lost(self, connection: Connection) -> None:
        """The socket is gone."""
        self._all.discard(connection)
        if not self._all:
            self._all_lost.set()

    def _tell(self, callback: Callable[[Peer], None], peer: Peer) -> None:
        try:
            callback(peer)
        except Exception as error:
            self._fail(error)
            raise

    def _turned(self, reason: Reason, sentence: str) -> Turned:
        self.closed_by[reason.name] += 1
        return Turned(reason, sentence)
