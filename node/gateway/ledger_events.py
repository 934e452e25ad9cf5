"""The ledger's events as the gateway's parts hear them: one subscription, many listeners."""

import asyncio
import logging
from collections.abc import Callable
from typing import TypeAlias

from node.gateway.acting import PASSING
from node.ledger.queries.blocks import EventView
from node.rpc.client import Client

log = logging.getLogger(__name__)

Heard: TypeAlias = Callable[[EventView], None]

_PAUSE_S = 1.0


class LedgerEvents:
    """Tells listeners what has happened, and when they must look for themselves.

    Listeners are called in the event loop and must not wait. Whatever happens after `on_start`
    listeners were called is told: who then reads the state, and heeds what is told, misses nothing.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._heard: dict[str, list[Heard]] = {}
        self._starts: list[Callable[[], None]] = []
        self.height = 0  # up to which all is told

    def on(self, heard: Heard, *names: str) -> None:
        """Call `heard` for events of these names. Before `run` only."""
        for name in names:
            self._heard.setdefault(name, []).append(heard)

    def on_start(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever events begin, at first and after a gap. Before `run` only."""
        self._starts.append(listener)

    async def run(self) -> None:
        """Tell for ever."""
        while True:
            try:
                await self._tell()
            except PASSING as error:
                log.warning("events of the ledger begin anew reason=%s", error)
            await asyncio.sleep(_PAUSE_S)

    async def _tell(self) -> None:
        head = await self._client.head()
        self.height = head.height
        for listener in self._starts:
            listener()
        async for block in self._client.events(head.height + 1, self._heard):
            for view in block.events:
                for heard in self._heard.get(view.event.name, ()):
                    heard(view)
            self.height = block.height


def id_in(view: EventView, field: int = 0) -> bytes:
    """Return an id among an event's fields, which JSON carries as hexadecimal text; empty if that
    field is none."""
    value = view.event.fields[field] if field < len(view.event.fields) else b""
    if isinstance(value, bytes):
        return value
    try:
        return bytes.fromhex(str(value))
    except ValueError:
        return b""


def word_in(view: EventView, field: int) -> str:
    """Return a word among an event's fields, "" if there is none."""
    return str(view.event.fields[field]) if field < len(view.event.fields) else ""
