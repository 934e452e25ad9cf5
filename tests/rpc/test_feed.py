"""Walking over heights: past and present without gap or repetition, and nothing queued."""

import asyncio
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.errors import InvariantViolation
from node.rpc.feed import EventFeed
from node.rpc.limiter import TokenBucket
from tests.rpc.conftest import FakeService, block_events


async def take(stream, count):
    return [(await anext(stream)).height for _ in range(count)]


async def test_from_the_store_through_the_ring_to_the_live_end():
    service = FakeService()
    for _ in range(10):
        service.add_block("a")
    stream = service.feed.subscribe(1)
    assert await take(stream, 10) == list(range(1, 11))
    assert service.reads == 6  # four of ten are in the ring
    waiting = asyncio.create_task(take(stream, 3))
    for _ in range(3):
        await asyncio.sleep(0)
        service.add_block("a")
    assert await waiting == [11, 12, 13]


async def test_a_height_in_the_future_is_waited_for():
    service = FakeService()
    waiting = asyncio.create_task(take(service.feed.subscribe(3), 1))
    for _ in range(3):
        assert not waiting.done()
        service.add_block()
        await asyncio.sleep(0)
    assert await waiting == [3]


async def test_blocks_that_came_by_sync_are_read_from_the_store():
    service = FakeService()
    stream = service.feed.subscribe(1)
    for height in range(1, 6):
        service.past[height] = block_events(height)
    service.feed.skip_to(5)
    assert await take(stream, 5) == [1, 2, 3, 4, 5]
    assert service.add_block().height == 6
    assert await take(stream, 1) == [6]


async def test_large_blocks_are_read_from_the_store_rather_than_kept():
    service = FakeService()
    feed = EventFeed(service._read, 0, recent_blocks=4, recent_events=10)
    for height in range(1, 5):
        service.past[height] = block_events(height, *"abcd")
        feed.publish(service.past[height])
    stream = feed.subscribe(1)
    assert await take(stream, 4) == [1, 2, 3, 4]
    assert service.reads == 2  # two of them have as many events as are kept
    service.past[5] = block_events(5, *"abcdefghijkl")
    feed.publish(service.past[5])
    assert await take(stream, 1) == [5]
    assert service.reads == 2


async def test_heights_are_published_one_by_one():
    feed = EventFeed(FakeService()._read, 5)
    for height in (5, 7):
        with pytest.raises(InvariantViolation):
            feed.publish(block_events(height))


@given(st.integers(0, 30), st.lists(st.booleans(), max_size=60))
def test_any_interleaving_of_blocks_and_reading_gives_every_height_once(start, steps):
    async def run():
        service = FakeService()
        for _ in range(start):
            service.add_block()
        stream = service.feed.subscribe(1)
        seen = []
        for publishes in [*steps, *[False] * 100]:
            if publishes:
                service.add_block()
            elif len(seen) < service.feed.height:
                seen += await take(stream, 1)
        return seen, service.feed.height

    seen, height = asyncio.run(run())
    assert seen == list(range(1, height + 1))


def test_the_bucket_grants_its_rate_and_a_burst_of_one_second():
    bucket = TokenBucket(10, now_s=100.0)
    assert [bucket.take(1, 100.0) for _ in range(10)] == [0.0] * 10
    assert bucket.take(1, 100.0) == pytest.approx(0.1)
    assert bucket.take(1, 100.0) == pytest.approx(0.2)
    assert bucket.take(1, 101.0) == 0.0
    assert bucket.take(10, 1_000.0) == 0.0
    assert bucket.take(1, 1_000.0) == pytest.approx(0.1)


@given(st.integers(1, 50), st.lists(st.floats(0, 2), max_size=50))
def test_who_waits_as_told_never_calls_faster_than_the_rate(rate, gaps):
    bucket, now, times = TokenBucket(rate, 0.0), 0.0, []
    for gap in gaps:
        now += gap
        now += bucket.take(1, now)
        times.append(now)
    for earlier, later in zip(times, islice(times, rate + 1, None), strict=False):
        assert later - earlier >= 1 / rate - 1e-6
