"""Files that are what they say, or stay as they are; transactions that are whole or nothing."""

import sqlite3
import stat
import subprocess
import sys
from contextlib import contextmanager

import pytest

from storage import sqlite
from storage.errors import DatabaseTooNew, ForeignDatabase
from storage.sqlite import Format, open_database, write_transaction

FORMAT = Format(0x52_4C_58_31, 2, "CREATE TABLE things (x);\nCREATE INDEX by_x ON things (x);\n")


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


def settings(connection, *names):
    return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]


def test_a_new_file_is_private_durable_and_known_by_its_format(tmp_path):
    path = tmp_path / "new.db"
    connection = open_database(path, FORMAT)
    names = "application_id", "user_version", "journal_mode", "synchronous", "secure_delete"
    assert settings(connection, *names) == [FORMAT.application_id, 2, "wal", 2, 1]
    connection.execute("INSERT INTO things VALUES (1)")
    connection.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = open_database(path, FORMAT, on_new=lambda _: pytest.fail("it is not new"))
    assert again.execute("SELECT x FROM things").fetchall() == [(1,)]
    again.close()


def made(path, *statements):
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    ("statements", "error"),
    [
        (["CREATE TABLE theirs (x)"], ForeignDatabase),
        (["CREATE TABLE things (x)", "PRAGMA application_id = 7"], ForeignDatabase),
        (["PRAGMA application_id = 7"], ForeignDatabase),
        (
            [
                "CREATE TABLE things (x)",
                f"PRAGMA application_id = {FORMAT.application_id}",
                "PRAGMA user_version = 3",
            ],
            DatabaseTooNew,
        ),
    ],
)
def test_a_file_that_is_not_ours_stays_as_it_is(tmp_path, statements, error):
    before = made(tmp_path / "file.db", *statements)
    with pytest.raises(error, match=r"file\.db"):
        open_database(tmp_path / "file.db", FORMAT)
    assert (tmp_path / "file.db").read_bytes() == before


def test_a_file_whose_making_fails_is_made_the_next_time(tmp_path):
    def fail(connection):
        raise ValueError("no header")

    with pytest.raises(ValueError, match="no header"):
        open_database(tmp_path / "file.db", FORMAT, on_new=fail)
    filled = []
    open_database(tmp_path / "file.db", FORMAT, on_new=filled.append).close()
    assert len(filled) == 1


def test_what_another_process_makes_meanwhile_is_taken(tmp_path, monkeypatch):
    path, real = tmp_path / "file.db", sqlite.write_transaction

    def overtaken(connection):
        monkeypatch.setattr(sqlite, "write_transaction", real)
        open_database(path, FORMAT).close()
        return real(connection)

    monkeypatch.setattr(sqlite, "write_transaction", overtaken)
    open_database(path, FORMAT, on_new=lambda _: pytest.fail("it is not new")).close()


@contextmanager
def held(path):
    """Hold a file as a process does that is about to make it."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    yield other
    other.close()


def test_a_file_that_is_being_made_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "_OPENING_S", 0.01)
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            other.execute("ROLLBACK")

    monkeypatch.setattr(sqlite.time, "sleep", sleep)
    with held(tmp_path / "file.db") as other:
        open_database(tmp_path / "file.db", FORMAT).close()
    assert len(waits) == 3


def test_a_file_that_is_never_made_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "_OPENING_S", 0.01)
    monkeypatch.setattr(sqlite, "BUSY_S", 0.0)
    with (
        held(tmp_path / "file.db"),
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        open_database(tmp_path / "file.db", FORMAT)


MAKER = """
import sys
from contextlib import contextmanager
from pathlib import Path
from storage.sqlite import open_database
from tests.storage.test_sqlite import FORMAT
sys.stdin.readline()
fill = lambda connection: connection.execute("INSERT INTO things VALUES (1)")
connection = open_database(Path(sys.argv[1]), FORMAT, on_new=fill)
connection.execute("INSERT INTO things VALUES (2)")
"""


def test_several_processes_make_one_file_between_them(tmp_path):
    command = [sys.executable, "-c", MAKER, str(tmp_path / "file.db")]
    makers = [subprocess.Popen(command, stdin=subprocess.PIPE, text=True) for _ in range(6)]
    for maker in makers:
        maker.stdin.write("\n")
        maker.stdin.flush()
    for maker in makers:
        maker.communicate(timeout=60)
    assert [maker.returncode for maker in makers] == [0] * 6
    connection = open_database(tmp_path / "file.db", FORMAT)
    assert sorted(connection.execute("SELECT x FROM things")) == [(1,)] + [(2,)] * 6
    connection.close()
