"""The vault's tables, and how a file of an earlier schema becomes one of this.

    meta      name                 -> value; "header" (`vault_keys`), "header_digest" its SHA-256
    subjects  lookup(patient)      -> seal(subject id)
    studies   lookup(study id)     -> lookup(study UID), role,
                                      seal(study id, subject id, salt, source, piece,
                                           becomes, series)
    series    lookup(study UID, series UID)
                                   -> lookup(study UID), seal(study id)
    versions  lookup(study id), version, state
                                   -> seal(manifest, transaction id, transaction, height)

A row of `studies` is one part of a DICOM study (`Role`); it says, too, what the part was split from
and what it will be (`vault_parts`). Schema 1 had one row for a Study Instance UID and no series:
its studies are the main parts of theirs, and nothing else about them changes.
"""

import sqlite3
from enum import IntEnum

from consensus.wire import NotCanonical, pack, unpack
from node.imaging.errors import VaultDamaged
from node.imaging.vault_keys import VaultKeys
from storage.sqlite import write_transaction

SCHEMA_VERSION = 2
APPLICATION_ID = 0x52_4C_56_31  # "RLV1", tells the file from any other sqlite database
_STUDIES = """
CREATE TABLE studies (
    id_lookup BLOB PRIMARY KEY, lookup BLOB NOT NULL, role INTEGER NOT NULL, row BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX parts ON studies (lookup);
CREATE UNIQUE INDEX main_part ON studies (lookup) WHERE role = 1;
CREATE TABLE series (lookup BLOB PRIMARY KEY, study BLOB NOT NULL, row BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX series_of_study ON series (study);
"""
SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE subjects (lookup BLOB PRIMARY KEY, row BLOB NOT NULL) WITHOUT ROWID;
{_STUDIES}
CREATE TABLE versions (
    id_lookup BLOB NOT NULL, version INTEGER NOT NULL, state INTEGER NOT NULL, row BLOB NOT NULL,
    PRIMARY KEY (id_lookup, version)
);
CREATE INDEX unfinished ON versions (state) WHERE state < 3;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


class Role(IntEnum):
    """What a part is to its DICOM study."""

    MAIN = 1  # takes every series that is not set apart; one at most
    APART = 2  # takes the series that were set apart with it
    SUPERSEDED = 3  # other parts took its place; takes nothing
    PLANNED = 4  # of a split that is under way; takes nothing yet


def schema_of(connection: sqlite3.Connection) -> int:
    """Return the version of the schema that a file has."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def migrate(connection: sqlite3.Connection, keys: VaultKeys) -> None:
    """Bring a file to `SCHEMA_VERSION`, in one transaction; one that is there already stays as it
    is. Raises `VaultDamaged` for a row that fails its check, and leaves the file as it was."""
    if schema_of(connection) == SCHEMA_VERSION:
        return
    with write_transaction(connection):
        if schema_of(connection) == 1:  # not yet by another process, for which we waited
            _from_1(connection, keys)


def _from_1(connection: sqlite3.Connection, keys: VaultKeys) -> None:
    connection.execute("ALTER TABLE studies RENAME TO studies_1")
    for statement in filter(str.strip, _STUDIES.split(";")):
        connection.execute(statement)
    rows = connection.execute("SELECT lookup, id_lookup, row FROM studies_1")
    values = (
        (id_lookup, lookup, Role.MAIN, _sealed_anew(keys, lookup, row))
        for lookup, id_lookup, row in rows
    )
    connection.executemany("INSERT INTO studies VALUES (?, ?, ?, ?)", values)
    connection.execute("DROP TABLE studies_1")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _sealed_anew(keys: VaultKeys, lookup: bytes, row: bytes) -> bytes:
    try:
        match unpack(keys.open(row, "study", lookup)):
            case (bytes(study_id), bytes(subject_id), bytes(salt)):
                plain = pack((study_id, subject_id, salt, None, 0, Role.MAIN.value, ()))
                return keys.seal(plain, "part", lookup, Role.MAIN.value)
    except NotCanonical:
        pass
    raise VaultDamaged("the vault holds a study that cannot be read; restore a backup")
