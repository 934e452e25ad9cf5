"""What reads files that strangers sent: a few processes behind a fence, and what they refuse.

C-STORE is received and read in a process of its own already; whatever comes in by another way, and
what is read again to be registered, is read here. A codec that crashes on a file, eats memory or
never returns costs that file, which is refused, and no other:

    parser_died   the process ended while it read the file, twice: the first time may have been
                  somebody else's doing, as when the system runs out of memory
    parser_hung   it took longer than anything of that size can need

Such a file is not read again as long as it does not change.
"""

import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

from node.gateway.fence import Fence, FenceDied, FenceHung, Worker
from node.gateway.index import SpoolError
from node.gateway.parser import MEDIA, READ, question
from node.gateway.readings import (
    ANSWER_BYTES_MAX,
    NoReading,
    decode_media,
    decode_reading,
)
from node.imaging.commitment import CommittedFile
from node.imaging.errors import NOT_NOW, UnreadableInstance
from node.imaging.limits import LIMITS, Limits
from node.imaging.media import Media
from node.imaging.reader import read_instance

log = logging.getLogger(__name__)

MODULE = "node.gateway.parser"
MEMORY_BYTES = 1 << 30
WORKERS = 2  # as many files are parsed at once; memory is bounded by this
FILES_PER_TASK = 16
FILES_PER_WORKER = 10_000  # a process is replaced after as many, for codecs leak
KNOWN_MAX = 1_000  # files that ended a process, remembered
_FILE_SLACK = 64 << 20
_CLOSED = "no file can be read: the gateway ends"
DIED, HUNG = "parser_died", "parser_hung"
NOT_AGAIN = frozenset({DIED, HUNG})
_REASONS = {
    DIED: "the process that read it ended",
    HUNG: "reading it took longer than a file of its size can need",
}

T = TypeVar("T", CommittedFile, Media)
_Decode: TypeAlias = Callable[[bytes, str], T | UnreadableInstance]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a file may take."""

    base_s: float = 60.0
    bytes_per_s: int = 256 << 10  # many compressed frames on a busy machine

    def of(self, size: int) -> float:
        """Return the seconds for a file of that many bytes."""
        return self.base_s + size / self.bytes_per_s


class _Look(NamedTuple):
    """What tells that a file changed."""

    size: int
    changed_ns: int
    inode: int


class _Slot:
    """Room for one process, which starts when it is first needed."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._files = 0
        self.worker: Worker | None = None

    def ready(self, files: int) -> Worker:
        """Return a process that runs, for so many files. Raises `OSError`."""
        is_old = self._files + files > FILES_PER_WORKER
        if self.worker is not None and (is_old or not self.worker.is_alive):
            self.end()
        self.worker = self.worker or Worker(self._fence)
        self._files += files
        return self.worker

    def end(self) -> None:
        """End the process."""
        worker, self.worker, self._files = self.worker, None, 0
        if worker is not None:
            worker.end()


class Parsing:
    """The processes. Every method waits; call them from threads, as many as you like."""

    def __init__(
        self,
        memory_bytes: int = MEMORY_BYTES,
        *,
        workers: int = WORKERS,
        patience: Patience = Patience(),
    ) -> None:
        """`memory_bytes` bounds the private memory of each process."""
        file_bytes_max = LIMITS.inflated_bytes_max + _FILE_SLACK
        fence = Fence(MODULE, memory_bytes, ANSWER_BYTES_MAX, file_bytes_max)
        self._patience = patience
        self._slots = [_Slot(fence) for _ in range(workers)]
        # The last one used comes first: of two processes one often is enough.
        self._free: queue.LifoQueue[_Slot] = queue.LifoQueue()
        for slot in self._slots:
            self._free.put(slot)
        self._threads = ThreadPoolExecutor(workers, "parsing")
        self._closing, self._lock = threading.Event(), threading.Lock()
        self._known: dict[Path, tuple[_Look, str]] = {}  # files that ended a process, and the code

    def warm(self) -> None:
        """Start a process, so that the first file does not wait for it."""
        try:
            with self._slot() as slot:
                slot.ready(0)
        except (OSError, SpoolError) as error:
            log.error("no parsing process is started: %s", error)

    def read(self, path: Path, limits: Limits = LIMITS) -> CommittedFile | UnreadableInstance:
        """Do what `read_instance` does, behind the fence. Raises `SpoolError` when no process can
        be started: try again later."""
        return self._all(READ, decode_reading, [path], limits)[0]

    def media(self, directory: Path, limits: Limits = LIMITS) -> Media:
        """Do what `read_media` does, behind the fence. Raises `UnreadableInstance`, and
        `SpoolError` as `read` does."""
        found = self._all(MEDIA, decode_media, [directory], limits)[0]
        if isinstance(found, UnreadableInstance):
            raise found
        return found

    def map(
        self,
        function: Callable[[Path], CommittedFile | UnreadableInstance],
        paths: list[Path],
        /,
    ) -> Iterator[CommittedFile | UnreadableInstance]:
        """Yield what `read_instance` returns for each path, in order, read a few files ahead.

        A `Mapper` for `prepare`, which passes that function with its limits and nothing else: what
        runs behind the fence is fixed. Raises `SpoolError` as `read` does, and for a file that
        cannot be read for this machine's trouble: its study was accepted, and waits.
        """
        if not isinstance(function, partial) or function.func is not read_instance:
            raise ValueError("only read_instance runs behind the fence")
        if function.args or function.keywords.keys() != {"limits"}:
            raise ValueError("only limits are passed on behind the fence")
        read = partial(self._all, READ, decode_reading, limits=function.keywords["limits"])
        tasks = [paths[at : at + FILES_PER_TASK] for at in range(0, len(paths), FILES_PER_TASK)]
        running: deque[Future[list[CommittedFile | UnreadableInstance]]] = deque()
        try:
            for task in tasks:
                running.append(self._threads.submit(read, task))
                if len(running) > 2 * len(self._slots):
                    yield from map(_read_now, running.popleft().result())
            while running:
                yield from map(_read_now, running.popleft().result())
        except (RuntimeError, CancelledError) as error:  # of the executor, when it is shut down
            raise SpoolError(_CLOSED) from error
        finally:
            for future in running:
                future.cancel()

    def close(self) -> None:
        """End the processes; whoever waits for one gets `SpoolError`."""
        self._closing.set()
        for slot in self._slots:
            worker = slot.worker
            if worker is not None:
                worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for _ in self._slots:
            self._free.get()
        for slot in self._slots:
            slot.end()
            self._free.put(slot)  # whoever waits still is told that it is over

    def _all(
        self, operation: str, decode: _Decode[T], paths: Sequence[Path], limits: Limits
    ) -> list[T | UnreadableInstance]:
        """Return what is found in each file: in one process, or, after one died, in the next."""
        found: dict[int, T | UnreadableInstance] = {}
        for number, path in enumerate(paths):
            if (code := self._known_code(path)) is not None:
                found[number] = _refused(path, code)
        suspect = -1
        while todo := [number for number in range(len(paths)) if number not in found]:
            asked = question(operation, limits, [paths[number] for number in todo])
            with self._slot() as slot:
                code = self._answers(slot, asked, decode, paths, todo, found)
            if code is None:
                break
            first = next(number for number in todo if number not in found)
            if code == HUNG or first == suspect:
                found[first] = self._refuse(paths[first], code)
            suspect = first
        return [found[number] for number in range(len(paths))]

    def _answers(
        self,
        slot: _Slot,
        asked: bytes,
        decode: _Decode[T],
        paths: Sequence[Path],
        todo: Sequence[int],
        found: dict[int, T | UnreadableInstance],
    ) -> str | None:
        """Fill `found` as far as answers come; return what cut them off, None if nothing did."""
        try:
            worker = slot.ready(len(todo))
        except OSError as error:
            raise SpoolError(f"no file can be read: {error}") from error
        try:
            if self._closing.is_set():  # it was just started, and `close` may not have seen it
                raise FenceDied("the gateway ends")
            patience = {number: self._patience.of(_size(paths[number])) for number in todo}
            worker.ask(asked, max(patience.values()))
            for number, patience_s in patience.items():
                found[number] = decode(worker.answer(patience_s), str(paths[number]))
        except (FenceDied, FenceHung, NoReading) as error:
            slot.end()
            if self._closing.is_set():
                raise SpoolError(_CLOSED) from error
            log.error("a parsing process ended: %s", error)
            return HUNG if isinstance(error, FenceHung) else DIED
        except BaseException:
            slot.end()  # answers to this request may still come
            raise
        return None

    @contextmanager
    def _slot(self) -> Iterator[_Slot]:
        slot = self._free.get()
        try:
            if self._closing.is_set():
                raise SpoolError(_CLOSED)
            yield slot
        finally:
            self._free.put(slot)

    def _refuse(self, path: Path, code: str) -> UnreadableInstance:
        look = _look(path)
        if look is not None:
            with self._lock:
                while len(self._known) >= KNOWN_MAX:
                    self._known.pop(next(iter(self._known)))
                self._known[path] = look, code
        return _refused(path, code)

    def _known_code(self, path: Path) -> str | None:
        known = self._known.get(path)
        if known is None:
            return None
        look, code = known
        return code if look == _look(path) else None


def _read_now(found: CommittedFile | UnreadableInstance) -> CommittedFile | UnreadableInstance:
    if isinstance(found, UnreadableInstance) and found.code == NOT_NOW:
        raise SpoolError(f"a file cannot be read now: {found.reason}")
    return found


def _refused(path: Path, code: str) -> UnreadableInstance:
    return UnreadableInstance(str(path), code, _REASONS[code])


def _size(path: Path) -> int:
    look = _look(path)
    return 0 if look is None else look.size


def _look(path: Path) -> _Look | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return _Look(status.st_size, status.st_mtime_ns, status.st_ino)
