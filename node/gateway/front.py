"""The door for DICOM: who may come in, how many, and how much at a time.

pynetdicom buffers whatever length a PDU announces and keeps any number of silent connections, so
nothing reaches it that was not looked at here: TLS with the peer's certificate, AE titles, the
length of every PDU, and time. What passes is copied, byte for byte, to a socket that the receiving
process (`scp.py`) was handed; that process listens on nothing itself.
"""

import asyncio
import hashlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from node.gateway import pdu
from node.gateway.listening import Listening
from node.gateway.pdu import Callers, InvalidPdu, Rejection

log = logging.getLogger(__name__)

COPY_BYTES = 64 * 1024
HANDSHAKE_SECONDS = 10.0
HANG_UP_SECONDS = 5.0
_REPORT_SECONDS = 60.0  # one event for many refusals of one kind from one address

# Called with a socket and the peer's IP address; False when no association can be served now.
Hand = Callable[[socket.socket, str], bool]
# Kind, source and code of what an operator or auditor should know.
Report = Callable[[str, str, str], None]


@dataclass(frozen=True, slots=True)
class FrontRules:
    """Who may come in, and what they may cost."""

    ae_title: str
    # Calling AE title -> SHA-256 of the certificate that it must show, or None for any trusted one.
    peers: Mapping[str, bytes | None]
    pdu_bytes_max: int = 2**17
    connections_max: int = 64
    associations_max: int = 16
    idle_seconds: float = 60.0
    arrival_seconds: float = 15.0  # for the whole A-ASSOCIATE-RQ


class Front:
    """Listens for DICOM peers."""

    def __init__(
        self, rules: FrontRules, hand: Hand, report: Report, tls: ssl.SSLContext | None = None
    ) -> None:
        self._rules, self._hand, self._report, self._tls = rules, hand, report, tls
        self._listening = Listening(self._admit, self._serve)
        self._associations = 0
        self._told: Counter[tuple[str, str]] = Counter()
        self._forgetting: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises `OSError`."""
        await self._listening.start(host, port)

    @property
    def port(self) -> int:
        """The port that we listen on."""
        return self._listening.port

    @property
    def connections(self) -> int:
        """How many connections there are now, those that wait to associate included."""
        return self._listening.served

    @property
    def associations(self) -> int:
        """How many associations are served now."""
        return self._associations

    async def stop(self) -> None:
        """Close the door and end what is under way."""
        if self._forgetting is not None:
            self._forgetting.cancel()
        await self._listening.stop()

    def _admit(self, peer: str) -> bool:
        if self.connections < self._rules.connections_max:
            return True
        self._refuse(peer, "too_many_connections")
        return False

    async def _serve(self, accepted: socket.socket, peer: str) -> None:
        writer = None
        try:
            reader, writer = await self._open(accepted)
            async with asyncio.timeout(self._rules.arrival_seconds):
                request, who = await _request(reader)
            refused = self._why_not(who, _certificate(writer))
            if refused is not None:
                code, answer = refused
                self._refuse(peer, code)
                await _reject(reader, writer, answer)
                return
            await self._associate(reader, writer, request, peer)
        except InvalidPdu as error:
            self._refuse(peer, error.args[0])
        except TimeoutError:
            self._refuse(peer, "too_slow")
        except ssl.SSLError:
            self._refuse(peer, "tls")
        except (asyncio.IncompleteReadError, OSError):
            log.debug("connection ended peer=%s", peer)
        finally:
            # Not a graceful end: whoever does not read would hold us, and all was said already.
            if writer is not None:
                writer.close()

    async def _open(
        self, accepted: socket.socket
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the connection's streams, after the handshake if there is TLS.

        TLS comes with the transport: begun later on an open one, as by `start_tls`, it may miss the
        peer's first bytes, which have been read by then.
        """
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=COPY_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            accepted,
            ssl=self._tls,
            ssl_handshake_timeout=None if self._tls is None else HANDSHAKE_SECONDS,
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _associate(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: bytes,
        peer: str,
    ) -> None:
        self._associations += 1
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                is_served = self._hand(theirs, peer)
            if not is_served:
                self._refuse(peer, "no_service")
                await _reject(reader, writer, Rejection.CONGESTED)
                return
            inner_reader, inner_writer = await asyncio.open_connection(sock=ours, limit=COPY_BYTES)
            try:
                inner_writer.write(request)
                passage = _Passage(self._rules.pdu_bytes_max, self._rules.idle_seconds)
                await passage.copy_both(reader, writer, inner_reader, inner_writer)
            finally:
                inner_writer.transport.abort()
        finally:
            self._associations -= 1
            ours.close()

    def _why_not(self, who: Callers, certificate: bytes | None) -> tuple[str, Rejection] | None:
        rules = self._rules
        if who.calling not in rules.peers:
            return "unlisted_ae", Rejection.UNKNOWN_CALLING
        wanted = rules.peers[who.calling]
        if self._tls is not None and wanted is not None:
            shown = hashlib.sha256(certificate or b"").digest()
            if shown != wanted:
                return "other_certificate", Rejection.UNKNOWN_CALLING
        if who.called != rules.ae_title:
            return "unknown_called_ae", Rejection.UNKNOWN_CALLED
        if self._associations >= rules.associations_max:
            return "too_many_associations", Rejection.TOO_MANY
        return None

    def _refuse(self, peer: str, code: str) -> None:
        """Report a refusal; a flood of one kind from one address is one event a minute."""
        self._told[peer, code] += 1
        if self._told[peer, code] == 1:
            log.warning("connection refused peer=%s code=%s", peer, code)
            self._report("association_refused", peer, code)
        if self._forgetting is None:
            loop = asyncio.get_running_loop()
            self._forgetting = loop.call_later(_REPORT_SECONDS, self._forget)

    def _forget(self) -> None:
        self._forgetting = None
        for (peer, code), count in self._told.items():
            if count > 1:
                log.warning("connections refused peer=%s code=%s count=%d", peer, code, count)
                self._report("association_refused", peer, f"{code} {count} times in a minute")
        self._told.clear()


class _Passage:
    """Copies between a peer and the receiving process until neither has said anything for long."""

    def __init__(self, pdu_bytes_max: int, idle_seconds: float) -> None:
        self._pdu_bytes_max, self._idle_seconds = pdu_bytes_max, idle_seconds
        self._moved = asyncio.get_running_loop().time()

    async def copy_both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        inner_reader: asyncio.StreamReader,
        inner_writer: asyncio.StreamWriter,
    ) -> None:
        """Copy until either side ends, then let what was said to the peer go out."""
        inward = asyncio.ensure_future(self._copy_in(reader, inner_writer))
        outward = asyncio.ensure_future(self._copy_out(inner_reader, writer))
        tasks = [inward, outward]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not outward.done() and inward.exception() is None:
                # The peer has said its last word; an answer may still be on its way.
                inner_writer.write_eof()
                await asyncio.wait([outward], timeout=self._idle_seconds)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _copy_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy PDUs of the peer, none longer than it may be."""
        while (data := await self._next_head(reader)) is not None:
            head = pdu.later_head(data, self._pdu_bytes_max)
            writer.write(data)
            left = head.length
            async with asyncio.timeout(self._idle_seconds):
                while left:
                    piece = await reader.read(min(left, COPY_BYTES))
                    if not piece:
                        return
                    left -= len(piece)
                    writer.write(piece)
            self._mark()
            # Not timed: it is we who are slow when the receiving process waits for the disk.
            await writer.drain()

    async def _next_head(self, reader: asyncio.StreamReader) -> bytes | None:
        """Return the next PDU's head, None at the end. Raises `TimeoutError` when all is silent.

        While we send, as for a C-MOVE, the peer rightly says nothing.
        """
        while True:
            end = self._moved + self._idle_seconds
            try:
                async with asyncio.timeout_at(end):
                    return await reader.readexactly(pdu.HEAD_BYTES)
            except asyncio.IncompleteReadError:
                return None
            except TimeoutError:
                if self._moved + self._idle_seconds <= end:
                    raise

    async def _copy_out(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(COPY_BYTES):
            writer.write(piece)
            async with asyncio.timeout(self._idle_seconds):
                await writer.drain()
            self._mark()

    def _mark(self) -> None:
        self._moved = asyncio.get_running_loop().time()


async def _reject(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, why: Rejection
) -> None:
    """Reject an association and let the peer hang up first (PS3.8 §9.2.2, Sta13)."""
    writer.write(pdu.rejection(why))
    with suppress(TimeoutError):
        async with asyncio.timeout(HANG_UP_SECONDS):
            await writer.drain()
            while await reader.read(COPY_BYTES):
                pass


async def _request(reader: asyncio.StreamReader) -> tuple[bytes, Callers]:
    data = await reader.readexactly(pdu.HEAD_BYTES)
    body = await reader.readexactly(pdu.first_head(data).length)
    return data + body, pdu.callers(body)


def _certificate(writer: asyncio.StreamWriter) -> bytes | None:
    channel = writer.get_extra_info("ssl_object")
    with suppress(ValueError):
        return channel.getpeercert(binary_form=True) if channel is not None else None
    return None
