"""What a verified proof proves, in words, and the same as names and values.

Rows of the state are read by their contracts' own decoders; a row of another kind, or of a format
that this program does not know, is shown as it is. Heights in a record are as it has them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from consensus.wire import NotCanonical, Value, unpack
from node.ledger import accounts
from node.ledger.block import OK
from node.ledger.contracts import access_record, study
from node.ledger.contracts.consent.record import Consent, Rule, decode_consent
from node.ledger.proofs.format import Row
from node.ledger.proofs.verify import Proved
from storage.errors import CorruptRecord

_ID = 16
_KEY = 32


@dataclass(frozen=True, slots=True)
class RowText:
    """One row of the state, read."""

    subject: str  # as in `questions.SUBJECTS`
    sentences: tuple[str, ...]
    value: object  # the record's fields by name; None where there is none


@dataclass(frozen=True, slots=True)
class Description:
    """What is proved, for people and for programs."""

    sentences: tuple[str, ...]
    rows: tuple[RowText, ...]


def describe(proved: Proved) -> Description:
    """Return the statement of `proved` in words, without what it rests on."""
    rows = tuple([read_row(row) for row in proved.rows])
    sentences = [sentence for row in rows for sentence in row.sentences]
    if proved.registered is not None:
        sentences += _instances(proved)
    if proved.transaction is not None:
        sentences += _transaction(proved)
    if proved.kind == "time":
        sentences.append(f"the chain had reached height {proved.header.height} by that time")
    return Description(tuple(sentences), rows)


def read_row(row: Row) -> RowText:
    """Return what a row of the state says, or that there is none."""
    key, value = row
    prefix, slash, rest = key.partition(b"/")
    read = _READERS.get(prefix) if slash else None
    if read is not None:
        try:
            found = read(rest, value)
        except CorruptRecord:
            found = None
        if found is not None:
            return found
    return _plain_row(key, value)


def _study(rest: bytes, value: bytes | None) -> RowText | None:
    if len(rest) != _ID:
        return None
    name = f"study {rest.hex()}"
    if value is None:
        return RowText("study", (f"{name} is not registered",), None)
    record = study.decode_study(value)
    sentences = [
        f"{name} is registered: custodian {record.custodian}, {record.modality}, {record.region}, "
        f"confidentiality {record.confidentiality}, pseudonym of its subject "
        f"{record.subject_id.hex()}",
        f"its version is {record.version}, with root {record.root.hex()}; it changed last at "
        f"height {record.changed_height}",
    ]
    if record.erased_height is not None:
        sentences.append(f"it was erased at height {record.erased_height}")
    elif record.retired is not None:
        sentences.append(f"it is retired: {record.retired}")
    return RowText("study", tuple(sentences), _named(record))


def _version(rest: bytes, value: bytes | None) -> RowText | None:
    if len(rest) != _KEY:
        return None
    if value is None:
        return RowText("root", (f"no version of a study has the root {rest.hex()}",), None)
    record = study.decode_version(value)
    sentence = (
        f"version {record.version} of study {record.study_id.hex()} has the root {rest.hex()} and "
        f"was registered at height {record.height}"
    )
    return RowText("root", (sentence,), _named(record))


def _consent(rest: bytes, value: bytes | None) -> RowText | None:
    institution, slash, subject = rest[: -_ID - 1], rest[-_ID - 1 : -_ID], rest[-_ID:]
    if slash != b"/":
        return None
    who = f"{_text(institution)}'s subject {subject.hex()}"
    if value is None:
        return RowText("consent", (f"nothing is recorded of the consent of {who}",), None)
    record = decode_consent(value)
    sentences = [f"this is recorded of the consent of {who}:", *_opt_out(record)]
    sentences += [_rule(rule) for rule in record.rules]
    if record.patient_key is not None:
        sentences.append(f"the patient decides with key {record.patient_key.hex()}")
    named = _named(record) | {"rules": [_named(rule) for rule in record.rules]}
    return RowText("consent", tuple(sentences), named)


def _opt_out(record: Consent) -> list[str]:
    if record.opted_out_from is None:
        return []
    until = record.opted_out_until
    ended = "and it lasts" if until is None else f"until height {until}, inclusive"
    return [
        f"opted out from height {record.opted_out_from} on by the {record.opted_out_by}, {ended}"
    ]


def _rule(rule: Rule) -> str:
    about = "every study" if rule.study_id is None else f"study {rule.study_id.hex()}"
    whom = "everybody" if rule.recipient is None else rule.recipient
    purposes = ", ".join(rule.purposes) or "every purpose"
    ends = [height for height in (rule.until_height, rule.ended_height) if height is not None]
    until = f"to height {min(ends)}" if ends else "without an end"
    word = "permitted to" if rule.effect == "permit" else "refused to"
    return (
        f"{about} is {word} {whom} for {purposes}, from height {rule.from_height} {until}, by the "
        f"{rule.by} (rule {rule.consent_id.hex()})"
    )


def _request(rest: bytes, value: bytes | None) -> RowText | None:
    if len(rest) != _ID:
        return None
    name = f"request {rest.hex()}"
    if value is None:
        return RowText("request", (f"{name} was never made",), None)
    record = access_record.decode_request(value)
    sentences = [
        f"{name}: {record.institution} asked {record.custodian} for study "
        f"{record.study_id.hex()} at height {record.asked_height}, as {record.role}, for "
        f"{record.purpose}{' (break-glass)' if record.break_glass else ''}",
        f"its state is {record.state}{_decision(record)}",
    ]
    if record.valid_from is not None and record.expires_height is not None:
        sentences.append(
            f"it permits from height {record.valid_from} to {record.expires_height - 1}, "
            f"{record.uses_max} uses at most; {record.uses} were made"
        )
    if record.ended_height is not None:
        sentences.append(f"it ended at height {record.ended_height}")
    return RowText("request", tuple(sentences), _named(record))


def _decision(record: access_record.Request) -> str:
    if not record.decided_by:
        return ""
    rule = f" ({record.rule})" if record.rule else ""
    return f", decided by {record.decided_by}{rule} at height {record.decided_height}"


def _asked(rest: bytes, value: bytes | None) -> RowText | None:
    study_id, institution = rest[:_ID], _text(rest[_ID:])
    if not institution:
        return None
    about = f"study {study_id.hex()}"
    if value is None:
        sentence = f"{institution} never asked for {about}, so it never had access to it granted"
        return RowText("asked", (sentence,), None)
    record = access_record.decode_asked(value)
    sentence = f"{institution} asked for {about}: {record.times} requests so far"
    return RowText("asked", (sentence,), _named(record))


def _institution(rest: bytes, value: bytes | None) -> RowText | None:
    name = _text(rest)
    record = accounts.find_institution(lambda _: value, name)
    if record is None:
        return RowText("institution", (f"there is no institution {name}",), None)
    state = "active" if record.active else "suspended"
    return RowText("institution", (f"institution {name} is {state}",), _named(record))


def _member(rest: bytes, value: bytes | None) -> RowText | None:
    institution, slash, key = rest[: -_KEY - 1], rest[-_KEY - 1 : -_KEY], rest[-_KEY:]
    if slash != b"/":
        return None
    name = _text(institution)
    record = accounts.find_member(lambda _: value, name, key)
    if record is None:
        return RowText("member", (f"{name} has no member with key {key.hex()}",), None)
    state = "active" if record.active else "suspended"
    sentence = f"the member of {name} with key {key.hex()} is {state}: {', '.join(record.roles)}"
    return RowText("member", (sentence,), _named(record))


_READERS: Mapping[bytes, Callable[[bytes, bytes | None], RowText | None]] = {
    b"study": _study,
    b"root": _version,
    b"consent": _consent,
    b"request": _request,
    b"asked": _asked,
    b"institution": _institution,
    b"member": _member,
}


def _plain_row(key: bytes, value: bytes | None) -> RowText:
    if value is None:
        return RowText("key", (f"the state holds nothing under key {key.hex()}",), None)
    try:
        shown: Value = unpack(value)
    except NotCanonical:
        shown = value
    return RowText("key", (f"the state holds {value.hex()} under key {key.hex()}",), shown)


def _instances(proved: Proved) -> list[str]:
    registered = proved.registered
    if registered is None:
        return []
    if proved.is_whole:
        return [f"that version consists of the {len(proved.records)} instances in this file"]
    return ["the instance in this file is one of that version"]


def _transaction(proved: Proved) -> list[str]:
    transaction, receipt = proved.transaction, proved.receipt
    if transaction is None or receipt is None:
        return []
    names = ", ".join(operation.name for operation in transaction.operations)
    sentences = [
        f"a member of {transaction.institution} (key {transaction.member_key.hex()}) signed "
        f"transaction {transaction.id.hex()}: {names}",
        "it was executed in this block and succeeded"
        if receipt.code == OK
        else f"it was ordered into this block and refused: {receipt.code}",
    ]
    sentences += [
        f"it says: {event.name} {' '.join(map(_value, event.fields))}".rstrip()
        for event in receipt.events
    ]
    return sentences


def _value(value: Value) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return f"({', '.join(map(_value, value))})"
    return "-" if value is None else str(value)


def _text(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace")


def _named(record: Any) -> dict[str, object]:
    """Return the fields of a stored record by name, without its format number."""
    named: dict[str, object] = record._asdict()
    named.pop("format", None)
    return named
