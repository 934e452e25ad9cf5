"""The DICOMweb server on aiohttp: doors and limits. What is asked goes to stow, qido and wado.

POST /dicom-web/studies[/STUDY]                                        store
GET  /dicom-web/studies, .../series, .../instances                     search
GET  /dicom-web/studies/STUDY[/series/SERIES[/instances/INSTANCE]]     retrieve
     .../metadata  .../frames/1,2  .../bulkdata/TAG  .../rendered  .../thumbnail
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from node.config.checks import is_loopback
from node.config.model import WebConfig
from node.gateway.holdings import Holdings, Withheld
from node.gateway.web import media, qido, stow
from node.gateway.web.audit import Action, Audit, NoAudit, WebAccess
from node.gateway.web.door import Door
from node.gateway.web.errors import Problem
from node.gateway.web.fence import Decoder
from node.gateway.web.gate import ALLOWED_HEADERS, ALLOWED_METHODS, Gate, Role, Tokens, host_name
from node.gateway.web.matching import Level, read_query
from node.gateway.web.resources import ROOT, Resources, search_fixed, study_of
from node.gateway.web.wado import Answer, Retriever
from node.keys import create_token, load_token
from node.rpc.dispatch import incident

# aiohttp would log what it cannot parse, with a traceback and the line itself: maybe a token.
_silent = logging.getLogger(f"{__name__}.http")
_silent.disabled = True

_SHUTDOWN_S, _LINGER_S = 5.0, 2.0
_FLOOD_S = 60.0  # one record for many connections that were refused
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_FUZZY = '299 radledger "The fuzzymatching parameter is not supported. Only literal matching has '
_FUZZY += 'been performed."'
_MORE = '299 radledger "There are additional results that can be requested"'


@dataclass(slots=True)
class Visit:
    """What the server knows of one request."""

    action: Action = Action.NONE
    role: Role | None = None
    origin: str | None = None  # of the web page that asks, if one does
    study_uid: str = field(default="", repr=False)
    instances: int = 0
    started: web.StreamResponse | None = None  # the answer whose head is out
    is_recorded: bool = False
    trouble: str = ""  # what of a message was not understood, though the rest was


VISIT = web.RequestKey("visit", Visit)


class WebServer:
    """Serves DICOMweb between `start` and `stop`."""

    def __init__(
        self, config: WebConfig, holdings: Holdings, spool: stow.Inbox, audit: Audit | None = None
    ) -> None:
        """Raises `ValueError` for a config that would open the server to others in clear."""
        _check(config)
        self._config, self._limits = config, config.limits
        self._holdings, self._spool = holdings, spool
        self._audit = audit or NoAudit()
        self._uploads = 0
        self._flood_told_s = -_FLOOD_S
        self._telling: set[asyncio.Task[bool]] = set()
        limits = config.limits
        # Twice: a part that is whole can always be made durable while others wait for senders.
        self._writers = ThreadPoolExecutor(2 * limits.uploads_max, "web-store")
        self._readers = ThreadPoolExecutor(limits.readers_max, "web-read")
        self._decoder = Decoder(
            limits.decoder_memory_bytes,
            limits.decode_timeout_ms / 1000,
            2 * limits.transcode_bytes_max,
        )
        self._resources = Resources(
            holdings, Retriever(holdings, self._readers, self._decoder, limits), self._readers
        )
        self._gate: Gate | None = None
        self._runner: web.AppRunner | None = None
        self._door: Door | None = None
        self.port = config.port

    @property
    def url(self) -> str:
        """The base URL of DICOMweb, for clients."""
        scheme = "https" if self._config.tls_certificate_file else "http"
        host = self._config.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}{ROOT}"

    async def start(self) -> None:
        """Listen. Raises `OSError` naming the address or the file when that fails."""
        config = self._config
        outside = config.outside_token_file
        tokens = Tokens(_token(config.token_file), _token(outside) if outside else None)
        self._gate = Gate(config, tokens)
        context = self._tls()
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            logger=_silent,
            handle_signals=False,
            auto_decompress=False,  # a small body stays small
            keepalive_timeout=self._limits.idle_timeout_ms / 1000,
            shutdown_timeout=_SHUTDOWN_S,
            # How long a refused body is still read, so that its sender sees the answer.
            lingering_time=min(_LINGER_S, self._limits.idle_timeout_ms / 1000),
        )
        await self._runner.setup()
        server = cast(web.Server, self._runner.server)  # there is one by now
        self._door = Door(server, self._limits, context, self._one_too_many)
        try:
            self.port = await self._door.start(config.host, config.port)
        except OSError as error:
            await self._door.stop()
            await self._runner.cleanup()
            address = f"{config.host}:{config.port}"
            raise OSError(error.errno, f"DICOMweb cannot listen on {address}: {error}") from error

    async def stop(self) -> None:
        """Stop listening, end what is under way, and let go of threads and processes."""
        if self._door is not None:
            await self._door.stop()
        if self._runner is not None:
            await self._runner.cleanup()
        await asyncio.gather(*self._telling)
        await self._decoder.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writers.shutdown(wait=False, cancel_futures=True)

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard])
        for path in ("/studies", "/studies/{study}"):
            application.router.add_post(ROOT + path, self._store)
        for path, level in _SEARCHES.items():
            application.router.add_get(ROOT + path, self._searcher(level), allow_head=False)
        for path, make in self._resources.routes():
            application.router.add_get(ROOT + path, self._retriever(make), allow_head=False)
        return application

    def _tls(self) -> ssl.SSLContext | None:
        certificate, key = self._config.tls_certificate_file, self._config.tls_key_file
        if certificate is None or key is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # BCP 195, which PS3.15 B.12 asks for; equipment in hospitals often ends at 1.2.
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        authority = self._config.tls_client_ca_file
        try:
            context.load_cert_chain(certificate, key)
            if authority is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(authority)
        except (OSError, ssl.SSLError) as error:
            raise OSError(f"DICOMweb cannot use {certificate} with {key}: {error}") from error
        return context

    def _one_too_many(self, remote: str) -> None:
        """Record that connections are refused, once a minute at most."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._flood_told_s + _FLOOD_S:
            self._flood_told_s = loop.time()
            access = WebAccess(Action.NONE, 0, "too_many_connections", 0, remote)
            task = loop.create_task(self._audit.record(access))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    # The guard

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        visit = request[VISIT] = Visit()
        code = ""
        try:
            response = await self._guarded(request, handler)
        except Problem as problem:
            code, response = problem.code, _refusal(problem)
        except web.HTTPException as error:
            code = error.reason.lower().replace(" ", "_")
            response = _refusal(Problem(error.status, code, error.reason))
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except Withheld:
            code = "withheld"
            response = _refusal(Problem(403, code, "this study may not be shown any more"))
        except (ConnectionError, web.RequestPayloadError, HttpProcessingError):
            code, response = (
                "broken_off",
                _refusal(Problem(400, "broken_off", "the body broke off")),
            )
            response.force_close()
        except asyncio.CancelledError:
            await self._record(request, 0, "stopped")
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: a client never sees more
            code, response = "internal", _refusal(Problem(500, "internal", incident(error)))
        is_broken = bool(code) and visit.started is not None
        if code or not visit.is_recorded:
            is_kept = await self._record(request, 0 if is_broken else response.status, code)
            if not (is_kept or code or visit.action is Action.STORE):
                response = _refusal(_not_recorded())
        if visit.started is not None:
            # Half an answer must not look like a whole one.
            if code and request.transport is not None:
                request.transport.abort()
            return visit.started
        if visit.origin is not None:
            _allow_origin(response, visit.origin)
        return response

    async def _guarded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if self._gate is None:
            raise Problem(503, "not_started", "the server is not started")
        visit = request[VISIT]
        self._gate.check_host(request.headers)
        visit.origin = self._gate.origin(request.scheme, request.headers)
        if request.method == "OPTIONS" and visit.origin is not None:
            return _preflight()
        verified = self._config.tls_client_ca_file is not None and request.secure
        visit.role = self._gate.role(request.headers, verified)
        return await handler(request)

    async def _record(self, request: web.Request, status: int, code: str) -> bool:
        visit, remote = request[VISIT], request.remote or ""
        role = "" if visit.role is None else visit.role.name.lower()
        uid = visit.study_uid
        return await self._audit.record(
            WebAccess(
                visit.action, status, code or visit.trouble, visit.instances, remote, role, uid
            )
        )

    def _root(self, request: web.Request) -> str:
        """Return the URL under which the client knows us.

        The Host header was checked; its port is not relied on, since some clients leave it out.
        """
        if self._config.public_url is not None:
            return self._config.public_url.rstrip("/") + ROOT
        name = host_name(request.headers.get("Host", ""))
        return f"{request.scheme}://{f'[{name}]' if ':' in name else name}:{self.port}{ROOT}"

    # Store

    async def _store(self, request: web.Request) -> web.StreamResponse:
        self._enter(request, Action.STORE)
        kind = media.accepts(
            media.parse_accept(request.headers.get("Accept", "")), media.DICOM_JSON, media.JSON
        )
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Problem(415, "unsupported_encoding", "send the body without Content-Encoding")
        if self._uploads >= self._limits.uploads_max:
            raise Problem(503, "busy", "as many uploads as may run at once do so", 5)
        self._uploads += 1
        try:
            stored = await stow.receive(
                request.headers.get("Content-Type", ""),
                self._body(request),
                request[VISIT].study_uid or None,
                self._spool,
                self._writers,
                self._limits,
            )
        finally:
            self._uploads -= 1
        visit = request[VISIT]
        visit.instances, visit.trouble = stored.successes, _trouble(stored)
        body = orjson.dumps(stow.response(stored, self._root(request)))
        response = web.Response(status=stored.status, body=body, headers={"Content-Type": kind})
        if stored.status == 503:
            response.headers["Retry-After"] = "30"
        return response

    async def _body(self, request: web.Request) -> AsyncIterator[bytes]:
        """Yield the body; raises `Problem` if it is too long or comes too slowly."""
        limits, loop = self._limits, asyncio.get_running_loop()
        idle_s, received, waited_s = limits.idle_timeout_ms / 1000, 0, 0.0
        if (request.content_length or 0) > limits.upload_bytes_max:
            raise Problem(413, "too_large", f"at most {limits.upload_bytes_max} bytes at once")
        while True:
            before = loop.time()
            try:
                async with asyncio.timeout(idle_s):
                    data = await request.content.readany()
            except TimeoutError:
                raise Problem(408, "too_slow", "the sender stopped sending") from None
            if not data and request.content.at_eof():
                return
            # Only the time that the sender takes counts, not that of our disk.
            waited_s += loop.time() - before
            received += len(data)
            if received > limits.upload_bytes_max:
                raise Problem(413, "too_large", f"at most {limits.upload_bytes_max} bytes at once")
            if received < limits.upload_bytes_per_second_min * (waited_s - idle_s):
                raise Problem(408, "too_slow", "the sender sends too slowly")
            yield data

    # Search

    def _searcher(self, level: Level) -> _Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            self._enter(request, Action.SEARCH, Role.OUTSIDE)
            is_local = request[VISIT].role is Role.LOCAL
            ranges = media.parse_accept(request.headers.get("Accept", ""))
            kind = media.accepts(ranges, media.DICOM_JSON, media.JSON)
            fixed = search_fixed(request.match_info)
            query = read_query(level, fixed, request.query.items(), self._limits.results_max)
            results = await asyncio.get_running_loop().run_in_executor(
                self._readers,
                qido.search,
                query,
                self._holdings,
                self._root(request),
                self._limits.studies_examined_max,
                is_local,
            )
            response = web.Response(body=orjson.dumps(results.rows), headers={"Content-Type": kind})
            if query.is_fuzzy:
                response.headers.add("Warning", _FUZZY)
            if results.has_more:
                response.headers.add("Warning", _MORE)
            return response

        return handle

    # Retrieve

    def _retriever(
        self, make: Callable[[web.Request, str], Awaitable[tuple[Answer, int]]]
    ) -> _Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            self._enter(request, Action.RETRIEVE)
            answer, request[VISIT].instances = await make(request, self._root(request))
            return await self._send(request, answer)

        return handle

    async def _send(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": answer.content_type})
        response.content_length = answer.size
        _common_headers(response)
        visit = request[VISIT]
        if visit.origin is not None:
            _allow_origin(response, visit.origin)
        idle_s = self._limits.idle_timeout_ms / 1000
        async with aclosing(answer.pieces):
            # No byte leaves before the record of it is on the disk.
            if not await self._record(request, 200, ""):
                raise _not_recorded()
            visit.is_recorded = True
            await response.prepare(request)
            visit.started = response
            async for piece in answer.pieces:
                async with asyncio.timeout(idle_s):
                    await response.write(piece)
        await response.write_eof()
        return response

    def _enter(self, request: web.Request, action: Action, least: Role = Role.LOCAL) -> None:
        visit = request[VISIT]
        visit.action = action
        if visit.role is not Role.LOCAL and visit.role is not least:
            raise Problem(403, "not_allowed", "this token may only search")
        visit.study_uid = study_of(request.match_info)


_SEARCHES = {
    "/studies": Level.STUDY,
    "/series": Level.SERIES,
    "/studies/{study}/series": Level.SERIES,
    "/instances": Level.INSTANCE,
    "/studies/{study}/instances": Level.INSTANCE,
    "/studies/{study}/series/{series}/instances": Level.INSTANCE,
}


def _token(path: Path) -> str:
    """Return the token in a file, made the first time. Raises `KeyFileError`."""
    return load_token(path) if path.exists() else create_token(path)


def _check(config: WebConfig) -> None:
    has_tls = config.tls_certificate_file is not None and config.tls_key_file is not None
    if not is_loopback(config.host) and not (config.allow_remote and has_tls):
        raise ValueError(
            f'gateway.web.host "{config.host}" is reachable from other machines; use 127.0.0.1, '
            "or set allow_remote = true with tls_certificate_file and tls_key_file"
        )
    if config.tls_client_ca_file is not None and not has_tls:
        raise ValueError("gateway.web.tls_client_ca_file needs tls_certificate_file, tls_key_file")


def _refusal(problem: Problem) -> web.Response:
    body = {"error": {"code": problem.code, "sentence": problem.sentence}}
    response = web.Response(
        status=problem.status, body=orjson.dumps(body), content_type="application/json"
    )
    if problem.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if problem.retry_after_s is not None:
        response.headers["Retry-After"] = str(problem.retry_after_s)
    if problem.status in (408, 413):
        response.force_close()
    _common_headers(response)
    return response


def _trouble(stored: stow.Stored) -> str:
    if stored.broken:
        return "message_broken"
    return "foreign_parts" if stored.foreign_parts else ""


def _not_recorded() -> Problem:
    return Problem(503, "not_recorded", "this cannot be audited now, so nothing is given", 30)


def _preflight() -> web.Response:
    headers = {
        "Access-Control-Allow-Methods": ALLOWED_METHODS,
        "Access-Control-Allow-Headers": ALLOWED_HEADERS,
        "Access-Control-Max-Age": "600",
    }
    return web.Response(status=204, headers=headers)


def _allow_origin(response: web.StreamResponse, origin: str) -> None:
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Vary"] = "Origin"


def _common_headers(response: web.StreamResponse) -> None:
    response.headers["Server"] = "radledger"
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
