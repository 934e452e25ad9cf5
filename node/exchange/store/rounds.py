"""A scrub that takes its time: the whole store once in a period, piece by piece, for ever.

Where it stands is in the key file, so a restart goes on there. Each piece is due in proportion to
the bytes before it; what was not read while nobody ran is made up for. What belongs to nothing is
not looked for: that harms nobody, and takes a list of all blobs (`store scrub --collect`).
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import NamedTuple

from node.exchange.store.blobs import BlobStore
from node.exchange.store.catalog import Catalog
from node.exchange.store.rows import SCRUBBED, SCRUBBING
from node.exchange.store.scrub import Finding, Kind, check_chunk, check_index

PIECE_BYTES = 8 << 20  # read before it is noted how far it came
PIECE_BLOBS = 64


class Piece(NamedTuple):
    """What was read at one time."""

    bytes: int
    findings: list[Finding]


@dataclass(slots=True)
class _Round:
    """How far a round is, as it stands in the key file. Bytes are in hexadecimal there."""

    began_ms: int
    chunk: str = ""  # the last one that was read
    version: tuple[str, int] | None = None  # the last index; None: chunks come first
    done: int = 0  # bytes of chunks
    is_over: bool = False
    found: dict[str, int] = field(default_factory=dict)


class SlowScrub:
    """One round after another. Every method waits for disks; for one thread at a time."""

    def __init__(
        self,
        blobs: BlobStore,
        catalog: Catalog,
        check_place: Callable[[], None],
        period_ms: int,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`check_place` raises when the blobs are not where they were: not everything is lost
        then. Raises `StoreError`."""
        self._blobs, self._catalog, self._check_place = blobs, catalog, check_place
        self._period_ms, self._now_ms = period_ms, now_ms
        self._round = self._resumed()

    @property
    def progress(self) -> float:
        """How much of the running round is done, from 0 to 1."""
        if self._round.is_over:
            return 1.0
        return min(1.0, self._round.done / max(1, self._catalog.stored_bytes()))

    def wait_ms(self) -> int:
        """Return in how many ms the next piece is due, 0 if it is. Raises `StoreError`."""
        began_ms = min(self._round.began_ms, self._now_ms())  # a clock may have been set back
        due_ms = began_ms + int(self._period_ms * self.progress)
        return max(0, due_ms - self._now_ms())

    def step(self) -> Piece:
        """Read the next piece, and note how far it came. Raises `StoreError`."""
        self._check_place()
        if self._round.is_over:
            self._round = _Round(self._now_ms())
        piece = self._chunks() if self._round.version is None else self._indexes()
        for finding in piece.findings:
            kind = finding.kind.value
            self._round.found[kind] = self._round.found.get(kind, 0) + 1
        if self._round.is_over:
            self._tell()
        self._catalog.note(SCRUBBING, json.dumps(asdict(self._round)).encode())
        return piece

    def _chunks(self) -> Piece:
        here, size = self._round, 0
        findings: list[Finding] = []
        rows = self._catalog.chunks(after=bytes.fromhex(here.chunk))
        for row in islice(rows, PIECE_BLOBS):
            findings += _some(check_chunk(self._blobs, self._catalog, row))
            here.chunk, size = row.digest.hex(), size + row.stored_bytes
            if size >= PIECE_BYTES:
                break
        if not size:
            here.version = ("", 0)
        here.done += size
        return Piece(size, findings)

    def _indexes(self) -> Piece:
        here, size = self._round, 0
        findings: list[Finding] = []
        study, number = here.version or ("", 0)
        rows = self._catalog.all_versions((bytes.fromhex(study), number))
        for row in islice(rows, PIECE_BLOBS):
            findings += _some(check_index(self._blobs, self._catalog, row))
            here.version, size = (row.study_id.hex(), row.version), size + row.index_bytes
            if size >= PIECE_BYTES:
                break
        here.is_over = not size
        return Piece(size, findings)

    def _tell(self) -> None:
        kinds = dict.fromkeys((kind.value for kind in Kind if kind is not Kind.ORPHAN), 0)
        note = {"time_ms": self._now_ms(), "found": kinds | self._round.found}
        self._catalog.note(SCRUBBED, json.dumps(note).encode())

    def _resumed(self) -> _Round:
        note = self._catalog.noted(SCRUBBING)
        if note is None:
            return _Round(self._now_ms())
        try:
            known = _Round(**json.loads(note))
            bytes.fromhex(known.chunk)
            if known.version is not None:
                bytes.fromhex(known.version[0])
                known.version = known.version[0], int(known.version[1])
        except (ValueError, TypeError, LookupError):  # another program's, or damaged: no harm
            return _Round(self._now_ms())
        return known


def _some(finding: Finding | None) -> Iterator[Finding]:
    if finding is not None:
        yield finding
