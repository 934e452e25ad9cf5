"""The vault: pseudonyms, secrecy at rest, states that survive a crash, several processes."""

import os
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from consensus.wire import pack, unpack
from node.imaging.commitment import commit_file
from node.imaging.errors import VaultDamaged, VaultError, VaultTooNew, WrongPassphrase
from node.imaging.manifest import first_version, next_version
from node.imaging.vault import State, create_vault, open_vault
from node.imaging.vault_keys import new_keys, open_header
from tests.imaging import dicom
from tests.imaging.conftest import PASSPHRASE

UID = "1.2.840.99.777"
ID, OTHER_ID = b"T" * 32, b"U" * 32
SLICES = sorted(p for p in dicom.CT_FOLDER.rglob("*") if p.is_file())


def manifest_in(vault, slices=SLICES[:2], uid=UID):
    study = vault.study(uid, vault.subject_id("P-1", "here"))
    return first_version(study.study_id, study.salt, map(commit_file, slices))


def raw(tmp_path):
    """Return all bytes that lie on the disk."""
    return b"".join(p.read_bytes() for p in tmp_path.glob("vault.db*"))


def test_pseudonyms_are_random_and_stay(vault):
    one, two = vault.subject_id("P-1", "here"), vault.subject_id("P-2", "here")
    assert len({one, two, vault.subject_id("P-1", "there"), vault.subject_id("P-1", "")}) == 4
    assert vault.subject_id("P-1", "here") == one
    study = vault.study(UID, one)
    assert vault.study(UID, two) == study == vault.find_study(UID)
    assert (len(study.study_id), len(study.salt), study.subject_id) == (16, 32, one)
    assert vault.find_study("1.2.3") is None


def test_another_vault_gives_the_same_patient_another_pseudonym(tmp_path):
    with create_vault(tmp_path / "a", "one") as a, create_vault(tmp_path / "b", "one") as b:
        assert a.subject_id("P-1", "") != b.subject_id("P-1", "")


def test_no_identifier_salt_or_id_stands_in_the_file_in_clear(vault, tmp_path):
    manifest = manifest_in(vault)
    vault.put_prepared(manifest)
    vault.mark_submitted(manifest, ID, b"the signed transaction")
    data = raw(tmp_path)
    uids = [instance.sop_uid.encode() for instance in manifest.instances]
    secrets = [
        UID.encode(),
        b"P-1",
        manifest.study_id,
        manifest.salt,
        manifest.root,
        b"signed",
        *uids,
    ]
    assert [secret for secret in secrets if secret in data] == []


def test_the_file_is_its_owners_alone(vault, tmp_path):
    vault.subject_id("P-1", "")
    files = list(tmp_path.glob("vault.db*"))
    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_what_was_kept_is_there_after_reopening(vault, tmp_path):
    manifest = manifest_in(vault)
    vault.put_prepared(manifest)
    vault.close()
    vault.close()
    with open_vault(tmp_path / "vault.db", PASSPHRASE) as again:
        assert again.latest(manifest.study_id).manifest == manifest


def test_a_version_goes_from_prepared_over_submitted_to_final(vault):
    manifest = manifest_in(vault)
    vault.put_prepared(manifest)
    assert vault.latest(manifest.study_id).state is State.PREPARED
    for _ in range(2):
        vault.mark_submitted(manifest, ID, b"signed")
    known = vault.latest(manifest.study_id)
    assert (known.state, known.transaction_id, known.transaction) == (
        State.SUBMITTED,
        ID,
        b"signed",
    )
    assert vault.unfinished() == [known]
    for _ in range(2):
        vault.mark_final(manifest, ID, 42)
    known = vault.latest(manifest.study_id)
    assert (known.state, known.height, known.transaction) == (State.FINAL, 42, None)
    assert vault.unfinished() == []


def test_a_refused_transaction_leaves_the_version_prepared(vault):
    manifest = manifest_in(vault)
    vault.put_prepared(manifest)
    vault.mark_submitted(manifest, ID, b"signed")
    vault.mark_refused(manifest)
    vault.mark_submitted(manifest, OTHER_ID, b"signed again")
    assert vault.latest(manifest.study_id).transaction_id == OTHER_ID


def test_steps_out_of_order_are_refused_and_change_nothing(vault):
    manifest = manifest_in(vault)
    with pytest.raises(VaultError, match="no version"):
        vault.mark_submitted(manifest, ID, b"signed")
    vault.put_prepared(manifest)
    with pytest.raises(VaultError, match="not submitted"):
        vault.mark_final(manifest, ID, 1)
    vault.mark_submitted(manifest, ID, b"signed")
    with pytest.raises(VaultError, match="another transaction"):
        vault.mark_submitted(manifest, OTHER_ID, b"signed")
    with pytest.raises(VaultError, match="changed"):
        vault.put_prepared(manifest_in(vault))
    with pytest.raises(VaultError, match="changed"):
        vault.put_prepared(next_version(manifest, map(commit_file, SLICES[2:3])))
    with pytest.raises(VaultError, match="not submitted"):
        vault.mark_final(manifest, OTHER_ID, 1)
    vault.mark_final(manifest, ID, 1)
    with pytest.raises(VaultError, match="final"):
        vault.mark_refused(manifest)
    with pytest.raises(VaultError, match="another transaction"):
        vault.mark_submitted(manifest, ID, b"signed")
    assert vault.latest(manifest.study_id).height == 1


def test_of_two_who_prepared_one_version_only_the_last_may_submit(vault):
    """Else the vault would keep one root and the chain the other."""
    slow, fast = manifest_in(vault), manifest_in(vault)
    vault.put_prepared(slow)
    vault.put_prepared(fast)
    with pytest.raises(VaultError, match="another process"):
        vault.mark_submitted(slow, ID, b"signed")
    vault.mark_submitted(fast, ID, b"signed")


def test_a_deleted_study_leaves_no_trace_and_comes_back_as_a_stranger(vault, tmp_path):
    manifest = manifest_in(vault)
    vault.put_prepared(manifest)
    path = tmp_path / "vault.db"
    sealed = sqlite3.connect(path).execute("SELECT row FROM versions").fetchone()[0]
    assert sealed in raw(tmp_path)
    assert vault.delete_study(manifest.study_id)
    assert not vault.delete_study(manifest.study_id)
    assert sealed[100:200] not in raw(tmp_path)
    with pytest.raises(VaultError, match="deleted"):
        vault.put_prepared(manifest)
    new = vault.study(UID, bytes(16))
    assert (new.study_id, new.salt) != (manifest.study_id, manifest.salt)


def test_a_wrong_passphrase_is_said_and_changes_nothing(vault, tmp_path):
    vault.subject_id("P-1", "")
    vault.close()
    before = (tmp_path / "vault.db").read_bytes()
    with pytest.raises(WrongPassphrase):
        open_vault(tmp_path / "vault.db", "guess")
    assert (tmp_path / "vault.db").read_bytes() == before
    with pytest.raises(ValueError, match="passphrase"):
        open_vault(tmp_path / "vault.db", "")


def test_the_passphrase_can_be_changed(vault, tmp_path):
    subject = vault.subject_id("P-1", "")
    vault.change_passphrase("another")
    vault.close()
    with pytest.raises(WrongPassphrase):
        open_vault(tmp_path / "vault.db", PASSPHRASE)
    with open_vault(tmp_path / "vault.db", "another") as again:
        assert again.subject_id("P-1", "") == subject


def test_a_vault_is_not_made_over_a_file_and_not_found_where_there_is_none(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(VaultError, match="already"):
        create_vault(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "mine"
    with pytest.raises(VaultError, match="no vault"):
        open_vault(tmp_path / "none", "x")
    with pytest.raises(VaultError, match="cannot be made"):
        create_vault(tmp_path / "no" / "folder", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_that_is_no_vault_is_said_to_be_none(tmp_path):
    (tmp_path / "text").write_text("not a database" * 100)
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE t (x)")
    for name in ("text", "other"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(VaultDamaged):
            open_vault(tmp_path / name, "x")
        assert (tmp_path / name).read_bytes() == before


def test_a_newer_vault_is_refused_with_both_versions(vault, tmp_path):
    vault.close()
    with sqlite3.connect(tmp_path / "vault.db") as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(VaultTooNew, match="schema 9; this program knows 2"):
        open_vault(tmp_path / "vault.db", PASSPHRASE)
    header = (2, *unpack(new_keys().header(b"x"))[1:])
    with pytest.raises(VaultTooNew, match="format 2; this program knows 1"):
        open_header(pack(header), b"x")


@pytest.mark.parametrize("damage", ["moved", "cut"])
@pytest.mark.parametrize("table", ["subjects", "studies", "versions"])
def test_a_changed_or_moved_row_is_noticed(vault, tmp_path, table, damage):
    first, second = manifest_in(vault), manifest_in(vault, SLICES[3:4], UID + ".2")
    vault.subject_id("P-2", "here")
    vault.put_prepared(first)
    vault.put_prepared(second)
    with sqlite3.connect(tmp_path / "vault.db") as connection:
        rows = [row[0] for row in connection.execute(f"SELECT row FROM {table}")]
        if damage == "moved":
            for old, new in zip(rows, rows[1:] + rows[:1], strict=True):
                connection.execute(f"UPDATE {table} SET row = ? WHERE row = ?", (new + b"?", old))
            connection.execute(f"UPDATE {table} SET row = substr(row, 1, length(row) - 1)")
        else:
            connection.execute(f"UPDATE {table} SET row = substr(row, 2)")
    read = {
        "subjects": lambda: vault.subject_id("P-1", "here"),
        "studies": lambda: vault.find_study(UID),
        "versions": lambda: vault.latest(first.study_id),
    }
    with pytest.raises(VaultDamaged):
        read[table]()


def test_a_state_set_back_in_the_file_is_noticed(vault, tmp_path):
    manifest = manifest_in(vault)
    vault.put_prepared(manifest)
    vault.mark_submitted(manifest, ID, b"signed")
    with sqlite3.connect(tmp_path / "vault.db") as connection:
        connection.execute("UPDATE versions SET state = 1")
    with pytest.raises(VaultDamaged):
        vault.latest(manifest.study_id)


def test_a_damaged_header_is_not_taken_for_a_wrong_passphrase(vault, tmp_path):
    vault.close()
    with sqlite3.connect(tmp_path / "vault.db") as connection:
        (header,) = connection.execute("SELECT value FROM meta WHERE name='header'").fetchone()
        bent = header[:-1] + bytes((header[-1] ^ 1,))
        connection.execute("UPDATE meta SET value = ? WHERE name = 'header'", (bent,))
    with pytest.raises(VaultDamaged, match="header"):
        open_vault(tmp_path / "vault.db", PASSPHRASE)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_mutated_header_is_damaged_newer_or_wrong_and_never_costs_more_than_its_bounds(data):
    header = new_keys().header(b"x")
    fields = list(unpack(header))
    at = data.draw(st.integers(0, len(fields) - 1))
    fields[at] = data.draw(
        st.one_of(st.integers(-1, 2**40), st.binary(max_size=50), st.text(max_size=5), st.none())
    )
    if at == 4 and isinstance(fields[4], int):
        fields[4] = data.draw(st.sampled_from([0, 7, 2**21, 2**40, 2**63]))
    if at == 2 and isinstance(fields[2], int):
        fields[2] = data.draw(st.sampled_from([0, -1, 2**20]))
    assume(pack(tuple(fields)) != header)  # the draw may be the very value that was there
    with pytest.raises((VaultDamaged, VaultTooNew, WrongPassphrase)):
        open_header(pack(tuple(fields)), b"x")
    with pytest.raises((VaultDamaged, VaultTooNew, WrongPassphrase)):
        open_header(header[: data.draw(st.integers(0, len(header) - 1))], b"x")


def test_threads_that_meet_draw_one_pseudonym(vault):
    with ThreadPoolExecutor(8) as pool:
        drawn = set(pool.map(lambda _: vault.subject_id("P-1", ""), range(40)))
    assert len(drawn) == 1


WORKER = """
import sys
from pathlib import Path
from node.imaging.vault import open_vault
with open_vault(Path(sys.argv[1]), sys.argv[2]) as vault:
    for number in range(20):
        print(vault.study(f"1.2.{number}", vault.subject_id(f"P{number}", "")).study_id.hex())
"""


def test_processes_that_meet_draw_one_pseudonym(vault, tmp_path):
    command = [sys.executable, "-c", WORKER, str(tmp_path / "vault.db"), PASSPHRASE]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    drawn = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert len(set(drawn)) == 1
    assert drawn[0].count("\n") == 20


CRASH = """
import os, signal, sys
from pathlib import Path
from node.imaging import vault as module
with module.open_vault(Path(sys.argv[1]), sys.argv[2]) as vault:
    vault.subject_id("before", "")
    real = vault._keys.seal
    def dying(*arguments):
        sealed = real(*arguments)
        vault._connection.execute("INSERT INTO subjects VALUES (?, ?)", (b"half", b"done"))
        os.kill(os.getpid(), signal.SIGKILL)
    vault._keys.seal = dying
    vault.subject_id("after", "")
"""


def test_a_kill_in_the_midst_of_a_change_leaves_all_or_nothing(vault, tmp_path):
    command = [sys.executable, "-c", CRASH, str(tmp_path / "vault.db"), PASSPHRASE]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    rows = sqlite3.connect(tmp_path / "vault.db").execute("SELECT lookup FROM subjects").fetchall()
    assert len(rows) == 1
    assert rows[0][0] != b"half"
    assert vault.subject_id("before", "") != vault.subject_id("after", "")


def test_a_vault_in_a_folder_that_went_read_only_says_so(vault, tmp_path, monkeypatch):
    def refuse(*_):
        raise sqlite3.OperationalError("database or disk is full")

    class Full:
        execute = staticmethod(refuse)
        close = staticmethod(lambda: None)

    monkeypatch.setattr(vault, "_connection", Full())
    with pytest.raises(VaultError, match="full"):
        vault.subject_id("P-1", "")
    assert os.path.exists(tmp_path / "vault.db")
