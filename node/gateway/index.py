"""What the spool knows of its files: an sqlite file that several processes use at once.

No identifier stands in it in clear: what is looked up is an HMAC under the spool's own key.

    studies      HMAC(study UID)  -> HMAC(patient), times of what waits, how closing goes
    instances    HMAC(SOP UID)    -> HMAC(study UID), file name, state, size, HMAC(F), HMAC(K, P, X)
    quarantine   file name        -> why, from whom, when
    promises     number           -> peer, sealed storage commitment that is to be reported
    events       number           -> time, kind, source, code: the last 10,000
    usage        1                -> files and bytes that wait, and that are in quarantine
    totals       name             -> what was ever taken (`totals.py`)

An instance *waits*, is *taken* (its study is being registered) and is *stored* (registered, kept in
the store, its file removed); the row stays, since it tells a later copy from a conflict. A method
is one transaction, on disk when it returns.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from node.gateway import totals
from storage.errors import StorageError
from storage.sqlite import Format, open_database, write_transaction

EVENTS_MAX = 10_000
STUDY_INSTANCES_MAX = 100_000  # as in a manifest
PROMISES_MAX, PROMISE_BYTES_MAX = 1_000, 32 << 20  # of one peer; the longest request has 10 MB
_FORMAT = Format(
    0x52_4C_49_31,  # "RLI1"
    1,
    """
CREATE TABLE studies (
    study BLOB PRIMARY KEY, patient BLOB NOT NULL,
    first_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL, delay_ms INTEGER NOT NULL,
    waiting INTEGER NOT NULL, taken INTEGER NOT NULL, is_signalled INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, retry_ms INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX gathering ON studies (study) WHERE waiting > 0 OR taken > 0;
CREATE TABLE instances (
    sop BLOB PRIMARY KEY, study BLOB NOT NULL, name TEXT NOT NULL UNIQUE, state INTEGER NOT NULL,
    size INTEGER NOT NULL, file BLOB NOT NULL, content BLOB NOT NULL,
    is_disputed INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX unfinished ON instances (study, state) WHERE state < 3;
CREATE TABLE quarantine (
    name TEXT PRIMARY KEY, code TEXT NOT NULL, reason TEXT NOT NULL, source TEXT NOT NULL,
    size INTEGER NOT NULL, time_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE promises (
    number INTEGER PRIMARY KEY AUTOINCREMENT, peer TEXT NOT NULL, sealed BLOB NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, retry_ms INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, time_ms INTEGER NOT NULL, kind TEXT NOT NULL,
    source TEXT NOT NULL, code TEXT NOT NULL
);
CREATE TABLE usage (
    one INTEGER PRIMARY KEY CHECK (one = 1), files INTEGER NOT NULL, bytes INTEGER NOT NULL,
    aside_files INTEGER NOT NULL, aside_bytes INTEGER NOT NULL
);
INSERT INTO usage VALUES (1, 0, 0, 0, 0);
CREATE TABLE totals (name TEXT PRIMARY KEY, count INTEGER NOT NULL);
""",
)


class SpoolError(Exception):
    """The spool cannot be used; the text says what to do."""


class State(Enum):
    """How far an instance has come."""

    WAITING = 1
    TAKEN = 2
    STORED = 3


class Arrival(NamedTuple):
    """An instance whose file is durable already. Look-ups and digests are HMACs, 32 bytes."""

    sop: bytes
    study: bytes
    patient: bytes
    name: str
    size: int
    file: bytes
    content: bytes
    time_ms: int
    delay_ms: int


class Verdict(Enum):
    """What the index says to an arrival."""

    NEW = "new"
    KNOWN = "known"
    OTHER_CONTENT = "other content"
    OTHER_PATIENT = "other patient"
    FULL = "full"  # the study has as many instances as one may have


class Usage(NamedTuple):
    """Files and bytes that wait, and that are in quarantine."""

    files: int
    bytes: int
    aside_files: int
    aside_bytes: int


class Aside(NamedTuple):
    """One file in quarantine."""

    name: str
    code: str
    reason: str
    source: str
    size: int
    time_ms: int


class Event(NamedTuple):
    """Something an operator or auditor may want to know."""

    time_ms: int
    kind: str
    source: str
    code: str


class SpooledFile(NamedTuple):
    """One instance's file."""

    name: str
    size: int


class Promise(NamedTuple):
    """A storage commitment that was asked for and is to be reported."""

    number: int
    peer: str
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Gathering:
    """A study of which instances wait, or are being registered. Times are ms since 1970."""

    study: bytes  # HMAC, 32 bytes
    first_ms: int
    last_ms: int
    delay_ms: int
    waiting: int
    taken: int
    is_signalled: bool
    attempts: int
    retry_ms: int
    reason: str  # why the last attempt did not come to an end


class Index:
    """An open index. Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises `SpoolError`."""
        self._lock = threading.RLock()
        with _translated():
            self._connection = open_database(path, _FORMAT)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._connection.close()

    def record(self, arrival: Arrival) -> tuple[Verdict, str]:
        """Note an arrival, unless it is known; return the verdict and the known file's name."""
        with self._change() as connection:
            known = connection.execute(
                "SELECT name, file, content FROM instances WHERE sop = ?", (arrival.sop,)
            ).fetchone()
            if known is not None:
                if known[1] == arrival.file or known[2] == arrival.content:
                    totals.count(connection, totals.DUPLICATES, 1)
                    return Verdict.KNOWN, known[0]
                sql = "UPDATE instances SET is_disputed = 1 WHERE sop = ?"
                connection.execute(sql, (arrival.sop,))
                return Verdict.OTHER_CONTENT, known[0]
            study = connection.execute(
                "SELECT patient, waiting FROM studies WHERE study = ?", (arrival.study,)
            ).fetchone()
            if study is not None and study[0] != arrival.patient:
                return Verdict.OTHER_PATIENT, ""
            if study is not None and study[1] >= STUDY_INSTANCES_MAX:
                return Verdict.FULL, ""
            _insert(connection, arrival)
            totals.count(connection, totals.INSTANCES, 1)
            totals.count(connection, totals.BYTES, arrival.size)
        return Verdict.NEW, ""

    def holds(self, sops: Sequence[bytes]) -> set[bytes]:
        """Return which of the instances are here or were stored, and nobody sent another copy."""
        found = set()
        sql = "SELECT 1 FROM instances WHERE sop = ? AND NOT is_disputed"
        with self._read() as connection:
            for sop in sops:
                if connection.execute(sql, (sop,)).fetchone():
                    found.add(sop)
        return found

    def gatherings(self) -> list[Gathering]:
        """Return all studies of which something waits or is taken."""
        sql = (
            "SELECT study, first_ms, last_ms, delay_ms, waiting, taken, is_signalled, attempts,"
            " retry_ms, reason FROM studies WHERE waiting > 0 OR taken > 0"
        )
        with self._read() as connection:
            rows = connection.execute(sql).fetchall()
        return [_gathering(row) for row in rows]

    def contents(self, sops: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return what stands for the content of those instances that are known."""
        found: dict[bytes, bytes] = {}
        sql = "SELECT sop, content FROM instances WHERE sop = ?"
        with self._read() as connection:
            for sop in sops:
                found.update(connection.execute(sql, (sop,)).fetchall())
        return found

    def signal(self, sops: Sequence[bytes] | None = None) -> None:
        """Note that the studies of these instances, or all, are complete."""
        if sops is None:
            with self._change() as connection:
                connection.execute("UPDATE studies SET is_signalled = 1, retry_ms = 0")
            return
        sql = (
            "UPDATE studies SET is_signalled = 1"
            " WHERE study = (SELECT study FROM instances WHERE sop = ?)"
        )
        with self._change() as connection:
            connection.executemany(sql, [(sop,) for sop in sops])

    def take(self, study: bytes) -> list[SpooledFile]:
        """Return the instances of the next version: those taken before, or all that wait."""
        with self._change() as connection:
            if not _taken(connection, study):
                connection.execute(
                    "UPDATE instances SET state = 2 WHERE study = ? AND state = 1", (study,)
                )
                connection.execute(
                    "UPDATE studies SET taken = waiting, waiting = 0, is_signalled = 0"
                    " WHERE study = ?",
                    (study,),
                )
            return _taken(connection, study)

    def taken(self, study: bytes) -> dict[bytes, str]:
        """Return the names of the files that are taken, by instance."""
        sql = "SELECT sop, name FROM instances WHERE study = ? AND state = 2"
        with self._read() as connection:
            return dict(connection.execute(sql, (study,)).fetchall())

    def defer(self, study: bytes, retry_ms: int, reason: str) -> None:
        """Let the study rest until `retry_ms`."""
        sql = "UPDATE studies SET attempts = attempts + 1, retry_ms = ?, reason = ? WHERE study = ?"
        with self._change() as connection:
            connection.execute(sql, (retry_ms, reason, study))

    def finish(self, study: bytes) -> list[SpooledFile]:
        """Note that what is taken is registered and stored; return the files, now to be removed."""
        with self._change() as connection:
            files = _taken(connection, study)
            connection.execute(
                "UPDATE instances SET state = 3 WHERE study = ? AND state = 2", (study,)
            )
            connection.execute(
                "UPDATE studies SET taken = 0, attempts = 0, retry_ms = 0, reason = ''"
                " WHERE study = ?",
                (study,),
            )
            _use(connection, -len(files), -sum(file.size for file in files))
        return files

    def drop(self, names: Sequence[str]) -> None:
        """Forget instances by their files' names, as when a file goes to quarantine or is lost."""
        with self._change() as connection:
            for name in names:
                sql = "DELETE FROM instances WHERE name = ? RETURNING study, state, size"
                row = connection.execute(sql, (name,)).fetchone()
                if row is None or row[1] == State.STORED.value:
                    continue
                column = "waiting" if row[1] == State.WAITING.value else "taken"
                connection.execute(
                    f"UPDATE studies SET {column} = {column} - 1 WHERE study = ?",  # noqa: S608
                    (row[0],),
                )
                _use(connection, -1, -row[2])

    def forget(self, study: bytes) -> list[SpooledFile]:
        """Forget a study that is erased; return the files that are still there."""
        with self._change() as connection:
            sql = "SELECT name, size FROM instances WHERE study = ? AND state < 3"
            files = [SpooledFile(*row) for row in connection.execute(sql, (study,))]
            connection.execute("DELETE FROM instances WHERE study = ?", (study,))
            connection.execute("DELETE FROM studies WHERE study = ?", (study,))
            _use(connection, -len(files), -sum(file.size for file in files))
        return files

    def names(self) -> Iterator[str]:
        """Yield the names of all files that must be there."""
        with self._read() as connection:
            rows = connection.execute("SELECT name FROM instances WHERE state < 3").fetchall()
        yield from (row[0] for row in rows)

    def set_aside(self, aside: Aside, bytes_max: int) -> bool:
        """Note a file in quarantine; False if it has no room there."""
        with self._change() as connection:
            if _usage(connection).aside_bytes + aside.size > bytes_max:
                return False
            connection.execute("INSERT INTO quarantine VALUES (?, ?, ?, ?, ?, ?)", aside)
            _use(connection, 0, 0, 1, aside.size)
        return True

    def asides(self) -> list[Aside]:
        """Return what is in quarantine, the oldest first."""
        sql = "SELECT name, code, reason, source, size, time_ms FROM quarantine ORDER BY time_ms"
        with self._read() as connection:
            return [Aside(*row) for row in connection.execute(sql)]

    def release(self, name: str) -> None:
        """Forget a file in quarantine."""
        with self._change() as connection:
            sql = "DELETE FROM quarantine WHERE name = ? RETURNING size"
            row = connection.execute(sql, (name,)).fetchone()
            if row is not None:
                _use(connection, 0, 0, -1, -row[0])

    def note(self, event: Event) -> None:
        """Keep an event; the oldest beyond `EVENTS_MAX` go."""
        with self._change() as connection:
            sql = "INSERT INTO events (time_ms, kind, source, code) VALUES (?, ?, ?, ?)"
            number = connection.execute(sql, event).lastrowid or 0
            connection.execute("DELETE FROM events WHERE number <= ?", (number - EVENTS_MAX,))

    def events(self, after: int = 0, limit: int = 1_000) -> list[tuple[int, Event]]:
        """Return events with their numbers, the oldest first."""
        sql = (
            "SELECT number, time_ms, kind, source, code FROM events"
            " WHERE number > ? ORDER BY number LIMIT ?"
        )
        with self._read() as connection:
            return [(row[0], Event(*row[1:])) for row in connection.execute(sql, (after, limit))]

    def last_events(self, count: int) -> list[tuple[int, Event]]:
        """Return the newest events with their numbers, the oldest of them first."""
        with self._read() as connection:
            newest = connection.execute("SELECT MAX(number) FROM events").fetchone()[0] or 0
        return self.events(newest - count, count)

    def promise(self, peer: str, sealed: bytes, now_ms: int) -> Promise | None:
        """Keep a storage commitment to report; None if the peer has as many as one may have."""
        with self._change() as connection:
            sql = "SELECT COUNT(*), TOTAL(LENGTH(sealed)) FROM promises WHERE peer = ?"
            count, size = connection.execute(sql, (peer,)).fetchone()
            if count >= PROMISES_MAX or size + len(sealed) > PROMISE_BYTES_MAX:
                return None
            sql = "INSERT INTO promises (peer, sealed, retry_ms) VALUES (?, ?, ?)"
            number = connection.execute(sql, (peer, sealed, now_ms)).lastrowid or 0
        return Promise(number, peer)

    def promised(self, now_ms: int) -> list[str]:
        """Return the peers to which something is due to be reported."""
        sql = "SELECT DISTINCT peer FROM promises WHERE retry_ms <= ?"
        with self._read() as connection:
            return [row[0] for row in connection.execute(sql, (now_ms,))]

    def promises(self, peer: str, now_ms: int, limit: int = 100) -> list[Promise]:
        """Return what is due to be reported to a peer, what has waited longest first."""
        sql = (
            "SELECT number, peer, attempts FROM promises"
            " WHERE peer = ? AND retry_ms <= ? ORDER BY retry_ms LIMIT ?"
        )
        with self._read() as connection:
            return [Promise(*row) for row in connection.execute(sql, (peer, now_ms, limit))]

    def sealed_promise(self, number: int) -> bytes | None:
        """Return what was promised, None if it is forgotten."""
        sql = "SELECT sealed FROM promises WHERE number = ?"
        with self._read() as connection:
            row = connection.execute(sql, (number,)).fetchone()
        return None if row is None else row[0]

    def promise_kept(self, number: int) -> None:
        """Forget a promise."""
        with self._change() as connection:
            connection.execute("DELETE FROM promises WHERE number = ?", (number,))

    def forget_promises(self, until_ms: int) -> int:
        """Forget what was due by then and could be reported to nobody; return how many."""
        with self._change() as connection:
            sql = "DELETE FROM promises WHERE retry_ms <= ?"
            return connection.execute(sql, (until_ms,)).rowcount

    def promise_later(self, number: int, retry_ms: int) -> None:
        """Let a promise rest until `retry_ms`."""
        sql = "UPDATE promises SET attempts = attempts + 1, retry_ms = ? WHERE number = ?"
        with self._change() as connection:
            connection.execute(sql, (retry_ms, number))

    def usage(self) -> Usage:
        """Return how much is here."""
        with self._read() as connection:
            return _usage(connection)

    def totals(self) -> dict[str, int]:
        """Return what was ever taken, by the names of `totals`."""
        with self._read() as connection:
            return totals.read(connection)

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _translated():
            yield self._connection

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection inside a write transaction: other writers wait, readers do not."""
        with self._lock, _translated(), write_transaction(self._connection):
            yield self._connection


def _insert(connection: sqlite3.Connection, arrival: Arrival) -> None:
    connection.execute(
        "INSERT INTO instances VALUES (?, ?, ?, 1, ?, ?, ?, 0)",
        (arrival.sop, arrival.study, arrival.name, arrival.size, arrival.file, arrival.content),
    )
    connection.execute(
        "INSERT INTO studies (study, patient, first_ms, last_ms, delay_ms, waiting, taken)"
        " VALUES (?, ?, ?, ?, ?, 1, 0) ON CONFLICT (study) DO UPDATE SET"
        " first_ms = CASE waiting WHEN 0 THEN excluded.first_ms ELSE first_ms END,"
        " delay_ms = CASE waiting WHEN 0 THEN excluded.delay_ms ELSE delay_ms END,"
        " last_ms = excluded.last_ms, is_signalled = 0, waiting = waiting + 1",
        (arrival.study, arrival.patient, arrival.time_ms, arrival.time_ms, arrival.delay_ms),
    )
    _use(connection, 1, arrival.size)


def _gathering(row: Sequence[Any]) -> Gathering:
    values = list(row)
    values[6] = bool(values[6])  # is_signalled
    return Gathering(*values)


def _taken(connection: sqlite3.Connection, study: bytes) -> list[SpooledFile]:
    sql = "SELECT name, size FROM instances WHERE study = ? AND state = 2 ORDER BY name"
    return [SpooledFile(*row) for row in connection.execute(sql, (study,))]


def _usage(connection: sqlite3.Connection) -> Usage:
    sql = "SELECT files, bytes, aside_files, aside_bytes FROM usage"
    return Usage(*connection.execute(sql).fetchone())


def _use(
    connection: sqlite3.Connection,
    files: int,
    size: int,
    aside_files: int = 0,
    aside_bytes: int = 0,
) -> None:
    connection.execute(
        "UPDATE usage SET files = files + ?, bytes = bytes + ?,"
        " aside_files = aside_files + ?, aside_bytes = aside_bytes + ?",
        (files, size, aside_files, aside_bytes),
    )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise SpoolError(str(error)) from error
    except (sqlite3.Error, OSError) as error:
        raise SpoolError(f"the spool's index cannot be used: {error}") from error
