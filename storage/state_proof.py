"""Proofs about the state: that a key has a value, or that it has none. Pure; needs no store.

A proof is the canonical encoding of (depth, bitmap, hashes, other):

- depth: how many levels the path has, 0..256; level 0 is below the root.
- bitmap: ceil(depth / 8) bytes, an unsigned integer whose bit (depth - 1 - level) says that the
  sibling at that level is not empty.
- hashes: those siblings from the root down, 32 bytes each.
- other: empty, or the 64 bytes (key hash, value hash) of another pair that sits where the key
  would be. Without it a proof of absence shows that the place is empty.

What the hashes cover is in state_node.py.
"""

from collections.abc import Sequence
from hashlib import sha256

from consensus.wire import pack, unpack
from storage.errors import InvalidProof
from storage.state_node import EMPTY_HASH, HASH_SIZE, PAIR_SIZE, leaf

DEPTH_MAX = 256
PROOF_BYTES_MAX = 16 + DEPTH_MAX // 8 + DEPTH_MAX * HASH_SIZE + PAIR_SIZE


def encode_proof(siblings: Sequence[bytes], other: bytes) -> bytes:
    """Return the proof with `siblings` from the root down and the pair `other`, or empty bytes."""
    bits = 0
    for sibling in siblings:
        bits = bits << 1 | (sibling != EMPTY_HASH)
    depth = len(siblings)
    hashes = b"".join([sibling for sibling in siblings if sibling != EMPTY_HASH])
    return pack((depth, bits.to_bytes((depth + 7) // 8, "big"), hashes, other))


def verify(root: bytes, key: bytes, value: bytes | None, proof: bytes) -> None:
    """Return if `proof` shows that under `root` the key has `value`, or has none when it is None.

    Raises `InvalidProof` in every other case. One statement has one proof that verifies.
    """
    siblings, other = _decode(proof)
    key_hash = sha256(key).digest()
    if value is not None:
        if other:
            raise InvalidProof("a proof of presence names no other key")
        digest = _leaf_hash(key_hash + sha256(value).digest())
    elif other:
        _check_neighbour(key_hash, other[:HASH_SIZE], len(siblings))
        digest = _leaf_hash(other)
    else:
        digest = EMPTY_HASH
    path = int.from_bytes(key_hash, "big") >> (DEPTH_MAX - len(siblings))
    for sibling in reversed(siblings):
        pair = sibling + digest if path & 1 else digest + sibling
        digest = sha256(b"\x01" + pair).digest()
        path >>= 1
    if digest != root:
        raise InvalidProof("the proof leads to another state root")


def _decode(proof: bytes) -> tuple[list[bytes], bytes]:
    """Return the siblings from the root down, and the other pair or empty bytes."""
    if len(proof) > PROOF_BYTES_MAX:
        raise InvalidProof(f"a proof has at most {PROOF_BYTES_MAX} bytes, not {len(proof)}")
    try:
        fields = unpack(proof)
    except ValueError as error:
        raise InvalidProof(f"the proof is not encoded as one: {error}") from error
    match fields:
        case (int(depth), bytes(bitmap), bytes(hashes), bytes(other)):
            pass
        case _:
            raise InvalidProof("the proof does not have the fields of one")
    bits = int.from_bytes(bitmap, "big")
    if (
        type(depth) is not int
        or not 0 <= depth <= DEPTH_MAX
        or len(bitmap) != (depth + 7) // 8
        or bits >> depth
        or len(hashes) != HASH_SIZE * bits.bit_count()
        or len(other) not in (0, PAIR_SIZE)
    ):
        raise InvalidProof("the fields of the proof do not fit together")
    return _siblings(depth, bits, hashes), other


def _siblings(depth: int, bits: int, hashes: bytes) -> list[bytes]:
    siblings = []
    offset = 0
    for level in range(depth):
        sibling = EMPTY_HASH
        if bits >> (depth - 1 - level) & 1:
            sibling = hashes[offset : offset + HASH_SIZE]
            offset += HASH_SIZE
            if sibling == EMPTY_HASH:
                raise InvalidProof("the proof spells out an empty sibling")
        siblings.append(sibling)
    return siblings


def _check_neighbour(key_hash: bytes, other: bytes, depth: int) -> None:
    difference = int.from_bytes(key_hash, "big") ^ int.from_bytes(other, "big")
    if difference == 0:
        raise InvalidProof("the proof of absence names the key itself")
    if DEPTH_MAX - difference.bit_length() < depth:
        raise InvalidProof("the proof names a key of another place")


def _leaf_hash(pair: bytes) -> bytes:
    return leaf(pair)[-HASH_SIZE:]
