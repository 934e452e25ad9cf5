"""What several tests of the storage room need."""

import hashlib
from pathlib import Path

from storage.kv import WriteBatch

EVERYTHING = (b"", b"\xff" * 40)


def write(store, rows, *, sync=False):
    """Write a mapping; None deletes."""
    batch = WriteBatch()
    for key, value in rows.items():
        if value is None:
            batch.delete(key)
        else:
            batch.put(key, value)
    store.write(batch, sync=sync)


def contents(store) -> dict[bytes, bytes]:
    return dict(store.iterate(*EVERYTHING))


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file and folder below `folder` with the digest of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }
