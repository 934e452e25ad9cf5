"""Keeps one connection to one peer: dial, wait until it ends, back off, dial again."""

import asyncio
import logging
import os
import random
import ssl
from collections.abc import Callable
from typing import Protocol

from node.network.connection import Connection
from node.network.errors import Reason
from node.network.options import TransportOptions
from node.network.peers import address_text

log = logging.getLogger(__name__)

# The answer will be the same a moment later; an operator has to act first.
_LASTING = frozenset(
    {Reason.VERSION, Reason.CHAIN, Reason.UNKNOWN_PEER, Reason.PUNISHED, Reason.OWN_KEY}
)


class Backoff:
    """Delays that double from a minimum to a cap, each shortened by up to half at random, so that
    nodes which lost each other at one moment do not all come back at one moment."""

    def __init__(
        self, min_s: float, max_s: float, uniform: Callable[[float, float], float]
    ) -> None:
        self._min_s = min_s
        self._max_s = max_s
        self._uniform = uniform
        self._next_s = min_s

    def delay_s(self) -> float:
        """Return how long to wait before the next attempt."""
        current = self._next_s
        self._next_s = min(self._max_s, current * 2)
        return current * self._uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin again with the minimum."""
        self._next_s = self._min_s

    def exhaust(self) -> None:
        """Go to the cap at once."""
        self._next_s = self._max_s


class Dialing(Protocol):
    """What the dialer needs of the transport."""

    def connection(self, address: str, dialled: bytes | None) -> Connection:
        """Return a fresh protocol object."""
        ...

    def client_context(self) -> ssl.SSLContext:
        """Return the context that trusts exactly the peers known now."""
        ...

    def hold_off_s(self, key: bytes) -> float | None:
        """Return how long not to dial this peer; None: until `Dialer.wake`."""
        ...

    def patience_s(self, key: bytes) -> float:
        """Return how long to leave it to the peer to dial."""
        ...

    def note(self, key: bytes, sentence: str) -> None:
        """Remember why there is no connection, for the report to an operator."""
        ...


class Dialer:
    """The persistent connection to `key`; `run` in a task."""

    def __init__(
        self,
        dialing: Dialing,
        key: bytes,
        name: str,
        at: tuple[str, int],
        options: TransportOptions,
    ) -> None:
        self._dialing = dialing
        self._key = key
        self._name = name
        self._host, self._port = at
        self._options = options
        self._kicked = asyncio.Event()
        self._backoff = Backoff(
            options.backoff_min_ms / 1000, options.backoff_max_ms / 1000, random.uniform
        )
        self._last_error = ""

    def wake(self) -> None:
        """Look again whether to dial."""
        self._kicked.set()

    def kick(self) -> None:
        """Dial now, and begin the back-off anew."""
        self._backoff.reset()
        self._kicked.set()

    async def run(self) -> None:
        """Dial for ever."""
        while True:
            self._kicked.clear()
            hold_off_s = self._dialing.hold_off_s(self._key)
            if hold_off_s == 0:
                if not await self._is_ours_to_dial():
                    continue
                await self._attempt()
                hold_off_s = self._backoff.delay_s()
            await self._pause(hold_off_s)

    async def _is_ours_to_dial(self) -> bool:
        """Wait whether the peer dials; False when something happened meanwhile."""
        patience_s = self._dialing.patience_s(self._key)
        if not patience_s:
            return True
        await self._pause(patience_s)
        return not self._kicked.is_set() and self._dialing.hold_off_s(self._key) == 0

    async def _pause(self, delay_s: float | None) -> None:
        try:
            async with asyncio.timeout(delay_s):
                await self._kicked.wait()
        except TimeoutError:
            pass

    async def _attempt(self) -> None:
        """Connect and wait until the connection has ended."""
        loop, options = asyncio.get_running_loop(), self._options
        connection = self._dialing.connection(address_text(self._host, self._port), self._key)
        try:
            async with asyncio.timeout(options.dial_timeout_ms / 1000):
                await loop.create_connection(
                    lambda: connection,
                    self._host,
                    self._port,
                    ssl=self._dialing.client_context(),
                    server_hostname="",  # identity is the key; no name goes over the wire
                    ssl_handshake_timeout=options.dial_timeout_ms / 1000,
                    ssl_shutdown_timeout=options.goodbye_timeout_ms / 1000,
                )
            await connection.settled.wait()
            if connection.greeted:
                self._last_error = ""
            await connection.ended.wait()
        except (OSError, UnicodeError) as error:
            connection.abort(_sentence(error))
        finally:
            connection.abort("the dialer stopped")
        self._learn(connection)

    def _learn(self, connection: Connection) -> None:
        lived_s = asyncio.get_running_loop().time() - connection.opened_at_s
        if connection.opened_at_s and lived_s * 1000 >= self._options.stable_after_ms:
            self._backoff.reset()
        if connection.last_words is not None and connection.last_words.code in _LASTING:
            self._backoff.exhaust()
        if connection.error != self._last_error:
            self._last_error = connection.error
            self._dialing.note(self._key, connection.error)
            log.info("no connection peer=%s reason=%s", self._name, connection.error)


def _sentence(error: Exception) -> str:
    """A reason for people: the operating system's words, or OpenSSL's."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS refused: {error.reason or error}"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
