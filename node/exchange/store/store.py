"""The store of studies: what the gateway and the exchange put in, read, fetch and erase.

Order of writing: chunks, then in one transaction the index and the rows that name it. A program
that dies before the last step leaves chunks that belong to nothing, which `scrub(collect=True)`
deletes; one that dies after it leaves a stored version. Order of erasing: the key, then the blobs,
then the rows; opening the store goes on with what was not finished.

Every method waits for disks: call it from a worker. A `StudyStore` may be used by several threads,
and a store by several processes.
"""

import hashlib
import hmac
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from node.exchange.store.blobs import (
    STORE_ID,
    BlobStore,
    Data,
    chunk_name,
    index_name,
    write_chunk,
)
from node.exchange.store.cache import Cache
from node.exchange.store.catalog import Catalog
from node.exchange.store.compression import LEVELS
from node.exchange.store.errors import (
    ChunkMissing,
    ChunkUnknown,
    Damaged,
    InvalidIndex,
    QuotaExceeded,
    StoreError,
    StudyErased,
    StudyUnknown,
    VersionConflict,
    VersionUnknown,
)
from node.exchange.store.index import (
    ChunkEntry,
    InstanceSource,
    StudyIndex,
    check_all_facts,
    decode_index,
    encode_index,
)
from node.exchange.store.master import MasterSource
from node.exchange.store.migrate import Migration, migrate
from node.exchange.store.pack import Keep, pack_instances, sealer
from node.exchange.store.records import Erasure, StoredStudy, Usage, stored
from node.exchange.store.reuse import merge, split
from node.exchange.store.rounds import SlowScrub
from node.exchange.store.rows import ChunkRow, State, VersionRow
from node.exchange.store.scrub import ORPHAN_AGE_MS, Finding, Progress, Scrubbed, last_scrub, scrub
from node.exchange.store.sealing import new_key, open_chunk, open_index, seal_index

SEALERS_MAX = 4  # each has 4 MiB of buffers
_PLAIN_CHUNKS_CACHED = 4  # of 4 MiB: several small instances share one
_INSTANCES_CACHED = 20_000  # of all cached indexes together

log = logging.getLogger(__name__)


class StudyStore:
    """Studies under keys of their own, over blobs and a catalogue that belong together."""

    def __init__(
        self,
        blobs: BlobStore,
        catalog: Catalog,
        *,
        quota_bytes: int | None = None,
        compression: str = "fast",
    ) -> None:
        """Attach `blobs` to `catalog`. Raises `StoreError` if they are of different stores."""
        self._blobs, self._catalog = blobs, catalog
        self._quota_bytes, self._level = quota_bytes, LEVELS[compression]
        # What is not compressed is sealed as fast as it is read and compared: by one thread less.
        processors = (os.cpu_count() or 1) - (self._level is None)
        self._sealers = max(1, min(processors, SEALERS_MAX))
        self._plain: Cache[bytes, bytes] = Cache(_PLAIN_CHUNKS_CACHED, lambda _: 1)
        self._indexes: Cache[tuple[bytes, int], StudyIndex] = Cache(
            _INSTANCES_CACHED, lambda index: len(index.instances)
        )
        self.check_place()
        self._resume_removals()

    def close(self) -> None:
        """Close the key file."""
        self._catalog.close()

    # Storing

    def put(
        self, study_id: bytes, version: int, instances: Iterable[InstanceSource]
    ) -> StoredStudy:
        """Store a version; durable on return. An instance's ordinal is its place in `instances`.

        Instances that an earlier version holds (the same SOP Instance UID and F) are neither read
        nor stored again. The same call again returns what is stored. Raises `VersionConflict` if
        other content is, `FileChanged`, `QuotaExceeded`, `StoreFull`, `BlobsUnavailable`,
        `StudyErased`, `InvalidIndex` for facts that no index may hold.
        """
        sources = list(instances)
        check_all_facts([source.facts for source in sources])
        if (row := self._catalog.version(study_id, version)) is not None:
            return self._same(row, sources)
        key = self._catalog.claim(study_id, new_key())
        written: list[ChunkEntry] = []
        try:
            return self._put(key, study_id, version, sources, written)
        except BaseException:
            self._remove_unowned(written)
            raise

    def _put(
        self,
        key: bytes,
        study_id: bytes,
        version: int,
        sources: Sequence[InstanceSource],
        written: list[ChunkEntry],
    ) -> StoredStudy:
        previous = self._version_before(study_id, version)
        missing = self._catalog.missing(study_id)
        kept, fresh = split(sources, previous, missing)
        seal = sealer(AESGCM(key), study_id, version, self._level)
        packed = pack_instances(
            fresh,
            seal,
            self._writer(written),
            sealers=self._sealers,
            writers=self._blobs.writers,
        )
        index = merge(study_id, version, sources, previous, kept, packed)
        sealed = seal_index(key, study_id, version, encode_index(index))
        self._add_version(key, index, sealed, present=True)
        reused = sum(source.facts.size for source in sources) - sum(s.facts.size for s in fresh)
        return stored(index, hashlib.sha256(sealed).digest(), reused)

    def _writer(self, written: list[ChunkEntry]) -> Keep:
        quota = self._quota_bytes
        used = self._catalog.stored_bytes() if quota is not None else 0

        def write(entry: ChunkEntry, sealed: memoryview) -> None:
            nonlocal used
            written.append(entry)  # before it is written, so that no failure leaves it behind
            used += len(sealed)
            # To fill no disk on the way; the transaction at the end decides.
            if quota is not None and used > quota:
                raise QuotaExceeded(f"the quota of {quota} bytes would be exceeded")
            write_chunk(self._blobs, entry.digest, sealed)

        return write

    def _same(self, row: VersionRow, sources: Sequence[InstanceSource]) -> StoredStudy:
        index = self.index(row.study_id, row.version)
        held = [(each.facts.sop_instance_uid, each.facts.digest) for each in index.instances]
        if held != [(s.facts.sop_instance_uid, s.facts.digest) for s in sources]:
            raise VersionConflict(
                f"version {row.version} of study {row.study_id.hex()} is stored with other content"
            )
        return stored(index, row.index_digest, index.size)

    def _add_version(self, key: bytes, index: StudyIndex, sealed: bytes, *, present: bool) -> None:
        study_id, version = index.study_id, index.version
        digest = hashlib.sha256(sealed).digest()
        counts = len(sealed), len(index.instances), index.size
        self._catalog.add_version(
            VersionRow(study_id, version, digest, *counts),
            key,
            [(chunk.digest, chunk.stored_bytes) for chunk in index.chunks],
            lambda: self._blobs.replace(index_name(study_id, version), sealed),
            present=present,
            quota_bytes=self._quota_bytes,
        )

    def _version_before(self, study_id: bytes, version: int) -> StudyIndex | None:
        earlier = [row for row in self._catalog.versions(study_id) if row.version < version]
        return self.index(study_id, earlier[-1].version) if earlier else None

    def _remove_unowned(self, written: Iterable[ChunkEntry]) -> None:
        try:
            for entry in written:
                if not self._catalog.knows_chunk(entry.digest):
                    self._blobs.delete(chunk_name(entry.digest))
        except StoreError as error:
            log.warning("chunks of a failed put stay until the next scrub: %s", error)

    # Reading

    def studies(self) -> Iterator[bytes]:
        """Yield the ids of all studies held, in order."""
        return self._catalog.studies()

    def claimed(self) -> Iterator[bytes]:
        """Yield the ids of studies of which nothing is here but the key, in order."""
        return self._catalog.claimed()

    def has_key(self, study_id: bytes) -> bool:
        """Whether the study's key is here, be there a version of it or not."""
        row = self._catalog.study(study_id)
        return row is not None and row.sealed is not None

    def versions(self, study_id: bytes) -> list[int]:
        """Return the versions held of a study, the oldest first; none if it is not held."""
        return [row.version for row in self._catalog.versions(study_id)]

    def index(self, study_id: bytes, version: int | None = None) -> StudyIndex:
        """Return the index of a version, the newest if none is named.

        Raises `StudyUnknown`, `StudyErased`, `VersionUnknown`, `Damaged`.
        """
        row = self._row(study_id, version)
        place = (study_id, row.version)
        if (cached := self._indexes.get(place)) is not None:
            return cached
        sealed = self._sealed_index(row)
        try:
            found, plain = open_index(self._catalog.key(study_id), study_id, sealed)
            index = decode_index(plain)
        except InvalidIndex as error:
            raise Damaged(f"{index_name(*place)}: {error}") from error
        if (found, index.version, index.study_id) != (row.version, row.version, study_id):
            raise Damaged(f"{index_name(*place)} is of another version")
        self._indexes.put(place, index)
        return index

    def read(self, study_id: bytes, ordinal: int, version: int | None = None) -> Iterator[bytes]:
        """Yield an instance's exact bytes, in pieces of at most 4 MiB.

        Raises `StudyUnknown`, `StudyErased`, `VersionUnknown` at once; `ChunkMissing`, `Damaged`
        where it comes to the chunk.
        """
        return self.read_range(study_id, ordinal, 0, None, version)

    def read_range(
        self,
        study_id: bytes,
        ordinal: int,
        start: int,
        stop: int | None,
        version: int | None = None,
    ) -> Iterator[bytes]:
        """Yield the instance's bytes from `start` to before `stop`, as slices do; see `read`."""
        index = self.index(study_id, version)
        if not 0 <= ordinal < len(index.instances):
            raise VersionUnknown(f"study {study_id.hex()} has no instance {ordinal}")
        size = index.instances[ordinal].facts.size
        start, stop, _ = slice(start, stop).indices(size)
        return self._pieces(index, ordinal, start, stop)

    def _pieces(self, index: StudyIndex, ordinal: int, start: int, stop: int) -> Iterator[bytes]:
        cipher = AESGCM(self._catalog.key(index.study_id))
        at = -index.instances[ordinal].offset  # where the chunk begins, seen from the instance
        for number in index.span(ordinal):
            if at >= stop:
                return
            end = at + index.chunks[number].plain_bytes
            if start < end and start < stop:
                plain = self._plain_chunk(cipher, index, index.chunks[number])
                yield plain[max(start, 0) - at : min(stop, end) - at]
                start = end
            at = end

    def _plain_chunk(self, cipher: AESGCM, index: StudyIndex, entry: ChunkEntry) -> bytes:
        if (cached := self._plain.get(entry.digest)) is not None:
            return cached
        sealed = self.ciphertext(entry.digest)
        plain = open_chunk(cipher, entry.place(index.study_id), sealed, entry.plain_bytes)
        self._plain.put(entry.digest, plain)
        return plain

    # Exchange

    def key(self, study_id: bytes) -> bytes:
        """Return the study's key, 32 bytes, to wrap it for a grantee; see `Catalog.key`."""
        return self._catalog.key(study_id)

    def index_ciphertext(self, study_id: bytes, version: int | None = None) -> bytes:
        """Return the sealed index of a version, the newest if none is named; see `index`."""
        return self._sealed_index(self._row(study_id, version))

    def ciphertext(self, digest: bytes) -> bytes:
        """Return a sealed chunk, compared with its digest.

        Raises `ChunkUnknown`, `ChunkMissing`, `Damaged`; what is damaged or gone counts as missing
        from then on, so that it is fetched again.
        """
        row = self._catalog.chunk(digest)
        if not row.present:
            raise ChunkMissing(f"chunk {digest.hex()} is still to be fetched")
        data = self._blobs.read(chunk_name(digest))
        if data is not None and hashlib.sha256(data).digest() == digest:
            return data
        self._catalog.mark(digest, present=False)
        if data is None:
            raise ChunkMissing(f"chunk {digest.hex()} is gone from {self._blobs}")
        raise Damaged(f"chunk {digest.hex()} is rotten in {self._blobs}")

    def adopt(self, study_id: bytes, key: bytes, index_ciphertext: bytes) -> StudyIndex:
        """Keep another hospital's study: its key and index; its chunks are `missing` from then on.

        The same call again goes on where it stood, and mends a rotten index. Raises `InvalidIndex`
        unless the index is sealed under `key` for this study; `VersionConflict` when the version is
        held with another index or the study under another key; `StudyErased`, `QuotaExceeded`.
        """
        version, plain = open_index(key, study_id, index_ciphertext)
        index = decode_index(plain)
        if (index.study_id, index.version) != (study_id, version):
            raise InvalidIndex("the index is of another version")
        digest = hashlib.sha256(index_ciphertext).digest()
        row = self._catalog.version(study_id, version)
        if row is None:
            held = self._catalog.claim(study_id, key)
            if not hmac.compare_digest(held, key):
                raise VersionConflict(f"study {study_id.hex()} is held under another key")
            self._add_version(key, index, index_ciphertext, present=False)
        elif row.index_digest != digest:
            raise VersionConflict(f"version {version} is held with another index")
        else:
            self._catalog.key(study_id)
            self._mend_index(row, index_ciphertext)
            self._find_written(index)
        return index

    def missing(self, study_id: bytes, version: int | None = None) -> list[bytes]:
        """Return the digests of a version's chunks still to be fetched, in the index's order."""
        missing = self._catalog.missing(study_id)
        if not missing:
            self._row(study_id, version)
            return []
        index = self.index(study_id, version)
        return [chunk.digest for chunk in index.chunks if chunk.digest in missing]

    def is_complete(self, study_id: bytes, version: int | None = None) -> bool:
        """Whether all chunks of a version are here."""
        return not self.missing(study_id, version)

    def lacking(self) -> Iterator[bytes]:
        """Yield the ids of all studies of which chunks are missing, in order."""
        return self._catalog.lacking()

    def lost(self, study_id: bytes) -> list[ChunkRow]:
        """Return the chunks that are missing of all versions of a study."""
        return [row for row in self._catalog.chunks(study_id) if not row.present]

    def put_ciphertext(self, digest: bytes, data: Data, found: bytes | None = None) -> None:
        """Keep a chunk that is missing; durable on return. `data` is lent for the call only.

        `found` is SHA-256 of `data`, for whoever computed it as it came. Raises `Damaged` unless
        they are what the digest and the index say, `ChunkUnknown` for a chunk that no study here
        has, so nobody can fill the disk with what was not asked for.
        """
        row = self._catalog.chunk(digest)
        found = found or hashlib.sha256(data).digest()
        if len(data) != row.stored_bytes or found != digest:
            raise Damaged(f"what came is not chunk {digest.hex()}")
        if row.present:
            return
        write_chunk(self._blobs, digest, data)
        try:
            self._catalog.mark(digest, present=True)
        except ChunkUnknown:
            self._blobs.delete(chunk_name(digest))  # erased while it came
            raise

    def _mend_index(self, row: VersionRow, sealed: bytes) -> None:
        name = index_name(row.study_id, row.version)
        present = self._blobs.read(name)
        if present is None or hashlib.sha256(present).digest() != row.index_digest:
            self._blobs.replace(name, sealed)

    def _find_written(self, index: StudyIndex) -> None:
        """Note the chunks that were written just before a crash: they are not fetched again."""
        missing = self._catalog.missing(index.study_id)
        for chunk in index.chunks:
            if chunk.digest not in missing:
                continue
            data = self._blobs.read(chunk_name(chunk.digest))
            if data is not None and hashlib.sha256(data).digest() == chunk.digest:
                self._catalog.mark(chunk.digest, present=True)

    # Removing

    def erase(self, study_id: bytes) -> Erasure:
        """Destroy the study's key, then delete its blobs; return what was done.

        From the first moment nobody can read the study here; a tombstone refuses it for ever. When
        the blobs cannot be reached, `is_complete` is False: the same call goes on, and so does
        opening the store. Raises `StudyUnknown`.
        """
        self._catalog.destroy_key(study_id, State.ERASING)
        try:
            self._remove(study_id)
        except StoreError as error:
            log.warning("the blobs of an erased study stay for now: %s", error)
        erasure = self.erasure(study_id)
        if erasure is None:
            raise StudyUnknown(f"study {study_id.hex()} is not in this store")
        return erasure

    def erasure(self, study_id: bytes) -> Erasure | None:
        """Return what is known of a study's erasure, None if it was not erased."""
        row = self._catalog.study(study_id)
        if row is None or row.state not in (State.ERASING, State.ERASED):
            return None
        counts = row.versions, row.chunks, row.stored_bytes
        return Erasure(study_id, *counts, row.destroyed_ms or 0, row.state is State.ERASED)

    def abandon(self, study_id: bytes) -> None:
        """Drop a study like `erase`, without a tombstone: it may be adopted again.

        For what was fetched under a grant that ended. Raises `StudyUnknown`, `StudyErased`.
        """
        row = self._catalog.destroy_key(study_id, State.LEAVING)
        if row.state is not State.LEAVING:
            raise StudyErased(f"study {study_id.hex()} was erased")
        self._remove(study_id)

    def _remove(self, study_id: bytes) -> None:
        self._indexes.clear()
        self._plain.clear()
        for chunk in self._catalog.chunks(study_id):
            self._blobs.delete(chunk_name(chunk.digest))
        for version in self._catalog.versions(study_id):
            self._blobs.delete(index_name(study_id, version.version))
        self._catalog.forget_chunks(study_id)

    def _resume_removals(self) -> None:
        for state in (State.ERASING, State.LEAVING):
            for study_id in list(self._catalog.studies(state)):
                try:
                    self._remove(study_id)
                except StoreError as error:
                    log.warning("the blobs of a removed study stay for now: %s", error)

    # The store as a whole

    def scrub(
        self,
        *,
        collect: bool = False,
        orphan_age_ms: int = ORPHAN_AGE_MS,
        progress: Progress | None = None,
    ) -> Iterator[Finding]:
        """Yield everything in the store that is not as it should be; see `scrub.scrub`."""
        return scrub(
            self._blobs,
            self._catalog,
            collect=collect,
            orphan_age_ms=orphan_age_ms,
            progress=progress,
        )

    def slow_scrub(self, period_ms: int, **options: Any) -> SlowScrub:
        """Return what reads all once in each period; see `rounds.SlowScrub`."""
        return SlowScrub(self._blobs, self._catalog, self.check_place, period_ms, **options)

    def last_scrub(self) -> Scrubbed | None:
        """Return what the last scrub that came to its end found, None if there was none."""
        return last_scrub(self._catalog)

    def usage(self) -> Usage:
        """Return what the store holds."""
        return Usage(*self._catalog.totals(), self._quota_bytes, self._blobs.free_bytes())

    def migrate(self, to: BlobStore, progress: Progress | None = None) -> Migration:
        """Copy all blobs to another place; see `migrate.migrate`. This store goes on as it was."""
        return migrate(self._blobs, to, self._catalog, progress)

    def rotate(self, source: MasterSource) -> int:
        """Seal all study keys under another master key; return how many; see `Catalog.rotate`."""
        return self._catalog.rotate(source)

    def check_place(self) -> None:
        """Raise `StoreError` unless the place can be reached and is this store's.

        A wrong or unmounted folder must not look like a store that lost everything.
        """
        mine = self._catalog.store_id.hex().encode()
        found = self._blobs.read(STORE_ID)
        if found is None and next(self._catalog.chunks(), None) is not None:
            raise StoreError(
                f"{self._blobs} holds nothing of this store: is it mounted, and the right one?"
            )
        if found is None:
            self._blobs.create(STORE_ID, mine)
            found = self._blobs.read(STORE_ID)
        if found != mine:
            raise StoreError(f"{self._blobs} belongs to another key file")

    def _row(self, study_id: bytes, version: int | None) -> VersionRow:
        self._catalog.key(study_id)  # says whether it is unknown or erased
        row = self._catalog.version(study_id, version)
        if row is None:
            which = "any version" if version is None else f"version {version}"
            raise VersionUnknown(f"the store does not hold {which} of study {study_id.hex()}")
        return row

    def _sealed_index(self, row: VersionRow) -> bytes:
        name = index_name(row.study_id, row.version)
        sealed = self._blobs.read(name)
        if sealed is None or hashlib.sha256(sealed).digest() != row.index_digest:
            raise Damaged(f"{name} is rotten or gone in {self._blobs}")
        return sealed
