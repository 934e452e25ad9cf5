"""An institution's encryption keys on disk: what opens the study keys that are wrapped to it.

One file a key, readable by its owner only, never overwritten: the key's id in clear, then one block
in the textual encoding of RFC 7468. Inside, canonical msgpack:

    (format, kem, key id (16), public key, "argon2id", iterations, lanes, memory in KiB, salt (16),
     nonce (12), secret sealed with AES-256-GCM under what Argon2id makes of the passphrase)

All fields before the last are associated data, so nobody can exchange one without being noticed.
Every call here waits for a disk, and reading for a tenth of a second of Argon2id as well: make it
in a thread. A retired key's file stays: what was wrapped to it opens with nothing else.
"""

import base64
import binascii
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from consensus.wire import NotCanonical, pack, unpack
from node import keys
from node.exchange import hpke
from node.exchange.hpke import Challenge, WrapContext
from node.keys import PASSPHRASE_LENGTH_MIN, KeyFileError

FORMAT = 1
KEY_ID_BYTES = 16
SUFFIX = ".key"
_Costs: TypeAlias = tuple[int, int, int]

_PREFIX = "encryption-"
_SALT_BYTES, _NONCE_BYTES, _TAG_BYTES = 16, 12, 16
_COSTS: _Costs = (3, 4, 64 * 1024)  # RFC 9106 §4, second recommended option
_COSTS_LEAST: _Costs = (1, 1, 64)  # for a random passphrase, which needs no stretching
_COSTS_MAX: _Costs = (64, 16, 1024 * 1024)
_TAG = b"radledger/encryption-key/1"
_KEY_ID = b"Key-Id: "
_BEGIN = b"-----BEGIN RADLEDGER ENCRYPTION KEY-----"
_END = b"-----END RADLEDGER ENCRYPTION KEY-----"
_LINE = 64
_FILES_MAX = 1_000


@dataclass(frozen=True, slots=True)
class DecryptionKey:
    """One encryption key with its secret, which no repr shows."""

    kem: str
    key_id: bytes  # 16 random bytes
    public_key: bytes
    secret: bytes = field(repr=False)

    def unwrap(self, context: WrapContext, wrapped: bytes) -> bytes:
        """Return the study key; see `hpke.unwrap_study_key`. Raises `CannotOpen`."""
        return hpke.unwrap_study_key(context, self.kem, self.secret, wrapped)

    def answer(self, chain_id: bytes, institution: str, asked: Challenge) -> bytes:
        """Return what `registry.key_confirm` wants; see `hpke.answer`. Raises `CannotOpen`."""
        return hpke.answer(chain_id, institution, self.key_id, self.kem, self.secret, asked)


def generate(kem: str = hpke.HYBRID) -> DecryptionKey:
    """Return a new key with a random id."""
    secret, public_key = hpke.generate(kem)
    return DecryptionKey(kem, secrets.token_bytes(KEY_ID_BYTES), public_key, secret)


def file_name(key_id: bytes) -> str:
    """Return the name under which `load_all` looks for a key's file."""
    return f"{_PREFIX}{key_id.hex()}{SUFFIX}"


def save(key: DecryptionKey, path: Path, passphrase: bytes, *, stretch: bool = True) -> None:
    """Write the key to `path`, durable on return.

    `stretch` may be False for a passphrase of 128 random bits or more, which nobody can guess.
    Raises `KeyFileError`: the file exists, cannot be written, or the passphrase is too short.
    """
    if len(passphrase) < PASSPHRASE_LENGTH_MIN:
        raise KeyFileError(
            f"the passphrase has fewer than {PASSPHRASE_LENGTH_MIN} bytes: choose a longer one"
        )
    costs = _COSTS if stretch else _COSTS_LEAST
    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    fields = (FORMAT, key.kem, key.key_id, key.public_key, "argon2id", *costs, salt, nonce)
    sealed = _wrapping(passphrase, salt, costs).encrypt(nonce, key.secret, _TAG + pack(fields))
    text = base64.b64encode(pack((*fields, sealed)))
    lines = [text[i : i + _LINE] for i in range(0, len(text), _LINE)]
    head = _KEY_ID + key.key_id.hex().encode()
    keys.save_secret(path, b"\n".join([head, _BEGIN, *lines, _END, b""]))


def load(path: Path, passphrase: bytes) -> DecryptionKey:
    """Return the key in `path`.

    Raises `KeyFileError`: no such file, readable by others, not such a key, of a later format, or
    wrong passphrase or damaged content (which no reader can tell apart).
    """
    content = keys.read_private_file(path)
    head, begun, rest = content.partition(_BEGIN)
    body, ended, _ = rest.partition(_END)
    if not begun or not ended:
        raise KeyFileError(f"{path} is not an encryption key; make one with `radledger keygen`")
    try:
        value = unpack(base64.b64decode(body.translate(None, b"\r\n"), validate=True))
    except (binascii.Error, NotCanonical) as error:
        raise _damaged(path) from error
    if type(value) is tuple and value and type(value[0]) is int and value[0] > FORMAT:
        raise KeyFileError(f"{path} has format {value[0]}; this program knows {FORMAT}: upgrade it")
    match value:
        case (
            1,
            str(kem),
            bytes(key_id),
            bytes(public_key),
            "argon2id",
            int(iterations),
            int(lanes),
            int(memory_kib),
            bytes(salt),
            bytes(nonce),
            bytes(sealed),
        ) if (
            _is_well_formed(kem, key_id, salt, nonce, sealed)
            and _is_affordable((iterations, lanes, memory_kib))
            and head.strip() == _KEY_ID + key_id.hex().encode()
        ):
            wrapping = _wrapping(passphrase, salt, (iterations, lanes, memory_kib))
        case _:
            raise _damaged(path)
    try:
        secret = wrapping.decrypt(nonce, sealed, _TAG + pack(value[:-1]))
    except InvalidTag as error:
        raise KeyFileError(
            f"{path} does not open: the passphrase is wrong, or the file is damaged"
        ) from error
    if hpke.public_of(kem, secret) != public_key:
        raise _damaged(path)
    return DecryptionKey(kem, key_id, public_key, secret)


def load_all(folder: Path, passphrase: bytes) -> dict[bytes, DecryptionKey]:
    """Return every key of `folder` by its id, the retired ones too; one passphrase opens all.

    Raises `KeyFileError` as `load` does, or when there are over a thousand.
    """
    paths = sorted(folder.glob(f"{_PREFIX}*{SUFFIX}"))
    if len(paths) > _FILES_MAX:
        raise KeyFileError(f"{folder} holds more than {_FILES_MAX} encryption keys")
    found = (load(path, passphrase) for path in paths)
    return {key.key_id: key for key in found}


def _is_well_formed(kem: str, key_id: bytes, salt: bytes, nonce: bytes, sealed: bytes) -> bool:
    return kem in hpke.SECRET_BYTES and (len(key_id), len(salt), len(nonce), len(sealed)) == (
        KEY_ID_BYTES,
        _SALT_BYTES,
        _NONCE_BYTES,
        hpke.SECRET_BYTES[kem] + _TAG_BYTES,
    )


def _is_affordable(costs: _Costs) -> bool:
    """A file from elsewhere must not make this process run out of memory or time."""
    _, lanes, memory_kib = costs
    within = all(0 < cost <= most for cost, most in zip(costs, _COSTS_MAX, strict=True))
    return within and memory_kib >= 8 * lanes


def _wrapping(passphrase: bytes, salt: bytes, costs: _Costs) -> AESGCM:
    iterations, lanes, memory_kib = costs
    kdf = Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory_kib)
    return AESGCM(kdf.derive(passphrase))


def _damaged(path: Path) -> KeyFileError:
    return KeyFileError(f"{path} is damaged: restore it from a backup")
