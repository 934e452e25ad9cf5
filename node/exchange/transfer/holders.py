"""One hospital that may serve: its connection, and what its answers mean.

A context trusts this hospital's certificates and no others, so whoever answers is who the caller
means, and what it sends can be held against it by name.
"""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.exchange.transfer.limits import ClientLimits, Pacer
from node.exchange.transfer.offer import OFFER_BYTES_MAX
from node.exchange.transfer.ports import Chunk, Custody, Ground
from node.network.tls import TrustedContexts

_Ask: TypeAlias = Callable[
    [aiohttp.ClientSession], AbstractAsyncContextManager[aiohttp.ClientResponse]
]

_REFUSAL_BYTES_MAX = 4_096
_RETRY_S_MAX = 60
_READ_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """The key and the certificate by which others know this hospital."""

    private_key: Ed25519PrivateKey = field(repr=False)
    certificate: bytes  # DER


@dataclass(frozen=True, slots=True)
class Holder:
    """A hospital that may hold what is wanted."""

    institution: str
    host: str
    port: int
    certificates: tuple[bytes, ...]  # DER, of its nodes or gateways


class HolderRefused(Exception):
    """It says no; `code` says why. It is not asked again in this run."""

    def __init__(self, code: str, is_permit: bool) -> None:
        super().__init__(code)
        self.code = code
        self.is_permit = is_permit  # the refusal is the ledger's


class HolderBusy(Exception):
    """It asks to be left alone for `pause_s`."""

    def __init__(self, code: str, pause_s: float) -> None:
        super().__init__(code)
        self.pause_s = pause_s


class NotHeld(Exception):
    """It does not have this one."""


class HolderLied(Exception):
    """What it sent cannot be what was asked for."""


class HolderFailed(Exception):
    """The connection failed, broke off, stood still or was too slow."""


class Partial:
    """What has arrived of a chunk, perhaps from several holders one after another.

    It lies in a buffer that its owner uses again and again: fresh memory for every chunk costs more
    than the bytes that are written to it.
    """

    def __init__(self, chunk: Chunk, buffer: bytearray) -> None:
        """`buffer` has room for the chunk."""
        self.chunk = chunk
        self.data = memoryview(buffer)[: chunk.size]
        self.filled = 0
        self.sources: set[str] = set()

    def add(self, piece: bytes, source: str) -> None:
        """Raises `HolderLied` when there is more than the chunk has."""
        if self.filled + len(piece) > self.chunk.size:
            raise HolderLied("it sent more than the chunk has")
        self.data[self.filled : self.filled + len(piece)] = piece
        self.filled += len(piece)
        self.sources.add(source)

    @property
    def is_full(self) -> bool:
        """Whether nothing is missing."""
        return self.filled == self.chunk.size

    def restart(self) -> None:
        """Forget what has arrived."""
        self.sources.clear()
        self.filled = 0


class Link:
    """The way to one holder."""

    def __init__(self, holder: Holder, identity: Identity, limits: ClientLimits) -> None:
        self.holder = holder
        self._identity = identity
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None
        host = f"[{holder.host}]" if ":" in holder.host else holder.host
        self._url = f"https://{host}:{holder.port}"

    async def close(self) -> None:
        """Let go of its connections."""
        if self._session is not None:
            await self._session.close()

    async def knock(self) -> None:
        """Return if it answers, and knows this hospital. Raises the exceptions of this module."""
        url = self._url + "/"
        limit_s = self._limits.connect_timeout_ms / 1000
        async with self._asked(lambda session: session.get(url), limit_s) as answer:
            await _require_good(answer, {200, 404})

    async def offer(self, request_id: bytes) -> bytes:
        """Return an encoded offer. Raises the exceptions of this module."""
        pieces: list[bytes] = []
        size = 0
        async with self._get(f"/v1/offer/{request_id.hex()}", {}, {}, None) as response:
            await _require_good(response, {200})
            async for piece in response.content.iter_any():
                size += len(piece)
                if size > OFFER_BYTES_MAX:
                    raise HolderLied("its offer is larger than any may be")
                pieces.append(piece)
        return b"".join(pieces)

    async def fill(self, partial: Partial, ground: Ground, pacer: Pacer) -> None:
        """Fetch what is missing of a chunk; what came before a failure stays in `partial`.

        Raises the exceptions of this module.
        """
        chunk, start = partial.chunk, partial.filled
        headers = {"Range": f"bytes={start}-"} if start else {}
        query = _query(ground)
        path = f"/v1/chunk/{chunk.digest.hex()}"
        async with self._get(path, query, headers, chunk.size - start) as response:
            await _require_good(response, {200, 206})
            if response.status == 200:
                partial.restart()
            elif not _continues(response, start):
                raise HolderLied("it sent another range than was asked for")
            if response.content_length not in (None, chunk.size - partial.filled):
                raise HolderLied("the size of what it holds is another")
            async for piece, _ in response.content.iter_chunks():  # as they came, not joined
                partial.add(piece, self.holder.institution)
                await pacer.take(len(piece))
        if not partial.is_full:
            raise HolderLied("it sent less than the chunk has")

    async def post(self, path: str, body: bytes, bytes_max: int) -> bytes:
        """Return the answer to a small question. Raises the exceptions of this module."""
        pieces: list[bytes] = []
        size = 0
        url = self._url + path
        async with self._asked(lambda session: session.post(url, data=body), None) as answer:
            await _require_good(answer, {200})
            async for piece in answer.content.iter_any():
                size += len(piece)
                if size > bytes_max:
                    raise HolderLied("its answer is larger than any may be")
                pieces.append(piece)
        return b"".join(pieces)

    @asynccontextmanager
    async def _get(
        self, path: str, query: dict[str, str], headers: dict[str, str], size: int | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        limits = self._limits
        slowest_s = None
        if size is not None:
            patience_ms = limits.connect_timeout_ms + limits.stall_timeout_ms
            rate = min(limits.slow_bytes_per_s, limits.rate_bytes_per_s / limits.parallel)
            slowest_s = patience_ms / 1000 + size / rate
        url = self._url + path
        async with self._asked(
            lambda session: session.get(url, params=query, headers=headers), slowest_s
        ) as response:
            yield response

    @asynccontextmanager
    async def _asked(
        self, ask: _Ask, slowest_s: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield what a holder answers; its failures become those of this module."""
        try:
            session = await self._open()
            async with asyncio.timeout(slowest_s), ask(session) as response:
                yield response
        except aiohttp.ClientConnectorCertificateError as error:
            raise HolderFailed("its certificate is not the one that is known") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise HolderFailed(_reason(error)) from error

    async def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            context = await asyncio.to_thread(self._context)
            limits = self._limits
            if self._session is None:  # another task may have been faster
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=context, limit=limits.parallel),
                    timeout=aiohttp.ClientTimeout(
                        total=None,
                        connect=limits.connect_timeout_ms / 1000,
                        sock_read=limits.stall_timeout_ms / 1000,
                    ),
                    auto_decompress=False,
                    read_bufsize=_READ_BUFFER_BYTES,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    headers={"Accept-Encoding": "identity"},
                )
        return self._session

    def _context(self) -> ssl.SSLContext:
        identity = self._identity
        contexts = TrustedContexts(
            identity.private_key, identity.certificate, self.holder.certificates
        )
        return contexts.client


def _query(ground: Ground) -> dict[str, str]:
    if isinstance(ground, Custody):
        return {"study": ground.study_id.hex()}
    return {"request": ground.hex()}


async def _require_good(response: aiohttp.ClientResponse, good: set[int]) -> None:
    if response.status in good:
        return
    code = await _code(response)
    if response.status in (429, 503):
        wanted = response.headers.get("Retry-After", "1")
        pause_s = min(int(wanted), _RETRY_S_MAX) if wanted.isdecimal() else 1
        raise HolderBusy(code, pause_s)
    if response.status == 404 and code == "not_held":
        raise NotHeld
    if response.status >= 500:
        raise HolderFailed(f"it failed with status {response.status}")
    raise HolderRefused(code, is_permit=response.status == 403 or code == "request_unknown")


async def _code(response: aiohttp.ClientResponse) -> str:
    """Return the code of a refusal, which a stranger wrote: bounded, and of plain letters only."""
    body = await response.content.read(_REFUSAL_BYTES_MAX)
    try:
        code = json.loads(body)["error"]["code"]
    except (ValueError, LookupError, TypeError, RecursionError):
        code = None
    if type(code) is str and len(code) <= 64 and code.replace("_", "").isascii():
        return "".join(letter for letter in code if letter.isalnum() or letter == "_")
    return f"status_{response.status}"


def _continues(response: aiohttp.ClientResponse, start: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it did not answer in time, or was too slow"
    number = getattr(error, "errno", None)
    reason = os.strerror(number) if type(number) is int and number > 0 else type(error).__name__
    return f"the connection failed: {reason}"
