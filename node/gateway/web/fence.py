"""What decodes pixels for DICOMweb: `render`, in a process of its own (`node.gateway.fence`).

One request at a time: msgpack [operation, file, wishes]; the answer is [None, bytes] or [kind of
error, b""].
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import msgpack

from node.gateway.fence import Fence, FenceDied, FenceHung, Worker, serve
from node.gateway.web import render
from node.gateway.web.files import Failed

_CALLS_MAX = 1_000  # a process is replaced after as many, for codecs leak
_NICENESS = 10


class Decoder:
    """Runs `node.gateway.web.render` behind a fence, whose process starts at the first call."""

    def __init__(self, memory_bytes: int, timeout_s: float, answer_bytes_max: int) -> None:
        module = "node.gateway.web.fence"
        self._fence = Fence(module, memory_bytes, answer_bytes_max, niceness=_NICENESS)
        self._timeout_s = timeout_s
        self._worker: Worker | None = None
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
            asking = asyncio.ensure_future(asyncio.to_thread(self._ask, request))
            try:
                error, result = await asyncio.shield(asking)
            except asyncio.CancelledError:
                # Between request and answer: both would be mixed up. The thread ends with it.
                await self._give_up(asking)
                raise
            except FenceHung:
                raise Failed("decoder", "decoding the pixels took too long") from None
            except (OSError, FenceDied, ValueError, msgpack.UnpackException):
                raise Failed("decoder", "the decoder failed on these pixels") from None
        if error is not None:
            raise Failed("decoder", f"the pixels cannot be decoded here ({error})")
        return result

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            await asyncio.to_thread(self._end)

    async def _give_up(self, asking: "asyncio.Future[tuple[str | None, bytes]]") -> None:
        while not asking.done():
            if self._worker is not None:
                self._worker.kill()
            await asyncio.wait([asking], timeout=0.05)  # it may just have been starting one
        asking.exception()
        await asyncio.to_thread(self._end)

    def _ask(self, request: bytes) -> tuple[str | None, bytes]:
        has_died = self._worker is not None and not self._worker.is_alive
        if has_died or self._calls >= _CALLS_MAX:
            self._end()
        worker = self._worker = self._worker or Worker(self._fence)
        self._calls += 1
        try:
            worker.ask(request, self._timeout_s)
            error, result = msgpack.unpackb(worker.answer(self._timeout_s))
        except BaseException:
            self._end()
            raise
        return error, result

    def _end(self) -> None:
        worker, self._worker, self._calls = self._worker, None, 0
        if worker is not None:
            worker.end()


def answer(request: bytes) -> Iterator[bytes]:
    """Yield the answer to one request."""
    operation, file, wishes = msgpack.unpackb(request, max_bin_len=len(request))
    yield msgpack.packb(_answer(operation, file, wishes))


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


if __name__ == "__main__":
    serve(answer)
