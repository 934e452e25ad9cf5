"""Which studies answer a question, what of them is told, and what is counted. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass

from node.exchange.federation.answer import Counted, Tally
from node.exchange.federation.fields import Facts, Field, Values
from node.exchange.federation.question import Question

_SPANS = frozenset({Field.YEAR, Field.MONTH})


@dataclass(frozen=True, slots=True)
class Entry:
    """One study of this hospital, as its catalogue knows it."""

    study_id: bytes  # 16 bytes
    subject_id: bytes  # 16 bytes, the patient's pseudonym on the ledger
    facts: Facts


def unoffered(question: Question, offered: Set[Field]) -> tuple[Field, ...]:
    """Return the fields by which the question matches, and which are not offered.

    Who learns which studies match a value has learnt the value, so these are refused as a whole.
    """
    missing = set(question.matched - offered)
    if question.has_span and _SPANS.isdisjoint(offered):
        missing.add(Field.YEAR)
    return tuple(field for field in Field if field in missing)


def matches(question: Question, facts: Facts, offered: Set[Field]) -> bool:
    """Return whether all conditions hold; the time of a study counts as exactly as it is offered.

    Call it for questions of which nothing is `unoffered`.
    """
    if question.has_span and not _in_span(question, facts, by_month=Field.MONTH in offered):
        return False
    return all(
        not set(condition.values).isdisjoint(facts.get(condition.field))
        for condition in question.conditions
    )


def _in_span(question: Question, facts: Facts, *, by_month: bool) -> bool:
    values = facts.get(Field.MONTH if by_month else Field.YEAR)
    unit = 1 if by_month else 12
    since = None if question.since is None else question.since // unit
    until = None if question.until is None else question.until // unit
    for value in values:
        year, _, month = value.partition("-")
        moment = int(year) * 12 + int(month) - 1 if by_month else int(year)
        if (since is None or moment >= since) and (until is None or moment <= until):
            return True
    return False


def told(question: Question, facts: Facts, offered: Set[Field]) -> dict[Field, Values]:
    """Return what is told of a study: what was asked for and is offered."""
    return {
        field: facts.get(field)
        for field in question.fields
        if field in offered and facts.get(field)
    }


@dataclass(frozen=True, slots=True)
class Counts:
    """What may be told of how many there are."""

    total: tuple[int, int] | None  # studies, patients; None if these are too few
    tallies: tuple[Tally, ...]
    is_cut: bool  # a field has more values than the question's limit


def count(question: Question, entries: Iterable[Entry], offered: Set[Field], least: int) -> Counts:
    """Return the counts without what concerns fewer than `least` patients.

    One patient's many studies are still one patient, so it is patients that must be enough. Of too
    few nothing is told at all, not even which fields they have.
    """
    entries = list(entries)
    subjects = len({entry.subject_id for entry in entries})
    if subjects < least:
        return Counts(None, (), False)
    wanted = [field for field in question.fields if field in offered]
    rows = {field: _rows(field, entries, least) for field in wanted}
    return Counts(
        (_down(len(entries), least), _down(subjects, least)),
        tuple(Tally(field, tuple(found[: question.limit])) for field, found in rows.items()),
        any(len(found) > question.limit for found in rows.values()),
    )


def _rows(field: Field, entries: Iterable[Entry], least: int) -> list[Counted]:
    studies: Counter[str] = Counter()
    subjects: defaultdict[str, set[bytes]] = defaultdict(set)
    for entry in entries:
        for value in entry.facts.get(field):
            studies[value] += 1
            subjects[value].add(entry.subject_id)
    rows = [
        Counted(value, _down(number, least), _down(len(subjects[value]), least))
        for value, number in studies.items()
        if len(subjects[value]) >= least
    ]
    # By what is told, not by what it was made of: the order of equals must not tell the difference.
    rows.sort(key=lambda row: (-row.studies, -row.subjects, row.value))
    return rows


def _down(number: int, unit: int) -> int:
    return number // unit * unit
