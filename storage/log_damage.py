"""Finds damage that LevelDB takes for the torn end of a log.

LevelDB stops reading a log quietly where a record claims more bytes than the file has left, since
a crash in the middle of a write looks like that, and skips the rest of a block whose header is
zero. A damaged length does the same to records that were synced and acknowledged, and LevelDB
would then open without them. All other damage it reports itself when its checks are paranoid.

A log is a sequence of blocks of 32 KiB; a block is a sequence of records: checksum 4 (CRC-32C
over type and data, masked), length 2, type 1, data; all little-endian. A record never crosses a
block; the last 6 bytes of a block may be left empty. Source: LevelDB, doc/log_format.md.
"""

import struct

BLOCK_SIZE = 32 * 1024
_HEADER = struct.Struct("<IHB")
_MASK_DELTA = 0xA282EAD8
_CASTAGNOLI = 0x82F63B78  # reversed


def hidden_damage(log: bytes) -> str | None:
    """Return what is wrong with a log or MANIFEST in words; None when its end is clean or torn.

    Only finds what LevelDB itself would pass over; checksums of whole records are left to it.
    """
    position = 0
    while position + _HEADER.size <= len(log):
        block_end = min((position // BLOCK_SIZE + 1) * BLOCK_SIZE, len(log))
        if block_end - position < _HEADER.size:
            position = block_end
            continue
        checksum, length, kind = _HEADER.unpack_from(log, position)
        end = position + _HEADER.size + length
        if kind == 0 and length == 0:
            # Some file systems leave zeros behind a crash, but then nothing follows them.
            if log.count(0, position) != len(log) - position:
                return f"zeros in front of other data at byte {position}"
            return None
        if end > block_end:
            if block_end == len(log) and _is_whole(log[position + 6 : block_end], checksum):
                return f"a record of impossible length at byte {position}"
            return None
        position = end
    return None


def _is_whole(rest: bytes, checksum: int) -> bool:
    """Tell whether `rest`, from a record's type on, begins with data that has this checksum.

    If so the record is complete, and it is its length that is wrong: this is no torn end.
    """
    crc = 0xFFFFFFFF
    for byte in rest:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
        if _mask(crc ^ 0xFFFFFFFF) == checksum:
            return True
    return False


def _mask(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _table_entry(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (_CASTAGNOLI if byte & 1 else 0)
    return byte


_TABLE = tuple(map(_table_entry, range(256)))
