"""Lossless compression of one chunk, where it pays.

A CT slice is 16-bit numbers that differ little from their neighbours: the differences, split into a
plane of low and one of high bytes, compress much better than the numbers. A sample of the chunk
tells which method serves; noise, and what is compressed already, is stored as it is.
"""

from enum import IntEnum
from typing import TypeAlias

import numpy as np
import zstandard

from node.exchange.store.errors import Damaged

Data: TypeAlias = bytes | bytearray | memoryview

LEVELS = {"off": None, "fast": 1, "better": 3}  # zstd's
_SAMPLE_BYTES = 64 * 1024
_WORTH = 0.95  # of the size; less saving is not worth expanding it at every reading


class Method(IntEnum):
    """How a chunk's plaintext is written; one byte in its header."""

    RAW = 0
    ZSTD = 1
    WORDS = 2  # differences of 16-bit little-endian numbers, low bytes, high bytes; then zstd


def compress(plain: Data, level: int | None) -> tuple[Method, Data]:
    """Return the best method for `plain` and what it makes of it; RAW gives back `plain` itself."""
    if level is None or len(plain) < 64:
        return Method.RAW, plain
    compressor = zstandard.ZstdCompressor(level=level)
    method = _choose(plain, compressor)
    if method is Method.RAW:
        return method, plain
    packed = compressor.compress(_split(plain) if method is Method.WORDS else plain)
    return (method, packed) if len(packed) < _WORTH * len(plain) else (Method.RAW, plain)


def expand(method: int, packed: Data, size: int) -> bytes:
    """Return the `size` bytes that were compressed. Raises `Damaged` if it is not that many."""
    if method == Method.RAW:
        plain = packed if isinstance(packed, bytes) else bytes(packed)
    elif method in (Method.ZSTD, Method.WORDS):
        try:
            # The size in the frame is checked first: a bomb never gets its memory.
            if zstandard.frame_content_size(packed) != size:
                raise Damaged("a chunk does not expand to its size")
            plain = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Damaged("a chunk does not expand") from error
        plain = _join(plain) if method == Method.WORDS else plain
    else:
        raise Damaged(f"a chunk is written by method {method}, which this program does not know")
    if len(plain) != size:
        raise Damaged("a chunk does not expand to its size")
    return plain


def _choose(plain: Data, compressor: zstandard.ZstdCompressor) -> Method:
    view = memoryview(plain)
    # From the middle, at an even place: headers stand at the start.
    start = max(0, (len(view) - _SAMPLE_BYTES) // 2) & ~1
    sample = view[start : start + _SAMPLE_BYTES]
    sizes = {
        Method.RAW: int(len(sample) * _WORTH),
        Method.ZSTD: len(compressor.compress(sample)),
        Method.WORDS: len(compressor.compress(_split(sample))),
    }
    return min(sizes, key=lambda method: sizes[method])


def _split(plain: Data) -> bytes:
    odd = len(plain) % 2
    words = np.frombuffer(plain, "<u2", count=len(plain) // 2)
    planes = np.empty((2, len(words)), np.uint8)
    differences = np.empty_like(words)
    differences[:1] = words[:1]
    np.subtract(words[1:], words[:-1], out=differences[1:])  # modulo 2^16
    octets = differences.view(np.uint8)
    planes[0], planes[1] = octets[0::2], octets[1::2]
    return planes.tobytes() + bytes(memoryview(plain)[len(plain) - odd :])


def _join(split: bytes) -> bytes:
    count, odd = divmod(len(split), 2)
    octets = np.frombuffer(split, np.uint8, count=2 * count).reshape(2, count)
    words = np.ascontiguousarray(octets.T).view("<u2").reshape(count)
    joined = np.cumsum(words, dtype="<u2").tobytes()
    return joined + split[len(split) - odd :] if odd else joined
