"""Identity keys, passphrases and the RPC token on disk.

An Ed25519 key is kept as encrypted PKCS#8 PEM (RFC 5958), so stock OpenSSL reads it. The
cryptography package's own writer stretches the passphrase with 2,048 rounds of PBKDF2 only; the
envelope here is therefore PBES2 (RFC 8018) with scrypt (RFC 7914 §7) and AES-256-CBC, every
primitive taken from that package. Reading goes through the package alone. CBC does not notice a
flipped bit, so the public key stands in clear before the PEM block (RFC 7468 §5.2 allows text
there), and a secret that does not belong to it is refused.

Secrets live in files that only their owner can read. No secret enters a message, a repr or a log.
"""

import base64
import getpass
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import padding, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

PASSPHRASE_LENGTH_MIN = 8
SECRET_BYTES_MAX = 64 * 1024
TOKEN_LENGTH_MIN = 32

# As costly to guess as N=2^17, p=1, within the 32 MiB that stock OpenSSL grants scrypt on reading.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**14, 8, 5
_SCRYPT_N_LEAST = 2**10  # for a random passphrase, which needs no stretching
_PUBLIC_KEY = b"Public-Key: "
_OID_PBES2 = bytes.fromhex("06092a864886f70d01050d")
_OID_SCRYPT = bytes.fromhex("06092b06010401da47040b")
_OID_AES_256_CBC = bytes.fromhex("060960864801650304012a")

Signer: TypeAlias = Callable[[bytes], bytes]


class KeyFileError(Exception):
    """A key, passphrase or token cannot be read or written; the message says what to do."""


@dataclass(frozen=True, slots=True)
class PassphraseFile:
    """The passphrase is the content of a file that only its owner can read, less one newline."""

    path: Path


@dataclass(frozen=True, slots=True)
class PassphraseEnvironment:
    """The passphrase is the value of an environment variable."""

    name: str


@dataclass(frozen=True, slots=True)
class PassphrasePrompt:
    """A person types the passphrase; `confirm` asks twice."""

    text: str = "Passphrase: "
    confirm: bool = False


PassphraseSource: TypeAlias = PassphraseFile | PassphraseEnvironment | PassphrasePrompt


def generate() -> Ed25519PrivateKey:
    """Return a new identity key from the system's random source."""
    return Ed25519PrivateKey.generate()


def public_bytes(private: Ed25519PrivateKey) -> bytes:
    """Return the 32 bytes of the public key (RFC 8032)."""
    return private.public_key().public_bytes_raw()


def signer(private: Ed25519PrivateKey) -> Signer:
    """Return a function that signs: message in, 64-byte Ed25519 signature out."""
    return private.sign


def save(
    private: Ed25519PrivateKey, path: Path, passphrase: bytes, *, stretch: bool = True
) -> None:
    """Write the key to `path`, encrypted, readable by its owner only, durable on return.

    `stretch` may be False for a passphrase of 128 random bits or more, which nobody can guess.

    Raises `KeyFileError` when the file exists (a key is never overwritten), when it cannot be
    written, or when the passphrase is shorter than `PASSPHRASE_LENGTH_MIN` bytes.
    """
    if len(passphrase) < PASSPHRASE_LENGTH_MIN:
        raise KeyFileError(
            f"the passphrase has fewer than {PASSPHRASE_LENGTH_MIN} bytes: choose a longer one"
        )
    plain = private.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    head = _PUBLIC_KEY + public_bytes(private).hex().encode() + b"\n"
    save_secret(
        path,
        head + _pem(_encrypt_pkcs8(plain, passphrase, _SCRYPT_N if stretch else _SCRYPT_N_LEAST)),
    )


def load(path: Path, passphrase: bytes) -> Ed25519PrivateKey:
    """Return the key in `path`.

    Raises `KeyFileError`: no such file, readable by others, no PEM key, not encrypted, wrong
    passphrase or damaged content (which no reader can tell apart), or not an Ed25519 key.
    """
    pem = read_private_file(path)
    if b"-----BEGIN ENCRYPTED PRIVATE KEY-----" not in pem:
        raise KeyFileError(
            f"{path} is not an encrypted PKCS#8 PEM key; make one with `radledger keygen`"
        )
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(
            f"{path} does not open: the passphrase is wrong, or the file is damaged"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} holds a key of another kind; identity keys are Ed25519")
    head = pem.partition(b"\n")[0]
    if head.startswith(_PUBLIC_KEY) and head != _PUBLIC_KEY + public_bytes(key).hex().encode():
        raise KeyFileError(f"{path} is damaged: the key inside is not the one it names")
    return key


def read_passphrase(source: PassphraseSource, ask: Callable[[str], str] = getpass.getpass) -> bytes:
    """Return the passphrase from `source`, or raise `KeyFileError` when there is none."""
    match source:
        case PassphraseFile(path):
            passphrase = read_private_file(path).removesuffix(b"\n").removesuffix(b"\r")
            origin = str(path)
        case PassphraseEnvironment(name):
            passphrase = os.environb.get(name.encode(), b"")
            origin = f"the environment variable {name}"
        case PassphrasePrompt(text, confirm):
            passphrase = _prompt(text, confirm, ask)
            origin = "the prompt"
    if not passphrase:
        raise KeyFileError(f"{origin} gave no passphrase")
    return passphrase


def create_token(path: Path) -> str:
    """Write a new RPC token (256 random bits, URL-safe text) to a 0600 file and return it.

    Raises `KeyFileError` when the file exists or cannot be written.
    """
    token = secrets.token_urlsafe(32)
    save_secret(path, token.encode() + b"\n")
    return token


def load_token(path: Path) -> str:
    """Return the RPC token in `path`; raises `KeyFileError`: missing, open to others, no token."""
    token = read_private_file(path).strip()
    if len(token) < TOKEN_LENGTH_MIN or not all(0x21 <= byte <= 0x7E for byte in token):
        raise KeyFileError(
            f"{path} holds no token: {TOKEN_LENGTH_MIN} or more printable characters are needed"
        )
    return token.decode("ascii")


def read_private_file(path: Path) -> bytes:
    """Return the content of a secret's file, at most `SECRET_BYTES_MAX` bytes.

    Raises `KeyFileError` when it is missing, not a plain file, too large, or when anyone but its
    owner may read or write it.
    """
    try:
        # Not blocking, so that a pipe put in the file's place cannot hang the node.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise KeyFileError(f"{path} cannot be read: {_reason(error)}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{path} is not a plain file")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise KeyFileError(f"{path} is open to others (mode {mode:04o}): run `chmod 600` on it")
        if status.st_size > SECRET_BYTES_MAX:
            raise KeyFileError(f"{path} is larger than {SECRET_BYTES_MAX} bytes: not a secret")
        return os.read(descriptor, SECRET_BYTES_MAX)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {_reason(error)}") from error
    finally:
        os.close(descriptor)


def save_secret(path: Path, content: bytes) -> None:
    """Write `content` to a new file that only its owner can read, durable on return.

    Raises `KeyFileError` when the file exists (nothing is ever overwritten) or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise KeyFileError(f"{path} exists and is never overwritten: move it away first") from error
    except (OSError, ValueError) as error:
        raise KeyFileError(f"{path} cannot be created: {_reason(error)}") from error
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        _sync_directory(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise KeyFileError(f"{path} cannot be written: {_reason(error)}") from error


def _prompt(text: str, confirm: bool, ask: Callable[[str], str]) -> bytes:
    try:
        passphrase = ask(text)
        if confirm and ask("Again: ") != passphrase:
            raise KeyFileError("the two passphrases differ")
    except EOFError as error:
        raise KeyFileError(
            "no terminal to ask for the passphrase: name a file or an environment variable"
        ) from error
    return passphrase.encode()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _encrypt_pkcs8(plain: bytes, passphrase: bytes, cost: int) -> bytes:
    """Return the DER of an EncryptedPrivateKeyInfo around the PKCS#8 DER `plain`."""
    salt, vector = os.urandom(16), os.urandom(16)
    key = Scrypt(salt, 32, cost, _SCRYPT_R, _SCRYPT_P).derive(passphrase)
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES256(key), modes.CBC(vector)).encryptor()
    sealed = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    stretching = _sequence(
        _OID_SCRYPT,
        _sequence(_octets(salt), _integer(cost), _integer(_SCRYPT_R), _integer(_SCRYPT_P)),
    )
    encryption = _sequence(_OID_AES_256_CBC, _octets(vector))
    return _sequence(_sequence(_OID_PBES2, _sequence(stretching, encryption)), _octets(sealed))


def _pem(der: bytes) -> bytes:
    text = base64.b64encode(der).decode("ascii")
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]
    label = "ENCRYPTED PRIVATE KEY"
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def _element(tag: int, content: bytes) -> bytes:
    """Return one DER element (X.690 §8.1); nothing here reaches 65,536 bytes."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes(1 if size < 0x100 else 2, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _sequence(*elements: bytes) -> bytes:
    return _element(0x30, b"".join(elements))


def _octets(value: bytes) -> bytes:
    return _element(0x04, value)


def _integer(value: int) -> bytes:
    return _element(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))
