"""The passphrase of a new member's key: given, typed, or random and kept beside the key."""

import secrets
from pathlib import Path

from node import keys
from node.cli.failures import USAGE, Failure

SUFFIX = ".passphrase"


def beside(key_file: Path) -> Path:
    """Return where a random passphrase is kept."""
    return key_file.with_name(key_file.name + SUFFIX)


def made_passphrase(key_file: Path, file: Path | None, ask: bool) -> tuple[bytes, bool]:
    """Return the passphrase for a new key, and whether it is random, which needs no stretching.

    Raises `KeyFileError`, `Failure`.
    """
    if file is not None and ask:
        raise Failure(USAGE, "--passphrase-file and --ask-passphrase exclude each other")
    if file is not None:
        return keys.read_passphrase(keys.PassphraseFile(file)), False
    if ask:
        return keys.read_passphrase(keys.PassphrasePrompt(confirm=True)), False
    passphrase = secrets.token_urlsafe(32).encode()
    keys.save_secret(beside(key_file), passphrase + b"\n")
    return passphrase, True
