"""Parts of a DICOM study in the vault: series set apart, studies split, an older schema."""

import sqlite3
from pathlib import Path

import pytest

from node.imaging.commitment import commit_file
from node.imaging.errors import BeingSplit, VaultDamaged, VaultError
from node.imaging.manifest import first_version, next_version, regrouped
from node.imaging.parts import ApartRule
from node.imaging.register import Action, Options, prepare
from node.imaging.vault import create_vault, open_vault
from node.imaging.vault_rows import State
from node.imaging.vault_schema import SCHEMA_VERSION, Role
from node.imaging.verify import StudyStatus, registered_in, verify_studies
from tests.imaging import dicom
from tests.imaging.conftest import PASSPHRASE

UID = "1.2.840.99.777"
HEAD, PSYCH, LATE = (f"{UID}.{number}" for number in (1, 2, 3))
ID, OTHER_ID = b"T" * 32, b"U" * 32
OLD_FILE = Path(__file__).with_name("vault_schema_1.sql")


@pytest.fixture
def write(tmp_path):
    """Return a function that writes an instance of a series and gives its path."""
    count = iter(range(1_000))

    def make(series, number=None, **elements):
        number = next(count) if number is None else number
        path = tmp_path / f"{series}-{number}.dcm"
        sop = f"{series}.{number}"
        return dicom.minimal(path, sop=sop, study=UID, SeriesInstanceUID=series, **elements)

    return make


def final(vault, prepared, height=1):
    vault.mark_submitted(prepared.manifest, ID, b"signed")
    vault.mark_final(prepared.manifest, ID, height)


@pytest.fixture
def registered(vault, write):
    """A study of two series that is registered: its manifest."""
    (study,) = prepare([write(HEAD), write(HEAD), write(PSYCH)], vault).studies
    final(vault, study)
    return study.manifest


def plan(vault, manifest, rest=(HEAD,), apart=(PSYCH,)):
    return vault.plan_split(manifest.study_id, UID, rest, apart)


def parts_of(split, manifest):
    by_series = {
        series: [i for i in manifest.instances if i.sop_uid.startswith(series)]
        for series in (HEAD, PSYCH)
    }
    rest = regrouped(split.rest.study_id, split.rest.salt, by_series[HEAD])
    return rest, regrouped(split.apart.study_id, split.apart.salt, by_series[PSYCH])


def submit(vault, manifest):
    split = plan(vault, manifest)
    manifests = parts_of(split, manifest)
    for each in manifests:
        vault.put_prepared(each)
    vault.submit_split(manifests, ID, b"signed")
    return split


def uids(prepared):
    return {instance.sop_uid.rpartition(".")[0] for instance in prepared.manifest.instances}


def test_a_file_of_schema_1_is_migrated_and_goes_on(tmp_path, write):
    path = tmp_path / "vault.db"
    with sqlite3.connect(path) as old:
        old.executescript(OLD_FILE.read_text())
    with open_vault(path, PASSPHRASE) as vault:
        study = vault.find_study(UID)
        assert study.study_id.hex() == "250658f056d0d7ef32be805d159da0e2"
        assert study.salt.hex().startswith("61f50d8530fc1a89")
        assert study.role is Role.MAIN
        assert vault.find_study(UID + ".2") is not None
        first, second = vault.versions(study.study_id)
        assert first.manifest.root.hex().startswith("caa2123298c5cd3d")
        assert (first.state, first.height, second.state) == (State.FINAL, 42, State.PREPARED)
        assert vault.subject_id("P-1", "here") == study.subject_id
        # Nobody knows what series the study has: none is set apart behind its back.
        rule = Options(apart=(ApartRule("OT"),))
        (late,) = prepare([write(LATE)], vault, rule).studies
        assert (late.action, late.manifest.study_id) == (Action.AMEND, study.study_id)
    with sqlite3.connect(path) as new:
        assert new.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert new.execute("SELECT count(*) FROM studies").fetchone() == (2,)
    with open_vault(path, PASSPHRASE) as again:
        assert again.find_study(UID) == study


def test_a_migration_that_meets_a_damaged_row_changes_nothing(tmp_path):
    path = tmp_path / "vault.db"
    with sqlite3.connect(path) as old:
        old.executescript(OLD_FILE.read_text())
        old.execute("UPDATE studies SET row = substr(row, 2)")
    with pytest.raises(VaultDamaged):
        open_vault(path, PASSPHRASE)
    with sqlite3.connect(path) as still:
        assert still.execute("PRAGMA user_version").fetchone() == (1,)
        assert still.execute("SELECT count(lookup) FROM studies").fetchone() == (2,)


def test_series_of_a_rule_are_studies_of_their_own_and_what_comes_late_follows(vault, write):
    rules = Options(apart=(ApartRule(description="psych"),))
    words = {"SeriesDescription": "PSYCHiatry 3D"}
    files = [write(HEAD), write(PSYCH, **words), write(PSYCH, **words)]
    rest, apart = prepare(files, vault, rules).studies
    assert (uids(rest), uids(apart)) == ({HEAD}, {PSYCH})
    assert (rest.action, apart.action) == (Action.REGISTER, Action.REGISTER)
    assert rest.operation.arguments[1] == apart.operation.arguments[1]  # one subject
    assert rest.manifest.salt != apart.manifest.salt
    final(vault, rest)
    final(vault, apart)
    # Without the rule, too; and without the word that it looks for.
    late = prepare([write(PSYCH), write(LATE), write(HEAD)], vault).studies
    assert {each.manifest.study_id: uids(each) for each in late} == {
        rest.manifest.study_id: {HEAD, LATE},
        apart.manifest.study_id: {PSYCH},
    }
    assert {each.action for each in late} == {Action.AMEND}
    # A rule does not tear a series that has its place.
    (more,) = prepare([write(HEAD, **words)], vault, rules).studies
    assert more.manifest.study_id == rest.manifest.study_id


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        (ApartRule(), False),
        (ApartRule("ot"), True),
        (ApartRule("CT"), False),
        (ApartRule(description="Genetic"), True),
        (ApartRule("OT", "genetic"), True),
        (ApartRule("CT", "genetic"), False),
        (ApartRule("OT", "heart"), False),
    ],
)
def test_a_rule_matches_when_all_of_it_holds(write, rule, matches):
    read = commit_file(write(HEAD, SeriesDescription="a genetic marker"))
    assert rule.matches(read) is matches


def test_files_are_verified_part_by_part(vault, write):
    files = [write(HEAD), write(PSYCH), write(PSYCH)]
    studies = prepare(files, vault, Options(apart=(ApartRule("OT", ""),))).studies
    roots = {each.manifest.study_id: each.manifest.root for each in studies}
    report = verify_studies(files, registered_in(vault, roots.get))
    assert {study.study_id for study in report.studies} == roots.keys()
    assert len(roots) == 2
    assert report.intact
    assert sorted(len(study.instances) for study in report.studies) == [1, 2]
    files[2].unlink()
    report = verify_studies(files[:2], registered_in(vault, roots.get))
    wrong = [study for study in report.studies if study.status is not StudyStatus.INTACT]
    assert [len(study.instances) for study in wrong] == [2]


def test_while_a_study_is_split_it_takes_nothing(vault, registered, write):
    late = write(LATE)
    (prepared,) = prepare([late], vault).studies
    split = plan(vault, registered)
    with pytest.raises(VaultError):
        vault.mark_submitted(prepared.manifest, OTHER_ID, b"signed")
    with pytest.raises(BeingSplit):
        vault.put_prepared(next_version(registered, [commit_file(late)]))
    (refused,) = prepare([late], vault).studies
    assert (refused.action, "being split" in refused.refusal) == (Action.REFUSED, True)
    assert vault.split_of(registered.study_id) == split
    assert not split.is_done
    vault.drop_split(registered.study_id)
    assert vault.split_of(registered.study_id) is None
    (taken,) = prepare([late], vault).studies
    assert taken.manifest.study_id == registered.study_id


def test_after_a_split_every_series_has_its_part(vault, registered, write):
    # Its place was noted, and nothing of it registered, when the split began.
    (waiting,) = prepare([write(LATE, 7)], vault).studies
    assert waiting.manifest.study_id == registered.study_id
    split = submit(vault, registered)
    for _ in range(2):
        vault.finish_split(registered.study_id, 9)
    done = vault.split_of(registered.study_id)
    assert done.is_done
    assert (done.source.role, done.rest.role, done.apart.role) == (
        Role.SUPERSEDED,
        Role.MAIN,
        Role.APART,
    )
    assert {part.study_id for part in vault.parts(UID)} == {
        split.rest.study_id,
        split.apart.study_id,
    }
    late = prepare([write(PSYCH), write(LATE, 7), write("1.2.9"), write(HEAD)], vault).studies
    assert {each.manifest.study_id: uids(each) for each in late} == {
        split.rest.study_id: {HEAD, LATE, "1.2.9"},
        split.apart.study_id: {PSYCH},
    }
    with pytest.raises(VaultError, match="took the place"):
        vault.put_prepared(next_version(registered, []))
    assert vault.latest(split.apart.study_id).manifest.salt == split.apart.salt
    assert not {split.rest.salt, split.apart.salt} & {registered.salt}


def test_a_split_goes_on_with_the_same_parts_and_no_other_series(vault, registered, tmp_path):
    split = plan(vault, registered)
    vault.close()
    with open_vault(tmp_path / "vault.db", PASSPHRASE) as again:
        assert plan(again, registered) == split
        with pytest.raises(VaultError, match="other series"):
            plan(again, registered, rest=(PSYCH,), apart=(HEAD,))
        manifests = parts_of(split, registered)
        for each in manifests:
            again.put_prepared(each)
        again.submit_split(manifests, ID, b"signed")
        with pytest.raises(VaultError, match="another transaction"):
            again.submit_split(manifests, OTHER_ID, b"signed")


def test_a_study_whose_version_is_on_its_way_is_not_split(vault, write):
    (study,) = prepare([write(HEAD), write(PSYCH)], vault).studies
    vault.mark_submitted(study.manifest, ID, b"signed")
    with pytest.raises(VaultError, match="on its way"):
        plan(vault, study.manifest)
    with pytest.raises(VaultError, match="does not have"):
        vault.plan_split(bytes(16), UID, (HEAD,), (PSYCH,))


def test_a_series_set_apart_stays_apart_when_its_part_is_erased(vault, registered, write):
    split = submit(vault, registered)
    vault.finish_split(registered.study_id, 9)
    vault.delete_study(registered.study_id)
    vault.delete_study(split.apart.study_id)
    (late,) = prepare([write(PSYCH)], vault).studies
    assert late.action is Action.REGISTER
    assert late.manifest.study_id not in (split.rest.study_id, split.apart.study_id)
    assert vault.part_of(UID, PSYCH).study_id == late.manifest.study_id
    (rest,) = prepare([write(HEAD)], vault).studies
    assert rest.manifest.study_id == split.rest.study_id
    for part in vault.parts(UID):
        vault.delete_study(part.study_id)
    assert vault.part_of(UID, PSYCH) is None


def test_an_erased_source_leaves_no_trace_in_its_parts(vault, registered, tmp_path):
    split = submit(vault, registered)
    vault.finish_split(registered.study_id, 9)
    with vault._read() as connection:
        rows = vault._rows(connection, vault._uid_lookup(UID))
        assert [row.source for row in rows].count(registered.study_id) == 2
        assert vault.delete_study(registered.study_id)
        rows = vault._rows(connection, vault._uid_lookup(UID))
        assert [row.source for row in rows] == [None, None]
    assert vault.split_of(registered.study_id) is None
    assert vault.versions(registered.study_id) == []
    assert {part.study_id for part in vault.parts(UID)} == {
        split.rest.study_id,
        split.apart.study_id,
    }


@pytest.mark.parametrize("ending", ["finished", "dropped"])
def test_a_study_that_is_erased_while_it_is_split(vault, registered, ending):
    split = submit(vault, registered)
    assert vault.delete_study(registered.study_id)
    assert vault.versions(registered.study_id) == []
    assert vault.split_of(registered.study_id).source.salt == b""
    if ending == "finished":
        vault.finish_split(registered.study_id, 9)
        assert len(vault.parts(UID)) == 2
    else:
        vault.drop_split(registered.study_id)
        assert vault.parts(UID) == []
        assert vault.part_of(UID, PSYCH) is None
    assert vault.split_of(registered.study_id) is None
    assert (vault.latest(split.apart.study_id) is not None) is (ending == "finished")


def test_no_series_stands_in_the_file_in_clear(vault, registered, tmp_path):
    submit(vault, registered)
    data = b"".join(path.read_bytes() for path in tmp_path.glob("vault.db*"))
    assert [uid for uid in (UID, HEAD, PSYCH) if uid.encode() in data] == []


def test_a_series_moved_in_the_file_to_another_part_is_noticed(vault, registered, tmp_path, write):
    submit(vault, registered)
    vault.finish_split(registered.study_id, 9)
    with sqlite3.connect(tmp_path / "vault.db") as connection:
        rows = [row[0] for row in connection.execute("SELECT row FROM series")]
        connection.execute("UPDATE series SET row = ?", (rows[0],))
    with pytest.raises(VaultDamaged):
        prepare([write(PSYCH), write(HEAD)], vault)


def test_regrouped_instances_keep_their_records_and_nothing_else(write):
    first = first_version(bytes(16), bytes(32), map(commit_file, [write(HEAD), write(PSYCH)]))
    other = regrouped(b"o" * 16, b"s" * 32, first.instances)
    assert {i.record for i in other.instances} == {i.record for i in first.instances}
    assert not {i.index for i in other.instances} & {i.index for i in first.instances}
    assert (other.version, other.previous_root) == (1, None)
    assert other.root != first.root


def test_a_new_vault_has_the_schema_that_a_migrated_one_has(tmp_path):
    paths = [tmp_path / "old.db", tmp_path / "new.db"]
    with sqlite3.connect(paths[0]) as old:
        old.executescript(OLD_FILE.read_text())
    open_vault(paths[0], PASSPHRASE).close()
    create_vault(paths[1], PASSPHRASE).close()
    read = "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
    one, other = (sqlite3.connect(path).execute(read).fetchall() for path in paths)
    assert one == other
