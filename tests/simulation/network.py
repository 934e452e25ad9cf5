"""The network between places: delay, loss, duplicates, reordering, one-way cuts."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from zlib import crc32

from tests.simulation.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Weather:
    """How all links behave for a while."""

    delay_ms: tuple[float, float] = (1.0, 10.0)
    loss: float = 0.0
    duplicate: float = 0.0
    straggle: float = 0.0  # the share of messages that take twenty times as long
    in_order: bool = False  # as over one TCP connection
    stubborn: float = 0.0  # the share of (message, target) that never arrive, however often sent
    stubborn_kinds: bytes = b""  # as in consensus.messages.KIND


class Network:
    """Carries byte strings between places (a place is one running node; twins are two places)."""

    def __init__(self, scheduler: Scheduler, rng: Random, weather: Weather) -> None:
        self.weather = weather
        self.cuts: set[tuple[int, int]] = set()  # (from, to)
        self.slow: dict[int, float] = {}  # place -> factor for what it sends
        self.carried = 0
        self._scheduler = scheduler
        self._rng = rng
        self._last: dict[tuple[int, int], float] = {}

    def carry(
        self, source: int, target: int, deliver: Callable[..., None], *arguments: object
    ) -> None:
        """Call `deliver(*arguments)` at the target after a delay; perhaps never, perhaps twice."""
        if (source, target) in self.cuts:
            return
        weather, chance = self.weather, self._rng.random
        if weather.loss and chance() < weather.loss:
            return
        copies = 2 if weather.duplicate and chance() < weather.duplicate else 1
        for _ in range(copies):
            self.carried += 1
            self._scheduler.later(self._delay(source, target), deliver, *arguments)

    def is_lost_for_good(self, target: int, data: bytes) -> bool:
        """Tell whether this message never reaches the target: that splits a phase until the view
        ends, where other losses are soon made good by sending again. `data` begins with the head
        of an array and the kind."""
        weather = self.weather
        if not weather.stubborn or data[1:2] not in weather.stubborn_kinds:
            return False
        return crc32(data, target) < weather.stubborn * 2**32

    def _delay(self, source: int, target: int) -> float:
        weather = self.weather
        low, high = weather.delay_ms
        delay = low + (high - low) * self._rng.random()
        if weather.straggle and self._rng.random() < weather.straggle:
            delay *= 20
        delay *= self.slow.get(source, 1.0)
        if weather.in_order:
            now, link = self._scheduler.now, (source, target)
            delay = max(delay, self._last.get(link, 0.0) - now)
            self._last[link] = now + delay
        return delay
