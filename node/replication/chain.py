"""The executed chain: one worker thread executes and writes, strictly in height order.

Execution and the synced write of a block run together off the event loop. Consensus and block sync
both end here; whether a height is still to be executed is decided inside the one thread, so it is
executed once, whoever asks first, and even when the asker stops waiting.
"""

import asyncio
from dataclasses import dataclass

from consensus.messages import NULL_DIGEST
from node.ledger.block import Batch, Block, Header, encode_certificate
from node.ledger.execution import ExecutedBlock, Executor
from node.ledger.limits import Limits
from node.ledger.transaction import Transaction, decode_transaction
from node.worker import Worker
from storage.chain import ChainStore
from storage.kv import KeyValueStore, WriteBatch


class Diverged(Exception):
    """Execution here and at a quorum of validators disagree; the node must stop."""


@dataclass(frozen=True, slots=True)
class Payload:
    """A batch with its bodies, in order; the null payload has neither."""

    digest: bytes
    batch: Batch | None
    transactions: tuple[Transaction, ...]


NULL_PAYLOAD = Payload(NULL_DIGEST, None, ())


def put_payload(chain: ChainStore, out: WriteBatch, height: int, payload: Payload) -> None:
    """Append the rows that make `payload` durable for `height`; the null payload has none."""
    if payload.batch is not None:
        bodies = [transaction.raw for transaction in payload.transactions]
        chain.put_payload(out, height, payload.digest, payload.batch.encode(), bodies)


class Chain:
    """Executes blocks in a thread of its own and knows the head."""

    def __init__(
        self, store: KeyValueStore, chain: ChainStore, executor: Executor, limits: Limits
    ) -> None:
        self._store = store
        self._chain = chain
        self._executor = executor
        self._limits = limits
        self._thread = Worker("chain")

    @property
    def head(self) -> Header:
        """The header of the last executed block."""
        return self._executor.head

    @property
    def height(self) -> int:
        """The height of the last executed block."""
        return self._executor.head.height

    def stored_header(self, height: int) -> Header | None:
        """Return the header of an executed height. Raises `InvalidBlock` when it is damaged."""
        encoded = self._chain.header(height)
        return None if encoded is None else Header.decode(encoded)

    def stored_payload(self, height: int, digest: bytes) -> Payload | None:
        """Return a payload that this node wrote for `height`, read back from the disk."""
        if digest == NULL_DIGEST:
            return NULL_PAYLOAD
        stored = self._chain.payload(height, digest)
        if stored is None:
            return None
        encoded, bodies = stored
        transactions = tuple(decode_transaction(body, self._limits) for body in bodies)
        return Payload(digest, Batch.decode(encoded, self._limits), transactions)

    async def execute(self, height: int, payload: Payload) -> ExecutedBlock | None:
        """Execute a committed payload whose rows are durable already.

        Returns None when block sync got there first.
        """
        return await self._run(height, payload, WriteBatch())

    async def adopt_sealed(self, block: Block, payload: Payload) -> ExecutedBlock | None:
        """Execute a sealed block that came from a peer, with its payload and certificate rows.

        Returns None when consensus got there first. Raises `Diverged`, and writes nothing, when
        execution here gives, or gave, another header than the one that a quorum sealed.
        """
        header, out = block.header, WriteBatch()
        put_payload(self._chain, out, header.height, payload)
        if block.certificate is not None:
            encoded = encode_certificate(block.certificate)
            self._chain.put_certificate(out, header.height, encoded)
        return await self._run(header.height, payload, out, header)

    async def close(self) -> None:
        """Wait for the block under way and let the thread end."""
        await asyncio.to_thread(self._thread.close)

    async def _run(
        self, height: int, payload: Payload, out: WriteBatch, sealed: Header | None = None
    ) -> ExecutedBlock | None:
        return await self._thread.call(self._execute, height, payload, out, sealed)

    def _execute(
        self, height: int, payload: Payload, out: WriteBatch, sealed: Header | None
    ) -> ExecutedBlock | None:
        if height <= self.height:
            if sealed is not None and self.stored_header(height) not in (None, sealed):
                raise _diverged(height)
            return None
        executed = self._executor.execute(height, payload.batch, payload.transactions, out)
        if sealed is not None and executed.header != sealed:
            self._executor.discard()
            raise _diverged(height)
        self._store.write(out, sync=True)
        self._executor.adopt(executed)
        return executed


def _diverged(height: int) -> Diverged:
    return Diverged(
        f"this node computes another block at height {height} than the one that a quorum sealed: "
        "its disk or its software is damaged; move its data away and sync it anew"
    )
