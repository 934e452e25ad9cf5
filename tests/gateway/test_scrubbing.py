"""The gateway finds rot by itself, off the event loop, and has it mended."""

import asyncio
import threading
from contextlib import asynccontextmanager

import pytest

from node.exchange.store.blobs import index_name
from node.exchange.store.errors import StoreError
from node.gateway.scrubbing import LOOK_S, RATE_BYTES_PER_S, Scrubbing
from tests.gateway.flow_world import until
from tests.gateway.test_mending import damage, sent, shared, whole

HOUR_MS = 3_600_000
SMALL = {"instances": 2, "side": 64}


@asynccontextmanager
async def scrubbed(hospital):
    """Scrub a hospital's store, as its gateway does, all at once."""
    scrub = hospital.store.slow_scrub(1)
    scrubbing = Scrubbing(scrub, hospital.exchange.mending.found)
    running = asyncio.create_task(scrubbing.run())
    yield scrubbing
    running.cancel()


async def test_rot_in_own_and_received_studies_is_found_and_mended(tmp_path):
    async with shared(tmp_path, "beta") as (all_, study, _):
        for hospital in (all_.alpha, all_.beta):
            damage(hospital, study)
            async with scrubbed(hospital):
                await until(lambda each=hospital: each.mended)
            assert whole(hospital, study)
            assert await asyncio.to_thread(hospital.bytes_of, study.id) == sent(study)


async def test_a_rotten_index_of_a_received_study_is_mended(tmp_path):
    async with shared(tmp_path, "beta", **SMALL) as (all_, study, _):
        beta = all_.beta
        path = beta.folder / "blobs" / index_name(study.id, 1)
        true = path.read_bytes()
        path.write_bytes(b"rot")
        async with scrubbed(beta):
            await until(lambda: path.read_bytes() == true)


class Pieces:
    """A slow scrub by hand."""

    def __init__(self):
        self.waits_ms, self.error, self.threads, self.size = [], None, [], 0
        self.progress = 0.5

    def wait_ms(self):
        self.threads.append(threading.current_thread())
        return self.waits_ms.pop(0)

    def step(self):
        if self.error is not None:
            raise self.error
        return type("Piece", (), {"bytes": self.size, "findings": []})


async def test_it_reads_in_a_thread_at_a_bounded_rate_and_looks_now_and_then():
    pieces = Pieces()
    scrubbing = Scrubbing(pieces, lambda study_id: None)
    pieces.waits_ms = [5_000, 10 * HOUR_MS, 0, 0]
    assert await scrubbing.turn() == 5.0
    assert await scrubbing.turn() == LOOK_S
    pieces.size = 3 * RATE_BYTES_PER_S
    assert await scrubbing.turn() == 3.0
    pieces.error = StoreError("not mounted")
    with pytest.raises(StoreError):
        await scrubbing.turn()
    assert threading.main_thread() not in pieces.threads
    assert scrubbing.progress == 0.5
