"""What a catalogue may know of a study: made from the store's index and the words on the chain.

Dates become months, ages become bands, descriptions become listed words, and what is in no list or
form is left away.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date

from node.exchange.federation.fields import Facts, Field, age_band, make_facts
from node.exchange.store.index import StudyIndex
from node.gateway.lexicon import WORDS_MAX, words_in
from node.gateway.web import attributes as tags
from node.gateway.web.attributes import Attributes, Values, from_pairs
from node.imaging.description import body_part_term
from node.ledger.contracts.vocabulary import MODALITIES

_MANUFACTURER, _MODEL, _PROTOCOL = 0x00080070, 0x00081090, 0x00181030
_STUDY_DESCRIPTION, _SERIES_DESCRIPTION, _BODY_PART = 0x00081030, 0x0008103E, 0x00180015
_BIRTH_DATE, _SEX, _AGE = 0x00100030, 0x00100040, 0x00101010
_DAY = re.compile(r"([0-9]{4})\.?([0-9]{2})\.?([0-9]{2})")  # with dots before 1993
_AGE_FORM = re.compile(r"([0-9]{3})([DWMY])")
_PER_YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}
_YEARS_MAX = 130


def facts_of(
    index: StudyIndex, modality: str, region: str, added_words: Iterable[str] = ()
) -> Facts:
    """Return what may be known of the study; `modality` and `region` as on the chain.

    `added_words` pass besides the lexicon's.
    """
    distinct = _reader([from_pairs(each.facts.attributes) for each in index.instances])
    modalities = {modality, *distinct(tags.MODALITY)} & MODALITIES
    added = frozenset(word.casefold() for word in added_words)
    words: set[str] = set()
    for tag in (_STUDY_DESCRIPTION, _SERIES_DESCRIPTION, _PROTOCOL):
        for text in distinct(tag):
            words |= words_in(text, added)
    taken = next(filter(None, map(_day, distinct(tags.STUDY_DATE))), None)
    found: dict[Field, Iterable[str]] = {
        Field.MODALITY: modalities,
        Field.REGION: [region],
        Field.BODY_PART: filter(None, map(body_part_term, distinct(_BODY_PART))),
        Field.WORD: sorted(words)[:WORDS_MAX],
        Field.MANUFACTURER: distinct(_MANUFACTURER),
        Field.MODEL: distinct(_MODEL),
        Field.SEX: distinct(_SEX)[:1],
        Field.AGE: list(_ages(distinct(_AGE), distinct(_BIRTH_DATE), taken))[:1],
    }
    if taken is not None:
        found |= {Field.YEAR: [f"{taken:%Y}"], Field.MONTH: [f"{taken:%Y-%m}"]}
    return make_facts(found)


def _reader(instances: list[Attributes]) -> Callable[[int], Values]:
    """Return what gives the values of a tag, in the order of the instances, each once."""

    def values(tag: int) -> Values:
        found = (value.strip() for each in instances for value in each.get(tag, ()))
        return tuple(dict.fromkeys(filter(None, found)))

    return values


def _ages(stated: Values, born: Values, taken: date | None) -> Iterator[str]:
    for text in stated:
        match = _AGE_FORM.fullmatch(text)
        if match is not None:
            yield age_band(int(int(match[1]) / _PER_YEAR[match[2]]))
    birthday = next(filter(None, map(_day, born)), None)
    if birthday is not None and taken is not None and birthday <= taken:
        years = taken.year - birthday.year - (taken.timetuple()[1:3] < birthday.timetuple()[1:3])
        if years <= _YEARS_MAX:
            yield age_band(years)


def _day(text: str) -> date | None:
    match = _DAY.fullmatch(text)
    try:
        return None if match is None else date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        return None
