"""What is being delivered to the local PACS, on disk: it goes on after a restart of either side.

One row for each delivery, with the study's and the instances' UIDs sealed, and one for each
instance by its place among them; so the file names nobody. Besides, from when on a PACS takes what
comes from other hospitals, and which grants had no use left for one.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from storage.errors import StorageError
from storage.sqlite import Format, open_database

_FORMAT = Format(
    0x52_4C_44_31,  # "RLD1"
    1,
    """
CREATE TABLE delivery (
    number INTEGER PRIMARY KEY,
    lookup BLOB NOT NULL,
    target TEXT NOT NULL,
    sealed BLOB NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    due_ms INTEGER NOT NULL,
    reason TEXT NOT NULL
) STRICT;
CREATE TABLE instance (
    delivery INTEGER NOT NULL,
    place INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (delivery, place)
) STRICT, WITHOUT ROWID;
CREATE TABLE taker (
    target TEXT NOT NULL,
    chain BLOB NOT NULL,
    since_height INTEGER NOT NULL,
    PRIMARY KEY (target, chain)
) STRICT, WITHOUT ROWID;
CREATE TABLE spent (
    target TEXT NOT NULL,
    request BLOB NOT NULL,
    PRIMARY KEY (target, request)
) STRICT, WITHOUT ROWID;
CREATE INDEX by_lookup ON delivery (lookup);
CREATE INDEX by_state ON delivery (state, due_ms);
""",
)
_COLUMNS = "SELECT number, target, state, attempts, due_ms, reason, sealed FROM delivery "


class DeliveriesUnusable(Exception):
    """The file cannot be read or written; the text says why."""


class State(Enum):
    """How far a delivery has come."""

    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"


class Stage(Enum):
    """How far an instance has come. An instance with no row has not been sent."""

    SENT = "sent"  # the PACS said that it has it
    VERIFIED = "verified"  # read back: the same image
    FOUND = "found"  # the PACS lists it, but can give nothing back to compare
    REFUSED = "refused"  # the PACS would not take it
    ALTERED = "altered"  # what the PACS gives back is another image


@dataclass(frozen=True, slots=True)
class Delivery:
    """One study on its way to one PACS."""

    number: int
    target: str
    state: State
    attempts: int
    due_ms: int
    reason: str
    study_uid: str = field(repr=False)
    sop_uids: tuple[str, ...] = field(repr=False)


class Sealing(Protocol):
    """What keeps the file from naming anybody; the spool is one."""

    def seal(self, plain: bytes) -> bytes: ...
    def unseal(self, sealed: bytes) -> bytes: ...
    def lookup(self, kind: str, *parts: str) -> bytes: ...


class Deliveries:
    """The file. Thread-safe. Every method raises `DeliveriesUnusable`."""

    def __init__(self, path: Path, sealing: Sealing) -> None:
        self._sealing = sealing
        self._lock = threading.Lock()
        try:
            self._file = open_database(path, _FORMAT)
        except StorageError as error:
            raise DeliveriesUnusable(str(error)) from error
        except (sqlite3.Error, OSError) as error:
            raise DeliveriesUnusable(f"{path} cannot be used: {error}") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def add(self, target: str, study_uid: str, sop_uids: Sequence[str], now_ms: int) -> int:
        """Begin a delivery, or return the number of the same one that waits already."""
        known = self.find(target, study_uid, sop_uids)
        if known is not None and known.state is State.WAITING:
            return known.number
        sealed = self._sealing.seal(json.dumps([study_uid, list(sop_uids)]).encode())
        lookup = self._lookup(target, study_uid, sop_uids)
        row = (lookup, target, sealed, State.WAITING.value, 0, now_ms, "")
        with self._lock:
            try:
                cursor = self._file.execute(
                    "INSERT INTO delivery"
                    " (lookup, target, sealed, state, attempts, due_ms, reason)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
            except sqlite3.Error as error:
                raise DeliveriesUnusable(f"cannot be written: {error}") from error
        return int(cursor.lastrowid or 0)

    def find(self, target: str, study_uid: str, sop_uids: Sequence[str]) -> Delivery | None:
        """Return the last delivery of just these instances to `target`."""
        lookup = self._lookup(target, study_uid, sop_uids)
        return next(
            iter(self._read("WHERE lookup = ? ORDER BY number DESC LIMIT 1", (lookup,))), None
        )

    def waiting(self) -> list[Delivery]:
        """Return the deliveries that are not at their end, the first to do first."""
        return self._read("WHERE state = 'waiting' ORDER BY due_ms, number")

    def counts(self) -> dict[State, int]:
        """Return how many deliveries there are in each state."""
        rows = self._query("SELECT state, COUNT(*) FROM delivery GROUP BY state")
        return dict.fromkeys(State, 0) | {State(state): count for state, count in rows}

    def stuck(self) -> dict[str, str]:
        """Return the PACS for which deliveries wait after an attempt, with the last reason."""
        sql = (
            "SELECT target, reason FROM delivery"
            " WHERE state = 'waiting' AND attempts > 0 ORDER BY number"
        )
        return dict(self._query(sql))

    def get(self, number: int) -> Delivery | None:
        """Return one delivery."""
        return next(iter(self._read("WHERE number = ?", (number,))), None)

    def stages(self, number: int) -> dict[int, tuple[Stage, str]]:
        """Return stage and reason of each instance that has one, by place."""
        rows = self._query(
            "SELECT place, state, reason FROM instance WHERE delivery = ?", (number,)
        )
        return {place: (Stage(state), reason) for place, state, reason in rows}

    def mark(self, number: int, place: int, stage: Stage | None, reason: str = "") -> None:
        """Put down how far an instance has come, durably; None: it has to be sent again."""
        if stage is None:
            sql = "DELETE FROM instance WHERE delivery = ? AND place = ?"
            self._query(sql, (number, place))
            return
        sql = "INSERT OR REPLACE INTO instance (delivery, place, state, reason) VALUES (?, ?, ?, ?)"
        self._query(sql, (number, place, stage.value, reason))

    def end(self, number: int, state: State, reason: str = "") -> None:
        """Bring a delivery to its end."""
        sql = "UPDATE delivery SET state = ?, reason = ? WHERE number = ?"
        self._query(sql, (state.value, reason, number))

    def later(self, number: int, due_ms: int, reason: str) -> None:
        """Put down an attempt that did not bring the delivery to its end."""
        sql = "UPDATE delivery SET attempts = attempts + 1, due_ms = ?, reason = ? WHERE number = ?"
        self._query(sql, (due_ms, reason, number))

    def taken_since(self, target: str, chain_id: bytes, height: int) -> int:
        """Return from which height of the chain on `target` takes what is received: `height` the
        first time, durably, and whatever is asked later the same."""
        row = (target, chain_id, height)
        self._query("INSERT OR IGNORE INTO taker VALUES (?, ?, ?)", row)
        sql = "SELECT since_height FROM taker WHERE target = ? AND chain = ?"
        return int(self._query(sql, row[:2])[0][0])

    def mark_spent(self, target: str, request_id: bytes) -> None:
        """Put down that the grant has no use left by which `target` could get the study."""
        self._query("INSERT OR IGNORE INTO spent VALUES (?, ?)", (target, request_id))

    def is_spent(self, target: str, request_id: bytes) -> bool:
        """Return whether that was put down."""
        sql = "SELECT 1 FROM spent WHERE target = ? AND request = ?"
        return bool(self._query(sql, (target, request_id)))

    def _lookup(self, target: str, study_uid: str, sop_uids: Sequence[str]) -> bytes:
        return self._sealing.lookup("delivery", target, study_uid, *sop_uids)

    def _read(self, condition: str, values: Iterable[object] = ()) -> list[Delivery]:
        found = []
        for row in self._query(_COLUMNS + condition, values):
            number, target, state, attempts, due_ms, reason, sealed = row
            study_uid, sop_uids = json.loads(self._sealing.unseal(sealed))
            uids = study_uid, tuple(sop_uids)
            found.append(Delivery(number, target, State(state), attempts, due_ms, reason, *uids))
        return found

    def _query(self, sql: str, values: Iterable[object] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                with closing(self._file.execute(sql, tuple(values))) as cursor:
                    return cursor.fetchall()
            except sqlite3.Error as error:
                raise DeliveriesUnusable(f"cannot be read or written: {error}") from error
