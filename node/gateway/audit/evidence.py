"""An institution's own audit records, and what is anchored of them.

A log is a file of lines, one record each; a period is what one file holds. The records stay at
home. Anchored is the RFC 6962 root over

    leaf i = HMAC-SHA256(salt, i as 8 bytes big endian) | line i, without its newline

with a random salt of 32 bytes, so that nobody can guess a record from the root, nor from the proof
of another. The salt and the numbers of the anchor are kept beside the log, in `FILE.anchor.json`.
Where `FILE.leaves` is kept, too (the leaves' hashes, 32 bytes each), it tells which line changed;
it is believed only while its own root is the one on the ledger.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

from node import keys
from node.gateway.audit.errors import EvidenceInvalid
from node.ledger import merkle

VERSION = 1
SUFFIX = ".anchor.json"
LEAVES = ".leaves"
LEAF_BYTES = 32
SALT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an institution keeps to show later that its log is complete."""

    institution: str
    sequence: int
    from_ms: int
    to_ms: int  # not part of the period
    records: int
    root: str  # 64 hex digits
    previous_root: str | None
    salt: str  # 64 hex digits


def evidence_file(log: Path) -> Path:
    """Return where the evidence of a log is."""
    return log.with_name(log.name + SUFFIX)


def load_evidence(log: Path) -> Evidence | None:
    """Return the evidence of a log, None if it was never anchored. Raises `EvidenceInvalid`."""
    path = evidence_file(log)
    if not path.exists():
        return None
    try:
        value = json.loads(keys.read_private_file(path))
        version = value.pop("version")
        found = Evidence(**value)
        if version == VERSION and len(bytes.fromhex(found.salt)) == SALT_BYTES:
            return found
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise EvidenceInvalid(f"{path} is damaged: take it from a backup") from error
    raise EvidenceInvalid(f"{path} is of another version than this program knows")


def save_evidence(log: Path, evidence: Evidence) -> None:
    """Write the evidence, durably and for the owner alone, in place of an earlier one.

    Raises `KeyFileError`.
    """
    path = evidence_file(log)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    keys.save_secret(fresh, json.dumps({"version": VERSION, **asdict(evidence)}).encode())
    fresh.replace(path)


def new_salt() -> bytes:
    """Return the salt for a log that is anchored the first time."""
    return secrets.token_bytes(SALT_BYTES)


def commitment(log: Path, salt: bytes) -> tuple[int, bytes]:
    """Return how many records a log holds, and their root. Raises `OSError`."""
    leaves = list(_leaves(log, salt))
    return len(leaves), merkle.root(leaves)


def leaves_file(log: Path) -> Path:
    """Return where the leaves of a log are."""
    return log.with_name(log.name + LEAVES)


def save_leaves(log: Path, evidence: Evidence) -> None:
    """Keep the leaves of a log that is anchored as it is. Raises `OSError`."""
    leaves = list(_leaves(log, bytes.fromhex(evidence.salt)))
    if merkle.root(leaves).hex() != evidence.root:
        return  # it was changed meanwhile: a check will say so
    path = leaves_file(log)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(b"".join(leaves))
    fresh.replace(path)


def first_difference(log: Path, evidence: Evidence, root: bytes) -> int | None:
    """Return the first line, counted from 1, that is not as it was anchored under `root`; None if
    the leaves that were kept cannot say."""
    try:
        kept = leaves_file(log).read_bytes()
    except OSError:
        return None
    known = [kept[at : at + LEAF_BYTES] for at in range(0, len(kept), LEAF_BYTES)]
    if merkle.root(known) != root:
        return None
    found = _leaves(log, bytes.fromhex(evidence.salt))
    pairs = zip_longest(known, found)
    return next((number for number, (a, b) in enumerate(pairs, 1) if a != b), None)


def _leaves(log: Path, salt: bytes) -> Iterator[bytes]:
    with log.open("rb") as file:
        for index, line in enumerate(file):
            blind = hmac.digest(salt, index.to_bytes(8, "big"), hashlib.sha256)
            yield merkle.leaf_hash(blind + line.removesuffix(b"\n"))
