"""Payloads of the frames that carry proposals, batches and their bodies.

| frame         | payload                                                |
|---------------|--------------------------------------------------------|
| PROPOSAL      | (encoded pre-prepare, encoded batch)                   |
| FETCH_PAYLOAD | (height, batch digest, digests of the missing bodies)  |
| PAYLOAD       | (batch digest, encoded batch, bodies)                  |

No missing digests means that the asker lacks the batch itself and wants everything.
"""

from consensus.errors import InvalidMessage
from consensus.messages import HEIGHT_MAX
from consensus.wire import NotCanonical, Value, pack, unpack

BODIES_MAX = 10_000


def encode_proposal(pre_prepare: bytes, batch: bytes) -> bytes:
    """Return the payload of a PROPOSAL frame."""
    return pack((pre_prepare, batch))


def decode_proposal(data: bytes) -> tuple[bytes, bytes]:
    """Return (encoded pre-prepare, encoded batch). Raises InvalidMessage."""
    match _fields(data, 2):
        case (bytes() as pre_prepare, bytes() as batch):
            return pre_prepare, batch
    raise InvalidMessage("a proposal is a pre-prepare and a batch")


def encode_payload_request(height: int, digest: bytes, missing: tuple[bytes, ...]) -> bytes:
    """Return the payload of a FETCH_PAYLOAD frame."""
    return pack((height, digest, missing))


def decode_payload_request(data: bytes) -> tuple[int, bytes, tuple[bytes, ...]]:
    """Return (height, digest, missing digests). Raises InvalidMessage."""
    match _fields(data, 3):
        case (int() as height, bytes() as digest, tuple() as missing) if (
            type(height) is int and 0 < height <= HEIGHT_MAX and len(digest) == 32
        ):
            return height, digest, _byte_strings(missing, 32)
    raise InvalidMessage("a payload request is a height, a digest and the missing digests")


def encode_payload(digest: bytes, batch: bytes, bodies: list[bytes]) -> bytes:
    """Return the payload of a PAYLOAD frame."""
    return pack((digest, batch, bodies))


def decode_payload(data: bytes) -> tuple[bytes, bytes, tuple[bytes, ...]]:
    """Return (digest, encoded batch, bodies). Raises InvalidMessage."""
    match _fields(data, 3):
        case (bytes() as digest, bytes() as batch, tuple() as bodies) if len(digest) == 32:
            return digest, batch, _byte_strings(bodies, None)
    raise InvalidMessage("a payload is a digest, a batch and bodies")


def _fields(data: bytes, count: int) -> tuple[Value, ...]:
    try:
        value = unpack(data)
    except NotCanonical as error:
        raise InvalidMessage(str(error)) from error
    if not isinstance(value, tuple) or len(value) != count:
        raise InvalidMessage(f"expected an array of {count} fields")
    return value


def _byte_strings(values: tuple[Value, ...], size: int | None) -> tuple[bytes, ...]:
    if len(values) > BODIES_MAX:
        raise InvalidMessage(f"more than {BODIES_MAX} entries")
    strings = tuple(v for v in values if isinstance(v, bytes) and size in (None, len(v)))
    if len(strings) != len(values):
        raise InvalidMessage("an entry is no byte string of the right length")
    return strings
