"""What happened to a study, event by event, and what institutions anchored of their own records.

The trail is the index `study_trail` with the registration at its end. An event is read from its
receipt, and who caused it from the transaction: both are what the block's header commits to.
"""

from collections.abc import Iterator

from consensus.wire import NotCanonical, pack, unpack
from node.ledger.block import Receipt
from node.ledger.contracts import audit
from node.ledger.contracts.base import INDEX_TRAIL
from node.ledger.errors import InvalidBlock, Refused
from node.ledger.limits import Limits
from node.ledger.queries import paging
from node.ledger.queries.audit_views import (
    ANCHORS_LIMIT_MAX,
    TRAIL_LIMIT_MAX,
    AnchorPage,
    AnchorView,
    TrailEntry,
    TrailPage,
)
from node.ledger.queries.moment import Moment, read_header
from node.ledger.queries.paging import BadQuery, check_id, check_institution, check_limit
from node.ledger.queries.studies import stored_study
from node.ledger.transaction import Transaction, decode_transaction
from storage import schema
from storage.chain import ChainStore
from storage.errors import CorruptRecord

_BEGINNINGS = frozenset({"study_registered", "study_derived"})


def audit_trail(
    moment: Moment, limits: Limits, study_id: bytes, limit: int, cursor: str | None
) -> TrailPage:
    """Return one page of a study's history, newest first; a study that is not there has none.

    Raises `BadQuery`, `CorruptRecord`.
    """
    check_id("study_id", study_id)
    check_limit(limit, TRAIL_LIMIT_MAX)
    stored = stored_study(moment.chain, study_id)
    if stored is None:
        return TrailPage(study_id, (), None)
    asked = paging.question("audit_trail", study_id)
    after = _after(study_id, paging.decode_cursor(asked, cursor))
    rows = moment.chain.scan_index(INDEX_TRAIL, (study_id,), after=after, reverse=True, limit=limit)
    blocks = _Blocks(moment.chain, limits)
    entries = [blocks.event(row.parts[1], row.parts[2]) for row in rows]
    if len(entries) == limit:
        position = pack(rows[-1].parts[1:])
        return TrailPage(study_id, tuple(entries), paging.encode_cursor(asked, position))
    entries.append(blocks.beginning(stored.ordinal))
    return TrailPage(study_id, tuple(entries), None)


def anchors_page(moment: Moment, institution: str, limit: int, cursor: str | None) -> AnchorPage:
    """Return one page of an institution's anchors, newest first.

    Raises `BadQuery`, `CorruptRecord`.
    """
    check_institution("institution", institution)
    check_limit(limit, ANCHORS_LIMIT_MAX)
    asked = paging.question("anchors", institution)
    below = paging.decode_cursor(asked, cursor)
    rows = paging.newest_first(moment.chain, audit.INDEX_ANCHOR, [(institution.encode(),)], below)

    def read(sequence: bytes) -> AnchorView:
        row = moment.get(audit.anchor_key(institution, int.from_bytes(sequence, "big")))
        if row is None:
            raise CorruptRecord("an index names an audit anchor that the state does not hold")
        stored = audit.decode_anchor(row)
        return AnchorView(
            institution=institution,
            sequence=stored.sequence,
            from_ms=stored.from_ms,
            to_ms=stored.to_ms,
            count=stored.records,
            root=stored.root,
            previous_root=stored.previous_root,
            height=stored.height,
        )

    found, last = paging.cut_page(rows, limit, read, paging.ROWS_MAX)
    return AnchorPage(tuple(found), paging.next_cursor(asked, last))


def _after(study_id: bytes, position: bytes | None) -> bytes | None:
    """Return where the scan of a trail goes on. Raises `BadQuery` for a forged position."""
    if position is None:
        return None
    try:
        match unpack(position):
            case (bytes(ordinal), bytes(number)):
                return schema.encode_parts((study_id, ordinal, number))
    except NotCanonical:
        pass
    raise BadQuery("cursor must be the next_cursor of a page of this same question")


class _Blocks:
    """Events with their senders. Of all blocks and transactions the last one read is kept: rows of
    one page go down in order, a block can have megabytes, and a transaction many events."""

    def __init__(self, chain: ChainStore, limits: Limits) -> None:
        self._chain = chain
        self._limits = limits
        self._time_ms = 0
        self._receipts: list[bytes] = []
        self._bodies: list[bytes] = []
        self._height = -1  # of these
        self._place = (-1, -1)
        self._sent: tuple[Receipt, Transaction] | None = None  # at this place

    def event(self, ordinal: bytes, number: bytes) -> TrailEntry:
        """Return the event `number` of the transaction whose operation `ordinal` names."""
        height, position, _ = _numbers(ordinal)
        return self._entry(height, position, next(_numbers(number)))

    def beginning(self, ordinal: bytes) -> TrailEntry:
        """Return the event by which the operation `ordinal` registered a study."""
        height, position, operation = _numbers(ordinal)
        receipt, _ = self._executed(height, position)
        for number, event in enumerate(receipt.events):
            if event.operation == operation and event.name in _BEGINNINGS:
                return self._entry(height, position, number)
        raise _lacking(height)

    def _entry(self, height: int, position: int, number: int) -> TrailEntry:
        receipt, sent = self._executed(height, position)
        if number >= len(receipt.events):
            raise _lacking(height)
        event = receipt.events[number]
        return TrailEntry(
            height=height,
            position=position,
            number=number,
            time_ms=self._time_ms,
            transaction_id=receipt.transaction_id,
            institution=sent.institution,
            member_key=sent.member_key,
            name=event.name,
            fields=event.fields,
        )

    def _executed(self, height: int, position: int) -> tuple[Receipt, Transaction]:
        if self._sent is None or self._place != (height, position):
            self._sent = self._decode(height, position)
            self._place = height, position
        return self._sent

    def _decode(self, height: int, position: int) -> tuple[Receipt, Transaction]:
        if height != self._height:
            self._load(height)
        if position >= min(len(self._receipts), len(self._bodies)):
            raise _lacking(height)
        try:
            return (
                Receipt.decode(self._receipts[position]),
                decode_transaction(self._bodies[position], self._limits),
            )
        except (InvalidBlock, Refused) as error:
            raise CorruptRecord(
                f"transaction {position} of height {height} or its receipt cannot be read"
            ) from error

    def _load(self, height: int) -> None:
        digest = self._chain.payload_digest(height)
        payload = None if digest is None else self._chain.payload(height, digest)
        receipts = self._chain.receipts(height)
        if payload is None or receipts is None:
            raise _lacking(height)
        self._time_ms = read_header(self._chain, height).time_ms
        self._receipts, self._bodies = receipts, payload[1]
        self._height = height


def _numbers(ordinal: bytes) -> Iterator[int]:
    """Yield the numbers of `Context.ordinal`: each a length, counted from 2, and its bytes."""
    start = 0
    while start < len(ordinal):
        end = start + ordinal[start] - 1
        yield int.from_bytes(ordinal[start + 1 : end], "big")
        start = end


def _lacking(height: int) -> CorruptRecord:
    return CorruptRecord(
        f"the block of height {height} lacks an event that an index names; "
        "move the data away and sync anew"
    )
