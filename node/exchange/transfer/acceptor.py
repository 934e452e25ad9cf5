"""Accepts TLS connections for the exchange; strangers cost a handshake, and no more than some.

TCP is accepted here rather than by the loop's server, so that each handshake meets the certificates
that are trusted at that moment, and so that a flood of half-open connections never locks a hospital
out: the oldest makes way, and an honest handshake takes milliseconds.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial

from node.exchange.transfer.limits import ServerLimits

log = logging.getLogger(__name__)

_BACKLOG = 128
_EXHAUSTED_PAUSE_S = 0.2
_WARNING_INTERVAL_S = 10.0
_SHUTDOWN_S = 1.0


class Acceptor:
    """The listening socket of an exchange server."""

    def __init__(
        self,
        protocol: Callable[[], asyncio.Protocol],
        connected: Callable[[asyncio.Transport, asyncio.BaseProtocol], None],
        context: Callable[[], ssl.SSLContext],
        is_full: Callable[[], bool],
        limits: ServerLimits,
    ) -> None:
        """`connected` is told of each connection whose TLS handshake is done."""
        self._protocol = protocol
        self._connected = connected
        self._context = context
        self._is_full = is_full
        self._limits = limits
        self._socket: socket.socket | None = None
        self._half_open: dict[asyncio.Task[None], None] = {}  # oldest first
        self._tasks: set[asyncio.Task[None]] = set()  # those, and what was cut a moment ago
        self._unclaimed: set[socket.socket] = set()  # accepted; no task has begun with it
        self._warned_at_s = -_WARNING_INTERVAL_S
        self.handshakes_failed = 0

    async def open(self, host: str, port: int) -> int:
        """Listen; return the port, of which 0 leaves the choice to the system. Raises `OSError`
        naming the address."""
        loop = asyncio.get_running_loop()
        where = f"{host or '*'}:{port}"
        try:
            found = await loop.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, _, _, _, address = found[0]
            listening = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except OSError as error:
            text = f"the exchange cannot listen on {where}: {error.strerror or error}"
            raise OSError(error.errno, text) from error
        listening.setblocking(False)
        self._socket = listening
        self._watch(listening)
        bound: int = listening.getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening and cut what is half open."""
        listening, self._socket = self._socket, None
        if listening is not None:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _watch(self, listening: socket.socket) -> None:
        if self._socket is listening:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            accepted, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as error:  # no descriptors, no memory: others may give some back
            self._warn(error.strerror or type(error).__name__)
            loop.remove_reader(listening)
            loop.call_later(_EXHAUSTED_PAUSE_S, self._watch, listening)
            return
        accepted.setblocking(False)
        if self._is_full():
            accepted.close()
            self._warn("too many connections")
            return
        if len(self._half_open) >= self._limits.half_open_max:
            oldest = next(iter(self._half_open))
            del self._half_open[oldest]  # its end takes a moment; the next one must not wait for it
            oldest.cancel()
        task = loop.create_task(self._greet(accepted))
        self._half_open[task] = None
        self._tasks.add(task)
        self._unclaimed.add(accepted)
        task.add_done_callback(partial(self._greeted, accepted))

    async def _greet(self, accepted: socket.socket) -> None:
        self._unclaimed.discard(accepted)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            transport, protocol = await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol,
                accepted,
                ssl=self._context(),
                ssl_handshake_timeout=self._limits.handshake_timeout_ms / 1000,
                ssl_shutdown_timeout=_SHUTDOWN_S,
            )
        except OSError as error:
            self.handshakes_failed += 1
            self._warn(getattr(error, "reason", None) or type(error).__name__)
        else:
            self._connected(transport, protocol)

    def _greeted(self, accepted: socket.socket, task: asyncio.Task[None]) -> None:
        self._half_open.pop(task, None)
        self._tasks.discard(task)
        if accepted in self._unclaimed:  # cancelled before its first step
            self._unclaimed.discard(accepted)
            accepted.close()

    def _warn(self, reason: str) -> None:
        """At most once per interval: strangers must not decide how much is written."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._warned_at_s >= _WARNING_INTERVAL_S:
            self._warned_at_s = now_s
            failed = self.handshakes_failed
            log.warning("an exchange connection failed reason=%s failures=%d", reason, failed)
