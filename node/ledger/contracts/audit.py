"""Audit: anchors of the institutions' own audit records, which stay with them.

An anchor commits to all records of one period by a Merkle root, an RFC 6962 tree over the records
in order. An institution's anchors leave no gap and no overlap, and each names the root before it.
So whoever is shown the records of any time can tell that none is missing, changed or added.

State, all values canonical msgpack and led by the record format:

    "audit/" + institution                            -> Anchor, the latest
    "audit/" + institution + "/" + sequence (8)       -> Anchor

Index row, for queries only:

    audit_anchor (institution, ordinal)   -> sequence, 8 bytes big endian
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from consensus.wire import NotCanonical, Value, pack, unpack
from node.ledger.contracts import forms
from node.ledger.contracts.base import Context, OperationKind
from node.ledger.errors import Rejected
from node.ledger.limits import TIME_MS_MAX
from storage.errors import CorruptRecord

RECORD_FORMAT = 1
SEQUENCE_MAX = (1 << 53) - 1
COUNT_MAX = (1 << 53) - 1
SKEW_MS = 60_000  # by which a period may end after the block's time: clocks differ

ANCHOR_ROLES = frozenset({"administrator", "auditor", "gateway"})

REJECTIONS = {
    "period_gap": "a period begins where the institution's last one ended",
    "period_not_over": "the period is not over yet by the block's time",
    "previous_root_conflict": "an anchor names the root of the one before, the first one none",
    "sequence_conflict": "the institution's anchors are numbered from 1 without gaps",
}

INDEX_ANCHOR = "audit_anchor"

Get: TypeAlias = Callable[[bytes], bytes | None]


class Anchor(NamedTuple):
    """What an institution anchored for one period, as stored. Times are in milliseconds since 1970;
    a record of `to_ms` belongs to the next period."""

    format: int
    sequence: int  # from 1
    from_ms: int
    to_ms: int
    records: int  # how many
    root: bytes  # 32 bytes
    previous_root: bytes | None  # None at sequence 1
    height: int


class NewAnchor(NamedTuple):
    sequence: int
    from_ms: int
    to_ms: int
    records: int
    root: bytes
    previous_root: bytes | None


def head_key(institution: str) -> bytes:
    """Return the state key of an institution's latest anchor."""
    return b"audit/" + institution.encode()


def anchor_key(institution: str, sequence: int) -> bytes:
    """Return the state key of one anchor."""
    return head_key(institution) + b"/" + sequence.to_bytes(8, "big")


def decode_anchor(row: bytes) -> Anchor:
    """Return the stored anchor. Raises `CorruptRecord`."""
    try:
        value = unpack(row)
        if type(value) is tuple and value[:1] == (RECORD_FORMAT,):
            return Anchor(*value)  # type: ignore[arg-type]
    except (NotCanonical, TypeError) as error:
        raise CorruptRecord("the state holds an audit anchor that cannot be read") from error
    raise CorruptRecord("the state holds an audit anchor of another format")


def latest_anchor(get: Get, institution: str) -> Anchor | None:
    """Return the institution's latest anchor, or None. Raises `CorruptRecord`."""
    row = get(head_key(institution))
    return None if row is None else decode_anchor(row)


def parse_anchor(arguments: tuple[Value, ...]) -> NewAnchor:
    """(sequence, beginning and end in milliseconds since 1970, count, root, root before or None);
    the end is not part of the period."""
    sequence, from_ms, to_ms, count, root, previous_root = forms.fields(arguments, 6)
    from_ms = forms.integer(from_ms, 0, TIME_MS_MAX, "from_ms")
    return NewAnchor(
        forms.integer(sequence, 1, SEQUENCE_MAX, "sequence"),
        from_ms,
        forms.integer(to_ms, from_ms + 1, TIME_MS_MAX, "to_ms"),
        forms.integer(count, 0, COUNT_MAX, "count"),
        forms.digest(root, "root"),
        None if previous_root is None else forms.digest(previous_root, "previous_root"),
    )


def anchor(context: Context, asked: NewAnchor) -> None:
    """Commit the sender's institution to its audit records of the period after its last one."""
    last = latest_anchor(context.state.get, context.institution)
    if asked.sequence != (1 if last is None else last.sequence + 1):
        raise Rejected("sequence_conflict")
    if asked.previous_root != (None if last is None else last.root):
        raise Rejected("previous_root_conflict")
    if last is not None and asked.from_ms != last.to_ms:
        raise Rejected("period_gap")
    if asked.to_ms > context.time_ms + SKEW_MS:
        raise Rejected("period_not_over")
    row = pack(Anchor(RECORD_FORMAT, *asked, context.height))
    context.state.put(head_key(context.institution), row)
    context.state.put(anchor_key(context.institution, asked.sequence), row)
    context.index(
        INDEX_ANCHOR,
        (context.institution.encode(), context.ordinal()),
        asked.sequence.to_bytes(8, "big"),
    )
    context.emit("audit_anchored", context.institution, asked.sequence, asked.records, asked.root)


KINDS = (OperationKind("audit.anchor", ANCHOR_ROLES, parse_anchor, anchor),)
