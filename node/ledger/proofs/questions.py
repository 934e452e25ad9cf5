"""What can be proved, as a person or a program asks for it: a kind and a few words.

    time HEIGHT                     when the chain had reached a height
    study STUDY                     the record of a study
    version STUDY ROOT              a version of a study; the base of instance and manifest proofs
    consent INSTITUTION SUBJECT     what an institution holds of a subject's consent, or nothing
    grant REQUEST                   a request for access and what became of it, or nothing
    transaction TRANSACTION         an executed transaction, its receipt and events
    access TRANSACTION              the same, of a transaction with an operation of access
    state SUBJECT ...               a row of the state, or that there is none
    absence SUBJECT ...             that there is no row

A SUBJECT is one of `SUBJECTS` and its words, e.g. `absence asked STUDY INSTITUTION`: an institution
never asked for a study. Ids, roots and keys are hexadecimal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from node.ledger import accounts
from node.ledger.contracts import access_record, study
from node.ledger.contracts.consent.record import consent_key
from node.ledger.limits import HEIGHT_MAX
from node.ledger.proofs.format import KEY_BYTES_MAX
from node.ledger.transaction import INSTITUTION

Read: TypeAlias = Callable[[str], Any]


class BadRequest(ValueError):
    """The question has no meaning; the sentence says which word is wrong and what it may be."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question. Exactly one of `height`, `transaction_id` and `keys` is there."""

    kind: str
    height: int | None = None
    transaction_id: bytes | None = None  # 32 bytes
    keys: tuple[bytes, ...] = ()  # of the state, ascending
    is_there: bool | None = None  # whether the rows must be there or must not; None: either


def read_request(kind: str, arguments: Sequence[str]) -> Request:
    """Return the question that `kind` and its words ask. Raises `BadRequest`."""
    match kind:
        case "time":
            (height,) = _words(kind, arguments, (("HEIGHT", _height),))
            return Request(kind, height=height)
        case "transaction" | "access":
            (identifier,) = _words(kind, arguments, (("TRANSACTION", _hex(32)),))
            return Request(kind, transaction_id=identifier)
        case "study":
            return Request(kind, keys=(_subject("study", arguments),), is_there=True)
        case "version":
            study_id, root = _words(kind, arguments, (("STUDY", _hex(16)), ("ROOT", _hex(32))))
            keys = (study.root_key(root), study.study_key(study_id))
            return Request(kind, keys=keys, is_there=True)
        case "consent" | "grant":
            name = "request" if kind == "grant" else kind
            return Request(kind, keys=(_subject(name, arguments),))
        case "state" | "absence":
            if not arguments:
                raise BadRequest(f"{kind} needs a subject: one of {', '.join(SUBJECTS)}")
            key = _subject(arguments[0], arguments[1:])
            return Request(kind, keys=(key,), is_there=False if kind == "absence" else None)
    raise BadRequest(f"the kind of a proof is one of {', '.join(KINDS)}")


def _subject(name: str, arguments: Sequence[str]) -> bytes:
    if name not in SUBJECTS:
        raise BadRequest(f"the subject must be one of {', '.join(SUBJECTS)}")
    words, key = SUBJECTS[name]
    return key(*_words(name, arguments, words))


def _words(
    what: str, arguments: Sequence[str], words: Sequence[tuple[str, Read]]
) -> tuple[Any, ...]:
    if len(arguments) != len(words):
        usage = " ".join((what, *(name for name, _ in words)))
        raise BadRequest(f"{len(arguments)} words after {what}; it is: {usage}")
    found = []
    for (name, read), text in zip(words, arguments, strict=True):
        try:
            found.append(read(text))
        except ValueError as error:
            raise BadRequest(f"{what}: {name} {error}") from None
    return tuple(found)


def _height(text: str) -> int:
    height = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if not 0 <= height <= HEIGHT_MAX:
        raise ValueError(f"must be a height from 0 to {HEIGHT_MAX}")
    return height


def _hex(size: int) -> Read:
    def read(text: str) -> bytes:
        try:
            value = bytes.fromhex(text) if len(text) == 2 * size else b""
        except ValueError:
            value = b""
        if not value:
            raise ValueError(f"must be {2 * size} hexadecimal digits")
        return value

    return read


def _institution(text: str) -> str:
    if INSTITUTION.fullmatch(text) is None:
        raise ValueError("must be the short name of an institution: a-z, 0-9 and '-'")
    return text


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text) if len(text) <= 2 * KEY_BYTES_MAX else b""
    except ValueError:
        key = b""
    if not key:
        raise ValueError(f"must be 1 to {KEY_BYTES_MAX} bytes in hexadecimal")
    return key


_STUDY = ("STUDY", _hex(16))
_INSTITUTION = ("INSTITUTION", _institution)

# What a state key is made of: the words, and the function from them to the key.
SUBJECTS: Mapping[str, tuple[tuple[tuple[str, Read], ...], Callable[..., bytes]]] = {
    "study": ((_STUDY,), study.study_key),
    "root": ((("ROOT", _hex(32)),), study.root_key),
    "consent": ((_INSTITUTION, ("SUBJECT", _hex(16))), consent_key),
    "request": ((("REQUEST", _hex(16)),), access_record.request_key),
    "asked": ((_STUDY, _INSTITUTION), access_record.asked_key),
    "institution": ((_INSTITUTION,), accounts.institution_key),
    "member": ((_INSTITUTION, ("KEY", _hex(32))), accounts.member_key),
    "key": ((("KEY", _key),), lambda key: key),
}
KINDS = (
    "time",
    "study",
    "version",
    "consent",
    "grant",
    "transaction",
    "access",
    "state",
    "absence",
)
