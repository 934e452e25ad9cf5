"""What one peer may cost this node: token buckets per kind, and a score of misbehaviour.

Pure: the caller hands in the time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from node.network.frames import PAYLOAD_BYTES_MAX, Kind

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rate:
    """A budget per second; up to two seconds' worth may come at once."""

    frames: float
    bytes: float


# Far above what a busy, honest peer sends; low enough that a flood cannot fill memory or a core.
RATES: Mapping[Kind, Rate] = {
    Kind.HELLO: Rate(1, PAYLOAD_BYTES_MAX[Kind.HELLO]),
    Kind.GOODBYE: Rate(1, PAYLOAD_BYTES_MAX[Kind.GOODBYE]),
    Kind.PING: Rate(100, 1_600),
    Kind.PONG: Rate(100, 1_600),
    Kind.STATUS: Rate(500, 50_000),
    Kind.TRANSACTIONS: Rate(10_000, 32 * MIB),
    Kind.ANNOUNCE: Rate(2_000, 4 * MIB),
    Kind.FETCH_TRANSACTIONS: Rate(2_000, 4 * MIB),
    Kind.PROPOSAL: Rate(5_000, 32 * MIB),
    Kind.CONSENSUS: Rate(50_000, 64 * MIB),
    Kind.FETCH_PAYLOAD: Rate(1_000, 8 * MIB),
    Kind.PAYLOAD: Rate(1_000, 128 * MIB),
    Kind.FETCH_BLOCKS: Rate(1_000, 64_000),
    Kind.BLOCKS: Rate(1_000, 128 * MIB),
    Kind.SEALED: Rate(1_000, 128 * MIB),
}
BURST_S = 2.0


class _Bucket:
    """Tokens are counted down per frame and refilled only when they run out: two subtractions on
    the hot path. At worst a peer gets one burst more than a bucket filled all the time allows."""

    __slots__ = ("bytes", "filled_at", "frames", "rate")

    def __init__(self, rate: Rate, now_s: float) -> None:
        self.rate = rate
        self.frames = rate.frames * BURST_S
        self.bytes = rate.bytes * BURST_S
        self.filled_at = now_s

    def refill(self, now_s: float) -> float:
        """Add what has accrued; return the seconds until nothing is owed."""
        rate, passed = self.rate, now_s - self.filled_at
        self.filled_at = now_s
        self.frames = min(rate.frames * BURST_S, self.frames + rate.frames * passed)
        self.bytes = min(rate.bytes * BURST_S, self.bytes + rate.bytes * passed)
        return max(0.0, -self.frames / rate.frames, -self.bytes / rate.bytes)


class ReceiveBudget:
    """The token buckets of one connection."""

    def __init__(self, rates: Mapping[Kind, Rate], now_s: float) -> None:
        self._buckets = {kind: _Bucket(rate, now_s) for kind, rate in rates.items()}

    def spend(self, kind: Kind, size: int) -> bool:
        """Charge one frame; True when the kind's budget is used up and `owed_s` should be asked."""
        bucket = self._buckets[kind]
        bucket.frames -= 1
        bucket.bytes -= size
        return bucket.frames < 0 or bucket.bytes < 0

    def owed_s(self, now_s: float) -> float:
        """Return for how many seconds nothing more should be read; 0 when all is well."""
        return max(bucket.refill(now_s) for bucket in self._buckets.values())


@dataclass(slots=True)
class _Record:
    points: float
    at_s: float
    refused_until_s: float = 0.0


class Misconduct:
    """Points per peer, which fade; at the threshold the peer is refused for a while."""

    def __init__(self, threshold: float, fade_per_s: float, refuse_s: float) -> None:
        self._threshold = threshold
        self._fade_per_s = fade_per_s
        self._refuse_s = refuse_s
        self._records: dict[bytes, _Record] = {}  # bounded by the known peers

    def punish(self, key: bytes, points: float, now_s: float) -> bool:
        """Add points; True when they reach the threshold and the peer must go."""
        record = self._records.setdefault(key, _Record(0.0, now_s))
        faded = record.points - (now_s - record.at_s) * self._fade_per_s
        record.points, record.at_s = max(0.0, faded) + points, now_s
        if record.points < self._threshold:
            return False
        record.points, record.refused_until_s = 0.0, now_s + self._refuse_s
        return True

    def refused_for_s(self, key: bytes, now_s: float) -> float:
        """Return for how many more seconds the peer is refused; 0 when it is not."""
        record = self._records.get(key)
        return max(0.0, record.refused_until_s - now_s) if record else 0.0

    def forget(self, key: bytes) -> None:
        """Drop the record of a peer that is known no longer."""
        self._records.pop(key, None)
