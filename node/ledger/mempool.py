"""Verified transactions that wait to be ordered. Pure: no clock, no task, no IO.

Every institution has a queue of its own, first come first served, within a quota of count and
bytes; a batch takes one from each in turn. So whoever floods waits in their own queue.

A transaction is *reserved* while a proposal in flight holds it: nobody else's proposal of ours
takes it, and it does not expire. Released, it has its old place in the queue again.

Every call costs O(1) per transaction that it touches, amortised.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from node.ledger.errors import Refused
from node.ledger.transaction import Transaction


@dataclass(frozen=True, slots=True)
class MempoolBounds:
    """How much one node keeps waiting, and for how long. A node's own choice, not consensus."""

    count_max: int = 20_000  # about 2 KB of memory each, beside large arguments
    bytes_max: int = 64 * 1024 * 1024
    institution_count_max: int = 8_000
    institution_bytes_max: int = 16 * 1024 * 1024
    ttl_ms: int = 600_000
    executed_max: int = 32_768  # executed digests and ids remembered, against late gossip


@dataclass(frozen=True, slots=True)
class Usage:
    """What one institution has waiting."""

    count: int = 0
    size_bytes: int = 0


class _Entry:
    __slots__ = ("arrived_ms", "last_height", "order", "size", "transaction")

    def __init__(
        self, transaction: Transaction, arrived_ms: int, order: int, last_height: int
    ) -> None:
        self.transaction = transaction
        self.arrived_ms = arrived_ms
        self.order = order  # of arrival, over all institutions
        self.last_height = last_height  # where `expire` finds it
        self.size = len(transaction.raw)


_Queue: TypeAlias = "OrderedDict[bytes, _Entry]"


class _Account:
    """One institution's share: how much it has here, and its queue of what is not reserved."""

    __slots__ = ("bytes", "count", "queue")

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self.queue: _Queue = OrderedDict()


class Mempool:
    """A bounded set of transactions by digest and by id. Used from one thread."""

    def __init__(self, bounds: MempoolBounds = MempoolBounds()) -> None:
        self._bounds = bounds
        self._entries: dict[bytes, _Entry] = {}
        self._by_id: dict[bytes, bytes] = {}  # id -> digest
        self._accounts: dict[str, _Account] = {}
        self._turns: OrderedDict[str, None] = OrderedDict()  # who has a queue; next turn first
        self._ages: _Queue = OrderedDict()  # oldest first, without what expired while reserved
        self._by_last_height: dict[int, dict[bytes, None]] = {}  # valid_until -> digests
        self._overdue: set[bytes] = set()  # to be dropped as soon as it is not reserved
        self._holders: dict[bytes, int] = {}  # digest -> heights that reserve it; also of strangers
        self._reservations: dict[int, tuple[bytes, ...]] = {}
        self._executed: OrderedDict[bytes, None] = OrderedDict()
        self._arrivals = 0
        self._height = 0
        self._bytes = 0
        self._unreserved_count = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """The encoded size of everything here."""
        return self._bytes

    @property
    def unreserved_count(self) -> int:
        """How many wait that no proposal in flight holds."""
        return self._unreserved_count

    def usage(self) -> dict[str, Usage]:
        """Return what each institution has here, for metrics."""
        return {
            name: Usage(account.count, account.bytes) for name, account in self._accounts.items()
        }

    def get(self, digest: bytes) -> Transaction | None:
        """Return the transaction of this digest, or None."""
        entry = self._entries.get(digest)
        return None if entry is None else entry.transaction

    def contains_id(self, transaction_id: bytes) -> bool:
        """Return whether a transaction with this id waits here."""
        return transaction_id in self._by_id

    def is_known(self, digest: bytes) -> bool:
        """Return whether these very bytes wait here or were executed lately."""
        return digest in self._entries or digest in self._executed

    def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        """Return those of `digests` that are not here, in their order."""
        entries = self._entries
        return [digest for digest in digests if digest not in entries]

    def add(self, transaction: Transaction, now_ms: int) -> None:
        """Let a verified transaction wait.

        Raises `Refused`: `duplicate` (also when it was executed lately), `quota_exceeded`,
        `mempool_full`.
        """
        digest, size = transaction.digest, len(transaction.raw)
        if transaction.id in self._by_id:
            raise Refused("duplicate", "a transaction with this id waits already")
        if digest in self._executed or transaction.id in self._executed:
            raise Refused("duplicate", "a transaction with this id was just executed")
        account = self._account_with_room(transaction.institution, size)
        # One that comes after its last height is found by the next `expire`, which looks no lower.
        last_height = max(transaction.valid_until, self._height)
        entry = _Entry(transaction, now_ms, self._arrivals, last_height)
        self._accounts[transaction.institution] = account
        self._arrivals += 1
        account.count += 1
        account.bytes += size
        self._bytes += size
        self._entries[digest] = entry
        self._by_id[transaction.id] = digest
        self._ages[digest] = entry
        self._by_last_height.setdefault(last_height, {})[digest] = None
        if digest not in self._holders:
            account.queue[digest] = entry
            self._turns.setdefault(transaction.institution)
            self._unreserved_count += 1

    def select(self, max_count: int, max_bytes: int, height: int) -> list[Transaction]:
        """Return what a batch for `height` should hold: one from each institution in turn.

        Within an institution the order is that of arrival. Skipped is what is reserved or no longer
        valid at `height`. An institution whose next transaction does not fit into `max_bytes` has
        its first turn in the next batch. Reserves nothing.
        """
        chosen: list[Transaction] = []
        room = max_bytes
        waiting = OrderedDict(
            (name, iter(self._accounts[name].queue.values())) for name in self._turns
        )
        while waiting and len(chosen) < max_count:
            name, queue = waiting.popitem(last=False)
            entry = next(queue, None)
            while entry is not None and entry.transaction.valid_until < height:
                entry = next(queue, None)
            if entry is None or entry.size > room:
                continue
            room -= entry.size
            chosen.append(entry.transaction)
            waiting[name] = queue
        for name in waiting:  # what remains had its turn, or waits for it in this order
            self._turns.move_to_end(name)
        return chosen

    def reserve(self, height: int, digests: Sequence[bytes]) -> None:
        """Keep `digests` for the proposal at `height`, instead of what it held before.

        A digest that is not here yet is reserved all the same, for when it comes.
        """
        self.release(height)
        self._reservations[height] = tuple(digests)
        for digest in digests:
            holders = self._holders.get(digest, 0)
            self._holders[digest] = holders + 1
            entry = self._entries.get(digest)
            if entry is not None and not holders:
                self._leave_queue(entry.transaction.institution, digest)

    def release(self, height: int) -> None:
        """End the reservation of `height`; what is still here takes its old place in the queue."""
        returning: dict[str, list[_Entry]] = {}
        for digest in self._reservations.pop(height, ()):
            holders = self._holders.pop(digest) - 1
            if holders:
                self._holders[digest] = holders
                continue
            entry = self._entries.get(digest)
            if entry is not None:
                returning.setdefault(entry.transaction.institution, []).append(entry)
        for institution, entries in returning.items():
            self._return_to_queue(institution, entries)

    def remove(self, digests: Iterable[bytes]) -> None:
        """Forget transactions that were executed; for a while, refuse them if they return."""
        executed = self._executed
        for digest in digests:
            executed[digest] = None
            entry = self._entries.get(digest)
            if entry is not None:
                executed[entry.transaction.id] = None
                self._drop(digest, entry)
        while len(executed) > self._bounds.executed_max:
            executed.popitem(last=False)

    def expire(self, height: int, now_ms: int) -> list[Transaction]:
        """Drop and return what can no longer execute after `height`, or waits longer than the TTL.

        `height` is that of the last executed block. What is reserved stays until it is released,
        and goes with the next call.
        """
        overdue = self._overdue
        for last in self._heights_passed(height):
            overdue.update(self._by_last_height.pop(last))
        self._height = max(self._height, height)
        deadline = now_ms - self._bounds.ttl_ms
        while self._ages:
            digest, entry = next(iter(self._ages.items()))
            if entry.arrived_ms > deadline:
                break
            del self._ages[digest]
            overdue.add(digest)
        expired = []
        for digest in [digest for digest in overdue if digest not in self._holders]:
            entry = self._entries[digest]
            self._drop(digest, entry)
            expired.append(entry)
        expired.sort(key=_by_order)
        return [entry.transaction for entry in expired]

    def oldest_unreserved_age(self, now_ms: int) -> int | None:
        """Return for how many milliseconds the oldest has waited that no proposal holds, or None.

        Looks at the head of each institution's queue.
        """
        heads = [next(iter(self._accounts[name].queue.values())) for name in self._turns]
        return now_ms - min(heads, key=_by_order).arrived_ms if heads else None

    def _account_with_room(self, institution: str, size: int) -> _Account:
        bounds = self._bounds
        if len(self._entries) >= bounds.count_max or self._bytes + size > bounds.bytes_max:
            raise Refused("mempool_full", "this node holds as many transactions as it may")
        account = self._accounts.get(institution) or _Account()
        if (
            account.count >= bounds.institution_count_max
            or account.bytes + size > bounds.institution_bytes_max
        ):
            raise Refused(
                "quota_exceeded",
                f"{account.count} transactions of {account.bytes} bytes of the institution wait; "
                "send more when some are final",
            )
        return account

    def _leave_queue(self, institution: str, digest: bytes) -> None:
        queue = self._accounts[institution].queue
        del queue[digest]
        self._unreserved_count -= 1
        if not queue:
            del self._turns[institution]

    def _return_to_queue(self, institution: str, entries: list[_Entry]) -> None:
        """Put `entries` back in order of arrival; only earlier returns can be before the last."""
        queue = self._accounts[institution].queue
        entries.sort(key=_by_order)
        self._unreserved_count += len(entries)
        ahead = []
        while queue and next(iter(queue.values())).order < entries[-1].order:
            ahead.append(queue.popitem(last=False)[1])
        for entry in reversed(list(heapq.merge(ahead, entries, key=_by_order))):
            digest = entry.transaction.digest
            queue[digest] = entry
            queue.move_to_end(digest, last=False)
        self._turns.setdefault(institution)

    def _heights_passed(self, height: int) -> list[int]:
        """Return the filled `valid_until` heights up to `height`."""
        by_height = self._by_last_height
        if height - self._height <= len(by_height):
            return [h for h in range(self._height, height + 1) if h in by_height]
        return [h for h in by_height if h <= height]

    def _drop(self, digest: bytes, entry: _Entry) -> None:
        transaction = entry.transaction
        account = self._accounts[transaction.institution]
        if digest not in self._holders:
            self._leave_queue(transaction.institution, digest)
        account.count -= 1
        account.bytes -= entry.size
        if not account.count:
            del self._accounts[transaction.institution]
        self._bytes -= entry.size
        del self._entries[digest]
        del self._by_id[transaction.id]
        self._ages.pop(digest, None)
        self._overdue.discard(digest)
        same_height = self._by_last_height.get(entry.last_height)
        if same_height is not None:
            same_height.pop(digest, None)
            if not same_height:
                del self._by_last_height[entry.last_height]


def _by_order(entry: _Entry) -> int:
    return entry.order
