"""A medium or a folder, taken into the spool by hand; nothing in it is changed.

With a DICOMDIR the files that it names are taken, and what it names and cannot be had is told;
without one, every DICOM file at any depth.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from node.gateway.outcomes import Accepted, Duplicate, Refused
from node.gateway.spool import Spool
from node.imaging.media import Media, is_named_so, read_media
from node.imaging.reader import list_files
from node.imaging.source import PREAMBLE_BYTES

SOURCE = "import"
# The spool's answer to these is about the spool: the rest would be told the same.
_NO_ROOM = "no_room"


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """A file that was not taken."""

    file: str  # below the folder
    code: str
    reason: str


@dataclass(slots=True)
class Import:
    """What became of a folder."""

    taken: int = 0
    known: int = 0  # instances that were here already with the same content
    refused: list[RefusedFile] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # named by the DICOMDIR, and not there
    outside: int = 0  # named by the DICOMDIR, and not below its folder

    @property
    def is_whole(self) -> bool:
        """Whether everything was taken, and there was something."""
        return not (self.refused or self.missing or self.outside) and self.taken + self.known > 0


def import_folder(
    folder: Path,
    spool: Spool,
    progress: Callable[[int, int], None],
    read_media: Callable[[Path], Media] = read_media,
) -> Import:
    """Take what is in `folder` into the spool; `progress` is told files done and files in all.

    Waits for disks. Raises `UnreadableInstance` for a damaged DICOMDIR, `ValueError` for a folder
    that is none or has too many files, and `SpoolError`.
    """
    media = _media(folder, read_media)
    done = Import(missing=list(media.missing), outside=len(media.outside))
    for number, path in enumerate(media.files, 1):
        _take(done, path, str(path.relative_to(folder)), spool)
        progress(number, len(media.files))
        if done.refused and done.refused[-1].code == _NO_ROOM:
            break
    return done


def _media(folder: Path, read_media: Callable[[Path], Media]) -> Media:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    directory = next((path for path in sorted(folder.iterdir()) if is_named_so(path)), None)
    if directory is not None:
        return read_media(directory)
    return Media(tuple(path for path in list_files([folder]) if _is_dicom(path)), (), ())


def _is_dicom(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(PREAMBLE_BYTES)[128:] == b"DICM"


def _take(done: Import, path: Path, name: str, spool: Spool) -> None:
    try:
        # Without O_NONBLOCK a pipe that took the file's place would hold us for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            outcome = spool.accept(SOURCE, stream)
    except OSError as error:
        reason = error.strerror or "system error"
        done.refused.append(RefusedFile(name, "unreadable", f"cannot be read: {reason}"))
        return
    match outcome:
        case Accepted():
            done.taken += 1
        case Duplicate():
            done.known += 1
        case Refused():
            done.refused.append(RefusedFile(name, outcome.code, outcome.reason))
