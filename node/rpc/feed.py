"""Events of blocks for any number of subscribers, without a queue for any of them.

A subscriber is a cursor. What it asks for comes from the ring of recent blocks or else from the
store, so one that is slow or far behind costs nobody memory, and past and present join without gap
or repetition: both are the same walk over heights.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable

from consensus.errors import require
from node.rpc.service import BlockEvents

RECENT_BLOCKS = 256
RECENT_EVENTS = 50_000  # of all these blocks; a full one may have more, and is kept alone


class EventFeed:
    """`read(height)` fetches the events of an executed height from the store, off the loop."""

    def __init__(
        self,
        read: Callable[[int], Awaitable[BlockEvents]],
        height: int,
        recent_blocks: int = RECENT_BLOCKS,
        recent_events: int = RECENT_EVENTS,
    ) -> None:
        self._read = read
        self._height = height
        self._recent: OrderedDict[int, BlockEvents] = OrderedDict()
        self._recent_blocks, self._recent_events = recent_blocks, recent_events
        self._events = 0  # of the recent blocks
        self._advanced = asyncio.Event()

    @property
    def height(self) -> int:
        """The last published height."""
        return self._height

    def publish(self, block: BlockEvents) -> None:
        """Tell everybody of the next executed height; call it once the block is durable."""
        require(block.height == self._height + 1, "events are published height by height")
        self._height = block.height
        self._recent[block.height] = block
        self._events += len(block.events)
        while len(self._recent) > 1 and self._has_too_much:
            self._events -= len(self._recent.popitem(last=False)[1].events)
        self._advanced.set()
        self._advanced = asyncio.Event()

    @property
    def _has_too_much(self) -> bool:
        return len(self._recent) > self._recent_blocks or self._events > self._recent_events

    def skip_to(self, height: int) -> None:
        """Tell everybody that the chain reaches `height` now, after a sync published nothing."""
        if height > self._height:
            self._height = height
            self._advanced.set()
            self._advanced = asyncio.Event()

    async def subscribe(self, from_height: int) -> AsyncGenerator[BlockEvents, None]:
        """Yield the events of every height from `from_height` on, for ever.

        Raises what `read` raises, for instance when the height is not kept any more.
        """
        height = from_height
        while True:
            while height > self._height:
                await self._advanced.wait()
            block = self._recent.get(height)
            yield block if block is not None else await self._read(height)
            height += 1
