"""The encrypted catalogue: what is on the disk, what outlives a restart, what an erasure leaves."""

import secrets
import sqlite3

import pytest

from node.exchange.federation.catalogue import Catalogue
from node.exchange.federation.errors import CatalogueUnusable
from node.exchange.federation.fields import Field
from tests.exchange.federation_parts import entry

RARE = "Zzyzxtron 9000"


@pytest.fixture
def keys():
    return {secrets.token_bytes(16): secrets.token_bytes(32) for _ in range(3)}


@pytest.fixture
def opened(tmp_path, keys):
    catalogue = Catalogue(tmp_path / "catalogue.db", keys.get)
    yield catalogue
    catalogue.close()


def fill(catalogue, keys):
    made = {study: entry(study=study, modality=["CT"], model=[RARE]) for study in keys}
    for study, one in made.items():
        assert catalogue.put(study, 2, one.subject_id, one.facts)
    return made


def on_disk(folder):
    return b"".join(path.read_bytes() for path in folder.glob("catalogue.db*"))


def test_it_is_the_same_after_a_restart(tmp_path, keys, opened):
    made = fill(opened, keys)
    opened.close()
    again = Catalogue(tmp_path / "catalogue.db", keys.get)
    assert again.entries() == [made[study] for study in sorted(made)]
    assert [again.version(study) for study in keys] == [2, 2, 2]
    again.close()


def test_nothing_of_the_facts_is_on_the_disk_in_clear(tmp_path, keys, opened):
    fill(opened, keys)
    left = on_disk(tmp_path)
    assert next(iter(keys)) in left  # we read the right files
    assert RARE.encode() not in left
    assert Field.MODEL.value.encode() not in left


def test_without_the_studys_key_a_row_is_gone_also_from_a_backup(tmp_path, keys, opened):
    fill(opened, keys)
    opened.close()
    erased = next(iter(keys))
    del keys[erased]
    again = Catalogue(tmp_path / "catalogue.db", keys.get)
    assert {each.study_id for each in again.entries()} == set(keys)
    again.close()
    assert erased not in on_disk(tmp_path)


def test_a_row_opens_by_its_own_studys_key_only(tmp_path, keys, opened):
    fill(opened, keys)
    opened.close()
    other = next(iter(keys))
    keys[other] = secrets.token_bytes(32)
    again = Catalogue(tmp_path / "catalogue.db", keys.get)
    assert {each.study_id for each in again.entries()} == set(keys) - {other}
    again.close()


def test_what_is_removed_leaves_no_bytes(tmp_path, keys, opened):
    fill(opened, keys)
    gone = next(iter(keys))
    row = sealed_of(tmp_path, gone)
    assert row in on_disk(tmp_path)
    assert opened.remove(gone)
    assert not opened.remove(gone)
    assert row not in on_disk(tmp_path)
    assert gone not in on_disk(tmp_path)


def sealed_of(folder, study):
    connection = sqlite3.connect(folder / "catalogue.db")
    try:
        sql = "SELECT sealed FROM studies WHERE id = ?"
        return connection.execute(sql, (study,)).fetchone()[0]
    finally:
        connection.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE studies SET version = 1",
        "UPDATE studies SET sealed = substr(sealed, 1, 5)",
        "UPDATE studies SET sealed = zeroblob(length(sealed))",
        # Another study's row, moved here.
        "UPDATE studies SET sealed = (SELECT max(sealed) FROM studies)",
    ],
)
def test_rows_that_were_changed_or_moved_are_not_believed(tmp_path, keys, opened, change):
    fill(opened, keys)
    opened.close()
    connection = sqlite3.connect(tmp_path / "catalogue.db")
    connection.execute(change)
    connection.commit()
    connection.close()
    again = Catalogue(tmp_path / "catalogue.db", keys.get)
    assert len(again) == (1 if "max" in change else 0)
    again.close()


def test_a_study_without_a_key_is_not_catalogued(keys, opened):
    one = entry(modality=["CT"])
    assert not opened.put(secrets.token_bytes(16), 1, one.subject_id, one.facts)
    assert len(opened) == 0


def test_a_newer_version_replaces_the_one_before(keys, opened):
    fill(opened, keys)
    study = next(iter(keys))
    newer = entry(study=study, modality=["MR"])
    opened.put(study, 3, newer.subject_id, newer.facts)
    assert opened.version(study) == 3
    assert newer in opened.entries()
    assert len(opened) == 3


@pytest.mark.parametrize("content", [b"no database at all, but a text" * 20, None])
def test_a_file_that_is_no_catalogue_is_said_to_be_none(tmp_path, keys, content):
    path = tmp_path / "other.db"
    if content is None:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE patients (name TEXT)")
        connection.close()
    else:
        path.write_bytes(content)
    with pytest.raises(CatalogueUnusable, match=r"other\.db"):
        Catalogue(path, keys.get)
