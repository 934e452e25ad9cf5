"""Which instances came from other hospitals: with them, too, a copy that arrives here must agree.

A second sqlite file of the spool's folder, used by several processes at once. As in the spool's
index nothing stands in it in clear but ids that are on the chain: instances are HMACs.

    studies     study id -> version that was learnt, its custodian
    instances   (HMAC(SOP UID), study id) -> position in the manifest, rules, HMAC(K, P, X)
    notices     (study id, version, position) -> custodian that is told of a conflict, once

What this hospital had before a study came is not in `instances`: the spool's index knows it.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from node.gateway.index import SpoolError
from storage.errors import StorageError
from storage.sqlite import Format, open_database, write_transaction

NOTICES_MAX = 10_000  # beyond, what is new is an event here only
_FORMAT = Format(
    0x52_4C_46_31,  # "RLF1"
    1,
    """
CREATE TABLE studies (
    study BLOB PRIMARY KEY, version INTEGER NOT NULL, institution TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE instances (
    sop BLOB NOT NULL, study BLOB NOT NULL, position INTEGER NOT NULL, rules INTEGER NOT NULL,
    content BLOB NOT NULL, PRIMARY KEY (sop, study)
) WITHOUT ROWID;
CREATE INDEX instances_of ON instances (study);
CREATE TABLE notices (
    study BLOB NOT NULL, version INTEGER NOT NULL, position INTEGER NOT NULL,
    institution TEXT NOT NULL, is_told INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (study, version, position)
) WITHOUT ROWID;
""",
)


class Elsewhere(NamedTuple):
    """One instance of a study that came from another hospital."""

    sop: bytes  # HMAC, 32 bytes
    position: int  # in the manifest
    rules: int  # of the commitment
    content: bytes  # HMAC of K, P and X, 32 bytes


class Notice(NamedTuple):
    """A conflict of which the custodian is to be told; it names no UID."""

    study_id: bytes  # 16 bytes
    version: int
    position: int  # in the manifest
    institution: str  # the custodian


class Foreign:
    """An open file. Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises `SpoolError`."""
        self._lock = threading.RLock()
        with _translated():
            self._connection = open_database(path, _FORMAT)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._connection.close()

    def version(self, study_id: bytes) -> int | None:
        """Return the newest version of a study that was learnt, None if it was never."""
        rows = self._read("SELECT version FROM studies WHERE study = ?", study_id)
        return int(rows[0][0]) if rows else None

    def learn(
        self, study_id: bytes, version: int, institution: str, instances: Iterable[Elsewhere]
    ) -> None:
        """Keep what a study of the custodian `institution` has, instead of what was known."""
        with self._change() as connection:
            connection.execute("DELETE FROM instances WHERE study = ?", (study_id,))
            connection.executemany(
                "INSERT OR REPLACE INTO instances VALUES (?, ?, ?, ?, ?)",
                ((e.sop, study_id, e.position, e.rules, e.content) for e in instances),
            )
            row = study_id, version, institution
            connection.execute("INSERT OR REPLACE INTO studies VALUES (?, ?, ?)", row)

    def forget(self, study_id: bytes) -> None:
        """Remove everything of a study, the notices as well; nothing of it stays in the log."""
        with self._change() as connection:
            for table in ("studies", "instances", "notices"):
                connection.execute(f"DELETE FROM {table} WHERE study = ?", (study_id,))  # noqa: S608
        self._read("PRAGMA wal_checkpoint(TRUNCATE)")

    def compare(self, sop: bytes, rules: int, content: bytes, besides: bytes = b"") -> bool | None:
        """Return whether an instance agrees with a copy from elsewhere, None if there is none.

        A copy that agrees outweighs others. For those that do not, notices are left. What was
        committed by other rules cannot be compared; the study `besides` is not looked at.
        """
        rows = self._read(
            "SELECT i.study, s.version, i.position, s.institution, i.content = ? FROM instances i"
            " JOIN studies s ON s.study = i.study"
            " WHERE i.sop = ? AND i.rules = ? AND i.study <> ?",
            content,
            sop,
            rules,
            besides,
        )
        if not rows:
            return None
        if any(agrees for *_, agrees in rows):
            return True
        for study_id, version, position, institution, _ in rows:
            self.contradicted(Notice(study_id, version, position, institution))
        return False

    def contradicted(self, notice: Notice) -> bool:
        """Keep what a custodian is to be told; False if it was kept before, or too many are."""
        with self._change() as connection:
            if connection.execute("SELECT COUNT(*) FROM notices").fetchone()[0] >= NOTICES_MAX:
                return False
            sql = "INSERT OR IGNORE INTO notices VALUES (?, ?, ?, ?, 0)"
            return connection.execute(sql, notice).rowcount > 0

    def notices(self) -> list[Notice]:
        """Return what custodians are still to be told."""
        columns = "study, version, position, institution"
        rows = self._read(f"SELECT {columns} FROM notices WHERE NOT is_told LIMIT 1000")  # noqa: S608
        return [Notice(*row) for row in rows]

    def told(self, notice: Notice) -> None:
        """Note that a custodian knows; the same conflict is not told again."""
        sql = "UPDATE notices SET is_told = 1 WHERE study = ? AND version = ? AND position = ?"
        with self._change() as connection:
            connection.execute(sql, notice[:3])

    def _read(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, _translated():
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _translated(), write_transaction(self._connection):
            yield self._connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise SpoolError(str(error)) from error
    except (sqlite3.Error, OSError) as error:
        raise SpoolError(f"foreign.db of the spool cannot be used: {error}") from error
