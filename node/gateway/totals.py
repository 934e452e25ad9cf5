"""What the spool has ever taken, counted in the same transaction as the instance itself.

Rows of the table `totals` of the spool's index: instances, bytes, duplicates.
"""

import sqlite3

INSTANCES, BYTES, DUPLICATES = "instances", "bytes", "duplicates"


def count(connection: sqlite3.Connection, name: str, amount: int) -> None:
    """Add to a total."""
    sql = "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET count = count + ?"
    connection.execute(sql, (name, amount, amount))


def read(connection: sqlite3.Connection) -> dict[str, int]:
    """Return all totals, those that are 0 too."""
    found = dict(connection.execute("SELECT name, count FROM totals").fetchall())
    return {name: int(found.get(name, 0)) for name in (INSTANCES, BYTES, DUPLICATES)}
