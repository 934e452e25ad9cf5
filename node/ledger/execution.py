"""The state transition: one committed batch in, one complete block out, alike on every node.

Order, then execute, then seal. Whatever a committed batch holds, execution finishes: a transaction
that cannot be carried out gets a failed receipt and changes nothing. What is left to raise is only
what must stop the node, because going on would part it from the others.

Rows are appended to the caller's `WriteBatch`, after everything is computed. The next block can be
executed once `adopt` or `discard` has said whether that batch became durable.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from consensus.errors import InvariantViolation, require
from consensus.messages import NULL_DIGEST
from consensus.validators import ValidatorSchedule
from node.ledger import accounts, membership, merkle
from node.ledger.accounts import Get
from node.ledger.block import (
    Batch,
    Event,
    Header,
    Receipt,
    block_time,
    receipts_root,
    transactions_root,
)
from node.ledger.contracts.base import Context
from node.ledger.contracts.table import OPERATIONS, check_form
from node.ledger.errors import REFUSALS, InvalidBlock, Refused, Rejected
from node.ledger.genesis import Genesis
from node.ledger.limits import Limits
from node.ledger.merkle import Frontier
from node.ledger.state import StateView
from node.ledger.transaction import Transaction
from storage.chain import ChainStore
from storage.errors import CorruptRecord, StorageError
from storage.kv import WriteBatch
from storage.state import StateTree

FRONTIER = "history_frontier"  # the meta row with the history tree up to and with the head


@dataclass(frozen=True, slots=True)
class ExecutedBlock:
    """A block whose every field is known; not yet durable, and not yet sealed."""

    header: Header
    payload_digest: bytes  # of the batch; NULL_DIGEST for a null block and for height 0
    transactions: tuple[Transaction, ...]
    receipts: tuple[Receipt, ...]  # one for each transaction, in order
    frontier: Frontier  # the history tree with this block's header
    changes_nodes: bool = False  # validators were planned, or observers came or went

    @property
    def header_digest(self) -> bytes:
        """The 32 bytes that validators seal."""
        return self.header.digest


class Executor:
    """Executes heights one after another. Belongs to one thread at a time."""

    def __init__(
        self, chain: ChainStore, tree: StateTree, genesis: Genesis, schedule: ValidatorSchedule
    ) -> None:
        """Take up the chain where the store left it. `schedule` has the set of the genesis; all
        others that the state has planned are put into it here, and those to come by `execute`.

        Raises `StorageError` for the database of another chain, `CorruptRecord` for a damaged one.
        """
        self._chain = chain
        self._tree = tree
        self._genesis = genesis
        self._schedule = schedule
        self._chain_id = genesis.chain_id
        self._validity_max = genesis.limits.validity_heights_max
        self._head: Header | None = None
        self._frontier = Frontier()
        self._pending: ExecutedBlock | None = None
        height = chain.head()
        if height is not None:
            self._load(height)

    @property
    def is_initialised(self) -> bool:
        """Whether the genesis block is there; if not, call `initialise`."""
        return self._head is not None

    @property
    def head(self) -> Header:
        """The header of the last block that was adopted."""
        require(self._head is not None, "the chain has no genesis block yet")
        return self._head  # type: ignore[return-value]

    def initialise(self, out: WriteBatch) -> ExecutedBlock:
        """Return the block of height 0 with the accounts and nodes of the genesis; append its rows
        to `out`."""
        require(self._head is None, "the chain is initialised already")
        view = StateView(self._chain.state_value)
        rows = accounts.genesis_state(self._genesis) | membership.genesis_rows(self._genesis)
        for key, value in rows.items():
            view.put(key, value)
        index = accounts.genesis_index(self._genesis) + membership.genesis_index(self._genesis)
        for row in index:
            view.index(*row)
        return self._complete(0, self._genesis.time_ms, None, (), [], view, out)

    def execute(
        self,
        height: int,
        batch: Batch | None,
        transactions: Sequence[Transaction],
        out: WriteBatch,
    ) -> ExecutedBlock:
        """Return the block of `height`, which must follow the head; append its rows to `out`.

        `transactions` are the bodies that `batch` names, in its order, with signatures verified
        before the vote; a `batch` of None is the null block. Appended are header, receipts,
        places of transactions, state and its tree, index and history; the payload is the
        caller's. Reads the disk. Raises `InvariantViolation` when the node must halt.
        """
        head = self.head
        require(height == head.height + 1, f"height {height} does not follow {head.height}")
        named = () if batch is None else batch.transactions
        require(
            tuple([transaction.digest for transaction in transactions]) == named,
            "the bodies are not those that the batch names",
        )
        time_ms = block_time(head.time_ms, batch)
        view = StateView(self._chain.state_value)
        run = _BlockRun(self._chain, view, height, time_ms, self._chain_id, self._validity_max)
        receipts = [run.apply(*numbered) for numbered in enumerate(transactions)]
        return self._complete(height, time_ms, batch, tuple(transactions), receipts, view, out)

    def adopt(self, executed: ExecutedBlock) -> None:
        """Make `executed` the head, now that its rows are durable."""
        require(executed is self._pending, "only the block that was executed last can be adopted")
        self._tree.adopt()
        self._head, self._frontier = executed.header, executed.frontier
        self._pending = None

    def discard(self) -> None:
        """Forget the block that was executed last; its rows were not written."""
        if self._pending is not None:
            self._tree.discard()
            self._pending = None

    def _complete(
        self,
        height: int,
        time_ms: int,
        batch: Batch | None,
        transactions: tuple[Transaction, ...],
        receipts: list[Receipt],
        view: StateView,
        out: WriteBatch,
    ) -> ExecutedBlock:
        require(self._pending is None, "the block before was neither adopted nor discarded")
        encoded = [receipt.encode() for receipt in receipts]
        changes = view.changes()
        changes_nodes = self._plan(view.get, height) or any(
            row[0] == membership.INDEX_OBSERVER for row in view.index_changes()
        )
        header = Header(
            chain_id=self._chain_id,
            height=height,
            time_ms=time_ms,
            parent=bytes(32) if self._head is None else self._head.digest,
            transactions_root=transactions_root(batch),
            receipts_root=receipts_root(encoded),
            state_root=self._tree.update(changes, out),
            history_root=self._frontier.root(),
            validators_digest=self._schedule.at(height).digest,
            next_validators_digest=self._schedule.at(height + 1).digest,
        )
        executed = self._pending = ExecutedBlock(
            header,
            NULL_DIGEST if batch is None else batch.digest,
            transactions,
            tuple(receipts),
            self._frontier.with_leaf(merkle.leaf_hash(header.digest)),
            changes_nodes,
        )
        self._append_rows(executed, encoded, changes, view, out)
        return executed

    def _append_rows(
        self,
        executed: ExecutedBlock,
        receipts: list[bytes],
        changes: dict[bytes, bytes | None],
        view: StateView,
        out: WriteBatch,
    ) -> None:
        chain, header = self._chain, executed.header
        chain.put_block(
            out, header.height, header.encode(), header.digest, executed.payload_digest, receipts
        )
        for position, receipt in enumerate(executed.receipts):
            # The first row of an id says where it took effect; a replay must not hide that.
            if receipt.code != "replayed":
                chain.put_transaction(out, receipt.transaction_id, header.height, position)
        for key, value in changes.items():
            if value is None:
                chain.delete_state(out, key)
            else:
                chain.put_state(out, key, value)
        for name, parts, row in view.index_changes():
            if row is None:
                chain.delete_index(out, name, parts)
            else:
                chain.put_index(out, name, parts, row)
        chain.put_meta(out, FRONTIER, executed.frontier.encode())

    def _plan(self, get: Get, height: int) -> bool:
        """Put the sets into the schedule that the state after `height` has and it has not; return
        whether there were any.

        Should the block be discarded, nothing is lost: the node computes the same one again.
        """
        known, count = len(self._schedule.sets()), membership.set_count(get)
        for index in range(known, count):
            planned = membership.planned_set(get, index)
            require(
                planned.height >= height + membership.CHANGE_DELAY,
                f"height {height} changes the validators of height {planned.height}: too soon",
            )
            self._schedule.plan(planned.height, planned.validator_set())
        return count > known

    def _load(self, height: int) -> None:
        first, head = _stored_header(self._chain, 0), _stored_header(self._chain, height)
        if first.chain_id != self._chain_id:
            raise StorageError(
                f"the database holds chain {first.chain_id.hex()[:16]}, the genesis is of chain "
                f"{self._chain_id.hex()[:16]}; point the node to the right one of each"
            )
        if self._tree.root != head.state_root:
            raise CorruptRecord(
                f"the state in the database is not that of its head at height {height}; "
                "move the data away and sync anew"
            )
        self._load_sets(head)
        self._frontier = _stored_frontier(self._chain, height)
        self._head = head

    def _load_sets(self, head: Header) -> None:
        get, schedule = self._chain.state_value, self._schedule
        for index in range(len(schedule.sets()), membership.set_count(get)):
            planned = membership.planned_set(get, index)
            schedule.plan(planned.height, planned.validator_set())
        sets = schedule.at(head.height), schedule.at(head.height + 1)
        if tuple(each.digest for each in sets) != (
            head.validators_digest,
            head.next_validators_digest,
        ):
            raise CorruptRecord(
                f"the validators in the state are not those of the head at height {head.height}; "
                "move the data away and sync anew"
            )


class _BlockRun:
    """The transactions of one block, one after another over one view."""

    __slots__ = ("_chain", "_chain_id", "_height", "_seen", "_time_ms", "_validity_max", "_view")

    def __init__(
        self,
        chain: ChainStore,
        view: StateView,
        height: int,
        time_ms: int,
        chain_id: bytes,
        validity_max: int,
    ) -> None:
        self._chain = chain
        self._view = view
        self._height = height
        self._time_ms = time_ms
        self._chain_id = chain_id
        self._validity_max = validity_max
        self._seen: set[bytes] = set()

    def apply(self, position: int, transaction: Transaction) -> Receipt:
        """Carry out `transaction` whole or not at all, and return its receipt."""
        receipt = self._apply(position, transaction)
        self._view.settle()
        return receipt

    def _apply(self, position: int, transaction: Transaction) -> Receipt:
        code = self._refusal(transaction)
        if code is not None:
            return Receipt(transaction.id, code)
        institution, member_key = transaction.institution, transaction.member_key
        roles = accounts.member_roles(self._view.get, institution, member_key, self._height)
        if roles is None:
            code = accounts.sender_refusal(self._view.get, institution, member_key, self._height)
            return Receipt(transaction.id, code)
        context = Context(
            self._view,
            self._height,
            self._time_ms,
            position,
            institution,
            member_key,
            roles,
            self._chain_id,
        )
        savepoint = self._view.checkpoint()
        try:
            events = _operate(context, transaction)
        except (Refused, Rejected) as refused:
            self._view.rollback(savepoint)
            rule = refused.rule if isinstance(refused, Rejected) else ""
            return Receipt(transaction.id, refused.code, context.operation, rule)
        except StorageError:
            raise
        except Exception as error:
            name = transaction.operations[context.operation].name
            raise InvariantViolation(
                f"{name} (height {self._height}, transaction {position}, operation "
                f"{context.operation}) failed with {type(error).__name__}"
            ) from error
        return Receipt(transaction.id, events=events)

    def _refusal(self, transaction: Transaction) -> str | None:
        """Return why the transaction is not tried at all, if it is not."""
        if transaction.id in self._seen or self._chain.transaction(transaction.id) is not None:
            return "replayed"
        self._seen.add(transaction.id)
        if transaction.chain_id != self._chain_id:
            return "wrong_chain"
        return _validity_refusal(transaction, self._height, self._validity_max)


def refusal(
    chain: ChainStore, transaction: Transaction, height: int, limits: Limits
) -> Refused | None:
    """Return what speaks against executing `transaction` at `height` on the state as it is, if
    anything does: the answer that admission gives before a transaction is ordered.

    The rules are those of `Executor.execute`, contracts aside: what they say may change with every
    block. Reads `chain`; safe in any thread.
    """
    if chain.transaction(transaction.id) is not None:
        return _refused("replayed")
    code = _validity_refusal(transaction, height, limits.validity_heights_max)
    if code is not None:
        return _refused(code)
    sender = chain.state_value, transaction.institution, transaction.member_key, height
    roles = accounts.member_roles(*sender)
    if roles is None:
        return _refused(accounts.sender_refusal(*sender))
    try:
        check_form(transaction.operations)
    except Refused as refused:
        return refused
    for index, operation in enumerate(transaction.operations):
        needed = OPERATIONS[operation.name].roles
        if roles.isdisjoint(needed):
            words = ", ".join(sorted(needed))
            return Refused("role_missing", f"operation {index}: the member must be one of {words}")
    return None


def _refused(code: str) -> Refused:
    return Refused(code, REFUSALS[code])


def _validity_refusal(transaction: Transaction, height: int, validity_max: int) -> str | None:
    if transaction.valid_until < height:
        return "expired"
    return "valid_too_long" if transaction.valid_until > height + validity_max else None


def _operate(context: Context, transaction: Transaction) -> tuple[Event, ...]:
    """Apply all operations. When one is refused, `context.operation` is its index."""
    for index, operation in enumerate(transaction.operations):
        context.operation = index
        kind = OPERATIONS.get(operation.name)
        if kind is None:
            raise Rejected("operation_unknown")
        if context.roles.isdisjoint(kind.roles):
            raise Rejected("role_missing")
        kind.apply(context, kind.parse(operation.arguments))
    return tuple(context.events)


def _stored_header(chain: ChainStore, height: int) -> Header:
    encoded = chain.header(height)
    try:
        if encoded is not None:
            return Header.decode(encoded)
    except InvalidBlock as error:
        raise CorruptRecord(f"the header of height {height} cannot be read: {error}") from error
    raise CorruptRecord(f"the header of height {height} is missing; sync anew")


def _stored_frontier(chain: ChainStore, height: int) -> Frontier:
    try:
        frontier = Frontier.decode(chain.meta(FRONTIER) or b"")
    except ValueError as error:
        raise CorruptRecord("the history tree in the database cannot be read") from error
    if frontier.size != height + 1:
        raise CorruptRecord(f"the history tree does not end at the head, height {height}")
    return frontier
