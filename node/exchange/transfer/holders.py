"""One hospital that may serve: its connections, and what its answers mean.

A context trusts this hospital's certificates and no others, so whoever answers is who the caller
means, and what it sends can be held against it by name.
"""

import asyncio
import http.client
import json
import math
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.exchange.transfer.limits import ClientLimits, SharedPace
from node.exchange.transfer.line import REFUSAL_BYTES_MAX, Line, Partial, Refused, WrongSize
from node.exchange.transfer.offer import OFFER_BYTES_MAX
from node.exchange.transfer.ports import Custody, Ground
from node.network.tls import TrustedContexts

_Ask: TypeAlias = Callable[
    [aiohttp.ClientSession], AbstractAsyncContextManager[aiohttp.ClientResponse]
]

_RETRY_S_MAX = 60
_LOOK_S = 1.0  # a thread goes over to the next chunk, and to another deadline, unseen


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


class Link:
    """The way to one holder: an event loop's for small things, threads' own for chunks."""

    def __init__(self, holder: Holder, identity: Identity, limits: ClientLimits) -> None:
        self.holder = holder
        self._identity = identity
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._idle: list[Line] = []
        self._trusting: ssl.SSLContext | None = None
        host = f"[{holder.host}]" if ":" in holder.host else holder.host
        self._url = f"https://{host}:{holder.port}"

    async def close(self) -> None:
        """Let go of its connections."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)
        for line in self._idle:
            line.close()
        if self._session is not None:
            await self._session.close()

    async def knock(self) -> None:
        """Return if it answers, and knows this hospital. Raises the exceptions of this module."""
        url = self._url + "/"
        limit_s = self._limits.connect_timeout_ms / 1000
        async with self._asked(_getting(url), limit_s) as answer:
            await _require_good(answer, {200, 404})

    async def offer(self, request_id: bytes) -> bytes:
        """Return an encoded offer. Raises the exceptions of this module."""
        url = f"{self._url}/v1/offer/{request_id.hex()}"
        async with self._asked(_getting(url), None) as answer:
            await _require_good(answer, {200})
            return await self._read(answer, OFFER_BYTES_MAX, "offer")

    async def stream(
        self, partial: Partial, ground: Ground, pace: SharedPace, full: Callable[[], bool]
    ) -> None:
        """Fetch what is missing of a chunk; what came before a failure stays in `partial`.

        When it is whole, `full` is called in the thread that fetched it: there it is kept, and
        `partial` may begin another chunk, which is fetched next if the answer is True.

        At most `parallel` at once. Raises the exceptions of this module, and what `full` raises.
        """
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._limits.parallel, "exchange-line")
        line = self._idle.pop() if self._idle else self._line()
        line.deadline_s = time.monotonic() + self._slowest_s(partial)
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(
            self._threads, self._stream, line, partial, _query(ground), pace, full
        )
        try:
            refused = await _watched(work, line)
        except ssl.SSLCertVerificationError as error:
            raise HolderFailed("its certificate is not the one that is known") from error
        except WrongSize as error:
            raise HolderLied(str(error)) from error
        except (http.client.HTTPException, OSError) as error:
            raise HolderFailed(_reason(error)) from error
        finally:
            if line.is_cut:
                line.close()
            else:
                self._idle.append(line)
        if refused is not None:
            _refuse(refused)

    def _stream(
        self, line: Line, partial: Partial, query: str, pace: SharedPace, full: Callable[[], bool]
    ) -> Refused | None:
        while True:
            line.deadline_s = time.monotonic() + self._slowest_s(partial)
            target = f"/v1/chunk/{partial.chunk.digest.hex()}?{query}"
            refused = line.fetch(target, partial, self.holder.institution, pace)
            line.deadline_s = math.inf  # keeping it is not the holder's time
            if refused is not None or not full():
                return refused

    async def post(self, path: str, body: bytes, bytes_max: int) -> bytes:
        """Return the answer to a small question. Raises the exceptions of this module."""
        url = self._url + path
        async with self._asked(_posting(url, body), None) as answer:
            await _require_good(answer, {200})
            return await self._read(answer, bytes_max, "answer")

    async def _read(self, response: aiohttp.ClientResponse, bytes_max: int, what: str) -> bytes:
        """Return a small answer whole. Raises `TimeoutError` when it comes too slowly."""
        began_s = time.monotonic()
        pieces: list[bytes] = []
        size = 0
        async for piece in response.content.iter_any():
            size += len(piece)
            if size > bytes_max:
                raise HolderLied(f"its {what} is larger than any may be")
            if time.monotonic() - began_s > self._patience_s(size):
                raise TimeoutError
            pieces.append(piece)
        return b"".join(pieces)

    def _line(self) -> Line:
        return Line(self.holder.host, self.holder.port, self._context, self._limits)

    def _slowest_s(self, partial: Partial) -> float:
        return self._patience_s(len(partial.room))

    def _patience_s(self, size: int) -> float:
        """Return how long so many bytes may take."""
        limits = self._limits
        patience_ms = limits.connect_timeout_ms + limits.stall_timeout_ms
        rate = min(limits.slow_bytes_per_s, limits.rate_bytes_per_s / limits.parallel)
        return patience_ms / 1000 + size / rate

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
                    cookie_jar=aiohttp.DummyCookieJar(),
                    headers={"Accept-Encoding": "identity"},
                )
        return self._session

    def _context(self) -> ssl.SSLContext:
        if self._trusting is None:  # in threads: one that is made twice is no harm
            identity = self._identity
            known = self.holder.certificates
            contexts = TrustedContexts(identity.private_key, identity.certificate, known)
            self._trusting = contexts.client
        return self._trusting


# A redirect would lead to where nobody has shown who he is: it is no answer.
def _getting(url: str) -> _Ask:
    return lambda session: session.get(url, allow_redirects=False)


def _posting(url: str, body: bytes) -> _Ask:
    return lambda session: session.post(url, data=body, allow_redirects=False)


async def _watched(work: "asyncio.Future[Refused | None]", line: Line) -> Refused | None:
    """Return what a thread returns; cut its connection when it is late, or nobody waits for it.

    The thread has ended then: what it was filling may be filled by another.
    """
    try:
        while not work.done():
            left_s = line.deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            await asyncio.wait([work], timeout=min(left_s, _LOOK_S))
        return work.result()
    finally:
        if not work.done():
            line.cut()
        await _ended(work)


async def _ended(work: "asyncio.Future[Refused | None]") -> None:
    """Wait for a thread's end, however often who waits is cancelled meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if not work.cancelled():
        work.exception()  # it may be that nobody else looks at it
    if cancelled is not None:
        raise cancelled


def _query(ground: Ground) -> str:
    if isinstance(ground, Custody):
        return f"study={ground.study_id.hex()}"
    return f"request={ground.hex()}"


async def _require_good(response: aiohttp.ClientResponse, good: set[int]) -> None:
    if response.status not in good:
        body = await response.content.read(REFUSAL_BYTES_MAX)
        _refuse(Refused(response.status, response.headers.get("Retry-After", ""), body))


def _refuse(refused: Refused) -> NoReturn:
    """Raise what an answer means that is not what was asked for."""
    status, code = refused.status, _code(refused)
    if status in (429, 503):
        wanted = refused.retry_after or "1"
        pause_s = min(int(wanted), _RETRY_S_MAX) if wanted.isdecimal() else 1
        raise HolderBusy(code, pause_s)
    if status == 404 and code == "not_held":
        raise NotHeld
    if status >= 500:
        raise HolderFailed(f"it failed with status {status}")
    raise HolderRefused(code, is_permit=status == 403 or code == "request_unknown")


def _code(refused: Refused) -> str:
    """Return the code of a refusal, which a stranger wrote: bounded, and of plain letters only."""
    try:
        code = json.loads(refused.body)["error"]["code"]
    except (ValueError, LookupError, TypeError, RecursionError):
        code = None
    if type(code) is str and len(code) <= 64 and code.replace("_", "").isascii():
        return "".join(letter for letter in code if letter.isalnum() or letter == "_")
    return f"status_{refused.status}"


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it did not answer in time, or was too slow"
    number = getattr(error, "errno", None)
    reason = os.strerror(number) if type(number) is int and number > 0 else type(error).__name__
    return f"the connection failed: {reason}"
