"""What leaves an exchange server is recorded before it leaves, and summed up after."""

import asyncio

import pytest

from node.exchange.transfer import given as given_module
from node.exchange.transfer.client import fetch
from node.exchange.transfer.errors import TransferIncomplete
from node.exchange.transfer.given import GivenOut
from node.exchange.transfer.ports import Happening, TransferEvent
from node.exchange.transfer.refusals import Refusal
from tests.exchange.transfer_world import QUICK, World, get


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def run(world, *holders):
    who = world.beta
    chunks = (who.identity, world.wanted, holders, who.chunks, who.transfers)
    return await fetch(*chunks, limits=QUICK)


async def test_a_transfer_is_recorded_before_it_begins_and_summed_up(world):
    async with world.serving("alpha") as alpha:
        await run(world, alpha.holder)
        before = [(each.kind, each.institution, each.request_id) for each in alpha.admitted]
        request_id = world.request_id
        assert before == [
            (Happening.OFFERING, "beta", request_id),
            (Happening.SENDING, "beta", request_id),
        ]  # once, though four connections fetched at a time
    (total,) = [each for each in alpha.events if each.kind is Happening.SENT]
    size = sum(chunk.size for chunk in world.study.order)
    assert total == TransferEvent(Happening.SENT, "beta", request_id, "", 6, size)


async def test_neither_key_nor_chunk_leaves_without_a_record(world):
    async with world.serving("alpha") as alpha:
        alpha.is_admitting = False
        offer = await get(world.beta, alpha, f"/v1/offer/{world.request_id.hex()}")
        chunk = await get(world.beta, alpha, world.chunk_path(world.study.order[0].digest))
        for status, _, body in (offer, chunk):
            assert status == 503
            assert b"not_recorded" in body
        assert alpha.server.bytes_sent == 0
        with pytest.raises(TransferIncomplete):
            await run(world, alpha.holder)
        alpha.is_admitting = True
        await run(world, alpha.holder)


async def test_sums_are_bounded_and_end_when_nothing_flows(monkeypatch):
    monkeypatch.setattr(given_module, "REQUESTS_MAX", 3)
    told = []
    given = GivenOut(None, told.append)
    for number in range(5):
        await given.begin("beta", bytes([number]))
        given.add("beta", bytes([number]), 10)
    assert [event.request_id for event in told] == [b"\x00", b"\x01"]
    given.flush(1_000.0)
    assert len(told) == 2
    given.flush(0.0)
    assert [event.bytes for event in told] == [10] * 5
    given.flush(0.0)
    assert len(told) == 5


async def test_who_gives_up_waiting_for_the_record_does_not_end_the_others_wait():
    recorded = asyncio.Event()

    async def admit(event):
        await recorded.wait()
        return True

    given = GivenOut(admit, lambda event: None)
    first, second = (asyncio.create_task(given.begin("beta", b"1")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    recorded.set()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_after_a_refusal_it_is_asked_again():
    answers = [False, True]

    async def admit(event):
        return answers.pop(0)

    given = GivenOut(admit, lambda event: None)
    with pytest.raises(Refusal):
        await given.begin("beta", b"1")
    await given.begin("beta", b"1")
