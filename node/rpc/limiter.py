"""How often one connection may call."""


class TokenBucket:
    """`rate` calls a second, and as many at once after a second of silence. Holds no clock."""

    def __init__(self, rate: int, now_s: float) -> None:
        self._rate = rate
        self._tokens = float(rate)
        self._then_s = now_s

    def take(self, count: int, now_s: float) -> float:
        """Take `count` tokens; return for how many seconds the caller must wait, often 0."""
        self._tokens = min(self._rate, self._tokens + (now_s - self._then_s) * self._rate)
        self._then_s = now_s
        self._tokens -= count
        return max(0.0, -self._tokens / self._rate)
