"""Payloads of the frames that carry proposals, batches and their bodies.

| frame         | payload                                                                      |
|---------------|------------------------------------------------------------------------------|
| PROPOSAL      | 2-byte length, encoded pre-prepare, encoded batch                            |
| FETCH_PAYLOAD | 8-byte height, batch digest, digests of the missing bodies                   |
| PAYLOAD       | batch digest, 4-byte count, a 4-byte length for each item, the items: first  |
|               | the encoded batch (empty: the asker has it), then bodies, none of them empty |

Integers are big-endian, digests have 32 bytes. No missing digests means that the asker lacks the
batch itself and wants everything. The layouts are flat, so each value has one encoding, and no
frame of a liar makes a decoder build millions of objects. Every decoder raises `InvalidMessage`
and nothing else.
"""

import struct
from collections.abc import Sequence

from consensus.errors import InvalidMessage
from consensus.messages import HEIGHT_MAX

BODIES_MAX = 10_000  # what the largest genesis allows in a batch
PRE_PREPARE_BYTES_MAX = 256
DIGEST_BYTES = 32

_PROPOSAL = struct.Struct(">H")
_REQUEST = struct.Struct(f">Q{DIGEST_BYTES}s")
_ANSWER = struct.Struct(f">{DIGEST_BYTES}sI")
_LENGTH_BYTES = 4


def encode_proposal(pre_prepare: bytes, batch: bytes) -> bytes:
    """Return the payload of a PROPOSAL frame."""
    return b"".join((_PROPOSAL.pack(len(pre_prepare)), pre_prepare, batch))


def decode_proposal(data: bytes) -> tuple[bytes, bytes]:
    """Return (encoded pre-prepare, encoded batch); neither is looked into."""
    if len(data) < _PROPOSAL.size:
        raise InvalidMessage("a proposal is too short")
    (length,) = _PROPOSAL.unpack_from(data)
    split = _PROPOSAL.size + length
    if not 0 < length <= PRE_PREPARE_BYTES_MAX or split >= len(data):
        raise InvalidMessage(f"a proposal of {len(data)} bytes has no batch after {length} bytes")
    return data[_PROPOSAL.size : split], data[split:]


def encode_payload_request(height: int, digest: bytes, missing: Sequence[bytes]) -> bytes:
    """Return the payload of a FETCH_PAYLOAD frame."""
    return b"".join((_REQUEST.pack(height, digest), *missing))


def decode_payload_request(data: bytes) -> tuple[int, bytes, tuple[bytes, ...]]:
    """Return (height, batch digest, digests of the missing bodies)."""
    count, rest = divmod(len(data) - _REQUEST.size, DIGEST_BYTES)
    if rest or not 0 <= count <= BODIES_MAX:
        raise InvalidMessage(
            f"a payload request of {len(data)} bytes is no height, digest and up to "
            f"{BODIES_MAX} missing digests"
        )
    height, digest = _REQUEST.unpack_from(data)
    if not 0 < height <= HEIGHT_MAX:
        raise InvalidMessage(f"a payload request names height {height}")
    starts = range(_REQUEST.size, len(data), DIGEST_BYTES)
    return height, digest, tuple([data[start : start + DIGEST_BYTES] for start in starts])


def encode_payload(digest: bytes, batch: bytes, bodies: Sequence[bytes]) -> bytes:
    """Return the payload of a PAYLOAD frame."""
    lengths = struct.pack(f">{len(bodies) + 1}I", len(batch), *map(len, bodies))
    return b"".join((_ANSWER.pack(digest, len(bodies) + 1), lengths, batch, *bodies))


def decode_payload(data: bytes) -> tuple[bytes, bytes, tuple[bytes, ...]]:
    """Return (batch digest, encoded batch or b"", bodies); none of them is looked into."""
    if len(data) < _ANSWER.size:
        raise InvalidMessage("a payload is too short")
    digest, count = _ANSWER.unpack_from(data)
    position = _ANSWER.size + _LENGTH_BYTES * count
    if not 1 <= count <= BODIES_MAX + 1 or position > len(data):
        raise InvalidMessage(f"a payload announces {count} items in {len(data)} bytes")
    lengths: tuple[int, ...] = struct.unpack_from(f">{count}I", data, _ANSWER.size)
    if not all(lengths[1:]) or position + sum(lengths) != len(data):
        raise InvalidMessage("a payload has bodies that are empty, cut or followed by other bytes")
    items = []
    for length in lengths:
        items.append(data[position : position + length])
        position += length
    return digest, items[0], tuple(items[1:])
