"""The exchange server: offers and chunks for those whom the ledger permits, over mutual TLS 1.3.

GET /v1/offer/REQUEST                 wrapped key, index ciphertext and chunk list (`offer`); from
                                      the custodian only, and only if the key's digest is on chain
GET /v1/chunk/DIGEST?request=REQUEST  ciphertext; one byte range as in RFC 9110 §14 if asked for
GET /v1/chunk/DIGEST?study=STUDY      the same for the study's custodian on the ledger, which lost
                                      it: never a key, nor an offer
POST paths that the gateway adds      small questions, such as those of a search (`posts`)

REQUEST, STUDY and DIGEST are lower-case hex. A refusal is JSON: {"error": {"code", "sentence"}}.

The peer is the institution of its certificate's key, looked up anew for every request. The ledger
is asked for every request, and again every `recheck_ms` while bytes flow; when it says no, when it
cannot be asked, or when `revoke` is called, the connections are cut where they are. Chunks are
ciphertext, but without a permit for their study none goes out.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from aiohttp import web

from node.exchange.hpke import wrapped_digest
from node.exchange.transfer import refusals
from node.exchange.transfer.acceptor import Acceptor
from node.exchange.transfer.connections import Connections
from node.exchange.transfer.errors import InvalidRecord, LedgerUnavailable, NotPermitted
from node.exchange.transfer.given import GivenOut
from node.exchange.transfer.limits import Pacer, ServerLimits
from node.exchange.transfer.offer import Delivery, encode_offer, make_offer
from node.exchange.transfer.ports import (
    Admit,
    ChunkSource,
    Custody,
    Ground,
    Happening,
    InstitutionOf,
    Permit,
    Permits,
    Report,
    TransferEvent,
    event_of,
)
from node.exchange.transfer.posts import INSTITUTION, Post, add_posts
from node.exchange.transfer.refusals import Refusal
from node.exchange.transfer.running import Running, RunningAnswers, reset
from node.exchange.transfer.state import Deliveries
from node.network.tls import TrustedContexts

log = logging.getLogger(__name__)
# aiohttp would log what it cannot parse, with a traceback and the line itself.
_silent = logging.getLogger(f"{__name__}.http")
_silent.disabled = True

_SHUTDOWN_S = 2.0
_ID = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


class ExchangeServer:
    """Serves one hospital's ciphertext between `start` and `close`; also a context manager."""

    def __init__(
        self,
        contexts: TrustedContexts,
        institution_of: InstitutionOf,
        permits: Permits,
        source: ChunkSource,
        deliveries: Deliveries | None = None,
        *,
        limits: ServerLimits | None = None,
        report: Report | None = None,
        admit: Admit | None = None,
        posts: Iterable[Post] = (),
    ) -> None:
        """`institution_of` names the institution of a certificate's 32-byte key, or None: whoever
        changes `contexts` changes its answers too. Without `deliveries` no key is given out, only
        chunks. `report` gets what is to be audited, in the event loop; it must not block. `admit`
        is awaited before a key, or the first chunk under a request, goes out."""
        self._contexts = contexts
        self._institution_of = institution_of
        self._permits = permits
        self._source = source
        self._deliveries = deliveries
        self._limits = limits or ServerLimits()
        self._report = report or _unheard
        self._given = GivenOut(admit, self._report)
        self._posts = tuple(posts)
        self._running = RunningAnswers()
        self._connections = Connections(institution_of, self._limits)
        self._pacers: dict[str, Pacer] = {}  # bounded by the known institutions
        self._threads = ThreadPoolExecutor(self._limits.threads, "exchange-read")
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            logger=_silent,
            handle_signals=False,
            auto_decompress=False,
            lingering_time=0,
            keepalive_timeout=self._limits.idle_timeout_ms / 1000,
            shutdown_timeout=_SHUTDOWN_S,
        )
        self._acceptor = Acceptor(
            self._protocol, self._connected, lambda: contexts.server, self._is_full, self._limits
        )
        self._watching: asyncio.Task[None] | None = None
        self._pacer: Pacer | None = None
        self.bytes_sent = 0
        self.port = 0

    async def start(self, host: str, port: int = 0) -> None:
        """Listen; `port` 0 lets the system choose. Raises `OSError` naming the address."""
        await self._runner.setup()
        self._pacer = Pacer(self._limits.rate_bytes_per_s, self._limits.piece_bytes)
        try:
            self.port = await self._acceptor.open(host, port)
        except OSError:
            await self._runner.cleanup()
            raise
        self._watching = asyncio.create_task(self._watch())
        self._watching.add_done_callback(self._watch_ended)

    async def close(self) -> None:
        """Stop listening and cut everything; receivers resume elsewhere, or here later."""
        if self._watching is not None:
            self._watching.cancel()
        await self._acceptor.close()
        self._running.stop("shutdown", self._running.snapshot())
        self._given.flush(0.0)
        for peer in self._connections:
            reset(peer.transport)
        await self._runner.cleanup()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __aenter__(self) -> "ExchangeServer":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def revoke(self, ground: Ground, code: str) -> None:
        """Cut every answer on this ground at once; `code` says why, as the contracts do."""
        self._stop(code, lambda running: running.ground == ground)

    def drop(self, key: bytes) -> None:
        """Cut every connection of a certificate's key that is trusted no longer."""
        self._stop("peer_unknown", lambda running: running.key == key)
        for peer in self._connections:
            if peer.key == key:
                reset(peer.transport)

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard], client_max_size=1)
        application.router.add_get("/v1/offer/{request}", self._offer, allow_head=False)
        application.router.add_get("/v1/chunk/{digest}", self._chunk, allow_head=False)
        add_posts(application, self._posts, self._limits)
        application.on_response_prepare.append(_headers)
        return application

    def _protocol(self) -> asyncio.Protocol:
        server = self._runner.server
        return server() if server is not None else asyncio.Protocol()

    def _is_full(self) -> bool:
        if len(self._connections) >= self._limits.connections_max:
            self._connections.prune(asyncio.get_running_loop().time())
        return len(self._connections) >= self._limits.connections_max

    def _connected(self, transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
        if transport.is_closing():
            return
        now_s = asyncio.get_running_loop().time()
        institution, code = self._connections.admit(transport, protocol, now_s)
        if code:
            self._report(TransferEvent(Happening.REFUSED, institution, None, code))

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.transport is not None:
            self._connected(request.transport, request.protocol)
        peer = self._connections.find(request.protocol)
        institution = self._institution_of(peer.key) if peer is not None else None
        if peer is None or institution is None:
            self._report(TransferEvent(Happening.REFUSED, None, None, "peer_unknown"))
            return refusals.response(refusals.peer_unknown())
        peer.institution, peer.ground, peer.busy = institution, None, True
        request[INSTITUTION] = institution
        try:
            return await handler(request)
        except Refusal as refusal:
            asked = peer.ground
            self._report(event_of(Happening.REFUSED, institution, asked, refusal.code))
            return refusals.response(refusal)
        except web.HTTPException as error:
            return refusals.response(Refusal(error.status, "request_invalid", error.reason))
        except ConnectionError:
            raise  # the peer went away, or was cut
        except Exception as error:  # the boundary: a peer never sees more
            log.error("an exchange answer failed error=%s", type(error).__name__, exc_info=error)
            return refusals.response(refusals.internal())
        finally:
            peer.busy = False
            peer.active_s = asyncio.get_running_loop().time()

    async def _offer(self, request: web.Request) -> web.StreamResponse:
        request_id = _hex(_ID, request.match_info["request"], "a request's id")
        with self._answering(request, request_id) as running:
            permit = await self._permit(running)
            delivery = await self._delivery(request_id, permit)
            try:
                study = await self._in_thread(
                    self._source.sealed_study, delivery.study_id, delivery.version
                )
            except LookupError:
                raise refusals.not_held() from None
            offer = make_offer(delivery, study)
            data = await self._in_thread(encode_offer, offer)
            await self._given.offer(running.institution, request_id)
            response = await self._send(request, running, memoryview(data), 200, {})
            event = TransferEvent(Happening.OFFERED, running.institution, request_id)
            self._report(event)
            return response

    async def _chunk(self, request: web.Request) -> web.StreamResponse:
        digest = _hex(_DIGEST, request.match_info["digest"], "a chunk's digest")
        ground = _ground(request)
        with self._answering(request, ground) as running:
            permit = await self._permit(running)
            try:
                data = await self._in_thread(self._read, permit.study_id, digest)
            except LookupError:
                raise refusals.not_held() from None
            status, part, headers = _part(request, memoryview(data))
            await self._given.begin(running.institution, ground)
            response = await self._send(request, running, part, status, headers)
            self._given.add(running.institution, ground, len(part))
            return response

    @contextlib.contextmanager
    def _answering(self, request: web.Request, ground: Ground) -> Iterator[Running]:
        """Note an answer before its permit is asked for, so that no withdrawal slips between."""
        peer = self._connections.find(request.protocol)
        if peer is None:
            raise refusals.peer_unknown()
        peer.ground = ground
        if self._running.count_of(peer.institution) >= self._limits.peer_requests_max:
            raise refusals.busy()
        running = Running(ground, peer.institution, peer.key, peer.transport)
        self._running.add(running)
        try:
            yield running
        finally:
            self._running.remove(running)

    async def _permit(self, running: Running) -> Permit:
        try:
            async with asyncio.timeout(self._limits.permit_timeout_ms / 1000):
                permit = await self._permits.permit(running.ground)
        except NotPermitted as error:
            raise refusals.not_permitted(error) from error
        except (LedgerUnavailable, TimeoutError) as error:
            raise refusals.unavailable() from error
        if permit.institution != running.institution:
            is_custody = isinstance(running.ground, Custody)
            code = refusals.NOT_CUSTODIAN if is_custody else refusals.REQUEST_UNKNOWN
            raise refusals.not_permitted(NotPermitted(code))
        running.is_permitted = True
        return permit

    async def _delivery(self, request_id: bytes, permit: Permit) -> Delivery:
        """Return what was wrapped for this request, if it is what the ledger says was delivered:
        no key leaves without the committed permit."""
        if permit.wrapped_digest is None:
            raise refusals.not_permitted(NotPermitted("request_not_delivered"))
        if self._deliveries is None:
            raise refusals.offer_unknown()
        try:
            delivery = await self._in_thread(self._deliveries.get, request_id)
        except InvalidRecord as error:
            log.error("a delivery cannot be read error=%s", error)
            raise refusals.internal() from error
        if delivery is None:
            raise refusals.offer_unknown()
        stated = (permit.study_id, permit.wrapped_digest)
        if (delivery.study_id, wrapped_digest(delivery.wrapped)) != stated:
            log.error("a wrapped key is not the one on the ledger request=%s", request_id.hex())
            raise refusals.offer_unknown()
        return delivery

    def _read(self, study_id: bytes, digest: bytes) -> bytes:
        if not self._source.holds(study_id, digest):
            raise LookupError("a chunk of another study, or of none")
        return self._source.ciphertext(digest)

    async def _send(
        self,
        request: web.Request,
        running: Running,
        data: memoryview,
        status: int,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        """Send in pieces, each at the pace that is due, until the end or until it is stopped."""
        response = web.StreamResponse(status=status, headers=headers)
        response.content_type = "application/octet-stream"
        response.content_length = len(data)
        stall_s = self._limits.stall_timeout_ms / 1000
        try:
            if running.code is None:
                await response.prepare(request)
            for at in range(0, len(data), self._limits.piece_bytes):
                piece = data[at : at + self._limits.piece_bytes]
                await self._pace(running.institution, len(piece))
                if running.code is not None:
                    raise ConnectionAbortedError(running.code)
                async with asyncio.timeout(stall_s):
                    await response.write(piece)
                self.bytes_sent += len(piece)
            await response.write_eof()
        except TimeoutError:
            self._stop("stalled", lambda other: other is running)
            raise ConnectionAbortedError("stalled") from None
        return response

    async def _pace(self, institution: str, count: int) -> None:
        pacer = self._pacers.get(institution)
        if pacer is None:
            limits = self._limits
            pacer = Pacer(limits.peer_rate_bytes_per_s, limits.piece_bytes)
            self._pacers[institution] = pacer
        await pacer.take(count)
        if self._pacer is not None:
            await self._pacer.take(count)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _stop(self, code: str, which: Callable[[Running], bool]) -> None:
        chosen = [running for running in self._running.snapshot() if which(running)]
        for running in self._running.stop(code, chosen):
            self._report(event_of(Happening.STOPPED, running.institution, running.ground, code))

    async def _watch(self) -> None:
        """Ask the ledger again about whatever flows, and cut who is silent."""
        while True:
            await asyncio.sleep(self._limits.recheck_ms / 1000)
            self._connections.prune(asyncio.get_running_loop().time())
            self._given.flush()
            # Not who waits for a first answer: that may take `permit_timeout_ms`.
            grounds = {each.ground for each in self._running.snapshot() if each.is_permitted}
            await asyncio.gather(*map(self._recheck, grounds))

    async def _recheck(self, ground: Ground) -> None:
        try:
            async with asyncio.timeout(self._limits.recheck_ms / 1000):
                permit = await self._permits.permit(ground)
        except NotPermitted as error:
            self.revoke(ground, error.code)
        except (LedgerUnavailable, TimeoutError):
            self.revoke(ground, "ledger_unavailable")
        else:
            mine = [each for each in self._running.snapshot() if each.ground == ground]
            self._stop("peer_unknown", lambda each: each in mine and self._has_moved(each))
            # Custody has gone over to another institution meanwhile.
            heir = permit.institution
            self._stop(
                refusals.NOT_CUSTODIAN, lambda each: each in mine and each.institution != heir
            )

    def _has_moved(self, running: Running) -> bool:
        return self._institution_of(running.key) != running.institution

    def _watch_ended(self, task: "asyncio.Task[None]") -> None:
        """Without the watch nothing may flow: a fault in it stops the exchange."""
        if not task.cancelled():
            log.error("the exchange stops: its watch failed", exc_info=task.exception())
            self._stopping = asyncio.create_task(self.close())


def _part(request: web.Request, data: memoryview) -> tuple[int, memoryview, dict[str, str]]:
    """Return status, bytes and headers for the range that is asked for, if one is."""
    size = len(data)
    try:
        asked = request.http_range
    except ValueError:
        raise refusals.not_satisfiable(size) from None
    if asked.start is None and asked.stop is None:
        return 200, data, {"Accept-Ranges": "bytes"}
    start, stop, _ = asked.indices(size)
    if start >= stop:
        raise refusals.not_satisfiable(size)
    return 206, data[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}


def _ground(request: web.Request) -> Ground:
    """Return on what a peer asks for a chunk: a request of its own, or custody."""
    if "study" not in request.query:
        return _hex(_ID, request.query.get("request", ""), "a request's id")
    if "request" in request.query:
        raise refusals.invalid("either a request's id or a study's")
    return Custody(_hex(_ID, request.query["study"], "a study's id"))


def _hex(form: re.Pattern[str], text: str, what: str) -> bytes:
    if not form.fullmatch(text):
        raise refusals.invalid(what)
    return bytes.fromhex(text)


def _unheard(event: TransferEvent) -> None:
    log.debug("%s request code=%s", event.kind, event.code)


async def _headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "radledger"
    response.headers["Cache-Control"] = "no-store"
