"""The two clocks of a node: one that people read, one that never jumps."""

import time


def wall_ms() -> int:
    """Return the wall clock in milliseconds since 1970; it may jump."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """Return milliseconds of a clock that only goes forward; its zero means nothing."""
    return time.monotonic_ns() // 1_000_000
