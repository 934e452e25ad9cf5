"""Connections that we accept ourselves, so that each is counted before it costs anything.

A server of asyncio tells of a TLS connection once the handshake is done, and of one whose handshake
never ends not at all.
"""

import asyncio
import logging
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)

_BACKLOG = 128
_EXHAUSTED_SECONDS = 0.2

# Called with a connection, which it owns from then on, and the peer's IP address.
Welcome = Callable[[socket.socket, str], None]


class Listening:
    """Accepts connections on all addresses of a host between `start` and `stop`."""

    def __init__(self, welcome: Welcome) -> None:
        self._welcome = welcome
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, address in sorted({(each[0], each[4]) for each in found}):
            listening = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
            listening.setblocking(False)
            self._sockets.append(listening)
        self._accepting = [loop.create_task(self._accept(each)) for each in self._sockets]

    @property
    def port(self) -> int:
        """The port that we listen on. Raises `ValueError` before `start`."""
        if not self._sockets:
            raise ValueError("nobody listens")
        number: int = self._sockets[0].getsockname()[1]
        return number

    async def stop(self) -> None:
        """Accept no more."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for each in self._sockets:
            each.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:  # no descriptors, no memory: others may give some back
                log.warning("a connection cannot be taken reason=%s", error.strerror)
                await asyncio.sleep(_EXHAUSTED_SECONDS)
                continue
            self._welcome(accepted, address[0])
