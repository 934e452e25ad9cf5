"""What one more transaction and one search cost at 1,000, 100,000 and 1,000,000 studies in state.

One executor on a real LevelDB, synced writes, no network and no signatures: what is left is the
part whose cost could grow with the chain.
"""

import os
import random
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consensus.validators import ValidatorSchedule
from node import provision
from node.ledger.block import Batch
from node.ledger.execution import Executor
from node.ledger.transaction import Operation, Transaction, sign_transaction
from storage.chain import ChainStore
from storage.kv import KeyValueStore, WriteBatch
from storage.leveldb import open_leveldb
from storage.state import StateTree
from tests.bench import search

FILL_BATCH = 2_000
MEASURED_BATCH = 64
MEASURED_BLOCKS = 60
HOSPITALS = ("east", "north", "south", "west")
SUBJECTS = 20_000


class _Chain:
    def __init__(self, folder: Path) -> None:
        cards = [provision.create_identity(folder / name, name, name) for name in HOSPITALS]
        genesis = provision.make_genesis("bench", cards, 1_700_000_000_000)
        self._chain_id = genesis.chain_id
        self._members = [(card.institution, card.members[0].public_key) for card in cards]
        self.store: KeyValueStore = open_leveldb(folder / "data")
        self._chain = ChainStore(self.store)
        schedule = ValidatorSchedule(genesis.validator_set())
        self._executor = Executor(self._chain, StateTree(self.store), genesis, schedule)
        rows = WriteBatch()
        first = self._executor.initialise(rows)
        self.store.write(rows, sync=True)
        self._executor.adopt(first)
        self._signature = Ed25519PrivateKey.generate().sign(b"")
        self._dice = random.Random(1)
        self.subjects = [os.urandom(16) for _ in range(SUBJECTS)]

    @property
    def height(self) -> int:
        return self._executor.head.height

    def transactions(self, count: int) -> list[Transaction]:
        """Return registrations; few of them are retired in the same transaction."""
        dice = self._dice
        made = []
        for _ in range(count):
            ids = os.urandom(48)
            study, subject = ids[:16], dice.choice(self.subjects)
            kind = dice.choice(search.MODALITIES), dice.choice(search.REGIONS)
            operations = [Operation("study.register", (study, subject, ids[16:], *kind, 5, 3))]
            if dice.randrange(1_000) < search.RETIRED_OF_1000:
                operations.append(Operation("study.retire", (study, "quality")))
            institution, member = dice.choice(self._members)
            made.append(
                sign_transaction(
                    lambda _: self._signature,
                    member,
                    chain_id=self._chain_id,
                    institution=institution,
                    valid_until=self.height + 100,
                    operations=operations,
                )
            )
        return made

    def append(self, transactions: list[Transaction]) -> None:
        head = self._executor.head
        batch = Batch(head.time_ms + 1, tuple(t.digest for t in transactions))
        rows = WriteBatch()
        bodies = [t.raw for t in transactions]
        self._chain.put_payload(rows, head.height + 1, batch.digest, batch.encode(), bodies)
        executed = self._executor.execute(head.height + 1, batch, transactions, rows)
        self.store.write(rows, sync=True)
        self._executor.adopt(executed)
        if any(receipt.code != "ok" for receipt in executed.receipts):
            raise RuntimeError("a registration of the benchmark failed")


def measure(sizes: list[int]) -> list[dict[str, float]]:
    """Return wall and CPU microseconds per transaction, and milliseconds per page of a search, at
    each number of studies, ascending."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="radledger-growth-") as folder:
        chain = _Chain(Path(folder))
        studies = 0
        for size in sizes:
            while studies < size:
                count = min(FILL_BATCH, size - studies)
                chain.append(chain.transactions(count))
                studies += count
            blocks = [chain.transactions(MEASURED_BATCH) for _ in range(MEASURED_BLOCKS)]
            wall, cpu = time.perf_counter(), time.process_time()
            for block in blocks:
                chain.append(block)
            count = MEASURED_BATCH * MEASURED_BLOCKS
            row = {
                "studies": studies,
                "wall_us_per_tx": round((time.perf_counter() - wall) / count * 1e6, 1),
                "cpu_us_per_tx": round((time.process_time() - cpu) / count * 1e6, 1),
            }
            found = search.measure(chain.store, list(HOSPITALS), chain.subjects, chain.height)
            rows.append(row | found)
            studies += count
        chain.store.close()
    return rows
