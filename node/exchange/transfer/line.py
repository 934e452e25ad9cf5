"""One connection over which a thread fetches chunks, from the socket into the chunk's own buffer.

Deciphering and hashing are most of the work of a transfer, and both let other threads run. So each
chunk stays with one thread from its first byte to its last, and nothing of it is copied or handed
on: on two processors that moves a quarter more than an event loop with threads that hash. HTTP is
the standard library's, TLS is OpenSSL on the socket itself.
"""

import hashlib
import http.client
import math
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from socket import IPPROTO_TCP, SHUT_RDWR, TCP_NODELAY, create_connection, socket
from typing import NamedTuple

from node.exchange.transfer.limits import ClientLimits, SharedPace
from node.exchange.transfer.ports import Chunk

_PIECE_BYTES = 256 * 1024  # between two looks at the pace; what a reset connection loses at most
REFUSAL_BYTES_MAX = 4_096
_GOOD = frozenset({200, 206})


class Refused(NamedTuple):
    """An answer without a chunk."""

    status: int
    retry_after: str
    body: bytes  # bounded


class WrongSize(Exception):
    """What is sent cannot be what was asked for."""


class Partial:
    """What has arrived of a chunk, perhaps from several holders one after another.

    It lies in a buffer that its owner uses again and again: fresh memory for every chunk costs more
    than the bytes that are written to it.
    """

    def __init__(self, chunk: Chunk, buffer: memoryview) -> None:
        """`buffer` has room for the chunk."""
        self._buffer = buffer
        self.begin(chunk)

    @property
    def room(self) -> memoryview:
        """Where the bytes that are missing go."""
        return self.data[self.filled :]

    def add(self, count: int, source: str) -> None:
        """Note that so many bytes were put at the beginning of the room."""
        self._running.update(self.data[self.filled : self.filled + count])
        self.filled += count
        self.sources.add(source)

    @property
    def found(self) -> bytes:
        """Return SHA-256 of what has arrived."""
        return self._running.digest()

    def restart(self) -> None:
        """Forget what has arrived."""
        self.begin(self.chunk)

    def begin(self, chunk: Chunk) -> None:
        """Go over to another chunk, for which the buffer has room."""
        self.chunk = chunk
        self.data = self._buffer[: chunk.size]
        self.filled = 0
        self.sources: set[str] = set()
        self._running = hashlib.sha256()


class Line:
    """A connection to one holder; made when it is first needed, and anew after a failure.

    `fetch` is for one thread at a time, `cut` for any. What fails raises `OSError` (also of TLS) or
    `http.client.HTTPException`.
    """

    def __init__(
        self, host: str, port: int, context: Callable[[], ssl.SSLContext], limits: ClientLimits
    ) -> None:
        self._host, self._port, self._context, self._limits = host, port, context, limits
        self._http: http.client.HTTPConnection | None = None
        self._lock = threading.Lock()
        self._socket: socket | None = None
        self._is_cut = threading.Event()
        self.deadline_s = math.inf  # of time.monotonic, for whoever watches; when it is cut

    def fetch(self, target: str, partial: Partial, source: str, pace: SharedPace) -> Refused | None:
        """Fetch what is missing of a chunk; what came before a failure stays in `partial`.

        Raises `WrongSize` besides the above. What fails closes the connection.
        """
        try:
            response = self._ask(target, partial.filled)
            if response.status not in _GOOD:
                refused = Refused(
                    response.status,
                    response.getheader("Retry-After", ""),
                    response.read(REFUSAL_BYTES_MAX),
                )
                self.close()
                return refused
            _receive(response, partial, source, pace, self._is_cut.wait)
            if response.will_close:
                self.close()
            return None
        except BaseException as error:
            self.close()
            # Of numbers that are none, in what a stranger sent; OpenSSL's are both.
            if isinstance(error, ValueError) and not isinstance(error, OSError):
                raise http.client.HTTPException(str(error)) from error
            raise

    @property
    def is_cut(self) -> bool:
        """Whether it is of no use any more."""
        return self._is_cut.is_set()

    def cut(self) -> None:
        """End what another thread is doing with this connection, which fails there; for good."""
        self._is_cut.set()
        with self._lock:
            if self._socket is not None:
                # Not the TLS socket's own method, which takes the session from under the thread.
                with suppress(OSError):
                    socket.shutdown(self._socket, SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        if self._http is not None:
            self._http.close()
            self._http = None
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = None

    def _ask(self, target: str, start: int) -> http.client.HTTPResponse:
        headers = {"Range": f"bytes={start}-"} if start else {}
        is_used = self._http is not None
        try:
            return self._request(target, headers)
        except (http.client.RemoteDisconnected, ConnectionError):
            # A holder may close a connection that was idle; that is no failure of it.
            if not is_used or self.is_cut:
                raise
            self.close()
            return self._request(target, headers)

    def _request(self, target: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        if self._http is None:
            self._http = self._connect()
        self._http.request("GET", target, headers=headers)
        return self._http.getresponse()

    def _connect(self) -> http.client.HTTPConnection:
        connect_s = self._limits.connect_timeout_ms / 1000
        plain = self._keep(create_connection((self._host, self._port), connect_s))
        plain.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)  # else a request waits for an acknowledgement
        secure = self._context().wrap_socket(
            plain, server_hostname=self._host, do_handshake_on_connect=False
        )
        self._keep(secure)
        secure.do_handshake()
        secure.settimeout(self._limits.stall_timeout_ms / 1000)
        connection = http.client.HTTPConnection(self._host, self._port)
        connection.sock = secure
        return connection

    def _keep(self, made: socket) -> socket:
        with self._lock:
            self._socket = made
        if self.is_cut:
            raise ConnectionAbortedError("cut")
        return made


def _receive(
    response: http.client.HTTPResponse,
    partial: Partial,
    source: str,
    pace: SharedPace,
    pause: Callable[[float], bool],
) -> None:
    """Read a chunk's bytes; `pause` waits so many seconds, and returns whether to stop."""
    start = partial.filled
    if response.status == 200:
        partial.restart()
    elif not response.getheader("Content-Range", "").startswith(f"bytes {start}-"):
        raise WrongSize("it sent another range than was asked for")
    if response.length not in (None, len(partial.room)):
        raise WrongSize("the size of what it holds is another")
    while room := partial.room:
        count = response.readinto(room[:_PIECE_BYTES])
        if not count:
            if response.length:
                raise http.client.IncompleteRead(b"")
            raise WrongSize("it sent less than the chunk has")
        partial.add(count, source)
        pause_s = pace.pause_s(count)
        if pause_s > 0 and pause(pause_s):
            raise ConnectionAbortedError("cut")
    if response.read(1):
        raise WrongSize("it sent more than the chunk has")
