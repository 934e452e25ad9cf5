"""Cutting instances into chunks of one size, several at work at once, in bounded memory.

The caller's thread reads; one thread compares every instance with F, in order; workers compress,
seal and write. There are never more than `workers` + 2 buffers of `CHUNK_BYTES`, however large a
study is. Comparing costs as much as all the rest, so it has a thread, not a part of another's.
"""

import hashlib
import hmac
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
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
    checking = ThreadPoolExecutor(1, "store-check")
    try:
        cutter = _Cutter(pool, checking, write, workers + 1)
        instances = [_pack(number, source, cutter) for number, source in enumerate(sources, 1)]
        return Packed(instances, cutter.finish())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        checking.shutdown(wait=True, cancel_futures=True)


class _Check:
    """Compares an instance with F as its pieces come."""

    def __init__(self, number: int, digest: bytes) -> None:
        self._number, self._digest = number, digest
        self._running = hashlib.sha256()

    def update(self, piece: memoryview, *, is_last: bool) -> None:
        self._running.update(piece)
        if is_last and not hmac.compare_digest(self._running.digest(), self._digest):
            raise FileChanged(f"instance {self._number} is not what was registered")


class _Piece(NamedTuple):
    """What part of a buffer belongs to an instance that is to be compared."""

    check: _Check
    start: int
    stop: int
    is_last: bool


class _Cutter:
    """The buffer being filled, and those at work."""

    def __init__(self, pool: Executor, checking: Executor, write: Write, at_work_max: int) -> None:
        self._pool, self._checking, self._write = pool, checking, write
        self._at_work_max = at_work_max
        self._at_work: deque[tuple[Future[ChunkEntry], Future[None] | None, bytearray]] = deque()
        self._chunks: list[ChunkEntry] = []
        self._pieces: list[_Piece] = []
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

    def filled(self, count: int, check: _Check | None, *, is_last: bool) -> None:
        """Note that `count` bytes of the room are of an instance now, its last ones or not."""
        start = self._filled
        self._filled += count
        if check is not None:
            self._pieces.append(_Piece(check, start, self._filled, is_last))

    def finish(self) -> list[ChunkEntry]:
        """Write the rest; return all chunks in order."""
        if self._filled:
            self._send(final=True)
        while self._at_work:
            self._collect()
        return self._chunks

    def _send(self, *, final: bool) -> None:
        plain = memoryview(self._buffer)[: self._filled]
        checked = self._checking.submit(_compare, plain, self._pieces) if self._pieces else None
        job = self._pool.submit(self._write, self.position, plain, final)
        self._at_work.append((job, checked, self._buffer))
        self.position, self._filled, self._pieces = self.position + 1, 0, []
        full = len(self._at_work) >= self._at_work_max
        self._buffer = self._collect() if full else bytearray(CHUNK_BYTES)

    def _collect(self) -> bytearray:
        job, checked, buffer = self._at_work.popleft()
        self._chunks.append(job.result())
        if checked is not None:
            checked.result()
        return buffer


def _compare(plain: memoryview, pieces: Iterable[_Piece]) -> None:
    for piece in pieces:
        piece.check.update(plain[piece.start : piece.stop], is_last=piece.is_last)


def _pack(number: int, source: InstanceSource, cutter: _Cutter) -> IndexedInstance:
    facts, left = source.facts, source.facts.size
    require(left > 0, "an instance has at least one byte")
    check = None if source.is_checked else _Check(number, facts.digest)
    cutter.room()  # so that an instance never begins at the end of a full chunk
    place = IndexedInstance(facts, cutter.position, cutter.offset)
    with source.open() as stream:
        while left:
            view = cutter.room()[:left]
            count = stream.readinto(view) or 0
            if not count:
                raise FileChanged(f"instance {number} is shorter than it was registered")
            left -= count
            cutter.filled(count, check, is_last=not left)
        if stream.read(1):
            raise FileChanged(f"instance {number} is longer than it was registered")
    return place
