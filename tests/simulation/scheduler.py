"""Virtual time: a heap of actions. Nothing here or above it ever reads a real clock."""

import heapq
from collections.abc import Callable


class Scheduler:
    """Runs actions in order of their time; ties in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0  # milliseconds
        self.steps = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = 0

    def later(self, delay_ms: float, action: Callable[..., None], *arguments: object) -> None:
        """Run `action(*arguments)` once, `delay_ms` from now."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_ms, self._count, action, arguments))

    def run(self, until: float, stop: Callable[[], bool] | None = None) -> bool:
        """Advance to the time `until`; return True once `stop` says so (asked now and then)."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, action, arguments = heapq.heappop(heap)
            self.steps += 1
            action(*arguments)
            if stop is not None and self.steps % 16 == 0 and stop():
                return True
        self.now = until
        return stop is not None and stop()
