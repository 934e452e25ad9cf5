"""One form per value: trimmed Unicode text, little-endian numbers, or bytes.

The dictionary's value representation decides, not the one that was written, because conversion
between implicit and explicit form loses the latter; it counts only for elements that the
dictionary does not know.
"""

import re
from collections.abc import Sequence

from pydicom.charset import CODES_TO_ENCODINGS, python_encoding

from node.imaging.elements import dictionary_vr

TEXT, NUMBER, BYTES, SEQUENCE, RAW = b"t", b"n", b"b", b"s", b"r"

_PLAIN_TEXT = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"})
_LOCAL_TEXT = frozenset({"LO", "PN", "SH", "UC"})  # in the data set's character set
_PARAGRAPHS = frozenset({"LT", "ST", "UT", "UR"})  # one value; "\\" is a character (PS3.5 §6.2)
_WORD_BYTES = {
    **dict.fromkeys(("AT", "OW", "SS", "US"), 2),
    **dict.fromkeys(("FL", "OF", "OL", "SL", "UL"), 4),
    **dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), 8),
}
_NUMBERS = frozenset({"AT", "FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"})
_PRINTABLE = bytes(range(0x20, 0x7F))
_PADDING = " \0"
_RESETS = re.compile(rb"[\\^=\t\n\f\r]")  # where code extensions end (PS3.5 §6.1.2.5.3)
_DEFAULT = ("latin_1",)

Charset = Sequence[str]


def kind_of(tag: int, vr: str) -> tuple[bytes, str]:
    """Return the form in which the element is compared and the representation that decides it."""
    known = dictionary_vr(tag)
    decisive = vr if known == "UN" else known
    if decisive in _PLAIN_TEXT or decisive in _LOCAL_TEXT or decisive in _PARAGRAPHS:
        return TEXT, decisive
    return (NUMBER if decisive in _NUMBERS else BYTES), decisive


def little_endian(vr: str, data: bytes) -> bytes:
    """Return big-endian `data` of written representation `vr` in little-endian order."""
    size = _WORD_BYTES.get(vr, 1)
    return swap_words(data, size) if len(data) % size == 0 else data


def swap_words(data: bytes, size: int) -> bytes:
    """Return `data`, whose length is a multiple of `size`, with every word's bytes turned round."""
    if size == 1:
        return data
    swapped = bytearray(len(data))
    for position in range(size):
        swapped[position::size] = data[size - 1 - position :: size]
    return bytes(swapped)


def word_bytes(vr: str) -> int:
    """Return the bytes that byte order turns round in a value of representation `vr`."""
    return _WORD_BYTES.get(vr, 1)


def normalise_text(vr: str, data: bytes, charset: Charset) -> str | None:
    """Return the text of `data`, each value trimmed; None if its character set does not fit it.

    Insignificant are padding at the end (PS3.5 §6.2) and, where several values may stand, spaces
    before one.
    """
    text = _decode(data, _DEFAULT if vr in _PLAIN_TEXT or vr == "UR" else charset)
    if text is None:
        return None
    if vr in _PARAGRAPHS:
        return text.rstrip(_PADDING)
    if vr == "PN":
        return "\\".join(map(_person_name, text.split("\\")))
    return "\\".join(value.strip(_PADDING) for value in text.split("\\"))


def _person_name(name: str) -> str:
    """Return `name` without the delimiters that may be left out at the end (PS3.5 §6.2.1.1)."""
    groups = (group.strip(_PADDING).rstrip("^" + _PADDING) for group in name.split("="))
    return "=".join(groups).rstrip("=")


def trim_bytes(data: bytes) -> bytes:
    """Return `data` without the byte that pads an odd length (PS3.5 §6.2, OB and UN)."""
    return data[:-1] if len(data) % 2 == 0 and data.endswith(b"\0") else data


def trim_private(data: bytes) -> bytes:
    """Return a private value raw, but printable text of three characters or more trimmed.

    Writers pad text anew even where they do not know the element. What is shorter may be a number
    and is left alone, as is everything else: its representation cannot be relied on, since it is
    lost in implicit form.
    """
    text = data.strip(b"\0 ")
    if len(text) < 3 or text.translate(None, _PRINTABLE):
        return data
    return b"\\".join(value.strip(b" ") for value in text.split(b"\\"))


def charset_of(data: bytes) -> Charset:
    """Return the codecs for the value of Specific Character Set (PS3.3 C.12.1.1.2).

    A name that DICOM does not define becomes a codec that decodes nothing, so that text under it
    is compared byte by byte.
    """
    terms = [term.strip(_PADDING) for term in data.decode("latin_1").split("\\")]
    return [python_encoding.get(term, "undefined") for term in terms]


def _decode(data: bytes, charset: Charset) -> str | None:
    try:
        if b"\x1b" in data:
            return "".join(_decode_part(part, charset) for part in re.split(b"(?=\x1b)", data))
        return data.decode(charset[0])
    except (UnicodeError, LookupError):
        return None


def _decode_part(part: bytes, charset: Charset) -> str:
    """Return the text of `part`, which may begin with one escape sequence (PS3.5 §6.1.2.5.2)."""
    if not part.startswith(b"\x1b"):
        return part.decode(charset[0])
    length = 4 if part.startswith((b"\x1b$(", b"\x1b$)")) else 3
    codec = CODES_TO_ENCODINGS[part[:length]]
    if codec.startswith("iso2022"):
        return part.decode(codec)  # these read the escape sequence themselves
    reset = _RESETS.search(part, length)
    end = reset.start() if reset else len(part)
    return part[length:end].decode(codec) + part[end:].decode(charset[0])
