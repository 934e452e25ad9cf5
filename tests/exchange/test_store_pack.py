"""The stages between an instance and the disk: what fails, what waits, what lies in between."""

import hashlib
import random
import threading
from dataclasses import replace
from io import BytesIO

import pytest

from node.exchange.pages import page_buffer
from node.exchange.store import pack
from node.exchange.store.index import ChunkEntry
from node.exchange.store.local import _is_aligned
from tests.exchange.store_parts import noise, source

CHUNK = 4_096
SEALERS, WRITERS = 2, 2


def pack_with(disk, given, sealers=SEALERS):
    """Pack sources with the disk's stages."""
    return pack.pack_instances(given, disk.seal, disk.keep, sealers=sealers, writers=WRITERS)


class Boom(Exception):
    """What a stage may raise."""


class Disk:
    """Seals by copying, and keeps; fails at a chunk, in sealing or in keeping."""

    def __init__(self, fails_at=None, stage=""):
        self.fails_at, self.stage = fails_at, stage
        self.kept = {}

    def seal(self, position, plain, final, room):
        if (position, "seal") == (self.fails_at, self.stage):
            raise Boom
        room[: len(plain)] = plain
        digest = hashlib.sha256(plain).digest()
        return ChunkEntry(digest, len(plain), len(plain), 1, position, final), memoryview(room)

    def keep(self, entry, data):
        if (entry.position, "keep") == (self.fails_at, self.stage):
            raise Boom
        self.kept[entry.position] = bytes(data[: entry.stored_bytes])


class Counted:
    """A source of so many chunks that tells when `mark` of them were asked for."""

    def __init__(self, chunks, mark):
        self.is_marked, self.chunks_read = threading.Event(), 0
        data, counted, asked = noise(chunks * CHUNK), self, []

        class Stream(BytesIO):
            def readinto(self, buffer):
                asked.append(len(buffer))
                counted.chunks_read = sum(asked) // CHUNK
                if counted.chunks_read >= mark:
                    counted.is_marked.set()
                return super().readinto(buffer)

        self.source = replace(source(1, data), open=lambda: Stream(data))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(pack, "CHUNK_BYTES", CHUNK)


def busy():
    return [thread for thread in threading.enumerate() if thread.name.startswith("store-")]


@pytest.mark.parametrize("sealers", [1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_every_instance_lies_where_it_is_said_to_and_chunks_are_full(sealers, seed):
    sizes = random.Random(seed).choices([1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 30_000], k=40)
    given = [noise(size, number) for number, size in enumerate(sizes)]
    disk = Disk()
    packed = pack_with(disk, [source(n, data) for n, data in enumerate(given)], sealers)
    assert [entry.position for entry in packed.chunks] == list(range(len(disk.kept)))
    assert [entry.final for entry in packed.chunks].index(True) == len(packed.chunks) - 1
    assert {entry.plain_bytes for entry in packed.chunks[:-1]} == {CHUNK}
    whole = b"".join(disk.kept[position] for position in sorted(disk.kept))
    for data, place in zip(given, packed.instances, strict=True):
        start = place.first_chunk * CHUNK + place.offset
        assert whole[start : start + len(data)] == data
    assert busy() == []


@pytest.mark.parametrize("stage", ["seal", "keep"])
@pytest.mark.parametrize("fails_at", [0, 1, 8, 19])
def test_what_fails_in_a_stage_is_raised_and_no_thread_goes_on(stage, fails_at):
    disk = Disk(fails_at, stage)
    with pytest.raises(Boom):
        pack_with(disk, [source(1, noise(20 * CHUNK))])
    assert busy() == []
    assert fails_at not in disk.kept


@pytest.mark.parametrize("stage", ["seal", "keep"])
def test_whoever_fails_gives_its_buffers_back(stage):
    """Else the others wait for them for ever: every buffer is filled before the first fails."""
    sealers = WRITERS + 4  # more than there are buffers for what is sealed
    disk, counted, raised = Disk(), Counted(500, mark=sealers + 2), []

    def fail(*_):
        assert counted.is_marked.wait(20)
        raise Boom

    def packing():
        with pytest.raises(Boom) as failure:
            pack_with(disk, [counted.source], sealers)
        raised.append(failure)

    setattr(disk, stage, fail)
    thread = threading.Thread(target=packing, daemon=True)
    thread.start()
    thread.join(20)
    assert raised
    assert counted.chunks_read <= (sealers + 2) + (WRITERS + 2) + 1  # all buffers, once more


def test_a_slow_disk_holds_up_reading_when_the_buffers_are_full():
    room = (SEALERS + 2) + (WRITERS + 2)  # chunks
    disk, counted, most = Disk(), Counted(200, mark=room), []

    def keep(entry, data):
        assert counted.is_marked.wait(20)
        most.append(counted.chunks_read - len(disk.kept))
        Disk.keep(disk, entry, data)

    disk.keep = keep
    pack_with(disk, [counted.source])
    assert len(disk.kept) == 200
    assert max(most) == room


@pytest.mark.parametrize("size", [1, CHUNK, 3_000_000])
def test_a_page_buffer_begins_with_a_page(size):
    buffer = page_buffer(size)
    assert len(buffer) == size
    assert _is_aligned(memoryview(buffer))
    assert bytes(buffer) == bytes(size)
