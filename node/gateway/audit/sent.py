"""How far the repository has the trail: one small file, replaced as a whole."""

import json
import os
from pathlib import Path
from typing import NamedTuple

from node.exchange.store.local import sync_folder

FILE = "sent.json"


class Sent(NamedTuple):
    """All records up to `seq` are at the repository, as far as can be known."""

    seq: int
    time_ms: int  # when that was noted; 0: never


def load(folder: Path) -> Sent:
    """Return what is noted; nothing is, when the file is missing or damaged: all is sent again."""
    try:
        value = json.loads((folder / FILE).read_bytes())
        return Sent(int(value["seq"]), int(value["time_ms"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Sent(0, 0)


def save(folder: Path, sent: Sent) -> None:
    """Note it, durably. Raises `OSError`."""
    fresh = folder / f"{FILE}.new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(json.dumps(sent._asdict()).encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, folder / FILE)
    sync_folder(folder)
