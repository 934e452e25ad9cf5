"""Where a file's data set begins, and its bytes in another native encoding for who asks for that.

Bytes go out as they are stored wherever the receiver takes that transfer syntax. Only where it does
not, the data set is decoded and written anew: elements and samples stay, their encoding changes.
"""

import zlib
from io import BytesIO
from typing import BinaryIO

from pydicom.dataset import FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import dcmread
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from node.gateway.web.files import DAMAGED
from node.imaging.syntax import syntax_of

RECODED_BYTES_MAX = 64 << 20
PLAIN = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))  # in order of preference
_META_BYTES_MAX = 1 << 20
_LONG = frozenset({b"OB", b"UN", b"UT"})


class CannotRecode(Exception):
    """The data set cannot be given in that transfer syntax."""


def skip_meta(stream: BinaryIO) -> None:
    """Move `stream` from the file's start to its data set (PS3.10 §7.1). Raises `ValueError`."""
    head = stream.read(132)
    if head[128:] != b"DICM":
        raise ValueError("not a DICOM file")
    while (head := stream.read(8))[:2] == b"\x02\x00" and len(head) == 8:
        long_form = head[4:6] in _LONG
        length = int.from_bytes(stream.read(4) if long_form else head[6:], "little")
        if length > _META_BYTES_MAX or len(stream.read(length)) < length:
            raise ValueError("the file ends within its meta information")
    stream.seek(-len(head), 1)


def recoded(data: bytes, syntax: str, wanted: str) -> bytes:
    """Return the data set `data`, of transfer syntax `syntax`, in one of `PLAIN`.

    Compressed frames are decompressed. Raises `CannotRecode`.
    """
    known = syntax_of(syntax)
    if known is None or wanted not in PLAIN:
        raise CannotRecode("a transfer syntax that we do not write")
    try:
        if known.deflated:
            data, syntax = _inflated(data), str(ExplicitVRLittleEndian)
        ds = _read(data, syntax)
        if known.encapsulated and "PixelData" in ds:
            ds.decompress(generate_instance_uid=False)
        return _written(ds, wanted)
    except (*DAMAGED, OSError, RuntimeError, MemoryError, InvalidDicomError, zlib.error) as error:
        raise CannotRecode(f"cannot be written anew ({type(error).__name__})") from None


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(data, RECODED_BYTES_MAX)
    if not inflater.eof:
        raise CannotRecode("inflates to too much, or breaks off")
    return plain


def _written(ds: FileDataset, wanted: str) -> bytes:
    target = DicomBytesIO()
    target.is_implicit_VR = wanted == str(ImplicitVRLittleEndian)
    target.is_little_endian = True
    tags = list(ds.keys())
    for tag in tags:
        if tag.element == 0:
            del ds[tag]  # group lengths, retired, would not be right any more
    write_dataset(target, ds)
    return bytes(target.getvalue())


def _read(data: bytes, syntax: str) -> FileDataset:
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = b"\x02\x00\x10\x00UI" + len(uid).to_bytes(2, "little") + uid
    return dcmread(BytesIO(bytes(128) + b"DICM" + meta + data))
