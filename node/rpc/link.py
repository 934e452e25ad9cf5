"""The client's connection: calls by number, subscriptions, and coming back after it breaks."""

import asyncio
import logging
import random
import ssl
from collections import deque
from contextlib import suppress
from typing import Any, TypeAlias

import aiohttp
import orjson
from aiohttp import WSMsgType

from node.ledger.errors import Refused
from node.rpc import jsonrpc
from node.rpc.codec import decoder
from node.rpc.errors import ConnectionLost, NotAuthorized, RpcError
from node.rpc.service import BlockEvents
from node.rpc.subscription import Subscription

log = logging.getLogger(__name__)

_HEARTBEAT_S = 20.0
_BACKOFF_S = 0.05
_BACKOFF_S_MAX = 5.0
_CLOSE_S = 2.0
_MESSAGE_BYTES_MAX = 64 * 2**20

_Socket: TypeAlias = "aiohttp.ClientWebSocketResponse[bool]"

_read_block = decoder(BlockEvents)


class _BadAnswer(ConnectionError):
    """What came is not JSON-RPC; the connection is not worth keeping."""


class Link:
    """One WebSocket at a time to `url`; at most `in_flight_max` calls are not answered yet."""

    def __init__(
        self,
        url: str,
        token: str,
        in_flight_max: int,
        connect_timeout_s: float,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._url = url.rstrip("/") + "/ws"
        self._headers = {"Authorization": f"Bearer {token}"}
        self._connect_timeout_s = connect_timeout_s
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self._socket: _Socket | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ended: Exception | None = ConnectionLost("the client is not open")
        self._settled = asyncio.Event()  # online, or ended for good
        self._settled.set()
        self._slots = asyncio.Semaphore(in_flight_max)
        self._number = 0
        self._pending: dict[int, asyncio.Future[Any]] = {}
        # By the number of the call; None when it was given up before the answer.
        self._beginning: dict[int, Subscription | None] = {}
        self._subscribed: dict[int, Subscription] = {}  # by the node's number
        self._unsent: deque[bytes] = deque()
        self._has_unsent = asyncio.Event()

    async def open(self) -> None:
        """Connect. Raises `ConnectionLost` or `NotAuthorized`."""
        connector = aiohttp.TCPConnector(ssl=self._tls or True)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        self._ended = None
        self._settled.clear()
        try:
            await self._connect()
        except NotAuthorized:
            await self.close()
            raise
        except (OSError, aiohttp.ClientError, ValueError) as error:
            await self.close()
            raise ConnectionLost(f"cannot connect to {self._url}: {error}") from error
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Disconnect; what is under way fails with `ConnectionLost`."""
        self._end(ConnectionLost("the client was closed"))
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._socket is not None:
            with suppress(OSError, aiohttp.ClientError):
                await self._socket.close()
        if self._session is not None:
            await self._session.close()
        self._keeper = self._socket = self._session = None

    async def call(self, method: str, params: list[Any] | dict[str, Any]) -> Any:
        """Return the result of one call."""
        return await (await self.start(method, params))

    async def start(
        self, method: str, params: list[Any] | dict[str, Any], begins: Subscription | None = None
    ) -> asyncio.Future[Any]:
        """Send a call once there is a slot and a connection; return the future of its result."""
        await self._slots.acquire()
        try:
            if not self._settled.is_set():
                await self._wait_until_settled()
            if self._ended is not None:
                raise _anew(self._ended)
        except BaseException:
            self._slots.release()
            raise
        self._number += 1
        number = self._number
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        if begins is not None:
            self._beginning[number] = begins
        self._send(number, method, params)
        return future

    async def subscribe(self, subscription: Subscription) -> None:
        """Have the node send events; returns when it does, whatever breaks in between."""
        while True:
            params = [subscription.next_height, list(subscription.names)]
            future = await self.start("subscribe", params, begins=subscription)
            try:
                await future
                return
            except ConnectionLost:
                if self._ended is not None:
                    raise

    def unsubscribe(self, subscription: Subscription) -> None:
        """Have the node send no more; does not wait."""
        number = subscription.number
        for call in [call for call, each in self._beginning.items() if each is subscription]:
            self._beginning[call] = None
        if number is not None and self._subscribed.pop(number, None) is not None:
            self._send(None, "unsubscribe", [number])
        subscription.lose()

    def _send(self, number: int | None, method: str, params: list[Any] | dict[str, Any]) -> None:
        request: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
        if number is not None:
            request["id"] = number
        self._unsent.append(orjson.dumps(request))
        self._has_unsent.set()

    async def _wait_until_settled(self) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._settled.wait()
        except TimeoutError as error:
            raise ConnectionLost(f"{self._url} cannot be reached") from error

    async def _keep(self) -> None:
        """Serve one connection after the other until the client ends."""
        delay_s = _BACKOFF_S
        while True:
            try:
                if self._socket is None:
                    await self._connect()
                delay_s = _BACKOFF_S
                await self._serve()
            except NotAuthorized as error:
                self._end(error)
                return
            except (OSError, aiohttp.ClientError) as error:
                log.debug("rpc connection failed kind=%s", type(error).__name__)
            await self._disconnected()
            # Spread out, so that the clients of a restarted node do not all come at once.
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            delay_s = min(delay_s * 2, _BACKOFF_S_MAX)

    async def _connect(self) -> None:
        if self._session is None:
            raise ConnectionLost("the client is not open")
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                self._socket = await self._session.ws_connect(
                    self._url,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
                    compress=0,
                    heartbeat=_HEARTBEAT_S,
                    max_msg_size=_MESSAGE_BYTES_MAX,
                    decode_text=False,
                )
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                sentence = f"{self._url} refused the token or the host (HTTP {error.status})"
                raise NotAuthorized(sentence) from error
            raise
        self._settled.set()

    async def _serve(self) -> None:
        """Read and write on the open socket until it closes."""
        socket = self._socket
        if socket is None:
            return
        writer = asyncio.create_task(self._write(socket))
        try:
            async for message in socket:
                if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                    self._receive(message.data)
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, socket: _Socket) -> None:
        while True:
            await self._has_unsent.wait()
            self._has_unsent.clear()
            while self._unsent:
                try:
                    await socket.send_frame(self._unsent.popleft(), WSMsgType.TEXT)
                except ConnectionError:
                    return

    def _receive(self, data: bytes) -> None:
        try:
            answer = orjson.loads(data)
            if "method" in answer:
                self._notified(answer["method"], answer["params"])
            else:
                self._answered(answer["id"], answer)
        except (ValueError, TypeError, KeyError) as error:
            raise _BadAnswer("not a JSON-RPC answer") from error

    def _answered(self, number: int, answer: dict[str, Any]) -> None:
        future = self._pending.get(number)
        if future is None:
            return
        error = _error(answer["error"]) if "error" in answer else None
        result: Any = None if error is not None else answer["result"]
        if number in self._beginning:
            if error is None:
                self._begin(self._beginning[number], result["subscription"], result["from_height"])
            del self._beginning[number]
        # Last, so that an answer that makes no sense leaves the call to fail with the connection.
        del self._pending[number]
        self._slots.release()
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _begin(self, subscription: Subscription | None, number: int, from_height: int) -> None:
        """Bind a subscription to the node's number at once: its first event may be right behind."""
        if subscription is None:
            self._send(None, "unsubscribe", [number])
            return
        self._subscribed[number] = subscription
        subscription.begin(number, from_height)

    def _notified(self, method: str, params: dict[str, Any]) -> None:
        subscription = self._subscribed.get(params["subscription"])
        if subscription is None:
            return
        if method == "event":
            subscription.put(_read_block(params))
            if subscription.is_full:
                self.unsubscribe(subscription)
        elif method == "subscription_closed":
            del self._subscribed[params["subscription"]]
            if params["code"] == "slow_subscriber":
                subscription.lose()
            else:
                subscription.fail(Refused(params["code"], params["sentence"]))

    async def _disconnected(self) -> None:
        """Fail the calls under way; subscriptions go on with the next connection."""
        self._settled.clear()
        socket, self._socket = self._socket, None
        self._fail_pending(
            ConnectionLost("the connection broke before the answer came; it comes back by itself")
        )
        subscribed, self._subscribed = self._subscribed, {}
        for subscription in subscribed.values():
            subscription.lose()
        if socket is not None:
            with suppress(OSError, aiohttp.ClientError):
                await socket.close()

    def _end(self, reason: Exception) -> None:
        self._ended = reason
        self._fail_pending(reason)
        subscribed, self._subscribed = self._subscribed, {}
        for subscription in subscribed.values():
            subscription.fail(reason)
        self._settled.set()

    def _fail_pending(self, reason: Exception) -> None:
        pending, self._pending = self._pending, {}
        self._beginning.clear()
        self._unsent.clear()
        for future in pending.values():
            self._slots.release()
            if not future.done():
                future.set_exception(_anew(reason))


def _anew(error: Exception) -> Exception:
    """Return an equal exception, so that each waiter's traceback is its own."""
    return type(error)(*error.args)


def _error(error: dict[str, Any]) -> Exception:
    number, data = error["code"], error["data"]
    code, sentence = data["code"], data["sentence"]
    if number == jsonrpc.REFUSED:
        return Refused(code, sentence)
    if number == jsonrpc.TIMED_OUT:
        return TimeoutError(sentence)
    return RpcError(number, code, sentence)
