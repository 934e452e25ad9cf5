"""Blocks, transactions and events as they were executed.

Everything is read through one `ChainStore`; hand in one on a snapshot and all answers are of one
moment. Reads the disk, so call it in a worker thread. Every answer is bounded, and its cost does
not grow with the chain.
"""

from dataclasses import dataclass

from consensus.messages import NULL_DIGEST, SealCertificate
from node.ledger.block import Batch, Event, Header, Receipt, decode_certificate
from node.ledger.errors import InvalidBlock, Refused
from node.ledger.limits import Limits
from node.ledger.queries.studies import StudyView, find_study
from node.ledger.transaction import Transaction, decode_transaction
from storage.chain import ChainStore
from storage.errors import CorruptRecord


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


class Queries:
    """Answers out of one `chain`; `limits` are the genesis'.

    Every method raises `CorruptRecord` when what is stored cannot be read.
    """

    def __init__(self, chain: ChainStore, limits: Limits) -> None:
        self._chain = chain
        self._limits = limits

    def study(self, study_id: bytes) -> StudyView | None:
        """Return the study with this id (16 bytes), or None."""
        return find_study(self._chain, study_id)

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


def _decode_receipt(row: bytes, height: int) -> Receipt:
    try:
        return Receipt.decode(row)
    except InvalidBlock as error:
        raise CorruptRecord(f"a receipt of height {height}: {error}") from error


def _missing(height: int) -> CorruptRecord:
    return CorruptRecord(
        f"parts of the block of height {height} are missing; move the data away and sync anew"
    )
