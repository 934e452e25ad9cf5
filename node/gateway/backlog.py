"""Work that has to be done some time: tried until it is, later after each failure."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from node.gateway.acting import PASSING

log = logging.getLogger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 0.5, 60.0
ITEMS_MAX = 100_000  # beyond, what is added is dropped; it is found again at the next start

T = TypeVar("T", bound=Hashable)


@dataclass(slots=True)
class _Turn:
    due_s: float
    attempts: int


class Backlog(Generic[T]):
    """Items to work on, each once at a time. What is added again while it is worked on comes up
    again afterwards, so nothing that changed meanwhile is overlooked."""

    def __init__(
        self, name: str, work: Callable[[T], Awaitable[bool]], *, at_once: int = 4
    ) -> None:
        """`work` returns whether the item is done with; False, or a passing error, is a later try.
        Any other error ends `run`."""
        self._name, self._work, self._at_once = name, work, at_once
        self._waiting: dict[T, _Turn] = {}
        self._running: set[T] = set()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def add(self, item: T, delay_s: float = 0.0) -> None:
        """Take an item up now, or after a delay; one that waits already is taken up no later."""
        due_s = asyncio.get_running_loop().time() + delay_s
        known = self._waiting.get(item)
        if known is not None:
            known.due_s = min(known.due_s, due_s)
        elif len(self) < ITEMS_MAX:
            self._waiting[item] = _Turn(due_s, 0)
        else:
            log.error("too much waits, an item is dropped for now work=%s", self._name)
        self._changed.set()

    def hurry(self) -> None:
        """Take up everything now: what stood in the way may have gone."""
        for turn in self._waiting.values():
            turn.due_s = 0.0
        self._changed.set()

    async def run(self) -> None:
        """Work for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                for item, turn in self._due():
                    del self._waiting[item]
                    self._running.add(item)
                    group.create_task(self._one(item, turn.attempts))
                await self._rest()

    def _due(self) -> list[tuple[T, _Turn]]:
        now_s = asyncio.get_running_loop().time()
        free = self._at_once - len(self._running)
        due = [
            (item, turn)
            for item, turn in self._waiting.items()
            if turn.due_s <= now_s and item not in self._running
        ]
        return due[: max(0, free)]

    async def _rest(self) -> None:
        """Wait until something is added, ends, or becomes due."""
        soonest = min(
            (turn.due_s for item, turn in self._waiting.items() if item not in self._running),
            default=None,
        )
        is_full = len(self._running) >= self._at_once
        loop = asyncio.get_running_loop()
        pause_s = None if soonest is None or is_full else max(0.0, soonest - loop.time())
        try:
            async with asyncio.timeout(pause_s):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _one(self, item: T, attempts: int) -> None:
        is_done = False
        try:
            is_done = await self._work(item)
        except PASSING as error:
            log.warning("work waits work=%s attempts=%d reason=%s", self._name, attempts + 1, error)
        finally:
            self._running.discard(item)
            self._changed.set()
        if not is_done and item not in self._waiting:
            due_s = asyncio.get_running_loop().time() + retry_after_s(attempts)
            self._waiting[item] = _Turn(due_s, attempts + 1)


def retry_after_s(attempts: int) -> float:
    """Return how long to wait after so many failed attempts before this one."""
    return min(LAST_RETRY_S, FIRST_RETRY_S * (1 << min(attempts, 16)))
