"""Which senders send which studies just now: one record tells of a study, not of each slice."""

import threading
from collections import OrderedDict

PAIRS_MAX = 4_096
PAUSE_MS = 600_000  # after so long a silence the same sender begins anew


class Arrivals:
    """Pairs of sender and study, the oldest forgotten first. Thread-safe."""

    def __init__(self, pairs_max: int = PAIRS_MAX, pause_ms: int = PAUSE_MS) -> None:
        self._pairs_max, self._pause_ms = pairs_max, pause_ms
        self._last_ms: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        self._lock = threading.Lock()

    def is_new(self, source: str, study: bytes, now_ms: int) -> bool:
        """Note that something came; return whether the sender begins with this study."""
        pair = source, study
        with self._lock:
            before_ms = self._last_ms.pop(pair, None)
            self._last_ms[pair] = now_ms
            if len(self._last_ms) > self._pairs_max:
                self._last_ms.popitem(last=False)
        return before_ms is None or now_ms - before_ms > self._pause_ms

    def forget(self, source: str, study: bytes) -> None:
        """Take the next arrival to be the first."""
        with self._lock:
            self._last_ms.pop((source, study), None)
