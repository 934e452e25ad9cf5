"""Frames: a 4-byte big-endian payload length, a 1-byte kind, the payload.

Every kind has its own maximum, checked before a byte of the payload is buffered. Before HELLO only
HELLO and GOODBYE are legal, so a peer that was not greeted cannot make this node buffer megabytes.
"""

import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum

from node.network.errors import InvalidFrame

WIRE_VERSION = 1
HEADER_BYTES = 5
_HEADER = struct.Struct(">IB")
_KIB, _MIB = 1024, 1024 * 1024


class Kind(IntEnum):
    """What a payload is. Numbers are part of the wire format; a new kind is a new wire version."""

    HELLO = 1
    GOODBYE = 2
    PING = 3
    PONG = 4
    STATUS = 5
    TRANSACTIONS = 6
    ANNOUNCE = 7
    FETCH_TRANSACTIONS = 8
    PROPOSAL = 9
    CONSENSUS = 10
    FETCH_PAYLOAD = 11
    PAYLOAD = 12
    FETCH_BLOCKS = 13
    BLOCKS = 14
    SEALED = 15


# The largest genesis allows batches of 16 MiB in 10,000 transactions; a block adds its header,
# certificate and receipts to that. A NEW-VIEW of a large set under load is the largest message.
PAYLOAD_BYTES_MAX: Mapping[Kind, int] = {
    Kind.HELLO: 1 * _KIB,
    Kind.GOODBYE: 1 * _KIB,
    Kind.PING: 8,
    Kind.PONG: 8,
    Kind.STATUS: 64,
    Kind.TRANSACTIONS: 1 * _MIB + 64 * _KIB,
    Kind.ANNOUNCE: 64 * _KIB,
    Kind.FETCH_TRANSACTIONS: 64 * _KIB,
    Kind.PROPOSAL: 1 * _MIB,
    Kind.CONSENSUS: 16 * _MIB,
    Kind.FETCH_PAYLOAD: 512 * _KIB,
    Kind.PAYLOAD: 20 * _MIB,
    Kind.FETCH_BLOCKS: 32,
    Kind.BLOCKS: 20 * _MIB,
    Kind.SEALED: 20 * _MIB,
}
GREETING_KINDS: Mapping[Kind, int] = {
    kind: PAYLOAD_BYTES_MAX[kind] for kind in (Kind.HELLO, Kind.GOODBYE)
}
_KINDS: Mapping[int, Kind] = {int(kind): kind for kind in Kind}


def encode_frame(kind: Kind, payload: bytes) -> bytes:
    """Return the frame. Raises `ValueError` for a payload that every peer would refuse."""
    if len(payload) > PAYLOAD_BYTES_MAX[kind]:
        raise ValueError(
            f"{kind.name} payload of {len(payload)} bytes; at most {PAYLOAD_BYTES_MAX[kind]}"
        )
    return _HEADER.pack(len(payload), kind) + payload


class FrameParser:
    """Cuts a byte stream, in whatever chunks it comes, into frames.

    Holds at most one incomplete frame, of no more bytes than its kind allows.
    """

    def __init__(self, limits: Mapping[Kind, int] = PAYLOAD_BYTES_MAX) -> None:
        self.limits = limits  # kinds that are legal now, each with its largest payload in bytes
        self._rest = bytearray()
        self._needed = HEADER_BYTES  # bytes that `_rest` must have before it is worth a look

    @property
    def buffered(self) -> int:
        """The bytes of an incomplete frame that are held."""
        return len(self._rest)

    def feed(self, chunk: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Yield the frames that `chunk` completes. Raises `InvalidFrame`; nothing can follow it.

        `limits` may be changed between two frames. Exhaust the iterator or drop the parser.
        """
        if self._rest:
            self._rest += chunk
            if len(self._rest) < self._needed:
                return
            chunk = bytes(self._rest)
            self._rest.clear()
        position, end = 0, len(chunk)
        while end - position >= HEADER_BYTES:
            length, number = _HEADER.unpack_from(chunk, position)
            kind = self._legal(length, number)
            after = position + HEADER_BYTES + length
            if after > end:
                self._needed = HEADER_BYTES + length
                self._rest += memoryview(chunk)[position:]
                return
            yield kind, chunk[position + HEADER_BYTES : after]
            position = after
        self._needed = HEADER_BYTES
        self._rest += memoryview(chunk)[position:]

    def _legal(self, length: int, number: int) -> Kind:
        kind = _KINDS.get(number)
        if kind is None:
            raise InvalidFrame(f"kind {number} is not known to wire version {WIRE_VERSION}")
        limit = self.limits.get(kind)
        if limit is None:
            raise InvalidFrame(f"{kind.name} before HELLO")
        if length > limit:
            raise InvalidFrame(f"{kind.name} of {length} bytes; at most {limit}")
        return kind
