"""The RPC's HTTP server on aiohttp: doors and limits; what is asked goes to `dispatch`.

POST /rpc            JSON-RPC 2.0
GET  /ws             the same over a WebSocket, with subscriptions
GET  /metrics        Prometheus text
GET  /health/live    200 while the process works
GET  /health/ready   200, or 503 and the reason
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from aiohttp import WSCloseCode, web
from aiohttp.web_protocol import RequestHandler

from node.config.model import RpcConfig
from node.rpc import codec, health, jsonrpc
from node.rpc.auth import Gate
from node.rpc.dispatch import Dispatcher, incident
from node.rpc.errors import RpcError
from node.rpc.limiter import TokenBucket
from node.rpc.metrics import CONTENT_TYPE, Metrics
from node.rpc.service import NodeService
from node.rpc.websocket import Connection

# aiohttp would log what it cannot parse, with a traceback and the line itself: maybe a token.
_silent = logging.getLogger(f"{__name__}.http")
_silent.disabled = True

_HEARTBEAT_S = 30.0
_SHUTDOWN_S = 2.0
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RpcServer:
    """Serves one node's RPC between `start` and `close`; also an async context manager."""

    def __init__(
        self, service: NodeService, config: RpcConfig, token: str, metrics: Metrics
    ) -> None:
        self._service = service
        self._config = config
        self._limits = config.limits
        self._metrics = metrics
        self._gate = Gate(config, token)
        self._dispatcher = Dispatcher(service, config.limits, metrics)
        self._sockets: set[web.WebSocketResponse] = set()
        self._buckets: dict[Any, TokenBucket] = {}
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            logger=_silent,
            handle_signals=False,
            auto_decompress=False,  # a small body stays small
            keepalive_timeout=config.limits.idle_timeout_ms / 1000,
            shutdown_timeout=_SHUTDOWN_S,
        )
        self._listener: asyncio.Server | None = None
        self.port = config.port

    @property
    def url(self) -> str:
        """The base URL for `node.rpc.client.Client`."""
        scheme = "https" if self._config.tls_certificate_file else "http"
        host = self._config.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Listen. Raises `OSError` naming the address when that fails, or the TLS files."""
        await self._runner.setup()
        context = self._tls()
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._connection, self._config.host, self._config.port, ssl=context
            )
        except OSError as error:
            await self._runner.cleanup()
            address = f"{self._config.host}:{self._config.port}"
            raise OSError(error.errno, f"rpc cannot listen on {address}: {error}") from error
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening, tell WebSocket clients that the node stops, and let go of everything."""
        if self._listener is not None:
            self._listener.close()
        closing = [
            socket.close(code=WSCloseCode.GOING_AWAY, message=b"the node stops", drain=False)
            for socket in self._sockets
        ]
        await asyncio.gather(*closing, return_exceptions=True)
        await self._runner.cleanup()

    async def __aenter__(self) -> "RpcServer":
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _application(self) -> web.Application:
        application = web.Application(
            middlewares=[self._guard], client_max_size=self._limits.message_bytes_max
        )
        application.router.add_post("/rpc", self._post)
        application.router.add_get("/ws", self._websocket, allow_head=False)
        application.router.add_get("/metrics", self._show_metrics, allow_head=False)
        application.router.add_get("/health/live", self._live)
        application.router.add_get("/health/ready", self._ready)
        application.on_response_prepare.append(_headers)
        return application

    def _tls(self) -> ssl.SSLContext | None:
        certificate, key = self._config.tls_certificate_file, self._config.tls_key_file
        if certificate is None or key is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise OSError(f"rpc cannot use {certificate} with {key}: {error}") from error
        return context

    def _connection(self) -> asyncio.Protocol:
        server = self._runner.server
        if server is None or len(server.connections) >= self._limits.connections_max:
            self._metrics.rpc_rejected.inc("connections")
            return _Refuse()
        return server()

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        denied = self._gate.denied(request.path, request.scheme, request.remote, request.headers)
        if denied is not None:
            self._metrics.rpc_rejected.inc(denied.code)
            return _problem(denied.status, denied.code, denied.sentence)
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _problem(error.status, _word(error.reason), error.reason, error.headers)
        except TimeoutError:
            return _problem(408, "request_timeout", "the request's body took too long")
        except Exception as error:  # noqa: BLE001 - the boundary: a client never sees more
            return _problem(500, "internal", incident(error))

    async def _post(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            return _problem(415, "unsupported_media_type", "send application/json")
        async with asyncio.timeout(self._limits.request_timeout_ms / 1000):
            body = await request.read()
        decoded = self._dispatcher.decode(body)
        calls = len(decoded) if type(decoded) is list else 1
        pause_s = self._bucket(request.protocol).take(calls, asyncio.get_running_loop().time())
        if pause_s:
            self._metrics.rpc_rejected.inc("rate_limited")
            response = _problem(429, "rate_limited", "more calls a second than one client may make")
            response.headers["Retry-After"] = str(int(pause_s) + 1)
            return response
        answer = await self._dispatcher.respond(decoded, _HttpLane(self._limits))
        if answer is None:
            return web.Response(status=204)
        return web.Response(body=answer, content_type="application/json")

    def _bucket(self, connection: RequestHandler) -> TokenBucket:
        bucket = self._buckets.get(connection)
        if bucket is None:
            if len(self._buckets) > 2 * self._limits.connections_max:
                open_now = set(self._runner.server.connections if self._runner.server else ())
                self._buckets = {c: b for c, b in self._buckets.items() if c in open_now}
            now_s = asyncio.get_running_loop().time()
            bucket = TokenBucket(self._limits.calls_per_second_max, now_s)
            self._buckets[connection] = bucket
        return bucket

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(
            heartbeat=_HEARTBEAT_S,
            timeout=_SHUTDOWN_S,
            compress=False,
            decode_text=False,
            max_msg_size=self._limits.message_bytes_max,
            writer_limit=0,  # every frame waits while the client does not read
        )
        await socket.prepare(request)
        transport = request.transport
        if transport is None:
            return socket
        self._sockets.add(socket)
        self._metrics.rpc_connections.inc()
        try:
            connection = Connection(
                socket,
                self._dispatcher,
                self._service,
                self._limits,
                self._metrics,
                transport,
            )
            await connection.run()
        finally:
            self._sockets.discard(socket)
            self._metrics.rpc_connections.dec()
        return socket

    async def _show_metrics(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _live(self, request: web.Request) -> web.StreamResponse:
        status, body = health.liveness()
        return web.Response(status=status, body=body, content_type="application/json")

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        status, body = health.readiness(self._service.readiness())
        return web.Response(status=status, body=body, content_type="application/json")


class _HttpLane:
    """A request over HTTP: nothing can be sent after its answer."""

    def __init__(self, limits: Any) -> None:
        self.reads = asyncio.Semaphore(limits.reads_per_connection_max)

    def stream(self, method: str, arguments: list[Any]) -> object:
        sentence = f"{method} needs the WebSocket at /ws"
        raise RpcError(jsonrpc.UNAVAILABLE, "needs_websocket", sentence)


class _Refuse(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.abort()


def _problem(status: int, code: str, sentence: str, headers: Any = None) -> web.Response:
    response = web.Response(
        status=status,
        body=codec.encode({"error": {"code": code, "sentence": sentence}}),
        content_type="application/json",
    )
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if headers is not None and "Allow" in headers:
        response.headers["Allow"] = headers["Allow"]
    return response


def _word(reason: str) -> str:
    return reason.lower().replace(" ", "_")


async def _headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "radledger"
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
