"""The vault's rows: sealed and opened, read and changed in transactions of the database."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from consensus.wire import NotCanonical, Value, pack, unpack
from node.imaging import manifest_codec
from node.imaging.errors import InvalidManifest, VaultDamaged, VaultError
from node.imaging.manifest import Manifest
from node.imaging.vault_keys import VaultKeys
from node.imaging.vault_schema import Role
from storage.sqlite import write_transaction


class State(Enum):
    """How far a version of a study has come."""

    PREPARED = 1
    SUBMITTED = 2
    FINAL = 3


@dataclass(frozen=True, slots=True)
class VaultStudy:
    """What the vault knows of a study, a part of a DICOM study, apart from its versions."""

    study_id: bytes  # 16 bytes
    subject_id: bytes  # 16 bytes
    salt: bytes  # 32 bytes; none of one that was erased while it was being split
    role: Role = Role.MAIN


@dataclass(frozen=True, slots=True)
class VaultVersion:
    """One version of a study."""

    manifest: Manifest
    state: State
    transaction_id: bytes | None  # 32 bytes, once submitted
    transaction: bytes | None  # the signed bytes, while submitted
    height: int | None  # once final


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A row of `studies`, opened."""

    lookup: bytes  # of the Study Instance UID
    study: VaultStudy
    source: bytes | None = None  # id of the study that it was split from
    piece: int = 0  # of the source: REST or CUT
    becomes: Role = Role.MAIN  # its role when the split is done
    series: tuple[bytes, ...] = ()  # lookups of its series, while the split is planned


class Rows:
    """An open file and its keys."""

    def __init__(self, connection: sqlite3.Connection, keys: VaultKeys) -> None:
        self._connection, self._keys = connection, keys
        self._lock = threading.RLock()

    def _uid_lookup(self, study_uid: str) -> bytes:
        return self._keys.lookup("study", study_uid.encode())

    def _series_lookup(self, study_uid: str, series_uid: str) -> bytes:
        return self._keys.lookup("series", study_uid.encode(), series_uid.encode())

    def _id_lookup(self, study_id: bytes) -> bytes:
        return self._keys.lookup("study id", study_id)

    def _rows(self, connection: sqlite3.Connection, lookup: bytes) -> list[StudyRow]:
        """Return every part of a DICOM study, whatever its role."""
        sql = "SELECT lookup, role, row FROM studies WHERE lookup = ? ORDER BY role"
        return [self._opened(*row) for row in connection.execute(sql, (lookup,))]

    def _row_of(self, connection: sqlite3.Connection, study_id: bytes) -> StudyRow | None:
        sql = "SELECT lookup, role, row FROM studies WHERE id_lookup = ?"
        row = connection.execute(sql, (self._id_lookup(study_id),)).fetchone()
        return None if row is None else self._opened(*row)

    def _opened(self, lookup: bytes, role: int, row: bytes) -> StudyRow:
        match unpacked(self._keys.open(row, "part", lookup, role)):
            case (
                bytes(study_id),
                bytes(subject_id),
                bytes(salt),
                (bytes() | None) as source,
                int(piece),
                int(becomes),
                tuple(series),
            ):
                study = VaultStudy(study_id, subject_id, salt, Role(role))
                lookups = tuple(each for each in series if isinstance(each, bytes))
                return StudyRow(lookup, study, source, piece, Role(becomes), lookups)
        raise VaultDamaged("the vault holds a study that cannot be read; restore a backup")

    def _put_study(self, connection: sqlite3.Connection, row: StudyRow) -> None:
        study = row.study
        plain = pack(
            (
                study.study_id,
                study.subject_id,
                study.salt,
                row.source,
                row.piece,
                row.becomes.value,
                row.series,
            )
        )
        sealed = self._keys.seal(plain, "part", row.lookup, study.role.value)
        values = (self._id_lookup(study.study_id), row.lookup, study.role.value, sealed)
        connection.execute("INSERT OR REPLACE INTO studies VALUES (?, ?, ?, ?)", values)

    def _series(self, connection: sqlite3.Connection, lookup: bytes) -> dict[bytes, bytes]:
        """Return the id of the part that has each series of a DICOM study, b"" if that is gone."""
        found = connection.execute("SELECT lookup, row FROM series WHERE study = ?", (lookup,))
        return {each: self._keys.open(row, "series", each, lookup) for each, row in found}

    def _put_series(
        self, connection: sqlite3.Connection, lookup: bytes, series: bytes, study_id: bytes
    ) -> None:
        sealed = self._keys.seal(study_id, "series", series, lookup)
        values = (series, lookup, sealed)
        connection.execute("INSERT OR REPLACE INTO series VALUES (?, ?, ?)", values)

    def _need(self, connection: sqlite3.Connection, study_id: bytes, version: int) -> VaultVersion:
        lookup = self._id_lookup(study_id)
        sql = "SELECT version, state, row FROM versions WHERE id_lookup = ? AND version = ?"
        row = connection.execute(sql, (lookup, version)).fetchone()
        if row is None:
            raise VaultError(f"the vault has no version {version} of this study")
        return self._version(lookup, *row)

    def _version(self, lookup: bytes, version: int, state: int, row: bytes) -> VaultVersion:
        plain = unpacked(self._keys.open(row, "version", lookup, version, state))
        try:
            match plain:
                case (
                    bytes(encoded),
                    (bytes() | None) as transaction_id,
                    (bytes() | None) as transaction,
                    (int() | None) as height,
                ):
                    manifest = manifest_codec.decode(encoded)
                    return VaultVersion(manifest, State(state), transaction_id, transaction, height)
        except InvalidManifest as error:
            raise VaultDamaged(f"the vault holds a manifest that is wrong: {error}") from error
        raise VaultDamaged("the vault holds a version that cannot be read; restore a backup")

    def _put(self, connection: sqlite3.Connection, version: VaultVersion) -> None:
        manifest = version.manifest
        lookup = self._id_lookup(manifest.study_id)
        place = (lookup, manifest.version, version.state.value)
        plain = pack(
            (
                manifest_codec.encode(manifest),
                version.transaction_id,
                version.transaction,
                version.height,
            )
        )
        sealed = self._keys.seal(plain, "version", *place)
        connection.execute("INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?)", (*place, sealed))

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._lock, translated():
            yield self._connection

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection inside a write transaction: other writers wait, readers do not."""
        with self._lock, translated(), write_transaction(self._connection):
            yield self._connection


def unpacked(data: bytes) -> Value:
    """Return what a row holds. Raises `VaultDamaged`."""
    try:
        return unpack(data)
    except NotCanonical as error:
        raise VaultDamaged("the vault holds a row that cannot be read") from error


@contextmanager
def translated() -> Iterator[None]:
    """Say the database's errors in ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise VaultError(f"the vault cannot be used now: {error}") from error
    except sqlite3.DatabaseError as error:
        raise VaultDamaged(f"the vault is damaged ({error}); restore a backup") from error
