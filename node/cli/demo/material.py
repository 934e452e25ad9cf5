"""Real DICOM series without a download: those that come with the installed pydicom."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pydicom.data

from node.imaging import commitment
from node.imaging.commitment import CommittedFile
from node.imaging.reader import StudyFiles, read_studies

# The file set with which pydicom tests DICOMDIRs: CT, MR and CR series of real scanners.
_SHIPPED = Path(pydicom.data.__file__).parent / "test_files" / "dicomdirtests"


@dataclass(frozen=True, slots=True)
class Series:
    """The files of one study."""

    modality: str
    files: tuple[Path, ...]
    series_count: int
    size: int  # bytes

    @property
    def text(self) -> str:
        """What it is, in words; nothing of it identifies anybody."""
        return (
            f"{self.modality} study, {len(self.files)} instances in {self.series_count} series, "
            f"{self.size / 1024:.0f} KiB"
        )


def shipped_studies() -> list[Series]:
    """Return the shipped studies of several images each: one of each modality first, then the rest,
    those with most instances in front."""
    if not _SHIPPED.is_dir():
        return []
    read = [s for s in read_studies([_SHIPPED]).studies if _has_images(s)]
    studies = sorted(map(_series, read), key=lambda series: -len(series.files))
    first = {series.modality: series for series in reversed(studies)}
    leading = [series for series in studies if first[series.modality] is series]
    return [*leading, *(series for series in studies if series not in leading)]


def copy_of(series: Series, folder: Path) -> list[Path]:
    """Copy the files of a study into `folder` and return them, in the same order."""
    folder.mkdir()
    copies = [folder / f"{number:04d}.dcm" for number in range(len(series.files))]
    for file, copy in zip(series.files, copies, strict=True):
        shutil.copyfile(file, copy)
    return copies


def alter_pixel(file: Path) -> int:
    """Flip one bit of one pixel in the middle of the image; return the byte's place in the file.

    Raises `ValueError` when the pixels do not stand in the file as they are.
    """
    raw = bytearray(file.read_bytes())
    pixels = pydicom.dcmread(file).PixelData
    start = bytes(raw).rfind(pixels)
    if start < 0 or not pixels:
        raise ValueError(f"{file} holds no plain pixels")
    place: int = start + len(pixels) // 4 * 2  # the low byte of a 16-bit sample
    raw[place] ^= 1
    file.write_bytes(raw)
    return place


def _has_images(study: StudyFiles) -> bool:
    return len(study.files) > 1 and all(_is_image(read) for read in study.files.values())


def _is_image(read: CommittedFile) -> bool:
    return read.commitment.pixels.samples is not None


def _series(study: StudyFiles) -> Series:
    files = list(study.files.values())
    return Series(
        files[0].text(commitment.MODALITY),
        tuple(Path(read.name) for read in files),
        len({read.text(commitment.SERIES_INSTANCE) for read in files}),
        sum(read.commitment.size for read in files),
    )
