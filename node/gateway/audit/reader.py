"""Reads the trail as it grows, from any record on, in bounded pieces."""

import os
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from node.gateway.audit.errors import RecordInvalid, TrailUnusable
from node.gateway.audit.record import LINE_BYTES_MAX, Record, decode, link
from node.gateway.audit.segments import Segment, last_line, locked, segments

PIECE_BYTES = 64 << 10


class Line(NamedTuple):
    """A record and the hash of its line."""

    record: Record
    digest: str  # 64 hex digits


def first_here(folder: Path) -> int:
    """Return the first record that was not removed, 1 if there is none yet.

    Raises `TrailUnusable`.
    """
    try:
        return next((each.first for each in segments(folder)), 1)
    except OSError as error:
        raise _unreadable(error) from error


def last_here(folder: Path) -> int:
    """Return the last record, 0 if there is none yet. Raises `TrailUnusable`."""
    try:
        with locked(folder, shared=True):
            found = segments(folder)
            if not found:
                return 0
            with found[-1].path.open("rb") as file:
                line, _ = last_line(file.fileno(), os.fstat(file.fileno()).st_size)
        return decode(line).seq if line else found[-1].first - 1
    except OSError as error:
        raise _unreadable(error) from error
    except RecordInvalid as error:
        raise TrailUnusable(f"the audit trail ends with {error}") from error


class Reader:
    """Follows the records from `seq` on. Not for several threads at once."""

    def __init__(self, folder: Path, seq: int) -> None:
        self._folder, self._next = folder, max(1, seq)
        self._descriptor: int | None = None
        self._offset = 0

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; reading on opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self, count: int) -> list[Line]:
        """Return up to `count` records that are on the disk, none if there is no more now.

        Raises `TrailUnusable` when a record is missing or none: what follows it must not be sent
        as if nothing were.
        """
        try:
            return self._read(count)
        except OSError as error:
            raise _unreadable(error) from error

    def _read(self, count: int) -> list[Line]:
        found: list[Line] = []
        while len(found) < count:
            if self._descriptor is None and not self._open():
                break
            lines = self._whole_lines()
            if not lines and not self._is_over():
                break
            if not lines:
                self.close()
                if not self._open():
                    break
                continue
            for line in lines[: count - len(found)]:
                found.append(self._line(line))
        return found

    def _open(self) -> bool:
        """Open the segment of the next record at its place; False if there is none yet."""
        chosen = self._segment()
        if chosen is None:
            return False
        self._descriptor = os.open(chosen.path, os.O_RDONLY | os.O_CLOEXEC)
        self._offset = 0
        wanted, self._next = self._next, chosen.first
        while self._next < wanted and (lines := self._whole_lines()):
            for line in lines:
                if self._next == wanted:
                    break
                self._line(line)
        if self._next < wanted:
            self.close()
            self._next = wanted
            return False
        return True

    def _segment(self) -> Segment | None:
        found = segments(self._folder)
        before = [each for each in found if each.first <= self._next]
        if not before and found:
            raise TrailUnusable(f"record {self._next} is gone from the audit trail")
        return before[-1] if before else None

    def _is_over(self) -> bool:
        """Whether nothing more comes into the open file, since the next one has begun."""
        return any(each.first == self._next for each in segments(self._folder)) and bool(
            self._offset
        )

    def _whole_lines(self) -> list[bytes]:
        """Return the next lines that are on the disk; nobody appends meanwhile."""
        if self._descriptor is None:
            return []
        with locked(self._folder, shared=True):
            data = os.pread(self._descriptor, PIECE_BYTES, self._offset)
            if data:
                # A line that a power cut takes back must not be at the repository.
                os.fdatasync(self._descriptor)
        lines = data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]
        if not lines and len(data) > LINE_BYTES_MAX:
            raise TrailUnusable(f"record {self._next} of the audit trail is none")
        return lines

    def _line(self, line: bytes) -> Line:
        try:
            record = decode(line)
        except RecordInvalid as error:
            raise TrailUnusable(f"record {self._next} of the audit trail: {error}") from error
        if record.seq != self._next:
            raise TrailUnusable(f"record {record.seq} of the audit trail stands for {self._next}")
        self._next += 1
        self._offset += len(line) + 1
        return Line(record, link(line))


def _unreadable(error: OSError) -> TrailUnusable:
    return TrailUnusable(f"the audit trail cannot be read: {error.strerror}")
