"""From one hospital to another: whole, each chunk once, from whoever serves it truly."""

import asyncio
import os
from dataclasses import replace

import pytest
import uvloop

from node.exchange.transfer.client import fetch
from node.exchange.transfer.errors import InvalidOffer, NotPermitted, TransferIncomplete
from node.exchange.transfer.holders import Holder
from tests.exchange.transfer_world import QUICK, World, until


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def run(world, *holders, who=None, limits=QUICK, **options):
    who = who or world.beta
    return await fetch(
        who.identity, world.wanted, holders, who.chunks, who.transfers, limits=limits, **options
    )


async def test_a_study_arrives_whole(world):
    seen, prepared = [], []
    async with world.serving("alpha") as alpha:
        fetched = await run(
            world, alpha.holder, prepare=prepared.append, progress=lambda *now: seen.append(now)
        )
    assert world.beta.chunks.chunks == world.study.chunks
    assert fetched.offer.delivery == world.delivery
    assert fetched.offer.index == world.study.index
    assert fetched.offer.chunks == tuple(world.study.order)
    assert (fetched.chunks_fetched, fetched.bytes_fetched) == (6, 240_000)
    assert prepared == [fetched.offer]
    assert (seen[0], seen[-1]) == ((0, 240_000), (240_000, 240_000))


def test_it_is_the_same_on_the_other_event_loop(tmp_path):
    async def story():
        world = World(tmp_path)
        async with world.serving("alpha") as alpha:
            await run(world, alpha.holder)
            assert world.beta.chunks.chunks == world.study.chunks
            world.permit("gamma")
            world.beta.chunks.chunks.clear()
            with pytest.raises(NotPermitted):
                await run(world, alpha.holder)
        assert world.beta.chunks.chunks == {}

    uvloop.run(story())


async def test_an_empty_study_needs_no_chunk(tmp_path):
    world = World(tmp_path, count=0)
    async with world.serving("alpha") as alpha:
        assert (await run(world, alpha.holder)).chunks_fetched == 0


async def test_several_holders_serve_one_study(tmp_path):
    world = World(tmp_path, count=40, size=20_000)
    async with world.serving("alpha", "gamma") as (alpha, gamma):
        await run(world, alpha.holder, gamma.holder)
    assert world.beta.chunks.chunks == world.study.chunks
    sent = alpha.chunks.sent + gamma.chunks.sent
    assert sorted(sent) == sorted(world.study.chunks)  # each exactly once
    assert alpha.chunks.sent
    assert gamma.chunks.sent


async def test_a_holder_with_some_of_the_chunks_serves_these(world):
    for chunk in world.study.order[::2]:
        del world.gamma.chunks.chunks[chunk.digest]
    async with world.serving("alpha", "gamma") as (alpha, gamma):
        fetched = await run(world, alpha.holder, gamma.holder)
    assert world.beta.chunks.chunks == world.study.chunks
    assert fetched.liars == ()


@pytest.mark.parametrize("lie", ["flipped", "short", "long", "foreign"])
async def test_a_lying_holder_is_named_and_dropped(world, lie):
    lies = {
        "flipped": lambda data: bytes([data[0] ^ 1]) + data[1:],
        "short": lambda data: data[:-1],
        "long": lambda data: data + b"\0",
        "foreign": lambda data: os.urandom(len(data)),
    }
    world.gamma.chunks.ciphertext = lambda digest: lies[lie](world.study.chunks[digest])
    async with world.serving("alpha", "gamma") as (alpha, gamma):
        fetched = await run(world, alpha.holder, gamma.holder)
    assert fetched.liars == ("gamma",)
    assert "another digest" in fetched.left["gamma"]
    assert world.beta.chunks.chunks == world.study.chunks


async def test_a_liar_is_not_asked_again_after_a_restart(world):
    asked = []

    def lie(digest):
        asked.append(digest)
        return b"\0" * 40_000

    world.gamma.chunks.ciphertext = lie
    async with world.serving("alpha", "gamma") as (alpha, gamma):
        alpha.chunks.ciphertext = _nothing
        with pytest.raises(TransferIncomplete) as incomplete:
            await run(world, alpha.holder, gamma.holder)
        assert "another digest" in incomplete.value.reasons["gamma"]
        asked.clear()
        del alpha.chunks.ciphertext
        fetched = await run(world, alpha.holder, gamma.holder)
    assert asked == []
    assert fetched.liars == ("gamma",)


def _nothing(digest):
    raise LookupError


async def test_a_dead_holder_is_left_and_the_other_serves(world):
    async with world.serving("alpha") as alpha:
        dead = Holder("gamma", "127.0.0.1", 9, (world.gamma.person.certificate,))
        fetched = await run(world, alpha.holder, dead)
    assert world.beta.chunks.chunks == world.study.chunks
    assert set(fetched.left) <= {"gamma"}


async def test_an_impostor_gets_nothing_and_gives_nothing(world):
    """Another hospital that the asker knows, at the address of the one it means."""
    async with world.serving("gamma") as gamma:
        impostor = replace(gamma.holder, institution="alpha", certificates=world.alpha_certificates)
        with pytest.raises(TransferIncomplete) as incomplete:
            await run(world, impostor)
    assert "certificate" in incomplete.value.reasons["alpha"]
    assert gamma.chunks.sent == []


async def test_without_any_holder_what_is_missing_is_counted(world):
    async with world.serving("alpha") as alpha:
        lost = world.study.order[2].digest
        data = alpha.chunks.chunks.pop(lost)
        with pytest.raises(TransferIncomplete) as incomplete:
            await run(world, alpha.holder)
        assert incomplete.value.missing == 1
        assert "lacks" in incomplete.value.reasons["alpha"]
        alpha.chunks.chunks[lost] = data
        assert (await run(world, alpha.holder)).chunks_fetched == 1


@pytest.mark.parametrize("arrived", range(7))
async def test_an_asker_that_dies_anywhere_fetches_no_verified_chunk_again(world, arrived):
    beta = world.beta
    one_by_one = replace(QUICK, parallel=2)
    async with world.serving("alpha") as alpha:
        task = asyncio.create_task(run(world, alpha.holder, limits=one_by_one))
        await until(lambda: len(beta.chunks.puts) >= arrived or task.done())
        task.cancel()
        await asyncio.wait([task])
        before = set(beta.chunks.puts)
        alpha.chunks.sent.clear()
        await run(world, alpha.holder)
    assert not before & set(alpha.chunks.sent)
    assert len(beta.chunks.puts) == len(set(beta.chunks.puts)) == 6
    assert beta.chunks.chunks == world.study.chunks


@pytest.mark.parametrize("arrived", [0, 1, 3, 5])
async def test_a_custodian_that_dies_anywhere_is_resumed(world, arrived):
    beta = world.beta
    async with world.serving("alpha", rate_bytes_per_s=400_000, piece_bytes=4_096) as alpha:
        task = asyncio.create_task(run(world, alpha.holder, limits=replace(QUICK, parallel=1)))
        await until(lambda: len(beta.chunks.puts) >= arrived or task.done())
        await alpha.server.close()
        with pytest.raises(TransferIncomplete) as incomplete:
            await task
        assert "connection failed" in incomplete.value.reasons["alpha"]
    before = set(beta.chunks.puts)
    alpha.chunks.sent.clear()
    async with world.serving("alpha") as alpha:
        await run(world, alpha.holder)
    assert not before & set(alpha.chunks.sent)
    assert beta.chunks.chunks == world.study.chunks


async def test_a_broken_connection_goes_on_within_the_chunk(tmp_path):
    world = World(tmp_path, count=1, size=4_000_000)
    ranges = []
    async with world.serving("alpha", piece_bytes=65_536, rate_bytes_per_s=4_000_000) as alpha:
        server = alpha.server
        task = asyncio.create_task(run(world, alpha.holder))
        await until(lambda: server.bytes_sent > 3_000_000)
        for peer in server._connections:
            peer.transport.abort()
        await task
        ranges.append(server.bytes_sent)
    assert world.beta.chunks.chunks == world.study.chunks
    assert ranges[0] < 6_000_000  # not twice the chunk: what had arrived was kept


async def test_once_the_offer_is_here_another_holder_is_enough(world):
    async with world.serving("alpha", "gamma") as (alpha, gamma):
        alpha.chunks.ciphertext = _nothing
        with pytest.raises(TransferIncomplete):
            await run(world, alpha.holder)
        await alpha.server.close()
        await run(world, alpha.holder, gamma.holder)
    assert world.beta.chunks.chunks == world.study.chunks


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"study_id": b"\x01" * 16}, "another request or study"),
        ({"wrapped_digest": b"\x01" * 32}, "whose digest"),
        ({"roots": ((2, b"\x11" * 32),)}, "version and root"),
        ({"bytes_max": 239_999}, "room for 239999"),
    ],
)
async def test_an_offer_that_is_not_what_the_ledger_says_is_refused(world, change, told):
    world.wanted = replace(world.wanted, **change)
    async with world.serving("alpha") as alpha:
        with pytest.raises(InvalidOffer, match=told):
            await run(world, alpha.holder)
    assert alpha.chunks.sent == []
    assert world.beta.transfers.get(world.request_id) is None


async def test_a_kept_offer_of_something_else_is_asked_for_anew(world):
    async with world.serving("alpha") as alpha:
        await run(world, alpha.holder)
        second = replace(world.delivery, version=2, root=b"\x22" * 32)
        world.wanted = replace(world.wanted, roots=((2, second.root),))
        alpha.deliveries.forget(world.request_id)
        alpha.deliveries.put(second)
        alpha.chunks.sealed_study = lambda study_id, version: replace(
            type(alpha.chunks).sealed_study(alpha.chunks, study_id, 1), version=version
        )
        fetched = await run(world, alpha.holder)
    assert fetched.offer.delivery == second


async def test_a_sink_that_fails_ends_the_transfer_with_its_own_error(world):
    def full(digest, data, found):
        raise OSError(28, "no room")

    world.beta.chunks.put_ciphertext = full
    async with world.serving("alpha") as alpha:
        with pytest.raises(OSError, match="no room"):
            await run(world, alpha.holder)
        del world.beta.chunks.put_ciphertext
        await run(world, alpha.holder)
    assert world.beta.chunks.chunks == world.study.chunks


async def test_memory_is_bounded_by_the_chunks_in_flight(tmp_path):
    """Every chunk of a worker lands in the same buffer."""
    world = World(tmp_path, count=30, size=10_000)
    buffers = set()
    put = world.beta.chunks.put_ciphertext

    def watch(digest, data, found):
        buffers.add(id(data.obj))
        put(digest, data, found)

    world.beta.chunks.put_ciphertext = watch
    async with world.serving("alpha") as alpha:
        await run(world, alpha.holder)
    assert len(buffers) <= QUICK.parallel
