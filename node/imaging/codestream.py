"""What compressed frames say of their own size, read before a codec makes room for it.

A codec believes the header of a frame and not the data set around it: some bytes may announce
gigabytes. Here is only as much of each form as tells rows, columns and samples; None means that it
does not, and the codec is asked.
"""

from itertools import pairwise
from struct import unpack_from

_JPEG_START, _JPEG_LENGTHLESS = b"\xff\xd8", frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # SOF; 0xF7 of JPEG-LS
_JPEG_SCAN = 0xDA
_J2K_SIZE = b"\xff\x4f\xff\x51"  # SOC and SIZ (ISO 15444-1 A.5.1), also inside a JP2 file
_J2K_HEAD_BYTES = 65_536
_MARKERS_MAX = 1_000
_RLE_SEGMENTS_MAX = 15


def announced_samples(frame: bytes) -> int | None:
    """Return rows by columns by components that a JPEG, JPEG-LS or JPEG 2000 header announces."""
    if frame.startswith(_JPEG_START):
        return _jpeg_samples(frame)
    at = frame.find(_J2K_SIZE, 0, _J2K_HEAD_BYTES)
    if at < 0 or len(frame) < at + 42:
        return None
    right, bottom, left, top = unpack_from(">4L", frame, at + 8)
    components = unpack_from(">H", frame, at + 40)[0]
    return int(max(0, right - left) * max(0, bottom - top) * components)


def _jpeg_samples(frame: bytes) -> int | None:
    at = 2
    for _ in range(_MARKERS_MAX):
        if at + 10 > len(frame) or frame[at] != 0xFF:
            return None
        marker = frame[at + 1]
        if marker == 0xFF:  # a fill byte (ISO 10918-1 B.1.1.2)
            at += 1
        elif marker in _JPEG_LENGTHLESS:
            at += 2
        elif marker in _JPEG_FRAMES:
            _, rows, columns, components = unpack_from(">BHHB", frame, at + 4)
            return int(rows * columns * components)
        elif marker == _JPEG_SCAN:
            return None
        else:
            at += 2 + int(unpack_from(">H", frame, at + 2)[0])
    return None


def rle_bytes(frame: bytes, most: int) -> int:
    """Return how many bytes the segments of an RLE frame unpack to, or more than `most` as soon as
    it is known that it is more (PS3.5 G.3)."""
    if len(frame) < 64:
        return 0
    count, *offsets = unpack_from("<16L", frame)
    starts = [*offsets[: min(count, _RLE_SEGMENTS_MAX)], len(frame)]
    total = 0
    for at, end in pairwise(starts):
        end = min(end, len(frame))
        while at < end and total <= most:
            control = frame[at]
            if control < 128:  # so many bytes and one follow as they are
                total += control + 1
                at += control + 2
            else:
                total += 257 - control if control > 128 else 0
                at += 2 if control > 128 else 1
    return total
