"""What the store tells of what it holds and did."""

from dataclasses import dataclass

from node.exchange.store.index import StudyIndex


@dataclass(frozen=True, slots=True)
class StoredStudy:
    """One version that is stored and durable."""

    study_id: bytes  # 16 bytes
    version: int
    index_digest: bytes  # 32 bytes, SHA-256 of the sealed index
    instances: int
    chunks: int
    stored_bytes: int  # of all its chunks
    reused_bytes: int  # as received, that lie in chunks of an earlier version
    bytes: int  # as received


def stored(index: StudyIndex, index_digest: bytes, reused_bytes: int) -> StoredStudy:
    """Return what is stored under an index."""
    return StoredStudy(
        index.study_id,
        index.version,
        index_digest,
        len(index.instances),
        len(index.chunks),
        index.stored_bytes,
        reused_bytes,
        index.size,
    )


@dataclass(frozen=True, slots=True)
class Usage:
    """What the store holds."""

    studies: int
    versions: int
    instances: int  # in the newest version of each study
    bytes: int  # of these, as received
    stored_bytes: int
    chunks: int
    missing_chunks: int  # still to be fetched
    quota_bytes: int | None
    free_bytes: int | None  # on the disk below; None where nobody can tell


@dataclass(frozen=True, slots=True)
class Erasure:
    """What an erasure did, for the attestation on the chain."""

    study_id: bytes
    versions: int
    chunks: int
    stored_bytes: int
    key_destroyed_ms: int  # since 1970
    is_complete: bool  # the blobs are gone too
