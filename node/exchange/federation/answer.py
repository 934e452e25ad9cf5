"""A hospital's answer to a question.

Wire form (canonical msgpack):

    find     (1, "find", offered, unoffered, is complete, ((study id, outcome, told), ...))
    count    (1, "count", offered, unoffered, is complete, least, total | None,
              ((field, ((value, studies, subjects), ...)), ...))

    offered, unoffered   (field, ...)
    told                 ((field, (value, ...)), ...)
    total                (studies, subjects)

If `unoffered` is not empty the hospital does not answer about these fields, and nothing follows.
Numbers of studies and subjects are multiples of `least`, rounded down, so two questions that differ
by one patient have the same answer in most cases. A value that fewer than `least` patients have is
not there, nor is it said that there is one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from consensus.wire import NotCanonical, Value, pack, unpack
from node.exchange.federation.errors import InvalidAnswer
from node.exchange.federation.fields import VALUES_MAX, Field, Values, fits
from node.exchange.federation.question import LIMIT_MAX, Kind, Question

ANSWER_BYTES_MAX = 4 << 20
OUTCOMES = ("granted", "waiting_person")
_FORMAT = 1
_ID_BYTES = 16
_COUNT_MAX = 1 << 40


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """One study, by its id on the chain; it is not said where its images are."""

    study_id: bytes  # 16 bytes
    outcome: str  # of OUTCOMES: what a request would meet now
    told: Mapping[Field, Values]


@dataclass(frozen=True, slots=True)
class Counted:
    """How many have a value, rounded down."""

    value: str
    studies: int
    subjects: int


@dataclass(frozen=True, slots=True)
class Tally:
    """The counts by one field, the most frequent first."""

    field: Field
    counted: tuple[Counted, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one hospital says."""

    kind: Kind
    offered: tuple[Field, ...]  # all that this hospital answers about
    unoffered: tuple[Field, ...] = ()  # what was asked and it does not
    is_complete: bool = True  # False: there is more than was looked at, or may be told at once
    studies: tuple[FoundStudy, ...] = ()
    least: int = 0  # of a count
    total: tuple[int, int] | None = None  # studies, subjects; None: fewer than `least`
    tallies: tuple[Tally, ...] = ()


def encode_answer(answer: Answer) -> bytes:
    """Return the answer's bytes."""
    head = (
        _FORMAT,
        answer.kind.value,
        _words(answer.offered),
        _words(answer.unoffered),
        answer.is_complete,
    )
    if answer.kind is Kind.FIND:
        rows = tuple((s.study_id, s.outcome, told_fields(s.told)) for s in answer.studies)
        return pack((*head, rows))
    tallies = tuple(
        (t.field.value, tuple((c.value, c.studies, c.subjects) for c in t.counted))
        for t in answer.tallies
    )
    return pack((*head, answer.least, answer.total, tallies))


def decode_answer(data: bytes, question: Question) -> Answer:
    """Return the answer to `question` in `data`; a stranger wrote it. Raises `InvalidAnswer`."""
    if len(data) > ANSWER_BYTES_MAX:
        raise InvalidAnswer("it is larger than any answer may be")
    try:
        value = unpack(data)
    except NotCanonical as error:
        raise InvalidAnswer(f"it is no answer: {error}") from error
    answer = _answer(value)
    if answer.kind is not question.kind:
        raise InvalidAnswer("it answers another question")
    if len(answer.studies) > question.limit:
        raise InvalidAnswer("it has more studies than were asked for")
    asked = set(question.fields)
    if any(not asked.issuperset(study.told) for study in answer.studies):
        raise InvalidAnswer("it tells what was not asked for")
    if len({study.study_id for study in answer.studies}) < len(answer.studies):
        raise InvalidAnswer("it names a study twice")
    counted = [tally.field for tally in answer.tallies]
    if len(set(counted)) < len(counted) or not asked.issuperset(counted):
        raise InvalidAnswer("it counts what was not asked for")
    return answer


def _answer(value: Value) -> Answer:
    match value:
        case (1, "find", tuple(offered), tuple(unoffered), bool(complete), tuple(rows)):
            return Answer(
                kind=Kind.FIND,
                offered=_fields(offered),
                unoffered=_fields(unoffered),
                is_complete=complete,
                studies=tuple([_study(row) for row in rows]),
            )
        case (
            1,
            "count",
            tuple(offered),
            tuple(unoffered),
            bool(complete),
            int(least),
            None | (int(), int()) as total,
            tuple(tallies),
        ) if _is_count(least):
            return Answer(
                kind=Kind.COUNT,
                offered=_fields(offered),
                unoffered=_fields(unoffered),
                is_complete=complete,
                least=least,
                total=_total(total),
                tallies=tuple([_tally(each) for each in tallies]),
            )
    raise InvalidAnswer("it is no answer, or one of a newer program")


def _study(row: Value) -> FoundStudy:
    match row:
        case (bytes(study_id), str(outcome), tuple(told)) if (
            len(study_id) == _ID_BYTES and outcome in OUTCOMES
        ):
            return FoundStudy(study_id, outcome, read_told(told))
    raise InvalidAnswer("a study in it is not as it must be")


def read_told(told: Iterable[Value]) -> dict[Field, Values]:
    """Return the values by field; the inverse of `told_fields`. Raises `InvalidAnswer`."""
    found: dict[Field, Values] = {}
    for pair in told:
        match pair:
            case (str(word), tuple(values)) if len(values) <= VALUES_MAX:
                field = _field(word)
                kept = tuple([value for value in values if type(value) is str])
                if field in found or not all(fits(field, value) for value in values):
                    raise InvalidAnswer("a value in it is not in the form of its field")
                found[field] = kept
            case _:
                raise InvalidAnswer("a field in it is not as it must be")
    return found


def told_fields(told: Mapping[Field, Values]) -> tuple[tuple[str, Values], ...]:
    """Return the wire form of values by field."""
    return tuple((field.value, values) for field, values in told.items())


def _tally(value: Value) -> Tally:
    match value:
        case (str(word), tuple(counted)) if len(counted) <= LIMIT_MAX:
            field = _field(word)
            return Tally(field, tuple([_counted(field, each) for each in counted]))
    raise InvalidAnswer("a count in it is not as it must be")


def _counted(field: Field, value: Value) -> Counted:
    match value:
        case (str(text), int(studies), int(subjects)) if (
            fits(field, text) and _is_count(studies) and _is_count(subjects)
        ):
            return Counted(text, studies, subjects)
    raise InvalidAnswer("a count in it is not as it must be")


def _total(value: object) -> tuple[int, int] | None:
    match value:
        case (int(studies), int(subjects)) if _is_count(studies) and _is_count(subjects):
            return studies, subjects
        case None:
            return None
    raise InvalidAnswer("the total in it is not as it must be")


def _fields(words: Iterable[Value]) -> tuple[Field, ...]:
    found = tuple([_field(word) for word in words])
    if len(set(found)) < len(found):
        raise InvalidAnswer("it names a field twice")
    return found


def _field(word: Value) -> Field:
    try:
        return Field(word)
    except ValueError:
        raise InvalidAnswer("it names a field that there is not") from None


def _words(fields: Iterable[Field]) -> Values:
    return tuple(field.value for field in fields)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _COUNT_MAX
