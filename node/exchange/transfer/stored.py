"""The study store as the transfer sees it: `ChunkSource` and `ChunkSink` in one."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

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

_STUDIES_MAX = 32  # whose chunk lists are kept in memory


class StoredChunks:
    """What a `StudyStore` holds, for a server; where chunks go, for a fetch that adopted a study.

    A chunk that is rotten here is not served: the store counts it as missing, the peer asks another
    holder, and nobody takes this one for a liar.
    """

    def __init__(self, store: StudyStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._digests: OrderedDict[tuple[bytes, int], frozenset[bytes]] = OrderedDict()

    def sealed_study(self, study_id: bytes, version: int) -> SealedStudy:
        """See `ChunkSource`."""
        with _translated():
            index = self._store.index(study_id, version)
            sealed = self._store.index_ciphertext(study_id, version)
        chunks = tuple(Chunk(entry.digest, entry.stored_bytes) for entry in index.chunks)
        return SealedStudy(version, sealed, chunks)

    def holds(self, study_id: bytes, digest: bytes) -> bool:
        """See `ChunkSource`."""
        with _translated():
            versions = self._store.versions(study_id)
            return any(digest in self._version(study_id, version) for version in versions)

    def ciphertext(self, digest: bytes) -> bytes:
        """See `ChunkSource`."""
        with _translated():
            return self._store.ciphertext(digest)

    def missing(self, study_id: bytes, version: int) -> list[bytes]:
        """See `ChunkSink`."""
        return self._store.missing(study_id, version)

    def put_ciphertext(self, digest: bytes, data: memoryview) -> None:
        """See `ChunkSink`."""
        try:
            # A copy: the buffer is the transfer's, and a store in memory keeps what it is given.
            self._store.put_ciphertext(digest, bytes(data))
        except Damaged as error:
            raise WrongDigest(str(error)) from error

    def _version(self, study_id: bytes, version: int) -> frozenset[bytes]:
        """Return the digests of a version; versions never change, so they are read once."""
        key = (study_id, version)
        with self._lock:
            if key in self._digests:
                self._digests.move_to_end(key)
                return self._digests[key]
        index = self._store.index(study_id, version)
        digests = frozenset(entry.digest for entry in index.chunks)
        with self._lock:
            self._digests[key] = digests
            if len(self._digests) > _STUDIES_MAX:
                self._digests.popitem(last=False)
        return digests


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (
        ChunkMissing,
        ChunkUnknown,
        Damaged,
        StudyErased,
        StudyUnknown,
        VersionUnknown,
    ) as error:
        raise LookupError(str(error)) from error
