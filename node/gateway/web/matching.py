"""What a search asks for, and whether attributes answer it (PS3.4 C.2.2.2; PS3.18 §8.3.4). Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from pydicom.datadict import tag_for_keyword

from node.gateway.web import attributes as tags
from node.gateway.web.attributes import Attributes, Values, vr_of
from node.gateway.web.errors import Problem

KEYS_MAX, TEXT_MAX, NUMBER_MAX = 32, 1_024, 10**9
_HEX = re.compile(r"[0-9A-Fa-f]{8}")
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_SPANS = {"DA": re.compile(r"[0-9]{4,8}"), "TM": re.compile(r"[0-9]{2,6}(?:\.[0-9]{1,6})?")}
_NO_WILDCARD = frozenset({"DA", "TM", "DT", "UI", "IS", "US", "UL", "DS"})


class Level(IntEnum):
    """What a search returns one result of."""

    STUDY = 0
    SERIES = 1
    INSTANCE = 2


STUDY_MADE = frozenset(
    {tags.MODALITIES_IN_STUDY, tags.CLASSES_IN_STUDY, tags.STUDY_SERIES, tags.STUDY_INSTANCES}
)
OF_LEVEL = {
    Level.STUDY: tags.STUDY_TAGS | STUDY_MADE,
    Level.SERIES: tags.SERIES_TAGS | {tags.SERIES_INSTANCES},
    Level.INSTANCE: tags.INSTANCE_TAGS,
}
# Returned only when `includefield` names them or says "all".
OPTIONAL = frozenset(
    {0x00081030, 0x00100021, 0x00200060, 0x00180015, tags.CLASSES_IN_STUDY}
    | {0x00080021, 0x00080031, 0x00080023, 0x00080033, 0x0040A491, 0x0040A493}
)


class Key(NamedTuple):
    """One attribute to match, and the value as it was asked."""

    tag: int
    value: str


@dataclass(frozen=True, slots=True)
class Query:
    """A search. `keys` are split by the level at which they are decided."""

    level: Level
    keys: dict[Level, tuple[Key, ...]]
    fields: frozenset[int]
    limit: int
    offset: int
    is_fuzzy: bool  # asked for; only literal matching is done

    @property
    def study_uids(self) -> list[str]:
        """The Study Instance UIDs that are asked for; empty if any will do."""
        for key in self.keys[Level.STUDY]:
            if key.tag == tags.STUDY_INSTANCE:
                return split_list(key.value)
        return []


def read_query(
    level: Level, fixed: Mapping[int, str], parameters: Iterable[tuple[str, str]], limit_max: int
) -> Query:
    """Return the search that a URL asks for; `fixed` are keys out of its path.

    Raises `Problem` 400 for whatever is not understood: to leave a condition out would return more
    than was asked.
    """
    found = dict(fixed)
    fields: set[int] = set()
    options: dict[str, str] = {}
    for name, value in parameters:
        if name == "includefield":
            fields |= _fields(value)
        elif name in ("limit", "offset", "fuzzymatching"):
            if name in options:
                raise _bad(f"{name} stands twice")
            options[name] = value
        else:
            tag = _tag(name)
            if tag in found:
                raise _bad(f"{_shown(name)} stands twice, or in the path too")
            found[tag] = value
    if len(found) > KEYS_MAX:
        raise _bad(f"more than {KEYS_MAX} keys")
    return Query(
        level,
        _by_level(level, found),
        frozenset(fields),
        min(_number(options, "limit", limit_max), limit_max),
        _number(options, "offset", 0),
        options.get("fuzzymatching", "false").lower() == "true",
    )


def _by_level(level: Level, found: Mapping[int, str]) -> dict[Level, tuple[Key, ...]]:
    keys: dict[Level, list[Key]] = {each: [] for each in Level}
    for tag, value in found.items():
        own = next(each for each in Level if tag in OF_LEVEL[each])
        if own > level:
            raise _bad(f"{tag:08X} describes a lower level than this search returns")
        _check_value(tag, value)
        if value.strip():
            keys[own].append(Key(tag, value.strip()))
    return {each: tuple(some) for each, some in keys.items()}


def _tag(name: str) -> int:
    tag = int(name, 16) if _HEX.fullmatch(name) else tag_for_keyword(name)
    if tag is None:
        raise _bad(f"{_shown(name)} is no keyword or tag of DICOM, and no option of a search")
    if not any(tag in some for some in OF_LEVEL.values()):
        raise _bad(f"{_shown(name)} cannot be searched by here")
    return tag


def _fields(text: str) -> set[int]:
    if text == "all":
        return set().union(*OF_LEVEL.values())
    found: set[int] = set()
    for name in filter(None, text.split(",")):
        tag = int(name, 16) if _HEX.fullmatch(name) else tag_for_keyword(name)
        if tag is None:
            raise _bad(f"includefield={_shown(name)} is no keyword or tag of DICOM")
        found.add(tag)  # one that is not kept is absent from the results, as PS3.18 allows
    return found


def _check_value(tag: int, value: str) -> None:
    vr = vr_of(tag)
    if len(value) > TEXT_MAX or "\0" in value:
        raise _bad(f"the value of {tag:08X} is too long")
    if vr == "UI" and not all(_UID.fullmatch(uid) and len(uid) <= 64 for uid in split_list(value)):
        raise _bad(f"the value of {tag:08X} is not a UID or a list of UIDs")
    if vr in _SPANS and value.strip():
        ends = value.strip().split("-") if "-" in value else [value.strip()]
        ends = [end.strip().replace(":", "") for end in ends]
        if len(ends) > 2 or not any(ends) or not all(_is_moment(vr, end) for end in ends):
            raise _bad(f"the value of {tag:08X} is no date or time, or range of them")


def _is_moment(vr: str, text: str) -> bool:
    return not text or bool(_SPANS[vr].fullmatch(text))


def split_list(value: str) -> list[str]:
    """Return the values of a list, of which none has a comma in itself, as UIDs have not; they are
    separated by comma or backslash."""
    return [each.strip() for each in re.split(r"[,\\]", value) if each.strip()]


def _number(options: Mapping[str, str], name: str, default: int) -> int:
    text = options.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise _bad(f"{name} is not a number from 0")
    return int(text)


def _shown(name: str) -> str:
    """Return a name for a message; what is not a plain word may be a value put in its place."""
    return name if re.fullmatch(r"[A-Za-z0-9]{1,64}", name) else "a name in the query"


def _bad(sentence: str) -> Problem:
    return Problem(400, "bad_query", sentence)


def matches(keys: Iterable[Key], attributes: Attributes) -> bool:
    """Whether `attributes` answer all of `keys`."""
    return all(_matches(key, attributes.get(key.tag, ())) for key in keys)


def _matches(key: Key, values: Values) -> bool:
    vr = vr_of(key.tag)
    if key.value == "*" and vr not in _NO_WILDCARD:
        return True  # universal matching, also of what is absent
    if vr == "UI":
        return not set(split_list(key.value)).isdisjoint(values)
    if vr in _SPANS:
        return any(_in_span(vr, key.value, value) for value in values if value)
    if vr in ("IS", "US", "UL", "DS"):
        return any(_same_number(key.value, value) for value in values)
    # OHIF puts a comma between the modalities that a user chooses.
    wanted = split_list(key.value) if key.tag == tags.MODALITIES_IN_STUDY else [key.value]
    return any(_like(vr, text, value) for text in wanted for value in values)


def _same_number(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def _in_span(vr: str, asked: str, value: str) -> bool:
    asked, value = asked.replace(":", ""), value.replace(":", "")
    if vr == "DA":
        value = value.replace(".", "")  # the form before 1993
    first, dash, last = (end.strip() for end in asked.partition("-"))
    last = last if dash else first
    # A shorter moment stands for all that begin with it.
    return (not first or value >= first) and (not last or value[: len(last)] <= last)


def _like(vr: str, asked: str, value: str) -> bool:
    """Match with wildcards; names without regard to case or empty components (PS3.4 C.2.2.2.1)."""
    if vr == "PN":
        groups = [group.rstrip("^ ").casefold() for group in value.split("=")]
        asked = asked.split("=")[0].rstrip("^ ").casefold()
        return any(_wild(asked, group) for group in groups if group) or not asked
    return _wild(asked, value)


def _wild(asked: str, value: str) -> bool:
    """Match `*` and `?` in linear time times the number of stars, without backtracking."""
    at = star = -1
    i = j = 0
    while i < len(value):
        if j < len(asked) and asked[j] == "*":
            star, at, j = j, i, j + 1
        elif j < len(asked) and asked[j] in ("?", value[i]):
            i, j = i + 1, j + 1
        elif star >= 0:
            at += 1
            i, j = at, star + 1
        else:
            return False
    return not asked[j:].strip("*")
