"""A question between hospitals: what is looked for, for what purpose, and how to answer.

Wire form (canonical msgpack):

    (1, kind, purpose, role, is de-identified, ethics digest | None,
     ((field, (value, ...)), ...), since | None, until | None, (field, ...), limit)

Who asks is not in it: that is the certificate's institution. Months are counted from the year 0:
2024-03 is 2024 * 12 + 2.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from consensus.wire import NotCanonical, Value, pack, unpack
from node.exchange.federation.errors import InvalidQuestion
from node.exchange.federation.fields import UNCOUNTED, YEAR_FIRST, YEAR_LAST, Field, Values, fits
from node.ledger.contracts.access_forms import ASKING_ROLES
from node.ledger.contracts.vocabulary import PURPOSES

QUESTION_BYTES_MAX = 8_192
CONDITIONS_MAX, ALTERNATIVES_MAX = 16, 16
LIMIT_MAX = 1_000
_FORMAT = 1
_DIGEST_BYTES = 32
_MONTH_FIRST, _MONTH_LAST = YEAR_FIRST * 12, YEAR_LAST * 12 + 11


class Kind(Enum):
    """What is wanted."""

    FIND = "find"  # the studies
    COUNT = "count"  # how many there are, none where there are few


@dataclass(frozen=True, slots=True)
class Condition:
    """One of these values must be among the study's."""

    field: Field
    values: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked; all conditions must hold."""

    kind: Kind = Kind.FIND
    purpose: str  # of the ledger's vocabulary, as a request would state it
    role: str
    deidentified: bool = False
    ethics_digest: bytes | None = None  # 32 bytes, of the ethics approval
    conditions: tuple[Condition, ...] = ()
    since: int | None = None  # month of the study, inclusive
    until: int | None = None  # inclusive
    fields: tuple[Field, ...] = ()  # to tell of each study, or to count by
    limit: int = 200  # studies, or values of a field

    @property
    def matched(self) -> frozenset[Field]:
        """The fields that conditions are about; a span of time needs `YEAR` or `MONTH`."""
        return frozenset(condition.field for condition in self.conditions)

    @property
    def has_span(self) -> bool:
        """Whether the time of the study matters."""
        return self.since is not None or self.until is not None


def encode_question(question: Question) -> bytes:
    """Return the question's bytes. Raises `InvalidQuestion` for one that nobody would answer."""
    _check(question)
    data = pack(
        (
            _FORMAT,
            question.kind.value,
            question.purpose,
            question.role,
            question.deidentified,
            question.ethics_digest,
            tuple((each.field.value, each.values) for each in question.conditions),
            question.since,
            question.until,
            tuple(field.value for field in question.fields),
            question.limit,
        )
    )
    if len(data) > QUESTION_BYTES_MAX:
        raise InvalidQuestion(f"a question has at most {QUESTION_BYTES_MAX} bytes")
    return data


def decode_question(data: bytes) -> Question:
    """Return the question in `data`. Raises `InvalidQuestion`."""
    if len(data) > QUESTION_BYTES_MAX:
        raise InvalidQuestion(f"a question has at most {QUESTION_BYTES_MAX} bytes")
    try:
        value = unpack(data)
    except NotCanonical as error:
        raise InvalidQuestion(f"no question: {error}") from error
    match value:
        case (
            1,
            str(kind),
            str(purpose),
            str(role),
            bool(deidentified),
            None | bytes() as ethics,
            tuple(conditions),
            None | int() as since,
            None | int() as until,
            tuple(fields),
            int(limit),
        ):
            question = Question(
                kind=_kind(kind),
                purpose=purpose,
                role=role,
                deidentified=deidentified,
                ethics_digest=ethics,
                conditions=tuple([_condition(each) for each in conditions]),
                since=since,
                until=until,
                fields=tuple([field_of(each) for each in fields]),
                limit=limit,
            )
        case _:
            raise InvalidQuestion("no question, or one of a newer program")
    _check(question)
    return question


def field_of(word: object) -> Field:
    """Return the field of a word. Raises `InvalidQuestion`."""
    try:
        return Field(word)
    except ValueError:
        raise InvalidQuestion("there is no such field") from None


def _kind(word: str) -> Kind:
    try:
        return Kind(word)
    except ValueError:
        raise InvalidQuestion("there is no such kind of question") from None


def _condition(value: Value) -> Condition:
    match value:
        case (str(word), tuple(values)):
            return Condition(field_of(word), _strings(values))
    raise InvalidQuestion("a condition is (field, values)")


def _strings(values: Iterable[Value]) -> Values:
    found = []
    for value in values:
        if type(value) is not str:
            raise InvalidQuestion("values are text")
        found.append(value)
    return tuple(found)


def _check(question: Question) -> None:
    if question.purpose not in PURPOSES:
        raise InvalidQuestion(f"the purpose must be one of {', '.join(sorted(PURPOSES))}")
    if question.role not in ASKING_ROLES:
        raise InvalidQuestion(f"the role must be one of {', '.join(sorted(ASKING_ROLES))}")
    ethics = question.ethics_digest
    if ethics is not None and len(ethics) != _DIGEST_BYTES:
        raise InvalidQuestion("the digest of an ethics approval has 32 bytes")
    if len(question.conditions) > CONDITIONS_MAX:
        raise InvalidQuestion(f"a question has at most {CONDITIONS_MAX} conditions")
    for condition in question.conditions:
        _check_condition(condition)
    for month in (question.since, question.until):
        if month is not None and not _is_int(month, _MONTH_FIRST, _MONTH_LAST):
            raise InvalidQuestion(f"months are of the years {YEAR_FIRST} to {YEAR_LAST}")
    if len(set(question.fields)) < len(question.fields):
        raise InvalidQuestion("a field is named twice")
    if not _is_int(question.limit, 1, LIMIT_MAX):
        raise InvalidQuestion(f"the limit is from 1 to {LIMIT_MAX}")
    if question.kind is Kind.COUNT and not UNCOUNTED.isdisjoint(question.fields):
        raise InvalidQuestion("nothing is counted by words of descriptions")


def _check_condition(condition: Condition) -> None:
    values = condition.values
    if not 0 < len(values) <= ALTERNATIVES_MAX:
        raise InvalidQuestion(f"a condition has 1 to {ALTERNATIVES_MAX} values")
    if not all(fits(condition.field, value) for value in values):
        raise InvalidQuestion(f"a value of {condition.field.value} is not in its form")


def _is_int(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
