"""Makes proof files out of a node's store, in two steps, because seals come after the state.

The store holds the state of the head alone, and a header's seals arrive a little after it was
executed, when the head has perhaps moved on. So `draft` takes what the statement needs out of one
snapshot, and `finish` adds the seals out of a later one: those of the draft's own height, or of a
height soon after it that leads back to it by parent digests. Where no such seals are kept, the
newest ones do, by the history root; that alone reads one header for each height of the chain.

Reads the disk, so call it in a worker thread. Every function raises `CorruptRecord` when what is
stored cannot be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from consensus.messages import SealCertificate
from node.ledger import membership, merkle
from node.ledger.block import Batch, decode_certificate, header_digest
from node.ledger.errors import InvalidBlock
from node.ledger.genesis import Genesis
from node.ledger.merkle import Frontier
from node.ledger.proofs.format import (
    Change,
    Executed,
    History,
    Lineage,
    Parents,
    Part,
    ProofFile,
    Sealed,
    State,
    Time,
    Trust,
    encode,
)
from node.ledger.proofs.questions import Request
from node.ledger.transaction import decode_transaction
from storage.chain import ChainStore
from storage.errors import CorruptRecord
from storage.kv import Reader
from storage.state import prove

# Sync takes fewer blocks than this without seals of their own below one that has some.
SEARCH_HEIGHTS = 128


class CannotProve(Exception):
    """The chain does not show what is asked; the sentence says why, and what can be asked."""


class NotSealedYet(Exception):
    """No quorum has sealed what the proof rests on yet; asking again a little later helps."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A statement with its evidence under one header, which needs seals yet."""

    height: int  # of the header
    part: Part


def make(reader: Reader, genesis: Genesis, request: Request) -> bytes:
    """Return the proof file for `request`, all out of the snapshot `reader`.

    Raises `CannotProve`, and `NotSealedYet` where `draft` and `finish` would wait.
    """
    drafted = draft(reader, genesis, request)
    proof = finish(reader, genesis, drafted)
    if proof is None:
        raise NotSealedYet(f"height {drafted.height} is not sealed yet")
    return proof


def draft(reader: Reader, genesis: Genesis, request: Request) -> Draft:
    """Return the statement that answers `request`, out of the snapshot `reader`.

    The state is that of the head. Raises `CannotProve`.
    """
    chain = ChainStore(reader)
    head = chain.head()
    if head is None:
        raise CannotProve("the node has no block yet")
    if request.height is not None:
        if request.height > head:
            raise CannotProve(f"the chain has not reached this height; the last one is {head}")
        return Draft(request.height, Time())
    if request.transaction_id is not None:
        return _executed(chain, genesis, request, request.transaction_id)
    return Draft(head, _state(reader, chain, request))


def finish(reader: Reader, genesis: Genesis, drafted: Draft) -> bytes | None:
    """Return the proof file for `drafted`, with seals out of the snapshot `reader`.

    None when nothing from the draft's height on is sealed yet: call it again later.
    """
    chain = ChainStore(reader)
    certificate = _certificate_from(chain, drafted.height)
    if certificate is None:
        return None
    anchor = certificate.height
    changes = []
    for index in range(1, membership.set_count(chain.state_value)):
        planned = membership.planned_set(chain.state_value, index)
        if planned.height > anchor:
            break
        members = tuple([(node.institution, node.public_key) for node in planned.nodes])
        changes.append(Change(_sealed(chain, _last_seals(chain, planned.height - 1)), members))
    trust = Trust(
        tuple(changes), _sealed(chain, certificate), _lineage(chain, drafted.height, anchor)
    )
    return encode(ProofFile(genesis.chain_id, drafted.part, trust))


def _state(reader: Reader, chain: ChainStore, request: Request) -> State:
    rows = tuple([(key, chain.state_value(key)) for key in request.keys])
    missing = any(value is None for _, value in rows)
    if request.is_there is True and missing:
        raise CannotProve(
            f"there is no such {request.kind}; `absence` proves that, e.g. `absence study ID`"
        )
    if request.is_there is False and not missing:
        raise CannotProve("it is there, so its absence cannot be proved; `state` proves what it is")
    return State(rows, tuple([prove(reader, key) for key, _ in rows]))


def _executed(
    chain: ChainStore, genesis: Genesis, request: Request, transaction_id: bytes
) -> Draft:
    place = chain.transaction(transaction_id)
    if place is None:
        raise CannotProve("no transaction with this id was executed")
    height, position = place
    payload_digest = chain.payload_digest(height)
    payload = payload_digest and chain.payload(height, payload_digest)
    receipts = chain.receipts(height)
    if not payload or receipts is None or not position < len(receipts) == len(payload[1]):
        raise _missing(height)
    try:
        batch = Batch.decode(payload[0], genesis.limits)
    except InvalidBlock as error:
        raise CorruptRecord(f"the block of height {height} cannot be read: {error}") from error
    body = payload[1][position]
    if request.kind == "access":
        names = [each.name for each in decode_transaction(body, genesis.limits).operations]
        if not any(name.startswith("access.") for name in names):
            raise CannotProve(f"the transaction is about {', '.join(sorted(set(names)))} only")
    sides, path = climb(batch.transactions, position)
    _, receipt_path = climb([merkle.leaf_hash(row) for row in receipts], position)
    return Draft(height, Executed(body, receipts[position], sides, path, receipt_path))


def climb(leaves: Sequence[bytes], position: int) -> tuple[int, tuple[bytes, ...]]:
    """Return the way from a leaf to the root: a bit for each hash beside it, set where that hash
    stands on the left, the lowest bit for the lowest hash; and the hashes."""
    path = merkle.inclusion_proof(leaves, position)
    sides, last, number = 0, len(leaves) - 1, 0
    while last:
        if position & 1:
            sides |= 1 << number
        # The last hash of an odd level rises as it is: it has nothing beside it there.
        if position & 1 or position < last:
            number += 1
        position, last = position >> 1, last >> 1
    return sides, tuple(path)


def _certificate_from(chain: ChainStore, height: int) -> SealCertificate | None:
    """Return the certificate of the first height from `height` on that has one; if none is near,
    the newest of the chain. None when there is none above."""
    head = chain.head() or 0
    first = max(height, 1)
    near = range(first, min(first + SEARCH_HEIGHTS, head + 1))
    newest = range(head, max(first - 1, head - SEARCH_HEIGHTS), -1)
    for candidate in (*near, *newest):
        certificate = _certificate(chain, candidate)
        if certificate is not None:
            return certificate
    return None


def _certificate(chain: ChainStore, height: int) -> SealCertificate | None:
    encoded = chain.certificate(height)
    try:
        return None if encoded is None else decode_certificate(encoded)
    except InvalidBlock as error:
        raise CorruptRecord(f"the certificate of height {height}: {error}") from error


def _last_seals(chain: ChainStore, height: int) -> SealCertificate:
    certificate = _certificate(chain, height)
    if certificate is None:
        raise CorruptRecord(
            f"the seals of height {height}, the last before a change of validators, are missing; "
            "ask another node, or sync this one anew"
        )
    return certificate


def _sealed(chain: ChainStore, certificate: SealCertificate) -> Sealed:
    return Sealed(_header(chain, certificate.height), certificate.seals)


def _lineage(chain: ChainStore, height: int, anchor: int) -> Lineage:
    if height == anchor:
        return None
    if anchor - height < SEARCH_HEIGHTS:
        return Parents(tuple([_header(chain, h) for h in range(anchor - 1, height - 1, -1)]))
    return History(_header(chain, height), _history_path(chain, height, anchor))


def _history_path(chain: ChainStore, leaf: int, size: int) -> tuple[bytes, ...]:
    """Return PATH(leaf, D[size]) of RFC 6962 §2.1.1 over the headers; keeps O(log n) hashes."""
    path: list[bytes] = []
    start, stop = 0, size
    while stop - start > 1:
        split = start + (1 << ((stop - start - 1).bit_length() - 1))
        if leaf < split:
            path.append(_history_root(chain, split, stop))
            stop = split
        else:
            path.append(_history_root(chain, start, split))
            start = split
    return tuple(reversed(path))


def _history_root(chain: ChainStore, start: int, stop: int) -> bytes:
    frontier = Frontier()
    for height in range(start, stop):
        digest = header_digest(_header(chain, height))
        frontier = frontier.with_leaf(merkle.leaf_hash(digest))
    return frontier.root()


def _header(chain: ChainStore, height: int) -> bytes:
    encoded = chain.header(height)
    if encoded is None:
        raise _missing(height)
    return encoded


def _missing(height: int) -> CorruptRecord:
    return CorruptRecord(
        f"parts of the block of height {height} are missing; move the data away and sync anew"
    )
