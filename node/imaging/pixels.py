"""P: what an instance shows, one digest per frame.

Native samples are digested as little-endian samples in colour-by-pixel order, so that byte order,
planar configuration and lossless compression make no difference. Frames of a lossless syntax are
decoded for that, one at a time. A lossy source, or a lossless one for which no decoder is
installed, is committed to as its compressed payload without the fragmentation; `Form` says which,
stands in the record and so in the leaf, and the other side compares the same form.

Bytes after the last sample are padding (PS3.5 §8.1.1). One-bit frames that do not begin on a byte
are digested as one.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from struct import unpack
from typing import BinaryIO, NoReturn

import numpy as np
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder

from consensus.wire import pack
from node.imaging import jpeg_lossless, values
from node.imaging.codestream import announced_samples, rle_bytes
from node.imaging.core import PixelElement
from node.imaging.elements import Span
from node.imaging.errors import UnreadableInstance
from node.imaging.limits import CHUNK_BYTES, Limits
from node.imaging.syntax import Syntax

jpeg_lossless.register()

_TAG = b"radledger/pixels/1"
_RLE = "1.2.840.10008.1.2.5"
_SLACK = 4_096
SAMPLES_PER_PIXEL = 0x00280002
PHOTOMETRIC = 0x00280004
PLANAR = 0x00280006
FRAMES = 0x00280008
ROWS = 0x00280010
COLUMNS = 0x00280011
BITS_ALLOCATED = 0x00280100
BITS_STORED = 0x00280101
REPRESENTATION = 0x00280103
PIXEL_FACTS = frozenset(
    {SAMPLES_PER_PIXEL, PHOTOMETRIC, PLANAR, FRAMES, ROWS, COLUMNS, BITS_ALLOCATED, BITS_STORED}
) | {REPRESENTATION}


class Form(Enum):
    """What P is a digest of; the class of a record."""

    NONE = 0  # the instance has no pixel data: a report, a plan, a document, a waveform
    SAMPLES = 1
    LOSSY = 2  # compressed payload of a lossy syntax
    UNDECODED = 3  # compressed payload of a lossless syntax, which is not decoded here


@dataclass(frozen=True, slots=True)
class PixelDigest:
    """P in one form."""

    form: Form
    digest: bytes  # 32 bytes; empty for Form.NONE
    frames: bytes  # 32 bytes for each frame, in order


NO_PIXELS = PixelDigest(Form.NONE, b"", b"")


@dataclass(frozen=True, slots=True)
class Pixels:
    """P in every form that can be had from one file."""

    samples: PixelDigest | None
    payload: PixelDigest | None

    @property
    def chosen(self) -> PixelDigest:
        """The form to commit to: samples wherever they can be had without loss."""
        return self.samples or self.payload or NO_PIXELS


@dataclass(frozen=True, slots=True)
class Layout:
    """How the samples of one image are described (PS3.3 C.7.6.3)."""

    frames: int
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    representation: int
    photometric: str
    planar: int

    @property
    def frame_bits(self) -> int:
        """Bits of one native frame."""
        pixels = self.rows * self.columns
        if self.photometric == "YBR_FULL_422":  # two colour samples for every two pixels
            return pixels * 2 * self.bits_allocated
        return pixels * self.samples * self.bits_allocated


Facts = dict[int, "str | bytes"]


def digest_pixels(
    stream: BinaryIO,
    name: str,
    syntax: Syntax,
    found: PixelElement | None,
    facts: Facts,
    limits: Limits,
) -> Pixels:
    """Return P of the pixel data that `found` locates in `stream`.

    Raises `UnreadableInstance` if the pixel data is not what its description says.
    """
    if found is None or (found.offset_table is None and not found.spans[0].length):
        return Pixels(None, None)
    reader = _PixelReader(stream, name, syntax, found, facts, limits)
    return reader.encapsulated() if syntax.encapsulated else reader.native()


class _PixelReader:
    def __init__(
        self,
        stream: BinaryIO,
        name: str,
        syntax: Syntax,
        found: PixelElement,
        facts: Facts,
        limits: Limits,
    ) -> None:
        self._stream, self._name, self._syntax = stream, name, syntax
        self._found, self._facts, self._limits = found, facts, limits
        if (found.offset_table is not None) != syntax.encapsulated:
            self._refuse("pixel data is compressed in a syntax that is not, or the other way round")
        self._layout = self._read_layout()

    def _refuse(self, reason: str) -> NoReturn:
        raise UnreadableInstance(self._name, "pixels", reason)

    def _read_layout(self) -> Layout:
        float_bits = {0x7FE00008: 32, 0x7FE00009: 64}.get(self._found.tag, 0)
        layout = Layout(
            self._frame_count(),
            self._number(ROWS),
            self._number(COLUMNS),
            self._number(SAMPLES_PER_PIXEL, 1),
            self._number(BITS_ALLOCATED, float_bits),
            self._number(BITS_STORED, 0),
            self._number(REPRESENTATION, 0),
            str(self._facts.get(PHOTOMETRIC, "")),
            self._number(PLANAR, 0),
        )
        if not layout.rows or not layout.columns:
            self._refuse("pixel data without rows and columns")
        if layout.samples not in (1, 2, 3, 4) or layout.bits_allocated not in (1, 8, 16, 32, 64):
            self._refuse("samples per pixel or bits allocated are not possible")
        return layout

    def _number(self, tag: int, default: int = 0) -> int:
        value = self._facts.get(tag, b"")
        return unpack("<H", value)[0] if isinstance(value, bytes) and len(value) == 2 else default

    def _frame_count(self) -> int:
        text = str(self._facts.get(FRAMES, "")) or "1"
        if not (text.isascii() and text.isdigit()) or len(text) > 9 or not int(text):
            self._refuse("the number of frames is no number")
        if int(text) > self._limits.frames_max:
            self._refuse(f"more than {self._limits.frames_max} frames")
        return int(text)

    # Native samples

    def native(self) -> Pixels:
        layout = self._layout
        (span,) = self._found.spans
        bits = layout.frame_bits
        if span.length * 8 < bits * layout.frames:
            self._refuse("the pixel data is shorter than its rows, columns and frames need")
        whole = bits % 8 and layout.frames > 1
        length = -(-bits * layout.frames // 8) if whole else -(-bits // 8)
        frames = b"".join(
            self._native_frame(length * index, length)
            for index in range(1 if whole else layout.frames)
        )
        return Pixels(self._digest(Form.SAMPLES, frames), None)

    def _native_frame(self, start: int, length: int) -> bytes:
        layout, running = self._layout, hashlib.sha256()
        planes = layout.samples if layout.planar and layout.frame_bits % 8 == 0 else 1
        if planes == 1 or length % planes or layout.photometric == "YBR_FULL_422":
            for offset in range(0, length, CHUNK_BYTES):
                running.update(self._native(start + offset, min(CHUNK_BYTES, length - offset)))
            return running.digest()
        width, plane = layout.bits_allocated // 8, length // planes
        for offset in range(0, plane, CHUNK_BYTES):
            size = min(CHUNK_BYTES, plane - offset)
            parts = [self._native(start + n * plane + offset, size) for n in range(planes)]
            stacked = np.stack([np.frombuffer(p, np.uint8).reshape(-1, width) for p in parts], 1)
            running.update(stacked.tobytes())
        return running.digest()

    def _native(self, start: int, length: int) -> bytes:
        """Return bytes of the pixel data in little-endian order, at any offset of it."""
        (span,) = self._found.spans
        word = self._word_bytes()
        if word == 1:
            return self._at(Span(span.offset + start, length))
        first = start - start % word
        last = min(-(-(start + length) // word) * word, span.length - span.length % word)
        swapped = values.swap_words(self._at(Span(span.offset + first, last - first)), word)
        if start + length > last:
            self._refuse("big-endian pixel data does not consist of whole words")
        return swapped[start - first : start - first + length]

    def _word_bytes(self) -> int:
        """Return the size of the words that big-endian order turns round (PS3.5 §8.1.1, A.3)."""
        if self._found.little_endian or self._found.vr in ("OB", "UN"):
            return 1
        return max(2, self._layout.bits_allocated // 8)

    # Compressed frames

    def encapsulated(self) -> Pixels:
        frames = self._frames()
        payload = b"".join(self._payload_digest(spans) for spans in frames)
        form = Form.UNDECODED if self._syntax.lossless else Form.LOSSY
        samples = self._decoded(frames) if self._syntax.lossless else None
        return Pixels(
            self._digest(Form.SAMPLES, samples) if samples else None, self._digest(form, payload)
        )

    def _frames(self) -> list[list[Span]]:
        """Return each frame's fragments; all as one if nothing tells where frames begin."""
        spans, count = self._found.spans, self._layout.frames
        if not spans:
            self._refuse("compressed pixel data without a fragment")
        if len(spans) == count or count == 1:
            return [[span] for span in spans] if count > 1 else [list(spans)]
        return self._by_offset(self._found.offset_table or b"") or [list(spans)]

    def _by_offset(self, table: bytes) -> list[list[Span]]:
        """Group fragments by the basic offset table (PS3.5 A.4); empty if it does not fit them."""
        if len(table) != 4 * self._layout.frames:
            return []
        starts = set(unpack(f"<{len(table) // 4}L", table))
        base = self._found.spans[0].offset - 8
        grouped: list[list[Span]] = []
        for span in self._found.spans:
            if span.offset - 8 - base in starts:
                grouped.append([])
            if not grouped:
                return []
            grouped[-1].append(span)
        return grouped if len(grouped) == self._layout.frames else []

    def _payload_digest(self, spans: list[Span]) -> bytes:
        """Return the digest of the fragments joined, without the byte that pads the last."""
        running = hashlib.sha256()
        spans = [span for span in spans if span.length]
        for number, span in enumerate(spans, 1):
            for offset in range(0, span.length, CHUNK_BYTES):
                length = min(CHUNK_BYTES, span.length - offset)
                part = self._at(Span(span.offset + offset, length))
                last = number == len(spans) and offset + length == span.length
                # Fragments are of even length; a codestream itself does not end with zero.
                running.update(part[:-1] if last and part.endswith(b"\0") else part)
        return running.digest()

    def _decoded(self, frames: list[list[Span]]) -> bytes | None:
        """Return the digests of the decoded frames, or None if they cannot be decoded here."""
        layout = self._layout
        limit = self._limits.frame_bytes_max
        sizes = [sum(span.length for span in spans) for spans in frames]
        if len(frames) != layout.frames or max(layout.frame_bits // 8, *sizes) > limit:
            return None
        # A blank frame of megabytes takes some hundred bytes: a small file could cost hours.
        if layout.frame_bits // 8 * layout.frames > self._limits.decoded_bytes_max:
            return None
        try:
            decoder = get_decoder(self._syntax.uid)
        except NotImplementedError:
            return None
        subsampled = layout.photometric == "YBR_FULL_422"
        if not decoder.is_available or layout.bits_allocated == 1 or subsampled:
            return None
        return b"".join(hashlib.sha256(frame).digest() for frame in self._decode(frames))

    def _decode(self, frames: list[list[Span]]) -> Iterator[bytes]:
        layout = self._layout
        decoder = get_decoder(self._syntax.uid)
        for number, spans in enumerate(frames, 1):
            encoded = b"".join(self._at(span) for span in spans)
            self._check_announced(number, encoded)
            try:
                array, _ = decoder.as_array(
                    encapsulate([encoded], has_bot=False),
                    raw=True,
                    index=0,
                    rows=layout.rows,
                    columns=layout.columns,
                    number_of_frames=1,
                    samples_per_pixel=layout.samples,
                    photometric_interpretation=layout.photometric,
                    bits_allocated=layout.bits_allocated,
                    bits_stored=layout.bits_stored or layout.bits_allocated,
                    pixel_representation=layout.representation,
                    planar_configuration=layout.planar,
                    pixel_keyword="PixelData",
                )
            except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
                raise
            except BaseException as error:  # noqa: BLE001 - native codecs raise beyond Exception
                reason = f"frame {number} cannot be decoded ({type(error).__name__})"
                raise UnreadableInstance(self._name, "decoder", reason) from None
            native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
            if native.nbytes * 8 != layout.frame_bits:
                self._refuse(f"frame {number} decodes to another size than its description says")
            yield native.tobytes()

    def _check_announced(self, number: int, encoded: bytes) -> None:
        """Refuse a frame that would decode to far more than its description says, before it does.

        What is a little longer is left to the decoder, which knows what may be padding.
        """
        layout = self._layout
        if self._syntax.uid == _RLE:
            most = 2 * (layout.frame_bits // 8) + _SLACK
            is_more = rle_bytes(encoded, most) > most
        else:
            most = 2 * layout.rows * layout.columns * layout.samples + _SLACK
            is_more = (announced_samples(encoded) or 0) > most
        if is_more:
            self._refuse(f"frame {number} has another size than its description says")

    def _digest(self, form: Form, frames: bytes) -> PixelDigest:
        layout = self._layout
        shape = (form.value, layout.rows, layout.columns, layout.samples, layout.bits_allocated)
        head = _TAG + pack((*shape, len(frames) // 32))
        return PixelDigest(form, hashlib.sha256(head + frames).digest(), frames)

    def _at(self, span: Span) -> bytes:
        self._stream.seek(span.offset)
        data = self._stream.read(span.length)
        if len(data) != span.length:
            raise UnreadableInstance(
                self._name, "changed", "the file became shorter while it was read"
            )
        return data
