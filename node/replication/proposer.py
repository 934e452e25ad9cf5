"""Decides when a primary proposes, and fills the batch.

An idle chain proposes the first transaction at once. While heights are in flight the batch waits
until it is worth its share of the votes' cost or has waited long enough, so that under load fewer,
larger blocks carry the same transactions.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from node.ledger.block import Batch
from node.ledger.execution import ExecutedBlock
from node.ledger.limits import Limits
from node.ledger.mempool import Mempool
from node.replication.chain import Payload


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """When a batch beside others in flight is worth proposing."""

    worthwhile_count: int = 512
    wait_max_ms: int = 100


class Proposer:
    """Builds payloads from the mempool, oldest first, round robin over institutions."""

    def __init__(
        self, mempool: Mempool, limits: Limits, now_ms: Callable[[], int], policy: BatchPolicy
    ) -> None:
        self._mempool = mempool
        self._limits = limits
        self._now_ms = now_ms
        self._policy = policy
        self._reserved: set[int] = set()  # heights; above the executed one

    def next(self, height: int, *, in_flight: int) -> Payload | None:
        """Return a payload for `height` and reserve its transactions, or None while waiting.

        Its time is the clock's, even when the parent's is later: the block's time is corrected by
        the rule of `block_time`, while a batch that followed a parent of a wrong clock would be
        refused by every backup until the clocks have caught up with it.
        """
        waiting = self._mempool.unreserved_count
        if waiting == 0:
            return None
        now_ms = self._now_ms()
        if in_flight and waiting < self._policy.worthwhile_count:
            age = self._mempool.oldest_unreserved_age(now_ms)
            if age is not None and age < self._policy.wait_max_ms:
                return None
        transactions = self._mempool.select(
            self._limits.batch_transactions_max, self._limits.batch_bytes_max, height
        )
        if not transactions:
            return None
        batch = Batch(now_ms, tuple([t.digest for t in transactions]))
        self.reserve(height, batch.transactions)
        return Payload(batch.digest, batch, tuple(transactions))

    def reserve(self, height: int, digests: tuple[bytes, ...]) -> None:
        """Keep transactions of somebody else's proposal out of our own batches."""
        self._reserved.add(height)
        self._mempool.reserve(height, digests)

    def view_entered(self, kept: Collection[int]) -> None:
        """Let go of every height but those in `kept`, whose proposals the new view carries over.

        What else the view before proposed is not decided and never will be as it was: if it stayed
        reserved, nobody would propose those transactions again.
        """
        for height in self._reserved.difference(kept):
            self._mempool.release(height)
        self._reserved.intersection_update(kept)

    def executed(self, height: int, block: ExecutedBlock) -> None:
        """Forget what is final now; what this height held in vain may be proposed again."""
        self._mempool.remove([transaction.digest for transaction in block.transactions])
        self._mempool.release(height)
        self._reserved.discard(height)
