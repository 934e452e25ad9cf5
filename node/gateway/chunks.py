"""The store of studies as the transfer sees it: where ciphertext comes from and goes to."""

import threading
from collections import OrderedDict
from collections.abc import Collection
from operator import add
from typing import NamedTuple

from node.exchange.store.errors import (
    ChunkMissing,
    ChunkUnknown,
    Damaged,
    StudyErased,
    StudyUnknown,
    VersionUnknown,
)
from node.exchange.store.store import StudyStore
from node.exchange.transfer.errors import WrongDigest
from node.exchange.transfer.ports import Chunk, SealedStudy

_NOT_HELD = (StudyUnknown, StudyErased, VersionUnknown, ChunkUnknown, ChunkMissing, Damaged)
_STUDIES_REMEMBERED = 16


class Arrived(NamedTuple):
    """What came from other hospitals since the start."""

    chunks: int = 0  # whose digest was right
    bytes: int = 0  # of these
    refused: int = 0  # chunks whose digest was wrong


class StoreChunks:
    """`ChunkSource` and `ChunkSink` over a `StudyStore`; waits for disks, called in threads."""

    def __init__(self, store: StudyStore) -> None:
        self.arrived = Arrived()
        self._store = store
        self._lock = threading.Lock()
        self._digests: OrderedDict[tuple[bytes, tuple[int, ...]], frozenset[bytes]] = OrderedDict()

    def sealed_study(self, study_id: bytes, version: int) -> SealedStudy:
        """Return what a receiver needs to know of a version. Raises `LookupError`."""
        try:
            index = self._store.index(study_id, version)
            sealed = self._store.index_ciphertext(study_id, version)
        except _NOT_HELD as error:
            raise LookupError(str(error)) from error
        chunks = tuple(Chunk(each.digest, each.stored_bytes) for each in index.chunks)
        return SealedStudy(version, sealed, chunks)

    def holds(self, study_id: bytes, digest: bytes) -> bool:
        """Return whether this is a chunk of any version of that study. Raises `LookupError`."""
        try:
            return digest in self._digests_of(study_id)
        except _NOT_HELD as error:
            raise LookupError(str(error)) from error

    def ciphertext(self, digest: bytes) -> bytes:
        """Return a chunk. Raises `LookupError`."""
        try:
            return self._store.ciphertext(digest)
        except _NOT_HELD as error:
            raise LookupError(str(error)) from error

    def missing(self, study_id: bytes, version: int) -> Collection[bytes]:
        """Return the digests of a version's chunks that are not held. Raises as the store does."""
        return self._store.missing(study_id, version)

    def put_ciphertext(self, digest: bytes, data: memoryview, found: bytes) -> None:
        """Keep a chunk, durable on return. Raises `WrongDigest`, and what the store does."""
        try:
            self._store.put_ciphertext(digest, data, found)
        except Damaged as error:
            self._count(Arrived(refused=1))
            raise WrongDigest(digest.hex()) from error
        self._count(Arrived(1, len(data)))

    def _count(self, more: Arrived) -> None:
        with self._lock:
            self.arrived = Arrived(*map(add, self.arrived, more))

    def _digests_of(self, study_id: bytes) -> frozenset[bytes]:
        place = study_id, tuple(self._store.versions(study_id))
        with self._lock:
            known = self._digests.get(place)
            if known is not None:
                self._digests.move_to_end(place)
                return known
        indexes = (self._store.index(study_id, version) for version in place[1])
        digests = frozenset(chunk.digest for index in indexes for chunk in index.chunks)
        with self._lock:
            self._digests[place] = digests
            while len(self._digests) > _STUDIES_REMEMBERED:
                self._digests.popitem(last=False)
        return digests
