"""A watched folder: files that are put there are taken in and removed.

A file is taken when it has not changed between two looks, so that one which is still being copied
is left alone. Names that begin with a dot or end in .part or .tmp are left alone always.
"""

import asyncio
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from node.gateway.index import SpoolError
from node.gateway.outcomes import Accepted, Duplicate, Outcome
from node.gateway.spool import Spool

log = logging.getLogger(__name__)

SOURCE = "folder"
POLL_SECONDS = 2.0
FILES_MAX = 100_000  # in one look
_UNFINISHED = (".part", ".tmp", ".partial", ".crdownload")


class Look(NamedTuple):
    """What tells that a file changed."""

    size: int
    changed_ns: int
    inode: int


class Watch:
    """Looks at one folder and what is below it."""

    def __init__(self, folder: Path, spool: Spool) -> None:
        self._folder, self._spool = folder, spool
        self._seen: dict[Path, Look] = {}

    async def run(self, poll_seconds: float = POLL_SECONDS) -> None:
        """Take in files as they come, until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.step)
            except (OSError, SpoolError) as error:
                log.error("the watched folder cannot be read: %s", error)
            await asyncio.sleep(poll_seconds)

    def step(self) -> int:
        """Look once; take what has not changed since the last look; return how many were taken."""
        now = dict(_looks(self._folder))
        ready = settled(self._seen, now)
        self._seen = now
        return sum(self._take(path) for path in ready)

    def _take(self, path: Path) -> bool:
        try:
            # Without O_NOFOLLOW a link could point at any file that we may read.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as stream:
                outcome = self._spool.accept(SOURCE, stream)
        except OSError as error:
            log.warning("file not taken reason=%s", error.strerror)
            return False
        if not is_settled(outcome):
            return False
        path.unlink(missing_ok=True)
        self._seen.pop(path, None)
        return True


def settled(before: Mapping[Path, Look], now: Mapping[Path, Look]) -> list[Path]:
    """Return the files that did not change between two looks, in the order of their names."""
    return sorted(path for path, look in now.items() if before.get(path) == look)


def is_settled(outcome: Outcome) -> bool:
    """Whether the spool has the file, so that the original may go: never lose the only copy."""
    return isinstance(outcome, Accepted | Duplicate) or outcome.is_kept


def _looks(folder: Path) -> Iterator[tuple[Path, Look]]:
    count = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith(".") or name.lower().endswith(_UNFINISHED):
                continue
            path = Path(place, name)
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, Look(status.st_size, status.st_mtime_ns, status.st_ino)
                count += 1
                if count == FILES_MAX:
                    return
