"""Which answers are on their way to whom, so that a withdrawal can stop them."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from node.exchange.transfer.ports import Ground

_LINGER_NONE = struct.pack("ii", 1, 0)  # struct linger: on, for no time


@dataclass(slots=True, eq=False)
class Running:
    """One answer to a peer, from before its permit is asked for until its last byte."""

    ground: Ground
    institution: str
    key: bytes  # of the peer's certificate
    transport: asyncio.Transport
    is_permitted: bool = False  # before, nothing flows, and whoever asks waits for the ledger
    code: str | None = None  # why it was stopped

    def stop(self, code: str) -> None:
        """Cut the connection at once: what waits in its buffers is not sent any more."""
        if self.code is None:
            self.code = code
            reset(self.transport)


def reset(transport: asyncio.Transport) -> None:
    """Close with a RST. After an ordinary close the kernel goes on sending what it has, which may
    be megabytes and, on a slow line, many seconds."""
    if transport.is_closing():
        return
    found = transport.get_extra_info("socket")
    if found is not None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(found.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    transport.abort()


class RunningAnswers:
    """All of them; bounded by what the server lets in."""

    def __init__(self) -> None:
        self._all: set[Running] = set()

    def add(self, running: Running) -> None:
        self._all.add(running)

    def remove(self, running: Running) -> None:
        self._all.discard(running)

    def count_of(self, institution: str) -> int:
        """Return how many go to one institution."""
        return sum(running.institution == institution for running in self._all)

    def snapshot(self) -> tuple[Running, ...]:
        """Return all as of now."""
        return tuple(self._all)

    def stop(self, code: str, which: Iterable[Running]) -> list[Running]:
        """Stop these; return those that were not stopped before."""
        stopped = [running for running in which if running.code is None]
        for running in stopped:
            running.stop(code)
        return stopped
