"""Batches, headers, receipts and blocks: canonical bytes, digests, and what belongs together.

    batch    pack((version, time_ms, (transaction digest, ...)))
    header   pack((version, chain_id, height, time_ms, parent, transactions_root, receipts_root,
                   state_root, history_root, validators_digest, next_validators_digest))
    receipt  pack((transaction_id, code, operation, rule, ((name, operation, (field, ...)), ...)))
    block    pack((version, header, batch or nil, (body, ...), certificate or nil))

A batch is what consensus orders; the header is complete only after execution, and what is sealed.
The null block that fills a gap after a view change has no batch, no transaction and no receipt.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from consensus.messages import SealCertificate
from consensus.wire import NotCanonical, Value, pack, unpack
from node.ledger import merkle
from node.ledger.errors import InvalidBlock
from node.ledger.limits import HEIGHT_MAX, TIME_MS_MAX, Limits
from node.ledger.transaction import transaction_digest

BLOCK_VERSION = 1  # of batches, headers and blocks alike
BATCH_TAG = b"radledger/batch/1"
HEADER_TAG = b"radledger/header/1"
OK = "ok"  # the code of a successful receipt

CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
RULE = re.compile(r"[a-z0-9_.:/-]{0,80}")  # e.g. "north/treatment", "consent"
EVENT_NAME = re.compile(r"[a-z][a-z0-9_.]{0,63}")
SEALS_MAX = 256
# What a block adds to its bodies: digests in the batch, lengths, header and certificate.
_BLOCK_OVERHEAD = 64 * 1024
_BODY_OVERHEAD = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """What a primary proposes for one height: a time, and transactions by digest, in order."""

    time_ms: int
    transactions: tuple[bytes, ...]  # digests of 32 bytes, distinct, at least one
    digest: bytes = field(init=False, compare=False)  # 32 bytes, what consensus orders
    _encoded: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Kept, because a batch of 2,000 is asked for both several times on its way.
        encoded = pack((BLOCK_VERSION, self.time_ms, self.transactions))
        object.__setattr__(self, "_encoded", encoded)
        object.__setattr__(self, "digest", hashlib.sha256(BATCH_TAG + encoded).digest())

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return self._encoded

    @staticmethod
    def decode(data: bytes, limits: Limits) -> "Batch":
        """Return the batch that `data` encodes. Raises `InvalidBlock`."""
        _, time_ms, digests = _unpack(data, "batch", 3)
        _integer(time_ms, 1, TIME_MS_MAX, "batch: time")
        if type(digests) is not tuple or not 1 <= len(digests) <= limits.batch_transactions_max:
            raise InvalidBlock(f"batch: needs 1 to {limits.batch_transactions_max} transactions")
        if any(type(digest) is not bytes or len(digest) != 32 for digest in digests):
            raise InvalidBlock("batch: a transaction digest has 32 bytes")
        if len(set(digests)) != len(digests):
            raise InvalidBlock("batch: a transaction occurs twice")
        return Batch(time_ms, digests)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Header:
    """What validators seal: one height, complete with the state after it."""

    chain_id: bytes
    height: int
    time_ms: int  # strictly increases, see `block_time`
    parent: bytes  # digest of the header before; 32 zero bytes at height 0
    transactions_root: bytes  # over transaction digests
    receipts_root: bytes  # over leaf hashes of encoded receipts
    state_root: bytes  # after this height
    history_root: bytes  # over leaf hashes of the header digests of heights 0 to height - 1
    validators_digest: bytes  # of the set that orders and seals this height
    next_validators_digest: bytes  # of the set of height + 1

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return pack(
            (
                BLOCK_VERSION,
                self.chain_id,
                self.height,
                self.time_ms,
                self.parent,
                self.transactions_root,
                self.receipts_root,
                self.state_root,
                self.history_root,
                self.validators_digest,
                self.next_validators_digest,
            )
        )

    @staticmethod
    def decode(data: bytes) -> "Header":
        """Return the header that `data` encodes. Raises `InvalidBlock`."""
        _, chain_id, height, time_ms, *digests = _unpack(data, "header", 11)
        _integer(height, 0, HEIGHT_MAX, "header: height")
        _integer(time_ms, 1, TIME_MS_MAX, "header: time")
        if any(type(digest) is not bytes or len(digest) != 32 for digest in (chain_id, *digests)):
            raise InvalidBlock("header: chain id, parent, roots and set digests have 32 bytes")
        return Header(chain_id, height, time_ms, *digests)  # type: ignore[arg-type]

    @property
    def digest(self) -> bytes:
        """The 32 bytes that seals sign and that the next header names as its parent."""
        return header_digest(self.encode())


def header_digest(encoded: bytes) -> bytes:
    """Return the digest of the header with these canonical bytes."""
    return hashlib.sha256(HEADER_TAG + encoded).digest()


def block_time(parent_time_ms: int, batch: Batch | None) -> int:
    """Return the time of the block after a parent: the batch's own, or just after the parent's.

    A batch that a new view carried over keeps an old time; a null block has none.
    """
    return parent_time_ms + 1 if batch is None else max(batch.time_ms, parent_time_ms + 1)


@dataclass(frozen=True, slots=True)
class Event:
    """A fact that a contract states, for subscribers and indexes."""

    name: str  # e.g. "study.registered"
    operation: int  # index of the operation that emitted it
    fields: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """The outcome of one transaction; its canonical bytes are hashed into the receipts root."""

    transaction_id: bytes  # 32 bytes
    code: str = OK
    operation: int | None = None  # which operation failed; None: all succeeded, or none was tried
    rule: str = ""  # which rule refused, when the code alone does not say
    events: tuple[Event, ...] = ()  # empty unless `code` is OK

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        events = tuple([(event.name, event.operation, event.fields) for event in self.events])
        return pack((self.transaction_id, self.code, self.operation, self.rule, events))

    @staticmethod
    def decode(data: bytes) -> "Receipt":
        """Return the receipt that `data` encodes. Raises `InvalidBlock`; the caller bounds it."""
        transaction_id, code, operation, rule, events = _fields(data, "receipt", 5)
        if type(transaction_id) is not bytes or len(transaction_id) != 32:
            raise InvalidBlock("receipt: a transaction id has 32 bytes")
        if type(code) is not str or CODE.fullmatch(code) is None:
            raise InvalidBlock("receipt: not a code")
        if type(rule) is not str or RULE.fullmatch(rule) is None:
            raise InvalidBlock("receipt: not a rule")
        if operation is not None:
            _integer(operation, 0, 2**16, "receipt: operation")
        if type(events) is not tuple or (events and code != OK):
            raise InvalidBlock("receipt: events must be an array, and empty after a failure")
        if code == OK and (operation is not None or rule):
            raise InvalidBlock("receipt: a successful one names neither operation nor rule")
        return Receipt(transaction_id, code, operation, rule, tuple(map(_event, events)))  # type: ignore[arg-type]


def transactions_root(batch: Batch | None) -> bytes:
    """Return the root over the transactions of `batch`; a digest is already the leaf hash."""
    return merkle.EMPTY_ROOT if batch is None else merkle.root(batch.transactions)


def receipts_root(receipts: Sequence[bytes]) -> bytes:
    """Return the root over encoded receipts, in the order of their transactions."""
    return merkle.root([merkle.leaf_hash(receipt) for receipt in receipts])


@dataclass(frozen=True, slots=True)
class Block:
    """A whole height, as nodes that catch up receive it; they recompute the receipts."""

    header: Header
    batch: Batch | None
    bodies: tuple[bytes, ...] = field(repr=False)  # encoded transactions in the order of the batch
    certificate: SealCertificate | None  # None at height 0, and where a later block proves this one

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        batch = None if self.batch is None else self.batch.encode()
        certificate = None if self.certificate is None else encode_certificate(self.certificate)
        return pack((BLOCK_VERSION, self.header.encode(), batch, self.bodies, certificate))

    @staticmethod
    def decode(data: bytes, limits: Limits) -> "Block":
        """Return the block that `data` encodes; call `check_block` next. Raises `InvalidBlock`."""
        if len(data) > block_bytes_max(limits):
            raise InvalidBlock(f"block: {len(data)} bytes; at most {block_bytes_max(limits)}")
        _, header, batch, bodies, certificate = _unpack(data, "block", 5)
        if type(bodies) is not tuple or any(type(body) is not bytes for body in bodies):
            raise InvalidBlock("block: bodies must be an array of byte strings")
        return Block(
            Header.decode(_bytes(header, "block: header")),
            None if batch is None else Batch.decode(_bytes(batch, "block: batch"), limits),
            bodies,  # type: ignore[arg-type]
            None
            if certificate is None
            else decode_certificate(_bytes(certificate, "block: certificate")),
        )


def block_bytes_max(limits: Limits) -> int:
    """Return the most bytes that an encoded block has under `limits`."""
    return limits.batch_bytes_max + limits.batch_transactions_max * _BODY_OVERHEAD + _BLOCK_OVERHEAD


def check_block(block: Block, parent: Header, limits: Limits) -> None:
    """Check that the parts of `block` belong together and follow `parent`. Raises `InvalidBlock`.

    Checked: chain, height, parent, time, validator set, transaction root, every body against its
    digest, sizes, and that the certificate, if there is one, is about this header. Not checked: the
    signatures in the certificate, and what only execution shows (receipts, state, history). A block
    without a certificate is good only below a later one that has one and descends from it. Hashes
    up to `batch_bytes_max` bytes, so call it in a worker thread.
    """
    header = block.header
    _require(header.chain_id == parent.chain_id, "block: of another chain")
    _require(header.height == parent.height + 1, "block: not the height after its parent's")
    _require(header.parent == parent.digest, "block: does not name its parent")
    _require(
        header.validators_digest == parent.next_validators_digest,
        "block: not sealed by the validator set that its parent announced",
    )
    _require(
        header.time_ms == block_time(parent.time_ms, block.batch), "block: time breaks the rule"
    )
    check_payload(block.batch, block.bodies, limits)
    _require(
        header.transactions_root == transactions_root(block.batch),
        "block: the transaction root is not that of its batch",
    )
    certificate = block.certificate
    _require(
        certificate is None
        or (certificate.height == header.height and certificate.header == header.digest),
        "block: the certificate is about another header",
    )


def check_payload(batch: Batch | None, bodies: Sequence[bytes], limits: Limits) -> None:
    """Check that `bodies` are those that `batch` names, within bounds. Raises `InvalidBlock`."""
    digests = () if batch is None else batch.transactions
    _require(len(bodies) == len(digests), "payload: not one body for each transaction")
    _require(
        sum(map(len, bodies)) <= limits.batch_bytes_max,
        f"payload: the bodies have more than {limits.batch_bytes_max} bytes",
    )
    for index, (body, digest) in enumerate(zip(bodies, digests, strict=True)):
        if transaction_digest(body) != digest:
            raise InvalidBlock(f"payload: body {index} is not the one that the batch names")


def encode_certificate(certificate: SealCertificate) -> bytes:
    """Return pack((height, header, ((sender, signature), ...)))."""
    return pack((certificate.height, certificate.header, certificate.seals))


def decode_certificate(data: bytes) -> SealCertificate:
    """Return the certificate that `data` encodes; form only. Raises `InvalidBlock`."""
    height, header, seals = _fields(data, "certificate", 3)
    _integer(height, 0, HEIGHT_MAX, "certificate: height")
    if type(header) is not bytes or len(header) != 32:
        raise InvalidBlock("certificate: a header digest has 32 bytes")
    if type(seals) is not tuple or len(seals) > SEALS_MAX:
        raise InvalidBlock(f"certificate: has at most {SEALS_MAX} seals")
    previous = -1
    for seal in seals:
        match seal:
            case (int() as sender, bytes() as signature) if (
                type(sender) is int and previous < sender < SEALS_MAX and len(signature) == 64
            ):
                previous = sender
            case _:
                raise InvalidBlock("certificate: seals are (sender, signature), senders ascending")
    return SealCertificate(height, header, seals)  # type: ignore[arg-type]


def _unpack(data: bytes, what: str, count: int) -> tuple[Value, ...]:
    """Return the fields of a versioned encoding; the version comes first."""
    value = _fields(data, what, None)
    version = value[0] if value else None
    if type(version) is int and version != BLOCK_VERSION:
        raise InvalidBlock(f"{what}: version {version}; this node knows version {BLOCK_VERSION}")
    if version != BLOCK_VERSION or type(version) is not int or len(value) != count:
        raise InvalidBlock(f"{what}: must be an array of a version and {count - 1} fields")
    return value


def _fields(data: bytes, what: str, count: int | None) -> tuple[Value, ...]:
    try:
        value = unpack(data)
    except NotCanonical as error:
        raise InvalidBlock(f"{what}: not canonical msgpack") from error
    if type(value) is not tuple or (count is not None and len(value) != count):
        raise InvalidBlock(f"{what}: must be an array of {count or 'several'} fields")
    return value


def _event(value: Value) -> Event:
    match value:
        case (str() as name, int() as operation, tuple() as fields) if (
            type(operation) is int
            and 0 <= operation <= 2**16
            and EVENT_NAME.fullmatch(name) is not None
        ):
            return Event(name, operation, fields)
    raise InvalidBlock("receipt: an event is (name, operation, fields)")


def _integer(value: Value, low: int, high: int, what: str) -> None:
    if type(value) is not int or not low <= value <= high:
        raise InvalidBlock(f"{what} must be an integer from {low} to {high}")


def _bytes(value: Value, what: str) -> bytes:
    if type(value) is not bytes:
        raise InvalidBlock(f"{what} must be a byte string")
    return value


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise InvalidBlock(sentence)
