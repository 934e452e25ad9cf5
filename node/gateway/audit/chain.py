"""Whether a trail is whole: a record that is missing, changed, moved or put in is named.

The links alone prove this against whoever cannot write all later records anew; against one who can,
the anchors on the ledger do, and the copies at the repository.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from node.gateway.audit.errors import RecordInvalid
from node.gateway.audit.record import FIRST_BEFORE, LINE_BYTES_MAX, Record, decode, link
from node.gateway.audit.segments import Segment, segments

PROBLEMS_MAX = 100
_TRIMMED = re.compile(r"(\d+) to (\d+) ([0-9a-f]{64})")


@dataclass(slots=True)
class Report:
    """What a look at all records found."""

    first: int = 0  # of the records that are here; 0: there is none
    last: int = 0
    records: int = 0
    trail: str = ""  # the trail's own random id, if its first record is here
    problems: list[str] | None = None
    full: int = 0  # times that the trail was full, and acts were not recorded
    trimmed_to: int = 0  # the last record that was removed because the repository has it
    trimmed_before: str = ""  # and what the one after it must name

    def found(self, problem: str) -> None:
        """Keep a problem, of many the first ones."""
        if self.problems is None:
            self.problems = []
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


def verify(folder: Path, since: int = 0) -> Report:
    """Look at every record, or at those of the files whose first record is `since` or a later one.

    What is before these is not missed then. Raises `OSError`.
    """
    report = Report()
    walk = _Walk(report)
    for segment in segments(folder):
        if segment.first >= since:
            walk.segment(segment)
    if not since:
        walk.end()
    return report


class _Walk:
    """Goes through the records and compares each with what the one before says."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._seq = 0
        self._link = FIRST_BEFORE
        self._first: Record | None = None

    def segment(self, segment: Segment) -> None:
        """Look at one file."""
        if not self._seq:
            self._seq = segment.first - 1
        for number, line in _lines(segment.path):
            self._line(segment, number, line)
        self._jump(segment.first)  # of a file that is empty, its name tells what came before

    def end(self) -> None:
        """Look at what only the whole of it shows."""
        report, first = self._report, self._first
        if first is None or first.seq == 1:
            return
        if report.trimmed_to != first.seq - 1:
            report.found(f"records 1 to {first.seq - 1} are missing, and no record says why")
        elif report.trimmed_before != first.before:
            report.found(f"record {first.seq} does not follow what was removed before it")

    def _line(self, segment: Segment, number: int, line: bytes) -> None:
        report = self._report
        try:
            record = decode(line)
        except RecordInvalid as error:
            report.found(f"{segment.path.name} line {number}: {error}, where {self._seq + 1} was")
            self._seq, self._link = self._seq + 1, ""
            return
        if record.seq > self._seq + 1:
            self._jump(record.seq)
        elif record.seq <= self._seq:
            where = f"{segment.path.name} line {number}"
            report.found(f"{where}: record {record.seq} was put in, or moved, after {self._seq}")
            return
        if self._first is None:
            self._begin(record)
        elif self._link and record.before != self._link:
            report.found(f"record {self._seq} was changed: record {record.seq} names another hash")
        self._seq, self._link = record.seq, link(line)
        report.last, report.records = record.seq, report.records + 1
        self._note(record)

    def _begin(self, record: Record) -> None:
        self._first, self._report.first = record, record.seq
        if record.seq == 1:
            self._report.trail = record.text("trail")
            if record.before != FIRST_BEFORE or record.kind != "trail_began":
                self._report.found("record 1 is not the beginning of a trail")

    def _note(self, record: Record) -> None:
        report = self._report
        if record.kind == "trail_full":
            report.full += 1
        elif record.kind == "trail_trimmed":
            match = _TRIMMED.fullmatch(record.text("code"))
            if match:
                report.trimmed_to, report.trimmed_before = int(match[2]), match[3]

    def _jump(self, seq: int) -> None:
        first, last = self._seq + 1, seq - 1
        if first > last:
            return
        missing = f"record {first} is" if first == last else f"records {first} to {last} are"
        self._report.found(f"{missing} missing")
        self._seq, self._link = last, ""


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LINE_BYTES_MAX):
            if not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
                return  # just being written, or cut off by a crash: promised to nobody
            number += 1
            yield number, line.removesuffix(b"\n")
