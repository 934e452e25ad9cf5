"""A watched folder: files that are put there are taken in and removed.

A file is taken when it has not changed between two looks, so that one which is still being copied
is left alone. Names that begin with a dot or end in .part or .tmp are left alone always.

A folder with a DICOMDIR is a medium: it is taken when all of it has settled. What the DICOMDIR
names and is not there is kept as an event; then the DICOMDIR gets another name, and of the rest
only DICOM files are taken: viewers and their help stay where they are.
"""

import asyncio
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from node.gateway.index import SpoolError
from node.gateway.outcomes import Accepted, Duplicate, Outcome, Refused
from node.gateway.parsing import NOT_AGAIN
from node.gateway.spool import Spool
from node.imaging.errors import NOT_NOW, UnreadableInstance
from node.imaging.media import Media, is_named_so, read_media
from node.imaging.source import PREAMBLE_BYTES

log = logging.getLogger(__name__)

SOURCE = "folder"
POLL_SECONDS = 2.0
FILES_MAX = 100_000  # in one look
TAKEN = "DICOMDIR.taken"  # the name of a DICOMDIR that was looked at
_UNFINISHED = (".part", ".tmp", ".partial", ".crdownload")


class Look(NamedTuple):
    """What tells that a file changed."""

    size: int
    changed_ns: int
    inode: int


class Watch:
    """Looks at one folder and what is below it."""

    def __init__(
        self, folder: Path, spool: Spool, read_media: Callable[[Path], Media] = read_media
    ) -> None:
        self._folder, self._spool, self._read_media = folder, spool, read_media
        self._seen: dict[Path, Look] = {}
        self._unwritable: set[Path] = set()
        # What cannot be removed, and what ended a process and quarantine has no room for.
        self._left: dict[Path, Look] = {}

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
        ready = [path for path in settled(self._seen, now) if self._left.get(path) != now[path]]
        self._seen = now
        self._left = {path: look for path, look in self._left.items() if now.get(path) == look}
        held = self._held(now, set(ready))
        free = (path for path in ready if not any(path.is_relative_to(each) for each in held))
        return sum(self._take(path) for path in free if path.name != TAKEN)

    def _held(self, now: Mapping[Path, Look], ready: set[Path]) -> set[Path]:
        """Return the media of which nothing is taken yet; the others are opened."""
        held = set()
        for directory in sorted(path for path in now if is_named_so(path)):
            below = (path for path in now if path.is_relative_to(directory.parent))
            if not ready.issuperset(below) or not self._open_medium(directory):
                held.add(directory.parent)
        return held

    def _open_medium(self, directory: Path) -> bool:
        """Keep what is missing of a medium as an event; False if its DICOMDIR cannot be renamed.

        First the event, then the name, then the files: a crash between leaves files to be taken.
        """
        try:
            media = self._read_media(directory)
        except UnreadableInstance as refused:
            # Like any other file it is refused and kept aside, unless it is to be read again.
            return refused.code != NOT_NOW
        if directory in self._unwritable:
            return False
        try:
            named = len(media.files) + len(media.missing) + len(media.outside)
            code = f"{named} named, {len(media.missing)} missing"
            if media.outside:
                code += f", {len(media.outside)} outside"
            self._spool.note("medium", SOURCE, code)
            directory.rename(directory.with_name(TAKEN))
        except OSError as error:
            # A mounted disc: its files cannot be removed, and would come again with every look.
            self._unwritable.add(directory)
            log.error("medium not taken, import it by command reason=%s", error.strerror)
            return False
        log.info("medium opened files=%s", code)
        return True

    def _is_left(self, path: Path) -> bool:
        """Whether the file lies on a medium and is no DICOM file."""
        folders = [path.parent, *path.parent.parents]
        folders = folders[: folders.index(self._folder) + 1]
        if not any((folder / TAKEN).exists() for folder in folders):
            return False
        with path.open("rb") as file:
            return file.read(PREAMBLE_BYTES)[128:] != b"DICM"

    def _take(self, path: Path) -> bool:
        try:
            if self._is_left(path):
                return False
            # Without O_NOFOLLOW a link could point at any file that we may read.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as stream:
                outcome = self._spool.accept(SOURCE, stream)
        except FileNotFoundError:
            return False  # it was taken away, or renamed
        except OSError as error:
            log.warning("file not taken reason=%s", error.strerror)
            return False
        if not is_settled(outcome):
            if isinstance(outcome, Refused) and outcome.code in NOT_AGAIN:
                self._left[path] = self._seen[path]
            return False
        self._remove(path)
        return True

    def _remove(self, path: Path) -> None:
        """Remove a file that the spool has; one that must stay is left until it changes."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            # As in a folder where everybody removes only what is theirs.
            log.error("file taken but cannot be removed, and is left reason=%s", error.strerror)
            self._left[path] = self._seen[path]
        else:
            self._seen.pop(path, None)


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
            except OSError:
                continue  # it was taken away, or lies where we may not look
            if stat.S_ISREG(status.st_mode):
                yield path, Look(status.st_size, status.st_mtime_ns, status.st_ino)
                count += 1
                if count == FILES_MAX:
                    return
