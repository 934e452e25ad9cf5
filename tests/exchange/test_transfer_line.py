"""A thread's connection to a holder, against holders that answer as they like."""

import asyncio
import hashlib
import os
import threading
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import uvloop

from node.exchange.transfer.holders import Holder, HolderFailed, HolderLied, HolderRefused, Link
from node.exchange.transfer.limits import ClientLimits, SharedPace
from node.exchange.transfer.line import Partial
from node.exchange.transfer.ports import Chunk
from tests.exchange.transfer_world import World, until

DATA = os.urandom(300_000)
CHUNK = Chunk(hashlib.sha256(DATA).digest(), len(DATA))
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + DATA
LIMITS = ClientLimits(connect_timeout_ms=5_000, stall_timeout_ms=5_000)
IMPATIENT = ClientLimits(connect_timeout_ms=200, stall_timeout_ms=200, slow_bytes_per_s=10**9)


class Rogue:
    """Answers every request on a connection with the next of `answers`, then closes it."""

    def __init__(self, world, answers, *, keeps=1):
        self.world, self.answers, self.keeps = world, list(answers), keeps
        self.connections = 0
        self.asked = []

    async def serve(self, reader, writer):
        self.connections += 1
        try:
            for _ in range(self.keeps):
                self.asked.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0)
                if answer is None:  # never
                    await reader.read()
                writer.write(answer or b"")
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def link(self, limits=LIMITS):
        context = self.world.alpha.contexts.server
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        holder = Holder("alpha", "127.0.0.1", port, (self.world.alpha.person.certificate,))
        link = Link(holder, self.world.beta.identity, limits)
        try:
            yield link
        finally:
            await link.close()
            server.close()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def partial():
    return Partial(CHUNK, memoryview(bytearray(CHUNK.size)))


async def fetch(link, arriving, full=lambda: False):
    await link.stream(arriving, bytes(16), SharedPace(1 << 40), full)


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", HolderFailed),
        (b"\0" * 100_000, HolderFailed),
        (b"HTTP/1.1 200 OK\r\n" + b"a" * 100_000, HolderFailed),
        (HEAD + b"X: y\r\n" * 1_000 + b"\r\n", HolderFailed),
        (b"HTTP/1.1 2OO OK\r\n\r\n", HolderFailed),
        (HEAD + b"Content-Length: 5\r\n\r\nabcde", HolderLied),
        (HEAD + b"Content-Length: 300001\r\n\r\n" + DATA + b"x", HolderLied),
        (HEAD + b"Content-Length: 300000\r\n\r\n" + DATA[:1000], HolderFailed),
        (HEAD + b"Content-Length: -1\r\n\r\n", HolderLied),
        (HEAD + b"\r\n" + DATA[:-1], HolderLied),
        (HEAD + b"\r\n" + DATA + b"x", HolderLied),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", HolderFailed),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc", HolderFailed),
        (b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 7-\r\n\r\n", HolderLied),
        (b"HTTP/1.1 500 No\r\n\r\n" + b"x" * 100_000, HolderFailed),
        (b"HTTP/1.1 403 No\r\n\r\n[[[[", HolderRefused),
    ],
)
async def test_whatever_a_holder_answers_is_an_answer_of_a_holder(world, answer, error):
    rogue = Rogue(world, [answer, answer])
    async with rogue.link() as link:
        with pytest.raises(error):
            await fetch(link, partial())


async def test_another_certificate_than_is_known_is_said_in_words(world):
    async with Rogue(world, [GOOD]).link() as link:
        gamma = (world.gamma.person.certificate,)
        other = Link(replace(link.holder, certificates=gamma), world.beta.identity, LIMITS)
        with pytest.raises(HolderFailed, match="its certificate is not the one"):
            await fetch(other, partial())
        await other.close()


async def test_a_chunk_that_cannot_be_kept_leaves_its_connection_to_the_next(world):
    rogue = Rogue(world, [GOOD, GOOD], keeps=2)

    def full():
        raise KeyError("no room")

    async with rogue.link() as link:
        with pytest.raises(KeyError):
            await fetch(link, partial(), full)
        await fetch(link, partial())
    assert rogue.connections == 1


async def test_however_long_keeping_takes_is_not_held_against_the_holder(world):
    """Nor does another thread fill the chunk meanwhile."""
    kept, is_kept = threading.Event(), threading.Event()

    def full():
        kept.wait(20)
        is_kept.set()
        return False

    rogue = Rogue(world, [GOOD])
    async with rogue.link(IMPATIENT) as link:
        task = asyncio.create_task(fetch(link, partial(), full))
        await until(lambda: link._threads is not None and rogue.asked)
        done, _ = await asyncio.wait([task], timeout=1.0)
        assert not done
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=0.1)
        assert not done
        kept.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert is_kept.is_set()


async def test_a_connection_that_was_idle_too_long_is_made_anew(world):
    rogue = Rogue(world, [GOOD, GOOD])
    async with rogue.link() as link:
        for _ in range(2):
            arriving = partial()
            await fetch(link, arriving)
            assert (bytes(arriving.data), arriving.found) == (DATA, CHUNK.digest)
    assert rogue.connections == 2


async def test_chunks_follow_each_other_on_one_connection_in_one_thread(world):
    rogue = Rogue(world, [GOOD] * 3, keeps=3)
    arriving, threads = partial(), []

    def full():
        threads.append(threading.get_ident())
        assert arriving.found == CHUNK.digest
        arriving.begin(CHUNK)
        return len(threads) < 3

    async with rogue.link() as link:
        await fetch(link, arriving, full)
    assert (rogue.connections, len(threads), len(set(threads))) == (1, 3, 1)
    assert threading.get_ident() not in threads


async def test_what_came_before_a_failure_is_not_asked_for_again(world):
    rest = b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 299998-299999/300000\r\n"
    rest += b"Content-Length: 2\r\n\r\n" + DATA[-2:]
    rogue = Rogue(world, [GOOD[:-2], rest])
    arriving = partial()
    async with rogue.link() as link:
        with pytest.raises(HolderFailed):
            await fetch(link, arriving)
        assert arriving.filled == 299_998
        await fetch(link, arriving)
    assert b"Range: bytes=299998-" in rogue.asked[1]
    assert (bytes(arriving.data), arriving.found) == (DATA, CHUNK.digest)


async def test_whoever_is_cancelled_leaves_no_thread_that_waits(world):
    rogue = Rogue(world, [None])
    async with rogue.link(ClientLimits(parallel=1)) as link:
        task = asyncio.create_task(fetch(link, partial()))
        await until(lambda: rogue.asked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(10):  # less than the 30 s that a silent holder is given
            await asyncio.get_running_loop().run_in_executor(link._threads, lambda: None)


async def test_however_often_it_is_cancelled_it_ends_after_its_thread(world):
    """A chunk that is being kept is kept before whoever asked for it is told that all has ended."""
    keeping, goes_on, kept = threading.Event(), threading.Event(), []

    def keep():
        keeping.set()
        kept.append(goes_on.wait(20))
        return False

    async with Rogue(world, [GOOD]).link() as link:
        asking = asyncio.create_task(fetch(link, partial(), keep))
        await until(keeping.is_set)
        for _ in range(3):
            asking.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
        assert not asking.done()
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert kept == [True]


async def _trickle(reader, writer):
    """Never stand still, and never come to an end: a byte now and then."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(HEAD + b"Content-Length: 300000\r\n\r\n")
    try:
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)
    except OSError:
        writer.close()


async def test_a_holder_that_is_too_slow_over_a_chunk_is_cut(world):
    rogue = Rogue(world, [])
    rogue.serve = _trickle
    async with rogue.link(IMPATIENT) as link:
        with pytest.raises(HolderFailed, match="in time"):
            await fetch(link, partial())


def slow_over_the_second(tmp_path):
    """Return a coroutine in which a holder is slow over a chunk that follows one slowly kept."""

    async def story():
        rogue, arriving, looked = Rogue(World(tmp_path), [GOOD]), partial(), threading.Event()

        async def serve(reader, writer):
            await (
                Rogue.serve(rogue, reader, writer) if rogue.answers else _trickle(reader, writer)
            )

        def full():
            looked.wait(20)
            arriving.begin(CHUNK)
            return True

        rogue.serve = serve
        async with asyncio.timeout(20), rogue.link(IMPATIENT) as link:
            task = asyncio.create_task(fetch(link, arriving, full))
            await asyncio.wait([task], timeout=1.0)  # longer than the deadline of the first
            looked.set()
            with pytest.raises(HolderFailed, match="in time"):
                await task

    return story()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_the_chunk_after_one_that_was_long_in_keeping_has_its_own_deadline(tmp_path, run):
    run(slow_over_the_second(tmp_path))


async def test_a_line_that_was_cut_never_asks_again(world):
    rogue = Rogue(world, [GOOD])
    async with rogue.link() as link:
        line = link._line()
        line.cut()
        with pytest.raises(ConnectionAbortedError):
            await asyncio.to_thread(line.fetch, "/", partial(), "alpha", SharedPace(1))
    assert rogue.asked == []
