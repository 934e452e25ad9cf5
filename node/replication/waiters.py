"""Who waits for which transaction, and the answer that each gets exactly once."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from node.ledger.block import Receipt
from node.ledger.errors import Refused

WAITERS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a transaction ended up."""

    height: int
    position: int  # index in the block
    receipt: Receipt


class Waiters:
    """Futures by transaction id. Bounded: a node that is asked for more refuses the submission."""

    def __init__(self, stable_height: int = 0) -> None:
        """`stable_height` is what was sealed before this start: nobody need wait for it again."""
        self._final: dict[bytes, list[asyncio.Future[Outcome]]] = {}
        self._sealed: dict[int, asyncio.Future[None]] = {}
        self._count = 0
        self._stable_height = stable_height

    def final(self, transaction_id: bytes) -> asyncio.Future[Outcome]:
        """Return a future for the receipt of a transaction that is not executed yet."""
        if self._count >= WAITERS_MAX:
            raise Refused("busy", f"{WAITERS_MAX} submissions already wait for their block")
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._final.setdefault(transaction_id, []).append(future)
        self._count += 1
        return future

    def give_up(self, transaction_id: bytes, future: asyncio.Future[Outcome]) -> None:
        """Stop waiting, for instance after a time-out."""
        waiting = self._final.get(transaction_id)
        if waiting is not None and future in waiting:
            waiting.remove(future)
            self._count -= 1
            if not waiting:
                del self._final[transaction_id]

    def sealed(self, height: int) -> asyncio.Future[None]:
        """Return a future that is done once `height` is stable; several callers may share it."""
        future = self._sealed.get(height)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            if height <= self._stable_height:
                future.set_result(None)
                return future
            self._sealed[height] = future
        return future

    def executed(self, height: int, receipts: Sequence[Receipt]) -> None:
        """Answer everybody who waits for a transaction of this block."""
        if not self._final:
            return
        for position, receipt in enumerate(receipts):
            # The first execution is the one that counts; a replay's receipt is nobody's answer.
            if receipt.code == "replayed":
                continue
            for future in self._final.pop(receipt.transaction_id, ()):
                self._count -= 1
                if not future.done():
                    future.set_result(Outcome(height, position, receipt))

    def stable(self, height: int) -> None:
        """Answer everybody who waits for a height up to this one."""
        self._stable_height = max(self._stable_height, height)
        for waiting in sorted(h for h in self._sealed if h <= height):
            future = self._sealed.pop(waiting)
            if not future.done():
                future.set_result(None)

    def dropped(self, transaction_id: bytes, refused: Refused) -> None:
        """Tell everybody who waits that the transaction left the mempool without a block."""
        for future in self._final.pop(transaction_id, ()):
            self._count -= 1
            if not future.done():
                future.set_exception(refused)
