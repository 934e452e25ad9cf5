"""A process in which code that strangers can crash runs: limited memory, ended when it hangs.

A codec that crashes, loops or wants gigabytes costs one answer, not the gateway. Both ends of the
fence are here: `Worker` is the parent's, `serve` the child's. They share a socket pair. A request
is 4 bytes of length, big-endian, 4 bytes that say after how many milliseconds without an answer the
kernel shall end the child, and the bytes; answers are 4 bytes of length and the bytes, any number
of them to one request, as both sides know. The child sends one empty answer when it is ready.

The child ends when its parent does: by the end of the stream, or, where native code never comes
back to read that, by a timer of the kernel that is set anew for every answer.
"""

import contextlib
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO

_REQUEST = struct.Struct(">II")
_LENGTH = struct.Struct(">I")
_FILES_MAX = 64
_START_S = 60.0
_ORPHAN_S = 10.0  # beyond the parent's patience, before the kernel ends a child by itself
_MAPPED_BYTES = 2 << 30  # of address space besides: libraries, and files that are mapped
_PROBE_BYTES = 64 << 20  # that must be free at the start: less is no fault of any file
_SECONDS_MAX = 1_000_000.0
_CPU_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

Handle = Callable[[bytes], Iterable[bytes]]


class FenceDied(Exception):
    """The process ended, or gave an answer that is none."""


class FenceHung(Exception):
    """The process did not answer in time."""


@dataclass(frozen=True, slots=True)
class Fence:
    """What runs behind the fence, and within which bounds."""

    module: str  # its `__main__` calls `serve`
    memory_bytes: int
    answer_bytes_max: int
    file_bytes_max: int = 0  # of a temporary file that it writes
    niceness: int = 0


class Worker:
    """One process, for one caller at a time; only `kill` may be called beside."""

    def __init__(self, fence: Fence) -> None:
        """Start the process and wait until it is ready. Raises `OSError`."""
        self._fence = fence
        self._socket, theirs = socket.socketpair()
        words = (fence.memory_bytes, fence.file_bytes_max, fence.niceness)
        with theirs, contextlib.ExitStack() as stack:
            stack.callback(self._socket.close)
            self.process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - our own
                [sys.executable, "-m", fence.module, *map(str, words)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
            )
            stack.pop_all()
        try:
            self.answer(_START_S)
        except (FenceDied, FenceHung) as error:
            self.end()
            raise OSError(f"{fence.module} does not start: {error}") from error

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def ask(self, request: bytes, patience_s: float) -> None:
        """Hand a request over, each answer to which takes no longer than `patience_s`.

        Raises `FenceDied` and `FenceHung`.
        """
        most_ms = int(min(patience_s + _ORPHAN_S, _SECONDS_MAX) * 1_000)
        head = _REQUEST.pack(len(request), most_ms)
        self._socket.settimeout(patience_s)
        try:
            self._socket.sendall(head)
            self._socket.sendall(request)
        except TimeoutError:
            raise FenceHung("it does not take what it is asked") from None
        except OSError as error:
            raise FenceDied("it has ended") from error

    def answer(self, patience_s: float) -> bytes:
        """Return the next answer. Raises `FenceDied` and `FenceHung`; then only `end` is left."""
        deadline_s = time.monotonic() + patience_s
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline_s))
        if length > self._fence.answer_bytes_max:
            raise FenceDied("its answer is longer than any may be")
        return self._read(length, deadline_s)

    def kill(self) -> None:
        """End the process; whoever waits for an answer gets `FenceDied`. In any thread."""
        self.process.kill()

    def end(self) -> None:
        """End the process and let go of it."""
        self._socket.close()
        self.process.kill()
        self.process.wait()

    def _read(self, count: int, deadline_s: float) -> bytes:
        data = bytearray(count)
        view, at = memoryview(data), 0
        while at < count:
            self._socket.settimeout(max(0.001, deadline_s - time.monotonic()))
            try:
                got = self._socket.recv_into(view[at:])
            except TimeoutError:
                raise FenceHung("it does not answer in time") from None
            except OSError as error:
                raise FenceDied("it has ended") from error
            if not got:
                raise FenceDied("it has ended")
            at += got
        return bytes(data)


def _environment() -> dict[str, str]:
    """Return what the process needs to start, and no secret that stands in our own."""
    needed = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG", "TMPDIR")
    found = {name: os.environ[name] for name in needed if name in os.environ}
    return found | _CPU_THREADS


def serve(handle: Handle) -> None:
    """Run as the fenced process: limits first, then requests until the parent goes."""
    memory_bytes, file_bytes_max, niceness = map(int, sys.argv[1:4])
    _limit(memory_bytes, file_bytes_max)
    bytearray(_PROBE_BYTES)  # untouched, it costs nothing
    os.nice(niceness)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    # Nothing else of this process may read requests; what a codec prints goes nowhere.
    with socket.socket(fileno=os.dup(0)) as connection:
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        source, target = connection.makefile("rb"), connection.makefile("wb")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            _send(target, b"")
            _loop(handle, source, target)


def _loop(handle: Handle, source: BinaryIO, target: BinaryIO) -> None:
    while len(head := source.read(_REQUEST.size)) == _REQUEST.size:
        length, most_ms = _REQUEST.unpack(head)
        request = source.read(length)
        if len(request) != length:
            return
        signal.setitimer(signal.ITIMER_REAL, most_ms / 1_000)
        for answer in handle(request):
            _send(target, answer)
            signal.setitimer(signal.ITIMER_REAL, most_ms / 1_000)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _send(target: BinaryIO, answer: bytes) -> None:
    target.write(_LENGTH.pack(len(answer)))
    target.write(answer)
    target.flush()


def _limit(memory_bytes: int, file_bytes_max: int) -> None:
    for kind, limit in (
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_AS, memory_bytes + _MAPPED_BYTES),
        (resource.RLIMIT_FSIZE, file_bytes_max),
        (resource.RLIMIT_NOFILE, _FILES_MAX),
        (resource.RLIMIT_CORE, 0),  # a core would hold images
    ):
        hard = resource.getrlimit(kind)[1]
        wanted = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (wanted, wanted))
