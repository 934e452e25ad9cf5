"""DICOM input for the tests: the files in the pydicom wheel, and ways to write them anew."""

import struct
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

DATA = Path(pydicom.__file__).parent / "data"
FILES = DATA / "test_files"
CT_FOLDER = FILES / "dicomdirtests" / "98892001"  # two series, seven slices of one study
_NOT_DICOM = {".py", ".pyc", ".json", ".txt", ".dump", ".md", ".gz", ".icc"}

# Why each shipped file that cannot be committed to is refused.
DAMAGED = {
    "ExplVR_BigEndNoMeta.dcm": "foreign",
    "ExplVR_LitEndNoMeta.dcm": "foreign",
    "no_meta.dcm": "foreign",
    "rtstruct.dcm": "foreign",
    "README": "foreign",
    "MR_truncated.dcm": "truncated",
    "rtplan_truncated.dcm": "truncated",
    "badVR.dcm": "pixels",
    "nested_priv_SQ.dcm": "pixels",
    "meta_missing_tsyntax.dcm": "unknown_syntax",
}


# Data sets that pydicom reads and that belong to no study (palettes, and files cut down for tests).
NO_STUDY = {
    *(f"{name}.dcm" for name in ("fall", "hotiron", "hotmetalblue", "pet", "pet20step", "spring")),
    *(f"{name}.dcm" for name in ("summer", "winter", "UN_sequence", "priv_SQ")),
    *("chrSQEncoding.dcm", "chrSQEncoding1.dcm", "empty_charset_LEI.dcm"),
    *("JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "no_meta_group_length.dcm"),
    *("SC_rgb_jls_lossy_line.dcm", "SC_rgb_jls_lossy_sample.dcm"),
}


def wheel():
    """Return every file of the wheel but its Python modules."""
    return [p for p in sorted(DATA.rglob("*")) if p.is_file() and p.suffix not in (".py", ".pyc")]


def refusal_code(path):
    """Return the code with which the gateway refuses a file of the wheel; None: it takes it."""
    if path.suffix in _NOT_DICOM:
        return "foreign"
    return "no_uid" if path.name in NO_STUDY else expected_code(path)


def instances():
    """Return the files of the wheel that are instances of a study."""
    return [path for path in wheel() if refusal_code(path) is None]


def refused():
    """Return all the others."""
    return [path for path in wheel() if refusal_code(path) is not None]


def shipped():
    """Return every file of the wheel that means to be DICOM."""
    files = (p for p in sorted(DATA.rglob("*")) if p.is_file() and p.suffix not in _NOT_DICOM)
    return [p for p in files if "TINY_ALPHA/PT" not in p.as_posix() or p.name == "IM000000"]


def expected_code(path):
    """Return the code with which the shipped file is refused, or None."""
    return "directory" if path.name.startswith("DICOMDIR") else DAMAGED.get(path.name)


def readable():
    return [path for path in shipped() if expected_code(path) is None]


def minimal(path, sop="1.2.3.4.5", study="1.2.3", **elements):
    """Write a small valid instance and return its path."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = sop
    meta.TransferSyntaxUID = elements.pop("syntax", ExplicitVRLittleEndian)
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, sop
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, study + ".1"
    ds.PatientID, ds.Modality = "P1", "OT"
    pixels = elements.pop("pixels", np.arange(12, dtype="<u2").reshape(3, 4))
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, 0
    if pixels.ndim == 3:
        ds.NumberOfFrames = pixels.shape[0]
    ds.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def loaded(path):
    """Return the whole data set, with every element converted."""
    ds = pydicom.dcmread(path)
    ds.walk(lambda _, element: element.value)
    return ds


def save(ds, path, syntax=None):
    """Write `ds`, in `syntax` if given, and return the path."""
    if syntax is not None:
        ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=False)
    return path


# Rewrites that leave the image as it is. Each takes a source and a target.


def resaved(source, target):
    return save(loaded(source), target)


def implicit(source, target):
    ds = loaded(source)
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.save_as(target, implicit_vr=True, little_endian=True)
    return target


def explicit(source, target):
    ds = loaded(source)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(target, implicit_vr=False, little_endian=True)
    return target


def undefined_lengths(source, target):
    ds = loaded(source)
    _set_undefined(ds)
    return save(ds, target)


def _set_undefined(ds):
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                _set_undefined(item)


def deflated(source, target):
    ds = loaded(source)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(target, implicit_vr=False, little_endian=True)
    return target


def rle(source, target):
    ds = loaded(source)
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(target)
    return target


def big_endian(source, target):
    """Write in big-endian form by the letter of PS3.5 A.3; pydicom leaves the order of OW to us."""
    ds = loaded(source)
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pixel_bytes = max(2, ds.get("BitsAllocated", 16) // 8)

    def swap(_, element):
        if element.VR == "OW" or element.keyword == "PixelData":
            element.VR = "OW"
            size = pixel_bytes if element.keyword == "PixelData" else 2
            element.value = np.frombuffer(element.value, f"<u{size}").byteswap().tobytes()

    ds.walk(swap)
    ds._read_implicit, ds._read_little = False, False
    pydicom.dcmwrite(target, ds, implicit_vr=False, little_endian=False)
    return target


def other_patient(source, target):
    ds = loaded(source)
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Another^Person", "ELSEWHERE-7", "19010101"
    ds.IssuerOfPatientID = "elsewhere"
    return save(ds, target)


def other_institution(source, target):
    ds = loaded(source)
    ds.AccessionNumber, ds.InstitutionName, ds.StudyID = "A-99", "Elsewhere", "77"
    ds.StudyDescription, ds.ReferringPhysicianName = "imported", "Other^Doctor"
    before = Dataset()
    before.ModifiedAttributesSequence = Sequence([Dataset()])
    before.ModifiedAttributesSequence[0].AccessionNumber = "old"
    ds.OriginalAttributesSequence = Sequence([before])
    return save(ds, target)


def other_meta(source, target):
    ds = loaded(source)
    ds.preamble = b"II*\0" + bytes(124)
    ds.file_meta.ImplementationVersionName = "SOMEBODY_ELSE"
    ds.file_meta.SourceApplicationEntityTitle = "OTHER"
    return save(ds, target)


def padded(source, target):
    """Append trailing padding and zeros, and insert a group length."""
    ds = loaded(source)
    ds.add_new(0x00080000, "UL", 4242)
    ds.add_new(0xFFFCFFFC, "OB", bytes(64))
    save(ds, target)
    return target


def in_utf8(source, target):
    ds = loaded(source)
    ds.decode()
    ds.SpecificCharacterSet = "ISO_IR 192"
    return save(ds, target)


REWRITES = [
    resaved,
    implicit,
    explicit,
    undefined_lengths,
    deflated,
    rle,
    big_endian,
    other_patient,
    other_institution,
    other_meta,
    padded,
    in_utf8,
]


def element(tag, vr, value, little=True):
    """Return the bytes of one explicit element."""
    order = "<" if little else ">"
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF) + vr
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return head + bytes(2) + struct.pack(order + "L", len(value)) + value
    return head + struct.pack(order + "H", len(value)) + value


def raw_file(path, data, syntax=b"1.2.840.10008.1.2.1\0"):
    """Write preamble, meta information and then `data` as it is."""
    meta = element(0x00020010, b"UI", syntax)
    path.write_bytes(bytes(128) + b"DICM" + meta + data)
    return path
