"""The process in which pixels are decoded: limited memory, low priority, ended when it hangs.

A codec that crashes, loops or wants gigabytes costs one answer, not the gateway. One request at a
time: 4 bytes of length, big-endian, then msgpack [operation, file, wishes]; the answer is framed
likewise: [None, bytes] or [kind of error, b""].
"""

import asyncio
import os
import resource
import struct
import sys
from typing import Any, BinaryIO

import msgpack

from node.gateway.web import render
from node.gateway.web.files import Failed

_LENGTH = struct.Struct(">I")
_FILES_MAX = 64
_CALLS_MAX = 1_000  # a process is replaced after as many, for codecs leak


class Decoder:
    """Runs `node.gateway.web.render` in a process of its own, started at the first call."""

    def __init__(self, memory_bytes: int, timeout_s: float, answer_bytes_max: int) -> None:
        self._memory_bytes, self._timeout_s = memory_bytes, timeout_s
        self._answer_bytes_max = answer_bytes_max
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._calls = 0

    async def call(
        self, operation: str, file: bytes, wishes: dict[str, Any] | None = None
    ) -> bytes:
        """Return what the operation (native, transcode, picture) makes of `file`.

        Raises `Failed` with code decoder when it cannot be done.
        """
        request = msgpack.packb([operation, file, wishes or {}])
        async with self._turn:
            has_died = self._process is not None and self._process.returncode is not None
            if has_died or self._calls >= _CALLS_MAX:
                await self._end()
            self._calls += 1
            try:
                async with asyncio.timeout(self._timeout_s):
                    error, result = await self._ask(request)
            except TimeoutError:
                await self._end()
                raise Failed("decoder", "decoding the pixels took too long") from None
            except (OSError, EOFError, ValueError, msgpack.UnpackException):
                await self._end()
                raise Failed("decoder", "the decoder failed on these pixels") from None
            except BaseException:
                await self._end()  # cancelled between request and answer: both would be mixed up
                raise
        if error is not None:
            raise Failed("decoder", f"the pixels cannot be decoded here ({error})")
        return result

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            await self._end()

    async def _ask(self, request: bytes) -> tuple[str | None, bytes]:
        process = self._process or await self._start()
        if process.stdin is None or process.stdout is None:
            raise OSError("no pipes")
        process.stdin.write(_LENGTH.pack(len(request)))
        process.stdin.write(request)
        await process.stdin.drain()
        (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
        if length > self._answer_bytes_max:
            raise ValueError("the answer is too long")
        error, result = msgpack.unpackb(await process.stdout.readexactly(length))
        return error, result

    async def _start(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "node.gateway.web.fence",
            str(self._memory_bytes),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(),
        )
        self._calls = 1
        return self._process

    async def _end(self) -> None:
        process, self._process, self._calls = self._process, None, 0
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        # Its pipes are closed with it; waiting also collects the process.
        await process.wait()


def _environment() -> dict[str, str]:
    """Return what the process needs to start, and no secret that stands in our own."""
    needed = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG")
    found = {name: os.environ[name] for name in needed if name in os.environ}
    return {**found, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def serve(source: BinaryIO, target: BinaryIO) -> None:
    """Answer requests until the source ends."""
    while len(head := source.read(_LENGTH.size)) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        operation, file, wishes = msgpack.unpackb(source.read(length), max_bin_len=length)
        answer = msgpack.packb(_answer(operation, file, wishes))
        target.write(_LENGTH.pack(len(answer)))
        target.write(answer)
        target.flush()


def _answer(operation: str, file: bytes, wishes: dict[str, Any]) -> tuple[str | None, bytes]:
    try:
        match operation:
            case "native":
                return None, render.native(file)
            case "transcode":
                return None, render.transcode(file)
            case "picture":
                return None, render.picture(file, wishes)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - native codecs raise beyond Exception
        return type(error).__name__, b""
    return "unknown", b""


def main() -> None:
    """Run as the fenced process: limits first."""
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES_MAX, _FILES_MAX))
    os.nice(10)
    # A codec that prints must not write into the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
