"""Accepts connections: as many half-open ones as there is room for, the oldest makes way.

TCP is accepted here rather than by the loop's server, so that a stranger can be dropped before TLS
costs anything, and so that a flood of half-open connections never locks out a peer: its handshake
takes milliseconds, and only what is older than `half_open_max` newer ones is cut.
"""

import asyncio
import errno
import logging
import socket
import ssl
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from node.network.connection import Connection
from node.network.errors import ListenFailed
from node.network.options import TransportOptions
from node.network.peers import address_text

log = logging.getLogger(__name__)

_BACKLOG = 256
_EXHAUSTED_PAUSE_S = 0.2
_WARNING_INTERVAL_S = 10.0
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(slots=True)
class ListenerCounters:
    """What happened to connections that others made; for metrics."""

    accepted: int = 0
    handshakes_failed: int = 0
    half_open_cut: int = 0
    refused_full: int = 0


class Accepting(Protocol):
    """What the listener needs of the transport."""

    def connection(self, address: str, dialled: bytes | None) -> Connection:
        """Return a fresh protocol object."""
        ...

    def server_context(self) -> ssl.SSLContext:
        """Return the context that trusts exactly the peers known now."""
        ...

    def has_room(self) -> bool:
        """Return whether another connection may exist."""
        ...


class Listener:
    """The listening sockets of a node."""

    def __init__(self, accepting: Accepting, options: TransportOptions) -> None:
        self._accepting = accepting
        self._options = options
        self._sockets: list[socket.socket] = []
        self._half_open: dict[asyncio.Task[None], None] = {}  # oldest first
        self._unclaimed: set[socket.socket] = set()  # accepted; no task has begun with it
        self._warned_at_s = -_WARNING_INTERVAL_S
        self.counters = ListenerCounters()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where this node listens: (host, port), IPv4 and IPv6."""
        return [listening.getsockname()[:2] for listening in self._sockets]

    async def open(self, host: str, port: int) -> None:
        """Listen on every address of `host` ("": of the machine). Raises `ListenFailed`.

        Port 0 lets the system choose one, the same for all addresses.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, kind, protocol, _, address in dict.fromkeys(found):
                chosen = self.addresses[0][1] if self._sockets else port
                bound = (address[0], chosen, *address[2:])
                self._sockets.append(_listen(family, kind, protocol, bound))
        except (OSError, UnicodeError) as error:
            # A machine without IPv6 still lists its address: all but one may be missing.
            if self._sockets and getattr(error, "errno", None) in _NO_SUCH_ADDRESS:
                return
            self.close()
            where = address_text(host, port)
            reason = getattr(error, "strerror", None) or str(error)
            raise ListenFailed(f"cannot listen on {where}: {reason}") from error

    async def run(self) -> None:
        """Accept until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            try:
                for listening in self._sockets:
                    self._watch(listening, tasks)
                await asyncio.get_running_loop().create_future()
            finally:
                self.close()

    def close(self) -> None:
        """Stop listening."""
        for listening in self._sockets:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        self._sockets.clear()

    def _watch(self, listening: socket.socket, tasks: asyncio.TaskGroup) -> None:
        if listening in self._sockets:
            loop = asyncio.get_running_loop()
            loop.add_reader(listening, self._accept, listening, tasks)

    def _accept(self, listening: socket.socket, tasks: asyncio.TaskGroup) -> None:
        """Take one connection; the loop comes back for the next, after others had their turn."""
        try:
            accepted, address = listening.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                self._warn("cannot accept connections reason=%s", error.strerror)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listening)
                loop.call_later(_EXHAUSTED_PAUSE_S, self._watch, listening, tasks)
            return
        accepted.setblocking(False)
        self.counters.accepted += 1
        if not self._accepting.has_room():
            self.counters.refused_full += 1
            accepted.close()
            return
        if len(self._half_open) >= self._options.half_open_max:
            next(iter(self._half_open)).cancel()
            self.counters.half_open_cut += 1
        task = tasks.create_task(self._greet(accepted, address_text(*address[:2])))
        self._half_open[task] = None
        self._unclaimed.add(accepted)
        task.add_done_callback(partial(self._greeted, accepted))

    async def _greet(self, accepted: socket.socket, address: str) -> None:
        """TLS, then HELLO; the task ends when the connection is open or gone."""
        self._unclaimed.discard(accepted)
        options = self._options
        connection = self._accepting.connection(address, None)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._accepting.server_context(),
                ssl_handshake_timeout=options.handshake_timeout_ms / 1000,
                ssl_shutdown_timeout=options.goodbye_timeout_ms / 1000,
            )
            await connection.settled.wait()
        except OSError as error:
            self.counters.handshakes_failed += 1
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            self._warn("a TLS handshake failed from=%s reason=%s", address, reason)
        finally:
            if not connection.greeted:
                connection.abort("no handshake in time, or it made way for newer connections")

    def _greeted(self, accepted: socket.socket, task: asyncio.Task[None]) -> None:
        del self._half_open[task]
        if accepted in self._unclaimed:  # cancelled before its first step
            self._unclaimed.discard(accepted)
            accepted.close()

    def _warn(self, text: str, *values: object) -> None:
        """Log at most once per interval: whoever can reach the port decides how often we come
        here, and must not decide how much is written."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._warned_at_s >= _WARNING_INTERVAL_S:
            self._warned_at_s = now_s
            log.warning(text + " failures_so_far=%d", *values, self.counters.handshakes_failed)


def _listen(family: int, kind: int, protocol: int, address: tuple[str | int, ...]) -> socket.socket:
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening
