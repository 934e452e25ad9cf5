"""Digests of documents that stay at home: signed forms, approvals, wrapped keys.

A form names its patient, so its digest alone would link the pseudonym to whoever holds a copy.
Therefore it is salted: the digest is HMAC-SHA256 with a random key that is kept beside the form,
in `FILE.salt`. Form and salt together prove later that this form was meant.
"""

import hashlib
import hmac
import secrets
from pathlib import Path

from node import keys
from node.cli.failures import USAGE, Failure

SALT_SUFFIX = ".salt"
SALT_BYTES = 32
_CHUNK = 1 << 20


def salted_digest(file: Path) -> bytes:
    """Return the salted digest of `file`; its salt is made and kept the first time.

    Raises `OSError`, `KeyFileError`, and `Failure` when the salt's file holds something else.
    """
    with file.open("rb") as stream:  # before a salt is left behind for a file that is not there
        mac = hmac.new(_salt_of(file), digestmod=hashlib.sha256)
        while chunk := stream.read(_CHUNK):
            mac.update(chunk)
    return mac.digest()


def plain_digest(file: Path) -> bytes:
    """Return SHA-256 of a file that says nothing of anybody, such as a wrapped key."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def chosen_digest(
    file: Path | None, digest: bytes | None, option: str, *, salted: bool
) -> bytes | None:
    """Return the digest of `file`, or the one given, or None; both at once are wrong usage."""
    if file is None:
        return digest
    if digest is not None:
        raise Failure(USAGE, f"{option} and {option}-digest exclude each other")
    return salted_digest(file) if salted else plain_digest(file)


def _salt_of(file: Path) -> bytes:
    beside = file.with_name(file.name + SALT_SUFFIX)
    if beside.exists():
        salt = keys.read_private_file(beside)
        if len(salt) != SALT_BYTES:
            raise Failure(USAGE, f"{beside} is not the salt that belongs to {file}")
        return salt
    salt = secrets.token_bytes(SALT_BYTES)
    keys.save_secret(beside, salt)
    return salt
