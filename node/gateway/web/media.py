"""Media types and what a client accepts (RFC 9110 §12.5.1; PS3.18 §8.7)."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from node.gateway.web.errors import Problem, not_acceptable
from node.imaging.syntax import syntax_of

DICOM = "application/dicom"
DICOM_JSON = "application/dicom+json"
JSON = "application/json"
OCTETS = "application/octet-stream"
MULTIPART = "multipart/related"
EXPLICIT = "1.2.840.10008.1.2.1"  # Explicit VR Little Endian, the default of PS3.18 §8.7.3.5
AS_STORED = "*"

_J2K, _JPEG, _JPX, _HT = "image/jp2", "image/jpeg", "image/jpx", "image/jphc"
_PREFIX = "1.2.840.10008.1.2."
# PS3.18 table 8.7.3-5 and -6: the media type of frames compressed in a transfer syntax.
_COMPRESSED = {
    "4.50": _JPEG, "4.51": _JPEG, "4.57": _JPEG, "4.70": _JPEG,
    "4.80": "image/jls", "4.81": "image/jls",
    "4.90": _J2K, "4.91": _J2K, "4.92": _JPX, "4.93": _JPX,
    "4.110": "image/jxl", "4.111": "image/jxl", "4.112": "image/jxl",
    "4.201": _HT, "4.202": _HT, "4.203": _HT,
    "4.100": "video/mpeg2", "4.101": "video/mpeg2",
    "4.102": "video/mp4", "4.103": "video/mp4", "4.104": "video/mp4", "4.105": "video/mp4",
    "4.106": "video/mp4", "4.107": "video/H265", "4.108": "video/H265",
    "5": "image/dicom-rle", "8.1": "application/x-deflate",
}  # fmt: skip
# What earlier editions of PS3.18, and viewers of their time, call some of these.
_OLD_NAMES = {
    "image/dicom+jpeg": _JPEG,
    "image/dicom+jpeg-ls": "image/jls", "image/x-jls": "image/jls",
    "image/dicom+jp2": _J2K, "image/dicom+jpx": _JPX,
    "image/dicom+rle": "image/dicom-rle", "image/x-dicom-rle": "image/dicom-rle",
}  # fmt: skip
FRAME_TYPES = {_PREFIX + tail: kind for tail, kind in _COMPRESSED.items()}

_HEADER_CHARACTERS_MAX = 4_096
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 - a token of RFC 9110
_TYPE = re.compile(rf"({_TOKEN}/{_TOKEN}|\*)\s*")
# Viewers write type=application/dicom without the quotation marks that its "/" would need.
_VALUE = rf'{_TOKEN}(?:/{_TOKEN})?|"(?:[^"\\]|\\.)*"'
_PARAMETER = re.compile(rf"\s*;\s*(?:({_TOKEN})\s*=\s*({_VALUE}))?\s*")


class MediaType(NamedTuple):
    """A media type or range, in lower case, and its parameters with names in lower case."""

    name: str
    parameters: dict[str, str]

    @property
    def quality(self) -> float:
        """The weight q; 0 for one that is no number."""
        try:
            return min(1.0, max(0.0, float(self.parameters.get("q", "1"))))
        except ValueError:
            return 0.0


def parse_media_type(text: str) -> MediaType:
    """Return one media type; raises `ValueError` if it is none."""
    found, end = _parse_one(text.strip(), 0)
    if end != len(text.strip()):
        raise ValueError("not a media type")
    return found


def parse_accept(text: str) -> list[MediaType]:
    """Return what is accepted, most wanted first; those of weight 0 are left out.

    An empty text accepts anything. Raises `Problem` 400 for what is no Accept header.
    """
    if len(text) > _HEADER_CHARACTERS_MAX:
        raise Problem(400, "bad_accept", "the Accept header is too long")
    ranges: list[MediaType] = []
    at, text = 0, text.strip()
    try:
        while at < len(text):
            found, at = _parse_one(text, at)
            ranges.append(found)
            if at < len(text) and text[at] != ",":
                raise ValueError
            at = len(text) - len(text[at + 1 :].lstrip(" \t,"))
    except ValueError:
        raise Problem(400, "bad_accept", "the Accept header cannot be read") from None
    ranges = ranges or [MediaType("*/*", {})]
    return sorted((r for r in ranges if r.quality > 0), key=lambda r: -r.quality)


def _parse_one(text: str, at: int) -> tuple[MediaType, int]:
    head = _TYPE.match(text, at)
    if head is None:
        raise ValueError("not a media type")
    parameters: dict[str, str] = {}
    at = head.end()
    while (found := _PARAMETER.match(text, at)) is not None:
        at = found.end()
        if found[1]:
            value = found[2]
            quoted = value.startswith('"')
            value = re.sub(r"\\(.)", r"\1", value[1:-1]) if quoted else value
            parameters.setdefault(found[1].lower(), value)
    name = head[1].lower()
    return MediaType("*/*" if name == "*" else name, parameters), at


def accepts(ranges: list[MediaType], *offers: str) -> str:
    """Return the offer that is wanted most, earlier ones first among equals; 406 for none."""
    for wanted in ranges:
        for offer in offers:
            kind = offer.partition("/")[0]
            if wanted.name in (offer, "*/*", f"{kind}/*"):
                return offer
    raise not_acceptable(f"what there is: {', '.join(offers)}")


@dataclass(frozen=True, slots=True)
class Form:
    """A form in which DICOM objects or frames are wanted."""

    syntax: str  # transfer syntax UID, or "*" for that of the stored object
    multipart: bool
    media: str = DICOM  # the type of a part; "" for whatever belongs to the syntax


def instance_forms(ranges: list[MediaType]) -> list[Form]:
    """Return the forms of `application/dicom` that are accepted, most wanted first."""
    forms: list[Form] = []
    for wanted in ranges:
        inner = wanted.parameters.get("type", "").lower()
        syntax = _syntax(wanted, EXPLICIT)
        if wanted.name in ("*/*", "multipart/*") or (
            wanted.name == MULTIPART and inner in ("", "*/*", "application/*", DICOM)
        ):
            forms.append(Form(syntax, True))
        elif wanted.name in (DICOM, "application/*"):
            forms.append(Form(syntax, False))
    if not forms:
        raise not_acceptable(f'what there is: {MULTIPART}; type="{DICOM}", or {DICOM}')
    return forms


def frame_forms(ranges: list[MediaType]) -> list[Form]:
    """Return the forms of frames that are accepted, most wanted first (PS3.18 §8.7.3.4)."""
    forms: list[Form] = []
    for wanted in ranges:
        multipart = wanted.name in (MULTIPART, "multipart/*", "*/*")
        inner = wanted.parameters.get("type", "*/*" if multipart else wanted.name).lower()
        inner = _OLD_NAMES.get(inner, inner)
        if inner == "*/*":
            # Frames as they are stored cost nothing; a client that says nothing gets the default.
            forms.append(Form(_syntax(wanted, EXPLICIT), multipart, ""))
        elif inner == OCTETS:
            forms.append(Form(_syntax(wanted, EXPLICIT), multipart, OCTETS))
        elif inner.partition("/")[0] in ("image", "video", "application"):
            forms.append(Form(_syntax(wanted, AS_STORED), multipart, inner))
    if not forms:
        raise not_acceptable(f'what there is: {MULTIPART} of frames, type="{OCTETS}" or an image')
    return forms


def _syntax(wanted: MediaType, default: str) -> str:
    syntax = wanted.parameters.get("transfer-syntax", default)
    if syntax != AS_STORED and syntax_of(syntax) is None:
        # It is one more thing that nobody can be given; other forms may still do.
        return "unknown"
    return syntax
