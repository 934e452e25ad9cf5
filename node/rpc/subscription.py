"""The client's side of a subscription: a cursor that survives reconnects, a bounded buffer."""

import asyncio
from collections import deque

from node.rpc.service import BlockEvents

BUFFERED_BLOCKS_MAX = 1_024


class Subscription:
    """What has come and is not read yet; `next_height` is where the node is asked to go on.

    A reader who falls behind by `BUFFERED_BLOCKS_MAX` blocks is unsubscribed and subscribed again
    once all of them are read: it holds up nothing else on the socket, and nothing grows.
    """

    def __init__(self, from_height: int | None, names: tuple[str, ...]) -> None:
        self.next_height = from_height  # None until the node has said where it begins
        self.names = names
        self.number: int | None = None  # the node's, None while not subscribed there
        self._error: Exception | None = None
        self._blocks: deque[BlockEvents] = deque()
        self._changed = asyncio.Event()

    @property
    def needs_subscribing(self) -> bool:
        """Whether all is read and the node sends nothing."""
        return self.number is None and not self._blocks and self._error is None

    @property
    def is_full(self) -> bool:
        """Whether the node should send no more for now."""
        return len(self._blocks) >= BUFFERED_BLOCKS_MAX

    def begin(self, number: int, from_height: int) -> None:
        """The node sends from now on, from `from_height`."""
        self.number = number
        self.next_height = from_height

    def put(self, block: BlockEvents) -> None:
        """Take a block from the node; without events it may only move the cursor."""
        self.next_height = block.height + 1
        if block.events or not self.names:
            self._blocks.append(block)
            self._changed.set()

    def lose(self) -> None:
        """The node sends no more; reading on subscribes again."""
        self.number = None
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """End it for good; the reader gets `error` after what came before."""
        self.number = None
        self._error = error
        self._changed.set()

    async def get(self) -> BlockEvents | None:
        """Return the next block, or None when it must be subscribed again; raises why it ended."""
        while not self._blocks:
            if self._error is not None:
                raise self._error
            if self.number is None:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._blocks.popleft()
