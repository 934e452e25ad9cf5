"""A study of the store written as a DICOM file set with a DICOMDIR (PS3.10 §8; IHE PDI).

The files are those that were registered, byte for byte; only the DICOMDIR is made here. The folder
appears when all of it is written: a crash leaves a hidden one beside it, which the next call
clears.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.fileset import FileSet

from node.exchange.store.index import StudyIndex
from node.gateway.web.files import DAMAGED

FILE_SET_ID = "RADLEDGER"  # at most 16 characters
PLAIN = "1.2.840.10008.1.2.1"  # the one transfer syntax of PDI's basic profile (STD-GEN-CD)
_DEFERRED = "64 KB"  # longer values stay in the file; the directory needs none of them
_BULK = ("EncapsulatedDocument", "WaveformSequence", "SpectroscopyData")
# What a directory record must have (PS3.3 F.5) and an instance may lack.
_FALLBACKS = {
    "PatientID": "UNKNOWN", "StudyTime": "000000", "StudyID": "1", "SeriesNumber": "1",
    "InstanceNumber": "1", "Modality": "OT", "ContentTime": "000000", "ContentLabel": "UNKNOWN",
    "RTPlanLabel": "UNKNOWN", "StructureSetLabel": "UNKNOWN", "DoseSummationType": "PLAN",
    "MIMETypeOfEncapsulatedDocument": "application/octet-stream",
}  # fmt: skip
_DATES = ("StudyDate", "SeriesDate", "ContentDate", "AcquisitionDate")
_DATE_NEEDED = ("StudyDate", "ContentDate", "InstanceCreationDate")
_README = """\
This medium holds DICOM images, indexed by the file DICOMDIR (IHE Portable Data for Imaging).
They were written by RadLedger from its store, as they were registered on the ledger: nothing in
them was changed. `radledger study verify` says whether they still are what was registered.

Open the medium with a DICOM viewer: it reads DICOMDIR. No program is on this medium.
Instances: {instances}. Written: {date}.
"""


class MediaUnwritable(Exception):
    """The file set cannot be written; the text says why, and names no patient."""


class Store(Protocol):
    """What we need of the store of studies."""

    def index(self, study_id: bytes, version: int | None = None) -> StudyIndex: ...

    def read(
        self, study_id: bytes, ordinal: int, version: int | None = None
    ) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    instances: int
    bytes: int
    other_syntax: int  # instances that PDI's basic profile does not have: compressed or implicit


def check_empty(folder: Path) -> None:
    """Raise `MediaUnwritable` unless the folder is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MediaUnwritable(f"{folder} is not empty: a file set needs a folder of its own")


def write_media(
    store: Store,
    study_id: bytes,
    version: int | None,
    folder: Path,
    progress: Callable[[int], None],
) -> Written:
    """Write the study's version (None: the latest) to `folder`, which must be new or empty.

    `progress` is told the bytes written so far. Waits for disks. Raises `MediaUnwritable`, and what
    the store raises.
    """
    check_empty(folder)
    work = folder.absolute().with_name(f".{folder.name}.new")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        written = _write(store, study_id, version, work, progress)
        if folder.exists():
            folder.rmdir()
        (work / "set").rename(folder)
    except OSError as error:
        raise MediaUnwritable(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return written


def _write(
    store: Store,
    study_id: bytes,
    version: int | None,
    work: Path,
    progress: Callable[[int], None],
) -> Written:
    instances = store.index(study_id, version).instances
    placed: dict[str, Path] = {}
    files, size, other = FileSet(), 0, 0
    files.ID = FILE_SET_ID
    (work / "whole").mkdir()
    for ordinal, instance in enumerate(instances):
        path = work / "whole" / str(ordinal)
        with path.open("wb") as file:
            for piece in store.read(study_id, ordinal, version):
                file.write(piece)
                size += len(piece)
                progress(size)
            file.flush()
            os.fsync(file.fileno())
        other += instance.facts.transfer_syntax != PLAIN
        try:
            placed[str(files.add(_head(path)).SOPInstanceUID)] = path
        except DAMAGED as error:
            reason = f"instance {ordinal + 1} has no place in a DICOMDIR ({type(error).__name__})"
            raise MediaUnwritable(reason) from error
    files.write(work / "set")
    for entry in files:  # so far only the heads are there: now come the registered files
        placed[str(entry.SOPInstanceUID)].replace(entry.path)
    text = _README.format(instances=len(instances), date=datetime.now(UTC).date())
    (work / "set" / "README.TXT").write_text(text, "ascii", newline="\r\n")
    return Written(len(instances), size, other)


def _head(path: Path) -> Dataset:
    """Return what the directory is made of, with all that its records must have."""
    whole = pydicom.dcmread(path, stop_before_pixels=True, defer_size=_DEFERRED)
    for keyword in _BULK:
        if keyword in whole:
            del whole[keyword]
    # Element by element: what was written in another form than its syntax says is not written so.
    syntax = whole.file_meta.TransferSyntaxUID
    head = FileDataset(
        "", {}, bytes(128), whole.file_meta, syntax.is_implicit_VR, syntax.is_little_endian
    )
    for element in whole:
        head.add(element)
    today = datetime.now(UTC).strftime("%Y%m%d")
    date = next((value for name in _DATES if (value := str(head.get(name) or ""))), today)
    for keyword, value in (_FALLBACKS | dict.fromkeys(_DATE_NEEDED, date)).items():
        if not head.get(keyword):
            setattr(head, keyword, value)
    return head
