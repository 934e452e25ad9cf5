"""The trail: acts become records, in sequence, linked by hash, durable on return.

Several threads and processes append to one folder (`segments.py`). Who comes in while another
writes waits, and then writes for all that wait: one sync for many. What a crash left of a line that
nobody was told of goes at the next append; anything else that is wrong is said and never mended.

The disk is bounded. Beyond `bytes_max` the oldest closed segments go, but only what the repository
has; each time a record says which. If nothing may go the trail is full: its last record says so,
`append` raises, and what `tell` is told is counted and logged until there is room, when a record
says how many were lost.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from node.exchange.store.local import sync_folder
from node.gateway.audit import sent
from node.gateway.audit.acts import Act, Outcome
from node.gateway.audit.errors import RecordInvalid, TrailFull, TrailUnusable
from node.gateway.audit.record import FIRST_BEFORE, Record, decode, encode, link
from node.gateway.audit.segments import (
    LEAVES,
    Segment,
    is_closed,
    last_line,
    locked,
    segment_path,
    segments,
)

log = logging.getLogger(__name__)

BYTES_MAX = 10 << 30
SEGMENT_BYTES_MAX = 8 << 20
RESERVE_BYTES = 64 << 10  # for the record that says that the trail is full
TRAIL_ID_BYTES = 16
_COMPLAIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class TrailLimits:
    """What the trail may hold."""

    bytes_max: int = BYTES_MAX
    segment_bytes_max: int = SEGMENT_BYTES_MAX
    wants_study_uids: bool = False  # Study Instance UIDs are kept, and sent


@dataclass(slots=True)
class _Ticket:
    act: Act
    seq: int = 0
    error: TrailUnusable | None = None
    is_done: bool = False


@dataclass(slots=True)
class _End:
    """Where the trail ends, as this process last saw it."""

    descriptor: int
    path: Path
    size: int  # bytes of the open segment
    seq: int = 0
    before: str = FIRST_BEFORE
    closed_bytes: int = 0
    last: Record | None = field(default=None, repr=False)


class Trail:
    """An open trail. Safe to use from several threads, and from several processes."""

    def __init__(
        self,
        folder: Path,
        limits: TrailLimits = TrailLimits(),
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Open the trail in `folder`, begun if there is none. Raises `TrailUnusable`."""
        self.folder, self.limits, self._now_ms = folder, limits, now_ms
        self._queue_lock, self._writing = threading.Lock(), threading.Lock()
        self._queue: list[_Ticket] = []
        self._end: _End | None = None
        self._lost = 0
        self._complained_s = -_COMPLAIN_SECONDS
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._writing, locked(folder):
                self._catch_up()
        except OSError as error:
            raise _unusable(error) from error

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        with self._writing:
            self._let_go()

    @property
    def lost(self) -> int:
        """How many acts this process could not record and has not yet said so in the trail."""
        return self._lost

    def append(self, act: Act) -> int:
        """Record an act; return its number once it is on the disk. Waits for it.

        Raises `TrailUnusable`; then the act is not recorded.
        """
        ticket = _Ticket(act)
        with self._queue_lock:
            self._queue.append(ticket)
        with self._writing:
            if not ticket.is_done:
                with self._queue_lock:
                    tickets, self._queue = self._queue, []
                self._write_all(tickets)
        if ticket.error is not None:
            raise ticket.error
        return ticket.seq

    def tell(self, act: Act) -> bool:
        """Record what has happened anyway; if that fails, count it and log so, loudly."""
        try:
            self.append(act)
        except TrailUnusable as error:
            with self._queue_lock:
                self._lost += 1
            self._complain(act.kind, error)
            return False
        return True

    def close_segment(self) -> Path | None:
        """End the open segment, so that it can be anchored; return it, None if it is empty."""
        with self._writing, locked(self.folder):
            end = self._catch_up()
            if not end.size:
                return None
            path = end.path
            self._begin_segment(end)
            return path

    def _complain(self, kind: str, error: TrailUnusable) -> None:
        now_s = time.monotonic()
        if now_s - self._complained_s >= _COMPLAIN_SECONDS:
            self._complained_s = now_s
            log.error("acts are not audited kind=%s lost=%d: %s", kind, self._lost, error)

    def _write_all(self, tickets: Sequence[_Ticket]) -> None:
        """Write for all that wait; errors go to those whom they concern."""
        try:
            with locked(self.folder):
                end = self._catch_up()
                lost = self._resume(end)
                for ticket in tickets:
                    ticket.seq = self._put(end, ticket.act)
                os.fdatasync(end.descriptor)
            with self._queue_lock:
                self._lost -= lost
        except (OSError, TrailUnusable) as error:
            self._give_up(tickets, error)
        for ticket in tickets:
            ticket.is_done = True

    def _resume(self, end: _End) -> int:
        """Say that acts were lost, if that is so; return how many of this process."""
        with self._queue_lock:
            lost = self._lost
        if lost or (end.last is not None and end.last.kind == "trail_full"):
            # Another process may have lost some, too, and one that ended cannot say how many.
            code = f"at least {lost} were not recorded"
            self._put(end, Act("trail_resumed", Outcome.MAJOR, code=code))
        return lost

    def _give_up(self, tickets: Sequence[_Ticket], error: Exception) -> None:
        """Nobody is told of a record that may not be on the disk; those that are stay."""
        told = error if isinstance(error, TrailUnusable) else _unusable(error)
        for ticket in tickets:
            ticket.error = told
        self._let_go()

    def _put(self, end: _End, act: Act) -> int:
        """Write one line at the end, not synced yet."""
        line = encode(end.seq + 1, end.before, self._now_ms(), act)
        if end.size and end.size + len(line) >= self.limits.segment_bytes_max:
            self._begin_segment(end)
        if end.closed_bytes + end.size + len(line) >= self.limits.bytes_max - RESERVE_BYTES:
            self._make_room(end)
            line = encode(end.seq + 1, end.before, self._now_ms(), act)
        return self._write(end, line)

    def _write(self, end: _End, line: bytes) -> int:
        data = line + b"\n"
        try:
            written = os.pwrite(end.descriptor, data, end.size)
            if written != len(data):
                raise OSError("the disk took part of a record")
        except OSError:
            os.ftruncate(end.descriptor, end.size)
            raise
        end.size += len(data)
        end.seq, end.before, end.last = end.seq + 1, link(line), decode(line)
        return end.seq

    def _make_room(self, end: _End) -> None:
        """Remove the oldest segments that the repository has. Raises `TrailFull`."""
        has = sent.load(self.folder).seq
        found = segments(self.folder)
        removed: list[tuple[Segment, Segment]] = []
        wanted = self.limits.bytes_max - 2 * RESERVE_BYTES
        for old, following in pairwise(found):
            if end.closed_bytes + end.size < wanted or following.first > has + 1:
                break
            removed.append((old, following))
            end.closed_bytes -= old.path.stat().st_size
        if not removed:
            self._say_full(end)
            raise TrailFull(
                f"the audit trail in {self.folder} is full: connect the repository, raise "
                "bytes_max, or move closed segments elsewhere"
            )
        first, past = removed[0][0].first, removed[-1][1].first
        with removed[-1][1].path.open("rb") as file:
            before = decode(file.readline().rstrip(b"\n")).before
        # First the record, then the files: what is gone without a record is a gap.
        act = Act("trail_trimmed", code=f"{first} to {past - 1} {before}")
        self._write(end, encode(end.seq + 1, end.before, self._now_ms(), act))
        os.fdatasync(end.descriptor)
        for old, _ in removed:
            old.path.unlink()
            old.path.with_name(old.path.name + LEAVES).unlink(missing_ok=True)
        sync_folder(self.folder)
        log.warning("old audit records were removed records=%s", f"{first} to {past - 1}")

    def _say_full(self, end: _End) -> None:
        if end.last is not None and end.last.kind == "trail_full":
            return
        act = Act("trail_full", Outcome.MAJOR)
        self._write(end, encode(end.seq + 1, end.before, self._now_ms(), act))
        os.fdatasync(end.descriptor)

    def _catch_up(self) -> _End:
        """Return where the trail ends now; call it with the lock held."""
        end = self._end
        if end is not None:
            status = os.fstat(end.descriptor)
            if status.st_nlink and not is_closed(status.st_mode):
                if status.st_size != end.size:  # by another process, or what a crash left
                    self._read_end(end)
                return end
            self._let_go()
        end = self._end = self._open()
        return end

    def _open(self) -> _End:
        found = segments(self.folder)
        closed = sum(each.path.stat().st_size for each in found[:-1])
        if not found:
            path = segment_path(self.folder, 1)
            return self._begin(_End(self._create(path), path, 0))
        last = found[-1]
        if last.is_closed:  # a crash came between closing it and beginning the next
            end = _End(-1, last.path, 0, closed_bytes=closed + last.path.stat().st_size)
            self._follow(end, last.path)
            end.path = segment_path(self.folder, end.seq + 1)
            end.descriptor = self._create(end.path)
            return end
        descriptor = os.open(last.path, os.O_RDWR | os.O_CLOEXEC)
        end = _End(descriptor, last.path, 0, closed_bytes=closed)
        try:
            self._read_end(end)
            if end.size == 0 and len(found) > 1:
                self._follow(end, found[-2].path)
            elif end.size == 0 and last.first != 1:
                raise TrailUnusable(f"{last.path} is empty and what was before it is gone")
            elif end.size == 0:  # a crash before the first record
                self._begin(end)
        except BaseException:
            os.close(descriptor)
            raise
        return end

    def _begin(self, end: _End) -> _End:
        line = encode(1, FIRST_BEFORE, self._now_ms(), Act("trail_began"), trail=_new_id())
        self._write(end, line)
        os.fdatasync(end.descriptor)
        return end

    def _create(self, path: Path) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        sync_folder(self.folder)
        return descriptor

    def _follow(self, end: _End, path: Path) -> None:
        """Go on after the last record of a closed segment."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            line, _ = last_line(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
        self._take(end, line, path)

    def _read_end(self, end: _End) -> None:
        """Find the last whole line; what comes after it was promised to nobody."""
        size = os.fstat(end.descriptor).st_size
        line, whole = last_line(end.descriptor, size)
        if whole != size:
            log.warning("part of an audit record was dropped: it was cut off by a crash")
            os.ftruncate(end.descriptor, whole)
            os.fdatasync(end.descriptor)
        end.size = whole
        if line:
            self._take(end, line, end.path)

    def _take(self, end: _End, line: bytes, path: Path) -> None:
        try:
            record = decode(line)
        except RecordInvalid as error:
            raise TrailUnusable(
                f"{path} ends with {error}: keep it, `radledger gateway audit verify` says more; "
                "move the folder away to begin another trail"
            ) from error
        end.seq, end.before, end.last = record.seq, link(line), record

    def _begin_segment(self, end: _End) -> None:
        """Close the open segment and go on in the next one."""
        os.fsync(end.descriptor)
        os.fchmod(end.descriptor, 0o400)
        path = segment_path(self.folder, end.seq + 1)
        descriptor = self._create(path)
        os.close(end.descriptor)
        end.descriptor, end.path = descriptor, path
        end.closed_bytes, end.size = end.closed_bytes + end.size, 0

    def _let_go(self) -> None:
        if self._end is not None:
            os.close(self._end.descriptor)
            self._end = None


def _new_id() -> str:
    return secrets.token_hex(TRAIL_ID_BYTES)


def _unusable(error: Exception) -> TrailUnusable:
    reason = getattr(error, "strerror", None) or type(error).__name__
    return TrailUnusable(f"the audit trail cannot be written: {reason}")
