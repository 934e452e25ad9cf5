"""Answers for an auditor: what happened to a study, what was anchored, and what can be proved."""

from dataclasses import dataclass
from typing import Any

TRAIL_LIMIT_MAX = 100  # events on one page
ANCHORS_LIMIT_MAX = 200


@dataclass(frozen=True, slots=True)
class TrailEntry:
    """One event about a study, and who caused it."""

    height: int
    position: int  # of the transaction in its block
    number: int  # of the event in its transaction
    time_ms: int  # of the block
    transaction_id: bytes  # 32 bytes
    institution: str  # of the sender
    member_key: bytes  # 32 bytes, of the sender
    name: str  # of the event
    fields: tuple[Any, ...]  # in JSON, bytes are hexadecimal, and stay so in the client


@dataclass(frozen=True, slots=True)
class TrailPage:
    """Part of a study's history, newest first; the last page ends with the registration. What no
    study is has no entry at all."""

    study_id: bytes  # 16 bytes
    entries: tuple[TrailEntry, ...]
    next_cursor: str | None  # None: complete


@dataclass(frozen=True, slots=True)
class AnchorView:
    """A commitment to an institution's own audit records of one period."""

    institution: str
    sequence: int
    from_ms: int  # the period, milliseconds since 1970
    to_ms: int
    count: int  # of records
    root: bytes  # 32 bytes
    previous_root: bytes | None  # 32 bytes; None for the first
    height: int  # at which it was anchored


@dataclass(frozen=True, slots=True)
class AnchorPage:
    anchors: tuple[AnchorView, ...]  # newest first
    next_cursor: str | None  # None: complete


@dataclass(frozen=True, slots=True)
class ProofFile:
    """A proof file, checked offline with `radledger proof verify`."""

    kind: str  # of the statement
    height: int  # of the header that it rests on
    proof: bytes  # the file's bytes
