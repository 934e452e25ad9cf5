"""Batches as the simulation knows them: opaque bytes that name the client's work they carry."""

from dataclasses import dataclass
from hashlib import sha256

from consensus.wire import pack, unpack

GOOD = 0
INVALID = 1  # breaks a rule that every node checks
DOUBTFUL = 2  # fresh enough for some nodes' clocks only


@dataclass(frozen=True, slots=True)
class Payload:
    """One proposed batch."""

    work: int  # which client batch; -1: none
    maker: int  # the place that proposed it
    nonce: int
    quality: int = GOOD
    change: int = 0  # which validator set it plans; 0: none

    def encode(self) -> bytes:
        """Return the bytes whose SHA-256 is the batch's digest."""
        return pack((self.work, self.maker, self.nonce, self.quality, self.change))


def decode_payload(data: bytes) -> Payload:
    """Return the batch that `data` encodes."""
    return Payload(*unpack(data))  # type: ignore[misc, arg-type]


def digest_of(data: bytes) -> bytes:
    """Return the digest by which consensus knows the batch."""
    return sha256(data).digest()
