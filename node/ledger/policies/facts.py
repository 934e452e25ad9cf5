"""What a condition may ask about: typed fields, each string with the words that it can take.

A condition never sees an id, a digest or anything about a person: only words from vocabularies,
names of institutions, and bounded numbers.
"""

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

from node.ledger.contracts.vocabulary import (
    CONFIDENTIALITY,
    COUNTRIES,
    MODALITIES,
    PURPOSES,
    REGIONS,
)
from node.ledger.genesis import ROLES
from node.ledger.transaction import INSTITUTION

Type: TypeAlias = Literal["bool", "int", "string"]

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
_FIRST_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0


class Facts(NamedTuple):
    """One request as conditions see it; `request_purpose` is their `request.purpose`.

    Numbers are from 0 to 2**53.
    """

    request_purpose: str  # of vocabulary.PURPOSES
    request_uses: int  # how many the requester asks for
    request_heights: int  # for how long
    request_deidentified: bool
    request_ethics: bool  # names an approval of an ethics committee
    requester_institution: str
    requester_role: str  # of genesis.ROLES
    requester_country: str  # two letters; ZZ is not stated
    study_custodian: str
    study_country: str  # of the custodian
    study_modality: str
    study_region: str
    study_version: int
    study_derived: bool
    study_instance_bucket: int
    study_size_bucket: int
    study_confidentiality: str
    consent_given: bool  # a consent in force permits exactly this
    height: int  # of the decision
    time_ms: int  # of its block, since 1970


def hour(time_ms: int) -> int:
    """Return the hour of the day in UTC, 0 to 23."""
    return time_ms // HOUR_MS % 24


def weekday(time_ms: int) -> int:
    """Return the day of the week in UTC, 0 for Monday to 6."""
    return (time_ms // DAY_MS + _FIRST_WEEKDAY) % 7


@dataclass(frozen=True, slots=True)
class Field:
    """The type of a field and, if it is a string, which strings it can be compared with."""

    type: Type
    words: Set[str] = frozenset()
    form: re.Pattern[str] | None = None  # of the whole string, when there is no list of words
    what: str = ""  # what the words are, for people

    def takes(self, text: str) -> bool:
        """Return whether this field could ever hold `text`."""
        if self.form is not None:
            return self.form.fullmatch(text) is not None
        return text in self.words


_BOOL = Field("bool")
_INT = Field("int")
INSTITUTIONS = Field("string", form=INSTITUTION, what="the name of an institution")
_COUNTRY = Field("string", form=COUNTRIES, what="a country of two capital letters")

FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        "request.purpose": Field("string", PURPOSES, what="a purpose of use"),
        "request.uses": _INT,
        "request.heights": _INT,
        "request.deidentified": _BOOL,
        "request.ethics": _BOOL,
        "requester.institution": INSTITUTIONS,
        "requester.role": Field("string", ROLES, what="a role"),
        "requester.country": _COUNTRY,
        "study.custodian": INSTITUTIONS,
        "study.country": _COUNTRY,
        "study.modality": Field("string", MODALITIES, what="a DICOM modality"),
        "study.region": Field("string", REGIONS, what="a body region"),
        "study.version": _INT,
        "study.derived": _BOOL,
        "study.instance_bucket": _INT,
        "study.size_bucket": _INT,
        "study.confidentiality": Field("string", CONFIDENTIALITY, what="a confidentiality"),
        "consent.given": _BOOL,
        "height": _INT,
        "block.hour": _INT,
        "block.weekday": _INT,
    }
)


def variable(field: str) -> str:
    """Return the variable of the evaluated expression that holds a field of FIELDS.

    Variables are flat, because making nested ones takes the evaluator three times as long.
    """
    return field.replace(".", "_")


def values(facts: Facts, fields: Set[str]) -> dict[str, object]:
    """Return what the variables of `fields` hold."""
    found = {}
    for field in fields:
        name, read = _READERS[field]
        found[name] = read(facts)
    return found


def _reader(field: str) -> Callable[[Facts], object]:
    if field == "block.hour":
        return lambda facts: hour(facts.time_ms)
    if field == "block.weekday":
        return lambda facts: weekday(facts.time_ms)
    return attrgetter(variable(field))


_READERS = MappingProxyType({field: (variable(field), _reader(field)) for field in FIELDS})
