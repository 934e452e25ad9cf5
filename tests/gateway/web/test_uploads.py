"""A part between loop and thread: all bytes in order, a bound on what is held, and clean ends."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gateway.web.uploads import _HELD_BYTES_MAX, BrokenOff, PartStream


@given(st.lists(st.binary(max_size=50), max_size=20), st.lists(st.integers(1, 60), min_size=1))
def test_reads_of_any_size_give_all_bytes_in_order(pieces, sizes):
    async def run():
        stream, taken = PartStream(), []

        def read():
            at = 0
            while data := stream.read(sizes[at % len(sizes)]):
                at += 1
                taken.append(data)

        with ThreadPoolExecutor(1) as pool:
            reading = asyncio.get_running_loop().run_in_executor(pool, read)
            for piece in filter(None, pieces):
                await stream.write(piece)
            stream.finish()
            await reading
        assert b"".join(taken) == b"".join(pieces)
        short = [n for n, data in enumerate(taken) if len(data) < sizes[n % len(sizes)]]
        assert short in ([], [len(taken) - 1])  # only the last may be short

    asyncio.run(run())


async def test_a_sender_waits_for_a_slow_reader():
    stream = PartStream()
    await stream.write(bytes(_HELD_BYTES_MAX))
    writing = asyncio.create_task(stream.write(b"more"))
    await asyncio.sleep(0)
    assert not writing.done()
    assert len(await asyncio.to_thread(stream.read, 1_000)) == 1_000
    await writing


async def test_a_reader_that_wants_no_more_lets_the_sender_go_on():
    stream = PartStream()
    await stream.write(bytes(_HELD_BYTES_MAX))
    writing = asyncio.create_task(stream.write(b"more"))
    await asyncio.sleep(0)
    await asyncio.to_thread(stream.done)
    await writing
    await stream.write(bytes(10 * _HELD_BYTES_MAX))


async def test_a_sender_that_breaks_off_fails_the_reader():
    stream = PartStream()
    await stream.write(b"half")
    reading = asyncio.create_task(asyncio.to_thread(stream.read))
    await asyncio.sleep(0)
    stream.break_off()
    with pytest.raises(BrokenOff):
        await reading
