"""Cutting instances into chunks of one size: three stages side by side, in bounded memory.

    the caller's thread    reads, and compares every instance with F
    sealers                compress, seal and name the chunks
    writers                give them to the disk

Hashing twice costs as much as all the rest, and a disk wants to be asked for the next before it is
done with the last: so the first hash, the second and the disk each have threads of their own, and
between them lie filled buffers, a few of them, however large a study is.
"""

import hashlib
import hmac
import mmap
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple, TypeAlias

from consensus.errors import require
from node.exchange.pages import page_buffer
from node.exchange.store.errors import FileChanged
from node.exchange.store.index import ChunkEntry, IndexedInstance, InstanceSource
from node.exchange.store.sealing import CHUNK_BYTES, STORED_BYTES_MAX

# (position, plaintext, whether it is the last, a buffer) -> the chunk, and its bytes in the buffer.
Seal: TypeAlias = Callable[[int, memoryview, bool, mmap.mmap], tuple[ChunkEntry, memoryview]]
# The chunk is durable on return. Both are called in threads.
Keep: TypeAlias = Callable[[ChunkEntry, memoryview], None]


class Packed(NamedTuple):
    """Instances, with places counted from the first of `chunks`."""

    instances: list[IndexedInstance]
    chunks: list[ChunkEntry]


def pack_instances(
    sources: Iterable[InstanceSource], seal: Seal, keep: Keep, *, sealers: int, writers: int
) -> Packed:
    """Return where each instance was put.

    Raises `FileChanged` and what `seal`, `keep` and files raise; no thread is at work then.
    """
    with _Stages(seal, keep, sealers, writers) as stages:
        cutter = _Cutter(stages)
        instances = [_pack(number, source, cutter) for number, source in enumerate(sources, 1)]
        return Packed(instances, cutter.finish())


class _Stages:
    """Sealers and writers, and the buffers between them and the caller."""

    def __init__(self, seal: Seal, keep: Keep, sealers: int, writers: int) -> None:
        self._seal, self._keep = seal, keep
        self._sealing = ThreadPoolExecutor(sealers, "store-seal")
        self._writing = ThreadPoolExecutor(writers, "store-write")
        self._plain: SimpleQueue[mmap.mmap] = SimpleQueue()
        self._sealed: SimpleQueue[mmap.mmap] = SimpleQueue()
        for _ in range(sealers + 2):
            self._plain.put(page_buffer(CHUNK_BYTES))
        for _ in range(writers + 2):
            self._sealed.put(page_buffer(STORED_BYTES_MAX))
        self._at_work: deque[Future[tuple[ChunkEntry, Future[None]]]] = deque()
        self._chunks: list[ChunkEntry] = []

    def __enter__(self) -> "_Stages":
        return self

    def __exit__(self, *_: object) -> None:
        # In this order: sealers wait for what writers free.
        self._sealing.shutdown(wait=True, cancel_futures=True)
        self._writing.shutdown(wait=True, cancel_futures=True)

    def buffer(self) -> mmap.mmap:
        """Return an empty buffer. Raises what went wrong with an earlier chunk."""
        while self._at_work and self._at_work[0].done() and self._at_work[0].result()[1].done():
            self._collect()
        return self._plain.get()

    def send(self, position: int, buffer: mmap.mmap, filled: int, *, final: bool) -> None:
        """Let a chunk be sealed and written."""
        self._at_work.append(self._sealing.submit(self._pass_on, position, buffer, filled, final))

    def finish(self) -> list[ChunkEntry]:
        """Wait for the last; return all chunks in order."""
        while self._at_work:
            self._collect()
        return self._chunks

    def _collect(self) -> None:
        entry, written = self._at_work.popleft().result()
        written.result()
        self._chunks.append(entry)

    def _pass_on(
        self, position: int, buffer: mmap.mmap, filled: int, final: bool
    ) -> tuple[ChunkEntry, Future[None]]:
        room = self._sealed.get()
        try:
            entry, data = self._seal(position, memoryview(buffer)[:filled], final, room)
        except BaseException:
            self._sealed.put(room)
            raise
        finally:
            self._plain.put(buffer)
        return entry, self._writing.submit(self._write, entry, data, room)

    def _write(self, entry: ChunkEntry, data: memoryview, room: mmap.mmap) -> None:
        try:
            self._keep(entry, data)
        finally:
            self._sealed.put(room)


class _Check:
    """Compares an instance with F as its pieces come."""

    def __init__(self, number: int, digest: bytes) -> None:
        self._number, self._digest = number, digest
        self._running = hashlib.sha256()

    def update(self, piece: memoryview, *, is_last: bool) -> None:
        self._running.update(piece)
        if is_last and not hmac.compare_digest(self._running.digest(), self._digest):
            raise FileChanged(f"instance {self._number} is not what was registered")


class _Cutter:
    """The buffer being filled."""

    def __init__(self, stages: _Stages) -> None:
        self._stages = stages
        self._buffer, self._filled, self.position = stages.buffer(), 0, 0

    @property
    def offset(self) -> int:
        """Where the next byte goes, in the chunk at `position`."""
        return self._filled

    def room(self) -> memoryview:
        """Return where to put the bytes that follow; never empty."""
        # A full buffer waits until more comes, since the last chunk is marked as the last.
        if self._filled == CHUNK_BYTES:
            self._send(final=False)
            self._buffer = self._stages.buffer()
        return memoryview(self._buffer)[self._filled :]

    def filled(self, count: int) -> None:
        """Note that `count` bytes of the room are filled."""
        self._filled += count

    def finish(self) -> list[ChunkEntry]:
        """Write the rest; return all chunks in order."""
        if self._filled:
            self._send(final=True)
        return self._stages.finish()

    def _send(self, *, final: bool) -> None:
        self._stages.send(self.position, self._buffer, self._filled, final=final)
        self.position, self._filled = self.position + 1, 0


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
            cutter.filled(count)
            if check is not None:
                check.update(view[:count], is_last=not left)
        if stream.read(1):
            raise FileChanged(f"instance {number} is longer than it was registered")
    return place
