"""The institution's own vault: pseudonyms, salts and manifests, encrypted at rest.

An sqlite file (mode 0600) that several processes may use at once; its tables are in `vault_schema`.
No identifier stands in it in clear: rows are found by HMAC and sealed by AES-256-GCM
(`vault_keys.py`). What it knows of parts of a DICOM study is in `vault_parts`.

A pseudonym is random and drawn once. A version is *prepared* (its operation may be submitted),
*submitted* (the signed transaction is kept, so that a crash before or after sending it is healed by
sending the same bytes again, which the ledger executes once) and *final* (its height is known).
Every method is one transaction of the database: done, or as if never called. They wait for the
disk, so call them from a worker thread.
"""

import hashlib
import os
import secrets
import sqlite3
from pathlib import Path

from node.imaging.errors import VaultDamaged, VaultError, VaultTooNew
from node.imaging.manifest import ID_BYTES, Manifest
from node.imaging.vault_keys import new_keys, open_header
from node.imaging.vault_parts import Parts
from node.imaging.vault_rows import State, VaultVersion, translated
from node.imaging.vault_schema import (
    APPLICATION_ID,
    SCHEMA,
    SCHEMA_VERSION,
    migrate,
    schema_of,
)

_BUSY_SECONDS = 15.0


class Vault(Parts):
    """An open vault. Safe to use from several threads; close it, or use it in a `with`."""

    def __enter__(self) -> "Vault":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._connection.close()

    def change_passphrase(self, passphrase: str) -> None:
        """Let `passphrase` open the vault instead of the one before. The rows stay as they are."""
        header = self._keys.header(_passphrase_bytes(passphrase))
        with self._change() as connection:
            _put_header(connection, header)

    def subject_id(self, patient_id: str, issuer: str) -> bytes:
        """Return the 16 random bytes that stand for a patient, drawn at the first call."""
        lookup = self._keys.lookup("subject", patient_id.encode(), issuer.encode())
        with self._change() as connection:
            rows = connection.execute("SELECT row FROM subjects WHERE lookup = ?", (lookup,))
            if row := rows.fetchone():
                return self._keys.open(row[0], "subject", lookup)
            subject = secrets.token_bytes(ID_BYTES)
            sealed = self._keys.seal(subject, "subject", lookup)
            connection.execute("INSERT INTO subjects VALUES (?, ?)", (lookup, sealed))
        return subject

    def versions(self, study_id: bytes) -> list[VaultVersion]:
        """Return all versions of the study, the oldest first."""
        lookup = self._id_lookup(study_id)
        sql = "SELECT version, state, row FROM versions WHERE id_lookup = ? ORDER BY version"
        with self._read() as connection:
            return [self._version(lookup, *row) for row in connection.execute(sql, (lookup,))]

    def latest(self, study_id: bytes) -> VaultVersion | None:
        """Return the study's newest version, whatever its state, or None."""
        lookup = self._id_lookup(study_id)
        sql = (
            "SELECT version, state, row FROM versions WHERE id_lookup = ? "
            "ORDER BY version DESC LIMIT 1"
        )
        with self._read() as connection:
            row = connection.execute(sql, (lookup,)).fetchone()
        return self._version(lookup, *row) if row else None

    def unfinished(self) -> list[VaultVersion]:
        """Return every version that is prepared or submitted, to go on with after a crash."""
        sql = "SELECT id_lookup, version, state, row FROM versions WHERE state < 3"
        with self._read() as connection:
            return [self._version(*row) for row in connection.execute(sql)]

    def put_prepared(self, manifest: Manifest) -> None:
        """Keep `manifest` as its study's next version, in place of one that is only prepared.

        Raises `VaultError` if the version was submitted already, or does not follow on a final one:
        another process was faster; `BeingSplit` while its study is split.
        """
        lookup = self._id_lookup(manifest.study_id)
        with self._change() as connection:
            self._require_taking(connection, manifest.study_id)
            sql = "SELECT version, state FROM versions WHERE id_lookup = ?"
            states = dict(connection.execute(sql, (lookup,)).fetchall())
            before = [states[v] for v in sorted(states) if v < manifest.version]
            taken = states.get(manifest.version, State.PREPARED.value) != State.PREPARED.value
            gap = before != [State.FINAL.value] * (manifest.version - 1)
            if taken or gap or max(states, default=0) > manifest.version:
                raise VaultError("the study changed in the vault meanwhile; run the command again")
            self._put(connection, VaultVersion(manifest, State.PREPARED, None, None, None))

    def mark_submitted(self, manifest: Manifest, transaction_id: bytes, transaction: bytes) -> None:
        """Keep the signed `transaction` before it is sent. The same call again changes nothing.

        Raises `VaultError` if the version is not there, is final, has another root because another
        process prepared it anew, or another transaction was submitted for it: do not send.
        """
        with self._change() as connection:
            known = self._need(connection, manifest.study_id, manifest.version)
            if known.manifest.root != manifest.root:
                raise VaultError("another process prepared this version; run the command again")
            if known.transaction_id not in (None, transaction_id) or known.state is State.FINAL:
                raise VaultError("another transaction was submitted for this version")
            changed = VaultVersion(manifest, State.SUBMITTED, transaction_id, transaction, None)
            self._put(connection, changed)

    def mark_final(self, manifest: Manifest, transaction_id: bytes, height: int) -> None:
        """Note that the version is final at `height`. The same call again changes nothing.

        Raises `VaultError` if that transaction was not submitted for the version.
        """
        with self._change() as connection:
            known = self._need(connection, manifest.study_id, manifest.version)
            if known.transaction_id != transaction_id:
                raise VaultError("this transaction was not submitted for this version")
            final = VaultVersion(known.manifest, State.FINAL, transaction_id, None, height)
            self._put(connection, final)

    def mark_refused(self, manifest: Manifest) -> None:
        """Make a submitted version prepared again: its transaction failed or can no longer execute.

        Raises `VaultError` if the version is not there or is final.
        """
        with self._change() as connection:
            known = self._need(connection, manifest.study_id, manifest.version)
            if known.state is State.FINAL:
                raise VaultError("this version is final")
            self._put(connection, VaultVersion(known.manifest, State.PREPARED, None, None, None))

    def delete_study(self, study_id: bytes) -> bool:
        """Forget the study: its salt, manifests and the way from its UID. False if unknown.

        The bytes are overwritten in the file and its log; older copies of the file, in backups, are
        the operator's to destroy. Of a study that is being split the id stays until that has come
        to its end, since the ledger must say which.
        """
        with self._change() as connection:
            found = self._delete_or_empty(connection, study_id)
        with self._read() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return found


def create_vault(path: Path, passphrase: str) -> Vault:
    """Return a new vault at `path`, readable by its owner only.

    Raises `VaultError` if something is there already, or the folder does not let us.
    """
    keys = new_keys()
    header = keys.header(_passphrase_bytes(passphrase))
    partial = path.with_name(path.name + f".{secrets.token_hex(4)}.new")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = sqlite3.connect(partial, isolation_level=None)
        try:
            connection.executescript(f"BEGIN;{SCHEMA}COMMIT;")
            _put_header(connection, header)
        finally:
            connection.close()
        _publish(partial, path)
    except FileExistsError as error:
        raise VaultError(f"there is a file at {path} already") from error
    except (OSError, sqlite3.Error) as error:
        raise VaultError(f"the vault at {path} cannot be made: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return open_vault(path, passphrase)


def open_vault(path: Path, passphrase: str) -> Vault:
    """Return the vault at `path`.

    Raises `WrongPassphrase`, `VaultDamaged`, `VaultTooNew`, or `VaultError` if there is none; the
    file is not changed before the passphrase has opened it, and brought to this program's schema
    then. Takes about a tenth of a second.
    """
    if not path.is_file():
        raise VaultError(f"there is no vault at {path}")
    with translated():
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
    try:
        with translated():
            keys = open_header(_header(connection), _passphrase_bytes(passphrase))
            for setting in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
                connection.execute(f"PRAGMA {setting}").fetchall()
            migrate(connection, keys)
    except BaseException:
        connection.close()
        raise
    return Vault(connection, keys)


def _header(connection: sqlite3.Connection) -> bytes:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    version = schema_of(connection)
    if application != APPLICATION_ID:
        raise VaultDamaged("the file is a database, but no vault")
    if version > SCHEMA_VERSION:
        raise VaultTooNew(f"vault schema {version}; this program knows {SCHEMA_VERSION}: upgrade")
    rows = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    header, digest = rows.get("header"), rows.get("header_digest")
    if not isinstance(header, bytes) or hashlib.sha256(header).digest() != digest:
        # Told apart from a wrong passphrase, or an operator would look for that in vain.
        raise VaultDamaged("the vault's header is damaged; restore a backup")
    return header


def _put_header(connection: sqlite3.Connection, header: bytes) -> None:
    rows = (("header", header), ("header_digest", hashlib.sha256(header).digest()))
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)


def _publish(partial: Path, path: Path) -> None:
    """Give the finished file its name, unless something has it; durable when this returns."""
    os.link(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _passphrase_bytes(passphrase: str) -> bytes:
    if not passphrase:
        raise ValueError("a vault needs a passphrase")
    return passphrase.encode()
