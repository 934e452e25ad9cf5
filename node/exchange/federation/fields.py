"""What may be asked about a study and told of it: a positive list of fields, each with its form.

Nothing here is a name, an identifier, a UID or a day. Every value has a form that keeps free text
out; what a file says in another form is left away where it is read (`node.gateway.facts`).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import TypeAlias

VALUE_CHARACTERS_MAX = 64
VALUES_MAX = 48  # of one field of one study
YEAR_FIRST, YEAR_LAST = 1900, 2199
# The last band has no upper end, as 45 CFR 164.514(b)(2)(i)(C) wants for ages over 89.
AGE_BANDS = (
    "0-1", "2-11", "12-17", "18-29", "30-39", "40-49", "50-59", "60-69", "70-79", "80-89", "90+",
)  # fmt: skip
_BAND_ENDS = (1, 11, 17, 29, 39, 49, 59, 69, 79, 89)


class Field(Enum):
    """One thing that a catalogue knows of a study; the values are the words of config and wire."""

    MODALITY = "modality"  # DICOM's words, of all its series
    REGION = "region"  # coarse, as on the chain
    YEAR = "year"  # of the study
    MONTH = "month"  # of the study, as 2024-03
    AGE = "age"  # a band, at the time of the study
    SEX = "sex"  # F, M or O
    BODY_PART = "body_part"  # a defined term of DICOM PS3.16 Annex L
    WORD = "word"  # words of its descriptions that stand in a list
    MANUFACTURER = "manufacturer"  # of the equipment
    MODEL = "model"  # of the equipment; never its serial number


FORMS: Mapping[Field, re.Pattern[str]] = MappingProxyType(
    {
        Field.MODALITY: re.compile(r"[A-Z0-9]{1,16}"),
        Field.REGION: re.compile(r"[a-z_]{1,16}"),
        Field.YEAR: re.compile(r"(?:19|20|21)[0-9]{2}"),
        Field.MONTH: re.compile(r"(?:19|20|21)[0-9]{2}-(?:0[1-9]|1[0-2])"),
        Field.AGE: re.compile("|".join(re.escape(band) for band in AGE_BANDS)),
        Field.SEX: re.compile(r"[FMO]"),
        Field.BODY_PART: re.compile(r"[A-Z]{1,16}"),
        Field.WORD: re.compile(r"[^\W\d_]{2,32}"),
        # Six digits in a row are a serial or a record number.
        Field.MANUFACTURER: re.compile(r"(?!.*[0-9]{6})[A-Za-z0-9][A-Za-z0-9 .,&+()/_-]{0,63}"),
        Field.MODEL: re.compile(r"(?!.*[0-9]{6})[A-Za-z0-9][A-Za-z0-9 .,&+()/_-]{0,63}"),
    }
)
# A count by one of these would name what few have.
UNCOUNTED = frozenset({Field.WORD})

Values: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a catalogue knows of a study: values by field, ascending, each once."""

    values: Mapping[Field, Values]

    def get(self, field: Field) -> Values:
        """Return the values of a field, none if nothing is known."""
        return self.values.get(field, ())


def make_facts(found: Mapping[Field, Iterable[str]]) -> Facts:
    """Return facts of what `found` has in the right form; the rest is left away."""
    kept = {}
    for field in Field:
        fitting = {value for value in found.get(field, ()) if fits(field, value)}
        if fitting:
            kept[field] = _shared(tuple(sorted(fitting)[:VALUES_MAX]))
    return Facts(MappingProxyType(kept))


@lru_cache(maxsize=4_096)
def _shared(values: Values) -> Values:
    """Return one object for equal values: most studies of a hospital have the same ones."""
    return values


def fits(field: Field, value: object) -> bool:
    """Return whether `value` has the form of the field's values."""
    return (
        type(value) is str
        and len(value) <= VALUE_CHARACTERS_MAX
        and FORMS[field].fullmatch(value) is not None
    )


def age_band(years: int) -> str:
    """Return the band of an age in whole years. Raises ValueError below 0."""
    if years < 0:
        raise ValueError("an age is not negative")
    for end, band in zip(_BAND_ENDS, AGE_BANDS, strict=False):
        if years <= end:
            return band
    return AGE_BANDS[-1]
