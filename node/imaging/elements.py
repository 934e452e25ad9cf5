"""The structure of a data set: elements, items, sequences and fragments (PS3.5 §7).

One pass, no recursion, nothing kept: a `Visitor` is told what comes. pydicom's own reader is not
used here, for a commitment must mean the same bytes everywhere and for ever: it drops a truncated
tail without a word, takes about a kilobyte of memory for an item of eight bytes, and what it
forgives differs between versions. Two things that real writers get wrong are read as they are
meant: a data set that is not in the form (explicit or implicit) which its transfer syntax says,
and single elements in implicit form within an explicit data set.
"""

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from struct import Struct
from typing import BinaryIO, NamedTuple, NoReturn, Protocol

from pydicom.datadict import dictionary_VR

from node.imaging.errors import UnreadableInstance
from node.imaging.limits import Limits
from node.imaging.syntax import Syntax

ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, PIXEL_DATA})
UNDEFINED = 0xFFFFFFFF
_ITEM_LITTLE = b"\xfe\xff\x00\xe0"

_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN"}) | {
    b"UR",
    b"UT",
    b"UV",
}
_SHORT = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN"}
) | {b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
_LITTLE, _BIG = Struct("<HHHH"), Struct(">HHHH")
_LITTLE_LENGTH, _BIG_LENGTH = Struct("<L"), Struct(">L")


class Span(NamedTuple):
    """Bytes that were left in the source."""

    offset: int
    length: int


class Visitor(Protocol):
    """What is told of a data set, in the order of its bytes. `tag` is group << 16 | element."""

    def value(self, tag: int, vr: str, little_endian: bool, data: bytes | Span) -> None:
        """An element; `vr` is as written, or that of the dictionary, or "UN" if neither."""

    def begin_sequence(self, tag: int) -> None:
        """A sequence, whose items follow."""

    def begin_item(self) -> None:
        """An item of the sequence that began last."""

    def end_item(self) -> None:
        """The end of that item."""

    def end_sequence(self) -> None:
        """The end of that sequence."""

    def fragments(self, tag: int, offset_table: bytes, spans: list[Span]) -> None:
        """Encapsulated pixel data (PS3.5 A.4); `offset_table` is the basic one, maybe empty."""


class _Ignore:
    """A visitor that keeps nothing."""

    def value(self, tag: int, vr: str, little_endian: bool, data: bytes | Span) -> None: ...
    def begin_sequence(self, tag: int) -> None: ...
    def begin_item(self) -> None: ...
    def end_item(self) -> None: ...
    def end_sequence(self) -> None: ...
    def fragments(self, tag: int, offset_table: bytes, spans: list[Span]) -> None: ...


@lru_cache(maxsize=65_536)
def dictionary_vr(tag: int) -> str:
    """Return the value representation of PS3.6 for `tag`, the first if it has several, or "UN"."""
    try:
        return str(dictionary_VR(tag))[:2]
    except KeyError:
        return "UN"


@dataclass(slots=True)
class _Open:
    """A data set, item or sequence that has begun and not ended."""

    is_sequence: bool
    end: int  # no byte of it lies at or beyond
    delimited: bool  # ends with a delimitation item; else exactly at `end`
    implicit: bool
    little_endian: bool
    elements: int = 0


def is_implicit(first: bytes, syntax: Syntax) -> bool:
    """Whether the data set whose first bytes are `first` is in implicit form.

    Little-endian writers mistake one form for the other; two capital letters where an element
    names its value representation settle it, for no length so begins.
    """
    if len(first) < 6 or not syntax.little_endian:
        return syntax.implicit
    return not (first[4:6].isalpha() and first[4:6].isupper())


class Parser:
    """Tells `visitor` the data set that `stream` holds from its current position to `size`.

    Raises `UnreadableInstance` for anything that is not a whole, well-formed data set in bounds.
    """

    def __init__(
        self,
        stream: BinaryIO,
        size: int,
        name: str,
        limits: Limits,
        visitor: Visitor,
        guess: bool = True,
    ) -> None:
        self._stream, self._name, self._limits, self._visitor = stream, name, limits, visitor
        self._guess = guess  # a trial does not try again, or nesting would cost exponentially
        self._position = stream.tell()
        self._size = size
        self._ends_at_fragments = False
        self._elements = 0
        self._stack: list[_Open] = []

    def data_set(self, syntax: Syntax) -> None:
        """Read to the end."""
        first = self._stream.read(6)
        self._stream.seek(self._position)
        implicit = is_implicit(first, syntax)
        self._run(_Open(False, self._size, False, implicit, syntax.little_endian))

    def header(self, syntax: Syntax) -> None:
        """Read to the first fragment of the data set's own compressed pixel data, which is the one
        that the visitor is told of; to the end where there is none."""
        self._ends_at_fragments = True
        self.data_set(syntax)

    def fragments(self) -> None:
        """Read compressed pixel data, which is in little-endian form, from its offset table on."""
        self._fragments(_Open(False, self._size, False, False, True), PIXEL_DATA)

    def items(self) -> None:
        """Read the items of a sequence in implicit little-endian form, to the end."""
        self._run(_Open(True, self._size, False, True, True))

    def _run(self, outermost: _Open) -> None:
        self._stack.append(outermost)
        while self._stack:
            top = self._stack[-1]
            if self._position == top.end and not top.delimited:
                self._close()
            elif top.is_sequence:
                self._item(top)
            else:
                self._element(top)

    def _refuse(self, code: str, reason: str) -> NoReturn:
        raise UnreadableInstance(self._name, code, reason)

    def _read(self, length: int, end: int) -> bytes:
        if length > end - self._position:
            self._past_end(end)
        data = self._stream.read(length)
        if len(data) != length:
            self._refuse("changed", "the file became shorter while it was read")
        self._position += length
        return data

    def _past_end(self, end: int) -> NoReturn:
        if end == self._size:
            self._refuse("truncated", "the file ends within an element")
        self._refuse("malformed", "an element runs past the end of the item that holds it")

    def _element(self, top: _Open) -> None:
        if top.end - self._position < 8 and self._is_tail_of_zeros(top):
            return
        head = self._read(8, top.end)
        group, element, *_ = (_LITTLE if top.little_endian else _BIG).unpack(head)
        tag = group << 16 | element
        if group == 0xFFFE:
            self._end_of_item(top, tag)
            return
        if not tag and self._is_tail_of_zeros(top):
            return
        self._count()
        top.elements += 1
        if top.elements > self._limits.level_elements_max:
            self._refuse("limit", f"over {self._limits.level_elements_max} elements in an item")
        vr, length = self._form(top, tag, head)
        if length == UNDEFINED:
            self._undefined(top, tag, vr)
        elif self._is_sequence(tag, vr, length, top):
            if length > top.end - self._position:
                self._past_end(top.end)
            self._open_sequence(top, tag, vr, self._position + length, delimited=False)
        else:
            self._value(top, tag, vr, length)

    def _form(self, top: _Open, tag: int, head: bytes) -> tuple[str, int]:
        """Return the value representation and length of the element that began with `head`."""
        length_of = _LITTLE_LENGTH if top.little_endian else _BIG_LENGTH
        vr = head[4:6]
        if top.implicit or not (vr.isalpha() and vr.isupper()):
            return dictionary_vr(tag), length_of.unpack(head[4:])[0]
        if vr in _SHORT:
            return vr.decode(), int.from_bytes(head[6:], "little" if top.little_endian else "big")
        if vr in _LONG:
            return vr.decode(), length_of.unpack(self._read(4, top.end))[0]
        self._refuse("malformed", f"element {name_of(tag)} has an unknown value representation")

    def _count(self) -> None:
        self._elements += 1
        if self._elements > self._limits.elements_max:
            self._refuse("limit", f"more than {self._limits.elements_max} elements")

    def _is_tail_of_zeros(self, top: _Open) -> bool:
        """Skip zeros up to the end of the file, which some writers leave; False if not such."""
        if len(self._stack) > 1 or top.end - self._position > self._limits.inline_bytes_max:
            return False
        rest = self._stream.read(top.end - self._position)
        self._stream.seek(self._position)
        if any(rest):
            return False
        self._stream.seek(top.end)
        self._position = top.end
        return True

    def _end_of_item(self, top: _Open, tag: int) -> None:
        if tag != ITEM_END or not top.delimited:
            self._refuse("malformed", "a delimiter stands where an element should")
        self._close()

    def _close(self) -> None:
        closed = self._stack.pop()
        if closed.is_sequence:
            self._visitor.end_sequence()
        elif self._stack:
            self._visitor.end_item()

    def _is_sequence(self, tag: int, vr: str, length: int, top: _Open) -> bool:
        """Whether a value of defined length is a sequence.

        A sequence whose element the writer did not know stands as UN, in implicit form (PS3.5
        §6.2.2), and a private one in an implicit data set looks like any bytes. Both are read as
        sequences if they are such from end to end, or else X and K would not survive conversion.
        """
        if vr != "UN" or length < 8 or length > top.end - self._position:
            return vr == "SQ"
        start = self._stream.read(4)
        self._stream.seek(self._position)
        if start != _ITEM_LITTLE or not self._guess or length > self._limits.inline_bytes_max:
            return start == _ITEM_LITTLE and dictionary_vr(tag) == "SQ"
        data = self._stream.read(length)
        self._stream.seek(self._position)
        trial = Parser(BytesIO(data), length, self._name, self._limits, _Ignore(), guess=False)
        try:
            trial.items()
        except UnreadableInstance:
            return False
        return True

    def _undefined(self, top: _Open, tag: int, vr: str) -> None:
        if tag == PIXEL_DATA and vr != "SQ":
            self._fragments(top, tag)
        elif vr in ("SQ", "UN") or top.implicit:
            self._open_sequence(top, tag, vr, top.end, delimited=True)
        else:
            self._refuse("malformed", f"element {name_of(tag)} has no length")

    def _open_sequence(self, top: _Open, tag: int, vr: str, end: int, delimited: bool) -> None:
        if len(self._stack) > 2 * self._limits.depth_max:
            self._refuse("limit", f"items nested more than {self._limits.depth_max} deep")
        unknown = vr == "UN" and not top.implicit
        self._visitor.begin_sequence(tag)
        implicit, little = top.implicit or unknown, top.little_endian or unknown
        self._stack.append(_Open(True, end, delimited, implicit, little))

    def _item(self, top: _Open) -> None:
        tag, length = self._delimiter(top)
        if tag == SEQUENCE_END and top.delimited:
            self._close()
            return
        if tag != ITEM:
            self._refuse("malformed", "a sequence holds something that is no item")
        self._count()
        delimited = length == UNDEFINED
        if not delimited and length > top.end - self._position:
            self._past_end(top.end)
        end = top.end if delimited else self._position + length
        self._visitor.begin_item()
        self._stack.append(_Open(False, end, delimited, top.implicit, top.little_endian))

    def _delimiter(self, top: _Open) -> tuple[int, int]:
        head = self._read(8, top.end)
        group, element, *_ = (_LITTLE if top.little_endian else _BIG).unpack(head)
        length = (_LITTLE_LENGTH if top.little_endian else _BIG_LENGTH).unpack(head[4:])[0]
        return group << 16 | element, length

    def _fragments(self, top: _Open, tag: int) -> None:
        kind, length = self._delimiter(top)
        if kind != ITEM or length > self._limits.text_bytes_max:
            self._refuse("malformed", "compressed pixel data does not begin with an offset table")
        offset_table = self._read(length, top.end)
        spans: list[Span] = []
        while (head := self._delimiter(top))[0] == ITEM:
            if len(spans) == self._limits.fragments_max:
                self._refuse("limit", f"more than {self._limits.fragments_max} fragments")
            spans.append(self._skip(head[1], top.end))
            if self._ends_at_fragments and len(self._stack) == 1:
                self._visitor.fragments(tag, offset_table, spans)
                self._stack.clear()
                return
        if head != (SEQUENCE_END, 0):
            self._refuse("malformed", "compressed pixel data does not end with a delimiter")
        self._visitor.fragments(tag, offset_table, spans)

    def _skip(self, length: int, end: int) -> Span:
        if length > end - self._position:
            self._past_end(end)
        span = Span(self._position, length)
        self._position += length
        self._stream.seek(self._position)
        return span

    def _value(self, top: _Open, tag: int, vr: str, length: int) -> None:
        data: bytes | Span
        if length > self._limits.inline_bytes_max or (tag in PIXEL_TAGS and len(self._stack) == 1):
            data = self._skip(length, top.end)
        else:
            data = self._read(length, top.end)
        self._visitor.value(tag, vr, top.little_endian, data)


def name_of(tag: int) -> str:
    """Return `tag` as DICOM writes it: (gggg,eeee)."""
    return f"({tag >> 16:04x},{tag & 0xFFFF:04x})"
