"""Associations that we open to this hospital's equipment: to deliver, to move, to report, to echo.

In clear, or by mutual TLS (PS3.15 B.12). Why one did not come about is told by a code, and reported
once until that peer can be reached again. A peer that neither reads nor answers is given up after a
while; pynetdicom alone would wait for it without end.
"""

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from node.gateway.tls import TellingSocket, handshake_sentence

EVENT = "peer_not_reached"
UNREACHABLE, NO_TLS, NOT_ACCEPTED = "unreachable", "tls", "not_accepted"
PDU_BYTES = 128 * 1024  # with TCP_NODELAY the fastest with common receivers
STALL_SECONDS = 60.0  # where the application entity has no network timeout

# Kind, source and code of what an operator or auditor should know.
Report = Callable[[str, str, str], None]


@dataclass(frozen=True, slots=True)
class Peer:
    """A DICOM application of this hospital."""

    ae_title: str
    host: str | None = None
    port: int | None = None
    trust: str | None = None  # PEM of the certificates that it may show, with TLS


class NotReached(Exception):
    """No association with a peer; `code` is one of the three above, the text says why."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Dialer:
    """Opens associations and reports peers that cannot be reached. Thread-safe."""

    def __init__(self, report: Report = lambda *_: None) -> None:
        self._report = report
        self._failing: dict[str, str] = {}  # the last code, by AE title
        self._lock = threading.Lock()

    def dial(
        self,
        ae: AE,
        peer: Peer,
        contexts: Sequence[PresentationContext],
        tls: Callable[[], ssl.SSLContext] | None = None,
        **options: Any,
    ) -> Association:
        """Return an established association with `peer`, which has host and port.

        `tls` gives what secures it; None leaves it in clear. `options` are those of `AE.associate`.
        Blocking, within the timeouts of `ae`. Raises `NotReached`.
        """
        try:
            association = _associate(ae, peer, contexts, tls, options)
        except NotReached as error:
            with self._lock:
                is_new = self._failing.get(peer.ae_title) != error.code
                self._failing[peer.ae_title] = error.code
            if is_new:
                self._report(EVENT, peer.ae_title, error.code)
            raise
        with self._lock:
            self._failing.pop(peer.ae_title, None)
        return association


def _associate(
    ae: AE,
    peer: Peer,
    contexts: Sequence[PresentationContext],
    tls: Callable[[], ssl.SSLContext] | None,
    options: dict[str, Any],
) -> Association:
    host, port = peer.host or "", peer.port or 0
    course = _Course()
    handlers = [(evt.EVT_CONN_OPEN, course.opened), *options.pop("evt_handlers", [])]
    try:
        secured = None if tls is None else _Secured(tls(), course)
        association = ae.associate(
            host,
            port,
            list(contexts),
            ae_title=peer.ae_title,
            max_pdu=PDU_BYTES,
            evt_handlers=handlers,
            tls_args=None if secured is None else (cast(ssl.SSLContext, secured), host),
            **options,
        )
    except (ssl.SSLError, ValueError) as error:  # of our own files
        raise NotReached(NO_TLS, f"our own TLS files cannot be used: {error}") from error
    except (OSError, RuntimeError) as error:  # no such host or file, no thread to be had
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise NotReached(UNREACHABLE, f"{host}: {reason}") from error
    if association.is_established:
        return association
    raise course.failure(association, f"{host}:{port}", ae.ae_title)


class _Course:
    """How far one connection came."""

    def __init__(self) -> None:
        self._is_open = False
        self._error: OSError | None = None

    def opened(self, event: evt.Event) -> None:
        """Switch Nagle's algorithm off, which holds the last part of each message back, and bound
        how long the peer may keep us from reading or writing."""
        self._is_open = True
        outer = event.assoc.dul.socket
        connection = None if outer is None else outer.socket
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(event.assoc.network_timeout or STALL_SECONDS)

    def broke(self, error: OSError) -> None:
        """Keep what TLS failed with."""
        self._error = self._error or error

    def failure(self, association: Association, place: str, own_title: str) -> NotReached:
        """Return why there is no association."""
        if self._error is not None:
            return NotReached(NO_TLS, f"{place}: {handshake_sentence(self._error)}")
        if not self._is_open:
            return NotReached(UNREACHABLE, f"{place} cannot be connected to")
        if association.is_rejected:
            return NotReached(
                NOT_ACCEPTED, f"{place} does not accept an association of {own_title}"
            )
        return NotReached(NOT_ACCEPTED, f"{place} does not answer, or ends the connection")


class _Secured:
    """Stands for an `SSLContext` with pynetdicom, which keeps to itself why TLS failed."""

    def __init__(self, context: ssl.SSLContext, course: _Course) -> None:
        self._context, self._course = context, course

    def wrap_socket(self, plain: socket.socket, **options: Any) -> ssl.SSLSocket:
        wrapped = self._context.wrap_socket(plain, **options)
        if isinstance(wrapped, TellingSocket):
            wrapped.tell = self._course.broke
        return wrapped
