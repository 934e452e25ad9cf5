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
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple, TypeAlias

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consensus.errors import require
from node.exchange.pages import page_buffer
from node.exchange.store.errors import FileChanged
from node.exchange.store.index import ChunkEntry, IndexedInstance, InstanceSource
from node.exchange.store.sealing import CHUNK_BYTES, STORED_BYTES_MAX, Place, seal_chunk

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


def sealer(cipher: AESGCM, study_id: bytes, version: int, level: int | None) -> Seal:
    """Return what seals chunks of a study's version, compressed at `level` where it pays."""

    def seal(
        position: int, plain: memoryview, final: bool, room: mmap.mmap
    ) -> tuple[ChunkEntry, memoryview]:
        place = Place(study_id, version, position, final)
        sealed = seal_chunk(cipher, place, plain, level, room)
        digest = hashlib.sha256(sealed).digest()
        return ChunkEntry(digest, len(sealed), len(plain), version, position, final), sealed

    return seal


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
        self._chunks: list[ChunkEntry] = []
        self._failure: BaseException | None = None  # the first; threads set it, a panic too

    def __enter__(self) -> "_Stages":
        return self

    def __exit__(self, *_: object) -> None:
        self._end(cancel=True)

    def buffer(self) -> mmap.mmap:
        """Return an empty buffer. Raises what went wrong with an earlier chunk."""
        self._raise_failure()
        return self._plain.get()

    def send(self, position: int, buffer: mmap.mmap, filled: int, *, final: bool) -> None:
        """Let a chunk be sealed and written."""
        self._sealing.submit(self._pass_on, position, buffer, filled, final)

    def finish(self) -> list[ChunkEntry]:
        """Wait for the last; return all chunks in order."""
        self._end(cancel=False)
        self._raise_failure()
        return sorted(self._chunks, key=lambda entry: entry.position)

    def _end(self, *, cancel: bool) -> None:
        # In this order: sealers wait for what writers free, and hand on to them.
        self._sealing.shutdown(wait=True, cancel_futures=cancel)
        self._writing.shutdown(wait=True, cancel_futures=cancel)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _pass_on(self, position: int, buffer: mmap.mmap, filled: int, final: bool) -> None:
        room = self._sealed.get()
        try:
            entry, data = self._seal(position, memoryview(buffer)[:filled], final, room)
        except BaseException as error:
            self._failure = self._failure or error  # before the caller gets the buffer
            self._sealed.put(room)
            raise
        else:
            self._writing.submit(self._write, entry, data, room)
        finally:
            self._plain.put(buffer)

    def _write(self, entry: ChunkEntry, data: memoryview, room: mmap.mmap) -> None:
        try:
            self._keep(entry, data)
            self._chunks.append(entry)
        except BaseException as error:
            self._failure = self._failure or error
            raise
        finally:
            self._sealed.put(room)


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
    running = None if source.is_checked else hashlib.sha256()
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
            if running is not None:
                running.update(view[:count])
        if running is not None and not hmac.compare_digest(running.digest(), facts.digest):
            raise FileChanged(f"instance {number} is not what was registered")
        if stream.read(1):
            raise FileChanged(f"instance {number} is longer than it was registered")
    return place
