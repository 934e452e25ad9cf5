"""How much one peer, and all together, may take; how long anybody may keep others waiting."""

import asyncio
import threading
import time
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Times in milliseconds, sizes in bytes; the defaults suit a hospital's line."""

    rate_bytes_per_s: int = 1 << 40  # to all peers together; the default holds nobody back
    peer_rate_bytes_per_s: int = 1 << 40  # to one institution
    connections_max: int = 256
    half_open_max: int = 64  # accepted, TLS not yet done; the oldest makes way
    peer_connections_max: int = 16  # of one institution
    peer_requests_max: int = 16  # of one institution, at one time; each keeps a chunk in memory
    handshake_timeout_ms: int = 5_000
    idle_timeout_ms: int = 30_000  # without a request, or with one that never becomes whole
    stall_timeout_ms: int = 30_000  # nothing read by the peer although bytes wait for it
    permit_timeout_ms: int = 5_000  # for the ledger's answer to a request
    recheck_ms: int = 400  # running transfers are asked about anew; what bounds a withdrawal
    piece_bytes: int = 256 * 1024  # written at once, with a look at the permit between two
    threads: int = 4  # that read chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """As above, for one transfer."""

    parallel: int = 3  # chunks at once, each in memory and in a thread of its own
    rate_bytes_per_s: int = 1 << 40
    connect_timeout_ms: int = 10_000
    stall_timeout_ms: int = 30_000  # nothing came from a holder
    slow_bytes_per_s: int = 16 * 1024  # a holder that is slower than this over a chunk is left
    attempts_max: int = 8  # failures of a holder in a row, before it is left for this run
    busy_max: int = 30  # times in a row that it is busy, the same
    backoff_min_ms: int = 100
    backoff_max_ms: int = 5_000


class TokenBucket:
    """`rate` bytes a second, and `burst` at once after a silence. Holds no clock.

    What is larger than the burst is let through and paid for afterwards.
    """

    __slots__ = ("_burst", "_rate", "_then_s", "_tokens")

    def __init__(self, rate: float, burst: int, now_s: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens = float(burst)
        self._then_s = now_s

    def take(self, count: int, now_s: float) -> float:
        """Take `count`; return for how many seconds the caller must wait first, often 0."""
        self._tokens = min(self._burst, self._tokens + (now_s - self._then_s) * self._rate)
        self._then_s = now_s
        self._tokens -= count
        return max(0.0, -self._tokens / self._rate)

    def try_take(self, count: int, now_s: float) -> bool:
        """Take `count` if it is there now; return whether it was."""
        held = min(self._burst, self._tokens + (now_s - self._then_s) * self._rate)
        if held < count:
            return False
        self.take(count, now_s)
        return True


class Pacer:
    """Holds a stream of bytes back to a rate, fairly among those who share it."""

    def __init__(self, rate_bytes_per_s: int, piece_bytes: int = 256 * 1024) -> None:
        now_s = asyncio.get_running_loop().time()
        self._bucket = TokenBucket(rate_bytes_per_s, 2 * piece_bytes, now_s)

    async def take(self, count: int) -> None:
        """Return when `count` more bytes may flow."""
        pause_s = self._bucket.take(count, asyncio.get_running_loop().time())
        if pause_s > 0:
            await asyncio.sleep(pause_s)


class SharedPace:
    """As `Pacer`, for threads: tells how long to wait, and does not wait."""

    def __init__(self, rate_bytes_per_s: int, piece_bytes: int = 256 * 1024) -> None:
        self._bucket = TokenBucket(rate_bytes_per_s, 2 * piece_bytes, time.monotonic())
        self._lock = threading.Lock()

    def pause_s(self, count: int) -> float:
        """Return for how many seconds the caller must wait before more bytes flow than `count`."""
        with self._lock:
            return self._bucket.take(count, time.monotonic())
