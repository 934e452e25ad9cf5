"""The bytes of a proof file. docs/developers/proof-format.md is the specification.

Canonical msgpack (`consensus.wire`), one array:

    (MAGIC, VERSION, chain id, statement, evidence, digest)
    statement  (kind, claim, ...)                   what is proved; the kinds are the parts below
    evidence   (changes, anchor, lineage, details)  why it holds
    changes    ((header, seals, members), ...)      one for each change of validators since genesis
    anchor     (header, seals)
    lineage    nil, ("parents", (header, ...)) or ("history", header, (hash, ...))
    digest     over every byte before it

The anchor is a header that a quorum sealed; what the statement is about, the target, is the anchor
itself or an earlier header below it. Nothing stands in a file that verification does not use. The
digest guards against damage, not against lies: without it, damage could turn a proof that one key
is absent into a true one that another is. Decoding checks form and digest only.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from consensus.wire import NotCanonical, Value, pack, unpack
from storage.errors import InvalidProof

MAGIC = "radledger-proof"
VERSION = 1
TAG = b"radledger/proof/1"

FILE_BYTES_MAX = 24 * 1024 * 1024  # a manifest of 100,000 instances has about 18 MB
CHANGES_MAX = 1_000
SEALS_MAX = 1_000
PARENTS_MAX = 1_024
PATH_MAX = 64
ROWS_MAX = 16
KEY_BYTES_MAX = 1_024
RECORD_BYTES_MAX = 256
INSTANCES_MAX = 100_000
DIGEST_BYTES = 32

Row: TypeAlias = tuple[bytes, bytes | None]  # state key, and its value or None where there is none
Seals: TypeAlias = tuple[tuple[int, bytes], ...]  # (validator's index, signature of 64 bytes)
Path: TypeAlias = tuple[bytes, ...]  # hashes beside the way up, the lowest first
Parse: TypeAlias = Callable[[tuple[Value, ...], tuple[Value, ...]], "Part"]


@dataclass(frozen=True, slots=True)
class Time:
    """That the chain had reached the target's height at the target's time."""

    kind: ClassVar[str] = "time"


@dataclass(frozen=True, slots=True)
class State:
    """What the state after the target holds under some keys, and that it holds nothing there."""

    rows: tuple[Row, ...]  # 1 to ROWS_MAX, keys ascending
    proofs: tuple[bytes, ...]  # one for each row, see storage.state_proof

    kind: ClassVar[str] = "state"


@dataclass(frozen=True, slots=True)
class Instance:
    """That a registered version of a study has an instance with this record."""

    state: State  # the rows of the version and of its study
    record: bytes  # canonical; what is committed to of one instance
    position: int
    count: int  # of instances in the version
    path: Path
    tree: bytes  # the head of the manifest's tree
    blinding: bytes  # 32 bytes

    kind: ClassVar[str] = "instance"


@dataclass(frozen=True, slots=True)
class Manifest:
    """That a registered version of a study has the instances with these records and no other."""

    state: State  # the rows of the version and of its study
    records: tuple[bytes, ...]  # of all instances, in the manifest's order
    blindings: tuple[bytes, ...]  # one for each

    kind: ClassVar[str] = "manifest"


@dataclass(frozen=True, slots=True)
class Executed:
    """That the target's block holds a transaction, and what came of it."""

    body: bytes
    receipt: bytes
    sides: int  # bit i: whether the hash i of both paths stands on the left
    path: Path
    receipt_path: Path  # of the same length: both trees have one shape

    kind: ClassVar[str] = "transaction"


Part: TypeAlias = Time | State | Instance | Manifest | Executed


@dataclass(frozen=True, slots=True)
class Sealed:
    """An encoded header and the seals of exactly a quorum over it."""

    header: bytes
    seals: Seals


@dataclass(frozen=True, slots=True)
class Change:
    """The last header of a reign, and the validators that it hands over to."""

    last: Sealed
    members: tuple[tuple[str, bytes], ...]  # (institution, key) in voting order


@dataclass(frozen=True, slots=True)
class Parents:
    """The target by parent digests: the anchor's parent first, the target last."""

    headers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class History:
    """The target by the anchor's history root: RFC 6962, leaf `height` of `anchor height`."""

    header: bytes
    path: Path


Lineage: TypeAlias = Parents | History | None


@dataclass(frozen=True, slots=True)
class Trust:
    """Why the target is a header of the chain."""

    changes: tuple[Change, ...]
    anchor: Sealed
    lineage: Lineage  # None: the anchor is the target


@dataclass(frozen=True, slots=True)
class ProofFile:
    """A proof file taken apart; nothing is verified yet."""

    chain_id: bytes
    part: Part
    trust: Trust


def encode(file: ProofFile) -> bytes:
    """Return the canonical bytes."""
    trust = file.trust
    changes = tuple((c.last.header, c.last.seals, c.members) for c in trust.changes)
    anchor = (trust.anchor.header, trust.anchor.seals)
    claim, details = _claim_and_details(file.part)
    evidence = (changes, anchor, _lineage_fields(trust.lineage), details)
    head = pack((MAGIC, VERSION, file.chain_id, (file.part.kind, *claim), evidence, bytes(32)))
    return with_digest(head)


def with_digest(data: bytes) -> bytes:
    """Return a packed file with its digest made anew."""
    body = data[:-DIGEST_BYTES]
    return body + hashlib.sha256(TAG + body).digest()


def decode(data: bytes) -> ProofFile:
    """Return the proof file that `data` encodes, not yet verified. Raises `InvalidProof`."""
    if len(data) > FILE_BYTES_MAX:
        raise InvalidProof(f"a proof file has at most {FILE_BYTES_MAX} bytes, not {len(data)}")
    try:
        value = unpack(data)
    except NotCanonical as error:
        raise InvalidProof(
            "the file is not canonical msgpack: no proof file, or damaged"
        ) from error
    if type(value) is not tuple or len(value) < 2 or value[0] != MAGIC:
        raise InvalidProof("this is not a RadLedger proof file")
    if type(value[1]) is not int or value[1] != VERSION:
        made = value[1] if type(value[1]) is int else "unknown"
        raise InvalidProof(f"proof format {made}; this program knows format {VERSION}")
    _, _, chain_id, statement, evidence, digest = _array(value, 6, "the file")
    if type(digest) is not bytes or len(digest) != DIGEST_BYTES or with_digest(data) != data:
        raise InvalidProof("the file is damaged: its digest is another; get it anew")
    changes, anchor, lineage, details = _array(evidence, 4, "the evidence")
    return ProofFile(
        _bytes(chain_id, DIGEST_BYTES, "the chain id"),
        _part(_list(statement, 4, "the statement"), _list(details, 6, "the details")),
        Trust(
            tuple([_change(each) for each in _list(changes, CHANGES_MAX, "the list of changes")]),
            Sealed(*_sealed(_array(anchor, 2, "the anchor"))),
            _lineage(lineage),
        ),
    )


def _claim_and_details(part: Part) -> tuple[tuple[object, ...], tuple[object, ...]]:
    match part:
        case Time():
            return (), ()
        case State(rows, proofs):
            return (rows,), (proofs,)
        case Instance(state, record):
            opening = (part.position, part.count, part.path, part.tree, part.blinding)
            return (state.rows, record), (state.proofs, *opening)
        case Manifest(state, records, blindings):
            return (state.rows, records), (state.proofs, blindings)
        case Executed():
            return (part.body, part.receipt), (part.sides, part.path, part.receipt_path)


def _lineage_fields(lineage: Lineage) -> tuple[object, ...] | None:
    match lineage:
        case None:
            return None
        case Parents(headers):
            return "parents", headers
        case History(header, path):
            return "history", header, path


def _part(statement: tuple[Value, ...], details: tuple[Value, ...]) -> Part:
    kind = statement[0] if statement else None
    parse = _PARSERS.get(kind) if type(kind) is str else None
    if parse is None:
        raise InvalidProof(f"this program knows statements about {', '.join(_PARSERS)} only")
    return parse(statement[1:], details)


def _time(claim: tuple[Value, ...], details: tuple[Value, ...]) -> Part:
    _array(claim, 0, "the claim")
    _array(details, 0, "the details")
    return Time()


def _state(claim: tuple[Value, ...], details: tuple[Value, ...]) -> Part:
    (rows,) = _array(claim, 1, "the claim")
    (proofs,) = _array(details, 1, "the details")
    return _rows(rows, proofs)


def _instance(claim: tuple[Value, ...], details: tuple[Value, ...]) -> Part:
    rows, record = _array(claim, 2, "the claim")
    proofs, position, count, path, tree, blinding = _array(details, 6, "the details")
    return Instance(
        _rows(rows, proofs),
        _record(record),
        _integer(position, 0, INSTANCES_MAX - 1, "the position"),
        _integer(count, 1, INSTANCES_MAX, "the count of instances"),
        _path(path),
        _digest(tree),
        _digest(blinding),
    )


def _manifest(claim: tuple[Value, ...], details: tuple[Value, ...]) -> Part:
    rows, records = _array(claim, 2, "the claim")
    proofs, blindings = _array(details, 2, "the details")
    return Manifest(
        _rows(rows, proofs),
        tuple([_record(each) for each in _list(records, INSTANCES_MAX, "the list of records")]),
        tuple([_digest(each) for each in _list(blindings, INSTANCES_MAX, "the blindings")]),
    )


def _executed(claim: tuple[Value, ...], details: tuple[Value, ...]) -> Part:
    body, receipt = _array(claim, 2, "the claim")
    sides, path, receipt_path = _array(details, 3, "the details")
    return Executed(
        _any_bytes(body, "the transaction"),
        _any_bytes(receipt, "the receipt"),
        _integer(sides, 0, 2**PATH_MAX - 1, "the sides"),
        _path(path),
        _path(receipt_path),
    )


_PARSERS: dict[str, Parse] = {
    "time": _time,
    "state": _state,
    "instance": _instance,
    "manifest": _manifest,
    "transaction": _executed,
}


def _rows(rows: Value, proofs: Value) -> State:
    pairs = [_array(row, 2, "a row") for row in _list(rows, ROWS_MAX, "the list of rows")]
    return State(
        tuple([(_any_bytes(key, "a key"), _row_value(value)) for key, value in pairs]),
        tuple([_any_bytes(each, "a state proof") for each in _list(proofs, ROWS_MAX, "proofs")]),
    )


def _row_value(value: Value) -> bytes | None:
    return None if value is None else _any_bytes(value, "a value")


def _change(value: Value) -> Change:
    header, seals, members = _array(value, 3, "a change of validators")
    rows = [_array(each, 2, "a validator") for each in _list(members, SEALS_MAX, "validators")]
    named = []
    for institution, key in rows:
        if type(institution) is not str:
            raise InvalidProof("a validator's institution is not text")
        named.append((institution, _digest(key)))
    return Change(Sealed(*_sealed((header, seals))), tuple(named))


def _sealed(value: tuple[Value, ...]) -> tuple[bytes, Seals]:
    header, seals = value
    rows = [_array(seal, 2, "a seal") for seal in _list(seals, SEALS_MAX, "the list of seals")]
    return _any_bytes(header, "a header"), tuple(
        [
            (_integer(sender, 0, SEALS_MAX - 1, "a validator's index"), _bytes(sig, 64, "a seal"))
            for sender, sig in rows
        ]
    )


def _lineage(value: Value) -> Lineage:
    match value:
        case None:
            return None
        case ("parents", tuple(headers)):
            listed = _list(headers, PARENTS_MAX, "the list of parents")
            return Parents(tuple([_any_bytes(each, "a header") for each in listed]))
        case ("history", header, path):
            return History(_any_bytes(header, "a header"), _path(path))
    raise InvalidProof("the lineage is neither missing nor of parents nor of history")


def _record(value: Value) -> bytes:
    if type(value) is not bytes or not 1 <= len(value) <= RECORD_BYTES_MAX:
        raise InvalidProof(f"a record is not 1 to {RECORD_BYTES_MAX} bytes")
    return value


def _path(value: Value) -> Path:
    return tuple([_digest(each) for each in _list(value, PATH_MAX, "a path")])


def _digest(value: Value) -> bytes:
    return _bytes(value, DIGEST_BYTES, "a digest or key")


def _bytes(value: Value, length: int, what: str) -> bytes:
    if type(value) is not bytes or len(value) != length:
        raise InvalidProof(f"{what} does not have {length} bytes")
    return value


def _any_bytes(value: Value, what: str) -> bytes:
    if type(value) is not bytes:
        raise InvalidProof(f"{what} is not a byte string")
    return value


def _integer(value: Value, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InvalidProof(f"{what} is not an integer from {low} to {high}")
    return value


def _array(value: Value, count: int, what: str) -> tuple[Value, ...]:
    if type(value) is not tuple or len(value) != count:
        raise InvalidProof(f"{what} is not an array of {count}")
    return value


def _list(value: Value, most: int, what: str) -> tuple[Value, ...]:
    if type(value) is not tuple or len(value) > most:
        raise InvalidProof(f"{what} is not an array of at most {most}")
    return value
