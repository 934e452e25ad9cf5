"""Proofs about the state: that a key has a value, or that it has none. Pure; needs no store.

A proof is the canonical encoding of (depth, bitmap, hashes, other):

- depth: how many levels the path has, 0..128; level 0 is below the root. Each level has three
  siblings, in the order of their digits.
- bitmap: ceil(3 * depth / 8) bytes, an unsigned integer with a bit per sibling, the first of level
  0 the highest, that says that the sibling is not empty.
- hashes: the siblings that are not empty, in that order, 32 bytes each.
- other: empty, or the 64 bytes (key hash, value hash) of another pair that sits where the key
  would be. Without it a proof of absence shows that the place is empty.

What the hashes cover is in state_node.py.
"""

from collections.abc import Sequence
from hashlib import sha256

from consensus.wire import pack, unpack
from storage.errors import InvalidProof
from storage.state_node import (
    ARITY,
    DIGIT_BITS,
    EMPTY_HASH,
    HASH_SIZE,
    PAIR_SIZE,
    entry_hash,
    leaf,
)

KEY_BITS = 256
DEPTH_MAX = KEY_BITS // DIGIT_BITS
BESIDE = ARITY - 1  # siblings per level
PROOF_BYTES_MAX = 16 + DEPTH_MAX * BESIDE // 8 + DEPTH_MAX * BESIDE * HASH_SIZE + PAIR_SIZE


def encode_proof(siblings: Sequence[bytes], other: bytes) -> bytes:
    """Return the proof with `siblings` from the root down and the pair `other`, or empty bytes."""
    bits = 0
    for sibling in siblings:
        bits = bits << 1 | (sibling != EMPTY_HASH)
    hashes = b"".join([sibling for sibling in siblings if sibling != EMPTY_HASH])
    bitmap = bits.to_bytes((len(siblings) + 7) // 8, "big")
    return pack((len(siblings) // BESIDE, bitmap, hashes, other))


def verify(root: bytes, key: bytes, value: bytes | None, proof: bytes) -> None:
    """Return if `proof` shows that under `root` the key has `value`, or has none when it is None.

    Raises `InvalidProof` in every other case. One statement has one proof that verifies.
    """
    depth, siblings, other = _decode(proof)
    key_hash = sha256(key).digest()
    if value is not None:
        if other:
            raise InvalidProof("a proof of presence names no other key")
        digest = entry_hash(leaf(key_hash + sha256(value).digest()))
    elif other:
        _check_neighbour(key_hash, other[:HASH_SIZE], depth)
        digest = entry_hash(leaf(other))
    else:
        digest = EMPTY_HASH
    way = int.from_bytes(key_hash, "big") >> (KEY_BITS - DIGIT_BITS * depth)
    for level in reversed(range(depth)):
        beside = siblings[BESIDE * level : BESIDE * (level + 1)]
        beside.insert(way % ARITY, digest)
        digest = sha256(b"\x01" + b"".join(beside)).digest()
        way //= ARITY
    if digest != root:
        raise InvalidProof("the proof leads to another state root")


def _decode(proof: bytes) -> tuple[int, list[bytes], bytes]:
    """Return the depth, the siblings from the root down, and the other pair or empty bytes."""
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
    count = BESIDE * depth
    bits = int.from_bytes(bitmap, "big")
    if (
        type(depth) is not int
        or not 0 <= depth <= DEPTH_MAX
        or len(bitmap) != (count + 7) // 8
        or bits >> count
        or len(hashes) != HASH_SIZE * bits.bit_count()
        or len(other) not in (0, PAIR_SIZE)
    ):
        raise InvalidProof("the fields of the proof do not fit together")
    return depth, _siblings(count, bits, hashes), other


def _siblings(count: int, bits: int, hashes: bytes) -> list[bytes]:
    siblings = []
    offset = 0
    for bit in reversed(range(count)):
        sibling = EMPTY_HASH
        if bits >> bit & 1:
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
    if (KEY_BITS - difference.bit_length()) // DIGIT_BITS < depth:
        raise InvalidProof("the proof names a key of another place")
