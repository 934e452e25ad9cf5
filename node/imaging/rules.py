"""What the core digest K leaves out and why, as data. This file is the definition.

K covers every public element (even group) of the data set and of all its items except those listed
here. An element with an empty value counts as absent, because archives add and drop empty type 2
elements. Changing anything here makes another `RULES_VERSION`, which is part of every leaf, so that
two hospitals never compare digests made by different rules.

How a value is normalised is in `values.py`, how pixels are in `pixels.py`.
"""

from enum import Enum
from functools import lru_cache
from typing import NamedTuple

RULES_VERSION = 1


class Rule(NamedTuple):
    """Elements `first` to `last`, both included, are no part of K."""

    first: int
    last: int
    why: str
    source: str


# How the bytes are written, not what they say. Compared nowhere but in F.
ENCODING_RULES = (
    Rule(0x00000000, 0x0000FFFF, "command set, belongs to a message", "PS3.7 §6.3"),
    Rule(0x00020000, 0x0002FFFF, "file meta information, rewritten by every hop", "PS3.10 §7.1"),
    Rule(0x00080001, 0x00080001, "length to end, retired", "PS3.6 §6"),
    Rule(0x00080005, 0x00080005, "character set; text is compared as Unicode", "PS3.3 C.12.1.1.2"),
    Rule(0x00080053, 0x00080056, "where and how an archive offers the object", "PS3.4 C.4.1.1.3"),
    Rule(0x00280006, 0x00280006, "planar configuration; samples are compared", "PS3.3 C.7.6.3.1.3"),
    Rule(0x00880130, 0x00880140, "media that a copy was written to", "PS3.3 C.12.1.1"),
    Rule(0x7FE00001, 0x7FE00003, "offset tables of compressed frames", "PS3.5 A.4"),
    Rule(0x7FE00008, 0x7FE00010, "pixel data, compared as P", "PS3.5 §8"),
    Rule(0xFFFCFFFC, 0xFFFCFFFC, "trailing padding", "PS3.10 §7.2"),
)

# What import at another hospital rewrites (IHE RAD TF-2 §4.59, import reconciliation; PS3.4
# Annex KK, coercion). Kept apart, so that `verify` can say that it changed.
IMPORT_RULES = (
    Rule(0x00080015, 0x00080015, "when an import coerced the object", "PS3.3 C.12.1"),
    Rule(0x00080050, 0x00080051, "accession number and its issuer", "RAD TF-2 §4.59"),
    Rule(0x00080080, 0x00080082, "institution", "PS3.3 C.7.5.1"),
    Rule(0x00080090, 0x00080096, "referring physician", "RAD TF-2 §4.59"),
    Rule(0x0008009C, 0x0008009D, "consulting physician of the visit", "PS3.3 C.7.2.1"),
    Rule(0x00081030, 0x00081030, "study description", "RAD TF-2 §4.59"),
    Rule(0x00081032, 0x00081032, "procedure code", "RAD TF-2 §4.59"),
    Rule(0x0008103E, 0x0008103F, "series description", "PS3.3 C.7.3.1"),
    Rule(0x00081040, 0x00081041, "department of the institution", "PS3.3 C.7.5.1"),
    Rule(0x00081048, 0x0008104F, "physicians of record", "PS3.3 C.7.2.1"),
    Rule(0x00081060, 0x00081062, "reading physicians", "PS3.3 C.7.2.1"),
    Rule(0x00081080, 0x00081084, "admitting diagnoses of the visit", "PS3.3 C.7.2.2"),
    Rule(0x00081110, 0x00081111, "referenced study and procedure step", "RAD TF-2 §4.59"),
    Rule(0x00081120, 0x00081125, "referenced patient and visit", "PS3.3 C.7.1.1"),
    Rule(0x00100000, 0x0010FFFF, "the patient, as this hospital knows them", "PS3.3 C.7.1"),
    Rule(0x0018A001, 0x0018A001, "equipment that an import went through", "PS3.3 C.12.1.1.5"),
    Rule(0x00200010, 0x00200010, "study id", "RAD TF-2 §4.59"),
    Rule(0x00321000, 0x0032FFFF, "the order", "PS3.3 C.7.2"),
    Rule(0x00380000, 0x0038FFFF, "the visit", "PS3.3 C.7.2.2"),
    Rule(0x00400001, 0x00400012, "scheduled procedure step", "PS3.3 C.7.3.1"),
    Rule(0x00400253, 0x00400254, "id and description of the performed step", "PS3.3 C.7.3.1"),
    Rule(0x00400275, 0x00400275, "the request that the image answers", "PS3.3 C.7.3.1"),
    Rule(0x00400280, 0x00400280, "comments on the performed procedure step", "PS3.3 C.7.3.1"),
    Rule(0x00401001, 0x00401400, "requested procedure", "PS3.3 C.7.3.1"),
    Rule(0x00402001, 0x00402400, "imaging service request", "PS3.3 C.7.2"),
    Rule(0x04000550, 0x04000565, "original attributes of a coercion", "PS3.3 C.12.1.1.9"),
)

# Transforms that belong to a codec; its output is RGB again (PS3.5 §8.2.4; PS3.3 C.7.6.3.1.2).
PHOTOMETRIC_OF_CODECS = {"YBR_RCT": "RGB", "YBR_ICT": "RGB"}
PHOTOMETRIC_INTERPRETATION = 0x00280004


class Part(Enum):
    """Which digest an element of a data set is part of."""

    CORE = "core"  # K
    PRIVATE = "private"  # X: the group is odd (PS3.5 §7.8)
    IMPORT = "import"  # compared for the words of `verify` only
    ENCODING = "encoding"  # F only


@lru_cache(maxsize=65_536)
def part_of(tag: int) -> Part:
    """Return the part that the element with `tag` (group << 16 | element) belongs to."""
    if tag & 0x10000:
        return Part.PRIVATE
    if not tag & 0xFFFF or _within(ENCODING_RULES, tag):  # element 0 is a group length, PS3.5 §7.2
        return Part.ENCODING
    return Part.IMPORT if _within(IMPORT_RULES, tag) else Part.CORE


def _within(rules: tuple[Rule, ...], tag: int) -> bool:
    return any(rule.first <= tag <= rule.last for rule in rules)
