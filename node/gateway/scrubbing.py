"""Reads the store through in the background, slowly, so that rot is found before it is needed.

    SlowScrub, piece by piece in a thread -> findings -> mending (where there is an exchange)

What is found counts as missing from then on: health, metrics and `store usage` show it.
"""

import asyncio
import logging
from collections.abc import Callable

from node.exchange.store.errors import StoreError
from node.exchange.store.rounds import Piece, SlowScrub
from node.exchange.store.scrub import Kind

log = logging.getLogger(__name__)

LOOK_S = 60.0
RATE_BYTES_PER_S = 16 << 20  # at most, when it makes up for time in which nobody ran
PAUSE_LEAST_S = 0.05  # after each piece
DAY_MS = 86_400_000


class Scrubbing:
    """Scrubs while `run` goes on."""

    def __init__(self, scrub: SlowScrub, on_found: Callable[[bytes], None]) -> None:
        """`on_found` gets, in the event loop, the id of a study that is not whole."""
        self._scrub, self._on_found = scrub, on_found
        self.progress = 0.0  # of the running round, from 0 to 1

    async def run(self) -> None:
        """Scrub for ever."""
        while True:
            try:
                pause_s = await self.turn()
            except (StoreError, OSError) as error:
                log.warning("the store cannot be scrubbed now reason=%s", error)
                pause_s = LOOK_S
            await asyncio.sleep(pause_s)

    async def turn(self) -> float:
        """Read a piece if one is due; return after how many seconds to look again.

        Raises `StoreError`, `OSError`.
        """
        piece, wait_ms, self.progress = await asyncio.to_thread(self._turn)
        if piece is None:
            return min(LOOK_S, wait_ms / 1_000)
        # What is still to be fetched is known to whoever fetches it.
        new = [each for each in piece.findings if each.kind is not Kind.MISSING]
        for finding in new:
            name, kind = finding.name, finding.kind.value
            log.warning("found in the store blob=%s kind=%s: %s", name, kind, finding.sentence)
        for study_id in {each.study_id for each in new if each.study_id is not None}:
            self._on_found(study_id)
        return max(PAUSE_LEAST_S, piece.bytes / RATE_BYTES_PER_S)

    def _turn(self) -> tuple[Piece | None, int, float]:
        wait_ms = self._scrub.wait_ms()
        piece = None if wait_ms else self._scrub.step()
        return piece, wait_ms, self._scrub.progress
