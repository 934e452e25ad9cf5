"""What the front reads of the DICOM upper layer protocol (PS3.8 §9.3): heads, and who is calling.

PDU              type (1), reserved (1), length of what follows (4, big-endian)
A-ASSOCIATE-RQ   version (2), reserved (2), called AE title (16), calling AE title (16), ...
A-ASSOCIATE-RJ   reserved (1), result (1), source (1), reason (1)
"""

import struct
from enum import Enum
from typing import NamedTuple

HEAD_BYTES = 6
ASSOCIATE_RQ, ASSOCIATE_RJ = 0x01, 0x03
DATA, RELEASE_RQ, RELEASE_RP, ABORT = 0x04, 0x05, 0x06, 0x07
# 128 presentation contexts with some twenty transfer syntaxes each.
REQUEST_BYTES_MAX = 256 * 1024
_REQUEST_BYTES_MIN = 68
_SMALL_BYTES = 4  # release and abort
_AFTERWARDS = frozenset({DATA, RELEASE_RQ, RELEASE_RP, ABORT})


class InvalidPdu(ValueError):
    """The peer does not speak the protocol, or says more than it may. `args[0]` is a code."""


class Head(NamedTuple):
    """The head of a PDU."""

    type: int
    length: int  # bytes that follow


class Callers(NamedTuple):
    """Who wants to talk to whom."""

    called: str
    calling: str


class Rejection(Enum):
    """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 §9.3.4)."""

    UNKNOWN_CALLING = (1, 1, 3)
    UNKNOWN_CALLED = (1, 1, 7)
    CONGESTED = (2, 3, 1)
    TOO_MANY = (2, 3, 2)


def first_head(data: bytes) -> Head:
    """Return the head of a connection's first PDU. Raises `InvalidPdu`."""
    head = _head(data)
    if head.type != ASSOCIATE_RQ:
        raise InvalidPdu("not_dicom")
    if not _REQUEST_BYTES_MIN <= head.length <= REQUEST_BYTES_MAX:
        raise InvalidPdu("pdu_length")
    return head


def later_head(data: bytes, length_max: int) -> Head:
    """Return the head of a PDU after the first. Raises `InvalidPdu`."""
    head = _head(data)
    if head.type not in _AFTERWARDS:
        raise InvalidPdu("pdu_type")
    if head.length > (length_max if head.type == DATA else _SMALL_BYTES):
        raise InvalidPdu("pdu_length")
    return head


def callers(body: bytes) -> Callers:
    """Return the AE titles in an A-ASSOCIATE-RQ without its head. Raises `InvalidPdu`."""
    if len(body) < _REQUEST_BYTES_MIN:
        raise InvalidPdu("pdu_length")
    return Callers(_title(body[4:20]), _title(body[20:36]))


def rejection(why: Rejection) -> bytes:
    """Return an A-ASSOCIATE-RJ."""
    return struct.pack(">BBLBBBB", ASSOCIATE_RJ, 0, 4, 0, *why.value)


def _head(data: bytes) -> Head:
    if len(data) != HEAD_BYTES:
        raise InvalidPdu("pdu_length")
    kind, _, length = struct.unpack(">BBL", data)
    return Head(kind, length)


def _title(field: bytes) -> str:
    """Return an AE title without its padding; spaces around it mean nothing (PS3.5 §6.2)."""
    try:
        title = field.decode("ascii").strip(" ")
    except UnicodeDecodeError as error:
        raise InvalidPdu("ae_title") from error
    if not title.isprintable():
        raise InvalidPdu("ae_title")
    return title
