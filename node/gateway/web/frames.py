"""Single frames of an instance: native samples in little-endian order, or a compressed codestream.

Frames count from 1, as in PS3.18. Nothing is decoded here.
"""

from dataclasses import dataclass

import numpy as np
from pydicom.encaps import get_frame

from node.gateway.web.files import DAMAGED, Failed, Opened, PixelPlace

FRAMES_MAX = 500_000
_BIG_WORD_BYTES_MIN = 2


@dataclass(frozen=True, slots=True)
class Layout:
    """How the frames of an image are described (PS3.3 C.7.6.3)."""

    frames: int
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    photometric: str

    @property
    def frame_bits(self) -> int:
        """Bits of one native frame."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.bits_allocated


def layout_of(opened: Opened) -> Layout:
    """Return the description; raises `Failed` if there is no image, or none that can be."""
    if opened.pixels is None:
        raise Failed("none", "the instance has no pixel data")
    photometric = opened.element(0x00280004) if 0x00280004 in opened.header else None
    float_bits = {0x7FE00008: 32, 0x7FE00009: 64}.get(opened.pixels.tag, 0)
    layout = Layout(
        opened.number(0x00280008, 1) or 1,
        opened.number(0x00280010),
        opened.number(0x00280011),
        opened.number(0x00280002, 1),
        opened.number(0x00280100, float_bits),
        str(photometric.value) if photometric is not None else "",
    )
    if not (layout.rows and layout.columns and 0 < layout.samples <= 4):
        raise Failed("damaged", "the image's rows, columns or samples are not possible")
    if layout.bits_allocated not in (1, 8, 16, 32, 64) or layout.frames > FRAMES_MAX:
        raise Failed("damaged", "the image's bits allocated or number of frames are not possible")
    return layout


def stored_frame(opened: Opened, layout: Layout, number: int, bytes_max: int) -> bytes:
    """Return frame `number` as it is stored: a codestream, or native little-endian samples.

    Raises `Failed` if it does not fit its description, or is longer than `bytes_max`.
    """
    place = opened.pixels
    if place is None or not 1 <= number <= layout.frames:
        raise Failed("none", "there is no such frame")
    if place.length is None:
        return _codestream(opened, layout, place, number, bytes_max)
    return _native(opened, layout, place, place.length, number, bytes_max)


def _codestream(
    opened: Opened, layout: Layout, place: PixelPlace, number: int, bytes_max: int
) -> bytes:
    extended = None
    if 0x7FE00001 in opened.header and 0x7FE00002 in opened.header:
        tables = opened.element(0x7FE00001), opened.element(0x7FE00002)
        if tables[0] is not None and tables[1] is not None:
            extended = (tables[0].value, tables[1].value)
    if extended is None and not place.has_table:
        opened.walk_fragments()  # within limits: pydicom keeps where each of them is
    if layout.frames == 1 and opened.size - place.offset > 2 * bytes_max:
        raise Failed("limit", "the frame is too long to be given alone")
    opened.stream.seek(place.offset)
    try:
        frame: bytes = get_frame(
            opened.stream,
            number - 1,
            number_of_frames=layout.frames,
            extended_offsets=extended,
        )
    except DAMAGED:
        raise Failed("damaged", "the frame cannot be found in the pixel data") from None
    if len(frame) > bytes_max:
        raise Failed("limit", "the frame is too long to be given alone")
    return frame


def _native(
    opened: Opened, layout: Layout, place: PixelPlace, length: int, number: int, bytes_max: int
) -> bytes:
    bits = layout.frame_bits
    if length * 8 < bits * layout.frames:
        raise Failed("damaged", "the pixel data is shorter than its rows, columns and frames need")
    if bits > bytes_max * 8:
        raise Failed("limit", "the frame is too long to be given alone")
    first = bits * (number - 1)
    word = _word_bytes(opened, layout, place)
    start = first // 8 // word * word
    stop = min(-(-(first + bits) // (8 * word)) * word, length)
    opened.stream.seek(place.offset + start)
    data = opened.stream.read(stop - start)
    if len(data) != stop - start:
        raise Failed("damaged", "the stored file became shorter")
    if word > 1:
        data = np.frombuffer(data, f">u{word}").astype(f"<u{word}").tobytes()
    first -= start * 8
    if first % 8 or bits % 8:
        return _cut_bits(data, first, bits)
    return data[first // 8 : (first + bits) // 8]


def _word_bytes(opened: Opened, layout: Layout, place: PixelPlace) -> int:
    """Return the size of the words that big-endian order turns round (PS3.5 §8.1.1, A.3)."""
    if opened.syntax.little_endian or place.vr in ("OB", "UN"):
        return 1
    return max(_BIG_WORD_BYTES_MIN, layout.bits_allocated // 8)


def _cut_bits(data: bytes, first: int, bits: int) -> bytes:
    """Return `bits` bits from bit `first` on, the lowest bit of a byte first (PS3.5 §8.1.1)."""
    values = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    return np.packbits(values[first : first + bits], bitorder="little").tobytes()


def parse_frame_list(text: str, frames_max: int = 1_000) -> list[int]:
    """Return the frame numbers of a URL's list, in its order; raises `ValueError`."""
    numbers = text.split(",")
    if len(numbers) > frames_max or not all(n.isascii() and n.isdigit() for n in numbers):
        raise ValueError
    found = [int(number[:10]) for number in numbers]
    if not all(found):
        raise ValueError
    return found
