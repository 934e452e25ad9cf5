"""Connections that we accept ourselves, so that each is counted before it costs anything.

A server of asyncio tells of a TLS connection once the handshake is done, and of one whose handshake
never ends not at all.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

_BACKLOG = 128
_EXHAUSTED_SECONDS = 0.2

# Whether a peer, by its IP address, may have a connection more; it is closed if not.
Admit = Callable[[str], bool]
# Called with a connection, which it owns from then on, and the peer's IP address.
Serve = Callable[[socket.socket, str], Coroutine[Any, Any, None]]


class Listening:
    """Accepts connections on all addresses of a host between `start` and `stop`, each with a task
    of its own."""

    def __init__(self, admit: Admit, serve: Serve) -> None:
        self._admit, self._serve = admit, serve
        self._tasks: set[asyncio.Task[None]] = set()
        self._unclaimed: set[socket.socket] = set()  # accepted; their task has not begun
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

    @property
    def served(self) -> int:
        """How many connections have a task now."""
        return len(self._tasks)

    @property
    def unclaimed(self) -> int:
        """How many of them have a task that has not begun."""
        return len(self._unclaimed)

    async def stop(self) -> None:
        """Accept no more, and end what is served."""
        tasks = [*self._accepting, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in (*self._sockets, *self._unclaimed):
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
            self._take(accepted, address[0])

    def _take(self, accepted: socket.socket, peer: str) -> None:
        if not self._admit(peer):
            accepted.close()
            return
        self._unclaimed.add(accepted)
        task = asyncio.get_running_loop().create_task(self._begin(accepted, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _begin(self, accepted: socket.socket, peer: str) -> None:
        self._unclaimed.discard(accepted)
        await self._serve(accepted, peer)
