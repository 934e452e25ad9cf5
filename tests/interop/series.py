"""The study that goes from hospital to hospital: a real head CT, or one made of a shipped slice."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pydicom

from tests.imaging import dicom

CT_HEAD = Path(__file__).parents[3] / "shared" / "data" / "ct-head"
_SLICES, _FACTOR = 28, 4  # as many as the real one, and as large
_ROOT = "1.2.826.0.1.3680043.8.498.7"


@cache
def head_ct() -> list[Path]:
    """Return the files of the head CT; where it is absent, of a series of the same size that is
    made of the CT slice in the pydicom wheel."""
    if CT_HEAD.is_dir():
        return sorted(CT_HEAD.glob("*.dcm"))
    folder = Path(tempfile.mkdtemp(prefix="radledger-ct-"))
    return [_slice(folder / f"{number:02}.dcm", number) for number in range(1, _SLICES + 1)]


def _slice(path: Path, number: int) -> Path:
    ds = pydicom.dcmread(dicom.FILES / "CT_small.dcm")
    ds.remove_private_tags()
    del ds[0xFFFCFFFC]  # padding at the end, which archives leave out
    pixels = np.kron(ds.pixel_array, np.ones((_FACTOR, _FACTOR), ds.pixel_array.dtype))
    # Noise, as scanners have it: what compresses to nothing is fetched before it can be cut off.
    noise = np.random.default_rng(number).integers(0, 512, pixels.shape)
    pixels = (np.roll(pixels, number, axis=0) + noise).astype(pixels.dtype)
    ds.PixelData = pixels.tobytes()
    ds.Rows, ds.Columns = pixels.shape
    # So that a viewer shows something black, grey and white.
    low, high = np.percentile(pixels * ds.RescaleSlope + ds.RescaleIntercept, (10, 90))
    ds.WindowCenter, ds.WindowWidth = round((low + high) / 2), round(high - low)
    ds.PixelSpacing = [each / _FACTOR for each in ds.PixelSpacing]
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{_ROOT}.1", f"{_ROOT}.1.1"
    ds.FrameOfReferenceUID = f"{_ROOT}.1.2"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{_ROOT}.1.1.{number}"
    ds.InstanceNumber, ds.SliceLocation = number, float(number)
    ds.ImagePositionPatient = [*ds.ImagePositionPatient[:2], float(number)]
    ds.save_as(path, enforce_file_format=True)
    return path
