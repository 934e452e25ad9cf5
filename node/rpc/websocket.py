"""One client's WebSocket: many calls in flight, answers as they come, events by subscription.

Bounds: open calls, bytes waiting to be sent, calls per second, reads at once, subscriptions. A
client that stops reading first gets no more events, then its subscriptions are closed, and at
`send_buffer_bytes_max` it is cut.
"""

import asyncio
import logging
from collections import deque
from contextlib import aclosing
from itertools import count
from typing import Any

from aiohttp import WSMsgType, web

from node.config.model import RpcLimits
from node.ledger.errors import Refused
from node.rpc import jsonrpc
from node.rpc.dispatch import Dispatcher, incident
from node.rpc.errors import RpcError
from node.rpc.jsonrpc import Failure, Request
from node.rpc.limiter import TokenBucket
from node.rpc.metrics import Metrics
from node.rpc.service import BlockEvents, NodeService

log = logging.getLogger(__name__)

# Events wait while more than this is unsent, so answers to calls are never far behind them.
_EVENTS_BUFFER_BYTES = 256 * 1024
_WRITE_BYTES = 64 * 1024
# A filtered subscription is told of its progress this often, so that a resume need not start over.
_PROGRESS_HEIGHTS = 1_000


class Connection:
    """Serves one prepared WebSocket until it closes."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        dispatcher: Dispatcher,
        service: NodeService,
        limits: RpcLimits,
        metrics: Metrics,
        transport: asyncio.Transport,
    ) -> None:
        self._transport = transport
        self._is_cut = False
        self._socket = socket
        self._dispatcher = dispatcher
        self._service = service
        self._limits = limits
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._bucket = TokenBucket(limits.calls_per_second_max, self._loop.time())
        self.reads = asyncio.Semaphore(limits.reads_per_connection_max)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open_calls = 0
        self._subscriptions: dict[int, asyncio.Task[None] | None] = {}
        self._numbers = count(1)
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._has_unsent = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def run(self) -> None:
        """Return when the connection is closed, by whichever side."""
        self._start(self._write())
        try:
            async for message in self._socket:
                if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                    await self._receive(message.data)
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for number in list(self._subscriptions):
                self._forget(number)

    def send(self, message: bytes) -> None:
        """Queue a message; cuts the client off when it leaves too much unread."""
        if self._is_cut:
            return
        # What waits already is what it leaves: one message may be larger than the bound, as the
        # events of a full block are, and must get through.
        if self._unsent_bytes > self._limits.send_buffer_bytes_max:
            self._cut()
            return
        self._unsent.append(message)
        self._unsent_bytes += len(message)
        self._has_unsent.set()
        if self._unsent_bytes > _EVENTS_BUFFER_BYTES:
            self._has_room.clear()

    def _cut(self) -> None:
        self._is_cut = True
        self._unsent.clear()
        self._metrics.rpc_rejected.inc("slow_client")
        log.warning("rpc client cut: it does not read its answers")
        self._transport.abort()

    async def _write(self) -> None:
        """Send what is queued, in few writes; waits while the client does not read."""
        while True:
            await self._has_unsent.wait()
            self._has_unsent.clear()
            while self._unsent:
                frames, last, size = self._next_frames()
                if self._socket.closed or self._transport.is_closing():
                    return
                if frames:
                    self._transport.write(b"".join(frames))
                try:
                    # Through aiohttp, whose flow control waits here for the client to read.
                    await self._socket.send_frame(last, WSMsgType.TEXT)
                except ConnectionError:
                    return
                self._unsent_bytes -= size
                if self._unsent_bytes <= _EVENTS_BUFFER_BYTES:
                    self._has_room.set()

    def _next_frames(self) -> tuple[list[bytes], bytes, int]:
        """Take messages of about `_WRITE_BYTES`: frames, the last message bare, bytes of all."""
        frames: list[bytes] = []
        message = self._unsent.popleft()
        size = len(message)
        while self._unsent and size < _WRITE_BYTES:
            frames += _text_head(len(message)), message
            message = self._unsent.popleft()
            size += len(message)
        return frames, message, size

    async def _receive(self, data: bytes) -> None:
        request = self._dispatcher.decode(data)
        calls = len(request) if isinstance(request, list) else 1
        pause_s = self._bucket.take(calls, self._loop.time())
        if pause_s:
            self._metrics.rpc_rejected.inc("paused")
            await asyncio.sleep(pause_s)
        if self._open_calls + calls > self._limits.in_flight_per_connection_max:
            self._metrics.rpc_rejected.inc("in_flight")
            self._refuse(request)
            return
        self._open_calls += calls
        self._start(self._serve(request, calls))

    def _refuse(self, request: Request | list[Request]) -> None:
        sentence = (
            f"{self._open_calls} calls of this connection are not answered yet; "
            f"at most {self._limits.in_flight_per_connection_max}"
        )
        singles = request if isinstance(request, list) else [request]
        answers = [
            jsonrpc.failure_bytes(
                Failure(jsonrpc.LIMITED, "too_many_in_flight", sentence, single.id)
            )
            for single in singles
            if isinstance(single, Failure) or single.expects_answer
        ]
        if answers:
            is_batch = isinstance(request, list)
            self.send(jsonrpc.batch_bytes(answers) if is_batch else answers[0])

    async def _serve(self, request: Request | list[Request], calls: int) -> None:
        lane = _Lane(self)
        try:
            response = await self._dispatcher.respond(request, lane)
        finally:
            self._open_calls -= calls
        if response is not None:
            self.send(response)
        # Only now, so that the client knows a subscription's number before its first event.
        for number, from_height, names in lane.opened:
            if number in self._subscriptions:
                pump = self._pump(number, from_height, names)
                self._subscriptions[number] = self._start(pump)

    def subscribe(self, from_height: int | None) -> dict[str, int]:
        """Reserve a subscription; its pump starts once the answer is queued."""
        if len(self._subscriptions) >= self._limits.subscriptions_per_connection_max:
            sentence = f"this connection has {len(self._subscriptions)} subscriptions, its most"
            raise RpcError(jsonrpc.LIMITED, "too_many_subscriptions", sentence)
        number = next(self._numbers)
        self._subscriptions[number] = None
        self._metrics.rpc_subscriptions.inc()
        start = self._service.head().height + 1 if from_height is None else from_height
        return {"subscription": number, "from_height": start}

    def unsubscribe(self, number: int) -> bool:
        """End a subscription; False when there is none of this number (any more)."""
        if number not in self._subscriptions:
            return False
        task = self._forget(number)
        if task is not None:
            task.cancel()
        return True

    def _forget(self, number: int) -> asyncio.Task[None] | None:
        if number not in self._subscriptions:
            return None
        self._metrics.rpc_subscriptions.dec()
        return self._subscriptions.pop(number)

    async def _pump(self, number: int, from_height: int, names: frozenset[str]) -> None:
        """Send events from `from_height` on until told otherwise; says why when it gives up."""
        next_height = from_height
        try:
            async with aclosing(self._service.subscribe(from_height)) as blocks:
                async for block in blocks:
                    if not names or block.height % _PROGRESS_HEIGHTS == 0 or _has(block, names):
                        await self._room()
                        self.send(_event(number, block, names))
                    next_height = block.height + 1
                    await asyncio.sleep(0)  # a long past must not keep the loop from others
            code, sentence = "ended", "the node sends no more events"
        except TimeoutError:
            code, sentence = "slow_subscriber", "events are not read fast enough"
            self._metrics.rpc_rejected.inc("slow_subscriber")
        except Refused as error:
            code, sentence = error.code, error.sentence
        except Exception as error:  # noqa: BLE001 - the boundary: a client never sees more
            code, sentence = "internal", incident(error)
        finally:
            self._forget(number)
        params = {
            "subscription": number,
            "next_height": next_height,
            "code": code,
            "sentence": sentence,
        }
        self.send(jsonrpc.notification_bytes("subscription_closed", params))

    async def _room(self) -> None:
        if self._has_room.is_set():
            return
        async with asyncio.timeout(self._limits.slow_subscriber_timeout_ms / 1000):
            await self._has_room.wait()

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Lane:
    """One message's view of its connection: remembers what to start after the answer."""

    __slots__ = ("_connection", "opened", "reads")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.reads = connection.reads
        self.opened: list[tuple[int, int, frozenset[str]]] = []

    def stream(self, method: str, arguments: list[Any]) -> object:
        if method == "unsubscribe":
            return self._connection.unsubscribe(*arguments)
        from_height, names = arguments
        answer = self._connection.subscribe(from_height)
        self.opened.append((answer["subscription"], answer["from_height"], names))
        return answer


def _text_head(size: int) -> bytes:
    """Return the head of an unmasked, whole text frame of `size` bytes (RFC 6455 §5.2)."""
    if size < 126:
        return bytes((0x81, size))
    if size < 0x10000:
        return b"\x81\x7e" + size.to_bytes(2, "big")
    return b"\x81\x7f" + size.to_bytes(8, "big")


def _has(block: BlockEvents, names: frozenset[str]) -> bool:
    return any(event.event.name in names for event in block.events)


def _event(number: int, block: BlockEvents, names: frozenset[str]) -> bytes:
    events = [event for event in block.events if not names or event.event.name in names]
    params = {"subscription": number, "height": block.height, "events": events}
    return jsonrpc.notification_bytes("event", params)
