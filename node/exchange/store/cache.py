"""A small bounded cache that several threads may use."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Keeps what was used last, up to a total weight; what alone is heavier is not kept."""

    def __init__(self, weight_max: int, weigh: Callable[[V], int]) -> None:
        self._weight_max, self._weigh = weight_max, weigh
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """Return what is kept under `key`, None if nothing is."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep `value`; what was not used for longest goes."""
        weight = self._weigh(value)
        if weight > self._weight_max:
            return
        with self._lock:
            if key in self._entries:
                self._weight -= self._weigh(self._entries.pop(key))
            self._entries[key] = value
            self._weight += weight
            while self._weight > self._weight_max:
                _, gone = self._entries.popitem(last=False)
                self._weight -= self._weigh(gone)

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._entries.clear()
            self._weight = 0
