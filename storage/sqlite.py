"""One write transaction of an sqlite file whose connection commits nothing by itself."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager


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
