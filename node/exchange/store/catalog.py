"""The key file: sealed study keys, and which chunks are whose. An sqlite file beside the blobs.

    meta      name            -> value; "header" (`master.py`), "store_id", "scrubbed"
    studies   id              -> sealed key (NULL once destroyed), state, times
    versions  study, version  -> digest and length of the sealed index, instances, bytes as received
    chunks    digest          -> study, stored bytes, whether it is here

Ids and digests stand in clear: the ids are random, the digests are of ciphertext. Every method is
one transaction, durable on return (WAL, synchronous=FULL), and waits for the disk. Several threads
and processes may use the file at once. Deleted content is overwritten (secure_delete).
"""

import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from node.exchange.store.errors import (
    ChunkUnknown,
    Damaged,
    KeysTooNew,
    QuotaExceeded,
    StoreError,
    StudyErased,
    StudyUnknown,
    VersionConflict,
    WrongMasterKey,
)
from node.exchange.store.master import MasterSource, Sealer, new_header, open_header
from node.exchange.store.rows import ChunkRow, State, StudyRow, Totals, VersionRow
from storage.errors import DatabaseTooNew, ForeignDatabase
from storage.sqlite import Format, open_database, write_transaction

PAGE = 256  # rows read at once by whoever walks through all of them
_FORMAT = Format(
    0x52_4C_53_31,  # "RLS1"
    1,
    """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE studies (
    id BLOB PRIMARY KEY, sealed BLOB, state INTEGER NOT NULL, destroyed_ms INTEGER,
    versions INTEGER NOT NULL DEFAULT 0, chunks INTEGER NOT NULL DEFAULT 0,
    stored_bytes INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE versions (
    study BLOB NOT NULL, version INTEGER NOT NULL, index_digest BLOB NOT NULL,
    index_bytes INTEGER NOT NULL, instances INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (study, version)
) WITHOUT ROWID;
CREATE TABLE chunks (
    digest BLOB PRIMARY KEY, study BLOB NOT NULL, stored_bytes INTEGER NOT NULL,
    present INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX chunks_of ON chunks (study);
CREATE INDEX chunks_missing ON chunks (study) WHERE present = 0;
""",
)


class Catalog:
    """An open key file. Safe to use from several threads."""

    def __init__(self, connection: sqlite3.Connection, header: bytes, sealer: Sealer) -> None:
        self._connection, self._header, self._sealer = connection, header, sealer
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._connection.close()

    @property
    def store_id(self) -> bytes:
        """16 random bytes that the place of the blobs repeats."""
        value: bytes = self._one("SELECT value FROM meta WHERE name = 'store_id'")[0]
        return value

    def study(self, study_id: bytes) -> StudyRow | None:
        """Return a study's row, None if there was never one."""
        sql = (
            "SELECT sealed, state, destroyed_ms, versions, chunks, stored_bytes "
            "FROM studies WHERE id = ?"
        )
        row = self._read(sql, study_id)
        return StudyRow(row[0][0], State(row[0][1]), *row[0][2:]) if row else None

    def key(self, study_id: bytes) -> bytes:
        """Return the study's key, 32 bytes. Raises `StudyUnknown`, `StudyErased`, `Damaged`."""
        row = self.study(study_id)
        if row is None or row.state is State.LEAVING:
            raise StudyUnknown(f"study {study_id.hex()} is not in this store")
        if row.sealed is None:
            raise StudyErased(f"study {study_id.hex()} was erased")
        self._check_header()
        return self._sealer.open(row.sealed, study_id)

    def claim(self, study_id: bytes, key: bytes) -> bytes:
        """Return the study's key, which is `key` if it had none. Raises `StudyErased`."""
        with self._change() as connection:
            row = self.study(study_id)
            if row is None:
                self._check_header()
                sql = "INSERT INTO studies (id, sealed, state) VALUES (?, ?, ?)"
                sealed = self._sealer.seal(key, study_id)
                connection.execute(sql, (study_id, sealed, State.HELD))
                return key
            if row.state is State.LEAVING:
                raise StoreError(f"study {study_id.hex()} is being removed; try again")
            return self.key(study_id)

    def add_version(
        self,
        row: VersionRow,
        key: bytes,
        chunks: Iterable[tuple[bytes, int]],
        write_index: Callable[[], None],
        *,
        present: bool,
        quota_bytes: int | None,
    ) -> None:
        """Keep a version with its `chunks` (digest, stored bytes), those that are not known yet.

        `write_index` is called in the same transaction: of two writers the second waits, so a row
        and its index always belong together, and an index without a row is a leftover that is
        replaced. Raises `VersionConflict`, `StudyErased`, `StudyUnknown`, `QuotaExceeded`.
        """
        study = row.study_id
        with self._change() as connection:
            if self.key(study) != key:
                raise VersionConflict(f"study {study.hex()} is held under another key")
            if self.version(study, row.version) is not None:
                raise VersionConflict(f"version {row.version} is stored already")
            new = self._new_chunks(study, chunks)
            total = sum(size for _, size in new)
            if quota_bytes is not None and total + self.stored_bytes() > quota_bytes:
                raise QuotaExceeded(f"the quota of {quota_bytes} bytes would be exceeded")
            write_index()
            connection.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?)", row)
            connection.executemany(
                "INSERT INTO chunks VALUES (?, ?, ?, ?)",
                ((digest, study, size, present) for digest, size in new),
            )
            connection.execute(
                "UPDATE studies SET versions = versions + 1, chunks = chunks + ?, "
                "stored_bytes = stored_bytes + ? WHERE id = ?",
                (len(new), total, study),
            )

    def version(self, study_id: bytes, version: int | None) -> VersionRow | None:
        """Return a version, or the newest with None; None if there is none."""
        if version is None:
            sql = "SELECT * FROM versions WHERE study = ? ORDER BY version DESC LIMIT 1"
            rows = self._read(sql, study_id)
        else:
            rows = self._read(
                "SELECT * FROM versions WHERE study = ? AND version = ?", study_id, version
            )
        return VersionRow(*rows[0]) if rows else None

    def versions(self, study_id: bytes) -> list[VersionRow]:
        """Return a study's versions, the oldest first."""
        rows = self._read("SELECT * FROM versions WHERE study = ? ORDER BY version", study_id)
        return [VersionRow(*row) for row in rows]

    def all_versions(self, after: tuple[bytes, int] = (b"", 0)) -> Iterator[VersionRow]:
        """Yield every version of every study; what changes meanwhile may be left out."""
        last = after
        sql = "SELECT * FROM versions WHERE (study, version) > (?, ?) ORDER BY 1, 2 LIMIT ?"
        while rows := self._read(sql, *last, PAGE):
            yield from (VersionRow(*row) for row in rows)
            last = rows[-1][0], rows[-1][1]

    def studies(self, state: State = State.HELD) -> Iterator[bytes]:
        """Yield the ids of the studies in that state; of held ones, those that have a version."""
        last = b""
        sql = (
            "SELECT id FROM studies WHERE id > ? AND state = ? AND (state <> 1 OR versions > 0) "
            "ORDER BY id LIMIT ?"
        )
        while rows := self._read(sql, last, state, PAGE):
            yield from (row[0] for row in rows)
            last = rows[-1][0]

    def claimed(self) -> Iterator[bytes]:
        """Yield the ids of held studies that have no version, in order."""
        sql = (
            "SELECT id FROM studies WHERE id > ? AND state = 1 AND versions = 0 ORDER BY id LIMIT ?"
        )
        last = b""
        while rows := self._read(sql, last, PAGE):
            yield from (row[0] for row in rows)
            last = rows[-1][0]

    def chunk(self, digest: bytes) -> ChunkRow:
        """Return a chunk's row. Raises `ChunkUnknown`."""
        rows = self._read("SELECT * FROM chunks WHERE digest = ?", digest)
        if not rows:
            raise ChunkUnknown(f"no study here has a chunk {digest.hex()}")
        return _chunk(rows[0])

    def chunks(self, study_id: bytes | None = None, *, after: bytes = b"") -> Iterator[ChunkRow]:
        """Yield all chunks, or a study's, in the order of their digests; those `after` one."""
        last = after
        narrow = "" if study_id is None else "AND study = ? "
        sql = f"SELECT * FROM chunks WHERE digest > ? {narrow}ORDER BY digest LIMIT ?"  # noqa: S608
        extra = () if study_id is None else (study_id,)
        while rows := self._read(sql, last, *extra, PAGE):
            yield from (_chunk(row) for row in rows)
            last = rows[-1][0]

    def knows_chunk(self, digest: bytes) -> bool:
        """Whether a study here has that chunk."""
        return bool(self._read("SELECT 1 FROM chunks WHERE digest = ?", digest))

    def missing(self, study_id: bytes) -> set[bytes]:
        """Return the digests of a study's chunks that are not here."""
        sql = "SELECT digest FROM chunks WHERE study = ? AND present = 0"
        return {row[0] for row in self._read(sql, study_id)}

    def lacking(self) -> Iterator[bytes]:
        """Yield the ids of held studies of which chunks are not here, in order."""
        last = b""
        sql = (
            "SELECT DISTINCT study FROM chunks WHERE present = 0 AND study > ? "
            "AND study IN (SELECT id FROM studies WHERE state = 1) ORDER BY study LIMIT ?"
        )
        while rows := self._read(sql, last, PAGE):
            yield from (row[0] for row in rows)
            last = rows[-1][0]

    def mark(self, digest: bytes, *, present: bool) -> None:
        """Note whether a chunk is here. Raises `ChunkUnknown`: the study was removed meanwhile."""
        with self._change() as connection:
            sql = "UPDATE chunks SET present = ? WHERE digest = ?"
            if connection.execute(sql, (present, digest)).rowcount == 0:
                raise ChunkUnknown(f"no study here has a chunk {digest.hex()}")

    def destroy_key(self, study_id: bytes, state: State) -> StudyRow:
        """Destroy the study's key; return its row. A second call destroys nothing more.

        After it no bytes of the sealed key are left in this file or its log. Raises `StudyUnknown`.
        """
        with self._change() as connection:
            row = self.study(study_id)
            if row is None:
                raise StudyUnknown(f"study {study_id.hex()} is not in this store")
            if row.sealed is not None:
                sql = "UPDATE studies SET sealed = NULL, state = ?, destroyed_ms = ? WHERE id = ?"
                now_ms = time.time_ns() // 1_000_000
                connection.execute(sql, (state, now_ms, study_id))
            elif row.state is State.LEAVING and state is State.ERASING:
                connection.execute("UPDATE studies SET state = ? WHERE id = ?", (state, study_id))
        self.compact()
        return self._need(study_id)

    def forget_chunks(self, study_id: bytes) -> None:
        """Remove a study's versions and chunks after their blobs; the tombstone keeps its counts.

        A study that was leaving is gone without one.
        """
        with self._change() as connection:
            connection.execute("DELETE FROM chunks WHERE study = ?", (study_id,))
            connection.execute("DELETE FROM versions WHERE study = ?", (study_id,))
            connection.execute(
                "UPDATE studies SET state = ? WHERE id = ? AND state = ?",
                (State.ERASED, study_id, State.ERASING),
            )
            connection.execute(
                "DELETE FROM studies WHERE id = ? AND state = ?", (study_id, State.LEAVING)
            )

    def stored_bytes(self) -> int:
        """Return the bytes of all chunks, those still to be fetched among them."""
        sql = "SELECT COALESCE(SUM(stored_bytes), 0) FROM studies WHERE state <> ?"
        return int(self._one(sql, State.ERASED)[0])

    def totals(self) -> Totals:
        """Return everything held, added up; takes time in proportion to the studies."""
        held = "SELECT COUNT(*), COALESCE(SUM(chunks), 0) FROM studies WHERE state = 1 AND versions"
        studies, chunks = self._one(held)
        # A version holds what the one before held: bytes count once, in the newest.
        newest = (
            "SELECT (SELECT COUNT(*) FROM versions), COALESCE(SUM(instances), 0), "
            "COALESCE(SUM(bytes), 0) FROM versions v WHERE version = "
            "(SELECT MAX(version) FROM versions w WHERE w.study = v.study)"
        )
        versions, instances, size = self._one(newest)
        missing = self._one("SELECT COUNT(*) FROM chunks WHERE present = 0")[0]
        stored = self.stored_bytes()
        return Totals(studies, versions, instances, size, stored, chunks, missing)

    def rotate(self, source: MasterSource) -> int:
        """Seal all keys anew under the master key of `source`; return how many.

        It is all done or nothing; after it the former master key opens nothing in this file.
        Raises `KeyFileError`, `WrongMasterKey`, `Damaged`.
        """
        header, sealer = new_header(source)
        with self._change() as connection:
            self._check_header()
            rows = self._read("SELECT id, sealed FROM studies WHERE sealed IS NOT NULL")
            sealed = [
                (sealer.seal(self._sealer.open(old, study), study), study) for study, old in rows
            ]
            connection.executemany("UPDATE studies SET sealed = ? WHERE id = ?", sealed)
            connection.execute("UPDATE meta SET value = ? WHERE name = 'header'", (header,))
        self._header, self._sealer = header, sealer
        self.compact()
        return len(sealed)

    def note(self, name: str, note: bytes) -> None:
        """Keep what a scrub notes, `SCRUBBED` or `SCRUBBING`, in place of what it noted before."""
        with self._change() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, note))

    def noted(self, name: str) -> bytes | None:
        """Return what was noted, None if nothing was."""
        rows = self._read("SELECT value FROM meta WHERE name = ?", name)
        return rows[0][0] if rows else None

    def compact(self) -> None:
        """Rewrite the file so that nothing deleted is left in it or its log."""
        with self._lock, _explained():
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _check_header(self) -> None:
        """A key sealed under a master key that was rotated away would be lost for good."""
        if self._one("SELECT value FROM meta WHERE name = 'header'")[0] != self._header:
            raise WrongMasterKey("the master key was rotated: restart with the new one")

    def _new_chunks(
        self, study: bytes, chunks: Iterable[tuple[bytes, int]]
    ) -> list[tuple[bytes, int]]:
        new = []
        for digest, size in chunks:
            rows = self._read("SELECT study FROM chunks WHERE digest = ?", digest)
            if not rows:
                new.append((digest, size))
            elif rows[0][0] != study:
                # Honest studies never share a chunk; erasing this one would take the other's.
                raise VersionConflict(f"chunk {digest.hex()} belongs to another study")
        return new

    def _need(self, study_id: bytes) -> StudyRow:
        row = self.study(study_id)
        if row is None:
            raise StudyUnknown(f"study {study_id.hex()} is not in this store")
        return row

    def _one(self, sql: str, *values: object) -> tuple[Any, ...]:
        rows = self._read(sql, *values)
        if not rows:
            raise Damaged("the key file lacks a row that it must have; restore a backup")
        return tuple(rows[0])

    def _read(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, _explained():
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _explained(), write_transaction(self._connection):
            yield self._connection


def open_catalog(path: Path, source: MasterSource) -> Catalog:
    """Open the key file at `path`; make it under the master key of `source` if there is none.

    Raises `WrongMasterKey`, `KeyFileError`, `KeysTooNew`, `Damaged`, `StoreError`.
    """
    with _explained():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        connection = open_database(path, _FORMAT, on_new=partial(_fill, source))
        try:
            connection.execute("PRAGMA temp_store = MEMORY")
            header = _header(connection, path)
            return Catalog(connection, header, open_header(header, source))
        except BaseException:
            connection.close()
            raise


def _fill(source: MasterSource, connection: sqlite3.Connection) -> None:
    header, _ = new_header(source)
    meta = [("header", header), ("store_id", secrets.token_bytes(16))]
    connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)


def _header(connection: sqlite3.Connection, path: Path) -> bytes:
    with closing(connection.execute("SELECT value FROM meta WHERE name = 'header'")) as rows:
        row = rows.fetchone()
    if row is None:
        raise Damaged(f"{path} has no header; restore a backup")
    header: bytes = row[0]
    return header


def _chunk(row: tuple[Any, ...]) -> ChunkRow:
    return ChunkRow(row[0], row[1], row[2], bool(row[3]))


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ForeignDatabase as error:
        raise Damaged(str(error)) from error
    except DatabaseTooNew as error:
        raise KeysTooNew(str(error)) from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise StoreError(f"the key file cannot be used: {error}") from error
        raise Damaged(f"the key file is damaged ({error}); restore a backup") from error
    except OSError as error:
        raise StoreError(f"the key file cannot be opened: {error.strerror}") from error
