"""What one peer may cost: connections, requests, time, bytes a second; and requests by hand."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.exchange.transfer.client import fetch
from node.exchange.transfer.limits import TokenBucket
from tests.exchange.transfer_world import QUICK, World, ask, connect, get, until


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def is_cut(reader):
    try:
        async with asyncio.timeout(20):
            while await reader.read(1 << 16):
                pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("", 200, 0, 40_000),
        ("bytes=0-", 206, 0, 40_000),
        ("bytes=100-199", 206, 100, 200),
        ("bytes=39999-", 206, 39_999, 40_000),
        ("bytes=-5", 206, 39_995, 40_000),
        ("bytes=100-9999999", 206, 100, 40_000),
    ],
)
async def test_ranges(world, asked, status, start, stop):
    chunk = world.study.order[0]
    header = f"Range: {asked}\r\n" if asked else ""
    async with world.serving("alpha") as alpha:
        answer = await get(world.beta, alpha, world.chunk_path(chunk.digest), header)
    assert answer[0] == status
    assert answer[2] == world.study.chunks[chunk.digest][start:stop]
    if status == 206:
        assert answer[1]["content-range"] == f"bytes {start}-{stop - 1}/40000"


@pytest.mark.parametrize(
    "asked", ["bytes=40000-", "bytes=5-4", "bytes=0-1,5-6", "bytes=x", "lines=1-2"]
)
async def test_ranges_that_nobody_can_serve(world, asked):
    path = world.chunk_path(world.study.order[0].digest)
    async with world.serving("alpha") as alpha:
        status, _, body = await get(world.beta, alpha, path, f"Range: {asked}\r\n")
    assert status == 416
    assert b"range_invalid" in body


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 404),
        ("/v1/offer/", 404),
        ("/v1/offer/00", 400),
        ("/v1/offer/" + "0" * 33, 400),
        ("/v1/offer/" + "A" * 32, 400),
        ("/v1/offer/%2e%2e%2f", 400),
        ("/v1/chunk/" + "0" * 64, 400),
        ("/v1/chunk/" + "0" * 64 + "?request=../../etc", 400),
        ("/v1/chunk/" + "0" * 63 + "?request=" + "0" * 32, 400),
        ("/v1/chunk/" + "0" * 64 + "?request=" + "0" * 32, 404),
    ],
)
async def test_requests_that_are_not_well_formed(world, path, status):
    async with world.serving("alpha") as alpha:
        answer = await get(world.beta, alpha, path)
        assert answer[0] == status
        assert (await get(world.beta, alpha, f"/v1/offer/{world.request_id.hex()}"))[0] == 200


async def test_a_fault_of_ours_tells_the_peer_nothing(world):
    def broken(study_id, version):
        raise RuntimeError("secret detail")

    world.alpha.chunks.sealed_study = broken
    async with world.serving("alpha") as alpha:
        answer = await get(world.beta, alpha, f"/v1/offer/{world.request_id.hex()}")
    assert answer[0] == 500
    assert b"secret" not in answer[2]


async def test_one_hospital_cannot_take_all_connections(world):
    context = world.beta.contexts.client
    async with world.serving("alpha", peer_connections_max=3, connections_max=6) as alpha:
        kept = [await connect(alpha, context) for _ in range(3)]
        for reader, writer in kept:
            assert (await ask(reader, writer, "/"))[0] == 404
        extra, writer = await connect(alpha, context)
        assert await is_cut(extra)
        world.permit("gamma")
        answer = await get(world.gamma, alpha, f"/v1/offer/{world.request_id.hex()}")
        assert answer[0] == 200
        for _, each in [*kept, (extra, writer)]:
            each.transport.abort()
    assert [event.code for event in alpha.events if event.code] == ["too_many_connections"]


async def test_beyond_the_connections_in_all_none_is_taken(world):
    async with world.serving("alpha", connections_max=2) as alpha:
        kept = [await connect(alpha, world.beta.contexts.client) for _ in range(2)]
        for reader, writer in kept:
            await ask(reader, writer, "/")
        with pytest.raises((ConnectionError, OSError)):
            await get(world.gamma, alpha, "/")
        kept[0][1].transport.abort()
        await until(lambda: not alpha.server._is_full())
        assert (await get(world.gamma, alpha, "/"))[0] == 404
        kept[1][1].transport.abort()


async def test_a_thousand_silent_sockets_lock_nobody_out(world):
    async with world.serving("alpha", half_open_max=16, handshake_timeout_ms=60_000) as alpha:
        silent = []
        for _ in range(20):
            opened = await asyncio.gather(*(connect(alpha, None) for _ in range(10)))
            silent += opened
        await fetch(
            world.beta.identity,
            world.wanted,
            [alpha.holder],
            world.beta.chunks,
            world.beta.transfers,
            limits=QUICK,
        )
        for reader, _ in silent[:-16]:
            assert await is_cut(reader)
        await until(lambda: len(alpha.server._acceptor._tasks) <= 16)
        for _, writer in silent:
            writer.transport.abort()
    assert world.beta.chunks.chunks == world.study.chunks


async def test_handshakes_that_stand_still_end(world):
    async with world.serving("alpha", handshake_timeout_ms=50) as alpha:
        reader, writer = await connect(alpha, None)
        assert await is_cut(reader)
        writer.transport.abort()


@pytest.mark.parametrize("said", [b"", b"GET /v1/off"])
async def test_connections_that_ask_for_nothing_end(world, said):
    async with world.serving("alpha", idle_timeout_ms=60, recheck_ms=20) as alpha:
        reader, writer = await connect(alpha, world.beta.contexts.client)
        writer.write(said)
        assert await is_cut(reader)
        writer.transport.abort()
        await until(lambda: len(alpha.server._connections) == 0)


async def test_a_reader_that_reads_nothing_is_cut(tmp_path):
    world = World(tmp_path, count=1, size=32_000_000)  # more than the kernel's buffers hold
    async with world.serving("alpha", stall_timeout_ms=50, recheck_ms=60_000) as alpha:
        _, writer = await connect(alpha, world.beta.contexts.client)
        writer.transport.pause_reading()
        path = world.chunk_path(world.study.order[0].digest)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await until(lambda: [event.code for event in alpha.events] == ["stalled"])
        writer.transport.abort()
        assert alpha.server._running.snapshot() == ()


async def test_one_hospital_has_so_many_answers_at_a_time(tmp_path):
    world = World(tmp_path, count=4, size=400_000)
    slow = {"rate_bytes_per_s": 400_000, "piece_bytes": 4_096}
    async with world.serving("alpha", peer_requests_max=1, **slow) as alpha:
        path = world.chunk_path(world.study.order[0].digest)
        first = asyncio.create_task(get(world.beta, alpha, path))
        await until(lambda: alpha.server.bytes_sent > 0)
        status, headers, body = await get(world.beta, alpha, path)
        assert (status, headers["retry-after"]) == (429, "1")
        assert b"too_many_requests" in body
        first.cancel()
        await asyncio.wait([first])


async def test_what_is_sent_keeps_to_the_rate(tmp_path):
    """By the loop's clock, which cannot run slower than the bytes may flow."""
    world = World(tmp_path, count=2, size=100_000)
    limits = {"peer_rate_bytes_per_s": 400_000, "piece_bytes": 10_000}
    async with world.serving("alpha", **limits) as alpha:
        began = asyncio.get_running_loop().time()
        await fetch(
            world.beta.identity,
            world.wanted,
            [alpha.holder],
            world.beta.chunks,
            world.beta.transfers,
            limits=QUICK,
        )
        took = asyncio.get_running_loop().time() - began
    assert took >= (200_000 - 2 * 10_000) / 400_000


@given(
    rate=st.integers(1, 10_000),
    burst=st.integers(1, 10_000),
    steps=st.lists(st.tuples(st.integers(1, 5_000), st.floats(0, 3)), max_size=30),
)
def test_a_bucket_never_gives_more_than_its_rate_and_burst(rate, burst, steps):
    bucket = TokenBucket(rate, burst, 0.0)
    now_s, taken = 0.0, 0
    for count, pause_s in steps:
        now_s += pause_s
        now_s += bucket.take(count, now_s)  # whoever takes waits as long as it is told
        taken += count
        assert taken <= burst + rate * now_s + 1e-3


async def test_closing_twice_or_before_starting_is_no_error(world):
    async with world.serving("alpha") as alpha:
        await alpha.server.close()
        await alpha.server.close()


async def test_a_port_that_is_taken_is_named(world):
    async with world.serving("alpha") as alpha:
        gamma = await world.start("gamma")
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{alpha.server.port}"):
            await gamma.server.start("127.0.0.1", alpha.server.port)
        await gamma.server.close()
