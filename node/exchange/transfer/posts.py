"""Small questions that peers post to the exchange server: bounded in size, rate and time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from aiohttp import web

from node.exchange.transfer import refusals
from node.exchange.transfer.limits import ServerLimits, TokenBucket
from node.exchange.transfer.running import reset

INSTITUTION: web.RequestKey[str] = web.RequestKey("institution", str)

# Gets the peer's institution and the body; raises `Refusal`.
Respond: TypeAlias = Callable[[str, bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """One path to which peers may post, and what it may cost."""

    path: str
    respond: Respond
    body_bytes_max: int
    per_minute: int  # of one institution
    at_once: int = 2  # of one institution


class PostHandler:
    """Serves one `Post`."""

    def __init__(self, post: Post, limits: ServerLimits) -> None:
        self._post, self._limits = post, limits
        self._buckets: dict[str, TokenBucket] = {}  # bounded by the known institutions
        self._running: dict[str, int] = {}

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """Answer a request of which the institution is known. Raises `Refusal`."""
        institution = request[INSTITUTION]
        running = self._running.get(institution, 0)
        if running >= self._post.at_once:
            raise refusals.busy()
        self._take_turn(institution)
        self._running[institution] = running + 1
        try:
            body = await self._body(request)
            data = await self._post.respond(institution, body)
            return await self._send(request, data)
        finally:
            self._running[institution] -= 1

    def _take_turn(self, institution: str) -> None:
        now_s = asyncio.get_running_loop().time()
        bucket = self._buckets.get(institution)
        if bucket is None:
            per_minute = self._post.per_minute
            bucket = self._buckets[institution] = TokenBucket(per_minute / 60, per_minute, now_s)
        if not bucket.try_take(1, now_s):
            raise refusals.too_often()

    async def _body(self, request: web.Request) -> bytes:
        """Read the body to its end; what is too long or too slow costs no more than that."""
        most = self._post.body_bytes_max
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.stall_timeout_ms / 1000):
                async for piece in request.content.iter_any():
                    size += len(piece)
                    if size > most:
                        raise refusals.too_large(most)
                    pieces.append(piece)
        except TimeoutError:
            raise refusals.too_slow() from None
        return b"".join(pieces)

    async def _send(self, request: web.Request, data: bytes) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = "application/octet-stream"
        response.content_length = len(data)
        await response.prepare(request)
        try:
            for at in range(0, len(data), self._limits.piece_bytes):
                async with asyncio.timeout(self._limits.stall_timeout_ms / 1000):
                    await response.write(data[at : at + self._limits.piece_bytes])
            await response.write_eof()
        except TimeoutError:
            if isinstance(request.transport, asyncio.Transport):
                reset(request.transport)
            raise ConnectionAbortedError("stalled") from None
        return response


def add_posts(application: web.Application, posts: Iterable[Post], limits: ServerLimits) -> None:
    """Serve `posts` in an application whose middleware knows the institutions."""
    for post in posts:
        application.router.add_post(post.path, PostHandler(post, limits).__call__)
