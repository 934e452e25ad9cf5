"""The vault's key: wrapped under a passphrase, and what is done with it.

Header (canonical msgpack): (format, kdf "argon2id", iterations, lanes, memory in KiB, kdf salt,
nonce, wrapped key). The vault key is 32 random bytes, wrapped by AES-256-GCM under what Argon2id
(RFC 9106) makes of the passphrase, with all fields before it as associated data. From it HKDF makes
one key for look-ups (HMAC-SHA256) and one that seals rows (AES-256-GCM, random nonce of 12 bytes,
the row's place as associated data, so that no row can be moved or replaced by another).
"""

import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from consensus.wire import NotCanonical, pack, unpack
from node.imaging.errors import VaultDamaged, VaultTooNew, WrongPassphrase

FORMAT = 1
KEY_BYTES = 32
NONCE_BYTES = 12
_KDF_SALT_BYTES = 16
_WRAPPED_BYTES = KEY_BYTES + 16
_ITERATIONS, _LANES, _MEMORY_KIB = 3, 4, 64 * 1024  # RFC 9106 §4, second recommended option
_ITERATIONS_MAX, _LANES_MAX, _MEMORY_KIB_MAX = 64, 16, 1024 * 1024
_HEADER_TAG = b"radledger/vault/1"


class VaultKeys:
    """Look-ups and seals under one vault key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._lookup = _derive(key, b"lookup")
        self._seal = AESGCM(_derive(key, b"seal"))

    def lookup(self, kind: str, *parts: bytes) -> bytes:
        """Return the 32 bytes under which a row is found; they tell nothing without the key."""
        return hmac.digest(self._lookup, pack((kind, *parts)), "sha256")

    def seal(self, plain: bytes, *place: object) -> bytes:
        """Return `plain` encrypted for the row at `place`."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._seal.encrypt(nonce, plain, pack(place))

    def open(self, sealed: bytes, *place: object) -> bytes:
        """Return what was sealed for `place`. Raises `VaultDamaged`."""
        try:
            return self._seal.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], pack(place))
        except (InvalidTag, ValueError) as error:
            raise VaultDamaged("a row of the vault fails its check; restore a backup") from error

    def header(self, passphrase: bytes) -> bytes:
        """Return a header that lets `passphrase` open the vault."""
        salt, nonce = secrets.token_bytes(_KDF_SALT_BYTES), secrets.token_bytes(NONCE_BYTES)
        fields = (FORMAT, "argon2id", _ITERATIONS, _LANES, _MEMORY_KIB, salt, nonce)
        wrapping = _wrapping_key(passphrase, salt, _ITERATIONS, _LANES, _MEMORY_KIB)
        wrapped = wrapping.encrypt(nonce, self._key, _HEADER_TAG + pack(fields))
        return pack((*fields, wrapped))


def new_keys() -> VaultKeys:
    """Return keys made from a fresh random vault key."""
    return VaultKeys(secrets.token_bytes(KEY_BYTES))


def open_header(header: bytes, passphrase: bytes) -> VaultKeys:
    """Return the keys that `header` wraps. Raises `WrongPassphrase`, `VaultTooNew`, `VaultDamaged`.

    Takes about a tenth of a second and 64 MiB, which is what guessing costs too.
    """
    try:
        value = unpack(header)
    except NotCanonical as error:
        raise VaultDamaged("the vault's header cannot be read; restore a backup") from error
    if type(value) is not tuple or not value or type(value[0]) is not int:
        raise VaultDamaged("the vault's header cannot be read; restore a backup")
    if value[0] > FORMAT:
        raise VaultTooNew(f"vault format {value[0]}; this program knows {FORMAT}: upgrade it")
    match value:
        case (
            1,
            "argon2id",
            int(iterations),
            int(lanes),
            int(memory),
            bytes(salt),
            bytes(nonce),
            bytes(wrapped),
        ) if (
            0 < iterations <= _ITERATIONS_MAX
            and 0 < lanes <= _LANES_MAX
            and 8 * lanes <= memory <= _MEMORY_KIB_MAX
            and (len(salt), len(nonce), len(wrapped))
            == (_KDF_SALT_BYTES, NONCE_BYTES, _WRAPPED_BYTES)
        ):
            wrapping = _wrapping_key(passphrase, salt, iterations, lanes, memory)
        case _:
            raise VaultDamaged("the vault's header is not as it must be; restore a backup")
    try:
        return VaultKeys(wrapping.decrypt(nonce, wrapped, _HEADER_TAG + pack(value[:-1])))
    except InvalidTag:
        raise WrongPassphrase("the passphrase does not open this vault") from None


def _wrapping_key(
    passphrase: bytes, salt: bytes, iterations: int, lanes: int, memory_kib: int
) -> AESGCM:
    kdf = Argon2id(
        salt=salt, length=KEY_BYTES, iterations=iterations, lanes=lanes, memory_cost=memory_kib
    )
    return AESGCM(kdf.derive(passphrase))


def _derive(key: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"radledger/vault/1/" + purpose).derive(key)
