"""sqlite files: opened with their format checked, and written in transactions.

A connection commits nothing by itself; threads share it under a lock of their own. Several
processes may open one file, also while it is made.
"""

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage.errors import DatabaseTooNew, ForeignDatabase

BUSY_S = 60.0  # how long a writer waits for another
_OPENING_S = 0.2


@dataclass(frozen=True, slots=True)
class Format:
    """What a file of one kind is known by, and its tables."""

    application_id: int  # of this kind alone, 32 bits
    version: int  # what a newer program writes has a higher one
    schema: str  # statements, each with a semicolon at its end and none inside


def open_database(
    path: Path,
    format_: Format,
    *,
    on_new: Callable[[sqlite3.Connection], None] = lambda connection: None,
) -> sqlite3.Connection:
    """Return a connection to the file at `path`, which is made with mode 0600 if there is none.

    What is committed is durable, and what is deleted is overwritten. `on_new` fills a new file in
    the transaction that makes its tables. Raises `ForeignDatabase` and `DatabaseTooNew`, and leaves
    the file as it was; `sqlite3.Error`, `OSError`, and what `on_new` raises.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    end_s = time.monotonic() + BUSY_S
    while True:
        connection = sqlite3.connect(
            path, timeout=_OPENING_S, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(connection, path, format_, on_new)
            connection.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}").fetchall()
            return connection
        except sqlite3.OperationalError as error:
            connection.close()
            # While another process makes the file, sqlite says that at once, with no waiting.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end_s:
                raise
        except BaseException:
            connection.close()
            raise
        time.sleep(_OPENING_S / 10 * (1 + secrets.randbelow(10)))


@contextmanager
def write_transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Yield the connection inside a write transaction: other writers wait, readers do not.

    It is committed at the end, and rolled back on any error, that of committing included.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # not after an error that sqlite itself rolls back for
            connection.execute("ROLLBACK")
        raise


def _prepare(
    connection: sqlite3.Connection,
    path: Path,
    format_: Format,
    on_new: Callable[[sqlite3.Connection], None],
) -> None:
    is_new = _is_new(connection, path, format_)
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON").fetchall()
    if not is_new:
        return
    with write_transaction(connection):
        if not _is_new(connection, path, format_):
            return  # another process was faster
        # Not executescript, which would end the transaction.
        for statement in filter(str.strip, format_.schema.split(";")):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {format_.application_id}")
        connection.execute(f"PRAGMA user_version = {format_.version}")
        on_new(connection)


def _is_new(connection: sqlite3.Connection, path: Path, format_: Format) -> bool:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if application not in (0, format_.application_id) or (tables and not application):
        raise ForeignDatabase(f"{path} is another program's database: move one of them away")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > format_.version:
        raise DatabaseTooNew(
            f"{path} has format {version}, this program knows {format_.version}: upgrade it"
        )
    return not tables
