"""One DICOM file opened for retrieval: its header as a data set, and where its pixels stand.

Intake has parsed every stored file with bounds before; here pydicom reads the part before the
pixels, and long values are left where they are. A deflated file is inflated within limits.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from struct import error as struct_error
from typing import Any, BinaryIO

from pydicom import config
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from node.imaging.elements import Parser, Span, dictionary_vr
from node.imaging.errors import UnreadableInstance
from node.imaging.limits import LIMITS, Limits
from node.imaging.source import Source, inflated
from node.imaging.syntax import Syntax, syntax_of

DEFERRED_BYTES = 1 << 20  # a value longer than this stays in the file
SEQUENCE_BYTES_MAX = 64 << 20
META_BYTES_MAX = 1 << 20
PIECE_BYTES = 1 << 20
PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
DEEP_ELEMENTS_MAX = 200_000  # of which frames of an enhanced image take about fifty each
_OFFSETS = frozenset({0x7FE00001, 0x7FE00002})  # the extended offset table
_OFFSETS_BYTES_MAX = 16 << 20
_CHARACTER_SET = 0x00080005
# By the level that they describe (PS3.3 A.1.2); PS3.18 table 10.6.3-3 to -5 wants most returned.
STUDY_TAGS = frozenset(
    {0x00080020, 0x00080030, 0x00080050, 0x00080090, 0x00080201, 0x00081030, 0x00100010}
    | {0x00100020, 0x00100021, 0x00100030, 0x00100040, 0x0020000D, 0x00200010}
)
SERIES_TAGS = frozenset(
    {0x00080021, 0x00080031, 0x00080060, 0x0008103E, 0x00180015, 0x0020000E, 0x00200011}
    | {0x00200060, 0x00400244, 0x00400245}
)
INSTANCE_TAGS = frozenset(
    {0x00080016, 0x00080018, 0x00080023, 0x00080033, 0x00200013, 0x00280008, 0x00280010}
    | {0x00280011, 0x00280100, 0x0040A491, 0x0040A493}
)
# What other hospitals may find studies by, with some of the above (`node.gateway.facts`): patient's
# age, manufacturer and model of the equipment, protocol. QIDO neither searches nor returns them.
FINDING_TAGS = frozenset({0x00080070, 0x00081090, 0x00101010, 0x00181030})
# What searches and single frames need.
PLAIN_TAGS = (
    STUDY_TAGS
    | SERIES_TAGS
    | INSTANCE_TAGS
    | FINDING_TAGS
    | _OFFSETS
    | {_CHARACTER_SET, 0x00280002, 0x00280004}
)
# pydicom repeats values that contradict their form in warnings and in its log.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").disabled = True

# What pydicom raises for values that contradict their form.
DAMAGED = (
    ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError,
    NotImplementedError, RecursionError, BytesLengthException, struct_error,
)  # fmt: skip


class Failed(Exception):
    """A stored instance cannot be given in a form; `code` is damaged, limit, decoder or none."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence


@dataclass(frozen=True, slots=True)
class PixelPlace:
    """Where the pixel data element of a file stands."""

    tag: int
    vr: str
    offset: int  # of its value
    length: int | None  # None: encapsulated
    has_table: bool = False  # of offsets, the basic one: where each frame begins


@dataclass(slots=True)
class Opened:
    """A file's header and pixels; `stream` holds the data set uncompressed."""

    stream: BinaryIO
    size: int
    syntax: Syntax
    header: Dataset = field(repr=False)
    pixels: PixelPlace | None

    def element(self, tag: int) -> DataElement | None:
        """Return the element `tag` of the header, or None if its value cannot be made sense of."""
        try:
            return self.header[tag]
        except DAMAGED:
            return None

    def pieces(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes from `offset` on, in pieces of at most a mebibyte."""
        for start in range(0, length, PIECE_BYTES):
            self.stream.seek(offset + start)
            piece = self.stream.read(min(PIECE_BYTES, length - start))
            if not piece:
                raise Failed("damaged", "the stored file became shorter")
            yield piece

    def walk_fragments(self) -> None:
        """Read all fragments' heads. Raises `UnreadableInstance`, as for more than are allowed."""
        if self.pixels is not None:
            self.stream.seek(self.pixels.offset)
            Parser(self.stream, self.size, "instance", LIMITS, _Plain(self.stream)).fragments()

    def number(self, tag: int, default: int = 0) -> int:
        """Return the element `tag` as a number that is not negative."""
        element = self.element(tag) if tag in self.header else None
        try:
            return max(0, int(element.value)) if element and element.value is not None else default
        except DAMAGED:
            return default


@contextmanager
def open_instance(stream: BinaryIO, size: int, deep: bool = True) -> Iterator[Opened]:
    """Yield the DICOM file that `stream` holds. Raises `Failed`.

    The header is whole if `deep`; else it has only `PLAIN_TAGS`, at a small and bounded cost.
    """
    syntax = _skip_meta(stream, size)
    read = _open_deep if deep else _open_plain
    try:
        if not syntax.deflated:
            yield read(stream, size, syntax)
            return
        with inflated(Source("instance", stream, size, b""), LIMITS) as (plain, plain_size):
            yield read(plain, plain_size, syntax)
    except UnreadableInstance as error:
        is_limit = error.code in ("bomb", "limit")
        raise Failed("limit" if is_limit else "damaged", error.reason) from None


def _skip_meta(stream: BinaryIO, size: int) -> Syntax:
    """Read the file meta information; its group length is not relied on (PS3.10 §7.1)."""
    head = stream.read(132)
    if head[128:] != b"DICM":
        raise Failed("damaged", "the stored file is not DICOM")
    uid = ""
    while len(head := stream.read(8)) == 8 and head[:2] == b"\x02\x00":
        long_form = head[4:6] in (b"OB", b"UN", b"UT")
        length = int.from_bytes(stream.read(4) if long_form else head[6:], "little")
        if length > META_BYTES_MAX or length > size - stream.tell():
            raise Failed("damaged", "the stored file ends within its meta information")
        value = stream.read(length)
        if head[2:4] == b"\x10\x00":
            uid = value.rstrip(b"\0 ").decode("latin-1")
    stream.seek(-len(head), 1)
    syntax = syntax_of(uid)
    if syntax is None:
        raise Failed("damaged", "the stored file names no known transfer syntax")
    return syntax


def _open_plain(stream: BinaryIO, size: int, syntax: Syntax) -> Opened:
    found = _scan(stream, size, syntax, LIMITS)
    header = Dataset(found.values)
    header.set_original_encoding(False, syntax.little_endian, found.encodings())
    return Opened(stream, size, syntax, header, found.pixels)


def _open_deep(stream: BinaryIO, size: int, syntax: Syntax) -> Opened:
    """Read the whole header, after a look at what that will cost.

    pydicom takes most of a kilobyte and tens of microseconds for every element and item: eight
    megabytes of empty items would cost 650 MB and the better part of a minute.
    """
    start = stream.tell()
    found = _scan(stream, size, syntax, replace(LIMITS, elements_max=DEEP_ELEMENTS_MAX))
    stream.seek(start)
    try:
        header = read_dataset(
            stream,
            syntax.implicit,
            syntax.little_endian,
            stop_when=_at_pixels,
            defer_size=DEFERRED_BYTES,
        )
        _read_long_sequences(stream, size, header)
    except DAMAGED as error:
        raise Failed("damaged", f"the header cannot be read ({type(error).__name__})") from None
    return Opened(stream, size, syntax, header, found.pixels)


def _scan(stream: BinaryIO, size: int, syntax: Syntax, limits: Limits) -> "_Plain":
    # Not the fragments, whose heads are all over the file: what needs them walks them.
    found = _Plain(stream)
    Parser(stream, size, "instance", limits, found).header(syntax)
    return found


class _Plain:
    """A `Visitor` that keeps the plain top-level values, and where the pixels are."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._depth = stream, 0
        self.values: dict[BaseTag, DataElement | RawDataElement] = {}
        self.pixels: PixelPlace | None = None

    def value(self, tag: int, vr: str, little_endian: bool, data: bytes | Span) -> None:
        if self._depth:
            return
        if isinstance(data, Span):
            if tag in PIXEL_TAGS:
                self.pixels = PixelPlace(tag, vr, data.offset, data.length)
            if tag not in _OFFSETS or data.length > _OFFSETS_BYTES_MAX:
                return
            here = self._stream.tell()
            self._stream.seek(data.offset)
            data = self._stream.read(data.length)
            self._stream.seek(here)
        if tag in PLAIN_TAGS:
            # The dictionary decides what the value is, not the writer: as in a commitment, by
            # which the UIDs were found.
            key, known = BaseTag(tag), dictionary_vr(tag)
            self.values[key] = RawDataElement(
                key, known, len(data), data, 0, False, little_endian, True
            )

    def begin_sequence(self, tag: int) -> None:
        self._depth += 1

    def begin_item(self) -> None:
        return None

    def end_item(self) -> None:
        return None

    def end_sequence(self) -> None:
        self._depth -= 1

    def fragments(self, tag: int, offset_table: bytes, spans: list[Span]) -> None:
        if not self._depth and spans:
            start = spans[0].offset - 16 - len(offset_table)
            self.pixels = PixelPlace(tag, "OB", start, None, bool(offset_table))

    def encodings(self) -> list[str]:
        """Return the codecs of the data set's text; the default where its names are none."""
        raw = self.values.get(BaseTag(_CHARACTER_SET))
        value = raw.value if isinstance(raw, RawDataElement) and raw.value else b""
        names = value.decode("latin-1").rstrip("\0 ").split("\\")
        try:
            return list(convert_encodings([name.strip() for name in names]))
        except DAMAGED:
            return [default_encoding]


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return int(tag) in PIXEL_TAGS


def _read_long_sequences(stream: BinaryIO, size: int, header: Dataset) -> None:
    """Read the sequences that were left in the file for their length, then go on from there."""
    here = stream.tell()
    for tag in list(header.keys()):
        raw: Any = header.get_item(tag, keep_deferred=True)
        if not isinstance(raw, RawDataElement) or raw.value is not None or not raw.length:
            continue
        if (raw.VR or dictionary_vr(int(tag))) == "SQ":
            if not raw.length <= min(SEQUENCE_BYTES_MAX, size - raw.value_tell):
                raise Failed("limit", "a sequence in the header is too long")
            stream.seek(raw.value_tell)
            header[tag] = raw._replace(value=stream.read(raw.length))
    stream.seek(here)
