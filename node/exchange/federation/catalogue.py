"""The catalogue beside the store: what searches need of each own study, encrypted on disk.

    studies   id -> version, subject id, facts sealed under a key that is made of the study's key

A row can be read only as long as the study's key is there, so whoever destroys that key has erased
the row, in every backup of this file, too. Ids stand in clear; they are random and on the chain.

    sealed = nonce (12) | AES-256-GCM(key, nonce, canonical facts, study id | version as 4 bytes)
    key    = HKDF-SHA256(study key, info = "radledger/catalogue/1" | study id)

All facts are in memory as well, some hundred bytes a study: the disk is read once, at opening.
Thread-safe; methods that change something wait for the disk.
"""

import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from consensus.wire import NotCanonical, pack, unpack
from node.exchange.federation.answer import read_told, told_fields
from node.exchange.federation.errors import CatalogueUnusable, InvalidAnswer
from node.exchange.federation.fields import Facts, make_facts
from node.exchange.federation.matching import Entry
from storage.errors import StorageError
from storage.sqlite import Format, open_database

_NONCE_BYTES = 12
_INFO = b"radledger/catalogue/1"
_FORMAT = Format(
    0x52_4C_43_31,  # "RLC1"
    1,
    """
CREATE TABLE studies (
    id BLOB PRIMARY KEY, version INTEGER NOT NULL, subject BLOB NOT NULL, sealed BLOB NOT NULL
) WITHOUT ROWID;
""",
)

KeyOf = Callable[[bytes], bytes | None]


class _Kept(NamedTuple):
    version: int
    entry: Entry


class Catalogue:
    """An open catalogue."""

    def __init__(self, path: Path, key_of: KeyOf) -> None:
        """Open or make the file at `path` and read what can be read of it.

        `key_of` returns a study's key, 32 bytes, None if there is none any more; such rows are
        removed. Raises `CatalogueUnusable`, and what `key_of` raises.
        """
        self._key_of = key_of
        self._lock = threading.RLock()
        self._kept: dict[bytes, _Kept] = {}
        with _explained(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = open_database(path, _FORMAT)
        self._path = path
        try:
            with _explained(path):
                self._load()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._connection.close()

    def __len__(self) -> int:
        return len(self._kept)

    def version(self, study_id: bytes) -> int | None:
        """Return which version of a study is catalogued, None if none is."""
        with self._lock:
            kept = self._kept.get(study_id)
        return None if kept is None else kept.version

    def entries(self) -> list[Entry]:
        """Return all studies, in the order of their ids, which says nothing."""
        with self._lock:
            return [self._kept[study_id].entry for study_id in sorted(self._kept)]

    def put(self, study_id: bytes, version: int, subject_id: bytes, facts: Facts) -> bool:
        """Keep what is known of a study, instead of what was; False if it has no key any more."""
        key = self._key_of(study_id)
        if key is None:
            self.remove(study_id)
            return False
        plain = pack(told_fields(facts.values))
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + _cipher(key, study_id).encrypt(nonce, plain, _bound(study_id, version))
        with self._lock, _explained(self._path):
            row = study_id, version, subject_id, sealed
            self._connection.execute("INSERT OR REPLACE INTO studies VALUES (?, ?, ?, ?)", row)
            self._kept[study_id] = _Kept(version, Entry(study_id, subject_id, facts))
        return True

    def remove(self, study_id: bytes) -> bool:
        """Forget a study; return whether it was there."""
        with self._lock, _explained(self._path):
            if study_id not in self._kept:
                return False
            del self._kept[study_id]
            self._connection.execute("DELETE FROM studies WHERE id = ?", (study_id,))
            # What was deleted is overwritten, and must not stay in the log either.
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return True

    def _load(self) -> None:
        """Read all rows; what has no key or cannot be opened goes, and is catalogued again."""
        lost = []
        for study_id, version, subject, sealed in self._connection.execute(
            "SELECT id, version, subject, sealed FROM studies"
        ).fetchall():
            facts = self._open(study_id, version, sealed)
            if facts is None:
                lost.append((study_id,))
            else:
                self._kept[study_id] = _Kept(version, Entry(study_id, subject, facts))
        if lost:
            self._connection.executemany("DELETE FROM studies WHERE id = ?", lost)
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _open(self, study_id: bytes, version: int, sealed: bytes) -> Facts | None:
        key = self._key_of(study_id)
        if key is None:
            return None
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            plain = _cipher(key, study_id).decrypt(nonce, body, _bound(study_id, version))
            told = unpack(plain)
            return make_facts(read_told(told if isinstance(told, tuple) else ()))
        except (InvalidTag, NotCanonical, InvalidAnswer, ValueError):
            return None


def _cipher(key: bytes, study_id: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), 32, None, _INFO + study_id).derive(key))


def _bound(study_id: bytes, version: int) -> bytes:
    return study_id + version.to_bytes(4, "big")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise CatalogueUnusable(str(error)) from error
    except sqlite3.DatabaseError as error:
        sentence = f"{path} cannot be used ({error}): remove it, it is made anew at the next start"
        raise CatalogueUnusable(sentence) from error
    except OSError as error:
        raise CatalogueUnusable(f"{path} cannot be opened: {error.strerror}") from error
