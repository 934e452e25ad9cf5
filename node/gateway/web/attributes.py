"""The few attributes of an instance that searches need: a positive list, read once at intake.

They are identifying, stay inside the encrypted index of a study, and leave only to this hospital's
own systems. Text is kept as Unicode, whatever the file's character set; lengths are bounded.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from io import SEEK_END
from typing import Any, BinaryIO

from pydicom.datadict import dictionary_VR

from node.exchange.store.index import ATTRIBUTE_CHARACTERS_MAX
from node.gateway.web.files import (
    DAMAGED,
    open_instance,
)
from node.gateway.web.files import (
    FINDING_TAGS as FINDING_TAGS,
)
from node.gateway.web.files import (
    INSTANCE_TAGS as INSTANCE_TAGS,
)
from node.gateway.web.files import (
    SERIES_TAGS as SERIES_TAGS,
)
from node.gateway.web.files import (
    STUDY_TAGS as STUDY_TAGS,
)

VALUES_MAX, CHARACTERS_MAX = 16, 256

SOP_CLASS, SOP_INSTANCE = 0x00080016, 0x00080018
STUDY_DATE, STUDY_TIME, MODALITY = 0x00080020, 0x00080030, 0x00080060
STUDY_INSTANCE, SERIES_INSTANCE = 0x0020000D, 0x0020000E
SERIES_NUMBER, INSTANCE_NUMBER = 0x00200011, 0x00200013
FRAMES, ROWS = 0x00280008, 0x00280010
# Made from all instances of a study or series (PS3.4 C.3.4).
MODALITIES_IN_STUDY, CLASSES_IN_STUDY = 0x00080061, 0x00080062
STUDY_SERIES, STUDY_INSTANCES, SERIES_INSTANCES = 0x00201206, 0x00201208, 0x00201209

TAGS = STUDY_TAGS | SERIES_TAGS | INSTANCE_TAGS | FINDING_TAGS

Values = tuple[str, ...]
Attributes = Mapping[int, Values]


def read_attributes(stream: BinaryIO) -> tuple[tuple[int, str], ...]:
    """Return the listed attributes of the DICOM file in `stream`, by ascending tag.

    Several values are joined by a backslash. Only the header is read, from the file's start. What
    cannot be made sense of is left out, but for the UIDs of an instance that was accepted. Raises
    `node.gateway.web.files.Failed` for a file that cannot be read.
    """
    size = stream.seek(0, SEEK_END)
    stream.seek(0)
    found: list[tuple[int, str]] = []
    with open_instance(stream, size, deep=False) as opened:
        for tag in sorted(TAGS & opened.header.keys()):
            element = opened.element(tag)
            text = "" if element is None else _text(element)
            if text.strip("\\"):
                found.append((tag, text))
    return tuple(found)


def _text(element: Any) -> str:
    try:
        value = element.value
        values = list(value) if element.VM > 1 else [value]
        texts = ("" if one is None else str(one) for one in values[:VALUES_MAX])
        plain = (text.replace("\\", " ").strip("\0 ")[:CHARACTERS_MAX] for text in texts)
        return "\\".join(plain)[:ATTRIBUTE_CHARACTERS_MAX]
    except DAMAGED:
        return ""


def from_pairs(pairs: Iterable[tuple[int, str]]) -> Attributes:
    """Return the attributes that `read_attributes` gave."""
    return {tag: tuple(text.split("\\")) for tag, text in pairs}


def first(attributes: Attributes, tag: int) -> str:
    """Return the first value of `tag`, or ""."""
    return attributes.get(tag, ("",))[0]


@lru_cache(maxsize=4_096)
def vr_of(tag: int) -> str:
    """Return the value representation of PS3.6, the first if it has several."""
    return str(dictionary_VR(tag))[:2]
