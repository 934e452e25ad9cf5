"""The thread beside the event loop."""

import asyncio
import threading

import pytest

from node.worker import Worker


@pytest.fixture
def worker():
    worker = Worker("test")
    yield worker
    worker.close()


async def test_results_and_exceptions_come_back_in_order(worker):
    calls = [worker.call(divmod, 7, divisor) for divisor in (2, 0, 3)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[0] == (3, 1)
    assert isinstance(results[1], ZeroDivisionError)
    assert results[2] == (2, 1)


async def test_the_loop_goes_on_while_a_call_waits(worker):
    gate = threading.Event()
    waiting = worker.call(gate.wait)
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    assert await waiting


async def test_a_cancelled_call_hurts_nobody(worker):
    gate = threading.Event()
    first, second = worker.call(gate.wait), worker.call(str, 5)
    first.cancel()
    gate.set()
    assert await second == "5"


async def test_close_waits_for_what_was_asked():
    worker, done = Worker("test"), []
    future = worker.call(done.append, 1)
    worker.close()
    assert done == [1]
    await future


def test_a_closed_loop_does_not_kill_the_thread(worker):
    gate = threading.Event()

    async def leave():
        worker.call(gate.wait)

    asyncio.run(leave())
    gate.set()

    async def again():
        return await worker.call(str, 6)

    assert asyncio.run(again()) == "6"
