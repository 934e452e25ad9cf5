"""A record: one line of JSON, linked to the line before by that line's SHA-256.

    {"before":HEX,"kind":WORD,"outcome":0,"seq":17,"time_ms":...,"v":1, ...}

Keys are sorted, nothing is padded, all is ASCII, what is empty is left out: one record, one line.
`before` is the SHA-256 of the line before, without its newline; of the first line it is 64 zeros.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from node.gateway.audit.acts import KINDS, NAMED_MAX, TEXT_MAX, Act, Outcome
from node.gateway.audit.errors import RecordInvalid

FORMAT = 1
FIRST_BEFORE = "0" * 64
LINE_BYTES_MAX = 12 * 1024  # what the bounds of an act's fields allow
_TEXTS = ("who", "where", "to", "code", "arriving")
_NUMBERS = ("version", "instances", "size")


@dataclass(frozen=True, slots=True)
class Record:
    """One act with its place in the trail."""

    seq: int  # from 1, without gaps
    before: str  # 64 hex digits
    time_ms: int  # since 1970
    kind: str
    outcome: Outcome
    fields: dict[str, Any] = field(repr=False)

    def text(self, name: str) -> str:
        """Return one of the texts, "" if there is none."""
        return str(self.fields.get(name, ""))

    def number(self, name: str) -> int:
        """Return one of the numbers, 0 if there is none."""
        return int(self.fields.get(name, 0))

    def names(self, name: str) -> list[str]:
        """Return one of the lists."""
        return list(self.fields.get(name, ()))


def link(line: bytes) -> str:
    """Return what the next record must name: the hash of this line, without its newline."""
    return hashlib.sha256(line).hexdigest()


def fields_of(act: Act) -> dict[str, Any]:
    """Return an act's fields within their bounds."""
    fields: dict[str, Any] = {name: plain(getattr(act, name)) for name in _TEXTS}
    fields |= {name: getattr(act, name) for name in _NUMBERS}
    fields["request"] = "" if act.request is None else act.request.hex()
    fields["studies"] = [study.hex() for study in act.studies[:NAMED_MAX]]
    fields["study_uids"] = [plain(uid)[:64] for uid in act.study_uids[:NAMED_MAX]]
    most = max(len(act.studies), len(act.study_uids))
    fields["unnamed"] = max(0, most - NAMED_MAX)
    return {name: value for name, value in fields.items() if value}


def encode(seq: int, before: str, time_ms: int, act: Act, **more: Any) -> bytes:
    """Return the line of a record, without its newline."""
    head = {"v": FORMAT, "seq": seq, "before": before, "time_ms": time_ms}
    value = {**fields_of(act), **more, **head, "kind": act.kind, "outcome": int(act.outcome)}
    return _line(value)


def decode(line: bytes) -> Record:
    """Return a line's record. Raises `RecordInvalid` for anything but the one encoding."""
    try:
        value = json.loads(line)
        if not isinstance(value, dict) or value.get("v") != FORMAT:
            raise RecordInvalid("a record of another format")
        if _line(value) != line:
            raise RecordInvalid("a record in another encoding than its own")
        head = {name: value.pop(name) for name in ("v", "seq", "before", "time_ms")}
        kind, outcome = value.pop("kind"), Outcome(value.pop("outcome"))
    except (ValueError, KeyError, RecursionError) as error:
        raise RecordInvalid("a line that is no record") from error
    if kind not in KINDS or type(head["seq"]) is not int or type(head["time_ms"]) is not int:
        raise RecordInvalid("a record that this program does not know")
    return Record(head["seq"], str(head["before"]), head["time_ms"], kind, outcome, value)


def plain(text: str) -> str:
    """Return printable ASCII of bounded length: what peers send must not forge or fill a log."""
    cut = text[:TEXT_MAX]
    return "".join(each if " " <= each <= "~" else "?" for each in cut).strip()


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
