"""What goes out on each ground, summed up: one record tells of thousands of chunks.

The first chunk on a ground waits until its beginning is recorded. The sum is reported when
nothing went out on it for a while.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from node.exchange.transfer import refusals
from node.exchange.transfer.ports import (
    Admit,
    Ground,
    Happening,
    Report,
    TransferEvent,
    event_of,
)

REQUESTS_MAX = 1_024  # grounds; beyond it, sums are reported early
IDLE_S = 30.0


@dataclass(slots=True)
class _Sum:
    beginning: "asyncio.Future[bool]"
    active_s: float
    chunks: int = 0
    bytes: int = 0


class GivenOut:
    """Sums per ground. Lives in the event loop."""

    def __init__(self, admit: Admit | None, report: Report) -> None:
        self._admit, self._report = admit, report
        self._sums: OrderedDict[tuple[str, Ground], _Sum] = OrderedDict()

    async def offer(self, institution: str, request_id: bytes) -> None:
        """Have it recorded that a key goes out. Raises `Refusal` if that is not possible."""
        event = TransferEvent(Happening.OFFERING, institution, request_id)
        if self._admit is not None and not await self._admit(event):
            raise refusals.not_recorded()

    async def begin(self, institution: str, ground: Ground) -> None:
        """Have it recorded, once, that chunks go out. Raises `Refusal` if that is not possible."""
        key, now_s = (institution, ground), asyncio.get_running_loop().time()
        found = self._sums.get(key)
        if found is None:
            event = event_of(Happening.SENDING, institution, ground)
            found = self._sums[key] = _Sum(asyncio.ensure_future(self._admitted(event)), now_s)
            self._bound()
        # Several chunks may be asked for at once: whoever gives up does not end the others' wait.
        if not await asyncio.shield(found.beginning):
            self._sums.pop(key, None)
            raise refusals.not_recorded()

    def add(self, institution: str, ground: Ground, size: int) -> None:
        """Count a chunk that went out."""
        found = self._sums.get((institution, ground))
        if found is not None:
            found.chunks, found.bytes = found.chunks + 1, found.bytes + size
            found.active_s = asyncio.get_running_loop().time()
            self._sums.move_to_end((institution, ground))

    def flush(self, idle_s: float = IDLE_S) -> None:
        """Report the sums of grounds on which nothing went out for so long."""
        limit_s = asyncio.get_running_loop().time() - idle_s
        for key in [key for key, each in self._sums.items() if each.active_s <= limit_s]:
            self._end(key)

    async def _admitted(self, event: TransferEvent) -> bool:
        return self._admit is None or await self._admit(event)

    def _bound(self) -> None:
        while len(self._sums) > REQUESTS_MAX:
            self._end(next(iter(self._sums)))

    def _end(self, key: tuple[str, Ground]) -> None:
        found = self._sums.pop(key)
        if found.chunks:
            self._report(event_of(Happening.SENT, *key, chunks=found.chunks, size=found.bytes))
