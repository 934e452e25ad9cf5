"""The numbers that an operator may choose for a replica."""

from dataclasses import dataclass

from consensus.messages import HEIGHTS_MAX


@dataclass(frozen=True, slots=True)
class Options:
    """Limits and delays of one replica. `window` must be alike on all validators."""

    window: int = 32  # heights between the watermarks
    in_flight_max: int = 4  # heights that a primary has proposed and nobody committed
    view_timeout_ms: int = 2_000  # doubles per failed view
    view_timeout_max_ms: int = 60_000
    resend_ms: int = 500
    buffered_per_sender_max: int = 256  # messages of later views or heights, for each validator
    view_changes_per_period_max: int = 8  # verified for each validator in one resend period

    @property
    def horizon(self) -> int:
        """How far above what it executed a replica knows every height's validator set.

        What is executed at h may change the set from height h + `horizon` on, and no earlier. A
        replica keeps messages up to two windows above its low watermark.
        """
        return 2 * self.window

    def __post_init__(self) -> None:
        if not 1 <= self.window <= HEIGHTS_MAX:
            raise ValueError(f"window must be from 1 to {HEIGHTS_MAX}, not {self.window}")
        if not 1 <= self.in_flight_max <= self.window:
            raise ValueError(f"in_flight_max must be from 1 to window, not {self.in_flight_max}")
        if not 0 < self.view_timeout_ms <= self.view_timeout_max_ms:
            raise ValueError("view_timeout_ms must be above 0 and at most view_timeout_max_ms")
        for name in ("resend_ms", "buffered_per_sender_max", "view_changes_per_period_max"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0")
