"""One connection: greeting, frames in, coalesced writes out, signs of life.

    accepted or dialled -> TLS done -> identified -> HELLO sent -> HELLO received -> open -> closed

Nothing reaches the owner before the peer's HELLO, and nothing after `closed`.
"""

import asyncio
import logging
import socket
import ssl
import struct
import time
from contextlib import suppress
from typing import Protocol, cast

from node.network.budgets import ReceiveBudget
from node.network.errors import Incompatible, InvalidFrame, Reason
from node.network.frames import (
    GREETING_KINDS,
    PAYLOAD_BYTES_MAX,
    FrameParser,
    Kind,
    encode_frame,
)
from node.network.options import TransportOptions
from node.network.payloads import (
    Goodbye,
    Hello,
    decode_goodbye,
    decode_hello,
    encode_goodbye,
    encode_hello,
)
from node.network.peers import Traffic
from node.network.send_queue import Priority, SendQueue

log = logging.getLogger(__name__)

_PING = struct.Struct(">Q")


class Turned(Exception):
    """The owner turns the connection away; without a sentence it just vanishes."""

    def __init__(self, reason: Reason | None, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Owner(Protocol):
    """What a connection asks and tells. Called on the event loop, never re-entered by a frame."""

    def identify(self, certificate: bytes, dialled: bytes | None) -> tuple[bytes, Traffic]:
        """Return the peer's key and its counters. Raises `Turned`."""
        ...

    def hello(self) -> Hello:
        """Return what this node says of itself now."""
        ...

    def greeted(self, connection: "Connection", hello: Hello) -> None:
        """The peer is authenticated and compatible. Raises `Turned`."""
        ...

    def received(self, connection: "Connection", kind: Kind, payload: bytes) -> None:
        """A frame came; not PING, PONG, HELLO or GOODBYE, which stay in here.

        Raises `InvalidFrame` for a payload that its kind does not allow."""
        ...

    def misbehaved(self, connection: "Connection", sentence: str) -> None:
        """The peer broke the protocol; the connection was closed for it."""
        ...

    def closed(self, connection: "Connection") -> None:
        """The connection carries nothing more; told once, also when it was never greeted."""
        ...

    def lost(self, connection: "Connection") -> None:
        """The socket is gone, or there never was one; told after `closed`."""
        ...


class Connection(asyncio.Protocol):
    """The protocol object above TLS of one connection."""

    def __init__(
        self, owner: Owner, options: TransportOptions, address: str, dialled: bytes | None = None
    ) -> None:
        """`dialled` is the key that must answer; None for a connection that was accepted."""
        self._loop = asyncio.get_running_loop()
        self._owner = owner
        self._options = options
        self.address = address
        self.dialled = dialled
        self.key = b""
        self.opened_at_s = 0.0
        self.round_trip_s: float | None = None
        self.last_words: Goodbye | None = None  # of the peer
        self.error = ""  # why it ended
        self.over = False
        self.greeted = False
        self.settled = asyncio.Event()  # greeted, or over
        self.ended = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._traffic = Traffic()
        self._parser = FrameParser(GREETING_KINDS)
        self._queue = SendQueue(options.queue)
        self._budget = ReceiveBudget(options.rates, self._loop.time())
        self._flush_due = False
        self._paused_at_s: float | None = None  # writing; the peer or the network is slow
        self._reading_paused = False
        self._timer: asyncio.TimerHandle | None = None  # HELLO's, then the read pause's
        self._heard_at_s = 0.0
        self._pinged_at_s = 0.0
        self._ping_number = 0
        self._ping_sent_s: float | None = None  # finer clock; uvloop's has milliseconds

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait in the queue and in the transport's own buffer."""
        transport = self._transport
        return self._queue.size + (transport.get_write_buffer_size() if transport else 0)

    # Sending.

    def send(self, frame: bytes, priority: Priority) -> bool:
        """Queue an encoded frame; all of one loop turn leave in one write. False: no room."""
        if self.over:
            return False
        before = sum(self._queue.dropped)
        queued = self._queue.push(frame, priority)
        self._traffic.frames_dropped += sum(self._queue.dropped) - before
        self._schedule_flush()
        return queued

    def _schedule_flush(self) -> None:
        if not self._flush_due and self._paused_at_s is None and self._queue:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self.over or self._paused_at_s is not None or self._transport is None:
            return
        frames = self._queue.take(self._options.burst_bytes)
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        self._traffic.frames_sent += len(frames)
        self._traffic.bytes_sent += len(data)
        self._transport.write(data)
        self._schedule_flush()

    def pause_writing(self) -> None:
        """Called by the event loop: the peer does not take what was written."""
        self._paused_at_s = self._loop.time()

    def resume_writing(self) -> None:
        """Called by the event loop: there is room again."""
        self._paused_at_s = None
        if not self.over:
            self._schedule_flush()

    # Receiving.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop when TLS is established."""
        # uvloop's transport has the methods, but not the base class.
        self._transport = transport = cast(asyncio.Transport, transport)
        if self.over:
            transport.abort()
            return
        options = self._options
        transport.set_write_buffer_limits(options.write_high_bytes, options.write_high_bytes // 4)
        with suppress(OSError):  # some systems refuse it once the peer has reset the connection
            raw = transport.get_extra_info("socket")
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        try:
            certificate = tls.getpeercert(binary_form=True) or b""
            self.key, self._traffic = self._owner.identify(certificate, self.dialled)
        except Turned as turned:
            self._turn_away(turned)
            return
        transport.write(encode_frame(Kind.HELLO, encode_hello(self._owner.hello())))
        self._timer = self._loop.call_later(options.hello_timeout_ms / 1000, self._hello_is_late)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop with the next bytes of the stream."""
        if self.over:
            return
        self._heard_at_s = self._loop.time()
        traffic, spend, over = self._traffic, self._budget.spend, False
        traffic.bytes_received += len(data)
        try:
            for kind, payload in self._parser.feed(data):
                traffic.frames_received += 1
                over |= spend(kind, len(payload))
                if kind >= Kind.STATUS:
                    self._owner.received(self, kind, payload)
                else:
                    self._control(kind, payload)
                if self.ended.is_set():
                    return
        except InvalidFrame as error:
            self.close(Reason.MALFORMED, str(error))
            self._owner.misbehaved(self, str(error))
        except Incompatible as error:
            self.close(error.reason, str(error))
        except Turned as turned:
            self._turn_away(turned)
        else:
            if over:
                self._hold_reading()

    def _control(self, kind: Kind, payload: bytes) -> None:
        match kind:
            case Kind.HELLO if not self.greeted:
                self._greet(decode_hello(payload, self._owner.hello()))
            case Kind.HELLO:
                raise InvalidFrame("a second HELLO")
            case Kind.GOODBYE:
                self.last_words = decode_goodbye(payload)
                self.abort(f"the peer said: {self.last_words.sentence}")
            case Kind.PING:
                if len(payload) != _PING.size:
                    raise InvalidFrame("PING without its number")
                self.send(encode_frame(Kind.PONG, payload), Priority.CONSENSUS)
            case Kind.PONG:
                self._measure(payload)

    def _greet(self, hello: Hello) -> None:
        self._cancel_timer()
        self.greeted = True
        self._parser.limits = PAYLOAD_BYTES_MAX
        self.opened_at_s = self._pinged_at_s = self._loop.time()
        self._owner.greeted(self, hello)
        self.settled.set()

    def _measure(self, payload: bytes) -> None:
        sent_s = self._ping_sent_s
        if sent_s is not None and payload == _PING.pack(self._ping_number):
            self._ping_sent_s = None
            sample = time.perf_counter() - sent_s
            known = self.round_trip_s
            self.round_trip_s = sample if known is None else 0.8 * known + 0.2 * sample

    def _hold_reading(self) -> None:
        """Read nothing until the peer's budget is positive again; TCP pushes back for us."""
        owed_s = self._budget.owed_s(self._loop.time())
        if not owed_s or self._timer is not None or self._transport is None:
            return
        if not self._reading_paused:
            self._reading_paused = True
            self._traffic.read_pauses += 1
            self._transport.pause_reading()
            log.debug("peer exceeds its budget peer=%s pause_ms=%d", self.address, owed_s * 1000)
        self._timer = self._loop.call_later(owed_s, self._release_reading)

    def _release_reading(self) -> None:
        self._timer = None
        if self.over or self._transport is None:
            return
        self._hold_reading()
        if self._timer is None:
            self._reading_paused = False
            self._heard_at_s = self._loop.time()
            self._transport.resume_reading()

    # Signs of life.

    def tick(self, now_s: float) -> None:
        """Ping when it is time; close when the peer is silent or reads nothing for too long."""
        options = self._options
        if self._paused_at_s is not None:
            if (now_s - self._paused_at_s) * 1000 > options.stall_max_ms:
                self.close(Reason.STALLED, f"nothing was read for {options.stall_max_ms} ms")
            return
        silent_ms = (now_s - self._heard_at_s) * 1000
        if silent_ms > options.silence_max_ms and not self._reading_paused:
            self.close(Reason.SILENT, f"nothing was heard for {options.silence_max_ms} ms")
        elif (now_s - self._pinged_at_s) * 1000 >= options.ping_interval_ms:
            self._ping_number += 1
            self._pinged_at_s, self._ping_sent_s = now_s, time.perf_counter()
            ping = encode_frame(Kind.PING, _PING.pack(self._ping_number))
            self.send(ping, Priority.CONSENSUS)

    def forgive(self, now_s: float) -> None:
        """Start all patience anew, after this process itself did not run for a while."""
        self._heard_at_s = now_s
        if self._paused_at_s is not None:
            self._paused_at_s = now_s

    def _hello_is_late(self) -> None:
        self._timer = None
        waited = self._options.hello_timeout_ms
        self.close(Reason.SILENT, f"no HELLO within {waited} ms")

    # The end.

    def close(self, reason: Reason, sentence: str) -> None:
        """Tell the peer why, then end; what still waits in the queue is dropped."""
        if self.over:
            return
        transport, blocked = self._transport, self._paused_at_s is not None
        if transport is None or blocked:
            self.abort(sentence)
            return
        self._end(sentence)
        transport.write(encode_frame(Kind.GOODBYE, encode_goodbye(reason, sentence)))
        transport.close()

    def abort(self, sentence: str) -> None:
        """End at once and without a word."""
        if self._transport is not None:
            self._transport.abort()
        self._end(sentence)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop when the socket is gone."""
        self._end(str(error) if error else "the peer closed the connection")
        self._owner.lost(self)

    def _turn_away(self, turned: Turned) -> None:
        if turned.reason is None:
            self.abort(str(turned))
        else:
            self.close(turned.reason, str(turned))

    def _end(self, sentence: str) -> None:
        if self.over:
            return
        self.over = True
        self.error = sentence
        self.ended.set()
        self.settled.set()
        self._cancel_timer()
        self._queue.clear()
        self._owner.closed(self)
        if self._transport is None:
            self._owner.lost(self)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
