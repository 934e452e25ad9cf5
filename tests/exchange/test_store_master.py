"""The master key: its sources, its rotation, and a key file that was tampered with."""

import sqlite3
import subprocess
import sys

import pytest

from node import keys
from node.exchange.store import master as master_room
from node.exchange.store.blobs import open_folder
from node.exchange.store.catalog import open_catalog
from node.exchange.store.errors import Damaged, KeysTooNew, StoreError, WrongMasterKey
from node.exchange.store.master import (
    MasterEnvironment,
    MasterFile,
    MasterPassphrase,
    create_master_file,
    new_header,
    open_header,
)
from node.exchange.store.store import StudyStore
from tests.exchange.store_parts import OTHER, STUDY, contents, master, new_store, sources, study


@pytest.fixture(autouse=True)
def _cheap_scrypt(monkeypatch):
    monkeypatch.setattr(master_room, "_N", 2**12)


@pytest.fixture
def every(tmp_path, monkeypatch):
    create_master_file(tmp_path / "one")
    (tmp_path / "phrase").write_bytes(b"correct horse battery\n")
    (tmp_path / "phrase").chmod(0o600)
    monkeypatch.setenv("STORE_MASTER", "0f" * 32)
    monkeypatch.setenv("STORE_PHRASE", "another horse battery")
    return [
        MasterFile(tmp_path / "one"),
        MasterEnvironment("STORE_MASTER"),
        MasterPassphrase(keys.PassphraseFile(tmp_path / "phrase")),
        MasterPassphrase(keys.PassphraseEnvironment("STORE_PHRASE")),
    ]


def test_each_source_opens_what_it_made_and_no_other_does(every):
    for at, source in enumerate(every):
        header, sealer = new_header(source)
        sealed = sealer.seal(b"k" * 32, STUDY)
        assert open_header(header, source).open(sealed, STUDY) == b"k" * 32
        with pytest.raises(Damaged):
            sealer.open(sealed, OTHER)  # a row moved to another study
        for other in every[:at] + every[at + 1 :]:
            with pytest.raises(WrongMasterKey):
                open_header(header, other)


def test_what_is_no_master_key_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("STORE_MASTER", "0f" * 31)
    with pytest.raises(WrongMasterKey, match="64 hexadecimal"):
        new_header(MasterEnvironment("STORE_MASTER"))
    with pytest.raises(keys.KeyFileError):
        new_header(MasterFile(tmp_path / "nothing"))
    create_master_file(tmp_path / "open")
    (tmp_path / "open").chmod(0o644)
    with pytest.raises(keys.KeyFileError, match="open to others"):
        new_header(MasterFile(tmp_path / "open"))
    with pytest.raises(keys.KeyFileError, match="never overwritten"):
        create_master_file(tmp_path / "open")


def test_rotation_seals_anew_and_the_former_key_opens_nothing(tmp_path, every):
    store = new_store(tmp_path)
    store.put(STUDY, 1, sources(study()))
    before = store._catalog.study(STUDY).sealed
    old_header = store._catalog._header
    key = store.key(STUDY)
    for source in every:
        assert store.rotate(source) == 1
        assert store.key(STUDY) == key
    store.close()
    for path in tmp_path.glob("keys.db*"):
        assert before not in path.read_bytes()
        assert old_header not in path.read_bytes()
    with pytest.raises(WrongMasterKey):
        open_catalog(tmp_path / "keys.db", master(tmp_path))
    catalog = open_catalog(tmp_path / "keys.db", every[-1])
    assert contents(StudyStore(open_folder(tmp_path / "blobs"), catalog)) == study()


def test_a_process_that_missed_a_rotation_seals_no_key_that_would_be_lost(tmp_path, every):
    stale, store = new_store(tmp_path), new_store(tmp_path)
    store.put(STUDY, 1, sources(study()))
    store.rotate(every[0])
    with pytest.raises(WrongMasterKey, match="rotated"):
        stale.put(OTHER, 1, sources(study()))
    with pytest.raises(WrongMasterKey, match="rotated"):
        stale.key(STUDY)
    with pytest.raises(WrongMasterKey, match="rotated"):
        stale.rotate(every[1])
    assert store._catalog.study(OTHER) is None


def test_a_rotation_that_fails_changes_nothing(tmp_path, every):
    store = new_store(tmp_path)
    store.put(STUDY, 1, sources(study()))
    with pytest.raises(keys.KeyFileError):
        store.rotate(MasterFile(tmp_path / "nothing"))
    store.close()
    assert contents(new_store(tmp_path)) == study()


def test_a_moved_or_changed_key_row_is_found(tmp_path):
    store = new_store(tmp_path)
    store.put(STUDY, 1, sources(study()))
    store.put(OTHER, 1, sources(study()))
    store.close()
    with sqlite3.connect(tmp_path / "keys.db") as rows:
        rows.execute(
            "UPDATE studies SET sealed = (SELECT sealed FROM studies WHERE id = ?) WHERE id = ?",
            (OTHER, STUDY),
        )
    rows.close()
    store = new_store(tmp_path)
    with pytest.raises(Damaged):
        store.key(STUDY)


def test_files_that_are_no_key_file_or_too_new_are_refused(tmp_path):
    source = master(tmp_path)
    (tmp_path / "text").write_text("not a database, though long enough to look like one" * 50)
    with pytest.raises(Damaged):
        open_catalog(tmp_path / "text", source)
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE things (x)")
    other.close()
    with pytest.raises(Damaged, match="another program's database"):
        open_catalog(tmp_path / "other.db", source)
    open_catalog(tmp_path / "new.db", source).close()
    with sqlite3.connect(tmp_path / "new.db") as new:
        new.execute("PRAGMA user_version = 99")
    new.close()
    with pytest.raises(KeysTooNew):
        open_catalog(tmp_path / "new.db", source)
    with pytest.raises(StoreError):
        open_catalog(tmp_path, source)


@pytest.mark.parametrize("header", [b"", b"junk", b"\x93\x01\xa3key\x00"])
def test_a_damaged_header_is_said(tmp_path, header):
    with pytest.raises(Damaged):
        open_header(header, master(tmp_path))


def test_two_processes_make_one_key_file_between_them(tmp_path):
    master(tmp_path)
    code = (
        "import sys; from pathlib import Path; from tests.exchange.store_parts import *;"
        "s = new_store(Path(sys.argv[1])); s.put(bytes([int(sys.argv[2])]) * 16, 1, "
        "sources(study())); print(len(list(s.studies())))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(number)])
        for number in range(2)
    ]
    assert [child.wait() for child in children] == [0, 0]
    assert len(list(new_store(tmp_path).studies())) == 2
