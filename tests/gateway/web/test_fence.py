"""The decoding process: what crashes, hangs or eats memory in it costs one answer."""

import asyncio
import os
import signal
import threading

import numpy as np
import psutil
import pytest

from node.gateway.web.fence import Decoder
from node.gateway.web.files import Failed
from tests.imaging.dicom import FILES, minimal

WISHES = {"media": "image/png"}
CT = (FILES / "CT_small.dcm").read_bytes()


@pytest.fixture
async def decoder():
    made = Decoder(1 << 30, 30, 64 << 20)
    yield made
    await made.close()


async def test_a_hanging_process_is_ended_and_replaced(decoder):
    await decoder.call("picture", CT, WISHES)
    first = decoder._worker.process
    os.kill(first.pid, signal.SIGSTOP)
    decoder._timeout_s = 0.2
    with pytest.raises(Failed, match="too long"):
        await decoder.call("picture", CT, WISHES)
    assert first.returncode is not None
    decoder._timeout_s = 30
    assert (await decoder.call("picture", CT, WISHES)).startswith(b"\x89PNG")


async def test_a_crashed_process_is_replaced(decoder):
    await decoder.call("native", CT)
    os.kill(decoder._worker.process.pid, signal.SIGSEGV)
    decoder._worker.process.wait()
    assert len(await decoder.call("native", CT)) == 128 * 128 * 2


async def test_a_crash_while_decoding_is_told(decoder):
    await decoder.call("native", CT)
    process = decoder._worker.process
    os.kill(process.pid, signal.SIGSTOP)
    call = asyncio.create_task(decoder.call("native", CT))
    await asyncio.to_thread(waiting(decoder._worker).wait)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(Failed, match="failed on these pixels"):
        await call
    assert await decoder.call("native", CT)


def waiting(worker):
    """Return what is set when a request was handed over and its answer is waited for."""
    asked, answer = threading.Event(), worker.answer

    def wait_for(patience_s):
        asked.set()
        return answer(patience_s)

    worker.answer = wait_for
    return asked


async def test_memory_is_limited(tmp_path):
    pixels = np.zeros((6_000, 6_000), np.uint16)
    large = minimal(tmp_path / "large.dcm", pixels=pixels, WindowCenter=1, WindowWidth=2)
    decoder = Decoder(300 << 20, 30, 64 << 20)
    try:
        with pytest.raises(Failed):
            await decoder.call("picture", large.read_bytes(), WISHES)
        assert await decoder.call("picture", CT, WISHES)
    finally:
        await decoder.close()


async def test_a_cancelled_call_leaves_nothing_for_the_next(decoder):
    picture = await decoder.call("picture", CT, WISHES)
    call = asyncio.create_task(decoder.call("native", CT))
    while not decoder._turn.locked():
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert await decoder.call("picture", CT, WISHES) == picture


async def test_no_secret_of_ours_is_in_its_environment(decoder, monkeypatch):
    monkeypatch.setenv("RADLEDGER_PASSPHRASE", "secret")
    await decoder.call("native", CT)
    assert "RADLEDGER_PASSPHRASE" not in psutil.Process(decoder._worker.process.pid).environ()


@pytest.mark.parametrize("file", [b"", b"x" * 200, CT[:2_000], CT[:-2_000]])
async def test_garbage_is_refused(decoder, file):
    for operation in ("picture", "native"):
        with pytest.raises(Failed) as refused:
            await decoder.call(operation, file, WISHES)
        assert refused.value.code == "decoder"
