"""Transfer syntaxes: how a data set and its frames are written (PS3.5 §10)."""

from typing import NamedTuple

from pydicom.uid import UID, AllTransferSyntaxes

# Every frame decodes to the very samples that were compressed (PS3.5 A.4). JPEG 2000 (.91) and
# JPEG XL (.112) may be either; they count as lossy, since nothing in the file settles it.
LOSSLESS = frozenset(
    {
        "1.2.840.10008.1.2.4.57",  # JPEG lossless, process 14
        "1.2.840.10008.1.2.4.70",  # JPEG lossless, first-order prediction
        "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
        "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless only
        "1.2.840.10008.1.2.4.92",  # JPEG 2000 multi-component lossless only
        "1.2.840.10008.1.2.4.110",  # JPEG XL lossless
        "1.2.840.10008.1.2.4.201",  # HTJ2K lossless
        "1.2.840.10008.1.2.4.202",  # HTJ2K lossless, RPCL
        "1.2.840.10008.1.2.5",  # RLE
        "1.2.840.10008.1.2.8.1",  # deflated image frames
    }
)
# Of PS3.5 2024 and later, which pydicom does not list yet: frames of JPEG XL, and deflated ones.
_NEWER = (
    "1.2.840.10008.1.2.4.110",
    "1.2.840.10008.1.2.4.111",
    "1.2.840.10008.1.2.4.112",
    "1.2.840.10008.1.2.8.1",
)
_KNOWN = {
    str(uid): (uid.is_implicit_VR, uid.is_little_endian, uid.is_deflated, uid.is_encapsulated)
    for uid in (UID(uid) for uid in AllTransferSyntaxes)
} | dict.fromkeys(_NEWER, (False, True, False, True))


class Syntax(NamedTuple):
    """One transfer syntax."""

    uid: str
    implicit: bool  # elements do not name their value representation
    little_endian: bool
    deflated: bool  # the whole data set
    encapsulated: bool  # frames are compressed, in fragments

    @property
    def lossless(self) -> bool:
        """Whether decoding gives back the samples that were compressed."""
        return self.uid in LOSSLESS


def syntax_of(uid: str) -> Syntax | None:
    """Return the transfer syntax with that UID, or None if DICOM does not define it."""
    properties = _KNOWN.get(uid)
    return Syntax(uid, *properties) if properties else None
