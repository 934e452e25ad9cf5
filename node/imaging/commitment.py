"""What is committed to of one instance: F, K, P and X.

- F: SHA-256 of the bytes as received.
- K: the core of the data set (`rules.py`, `values.py`, `core.py`).
- P: what it shows, frame by frame (`pixels.py`).
- X: private elements, raw.

`commit_file` is a plain function of a path: run it in worker processes or threads.
"""

from dataclasses import dataclass
from pathlib import Path

from node.imaging.core import Digester, Digests, part_digest
from node.imaging.elements import Parser
from node.imaging.errors import NOT_NOW, UnreadableInstance
from node.imaging.limits import LIMITS, Limits
from node.imaging.pixels import PIXEL_FACTS, Facts, Pixels, digest_pixels
from node.imaging.rules import RULES_VERSION, Part
from node.imaging.source import Source, inflated, open_source
from node.imaging.syntax import Syntax, syntax_of

PREFIX_BYTES = 8
ROW_BYTES = 4 + PREFIX_BYTES
_META_GROUP = 0x0002
TRANSFER_SYNTAX = 0x00020010
MEDIA_CLASS = 0x00020002
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
_META_BYTES_MAX = 1 << 20

SOP_CLASS = 0x00080016
SOP_INSTANCE = 0x00080018
MODALITY = 0x00080060
SERIES_DESCRIPTION = 0x0008103E
PATIENT_ID = 0x00100020
PATIENT_ISSUER = 0x00100021
BODY_PART = 0x00180015
STUDY_INSTANCE = 0x0020000D
SERIES_INSTANCE = 0x0020000E
SERIES_NUMBER = 0x00200011
INSTANCE_NUMBER = 0x00200013
_FACTS = PIXEL_FACTS | {
    SOP_CLASS,
    SOP_INSTANCE,
    MODALITY,
    SERIES_DESCRIPTION,
    PATIENT_ID,
    PATIENT_ISSUER,
    BODY_PART,
    STUDY_INSTANCE,
    SERIES_INSTANCE,
    SERIES_NUMBER,
    INSTANCE_NUMBER,
}


@dataclass(frozen=True, slots=True)
class Elements:
    """Short digests of the top-level elements of one part, to name what changed.

    `rows` holds 12 bytes for each: the tag, big-endian, and the first 8 bytes of its digest. They
    prove nothing by themselves; K and X are over the whole digests.
    """

    rows: bytes

    def by_tag(self) -> dict[int, bytes]:
        """Return the short digest of every tag."""
        rows = (self.rows[at : at + ROW_BYTES] for at in range(0, len(self.rows), ROW_BYTES))
        return {int.from_bytes(row[:4], "big"): row[4:] for row in rows}


@dataclass(frozen=True, slots=True)
class Commitment:
    """F, K, P and X of one instance, and what tells which elements differ from another's."""

    rules: int
    size: int  # bytes as received
    file: bytes  # F, 32 bytes
    core: bytes  # K, 32 bytes
    pixels: Pixels  # P
    private: bytes  # X, 32 bytes
    core_elements: Elements
    private_elements: Elements
    import_elements: Elements


@dataclass(frozen=True, slots=True)
class CommittedFile:
    """A file's commitment, and the few values of it that the institution's own vault needs."""

    name: str
    commitment: Commitment
    facts: Facts

    def text(self, tag: int) -> str:
        """Return the text of the top-level element `tag`, or "" if it has none."""
        value = self.facts.get(tag, "")
        return value if isinstance(value, str) else ""


def commit_file(path: Path, limits: Limits = LIMITS) -> CommittedFile:
    """Return the commitment to the DICOM file at `path`.

    Memory stays within a few times `limits.frame_bytes_max` whatever the file's size. Raises
    `UnreadableInstance` and nothing else for anything that can be wrong with a file.
    """
    try:
        with open_source(path, limits) as source:
            return _commit(source, limits)
    except MemoryError as error:
        reason = "needs more memory than there is now"
        raise UnreadableInstance(str(path), NOT_NOW, reason) from error


def _commit(source: Source, limits: Limits) -> CommittedFile:
    syntax = _read_meta(source)
    if not syntax.deflated:
        return _commit_data_set(source, syntax, limits)
    with inflated(source, limits) as (stream, size):
        plain = Source(source.name, stream, size, source.digest)
        committed = _commit_data_set(plain, syntax, limits, source.size)
    return committed


def _commit_data_set(
    source: Source, syntax: Syntax, limits: Limits, file_bytes: int | None = None
) -> CommittedFile:
    digester = Digester(source.stream, source.name, limits, _FACTS)
    Parser(source.stream, source.size, source.name, limits, digester).data_set(syntax)
    facts = digester.facts
    pixels = digest_pixels(source.stream, source.name, syntax, digester.pixels, facts, limits)
    core, private = digester.digests(Part.CORE), digester.digests(Part.PRIVATE)
    commitment = Commitment(
        RULES_VERSION,
        source.size if file_bytes is None else file_bytes,
        source.digest,
        part_digest(Part.CORE, core),
        pixels,
        part_digest(Part.PRIVATE, private),
        _short(core),
        _short(private),
        _short(digester.digests(Part.IMPORT)),
    )
    return CommittedFile(source.name, commitment, facts)


def _short(digests: Digests) -> Elements:
    rows = (tag.to_bytes(4, "big") + d[:PREFIX_BYTES] for tag, d in sorted(digests.items()))
    return Elements(b"".join(rows))


def meta_elements(source: Source) -> dict[int, str]:
    """Return the file meta information as text by tag (PS3.10 §7.1).

    Leaves the stream at the first byte of the data set. The meta information's own group length is
    not relied on, since writers leave it out or get it wrong.
    """
    stream, found = source.stream, {}
    stream.seek(132)
    while len(head := stream.read(8)) == 8 and int.from_bytes(head[:2], "little") == _META_GROUP:
        vr, length = head[4:6], int.from_bytes(head[6:], "little")
        if vr in (b"OB", b"UN", b"UT"):
            length = int.from_bytes(stream.read(4), "little")
        if length > _META_BYTES_MAX or length > source.size - stream.tell():
            reason = "the file ends within its meta information"
            raise UnreadableInstance(source.name, "truncated", reason)
        tag = _META_GROUP << 16 | int.from_bytes(head[2:4], "little")
        found[tag] = stream.read(length).rstrip(b"\0 ").decode("latin_1")
    stream.seek(-len(head), 1)
    return found


def _read_meta(source: Source) -> Syntax:
    """Return the transfer syntax that the file meta information names."""
    found = meta_elements(source)
    if found.get(MEDIA_CLASS) == DICOMDIR_CLASS:
        reason = "a DICOMDIR: an index of files, itself no part of a study"
        raise UnreadableInstance(source.name, "directory", reason)
    if TRANSFER_SYNTAX not in found:
        reason = "the file meta information names no transfer syntax (PS3.10 §7.1)"
        raise UnreadableInstance(source.name, "unknown_syntax", reason)
    syntax = syntax_of(found[TRANSFER_SYNTAX])
    if syntax is None:
        reason = "the transfer syntax is none that DICOM defines"
        raise UnreadableInstance(source.name, "unknown_syntax", reason)
    return syntax
