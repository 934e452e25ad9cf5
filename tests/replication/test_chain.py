"""The executed chain over a real LevelDB: each height once, whole or not at all."""

import asyncio
import threading
from dataclasses import replace

import pytest

from consensus.errors import InvariantViolation
from node.ledger.block import Header, decode_certificate
from node.replication.chain import Diverged
from storage.leveldb import open_leveldb
from storage.memory import MemoryStore
from tests.replication.world import (
    NULL,
    build_blocks,
    certificate,
    open_chain,
    payload,
    transaction,
)


@pytest.fixture
async def node(tmp_path):
    store = open_leveldb(tmp_path)
    chain, chain_store = open_chain(store)
    yield chain, chain_store, store
    await chain.close()
    store.close()


async def sealed_blocks(*payloads):
    """The blocks that another node with the same genesis makes of these payloads."""
    chain, _ = open_chain(MemoryStore())
    try:
        return await build_blocks(chain, *payloads)
    finally:
        await chain.close()


def everything(store):
    return list(store.iterate(b"", b"\xff" * 40))


async def test_a_committed_payload_becomes_a_durable_block(node):
    chain, chain_store, store = node
    proposed = payload(transaction(), transaction())
    executed = await chain.execute(1, proposed)
    assert [receipt.code for receipt in executed.receipts] == ["ok", "ok"]
    assert (chain.height, chain.head) == (1, executed.header)
    assert Header.decode(chain_store.header(1)) == chain.stored_header(1) == executed.header
    again, _ = open_chain(store)
    assert again.head == executed.header


async def test_a_height_is_executed_once_and_never_skipped(node):
    chain, _, store = node
    await chain.execute(1, payload(transaction()))
    before = everything(store)
    assert await chain.execute(1, payload(transaction())) is None
    with pytest.raises(InvariantViolation, match="does not follow"):
        await chain.execute(3, NULL)
    assert everything(store) == before


async def test_a_sealed_block_is_stored_with_body_and_certificate(node):
    chain, chain_store, _ = node
    proposed = payload(transaction())
    block, empty = await sealed_blocks(proposed, NULL)
    executed = await chain.adopt_sealed(block, proposed)
    assert executed.header == block.header
    assert chain.stored_payload(1, proposed.digest) == proposed
    assert decode_certificate(chain_store.certificate(1)) == block.certificate
    assert (await chain.adopt_sealed(empty, NULL)).header == empty.header
    assert chain.stored_payload(2, NULL.digest) == NULL
    assert chain.stored_payload(2, proposed.digest) is None


async def test_a_block_that_computes_to_something_else_changes_nothing(node):
    chain, _, store = node
    proposed = payload(transaction())
    (block,) = await sealed_blocks(proposed)
    before = everything(store)
    wrong = replace(block.header, state_root=bytes(32))
    foreign = replace(block, header=wrong, certificate=certificate(1, wrong.digest))
    with pytest.raises(Diverged, match="another block at height 1"):
        await chain.adopt_sealed(foreign, proposed)
    assert everything(store) == before
    assert chain.height == 0
    assert (await chain.adopt_sealed(block, proposed)).header == block.header


async def test_seals_over_another_block_than_was_executed_stop_the_node(node):
    chain, _, _ = node
    proposed = payload(transaction())
    (block,) = await sealed_blocks(proposed)
    await chain.execute(1, payload(transaction()))
    with pytest.raises(Diverged, match="another block at height 1"):
        await chain.adopt_sealed(block, proposed)


@pytest.mark.parametrize("consensus_first", [True, False])
async def test_consensus_and_sync_racing_to_one_height_execute_it_once(node, consensus_first):
    chain, chain_store, _ = node
    proposed = payload(transaction())
    (block,) = await sealed_blocks(proposed)
    racing = [chain.execute(1, proposed), chain.adopt_sealed(block, proposed)]
    if not consensus_first:
        racing.reverse()
    first, second = await asyncio.gather(*racing)
    assert first.header == block.header
    assert second is None
    assert chain.height == 1
    assert (chain_store.certificate(1) is None) == consensus_first


async def test_who_stops_waiting_does_not_make_a_height_execute_twice(tmp_path):
    gate = threading.Event()
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    class SlowStore(MemoryStore):
        def write(self, batch, *, sync):
            if chain is not None:
                loop.call_soon_threadsafe(reached.set)
                gate.wait(20)
            super().write(batch, sync=sync)

    chain = None
    chain, _ = open_chain(SlowStore())
    proposed = payload(transaction())
    (block,) = await sealed_blocks(proposed)
    abandoned = asyncio.create_task(chain.execute(1, proposed))
    await reached.wait()
    abandoned.cancel()
    adopting = asyncio.create_task(chain.adopt_sealed(block, proposed))
    await asyncio.sleep(0)
    gate.set()
    assert await adopting is None
    assert chain.head == block.header
    await chain.close()


async def test_closing_waits_for_the_block_under_way(node):
    chain, chain_store, _ = node
    executing = asyncio.create_task(chain.execute(1, payload(transaction())))
    await asyncio.sleep(0)
    await chain.close()
    assert chain_store.header(1) is not None
    assert (await executing).header.height == 1
