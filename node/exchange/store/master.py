"""The master key: where it comes from, and what it seals.

It is 32 random bytes as 64 hexadecimal digits, in a file that only its owner can read or in the
environment; or what scrypt (RFC 7914) makes of a passphrase. HKDF makes of it the key that seals
the study keys (AES-256-GCM, the study's id as associated data: no row passes for another's).

Header (canonical msgpack): (1, kind "key" or "passphrase", N, r, p, salt, sealed check). Every
header has a salt of its own, so rotating to the same master key still renews the sealing key.
"""

import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from consensus.wire import NotCanonical, pack, unpack
from node import keys
from node.exchange.store.errors import Damaged, KeysTooNew, WrongMasterKey
from node.exchange.store.sealing import KEY_BYTES, NONCE_BYTES

FORMAT = 1
_SALT_BYTES = 16
_N, _R, _P = 2**17, 8, 1  # 128 MiB and about a third of a second a guess
_N_MAX, _R_MAX, _P_MAX = 2**20, 16, 16
_HEX = re.compile(rb"[0-9a-fA-F]{64}")
_CHECK = b"radledger/store/1"


@dataclass(frozen=True, slots=True)
class MasterFile:
    """The master key stands in a file (mode 0600), made by `create_master_file`."""

    path: Path


@dataclass(frozen=True, slots=True)
class MasterEnvironment:
    """The master key is the value of an environment variable."""

    name: str


@dataclass(frozen=True, slots=True)
class MasterPassphrase:
    """The master key is made of a passphrase."""

    source: keys.PassphraseSource


MasterSource: TypeAlias = MasterFile | MasterEnvironment | MasterPassphrase


class Sealer:
    """Seals and opens study keys."""

    def __init__(self, master: bytes, salt: bytes) -> None:
        hkdf = HKDF(SHA256(), KEY_BYTES, salt=salt, info=b"radledger/store/1/study-keys")
        self._cipher = AESGCM(hkdf.derive(master))

    def seal(self, key: bytes, study_id: bytes) -> bytes:
        """Return a study's key, sealed: 60 bytes."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, key, _bound(study_id))

    def open(self, sealed: bytes, study_id: bytes) -> bytes:
        """Return what was sealed for the study. Raises `Damaged`."""
        try:
            return self._cipher.decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound(study_id)
            )
        except (InvalidTag, ValueError) as error:
            sentence = f"the key of study {study_id.hex()} fails its check; restore a backup"
            raise Damaged(sentence) from error


def create_master_file(path: Path) -> None:
    """Write a new random master key. Raises `KeyFileError`; nothing is ever overwritten."""
    keys.save_secret(path, secrets.token_hex(KEY_BYTES).encode() + b"\n")


def new_header(source: MasterSource) -> tuple[bytes, Sealer]:
    """Return a header for a key file under `source`, and what seals in it.

    Raises `KeyFileError`, `WrongMasterKey` for what is no master key.
    """
    salt = secrets.token_bytes(_SALT_BYTES)
    if isinstance(source, MasterPassphrase):
        kind, costs = "passphrase", (_N, _R, _P)
    else:
        kind, costs = "key", (0, 0, 0)
    sealer = Sealer(_master(source, salt, costs), salt)
    return pack((FORMAT, kind, *costs, salt, sealer.seal(_CHECK, b""))), sealer


def open_header(header: bytes, source: MasterSource) -> Sealer:
    """Return what opens the study keys under `header`.

    Raises `WrongMasterKey`, `KeyFileError`, `KeysTooNew`, `Damaged`.
    """
    try:
        value = unpack(header)
    except NotCanonical as error:
        raise Damaged("the key file's header cannot be read; restore a backup") from error
    match value:
        case (int(version), *_) if version > FORMAT:
            raise KeysTooNew(f"key file of format {version}; this program knows {FORMAT}")
        case (1, str(kind), int(n), int(r), int(p), bytes(salt), bytes(check)) if (
            kind in ("key", "passphrase")
            and len(salt) == _SALT_BYTES
            and (kind == "key" or _is_affordable(n, r, p))
        ):
            pass
        case _:
            raise Damaged("the key file's header is not as it must be; restore a backup")
    if (kind == "passphrase") != isinstance(source, MasterPassphrase):
        raise WrongMasterKey(f"this key file opens with a {kind}; the config names another kind")
    sealer = Sealer(_master(source, salt, (n, r, p)), salt)
    try:
        sealer.open(check, b"")
    except Damaged:
        raise WrongMasterKey(f"this {kind} does not open the key file") from None
    return sealer


def _is_affordable(n: int, r: int, p: int) -> bool:
    power = 1 < n <= _N_MAX and n & (n - 1) == 0
    return power and 0 < r <= _R_MAX and 0 < p <= _P_MAX


def _master(source: MasterSource, salt: bytes, costs: tuple[int, int, int]) -> bytes:
    match source:
        case MasterFile(path):
            text, origin = keys.read_private_file(path), str(path)
        case MasterEnvironment(name):
            text = keys.read_passphrase(keys.PassphraseEnvironment(name))
            origin = f"the environment variable {name}"
        case MasterPassphrase(inner):
            n, r, p = costs
            return Scrypt(salt, KEY_BYTES, n, r, p).derive(keys.read_passphrase(inner))
    if not _HEX.fullmatch(text.strip()):
        raise WrongMasterKey(f"{origin} holds no master key: 64 hexadecimal digits are needed")
    return bytes.fromhex(text.strip().decode())


def _bound(study_id: bytes) -> bytes:
    return pack(("radledger/study-key/1", study_id))
