"""The series of a stored study, numbered for a person, and what it is to split a study by them.

Pure decisions over the store's index. Series are named by their number in the list, so that no UID
has to stand on a command line.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from node.exchange.store.index import InstanceFacts, StudyIndex
from node.gateway.web import attributes as tags
from node.gateway.web.attributes import first, from_pairs

_SERIES_DESCRIPTION = 0x0008103E
_NUMBER_DIGITS_MAX = 5


class SeriesRefused(ValueError):
    """The series named are none by which the study can be split; the text says why."""


@dataclass(frozen=True, slots=True)
class SeriesRow:
    """One series as the list shows it, to the hospital's own staff only."""

    number: int  # in the list, from 1
    uid: str = field(repr=False)
    modality: str
    series_number: str
    description: str = field(repr=False)
    instances: int


@dataclass(frozen=True, slots=True)
class Described:
    """An instance of the index, described as `node.imaging.description` wants it."""

    facts: InstanceFacts

    def text(self, tag: int) -> str:
        """Return the text of the element `tag`, or "" if the index does not have it."""
        return first(from_pairs(self.facts.attributes), tag)


def study_uid(index: StudyIndex) -> str:
    """Return the Study Instance UID of a stored study."""
    return Described(index.instances[0].facts).text(tags.STUDY_INSTANCE)


def listed(index: StudyIndex) -> list[SeriesRow]:
    """Return the study's series by Series Number, always in the same order for one version."""
    found: dict[str, list[Described]] = {}
    for each in index.instances:
        found.setdefault(each.facts.series_uid, []).append(Described(each.facts))
    ordered = sorted(found.items(), key=lambda item: (_number(item[1][0]), item[0]))
    return [_row(number, uid, held) for number, (uid, held) in enumerate(ordered, 1)]


def chosen(rows: Sequence[SeriesRow], words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the UIDs of the series that stay together, and of those that `words` name by number
    or UID. Raises `SeriesRefused`."""
    by_word = {str(row.number): row.uid for row in rows} | {row.uid: row.uid for row in rows}
    apart = set()
    for word in words:
        if word not in by_word:
            # A UID is not repeated, since messages are kept.
            is_number = word.isdigit() and len(word) <= _NUMBER_DIGITS_MAX
            name = f"series {word}" if is_number else "such series"
            raise SeriesRefused(f"the study has no {name}; it has {len(rows)}, from 1")
        apart.add(by_word[word])
    if not apart:
        raise SeriesRefused("name at least one series")
    rest = [row.uid for row in rows if row.uid not in apart]
    if not rest:
        raise SeriesRefused(
            "nothing would be left: exclude the study, by radledger consent restrict"
        )
    return rest, sorted(apart)


def _row(number: int, uid: str, held: Sequence[Described]) -> SeriesRow:
    head = held[0]
    return SeriesRow(
        number,
        uid,
        head.text(tags.MODALITY),
        head.text(tags.SERIES_NUMBER),
        next(filter(None, (each.text(_SERIES_DESCRIPTION) for each in held)), ""),
        len(held),
    )


def _number(described: Described) -> int:
    try:
        return int(described.text(tags.SERIES_NUMBER))
    except ValueError:
        return 0
