"""`/health` and `/metrics` of the gateway over HTTP, on loopback only.

No token: nothing here names a patient or lets anybody change anything. The Host header is looked at
all the same, since a page in a browser on this machine reaches loopback (DNS rebinding).
"""

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from node.gateway import health
from node.gateway.health import Health
from node.gateway.metrics import GatewayMetrics
from node.gateway.web.gate import host_name
from node.rpc.metrics import CONTENT_TYPE

HOST = "127.0.0.1"
_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_SHUTDOWN_S = 1.0
# aiohttp would log what it cannot parse, with a traceback.
_silent = logging.getLogger(f"{__name__}.http")
_silent.disabled = True


class HealthServer:
    """Serves between `start` and `stop`."""

    def __init__(self, told: Callable[[], Health], metrics: GatewayMetrics) -> None:
        self._told, self._metrics = told, metrics
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, port: int) -> None:
        """Listen; `port` 0 lets the system choose. Raises `OSError`."""
        application = web.Application(middlewares=[_guard], client_max_size=1)
        application.router.add_get("/health", self._health)
        application.router.add_get("/metrics", self._text)
        self._runner = web.AppRunner(
            application,
            access_log=None,
            logger=_silent,
            handle_signals=False,
            shutdown_timeout=_SHUTDOWN_S,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        now = self._told()
        status = 200 if now.is_well else 503
        return web.Response(body=health.encode(now), status=status, content_type="application/json")

    async def _text(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})


@web.middleware
async def _guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    if host_name(request.headers.get("Host", "")) not in _NAMES:
        return web.Response(status=403)
    return await handler(request)
