"""Anchors the trail by itself, every `anchor_hours`; what fails is tried again and said.

When it was anchored last is told by the files, so that a restart changes nothing.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from node.config.model import GatewayConfig
from node.gateway.acting import PASSING, Acting
from node.gateway.audit.anchoring import anchor_trail
from node.gateway.audit.auditor import folder_of
from node.gateway.audit.errors import (
    AnchorRefused,
    EvidenceInvalid,
    PeriodInvalid,
    RecordInvalid,
    TrailBroken,
    TrailUnusable,
)
from node.gateway.audit.evidence import leaves_file
from node.gateway.audit.record import LINE_BYTES_MAX, decode
from node.gateway.audit.segments import segments
from node.keys import KeyFileError
from node.rpc.codec import NotAnAnswer
from node.rpc.errors import NotAuthorized

log = logging.getLogger(__name__)

LOOK_S = 60.0
AGAIN_FIRST_S, AGAIN_LAST_S = 60.0, 3_600.0
HOUR_MS = 3_600_000

_FAILURES: tuple[type[Exception], ...] = (
    *PASSING,
    AnchorRefused,
    EvidenceInvalid,
    KeyFileError,
    NotAnAnswer,
    NotAuthorized,
    PeriodInvalid,
    RecordInvalid,
    TrailBroken,
    TrailUnusable,
)


class Anchorer:
    """Looks whether an anchor is due, and makes it."""

    def __init__(
        self,
        config: GatewayConfig,
        acting: Acting,
        start_ms: int,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`start_ms` is when the very first period begins, as the genesis says."""
        self._config, self._acting, self._start_ms = config, acting, start_ms
        self._now_ms = now_ms
        self._done_ms = self._again_ms = 0
        self._failures = 0
        self.problem = ""  # why the last attempt failed, in a sentence

    async def run(self) -> None:
        """Anchor for ever when it is due."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Anchor if it is due and no failure is too fresh."""
        try:
            if self._now_ms() >= self._again_ms and await asyncio.to_thread(self._is_due):
                await self._anchor()
        except _FAILURES as error:
            if str(error) != self.problem:
                log.warning("the audit trail is not anchored reason=%s", error)
            self.problem = str(error) or type(error).__name__
            pause_s = min(AGAIN_LAST_S, AGAIN_FIRST_S * (1 << min(self._failures, 16)))
            self._failures += 1
            self._again_ms = self._now_ms() + int(pause_s * 1_000)

    async def _anchor(self) -> None:
        done = await anchor_trail(self._config, self._acting, self._start_ms)
        self._done_ms, self._failures, self.problem = self._now_ms(), 0, ""
        records = sum(each.records for each in done)
        log.info("audit trail anchored files=%d records=%d", len(done), records)

    def _is_due(self) -> bool:
        last_ms = max(self._done_ms, self._last_ms())
        return self._now_ms() >= last_ms + self._config.audit.anchor_hours * HOUR_MS

    def _last_ms(self) -> int:
        """Return when a file was anchored last, or when the first record was written."""
        found = segments(folder_of(self._config))
        leaves = [path for path in (leaves_file(each.path) for each in found) if path.exists()]
        if leaves:
            return max(path.stat().st_mtime_ns for path in leaves) // 1_000_000
        for each in found:
            with each.path.open("rb") as file:
                line = file.readline(LINE_BYTES_MAX)
            if line.endswith(b"\n"):
                return decode(line.removesuffix(b"\n")).time_ms
        return self._now_ms()
