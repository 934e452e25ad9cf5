"""A part on its way from the socket to the spool: written by the event loop, read by a thread.

At most `_HELD_BYTES_MAX` and one piece are held, so a slow disk slows the sender down.
"""

import asyncio
import threading
from collections import deque

_HELD_BYTES_MAX = 1 << 20


class BrokenOff(OSError):
    """The sender stopped within the instance."""


class PartStream:
    """One part's bytes: `read` and `done` belong to a thread, the rest to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._is_finished = self._is_broken = self._is_done = False
        self._room = asyncio.Event()

    async def write(self, data: bytes) -> None:
        """Hand over `data`; waits while the reader is behind."""
        with self._changed:
            if self._is_done:
                return
            self._pieces.append(data)
            self._held += len(data)
            is_full = self._held > _HELD_BYTES_MAX
            if is_full:
                self._room.clear()
            self._changed.notify()
        if is_full:
            await self._room.wait()

    def finish(self) -> None:
        """Tell the reader that the part is whole."""
        with self._changed:
            self._is_finished = True
            self._changed.notify()

    def break_off(self) -> None:
        """Let the reader fail with `BrokenOff`."""
        with self._changed:
            self._is_broken = True
            self._changed.notify()

    def done(self) -> None:
        """The reader wants no more: the rest is dropped. Called by the thread."""
        with self._changed:
            self._is_done = True
            self._pieces.clear()
            self._held = 0
        self._loop.call_soon_threadsafe(self._room.set)

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, fewer only at the end; waits for them."""
        taken: list[bytes] = []
        wanted = size if size >= 0 else 1 << 62
        while wanted:
            piece = self._next()
            if not piece:
                break
            if len(piece) > wanted:
                self._give_back(piece[wanted:])
                piece = piece[:wanted]
            taken.append(piece)
            wanted -= len(piece)
        return b"".join(taken)

    def _next(self) -> bytes:
        with self._changed:
            while not self._pieces and not self._is_finished and not self._is_broken:
                self._changed.wait()
            if self._is_broken:
                raise BrokenOff("the sender stopped within the instance")
            if not self._pieces:
                return b""
            piece = self._pieces.popleft()
            was_full = self._held > _HELD_BYTES_MAX
            self._held -= len(piece)
            has_room = was_full and self._held <= _HELD_BYTES_MAX
        if has_room:
            self._loop.call_soon_threadsafe(self._room.set)
        return piece

    def _give_back(self, rest: bytes) -> None:
        with self._changed:
            self._pieces.appendleft(rest)
            self._held += len(rest)
