"""Moving a store's blobs to another place, one by one, each checked on its way."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from node.exchange.store.blobs import (
    STORE_ID,
    BlobStore,
    chunk_name,
    index_name,
    read_chunk,
    write_chunk,
)
from node.exchange.store.catalog import Catalog
from node.exchange.store.errors import Damaged, StoreError

Progress: TypeAlias = Callable[[int, int], None]  # bytes copied, of how many


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration did."""

    copied: int  # blobs
    copied_bytes: int
    present: int  # blobs that were there already
    damaged: tuple[str, ...]  # names of blobs that could not be read whole: they stay missing

    @property
    def is_complete(self) -> bool:
        """Whether everything is at the new place."""
        return not self.damaged


def migrate(
    blobs: BlobStore, to: BlobStore, catalog: Catalog, progress: Progress | None = None
) -> Migration:
    """Copy every blob of the catalogue to `to`; deletes nothing. Again, it goes on where it stood.

    `to` becomes a place of this store, which `open_store` accepts, only once everything is there.
    Studies that are stored meanwhile may be left out: run it once more with the gateway stopped.
    Raises `StoreError`, also when another store's blobs are at `to`.
    """
    mine, other = catalog.store_id.hex().encode(), to.read(STORE_ID)
    if other not in (None, mine):
        raise StoreError(f"{to} belongs to another store: choose an empty place")
    count = _Count(catalog.stored_bytes(), progress)
    for row in catalog.chunks():
        if row.present:
            count.add(chunk_name(row.digest), row.stored_bytes, _copy_chunk(blobs, to, row.digest))
    for version in catalog.all_versions():
        name = index_name(version.study_id, version.version)
        outcome = _copy_index(blobs, to, name, version.index_digest)
        count.add(name, version.index_bytes, outcome)
    if not count.damaged:
        to.replace(STORE_ID, mine)
    return Migration(count.copied, count.copied_bytes, count.present, tuple(count.damaged))


class _Count:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._done, self._progress = total, 0, progress
        self.copied = self.copied_bytes = self.present = 0
        self.damaged: list[str] = []

    def add(self, name: str, size: int, outcome: bool | None) -> None:
        """Count a blob: copied, there already, or (None) damaged."""
        if outcome is None:
            self.damaged.append(name)
        elif outcome:
            self.copied, self.copied_bytes = self.copied + 1, self.copied_bytes + size
        else:
            self.present += 1
        self._done += size
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done))


def _copy_chunk(blobs: BlobStore, to: BlobStore, digest: bytes) -> bool | None:
    try:
        # Read whole, not only by name: what was torn at the new place must not count as copied.
        if read_chunk(to, digest) is not None:
            return False
    except Damaged:
        to.delete(chunk_name(digest))
    try:
        data = read_chunk(blobs, digest)
    except Damaged:
        return None
    if data is None:
        return None
    write_chunk(to, digest, data)
    return True


def _copy_index(blobs: BlobStore, to: BlobStore, name: str, digest: bytes) -> bool | None:
    present = to.read(name)
    if present is not None and hashlib.sha256(present).digest() == digest:
        return False
    data = blobs.read(name)
    if data is None or hashlib.sha256(data).digest() != digest:
        return None
    to.replace(name, data)
    return True
