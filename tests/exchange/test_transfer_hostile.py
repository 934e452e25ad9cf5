"""Holders that keep others waiting for ever, or send them elsewhere."""

import asyncio
import itertools
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import pytest

from node.exchange.transfer import holders
from node.exchange.transfer.client import fetch, recover
from node.exchange.transfer.errors import TransferIncomplete
from node.exchange.transfer.holders import Holder, HolderFailed, HolderRefused, Link
from tests.exchange.transfer_world import QUICK, Chunks, World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@asynccontextmanager
async def serving(answer, context=None):
    """Serve on loopback; `answer(head, writer)` writes what is said to one request."""

    async def serve(reader, writer):
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await answer(await reader.readuntil(b"\r\n\r\n"), writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def hostile(world, port):
    return Holder("alpha", "127.0.0.1", port, world.alpha_certificates)


async def test_nobody_is_sent_elsewhere(world):
    asked = []

    async def inner(head, writer):
        asked.append(head)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def redirects(head, writer):
        status = b"307 x" if head.startswith(b"POST") else b"302 x"
        where = f"http://127.0.0.1:{port}/instances".encode()
        lines = b"HTTP/1.1 " + status, b"Location: " + where, b"Content-Length: 0", b"", b""
        writer.write(b"\r\n".join(lines))

    async with (
        serving(inner) as port,
        serving(redirects, world.alpha.contexts.server) as rogue,
    ):
        link = Link(hostile(world, rogue), world.beta.identity, QUICK)
        for question in (link.knock(), link.offer(bytes(16)), link.post("/v1/find", b"q", 100)):
            with pytest.raises(HolderRefused, match="status_30"):
                await question
        await link.close()
    assert asked == []


async def test_a_holder_that_is_busy_for_ever_is_left(world):
    asked = []

    async def busy(head, writer):
        asked.append(head)
        writer.write(b"HTTP/1.1 503 x\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")

    async with serving(busy, world.alpha.contexts.server) as port:
        holder = hostile(world, port)
        order = world.study.order
        found = await recover(
            world.beta.identity, world.study.study_id, order, [holder], Chunks(), limits=QUICK
        )
        assert found.missing == len(order)
        assert "busy" in found.left["alpha"]
        assert len(asked) <= QUICK.parallel * QUICK.busy_max
        with pytest.raises(TransferIncomplete):
            await fetch(
                world.beta.identity,
                world.wanted,
                [holder],
                world.beta.chunks,
                world.beta.transfers,
                limits=QUICK,
            )


async def test_a_holder_that_gives_a_byte_now_and_then_is_left(world, monkeypatch):
    seconds = itertools.count(0, 5)  # pass between two bytes
    monkeypatch.setattr(holders, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    sent = []

    async def trickles(head, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            sent.append(1)
            await asyncio.sleep(0)

    async with serving(trickles, world.alpha.contexts.server) as port:
        link = Link(hostile(world, port), world.beta.identity, QUICK)
        for question in (link.offer(bytes(16)), link.post("/v1/find", b"q", 10_000_000)):
            with pytest.raises(HolderFailed, match="too slow"):
                await question
        await link.close()
    assert sent
