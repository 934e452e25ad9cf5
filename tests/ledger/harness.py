"""A chain without a network: blocks made, executed and written by hand."""

import hashlib
from itertools import count

from consensus.validators import ValidatorSchedule
from node.ledger.block import Batch
from node.ledger.execution import ExecutedBlock, Executor
from node.ledger.genesis import Genesis, Institution, Member, NodeIdentity
from node.ledger.transaction import Operation, Transaction, sign_transaction
from storage.chain import ChainStore
from storage.kv import WriteBatch
from storage.memory import MemoryStore
from storage.state import StateTree


def digest(label: object) -> bytes:
    """32 bytes that look random and are the same in every run."""
    return hashlib.sha256(repr(label).encode()).digest()


def identity(label: object) -> bytes:
    """16 bytes of the same kind."""
    return digest(label)[:16]


GATEWAY, READER, AACHEN = map(digest, ("gateway", "reader", "aachen"))

GENESIS = Genesis(
    name="test",
    time_ms=1_700_000_000_000,
    institutions=(
        Institution(
            "charite",
            "Charité",
            (Member(GATEWAY, ("gateway",)), Member(READER, ("auditor", "researcher"))),
        ),
        Institution("ukaachen", "UK Aachen", (Member(AACHEN, ("clinician",)),)),
    ),
    validators=(
        NodeIdentity("charite", digest("node 1"), b""),
        NodeIdentity("ukaachen", digest("node 2"), b""),
    ),
)

_salts = count()


def transaction(
    *operations, institution="charite", key=GATEWAY, valid_until=1_000, salt=None, genesis=GENESIS
) -> Transaction:
    """A transaction of (name, *arguments) tuples, signed with zeros: the executor trusts it."""
    return sign_transaction(
        lambda _: bytes(64),
        key,
        chain_id=genesis.chain_id,
        institution=institution,
        valid_until=valid_until,
        operations=[Operation(name, tuple(arguments)) for name, *arguments in operations],
        salt=identity(("salt", next(_salts) if salt is None else salt)),
    )


def register(label, *, custodian="charite", **changes):
    """A study.register of a study, subject and root named after `label`."""
    fields = {
        "study_id": identity(("study", label)),
        "subject_id": identity(("subject", label)),
        "root": digest(("root", label, 1)),
        "modality": "CT",
        "region": "chest",
        "instance_bucket": 5,
        "size_bucket": 8,
    }
    return ("study.register", *(fields | changes).values())


class Chain:
    """One node's ledger over one store; `add` executes and writes a block."""

    def __init__(self, store=None, genesis=GENESIS):
        self.store = MemoryStore() if store is None else store
        self.genesis = genesis
        self.reopen()
        if not self.executor.is_initialised:
            out = WriteBatch()
            executed = self.executor.initialise(out)
            self.store.write(out, sync=False)
            self.executor.adopt(executed)

    def reopen(self):
        """Begin again with what the store holds, as after a restart."""
        self.chain = ChainStore(self.store)
        self.tree = StateTree(self.store)
        self.schedule = ValidatorSchedule(self.genesis.validator_set())
        self.executor = Executor(self.chain, self.tree, self.genesis, self.schedule)

    def execute(self, transactions, time_ms=None, out=None) -> ExecutedBlock:
        """Execute the next height and write nothing. None: the null block."""
        out = WriteBatch() if out is None else out
        head = self.executor.head
        if transactions is None:
            return self.executor.execute(head.height + 1, None, (), out)
        time_ms = head.time_ms + 1_000 if time_ms is None else time_ms
        batch = Batch(time_ms, tuple(each.digest for each in transactions))
        bodies = [each.raw for each in transactions]
        self.chain.put_payload(out, head.height + 1, batch.digest, batch.encode(), bodies)
        return self.executor.execute(head.height + 1, batch, transactions, out)

    def add(self, *transactions, time_ms=None) -> ExecutedBlock:
        """Execute the next height, write it and adopt it."""
        out = WriteBatch()
        executed = self.execute(transactions, time_ms, out)
        self._write(executed, out)
        return executed

    def add_null(self) -> ExecutedBlock:
        """The same for a null block."""
        out = WriteBatch()
        executed = self.execute(None, out=out)
        self._write(executed, out)
        return executed

    def codes(self, *transactions) -> list[str]:
        """Add one block and return the codes of its receipts."""
        return [receipt.code for receipt in self.add(*transactions).receipts]

    def _write(self, executed, out):
        self.store.write(out, sync=False)
        self.executor.adopt(executed)
