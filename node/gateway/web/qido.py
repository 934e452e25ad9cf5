"""Search (QIDO-RS, PS3.18 §10.6): from a query to results in DICOM JSON. Blocking, no HTTP."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from node.gateway.holdings import HeldStudy, Holdings, StudyRow
from node.gateway.web.attributes import Attributes, Values, vr_of
from node.gateway.web.errors import Problem
from node.gateway.web.matching import OF_LEVEL, OPTIONAL, Level, Query, matches

RETRIEVE_URL, AVAILABILITY, CHARACTER_SET = 0x00081190, 0x00080056, 0x00080005
_GROUP_OF_PATIENT = 0x0010
_NUMBERS = frozenset({"IS", "US", "UL", "SS", "SL"})

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Results:
    """One page of a search."""

    rows: list[Json]
    has_more: bool


@dataclass(frozen=True, slots=True)
class _Found:
    path: str  # below the server's root
    attributes: Attributes


def search(query: Query, holdings: Holdings, root: str, examined_max: int, local: bool) -> Results:
    """Return the page that is asked for; `root` is the server's URL.

    Unless `local`, nothing of group 0010 is returned, and nothing can be searched by it: who learns
    which studies bear a name has learnt the name. Raises `Problem`.
    """
    if not local and any(key.tag >> 16 == _GROUP_OF_PATIENT for key in _keys(query)):
        raise Problem(403, "not_local", "attributes of the patient cannot be searched from outside")
    found = _find(query, holdings, examined_max)
    page = list(islice(found, query.offset, query.offset + query.limit + 1))
    rows = [_result(query, one, root, local) for one in page[: query.limit]]
    return Results(rows, len(page) > query.limit)


def _keys(query: Query) -> Iterator[Any]:
    for keys in query.keys.values():
        yield from keys


def _find(query: Query, holdings: Holdings, examined_max: int) -> Iterator[_Found]:
    for number, row in enumerate(_studies(query, holdings)):
        if query.level is Level.STUDY:
            yield _Found(f"/studies/{row.uid}", row.attributes)
            continue
        if number >= examined_max:
            sentence = f"more than {examined_max} studies fit; add a key of the study, as StudyDate"
            raise Problem(413, "too_broad", sentence)
        study = holdings.study(row.uid)
        if study is not None:
            yield from _inside(query, study)


def _studies(query: Query, holdings: Holdings) -> Iterator[StudyRow]:
    uids = query.study_uids
    rows: Iterable[StudyRow]
    if len(uids) == 1:
        study = holdings.study(uids[0])
        rows = [StudyRow(study.uid, study.attributes)] if study is not None else []
    else:
        rows = holdings.studies()
    return (row for row in rows if matches(query.keys[Level.STUDY], row.attributes))


def _inside(query: Query, study: HeldStudy) -> Iterator[_Found]:
    for uid, instances in study.series.items():
        series = {**study.attributes, **study.series_attributes(uid)}
        if not matches(query.keys[Level.SERIES], series):
            continue
        path = f"/studies/{study.uid}/series/{uid}"
        if query.level is Level.SERIES:
            yield _Found(path, series)
            continue
        for instance in instances:
            whole = {**series, **instance.attributes}
            if matches(query.keys[Level.INSTANCE], whole):
                yield _Found(f"{path}/instances/{instance.sop_uid}", whole)


def _result(query: Query, found: _Found, root: str, local: bool) -> Json:
    wanted = set(query.fields)
    for level in Level:
        if level <= query.level:
            wanted |= OF_LEVEL[level] - OPTIONAL
    if not local:
        wanted = {tag for tag in wanted if tag >> 16 != _GROUP_OF_PATIENT}
    row = {
        CHARACTER_SET: {"vr": "CS", "Value": ["ISO_IR 192"]},
        AVAILABILITY: {"vr": "CS", "Value": ["ONLINE"]},
        RETRIEVE_URL: {"vr": "UR", "Value": [root + found.path]},
    }
    for tag in wanted & found.attributes.keys() & _visible(query.level):
        row[tag] = to_json(tag, found.attributes[tag])
    for tag in OF_LEVEL[query.level] - OPTIONAL - row.keys():
        if tag in wanted:
            row[tag] = {"vr": vr_of(tag)}  # the required ones are there even when empty
    return {f"{tag:08X}": row[tag] for tag in sorted(row)}


def _visible(level: Level) -> frozenset[int]:
    return frozenset().union(*(OF_LEVEL[each] for each in Level if each <= level))


def to_json(tag: int, values: Values) -> Json:
    """Return one attribute in the DICOM JSON model (PS3.18 annex F)."""
    vr = vr_of(tag)
    if not any(values):
        return {"vr": vr}
    return {"vr": vr, "Value": [_value(vr, text) for text in values]}


def _value(vr: str, text: str) -> Any:
    if not text:
        return None
    if vr == "PN":
        groups = zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False)
        return {name: group for name, group in groups if group}
    if vr in _NUMBERS:
        try:
            return int(text)
        except ValueError:
            return None
    return text
