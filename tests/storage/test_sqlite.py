"""A write transaction: all of it or nothing, and the connection is free afterwards."""

import sqlite3

import pytest

from storage.sqlite import write_transaction


@pytest.fixture
def connection(tmp_path):
    made = sqlite3.connect(tmp_path / "file.db", timeout=0, isolation_level=None)
    made.execute("PRAGMA foreign_keys = ON")
    made.execute("CREATE TABLE whole (id INTEGER PRIMARY KEY)")
    reference = "REFERENCES whole DEFERRABLE INITIALLY DEFERRED"
    made.execute(f"CREATE TABLE part (whole INTEGER {reference})")
    yield made
    made.close()


def ids(connection):
    return [id_ for (id_,) in connection.execute("SELECT id FROM whole")]


def write(connection, *statements, error=None):
    with write_transaction(connection) as inside:
        for statement in statements:
            inside.execute(statement)
        if error is not None:
            raise error


def test_what_is_written_stays(connection):
    write(connection, "INSERT INTO whole VALUES (1)")
    assert ids(connection) == [1]
    assert not connection.in_transaction


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_takes_all_of_it_back(connection, error):
    with pytest.raises(error):
        write(connection, "INSERT INTO whole VALUES (1)", error=error)
    assert ids(connection) == []
    assert not connection.in_transaction


def test_so_does_an_error_of_committing(connection):
    with pytest.raises(sqlite3.IntegrityError):
        write(connection, "INSERT INTO whole VALUES (1)", "INSERT INTO part VALUES (7)")
    assert ids(connection) == []
    write(connection, "INSERT INTO whole VALUES (2)")
    assert ids(connection) == [2]


def test_an_error_for_which_sqlite_takes_it_back_is_what_is_raised(connection):
    connection.execute("INSERT INTO whole VALUES (1)")
    with pytest.raises(sqlite3.IntegrityError):
        write(connection, "INSERT OR ROLLBACK INTO whole VALUES (1)")
    assert ids(connection) == [1]


def test_another_writer_is_kept_out_from_the_beginning(connection, tmp_path):
    other = sqlite3.connect(tmp_path / "file.db", timeout=0, isolation_level=None)
    with write_transaction(connection):
        assert ids(other) == []
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            write(other)
    other.close()
