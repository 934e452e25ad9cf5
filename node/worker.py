"""One thread beside the event loop, for calls that wait for a disk or hold a processor for long.

The standard executor's futures cost two locks and several wake-ups a call, about a fifth of what a
node under load does between its signatures. Here a call is one queue and one wake-up.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """Runs calls one after another in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[..., T], *arguments: Any) -> "asyncio.Future[T]":
        """Run `function(*arguments)` in the thread; the future has its result or exception.

        Cancelling the future does not stop a call that has begun; nobody hears of its outcome then.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._calls.put((loop, future, function, arguments))
        return future

    def close(self) -> None:
        """Wait for the calls that were made, then let the thread end."""
        self._calls.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            loop, future, function, arguments = call
            try:
                result, error = function(*arguments), None
            except Exception as raised:  # noqa: BLE001 - it is raised where the call is awaited
                result, error = None, raised
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                continue  # the loop is closed: nobody waits any more
            del call, future, function, arguments, result, error


_Call = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


def _settle(future: "asyncio.Future[Any]", result: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
