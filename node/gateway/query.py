"""What a DICOM query or retrieval asks for, and what is held of it (PS3.4 C.1 to C.4).

`read_identifier` and `response` speak DICOM data sets and run where those are parsed; `find` and
`select` run beside the holdings and see plain tags and texts only. Keys are matched by the rules of
`web/matching.py`, those of PS3.4 C.2.2.2: single value, list of UIDs, universal, wildcard, range.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from node.gateway.holdings import HeldInstance, HeldStudy, Holdings, StudyRow
from node.gateway.web import attributes as tags
from node.gateway.web import matching
from node.gateway.web.attributes import Attributes, Values, first, vr_of
from node.gateway.web.errors import Problem
from node.gateway.web.files import DAMAGED
from node.gateway.web.matching import Query

CHARACTER_SET, QUERY_LEVEL, RETRIEVE_TITLE, AVAILABILITY = (
    0x00080005, 0x00080052, 0x00080054, 0x00080056,
)  # fmt: skip
PATIENT_ID = 0x00100020
ELEMENTS_MAX, VALUE_CHARACTERS_MAX = 256, 1 << 20
SUBOPERATIONS_MAX = 65_535  # their counts are US (PS3.7 E.1)
# No keys of a search: they say how it is to be read (PS3.4 C.2.2.2).
_NO_KEYS = frozenset({CHARACTER_SET, QUERY_LEVEL, 0x00080201})
_UID, _UID_CHARACTERS_MAX = re.compile(r"[0-9]+(?:\.[0-9]+)*"), 64
_NUMBERS = frozenset({"US", "UL", "SS", "SL"})


class InvalidIdentifier(ValueError):
    """What is asked cannot be understood. The sentence names no value."""


class TooBroad(Exception):
    """More fits than may be returned or looked at."""


class Model(Enum):
    """The information model of a query (PS3.4 C.3)."""

    PATIENT_ROOT = 1
    STUDY_ROOT = 2


class Level(Enum):
    """What one result is."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"


# The level whose attributes QIDO-RS returns with it; patients are made from studies.
_MATCHED_AT = {
    Level.PATIENT: matching.Level.STUDY,
    Level.STUDY: matching.Level.STUDY,
    Level.SERIES: matching.Level.SERIES,
    Level.IMAGE: matching.Level.INSTANCE,
}
_UNIQUE = {
    Level.PATIENT: PATIENT_ID,
    Level.STUDY: tags.STUDY_INSTANCE,
    Level.SERIES: tags.SERIES_INSTANCE,
    Level.IMAGE: tags.SOP_INSTANCE,
}
_PATIENT_TAGS = frozenset(tag for tag in tags.STUDY_TAGS if tag >> 16 == 0x0010)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one query may return, and look at."""

    results_max: int = 2_000
    studies_examined_max: int = 5_000  # opened for series or images


@dataclass(frozen=True, slots=True)
class Asked:
    """An identifier, read."""

    level: Level
    keys: tuple[tuple[int, str], ...] = field(repr=False)  # those with a value
    wanted: frozenset[int]
    is_partial: bool  # a key with a value is not matched here: the results may be too many


def read_identifier(identifier: Dataset, model: Model) -> Asked:
    """Return what a C-FIND, C-MOVE or C-GET asks for. Raises `InvalidIdentifier`."""
    if len(identifier) > ELEMENTS_MAX:
        raise InvalidIdentifier(f"more than {ELEMENTS_MAX} elements")
    level = _level(identifier, model)
    known = _known(level)
    wanted = frozenset(map(int, identifier.keys()))  # iterating would decode every value
    keys, is_partial = [], False
    for tag in sorted(wanted - _NO_KEYS):
        text = _text(identifier, tag)
        if tag in known and text:
            keys.append((tag, text))
        elif text and tag not in (RETRIEVE_TITLE, AVAILABILITY):
            is_partial = True
    return Asked(level, tuple(keys), wanted, is_partial)


def response(asked: Asked, found: Attributes, ae_title: str) -> Dataset:
    """Return one match as the identifier of a C-FIND response (PS3.4 C.4.1.1.3.2)."""
    answer = Dataset()
    answer.SpecificCharacterSet = "ISO_IR 192"
    answer.QueryRetrieveLevel = asked.level.value
    answer.RetrieveAETitle = ae_title
    answer.InstanceAvailability = "ONLINE"
    known = _known(asked.level)
    for tag in (asked.wanted | {_UNIQUE[asked.level]}) & known:
        answer[tag] = _element(tag, found.get(tag, ()))
    return answer


@dataclass(frozen=True, slots=True)
class Search:
    """Keys, read: lists of UIDs, which may be long, apart from the others."""

    query: Query
    uids: Mapping[int, frozenset[str]] = field(repr=False)

    @property
    def level(self) -> matching.Level:
        """The level of the results."""
        return self.query.level

    def fits(self, level: matching.Level, attributes: Attributes) -> bool:
        """Whether `attributes` answer the keys of one level."""
        return matching.matches(self.query.keys[level], attributes) and all(
            not uids.isdisjoint(attributes.get(tag, ()))
            for tag, uids in self.uids.items()
            if tag in matching.OF_LEVEL[level]
        )


def read_keys(level: Level, keys: Iterable[tuple[int, str]]) -> Search:
    """Return the search for `keys`. Raises `InvalidIdentifier`."""
    uids, others = {}, []
    for tag, text in keys:
        if tag in _known(level) and vr_of(tag) == "UI":
            uids[tag] = _uids(tag, text)
        else:
            others.append((f"{tag:08X}", text))
    try:
        return Search(matching.read_query(_MATCHED_AT[level], {}, others, 1), uids)
    except Problem as problem:
        raise InvalidIdentifier(problem.sentence) from None


def _uids(tag: int, text: str) -> frozenset[str]:
    uids = frozenset(matching.split_list(text))
    if len(uids) > SUBOPERATIONS_MAX or not all(is_uid(uid) for uid in uids):
        raise InvalidIdentifier(f"the value of {tag:08X} is not a UID or a list of UIDs")
    return uids


def find(
    level: Level, keys: Iterable[tuple[int, str]], holdings: Holdings, bounds: Bounds
) -> Iterator[Attributes]:
    """Yield what answers a query. Raises `InvalidIdentifier`, and `TooBroad` once `bounds` is
    reached, after the matches before it. Blocking."""
    query = read_keys(level, keys)
    rows = _patients(query, holdings) if level is Level.PATIENT else _rows(query, holdings, bounds)
    for count, found in enumerate(rows):
        if count >= bounds.results_max:
            raise TooBroad(f"more than {bounds.results_max} fit; ask more narrowly")
        yield found


def select(level: Level, keys: Iterable[tuple[int, str]], holdings: Holdings) -> list[HeldInstance]:
    """Return the instances that a retrieval asks for. Raises `InvalidIdentifier`, `TooBroad`.

    The level's unique key must be given; only unique keys may be (PS3.4 C.4.2.2.1, C.4.3.2.1).
    """
    given = dict(keys)
    if not given.get(_UNIQUE[level]):
        raise InvalidIdentifier(f"no unique key of the level {level.value}")
    if not given.keys() <= set(_UNIQUE.values()) or any("*" in text for text in given.values()):
        raise InvalidIdentifier("keys other than UIDs and the patient's ID")
    query = read_keys(Level.IMAGE, given.items())
    bounds = Bounds(SUBOPERATIONS_MAX)
    chosen = []
    for study in _studies(query, holdings, bounds):
        for _, instance, whole in _instances(query, study):
            if query.fits(matching.Level.INSTANCE, whole):
                chosen.append(instance)
        if len(chosen) > SUBOPERATIONS_MAX:
            raise TooBroad(f"more than {SUBOPERATIONS_MAX} instances")
    return chosen


def _rows(query: Search, holdings: Holdings, bounds: Bounds) -> Iterator[Attributes]:
    if query.level is matching.Level.STUDY:
        yield from (row.attributes for row in _study_rows(query, holdings))
        return
    for study in _studies(query, holdings, bounds):
        if query.level is matching.Level.SERIES:
            yield from (series for _, series in _series(query, study))
            continue
        for _, _, whole in _instances(query, study):
            if query.fits(matching.Level.INSTANCE, whole):
                yield whole


def _patients(query: Search, holdings: Holdings) -> Iterator[Attributes]:
    seen: set[tuple[str, str]] = set()
    for row in _study_rows(query, holdings):
        patient = first(row.attributes, PATIENT_ID), first(row.attributes, 0x00100021)
        if patient not in seen:
            seen.add(patient)
            yield {tag: row.attributes[tag] for tag in _PATIENT_TAGS & row.attributes.keys()}


def _study_rows(query: Search, holdings: Holdings) -> Iterator[StudyRow]:
    uids = query.uids.get(tags.STUDY_INSTANCE, ())
    rows: Iterable[StudyRow]
    if uids:
        studies = (holdings.study(uid) for uid in sorted(uids))
        rows = [StudyRow(study.uid, study.attributes) for study in studies if study is not None]
    else:
        rows = holdings.studies()
    return (row for row in rows if query.fits(matching.Level.STUDY, row.attributes))


def _studies(query: Search, holdings: Holdings, bounds: Bounds) -> Iterator[HeldStudy]:
    for count, row in enumerate(_study_rows(query, holdings)):
        if count >= bounds.studies_examined_max:
            raise TooBroad("too many studies fit; add a key of the study, as Study Instance UID")
        study = holdings.study(row.uid)
        if study is not None:
            yield study


def _series(query: Search, study: HeldStudy) -> Iterator[tuple[str, Attributes]]:
    for uid in study.series:
        series = {**study.attributes, **study.series_attributes(uid)}
        if query.fits(matching.Level.SERIES, series):
            yield uid, series


def _instances(
    query: Search, study: HeldStudy
) -> Iterator[tuple[str, HeldInstance, Mapping[int, Values]]]:
    for uid, series in _series(query, study):
        for instance in study.series[uid]:
            yield uid, instance, {**series, **instance.attributes}


def _known(level: Level) -> frozenset[int]:
    if level is Level.PATIENT:
        return _PATIENT_TAGS
    levels = (each for each in matching.Level if each <= _MATCHED_AT[level])
    return frozenset().union(*(matching.OF_LEVEL[each] for each in levels))


def _level(identifier: Dataset, model: Model) -> Level:
    try:
        level = Level(_text(identifier, QUERY_LEVEL))
    except ValueError:
        raise InvalidIdentifier("no Query/Retrieve Level that we know") from None
    if level is Level.PATIENT and model is Model.STUDY_ROOT:
        raise InvalidIdentifier("the study root model has no patient level")
    return level


def _text(identifier: Dataset, tag: int) -> str:
    """Return the values of an element, joined by backslashes. Raises `InvalidIdentifier`."""
    try:
        value: Any = identifier[tag].value if tag in identifier else ""
        if value is None or isinstance(value, bytes):
            return "" if not value else "?"
        many = isinstance(value, list | MultiValue) and not isinstance(value, str)
        if many and identifier[tag].VR == "SQ":
            return "?" if any(len(item) for item in value) else ""
        text = "\\".join(str(one) for one in value) if many else str(value)
    except DAMAGED:
        raise InvalidIdentifier(f"the value of {tag:08X} cannot be read") from None
    if len(text) > VALUE_CHARACTERS_MAX:
        raise InvalidIdentifier(f"the value of {tag:08X} is too long")
    return text.strip("\0 ")


def is_uid(text: str) -> bool:
    """Whether `text` is a UID (PS3.5 §9.1)."""
    return len(text) <= _UID_CHARACTERS_MAX and _UID.fullmatch(text) is not None


def _element(tag: int, values: Values) -> DataElement:
    vr = vr_of(tag)
    texts = [text for text in values if text]
    try:
        value: Sequence[Any] = [int(text) for text in texts] if vr in _NUMBERS else texts
        return DataElement(tag, vr, value[0] if len(value) == 1 else list(value) or None)
    except DAMAGED:
        return DataElement(tag, vr, None)  # what stands in the file is no value of this kind
