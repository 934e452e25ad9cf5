"""The door for HTTP: how many connections there are, those in the midst of a handshake included."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from aiohttp import web

from node.config.model import WebLimits
from node.gateway.listening import Listening

log = logging.getLogger(__name__)


class Door:
    """Hands connections to an HTTP server between `start` and `stop`."""

    def __init__(
        self,
        server: web.Server,
        limits: WebLimits,
        tls: ssl.SSLContext | None,
        on_too_many: Callable[[str], None],
    ) -> None:
        """`on_too_many` is called with the IP address of each that is turned away."""
        self._server, self._limits, self._tls = server, limits, tls
        self._on_too_many = on_too_many
        self._listening = Listening(self._admit, self._open)
        self._opening: set[asyncio.Protocol] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port. Raises `OSError`."""
        await self._listening.start(host, port)
        return self._listening.port

    async def stop(self) -> None:
        """Let nobody in any more; the server ends those that it has."""
        await self._listening.stop()

    def _admit(self, peer: str) -> bool:
        # One that was opened just now is in both for a moment.
        opened = self._opening | set(self._server.connections)
        if self._listening.unclaimed + len(opened) < self._limits.connections_max:
            return True
        self._on_too_many(peer)
        return False

    async def _open(self, accepted: socket.socket, _: str) -> None:
        """Begin to serve a connection, after the handshake if there is TLS."""
        handshake_s = None if self._tls is None else self._limits.idle_timeout_ms / 1000
        handler = self._server()
        self._opening.add(handler)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: handler, accepted, ssl=self._tls, ssl_handshake_timeout=handshake_s
            )
        except OSError as error:
            log.debug("a connection was not opened reason=%s", type(error).__name__)
        finally:
            self._opening.discard(handler)
