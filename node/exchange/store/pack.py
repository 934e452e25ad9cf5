"""Cutting instances into chunks of one size, several at work at once, in bounded memory.

The caller's thread reads and hashes; workers compress, seal and write. There are never more than
`workers` + 2 buffers of `CHUNK_BYTES`, however large a study is.
"""

import hashlib
import hmac
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

from consensus.errors import require
from node.exchange.store.errors import FileChanged
from node.exchange.store.index import ChunkEntry, IndexedInstance, InstanceSource
from node.exchange.store.sealing import CHUNK_BYTES

# (position, plaintext, whether it is the last) -> the chunk, durable. Called by workers.
Write: TypeAlias = Callable[[int, memoryview, bool], ChunkEntry]


class Packed(NamedTuple):
    """Instances, with places counted from the first of `chunks`."""

    instances: list[IndexedInstance]
    chunks: list[ChunkEntry]


def pack_instances(sources: Iterable[InstanceSource], write: Write, workers: int) -> Packed:
    """Return where each instance was put. Raises `FileChanged` and what `write` and files raise."""
    pool = ThreadPoolExecutor(workers, "store-pack")
    try:
        cutter = _Cutter(pool, write, workers + 1)
        instances = [_pack(number, source, cutter) for number, source in enumerate(sources, 1)]
        return Packed(instances, cutter.finish())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Cutter:
    """The buffer being filled, and those at work."""

    def __init__(self, pool: ThreadPoolExecutor, write: Write, at_work_max: int) -> None:
        self._pool, self._write, self._at_work_max = pool, write, at_work_max
        self._at_work: deque[tuple[Future[ChunkEntry], bytearray]] = deque()
        self._chunks: list[ChunkEntry] = []
        self._buffer, self._filled, self.position = bytearray(CHUNK_BYTES), 0, 0

    @property
    def offset(self) -> int:
        """Where the next byte goes, in the chunk at `position`."""
        return self._filled

    def room(self) -> memoryview:
        """Return where to put the bytes that follow; never empty."""
        # A full buffer waits until more comes, since the last chunk is marked as the last.
        if self._filled == CHUNK_BYTES:
            self._send(final=False)
        return memoryview(self._buffer)[self._filled :]

    def filled(self, count: int) -> None:
        """Note that `count` bytes of the room hold something now."""
        self._filled += count

    def finish(self) -> list[ChunkEntry]:
        """Write the rest; return all chunks in order."""
        if self._filled:
            self._send(final=True)
        while self._at_work:
            self._collect()
        return self._chunks

    def _send(self, *, final: bool) -> None:
        plain = memoryview(self._buffer)[: self._filled]
        job = self._pool.submit(self._write, self.position, plain, final)
        self._at_work.append((job, self._buffer))
        self.position, self._filled = self.position + 1, 0
        full = len(self._at_work) >= self._at_work_max
        self._buffer = self._collect() if full else bytearray(CHUNK_BYTES)

    def _collect(self) -> bytearray:
        job, buffer = self._at_work.popleft()
        self._chunks.append(job.result())
        return buffer


def _pack(number: int, source: InstanceSource, cutter: _Cutter) -> IndexedInstance:
    facts, left, running = source.facts, source.facts.size, hashlib.sha256()
    require(left > 0, "an instance has at least one byte")
    cutter.room()  # so that an instance never begins at the end of a full chunk
    place = IndexedInstance(facts, cutter.position, cutter.offset)
    with source.open() as stream:
        while left:
            view = cutter.room()[:left]
            count = stream.readinto(view) or 0
            if not count:
                raise FileChanged(f"instance {number} is shorter than it was registered")
            if not source.is_checked:
                running.update(view[:count])
            cutter.filled(count)
            left -= count
        if stream.read(1):
            raise FileChanged(f"instance {number} is longer than it was registered")
    if not source.is_checked and not hmac.compare_digest(running.digest(), facts.digest):
        raise FileChanged(f"instance {number} is not what was registered")
    return place
