"""The trail's files: segments of lines, named by the number of their first record.

    audit/0000000000000001.log   closed: read-only, complete, ready to be anchored
    audit/0000000000000913.log   the last one: open
    audit/….log.anchor.json      the evidence that `anchoring.py` keeps beside a segment
    audit/….log.leaves           32 bytes a record, to say later which one was changed
    audit/sent.json              how far the repository has it
    audit/lock                   flock: exclusive to append, shared to read
    audit/anchoring              flock: one process anchors at a time

Several processes append. A closed segment has lost its owner's right to write, by which an appender
that had it open sees that another one closed it.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from node.gateway.audit.errors import TrailUnusable

LEAVES = ".leaves"  # kept of what is anchored
_NAME = re.compile(r"(\d{16})\.log")
_TAIL_BYTES = 64 * 1024  # more than any line


class Segment(NamedTuple):
    """One file."""

    first: int  # the number of its first record
    path: Path

    @property
    def is_closed(self) -> bool:
        """Whether nothing will be appended any more."""
        return is_closed(self.path.stat().st_mode)


def is_closed(mode: int) -> bool:
    """Tell from a file's mode whether the segment is closed."""
    return not mode & 0o200


def segments(folder: Path) -> list[Segment]:
    """Return all segments in order."""
    found = ((_NAME.fullmatch(name), name) for name in os.listdir(folder))
    return sorted(Segment(int(match[1]), folder / name) for match, name in found if match)


def segment_path(folder: Path, first: int) -> Path:
    """Return where the segment that begins with record `first` is."""
    return folder / f"{first:016d}.log"


def last_line(descriptor: int, size: int) -> tuple[bytes, int]:
    """Return the last whole line, b"" if there is none, and the size of all whole lines."""
    start = max(0, size - _TAIL_BYTES)
    data = os.pread(descriptor, size - start, start)
    end = data.rfind(b"\n")
    if end < 0 and start:
        return b"\0", size  # no trail of ours: not to be cut
    if end < 0:
        return b"", 0
    begin = data.rfind(b"\n", 0, end) + 1
    return data[begin:end], start + end + 1


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the folder's lock: alone, or beside other readers."""
    descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def anchoring(folder: Path) -> Iterator[None]:
    """Be the only one who anchors: of two salts for one file one would be lost, and with it what
    its anchor proves. Raises `TrailUnusable` if another process is at it, `OSError`."""
    descriptor = os.open(folder / "anchoring", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrailUnusable("another process anchors the trail now; try again") from error
        yield
    finally:
        os.close(descriptor)
