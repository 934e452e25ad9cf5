"""When a study is complete: pure decisions over times in milliseconds since 1970.

DICOM does not say when a study ends. It is taken to be complete when nothing has come for a quiet
period; or at once, when its sender says so by asking for storage commitment, or an operator does;
or at the latest some time after its first instance. What comes later makes the next version.
"""

import secrets
from dataclasses import dataclass

from node.gateway.index import Gathering

FIRST_RETRY_MS = 2_000
LAST_RETRY_MS = 300_000


@dataclass(frozen=True, slots=True)
class Rules:
    """How patient we are; all in milliseconds."""

    quiet_ms: int = 60_000
    age_ms_max: int = 6 * 3_600_000
    delay_ms_max: int = 0

    def draw_delay(self) -> int:
        """Return a random delay, so that a block's time does not tell an examination's."""
        return secrets.randbelow(self.delay_ms_max + 1)


RULES = Rules()


def closes_at(study: Gathering, rules: Rules) -> int:
    """Return when the study is to be registered if nothing more comes."""
    quiet = study.last_ms if study.is_signalled else study.last_ms + rules.quiet_ms
    return min(quiet, study.first_ms + rules.age_ms_max) + study.delay_ms


def is_due(study: Gathering, rules: Rules, now_ms: int) -> bool:
    """Whether the study is to be registered now, or to be gone on with."""
    if now_ms < study.retry_ms <= now_ms + LAST_RETRY_MS:
        return False
    if study.taken:
        return True
    # A clock that was put back must not make a study wait for a time long past.
    was_put_back = study.last_ms - now_ms > rules.quiet_ms
    return was_put_back or now_ms >= closes_at(study, rules)


def retry_after(attempts: int) -> int:
    """Return how long to wait after the given number of failed attempts before this one."""
    return min(LAST_RETRY_MS, FIRST_RETRY_MS << min(attempts, 16))
