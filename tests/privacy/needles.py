"""What must not be found: every identifying value of the input, in every form a leak could have."""

import base64
import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pydicom

from node.gateway.dataset_bytes import skip_meta
from node.gateway.lexicon import LEXICON

WORD_MIN = 6  # a part of a value is looked for on its own from this length on
TEXT_MIN = 8  # shorter values would be found by chance in megabytes of random bytes
IDENTIFYING = (
    "PatientName", "PatientID", "PatientBirthDate", "OtherPatientIDs", "PatientAddress",
    "PatientComments", "AccessionNumber", "StudyID", "StudyInstanceUID", "SeriesInstanceUID",
    "SOPInstanceUID", "FrameOfReferenceUID", "DeviceSerialNumber", "StationName",
    "InstitutionName", "ReferringPhysicianName", "OperatorsName", "StudyDescription",
    "SeriesDescription", "StudyDate", "StudyTime", "SeriesDate", "ContentTime",
)  # fmt: skip
_DIGESTS = ("sha256", "sha1", "md5")


@dataclass(frozen=True)
class Needle:
    """One byte string, and what it would give away."""

    what: str
    form: str
    text: bytes
    is_folded: bool  # compared without regard to case; `text` is in lower case then


@dataclass(frozen=True)
class Leak:
    """Where what was found."""

    where: str
    what: str
    form: str


def needles_of(paths):
    """Return the needles of DICOM files."""
    found = {}
    for path in paths:
        raw, ds = Path(path).read_bytes(), pydicom.dcmread(path)
        values = {name: str(ds.get(name, "")) for name in IDENTIFYING}
        for name, value in values.items():
            parts = {value, *value.replace("^", " ").split()}
            for part in parts - LEXICON:  # listed words are no secret: searches are made of them
                if len(part) >= (TEXT_MIN if part == value or part[0].isdigit() else WORD_MIN):
                    found |= {needle.text: needle for needle in text_needles(name, part)}
        contents = {"file": raw, "data set": _data_set(raw), "pixels": ds.PixelData}
        contents |= {f"{name} {form}": text for name, form, text in _texts(values)}
        for name, content in contents.items():
            found |= {needle.text: needle for needle in digest_needles(name, content)}
    return list(found.values())


def text_needles(what, value):
    """Yield the forms in which a value could be written."""
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        raw = value.encode(encoding)
        yield Needle(what, encoding, raw.lower(), True)
        yield Needle(what, f"hex of {encoding}", raw.hex().encode(), True)
        for text in _base64(raw):
            yield Needle(what, f"base64 of {encoding}", text, False)


def digest_needles(what, content):
    """Yield the unsalted digests of a content, raw and written."""
    for algorithm in _DIGESTS:
        digest = hashlib.new(algorithm, content).digest()
        yield Needle(what, algorithm, digest, False)
        yield Needle(what, f"hex of {algorithm}", digest.hex().encode(), True)
        for text in _base64(digest):
            yield Needle(what, f"base64 of {algorithm}", text, False)


def search(needles, where, data):
    """Return a `Leak` for every needle that is in `data`."""
    folded = data.lower()
    return [
        Leak(where, needle.what, needle.form)
        for needle in needles
        if needle.text in (folded if needle.is_folded else data)
    ]


def _texts(values):
    """Yield each value as text, and as DICOM pads it to an even length."""
    for name, value in values.items():
        if value:
            yield name, "text", value.encode()
            if len(value) % 2:
                pad = b"\0" if name.endswith("UID") else b" "
                yield name, "padded", value.encode() + pad


def _data_set(raw):
    stream = BytesIO(raw)
    skip_meta(stream)
    return stream.read()


def _base64(raw):
    """Return what a base64 text that contains `raw` at any place must contain."""
    for shift in range(3):
        whole = base64.b64encode(bytes(shift) + raw)
        inner = whole[(0, 2, 3)[shift] : (shift + len(raw)) * 8 // 6]
        yield inner
        if (safe := inner.replace(b"+", b"-").replace(b"/", b"_")) != inner:
            yield safe
