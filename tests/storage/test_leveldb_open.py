"""Opening refuses what it must not touch, says why, and leaves every byte as it was."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import plyvel
import pytest

from storage.errors import CorruptRecord, DatabaseLocked, DatabaseTooNew, StorageError
from storage.folder import FORMAT_FILE
from storage.leveldb import open_leveldb
from storage.schema import SCHEMA_VERSION
from tests.storage.tools import contents, fingerprint, write

OPEN_IN_CHILD = """
import sys
from pathlib import Path
from storage.errors import StorageError
from storage.leveldb import open_leveldb
try:
    open_leveldb(Path(sys.argv[1]), create=sys.argv[2] == "create").close()
except StorageError as error:
    print(type(error).__name__, error)
else:
    print("opened")
"""
TOOL = "import plyvel, sys; database = plyvel.DB(sys.argv[1]); print(flush=True); input()"
NOBODY = 65534


def open_in_child(path, create="keep"):
    child = subprocess.run(
        [sys.executable, "-c", OPEN_IN_CHILD, str(path), create],
        capture_output=True,
        text=True,
        check=True,
    )
    return child.stdout.strip()


def assert_refused(path, error, *words, create=False):
    """Opening raises `error` with the folder's name and `words`, and changes nothing."""
    before = fingerprint(path) if path.is_dir() else path.exists() and path.read_bytes()
    with pytest.raises(StorageError) as refused:
        open_leveldb(path, create=create)
    assert type(refused.value) is error
    for word in (f"'{path}'", *words):
        assert word in str(refused.value)
    assert "rehearsal" not in str(refused.value)
    assert before == (fingerprint(path) if path.is_dir() else path.exists() and path.read_bytes())


@pytest.fixture
def closed(tmp_path):
    """The folder of a database with three rows, of which one was synced last."""
    folder = tmp_path / "ledger"
    store = open_leveldb(folder)
    write(store, {b"a": b"1", b"b": b"2"})
    write(store, {b"c": b"3"}, sync=True)
    store.close()
    return folder


def test_what_was_written_is_there_after_opening_again(closed):
    for _ in range(3):
        store = open_leveldb(closed, create=False)
        assert contents(store) == {b"a": b"1", b"b": b"2", b"c": b"3"}
        store.close()
    assert sorted(entry.name for entry in closed.iterdir()) == [FORMAT_FILE, "leveldb"]


def test_the_folder_is_made_with_its_parents_and_for_its_owner_only(tmp_path):
    folder = tmp_path / "data" / "node" / "ledger"
    open_leveldb(folder).close()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_an_empty_folder_and_one_of_a_fresh_mount_become_a_database(tmp_path):
    (tmp_path / "lost+found").mkdir()
    open_leveldb(tmp_path).close()
    assert (tmp_path / FORMAT_FILE).read_text() == f"RadLedger database\nschema {SCHEMA_VERSION}\n"


def test_a_relative_path_works_and_is_named_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_leveldb(Path("ledger"))
    write(store, {b"a": b"1"}, sync=True)
    store.close()
    store = open_leveldb(Path("ledger"))
    with pytest.raises(DatabaseLocked, match=r"'ledger' is open in another process"):
        open_leveldb(Path("ledger"))
    assert store.get(b"a") == b"1"
    store.close()


def test_without_create_nothing_is_made(tmp_path):
    folder = tmp_path / "missing"
    assert_refused(folder, StorageError, "There is no folder")
    assert not folder.exists()
    folder.mkdir()
    assert_refused(folder, StorageError, "There is no database in")


@pytest.mark.parametrize("create", [False, True])
def test_a_plain_file_is_refused(tmp_path, create):
    path = tmp_path / "file"
    path.write_bytes(b"notes")
    assert_refused(path, StorageError, "is a file", create=create)
    below = path / "ledger"
    with pytest.raises(StorageError):
        open_leveldb(below, create=create)


@pytest.mark.parametrize("create", [False, True])
def test_somebody_elses_leveldb_is_refused(tmp_path, create):
    folder = tmp_path / "browser"
    database = plyvel.DB(str(folder), create_if_missing=True)
    database.put(b"cookie", b"1")
    database.close()
    assert_refused(folder, StorageError, "is not a RadLedger database", create=create)


@pytest.mark.parametrize("create", [False, True])
def test_a_folder_of_other_files_is_refused(tmp_path, create):
    (tmp_path / "thesis.txt").write_text("chapter 1")
    assert_refused(tmp_path, StorageError, "holds 'thesis.txt'", create=create)


def test_a_newer_schema_is_refused_and_both_versions_are_named(closed):
    (closed / FORMAT_FILE).write_text(f"RadLedger database\nschema {SCHEMA_VERSION + 1}\n")
    words = f"schema {SCHEMA_VERSION + 1}", f"schema {SCHEMA_VERSION} only", "newer RadLedger"
    assert_refused(closed, DatabaseTooNew, *words, create=True)


def test_an_older_schema_is_refused_and_both_versions_are_named(closed):
    (closed / FORMAT_FILE).write_text("RadLedger database\nschema 0\n")
    assert_refused(closed, StorageError, "schema 0", f"schema {SCHEMA_VERSION} only", create=True)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"RadLedger database\n",
        b"RadLedger database\nschema 1",
        b"RadLedger database\nschema x\n",
        b"RadLedger database\nschema 1\nmore\n",
        b"RadLedger database\nschema " + b"9" * 900 + b"\n",
        b"\xff\x00",
        b"x" * 100_000,
    ],
)
def test_a_damaged_format_file_is_refused(closed, text):
    (closed / FORMAT_FILE).write_bytes(text)
    assert_refused(closed, CorruptRecord, FORMAT_FILE, "damaged", create=True)


def test_a_database_that_lost_its_format_file_is_refused(closed):
    (closed / FORMAT_FILE).unlink()
    assert_refused(closed, StorageError, "it has no RADLEDGER file", create=True)


def test_a_database_that_lost_its_rows_is_refused(closed):
    shutil.rmtree(closed / "leveldb")
    assert_refused(closed, CorruptRecord, "has lost its 'leveldb' folder", create=True)


def test_a_second_opening_is_refused_here_and_in_another_process(closed):
    store = open_leveldb(closed)
    assert_refused(closed, DatabaseLocked, "open in another process", "Stop the other node")
    before = fingerprint(closed)
    assert open_in_child(closed).startswith("DatabaseLocked")
    assert open_in_child(closed, "create").startswith("DatabaseLocked")
    assert fingerprint(closed) == before
    write(store, {b"d": b"4"}, sync=True)
    store.close()
    assert open_in_child(closed) == "opened"


def test_leveldb_opened_by_another_tool_counts_as_locked(closed):
    tool = subprocess.Popen(
        [sys.executable, "-c", TOOL, str(closed / "leveldb")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    tool.stdout.readline()
    assert_refused(closed, DatabaseLocked)
    tool.communicate(b"close")
    open_leveldb(closed).close()


def test_a_refused_opening_lets_go_of_the_lock(closed):
    (closed / FORMAT_FILE).rename(closed / "elsewhere")
    assert_refused(closed, StorageError)
    (closed / "elsewhere").rename(closed / FORMAT_FILE)
    open_leveldb(closed).close()


@pytest.fixture
def as_plain_user(tmp_path):
    """Become a user whom permissions bind, since root may do anything; and make that one the owner.

    Yields a function that does so, with pytest's own folders above left open to it.
    """
    if os.geteuid() != 0:
        yield lambda: None
        return
    for parent in tmp_path.parents:
        if parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o711)

    def become():
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        os.seteuid(NOBODY)

    yield become
    os.seteuid(0)


@pytest.mark.parametrize(("name", "mode"), [(".", 0o000), (".", 0o500), ("leveldb", 0o500)])
def test_missing_permission_is_refused(closed, as_plain_user, name, mode):
    as_plain_user()
    before = fingerprint(closed)
    (closed / name).chmod(mode)
    with pytest.raises(StorageError) as refused:
        open_leveldb(closed)
    (closed / name).chmod(0o700)
    assert f"'{closed}' cannot be used" in str(refused.value)
    assert "Permission denied" in str(refused.value)
    assert fingerprint(closed) == before


def crash_at(monkeypatch, function, times):
    """Let the `times`-th call of a step of the making raise, as a crash there would stop it."""
    original, calls = getattr(os if hasattr(os, function) else Path, function), []
    owner = os if hasattr(os, function) else Path

    def stop(*arguments, **options):
        calls.append(arguments)
        if len(calls) == times:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(owner, function, stop)
    return calls


@pytest.mark.parametrize("step", ["mkdir", "fsync", "rename", "write_text"])
@pytest.mark.parametrize("times", [1, 2, 3, 4, 5])
def test_a_creation_interrupted_anywhere_is_finished_by_the_next_opening(tmp_path, step, times):
    folder = tmp_path / "ledger"
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, step, times)
        with suppress(KeyboardInterrupt):
            open_leveldb(folder).close()
    store = open_leveldb(folder)
    write(store, {b"a": b"1"}, sync=True)
    store.close()
    assert contents(open_leveldb(folder, create=False)) == {b"a": b"1"}


def test_what_a_crash_left_of_a_rehearsal_does_no_harm(closed):
    (closed / "rehearsal").mkdir()
    (closed / "rehearsal" / "CURRENT").write_text("nonsense")
    store = open_leveldb(closed)
    assert len(contents(store)) == 3
    store.close()
    assert not (closed / "rehearsal").exists()
