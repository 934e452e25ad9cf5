"""Instances opened under a proof of their version: by whoever has the manifest, without a node.

A node proves that a version is registered (`version` in `questions`); what the version's root
commits to is known only to those who hold the manifest. They add it here, and what the node never
saw stays with them and whoever they give the file to: a record and its blinding link an image to
the study for good.
"""

from collections.abc import Sequence
from dataclasses import replace

from node.ledger.proofs.format import Instance, Manifest, State, decode, encode


def open_instance(
    proof: bytes,
    record: bytes,
    blinding: bytes,
    *,
    position: int,
    count: int,
    path: Sequence[bytes],
    tree: bytes,
) -> bytes:
    """Return the proof file that an instance with `record` is in the version of `proof`.

    Raises `InvalidProof` if `proof` is no proof file, ValueError if it is not about the state.
    """
    file = decode(proof)
    opening = position, count, tuple(path), tree, blinding
    return encode(replace(file, part=Instance(_state(file.part), record, *opening)))


def open_manifest(proof: bytes, records: Sequence[bytes], blindings: Sequence[bytes]) -> bytes:
    """Return the proof file that the version of `proof` has the instances with `records`, in the
    manifest's order, and no other. Raises as `open_instance` does."""
    file = decode(proof)
    return encode(replace(file, part=Manifest(_state(file.part), tuple(records), tuple(blindings))))


def _state(part: object) -> State:
    if not isinstance(part, State):
        raise ValueError("instances are opened under a proof of their version")
    return part
