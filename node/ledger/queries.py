"""What readers ask of the ledger: studies, transactions, blocks, events, and search.

Everything is read through one `ChainStore`; hand in one on a snapshot and all answers are of one
moment. Reads the disk, so call it in a worker thread. Every answer is bounded, and its cost does
not grow with the chain.

Search goes newest first, page by page. All lists of the study contract have one order, that of
registration. So a page is cut out of the one index that fits the question best, the rest of the
question filters, and the next page goes on below the last row seen, whatever blocks have come in
between.
"""

import base64
import binascii
import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from consensus.messages import NULL_DIGEST, SealCertificate
from consensus.wire import NotCanonical, pack, unpack
from node.ledger.block import Batch, Event, Header, Receipt, decode_certificate
from node.ledger.contracts import study as study_contract
from node.ledger.contracts.base import ordinal_floor, ordinal_height
from node.ledger.contracts.study import Derivation, Study
from node.ledger.contracts.vocabulary import MODALITIES, REGIONS
from node.ledger.errors import InvalidBlock, Refused
from node.ledger.limits import HEIGHT_MAX, Limits
from node.ledger.transaction import INSTITUTION, Transaction, decode_transaction
from storage import schema
from storage.chain import ChainStore
from storage.errors import CorruptRecord

VERSIONS_MAX = 200  # shown with one study, newest first
DERIVED_MAX = 200  # shown with one study, newest first
LIMIT_MAX = 200  # studies on one page
ROWS_MAX = 2_000  # index rows looked at for one page
CURSOR_CHARACTERS_MAX = 128

_CURSOR_VERSION = 1
_CHUNK_FIRST = 16
_CHUNK_MAX = 512
_AFTER_ORDINALS = b"\xff"
_STATUS = frozenset({"active", "retired"})

_Row: TypeAlias = tuple[bytes, bytes]  # (ordinal, study id)


@dataclass(frozen=True, slots=True)
class StudySummary:
    """One study as a list shows it."""

    id: bytes  # 16 bytes
    custodian: str
    subject_id: bytes  # 16 bytes
    modality: str
    region: str
    status: str  # "active" or "retired"
    retire_reason: str | None
    version: int
    root: bytes  # 32 bytes
    instance_bucket: int
    size_bucket: int
    registered_height: int
    changed_height: int
    derivation: Derivation | None


@dataclass(frozen=True, slots=True)
class StudyVersion:
    """One version of a study."""

    version: int
    root: bytes
    previous_root: bytes | None
    instance_bucket: int
    size_bucket: int
    height: int


@dataclass(frozen=True, slots=True)
class StudyView:
    """One study whole. A list that was cut off says so."""

    summary: StudySummary
    versions: tuple[StudyVersion, ...]  # newest first, at most VERSIONS_MAX
    derived: tuple[bytes, ...]  # ids of studies derived from it, newest first, at most DERIVED_MAX
    derived_truncated: bool


@dataclass(frozen=True, slots=True)
class TransactionView:
    """An executed transaction, where it is and what came of it."""

    height: int
    position: int
    time_ms: int  # of the block
    header_digest: bytes
    transaction: Transaction
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class BlockView:
    """An executed block without its bodies."""

    header: Header
    header_digest: bytes
    batch: Batch | None  # None for a null block and for height 0
    receipts: tuple[Receipt, ...]  # one for each transaction, in order; they name the ids
    certificate: SealCertificate | None  # None until the height is sealed, and at height 0


@dataclass(frozen=True, slots=True)
class EventView:
    """An event and the transaction that caused it."""

    height: int
    position: int
    transaction_id: bytes
    event: Event


class BadQuery(ValueError):
    """The question has no meaning; the sentence names the field and what it may be."""


@dataclass(frozen=True, slots=True)
class StudyQuery:
    """Which studies; None leaves a field open. Heights are of registration, both inclusive."""

    custodian: str | None = None
    subject_id: bytes | None = None
    modality: str | None = None
    region: str | None = None
    status: str | None = None  # "active" or "retired"
    height_from: int | None = None
    height_to: int | None = None
    limit: int = 50
    cursor: str | None = None  # `StudyPage.next_cursor` of the same question


@dataclass(frozen=True, slots=True)
class StudyPage:
    """Part of the answer. It can be short, even empty, and still have a next one: the work for one
    page is bounded. The answer is complete when `next_cursor` is None."""

    studies: tuple[StudySummary, ...]  # newest registration first
    next_cursor: str | None


class Queries:
    """Answers out of one `chain`; `limits` are the genesis'.

    Every method raises `CorruptRecord` when what is stored cannot be read.
    """

    def __init__(self, chain: ChainStore, limits: Limits) -> None:
        self._chain = chain
        self._limits = limits

    def study(self, study_id: bytes) -> StudyView | None:
        """Return the study with this id (16 bytes), or None."""
        stored = _stored_study(self._chain, study_id)
        if stored is None:
            return None
        rows = self._chain.scan_index(
            study_contract.INDEX_DERIVED, (study_id,), reverse=True, limit=DERIVED_MAX + 1
        )
        derived = tuple([row.value for row in rows])
        return StudyView(
            _summary(study_id, stored),
            self._versions(stored.root),
            derived[:DERIVED_MAX],
            len(derived) > DERIVED_MAX,
        )

    def transaction(self, id: bytes) -> TransactionView | None:
        """Return the executed transaction with this id (32 bytes), or None."""
        place = self._chain.transaction(id)
        if place is None:
            return None
        height, position = place
        header = self._header(height)
        payload_digest = self._chain.payload_digest(height)
        body = payload_digest and self._chain.body(height, payload_digest, position)
        receipt = self._chain.receipt(height, position)
        if header is None or not body or receipt is None:
            raise _missing(height)
        return TransactionView(
            height,
            position,
            header.time_ms,
            header.digest,
            self._decode_body(body, height),
            _decode_receipt(receipt, height),
        )

    def block(self, height: int) -> BlockView | None:
        """Return the executed block of `height`, or None."""
        header = self._header(height)
        if header is None:
            return None
        certificate = self._chain.certificate(height)
        try:
            sealed = None if certificate is None else decode_certificate(certificate)
        except InvalidBlock as error:
            raise CorruptRecord(f"the certificate of height {height}: {error}") from error
        rows = self._chain.receipts(height)
        if rows is None:
            raise _missing(height)
        receipts = tuple([_decode_receipt(row, height) for row in rows])
        return BlockView(header, header.digest, self._batch(height), receipts, sealed)

    def events(self, height: int) -> list[EventView] | None:
        """Return what happened at `height`, in order, or None if it was not executed."""
        rows = self._chain.receipts(height)
        if rows is None:
            return None
        receipts = [_decode_receipt(row, height) for row in rows]
        return [
            EventView(height, position, receipt.transaction_id, event)
            for position, receipt in enumerate(receipts)
            for event in receipt.events
        ]

    def _versions(self, newest_root: bytes) -> tuple[StudyVersion, ...]:
        versions: list[StudyVersion] = []
        root: bytes | None = newest_root
        while root is not None and len(versions) < VERSIONS_MAX:
            row = self._chain.state_value(study_contract.root_key(root))
            if row is None:
                raise CorruptRecord("a study names a version that the state does not hold")
            stored = study_contract.decode_version(row)
            versions.append(
                StudyVersion(
                    stored.version,
                    root,
                    stored.previous_root,
                    stored.instance_bucket,
                    stored.size_bucket,
                    stored.height,
                )
            )
            root = stored.previous_root
        return tuple(versions)

    def _header(self, height: int) -> Header | None:
        encoded = self._chain.header(height)
        try:
            return None if encoded is None else Header.decode(encoded)
        except InvalidBlock as error:
            raise CorruptRecord(f"the header of height {height}: {error}") from error

    def _batch(self, height: int) -> Batch | None:
        digest = self._chain.payload_digest(height)
        if digest is None or digest == NULL_DIGEST:
            return None
        payload = self._chain.payload(height, digest)
        if payload is None:
            raise _missing(height)
        try:
            return Batch.decode(payload[0], self._limits)
        except InvalidBlock as error:
            raise CorruptRecord(f"the batch of height {height}: {error}") from error

    def _decode_body(self, body: bytes, height: int) -> Transaction:
        try:
            return decode_transaction(body, self._limits)
        except Refused as error:
            raise CorruptRecord(f"a transaction of height {height} cannot be read") from error


def search(chain: ChainStore, query: StudyQuery) -> StudyPage:
    """Return the page of `query` that its cursor asks for. Raises `BadQuery`, `CorruptRecord`."""
    _check(query)
    rows = _rows(chain, query)
    found: list[StudySummary] = []
    last = b""
    for ordinal, study_id in islice(rows, ROWS_MAX):
        last = ordinal
        stored = _stored_study(chain, study_id)
        if stored is None:
            raise CorruptRecord("an index names a study that the state does not hold")
        if _matches(query, stored):
            found.append(_summary(study_id, stored))
            if len(found) == query.limit:
                break
    more = next(rows, None) is not None
    return StudyPage(tuple(found), _encode_cursor(query, last) if more else None)


def _check(query: StudyQuery) -> None:
    if query.custodian is not None and (
        type(query.custodian) is not str or not INSTITUTION.fullmatch(query.custodian)
    ):
        raise BadQuery("custodian must be the name of an institution: a-z, 0-9 and '-'")
    if query.subject_id is not None and (
        type(query.subject_id) is not bytes or len(query.subject_id) != 16
    ):
        raise BadQuery("subject_id must be 16 bytes")
    _check_word("modality", query.modality, MODALITIES)
    _check_word("region", query.region, REGIONS)
    _check_word("status", query.status, _STATUS)
    _check_height("height_from", query.height_from)
    _check_height("height_to", query.height_to)
    if (query.height_from or 0) > (HEIGHT_MAX if query.height_to is None else query.height_to):
        raise BadQuery("height_from must not be above height_to")
    if type(query.limit) is not int or not 1 <= query.limit <= LIMIT_MAX:
        raise BadQuery(f"limit must be an integer from 1 to {LIMIT_MAX}")


def _check_word(name: str, value: str | None, words: frozenset[str]) -> None:
    if value is not None and (type(value) is not str or value not in words):
        raise BadQuery(f"{name} must be one of {', '.join(sorted(words))}")


def _check_height(name: str, value: int | None) -> None:
    if value is not None and (type(value) is not int or not 0 <= value <= HEIGHT_MAX):
        raise BadQuery(f"{name} must be an integer from 0 to {HEIGHT_MAX}")


def _rows(chain: ChainStore, query: StudyQuery) -> Iterator[_Row]:
    """Yield the rows of the best index, newest first, within the heights and below the cursor."""
    below = None
    if query.cursor is not None:
        below = _decode_cursor(query)
    elif query.height_to is not None:
        below = ordinal_floor(query.height_to + 1)
    name, prefixes = _plan(chain, query)
    streams = [_descend(chain, name, prefix, below) for prefix in prefixes]
    merged = streams[0] if len(streams) == 1 else heapq.merge(*streams, reverse=True)
    lowest = ordinal_floor(query.height_from or 0)
    for row in merged:
        if row[0] < lowest:
            return
        yield row


def _plan(chain: ChainStore, query: StudyQuery) -> tuple[str, list[tuple[bytes, ...]]]:
    """Return the index to read and the prefixes whose rows, merged, hold every match."""
    modality = None if query.modality is None else query.modality.encode()
    region = None if query.region is None else query.region.encode()
    if query.subject_id is not None:
        return study_contract.INDEX_SUBJECT, [(query.subject_id,)]
    if modality and region:
        return study_contract.INDEX_KIND, [(modality, region)]
    if query.custodian is not None:
        return study_contract.INDEX_CUSTODIAN, [(query.custodian.encode(),)]
    if query.status == "retired":
        return study_contract.INDEX_RETIRED, [()]
    if modality:
        return study_contract.INDEX_KIND, [(modality, each.encode()) for each in sorted(REGIONS)]
    if region:
        return study_contract.INDEX_KIND, [(each.encode(), region) for each in sorted(MODALITIES)]
    return study_contract.INDEX_CUSTODIAN, [(each,) for each in _custodians(chain)]


def _custodians(chain: ChainStore) -> list[bytes]:
    """Return the institutions that have studies, at the cost of one seek for each."""
    found: list[bytes] = []
    after = None
    while rows := chain.scan_index(study_contract.INDEX_CUSTODIAN, after=after, limit=1):
        found.append(rows[0].parts[0])
        after = schema.encode_parts((found[-1], _AFTER_ORDINALS))
    return found


def _descend(
    chain: ChainStore, name: str, prefix: tuple[bytes, ...], below: bytes | None
) -> Iterator[_Row]:
    after = None if below is None else schema.encode_parts((*prefix, below))
    chunk = _CHUNK_FIRST
    while True:
        rows = chain.scan_index(name, prefix, after=after, reverse=True, limit=chunk)
        for row in rows:
            yield row.parts[-1], row.value
        if len(rows) < chunk:
            return
        after = rows[-1].cursor
        chunk = min(chunk * 4, _CHUNK_MAX)


def _encode_cursor(query: StudyQuery, ordinal: bytes) -> str:
    row = pack((_CURSOR_VERSION, _question(query), ordinal))
    return base64.urlsafe_b64encode(row).decode().rstrip("=")


def _decode_cursor(query: StudyQuery) -> bytes:
    """Return the ordinal below which the page begins."""
    cursor = query.cursor
    wrong = BadQuery("cursor must be the next_cursor of a page of this same question")
    if type(cursor) is not str or len(cursor) > CURSOR_CHARACTERS_MAX or not cursor.isascii():
        raise wrong
    try:
        row = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        version, question, ordinal = unpack(row)  # type: ignore[misc,str-unpack]
    except (binascii.Error, NotCanonical, TypeError, ValueError) as error:
        raise wrong from error
    if (version, question) != (_CURSOR_VERSION, _question(query)) or type(ordinal) is not bytes:
        raise wrong
    return ordinal


def _question(query: StudyQuery) -> bytes:
    """Return 8 bytes that tell questions apart; a cursor means nothing to another one."""
    fields = (
        query.custodian,
        query.subject_id,
        query.modality,
        query.region,
        query.status,
        query.height_from,
        query.height_to,
    )
    return hashlib.sha256(pack(fields)).digest()[:8]


def _stored_study(chain: ChainStore, study_id: bytes) -> Study | None:
    row = chain.state_value(study_contract.study_key(study_id))
    return None if row is None else study_contract.decode_study(row)


def _matches(query: StudyQuery, stored: Study) -> bool:
    """Return whether `stored` is asked for, heights aside: the scan keeps to those."""
    return (
        query.custodian in (None, stored.custodian)
        and query.subject_id in (None, stored.subject_id)
        and query.modality in (None, stored.modality)
        and query.region in (None, stored.region)
        and query.status in (None, _status(stored))
    )


def _status(stored: Study) -> str:
    return "active" if stored.retired is None else "retired"


def _summary(study_id: bytes, stored: Study) -> StudySummary:
    return StudySummary(
        id=study_id,
        custodian=stored.custodian,
        subject_id=stored.subject_id,
        modality=stored.modality,
        region=stored.region,
        status=_status(stored),
        retire_reason=stored.retired,
        version=stored.version,
        root=stored.root,
        instance_bucket=stored.instance_bucket,
        size_bucket=stored.size_bucket,
        registered_height=ordinal_height(stored.ordinal),
        changed_height=stored.changed_height,
        derivation=stored.derivation,
    )


def _decode_receipt(row: bytes, height: int) -> Receipt:
    try:
        return Receipt.decode(row)
    except InvalidBlock as error:
        raise CorruptRecord(f"a receipt of height {height}: {error}") from error


def _missing(height: int) -> CorruptRecord:
    return CorruptRecord(
        f"parts of the block of height {height} are missing; restore a backup or sync anew"
    )
