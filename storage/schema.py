"""Every key of the database, byte by byte.

A key is one letter that names its table, then fields of fixed length, then at most one of any
length. Integers are unsigned and big-endian, so byte order is numeric order. README.md shows the
whole layout with its values.
"""

import struct
from collections.abc import Sequence

from storage.errors import CorruptRecord

SCHEMA_VERSION = 1

PAYLOAD = b"P"  # height 8, digest 32       -> byte strings: batch, body 0, body 1, ...
BLOCK = b"B"  # height 8                  -> payload digest 32, header
HEADER_HEIGHT = b"D"  # header digest 32           -> height 8
RECEIPTS = b"R"  # height 8                  -> byte strings: receipt 0, receipt 1, ...
CERTIFICATE = b"C"  # height 8                  -> certificate
HEAD = b"H"  # nothing                   -> height 8
TRANSACTION = b"T"  # id 32                     -> height 8, position 4
WAL = b"W"  # key                       -> value
STATE = b"S"  # key                       -> value
STATE_NODE = b"N"  # path, one hex digit each    -> node, see state_node.py
STATE_ROOT = b"A"  # nothing                   -> keys 8, nodes 8, root entry 0, 32 or 64
INDEX = b"I"  # name part, parts            -> value
META = b"M"  # name                      -> value

HEIGHT_MAX = 2**63 - 1
POSITION_MAX = 2**32 - 1

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_PLACE = struct.Struct(">QI")

# 0x00 ends a part and is below every byte that goes on, so a part sorts before its own extensions.
# 0x00 and 0x01 inside a part become two bytes, in an order that keeps 0x00 < 0x01 < 0x02.
_PART_END = b"\x00"
_ESCAPED_ZERO = b"\x01\x01"
_ESCAPED_ONE = b"\x01\x02"


def height_bytes(height: int) -> bytes:
    """Return `height` as 8 bytes. Raises ValueError outside 0..HEIGHT_MAX."""
    if not 0 <= height <= HEIGHT_MAX:
        raise ValueError(f"a height lies in 0..{HEIGHT_MAX}, not {height}")
    return _U64.pack(height)


def read_height(data: bytes, where: str) -> int:
    """Return the height that 8 bytes hold; `where` names the row in `CorruptRecord`."""
    if len(data) != 8:
        raise damaged(where)
    height: int = _U64.unpack(data)[0]
    return height


def place_bytes(height: int, position: int) -> bytes:
    """Return a transaction's place, 12 bytes: height and position in the block."""
    if not (0 <= height <= HEIGHT_MAX and 0 <= position <= POSITION_MAX):
        raise ValueError(f"no transaction lies at height {height}, position {position}")
    return _PLACE.pack(height, position)


def read_place(data: bytes) -> tuple[int, int]:
    """Return (height, position) of 12 bytes, or raise `CorruptRecord`."""
    if len(data) != 12:
        raise damaged("a transaction's place")
    height, position = _PLACE.unpack(data)
    return height, position


def digest_bytes(digest: bytes) -> bytes:
    """Return `digest` if it has 32 bytes, so that no key field runs into the next."""
    if len(digest) != 32:
        raise ValueError(f"a digest has 32 bytes, not {len(digest)}")
    return digest


def after_prefix(prefix: bytes) -> bytes:
    """Return the first key that is above every key beginning with `prefix`, for scans.

    A prefix of the schema begins with a letter, so there always is one.
    """
    kept = prefix.rstrip(b"\xff")
    if not kept:
        raise ValueError("a scan needs a prefix with a byte below 0xff")
    return kept[:-1] + bytes((kept[-1] + 1,))


def encode_parts(parts: Sequence[bytes]) -> bytes:
    """Return bytes whose order is the order of the tuple of `parts`; no part runs into the next."""
    joined = _PART_END.join(parts)
    if parts and b"\x01" not in joined and joined.count(0) == len(parts) - 1:
        return joined + _PART_END  # nothing to escape
    return b"".join([_escape(part) + _PART_END for part in parts])


def decode_parts(data: bytes) -> tuple[bytes, ...]:
    """Return the parts of what `encode_parts` made. Raises ValueError for anything else."""
    if not data:
        return ()
    if not data.endswith(_PART_END):
        raise ValueError("the last part has no end")
    return tuple([_unescape(part) for part in data[:-1].split(_PART_END)])


def encode_strings(strings: Sequence[bytes]) -> bytes:
    """Return byte strings in one row: count 4, length 4 of each, then all their bytes."""
    lengths = struct.pack(f">{len(strings) + 1}I", len(strings), *map(len, strings))
    return lengths + b"".join(strings)


def decode_strings(data: bytes, where: str) -> list[bytes]:
    """Return the byte strings of a row; `where` names the row in `CorruptRecord`."""
    lengths, offset = _string_lengths(data, where)
    strings = []
    for length in lengths:
        strings.append(data[offset : offset + length])
        offset += length
    return strings


def decode_string(data: bytes, position: int, where: str) -> bytes | None:
    """Return one byte string of a row without cutting out the others, or None past the last."""
    lengths, offset = _string_lengths(data, where)
    if not 0 <= position < len(lengths):
        return None
    start = offset + sum(lengths[:position])
    return data[start : start + lengths[position]]


def damaged(where: str) -> CorruptRecord:
    """Return the error for a row that does not have the form of its table."""
    return CorruptRecord(
        f"the database holds {where} that cannot be read; "
        "stop the node, move its data folder away, and let it sync anew"
    )


def _string_lengths(data: bytes, where: str) -> tuple[tuple[int, ...], int]:
    if len(data) < 4:
        raise damaged(where)
    count = _U32.unpack_from(data)[0]
    offset = 4 + 4 * count
    if offset > len(data):
        raise damaged(where)
    lengths = struct.unpack_from(f">{count}I", data, 4)
    if offset + sum(lengths) != len(data):
        raise damaged(where)
    return lengths, offset


def _escape(part: bytes) -> bytes:
    if b"\x00" not in part and b"\x01" not in part:
        return part
    return part.replace(b"\x01", _ESCAPED_ONE).replace(b"\x00", _ESCAPED_ZERO)


def _unescape(part: bytes) -> bytes:
    if b"\x01" not in part:
        return part
    # Left to right, so that a pair is never cut: what is 1 afterwards must begin an escaped 1.
    plain = part.replace(_ESCAPED_ZERO, b"\x00")
    if plain.count(b"\x01") != plain.count(_ESCAPED_ONE):
        raise ValueError("a part holds an escape that does not exist")
    return plain.replace(_ESCAPED_ONE, b"\x01")
