"""Finding rot: every blob is read again and compared with its digest.

What is found rotten or lost is noted as missing, so that the exchange fetches it from another
holder and `put_ciphertext` writes it anew. No study key is needed.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from node.exchange.store.blobs import (
    CHUNKS,
    INDEXES,
    BlobStore,
    chunk_name,
    index_name,
    read_chunk,
)
from node.exchange.store.catalog import Catalog
from node.exchange.store.errors import ChunkUnknown, Damaged
from node.exchange.store.rows import SCRUBBED, ChunkRow, VersionRow

ORPHAN_AGE_MS = 24 * 3600 * 1000  # longer than any study takes to be stored

Progress: TypeAlias = Callable[[int, int], None]  # bytes read, of how many


class Kind(Enum):
    """What was found."""

    ROTTEN = "rotten"  # a chunk's bytes are not its own
    LOST = "lost"  # a chunk that was here is not any more
    MISSING = "missing"  # a chunk that is still to be fetched
    INDEX = "index"  # a version's index is rotten or lost
    ORPHAN = "orphan"  # a blob that belongs to nothing: left by a program that died


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    kind: Kind
    name: str  # of the blob
    study_id: bytes | None  # 16 bytes; None for orphans
    stored_bytes: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What the last whole scrub found."""

    time_ms: int  # since 1970, of its end
    found: dict[str, int]  # by `Kind`


def scrub(
    blobs: BlobStore,
    catalog: Catalog,
    *,
    collect: bool = False,
    orphan_age_ms: int = ORPHAN_AGE_MS,
    progress: Progress | None = None,
) -> Iterator[Finding]:
    """Yield everything that is wrong; with `collect` orphans are deleted too.

    Raises `BlobsUnavailable` when the place of the blobs cannot be reached: nothing is then noted
    as lost. Whoever wants it slower waits in `progress`. Read to its end, it is noted in the
    catalogue: see `last_scrub`.
    """
    found = dict.fromkeys((kind.value for kind in Kind), 0)
    for finding in _everything(blobs, catalog, collect, orphan_age_ms, progress):
        found[finding.kind.value] += 1
        yield finding
    note = {"time_ms": time.time_ns() // 1_000_000, "found": found}
    catalog.note(SCRUBBED, json.dumps(note).encode())


def last_scrub(catalog: Catalog) -> Scrubbed | None:
    """Return what the last scrub that came to its end found. Raises `StoreError`."""
    note = catalog.noted(SCRUBBED)
    return None if note is None else Scrubbed(**json.loads(note))


def _everything(
    blobs: BlobStore,
    catalog: Catalog,
    collect: bool,
    orphan_age_ms: int,
    progress: Progress | None,
) -> Iterator[Finding]:
    started_ms = time.time_ns() // 1_000_000
    total, done = catalog.stored_bytes(), 0
    for row in catalog.chunks():
        if finding := check_chunk(blobs, catalog, row):
            yield finding
        done += row.stored_bytes
        if progress is not None:
            progress(done, max(total, done))
    for version in catalog.all_versions():
        if finding := check_index(blobs, catalog, version):
            yield finding
    yield from _orphans(blobs, catalog, started_ms - orphan_age_ms, collect=collect)


def check_chunk(blobs: BlobStore, catalog: Catalog, row: ChunkRow) -> Finding | None:
    """Return what is wrong with a chunk, and note whether it is here. Raises `StoreError`."""
    name = chunk_name(row.digest)
    if not row.present:
        return _check_missing(blobs, catalog, row)
    try:
        if read_chunk(blobs, row.digest) is not None:
            return None
        kind, sentence = Kind.LOST, "is gone; it will be fetched from another holder"
    except Damaged:
        kind, sentence = Kind.ROTTEN, "is rotten; it will be fetched from another holder"
    try:
        catalog.mark(row.digest, present=False)
    except ChunkUnknown:
        return None  # its study was removed while we read
    return Finding(kind, name, row.study_id, row.stored_bytes, sentence)


def _check_missing(blobs: BlobStore, catalog: Catalog, row: ChunkRow) -> Finding | None:
    """Look whether it is there again, as when an operator put it back from a backup."""
    name = chunk_name(row.digest)
    with suppress(Damaged, ChunkUnknown):
        if read_chunk(blobs, row.digest) is not None:
            catalog.mark(row.digest, present=True)
            return None
    sentence = "is still to be fetched"
    return Finding(Kind.MISSING, name, row.study_id, row.stored_bytes, sentence)


def check_index(blobs: BlobStore, catalog: Catalog, row: VersionRow) -> Finding | None:
    """Return what is wrong with a version's index. Raises `StoreError`."""
    name = index_name(row.study_id, row.version)
    data = blobs.read(name)
    if data is not None and hashlib.sha256(data).digest() == row.index_digest:
        return None
    if catalog.version(row.study_id, row.version) != row:
        return None
    sentence = "the index is rotten or gone; fetch the study again from another holder"
    return Finding(Kind.INDEX, name, row.study_id, row.index_bytes, sentence)


def _orphans(
    blobs: BlobStore, catalog: Catalog, before_ms: int, *, collect: bool
) -> Iterator[Finding]:
    for prefix, is_known in ((CHUNKS, _knows_chunk), (INDEXES, _knows_index)):
        for blob in blobs.list(prefix):
            if blob.modified_ms > before_ms or is_known(catalog, blob.name):
                continue
            if collect:
                blobs.delete(blob.name)
            sentence = "belongs to nothing" + (" and was deleted" if collect else "")
            yield Finding(Kind.ORPHAN, blob.name, None, blob.size, sentence)
    if collect:
        blobs.remove_unfinished(before_ms)


def _knows_chunk(catalog: Catalog, name: str) -> bool:
    digest = _bytes(name.rpartition("/")[2])
    return digest is not None and chunk_name(digest) == name and catalog.knows_chunk(digest)


def _knows_index(catalog: Catalog, name: str) -> bool:
    parts = name.split("/")
    study_id = _bytes(parts[1]) if len(parts) == 3 and parts[2].isdecimal() else None
    return study_id is not None and catalog.version(study_id, int(parts[2])) is not None


def _bytes(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None
