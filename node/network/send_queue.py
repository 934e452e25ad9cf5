"""What waits to be sent to one peer: three classes, bounded in bytes and count.

A slow peer costs its own queue and nothing else. When it is full the oldest frames of the least
urgent class go first; consensus repeats what is lost, gossip announces again, sync asks again.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

MIB = 1024 * 1024


class Priority(IntEnum):
    """Frames of a smaller number leave first."""

    CONSENSUS = 0
    PAYLOAD = 1  # bodies of proposals, block sync
    GOSSIP = 2


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Per class, and over all classes; a frame over its class's bytes is never queued."""

    bytes_max: tuple[int, int, int] = (24 * MIB, 24 * MIB, 8 * MIB)
    count_max: tuple[int, int, int] = (16_384, 1_024, 4_096)
    total_bytes_max: int = 40 * MIB


@dataclass(slots=True)
class _Lane:
    bytes_max: int
    count_max: int
    frames: deque[bytes] = field(default_factory=deque)
    size: int = 0

    def drop_oldest(self) -> bytes:
        frame = self.frames.popleft()
        self.size -= len(frame)
        return frame


class SendQueue:
    """Frames in the order in which they should leave."""

    def __init__(self, limits: QueueLimits) -> None:
        self._lanes = tuple(map(_Lane, limits.bytes_max, limits.count_max))
        self._total_max = limits.total_bytes_max
        self.size = 0  # bytes in all classes
        self.dropped = [0, 0, 0]  # frames, per class

    def __bool__(self) -> bool:
        return self.size > 0

    def push(self, frame: bytes, priority: Priority) -> bool:
        """Queue `frame`; drops older and less urgent ones to make room.

        Returns False when it is this frame itself that found no room.
        """
        lane, size = self._lanes[priority], len(frame)
        if size > min(lane.bytes_max, self._total_max):
            self.dropped[priority] += 1
            return False
        while lane.size + size > lane.bytes_max or len(lane.frames) >= lane.count_max:
            self._drop(priority)
        while self.size + size > self._total_max:
            lowest = self._lowest_used()
            if lowest < priority:  # only more urgent frames are left
                self.dropped[priority] += 1
                return False
            self._drop(lowest)
        lane.frames.append(frame)
        lane.size += size
        self.size += size
        return True

    def take(self, bytes_max: int) -> list[bytes]:
        """Remove and return the next frames: at least one if there is any, else up to a size."""
        taken: list[bytes] = []
        room = bytes_max
        for lane in self._lanes:
            while lane.frames and (not taken or len(lane.frames[0]) <= room):
                frame = lane.drop_oldest()
                room -= len(frame)
                taken.append(frame)
            if lane.frames:
                break  # a less urgent small frame must not overtake
        self.size -= sum(map(len, taken))
        return taken

    def clear(self) -> None:
        """Forget everything."""
        for lane in self._lanes:
            lane.frames.clear()
            lane.size = 0
        self.size = 0

    def _drop(self, priority: int) -> None:
        self.size -= len(self._lanes[priority].drop_oldest())
        self.dropped[priority] += 1

    def _lowest_used(self) -> int:
        return max(index for index, lane in enumerate(self._lanes) if lane.frames)
