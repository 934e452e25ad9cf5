"""The digests K and X of a data set, gathered while it is read.

Every element has a digest over its tag and normalised value. A sequence's value is the digests of
its items in order, an item's is that of its elements in tag order; so K is a tree and memory is
bounded by what is open, not by the file.
"""

import hashlib
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn

from node.imaging import rules, values
from node.imaging.elements import PIXEL_TAGS, Span, name_of
from node.imaging.errors import UnreadableInstance
from node.imaging.limits import CHUNK_BYTES, Limits
from node.imaging.rules import Part

_ITEM = b"radledger/item/1"
_PART_TAGS = {
    Part.CORE: b"radledger/core/1",
    Part.PRIVATE: b"radledger/private/1",
    Part.IMPORT: b"radledger/import/1",
}
SPECIFIC_CHARACTER_SET = 0x00080005
FACT_BYTES_MAX = 4_096

Digests = dict[int, bytes]  # tag -> 32 bytes


@dataclass(slots=True)
class PixelElement:
    """Where the pixels of a data set stand in the source."""

    tag: int
    vr: str
    little_endian: bool
    spans: list[Span]
    offset_table: bytes | None  # None if native


@dataclass(slots=True)
class _Level:
    """An item that is open: its elements so far, by part."""

    part: Part | None  # everything below belongs to this part; None: each element to its own
    charset: values.Charset
    digests: dict[Part, Digests] = field(default_factory=dict)


class _Sequence:
    """A sequence that is open: running digests over its items, the public and the private side."""

    __slots__ = ("has_items", "has_private", "items", "part", "private_items", "tag")

    def __init__(self, tag: int, part: Part | None) -> None:
        head = tag.to_bytes(4, "big") + values.SEQUENCE
        self.tag, self.part = tag, part
        self.items, self.private_items = hashlib.sha256(head), hashlib.sha256(head)
        self.has_items = self.has_private = False


class Digester:
    """A `Visitor` that keeps digests by part, the facts asked for, and where the pixels are."""

    def __init__(self, stream: BinaryIO, name: str, limits: Limits, facts: frozenset[int]) -> None:
        self._stream, self._name, self._limits, self._wanted = stream, name, limits, facts
        self._levels = [_Level(None, values.charset_of(b""))]
        self._sequences: list[_Sequence] = []
        self.facts: dict[int, str | bytes] = {}  # text, or little-endian numbers
        self.pixels: PixelElement | None = None

    def digests(self, part: Part) -> Digests:
        """Return the top-level digests of `part`."""
        return self._levels[0].digests.get(part, {})

    def value(self, tag: int, vr: str, little_endian: bool, data: bytes | Span) -> None:
        level = self._levels[-1]
        if tag == SPECIFIC_CHARACTER_SET and isinstance(data, bytes):
            level.charset = values.charset_of(data)
        if isinstance(data, Span) and tag in PIXEL_TAGS and len(self._levels) == 1:
            self._found_pixels(PixelElement(tag, vr, little_endian, [data], None))
            return
        own = rules.part_of(tag)
        part = level.part or own
        if part is Part.PRIVATE:
            digest = self._private(tag, vr, little_endian, data)
        elif own is Part.ENCODING or part is Part.ENCODING or not data:
            if tag in self._wanted and len(self._levels) == 1 and isinstance(data, bytes):
                self.facts[tag] = data if little_endian else values.little_endian(vr, data)
            return
        else:
            digest = self._public(level, tag, vr, little_endian, data)
        if digest:
            self._keep(part, tag, digest)

    def begin_sequence(self, tag: int) -> None:
        level = self._levels[-1]
        part = level.part or rules.part_of(tag)
        self._sequences.append(_Sequence(tag, None if part is Part.CORE else part))

    def begin_item(self) -> None:
        self._levels.append(_Level(self._sequences[-1].part, self._levels[-1].charset))

    def end_item(self) -> None:
        level, sequence = self._levels.pop(), self._sequences[-1]
        whole = level.digests.get(sequence.part or Part.CORE, {})
        private = level.digests.get(Part.PRIVATE, {}) if sequence.part is None else {}
        sequence.items.update(combine(_ITEM, whole))
        sequence.private_items.update(combine(_ITEM, private))
        sequence.has_items = True
        sequence.has_private |= bool(private)

    def end_sequence(self) -> None:
        sequence, level = self._sequences.pop(), self._levels[-1]
        part = level.part or rules.part_of(sequence.tag)
        if part is not Part.ENCODING and sequence.has_items:
            self._keep(part, sequence.tag, sequence.items.digest())
        if sequence.has_private:
            self._keep(Part.PRIVATE, sequence.tag, sequence.private_items.digest())

    def fragments(self, tag: int, offset_table: bytes, spans: list[Span]) -> None:
        level = self._levels[-1]
        if len(self._levels) == 1:
            self._found_pixels(PixelElement(tag, "OB", True, spans, offset_table))
            return
        running = hashlib.sha256(tag.to_bytes(4, "big") + values.BYTES)
        for span in spans:
            self._feed(running, span, 1, trim=False)
        self._keep(level.part or rules.part_of(tag), tag, running.digest())

    def _found_pixels(self, found: PixelElement) -> None:
        if self.pixels is not None:
            self._refuse("malformed", "the data set holds pixel data twice")
        self.pixels = found

    def _keep(self, part: Part, tag: int, digest: bytes) -> None:
        if self._levels[-1].digests.setdefault(part, {}).setdefault(tag, digest) != digest:
            # Readers differ in which one they show, so a commitment to either would mislead.
            self._refuse("malformed", f"element {name_of(tag)} stands twice with two values")

    def _refuse(self, code: str, reason: str) -> NoReturn:
        raise UnreadableInstance(self._name, code, reason)

    def _private(self, tag: int, vr: str, little_endian: bool, data: bytes | Span) -> bytes | None:
        if isinstance(data, Span):
            swap = 1 if little_endian else values.word_bytes(vr)
            return self._digest(tag, values.RAW, data, swap)
        raw = values.trim_private(data if little_endian else values.little_endian(vr, data))
        return self._digest(tag, values.RAW, raw) if raw else None

    def _public(
        self, level: _Level, tag: int, vr: str, little_endian: bool, data: bytes | Span
    ) -> bytes | None:
        kind, decisive = values.kind_of(tag, vr)
        if kind is values.TEXT:
            return self._text(level, tag, decisive, data)
        if isinstance(data, Span):
            swap = 1 if little_endian else values.word_bytes(vr)
            return self._digest(tag, kind, data, swap, trim=kind is values.BYTES)
        data = data if little_endian else values.little_endian(vr, data)
        if kind is values.BYTES:
            data = values.trim_bytes(data)
        elif tag in self._wanted and len(self._levels) == 1:
            self.facts[tag] = data[:FACT_BYTES_MAX]
        return self._digest(tag, kind, data)

    def _text(self, level: _Level, tag: int, vr: str, data: bytes | Span) -> bytes | None:
        if isinstance(data, Span):
            if data.length > self._limits.text_bytes_max:
                self._refuse("limit", f"the text of element {name_of(tag)} is too long")
            data = self._at(data)
        text = values.normalise_text(vr, data, level.charset)
        if text is None:
            return self._digest(tag, values.RAW, values.trim_bytes(data))
        if tag in self._wanted and len(self._levels) == 1:
            self.facts[tag] = text[:FACT_BYTES_MAX]
        if tag == rules.PHOTOMETRIC_INTERPRETATION:
            text = rules.PHOTOMETRIC_OF_CODECS.get(text, text)
        return self._digest(tag, values.TEXT, text.encode()) if text else None

    def _digest(
        self, tag: int, kind: bytes, data: bytes | Span, swap: int = 1, trim: bool = False
    ) -> bytes:
        head = tag.to_bytes(4, "big") + kind
        if isinstance(data, bytes):
            return hashlib.sha256(head + data).digest()
        running = hashlib.sha256(head)
        self._feed(running, data, swap, trim)
        return running.digest()

    def _feed(self, running: "hashlib._Hash", span: Span, swap: int, trim: bool) -> None:
        swap = swap if span.length % swap == 0 else 1
        for start in range(0, span.length, CHUNK_BYTES):
            length = min(CHUNK_BYTES, span.length - start)
            part = values.swap_words(self._at(Span(span.offset + start, length)), swap)
            last = start + length == span.length and span.length % 2 == 0
            running.update(values.trim_bytes(part) if trim and last else part)

    def _at(self, span: Span) -> bytes:
        """Return the bytes of `span`; the stream goes on from where it was."""
        here = self._stream.tell()
        self._stream.seek(span.offset)
        data = self._stream.read(span.length)
        self._stream.seek(here)
        if len(data) != span.length:
            self._refuse("changed", "the file became shorter while it was read")
        return data


def combine(tag: bytes, digests: Digests) -> bytes:
    """Return one digest over `digests` in tag order."""
    rows = (key.to_bytes(4, "big") + digest for key, digest in sorted(digests.items()))
    return hashlib.sha256(tag + b"".join(rows)).digest()


def part_digest(part: Part, digests: Digests) -> bytes:
    """Return the digest K, X or that of the imported attributes, over their top-level elements."""
    return combine(_PART_TAGS[part], digests)
