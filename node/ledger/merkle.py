"""Merkle trees of RFC 6962 over SHA-256: roots, inclusion and consistency proofs, a frontier.

Leaf and node hashes begin with different bytes, so that no inner node passes for a leaf (RFC 6962
§2.1). Everything here takes leaf hashes (32 bytes, `leaf_hash(entry)`), not entries. The same trees
serve transactions, receipts, manifests and the history of headers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from consensus.wire import NotCanonical, pack, unpack

EMPTY_ROOT = hashlib.sha256(b"").digest()  # MTH({}), RFC 6962 §2.1
SIZE_MAX = 2**63 - 1

_sha256 = hashlib.sha256


def leaf_hash(entry: bytes) -> bytes:
    """Return SHA-256(0x00 | entry), RFC 6962 §2.1."""
    return _sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA-256(0x01 | left | right), RFC 6962 §2.1."""
    return _sha256(b"\x01" + left + right).digest()


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Return the Merkle tree hash; of no leaves, the hash of the empty string."""
    if not leaf_hashes:
        return EMPTY_ROOT
    return _levels(leaf_hashes)[-1][0]


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """Return PATH(index, D[n]), from the leaf upwards (RFC 6962 §2.1.1).

    Raises ValueError unless 0 <= index < n.
    """
    if not 0 <= index < len(leaf_hashes):
        raise ValueError(f"no leaf {index} in a tree of {len(leaf_hashes)}")
    proof = []
    for level in _levels(leaf_hashes)[:-1]:
        sibling = index ^ 1
        if sibling < len(level):
            proof.append(level[sibling])
        index >>= 1
    return proof


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes
) -> bool:
    """Return whether `proof` shows the leaf hash `leaf` at `index` of `size` leaves under the root.

    The algorithm of RFC 9162 §2.1.3.2. Any input, however wrong, gives an answer.
    """
    if not 0 <= index < size or size > SIZE_MAX:
        return False
    position, last, computed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            computed = node_hash(sibling, computed)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            computed = node_hash(computed, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and computed == expected_root


def consistency_proof(leaf_hashes: Sequence[bytes], old_size: int) -> list[bytes]:
    """Return PROOF(old_size, D[n]), that the first leaves are unchanged (RFC 6962 §2.1.2).

    Empty when old_size equals n. Raises ValueError unless 0 < old_size <= n.
    """
    if not 0 < old_size <= len(leaf_hashes):
        raise ValueError(f"no tree of {old_size} leaves comes before one of {len(leaf_hashes)}")
    proof: list[bytes] = []
    start, stop, complete = 0, len(leaf_hashes), True
    while old_size < stop - start:
        split = _largest_power_below(stop - start)
        if old_size <= split:
            proof.append(root(leaf_hashes[start + split : stop]))
            stop = start + split
        else:
            proof.append(root(leaf_hashes[start : start + split]))
            start, old_size, complete = start + split, old_size - split, False
    if not complete:
        proof.append(root(leaf_hashes[start:stop]))
    proof.reverse()
    return proof


def verify_consistency(
    old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Return whether `proof` shows that the tree of `new_root` begins with that of `old_root`.

    The algorithm of RFC 9162 §2.1.4.2. Any input, however wrong, gives an answer.
    """
    if not 0 < old_size <= new_size <= SIZE_MAX:
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position >>= 1
        last >>= 1
    old_computed = new_computed = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old_computed = node_hash(sibling, old_computed)
            new_computed = node_hash(sibling, new_computed)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            new_computed = node_hash(new_computed, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and old_computed == old_root and new_computed == new_root


@dataclass(frozen=True, slots=True)
class Frontier:
    """A growing tree, kept as the roots of its complete subtrees: O(log n) bytes for n leaves.

    Immutable: `with_leaf` returns the next one, so a block may be given up before it is durable.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()  # largest subtree first; one for every 1 bit of `size`

    def with_leaf(self, leaf: bytes) -> "Frontier":
        """Return the tree with the leaf hash `leaf` appended."""
        peaks, carry, size = list(self.peaks), leaf, self.size
        while size & 1:
            carry = node_hash(peaks.pop(), carry)
            size >>= 1
        return Frontier(self.size + 1, (*peaks, carry))

    def root(self) -> bytes:
        """Return the same hash that `root` gives for all leaves so far."""
        if not self.peaks:
            return EMPTY_ROOT
        computed = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            computed = node_hash(peak, computed)
        return computed

    def encode(self) -> bytes:
        """Return the canonical bytes, at most about 2.2 KB."""
        return pack((self.size, self.peaks))

    @staticmethod
    def decode(data: bytes) -> "Frontier":
        """Return the frontier that `data` encodes. Raises ValueError for anything else."""
        try:
            value = unpack(data)
        except NotCanonical as error:
            raise ValueError("not an encoded frontier") from error
        match value:
            case (int() as size, tuple() as peaks) if type(size) is int and 0 <= size <= SIZE_MAX:
                hashes = tuple(p for p in peaks if isinstance(p, bytes) and len(p) == 32)
                if len(hashes) == len(peaks) == size.bit_count():
                    return Frontier(size, hashes)
        raise ValueError("not an encoded frontier")


def _levels(leaf_hashes: Sequence[bytes]) -> list[Sequence[bytes]]:
    """Return all levels, leaves first; an odd last hash moves up as it is.

    That is the split of RFC 6962 (left: the largest power of two below n), level by level.
    """
    levels: list[Sequence[bytes]] = [leaf_hashes]
    level = leaf_hashes
    while len(level) > 1:
        above = [
            _sha256(b"\x01" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)
        ]
        if len(level) & 1:
            above.append(level[-1])
        levels.append(above)
        level = above
    return levels


def _largest_power_below(n: int) -> int:
    """Return the largest power of two smaller than `n`, for n > 1."""
    return 1 << ((n - 1).bit_length() - 1)
