"""The spool's folders and small files, made and kept durable."""

import os
import secrets
from pathlib import Path

from node.exchange.store.local import sync_folder
from node.gateway.index import SpoolError

KEY_BYTES = 32


def make_folders(folder: Path) -> None:
    """Make what the spool consists of, where it is not there."""
    inner = [f"instances/{number:02x}" for number in range(256)]
    for name in (".", "incoming", "quarantine", "instances", *inner):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    sync_folder(folder / "instances")
    sync_folder(folder)


def load_key(path: Path) -> bytes:
    """Return the key in `path`, made the first time; two processes may come at once."""
    if not path.exists():
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        with open(partial, "xb", opener=private) as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)
        except FileExistsError:
            pass
        finally:
            partial.unlink()
        sync_folder(path.parent)
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise SpoolError(f"{path} is damaged: restore it from a backup")
    return key


def private(path: str, flags: int) -> int:
    """Open a file for its owner alone, as an `opener`."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def sync_file(path: Path) -> None:
    """Have a file on the disk under its name; once it has that name, so that a journal is written
    once."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)
