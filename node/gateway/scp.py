"""The receiving process: C-ECHO, C-STORE and storage commitment by pynetdicom, behind the front.

It runs by itself, under limits of memory, files and file size, since it parses what others send. It
listens on nothing: the front hands it connections over a socket pair, and when that closes it ends.
A data set goes to a file as it comes and is never held in memory; the bytes that are stored are the
bytes that were sent, after a file meta information of our own (PS3.10 §7.1).

The settings come as JSON on standard input: with the certificates of many peers they are more than
a packet holds. Control messages (SOCK_SEQPACKET): for each connection the peer's address, with the
connection's descriptor. One message goes back when the process is ready.
"""

import json
import logging
import resource
import shutil
import socket
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pynetdicom
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.transport import AssociationServer, RequestHandler

from node.gateway.audit.errors import TrailUnusable
from node.gateway.audit.trail import Trail, TrailLimits
from node.gateway.closing import Rules
from node.gateway.commitments import Commitments
from node.gateway.dialing import Dialer, Peer
from node.gateway.index import SpoolError
from node.gateway.link import Borrower
from node.gateway.outcomes import Accepted, Claimed, Duplicate, Outcome, Refused
from node.gateway.quiet import log_to_stderr
from node.gateway.retrieve import QueryRetrieve
from node.gateway.spool import DISK_FULL, Quota, Spool
from node.imaging.syntax import syntax_of

log = logging.getLogger(__name__)

READY = b"ready"
SETTINGS_BYTES_MAX = 64 << 20  # of 256 peers, each with a bundle of authorities
COMMAND_BYTES_MAX = 64 * 1024
DATA_SET_BYTES_MAX = 16 << 20  # of requests other than C-STORE: a commitment of 100,000 instances
REQUESTS_MAX = 16  # that a peer has sent without waiting for an answer
UNCHECKED_BYTES_MAX = 4 << 20  # of a data set, before the disk's reserve is looked at
TIDY_SECONDS = 2.0
_STACK_BYTES = 1 << 20
_FILES_BASE, _FILES_EACH = 64, 16
_FILE_SLACK = 64 << 20  # the index and its log are files too
_SUCCESS, _OUT_OF_RESOURCES, _MISMATCH, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000
_STATUS = {"no_room": _OUT_OF_RESOURCES, "too_large": _OUT_OF_RESOURCES, "mismatch": _MISMATCH}
_COMMENT_CHARACTERS = 64  # of an LO


@dataclass(frozen=True, slots=True)
class Settings:
    """What the receiving process is told. Plain values, since they cross as JSON."""

    spool: str
    quota: dict[str, int]
    rules: dict[str, int]
    ae_title: str
    peers: list[dict[str, Any]]  # fields of `Peer`
    pdu_bytes_max: int
    associations_max: int
    idle_seconds: float
    memory_bytes_max: int
    certificate_file: str | None = None  # for connections that we open, with TLS
    key_file: str | None = None
    log_level: int = logging.INFO
    audit: str | None = None  # the folder of the audit trail
    audit_limits: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the settings as JSON."""
        return json.dumps(asdict(self)).encode()


class _Handler(RequestHandler):
    """Starts an association and remembers it, to tidy up after it."""

    server: "_Server"

    def handle(self) -> None:
        """Start the association."""
        association = self._create_association()
        association.daemon = association.dul.daemon = True
        self.server.started.append(association)
        association.start()


class _Server(AssociationServer):
    """pynetdicom's server on connections that it is handed: it binds and accepts nothing."""

    def __init__(self, ae: AE, title: str, handlers: list[Any]) -> None:
        self.started: list[Association] = []
        address = ("127.0.0.1", 0)
        super().__init__(
            ae, address, title, ae.supported_contexts, None, handlers, request_handler=_Handler
        )

    def server_bind(self) -> None:
        """Do nothing."""

    def server_activate(self) -> None:
        """Do nothing."""


class Receiver:
    """Serves associations until the front goes."""

    def __init__(
        self, settings: Settings, control: socket.socket, asking: socket.socket | None = None
    ) -> None:
        """`asking` leads to the parent's holdings; without it nothing is given out."""
        self._settings, self._control = settings, control
        quota, rules = Quota(**settings.quota), Rules(**settings.rules)
        self._trail: Trail | None = None
        if settings.audit is not None:
            self._trail = Trail(Path(settings.audit), TrailLimits(**settings.audit_limits))
        self._spool = Spool(Path(settings.spool), quota, rules, trail=self._trail)
        self._folder = Path(tempfile.mkdtemp(prefix="dimse-", dir=self._spool.incoming))
        # pynetdicom writes data sets where `tempfile` says.
        tempfile.tempdir = str(self._folder)
        self._ae = _application(settings)
        peers = {peer["ae_title"]: Peer(**peer) for peer in settings.peers}
        files = settings.certificate_file, settings.key_file
        dialer = Dialer(self._note)
        self._commitments = Commitments(self._spool, peers, settings.ae_title, *files, dialer)
        self._outward: QueryRetrieve | None = None
        if asking is not None:
            secure = self._commitments.context if settings.certificate_file else None
            self._outward = QueryRetrieve(Borrower(asking), self._ae, peers, secure, dialer)
            for sop_class in self._outward.contexts():
                self._ae.add_supported_context(sop_class)
        self._cut_off: list[Association] = []  # until they have ended
        self._discarded: set[Path] = set()  # data sets that are read and not kept
        self._server = _Server(self._ae, settings.ae_title, self._handlers())

    def run(self) -> None:
        """Serve until the control socket closes."""
        self._commitments.start()
        self._control.sendall(READY)
        self._control.settimeout(TIDY_SECONDS)
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(self._control, 1_024, 1)
            except TimeoutError:
                self._tidy()
                continue
            if not message:
                break
            self._tidy()
            self._begin(message.decode(), descriptors)
        self._commitments.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._spool.close()
        if self._trail is not None:
            self._trail.close()

    def _begin(self, peer: str, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            connection = socket.socket(fileno=descriptor)
            connection.settimeout(self._settings.idle_seconds)
            try:
                self._server.process_request(connection, (peer, 0))
            except (OSError, RuntimeError, MemoryError) as error:
                # No thread or no memory for it now; the peer sees a closed connection.
                log.error("association cannot be served error=%s", type(error).__name__)
                connection.close()

    def _handlers(self) -> list[Any]:
        return [
            (evt.EVT_REQUESTED, _prefer_known_syntaxes),
            (evt.EVT_PDU_RECV, self._hold_back),
            (evt.EVT_PDU_RECV, self._spare_the_reserve),
            (evt.EVT_C_ECHO, lambda event: _SUCCESS),
            (evt.EVT_C_STORE, self._store),
            *self._commitments.handlers(),
            *(self._outward.handlers() if self._outward is not None else ()),
        ]

    def _hold_back(self, event: evt.Event) -> None:
        """End a connection whose requests grow beyond reason before they are complete."""
        dimse = event.assoc.dimse
        message: Any = dimse.message
        too_much = dimse.msg_queue.qsize() > REQUESTS_MAX
        if message is not None:
            too_much |= message.encoded_command_set.tell() > COMMAND_BYTES_MAX
            too_much |= message._data_set_file is None and _length(message) > DATA_SET_BYTES_MAX
        outer = event.assoc.dul.socket
        connection = None if outer is None else outer.socket
        if too_much and connection is not None and event.assoc not in self._cut_off:
            connection.shutdown(socket.SHUT_RD)
            self._cut_off.append(event.assoc)
            log.warning("connection ended: too much asked at once")
            self._note("connection_ended", event.assoc.requestor.ae_title, "too_much")

    def _spare_the_reserve(self, event: evt.Event) -> None:
        """Keep no more of a data set that the disk has no room for; `_store` says so at its end."""
        message: Any = event.assoc.dimse.message
        file = None if message is None else message._data_set_file
        if file is None:
            return
        path = message._data_set_path
        if file.tell() > UNCHECKED_BYTES_MAX and self._spool.lacks_disk():
            self._discarded.add(path)
        if path in self._discarded:
            file.seek(0)
            file.truncate()

    def _store(self, event: evt.Event) -> Dataset:
        request: Any = event.request
        claimed = Claimed(str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        source = event.assoc.requestor.ae_title
        # Its last bytes may be in pynetdicom's buffer.
        request._dataset_file.close()
        path = Path(event.dataset_path)
        if path in self._discarded:
            self._forget(path)
            self._note("refused", source, "no_room")
            return _status(Refused(code="no_room", reason=DISK_FULL))
        try:
            outcome = self._spool.accept_file(source, path, claimed=claimed)
        except SpoolError as error:
            log.error("instance not taken: %s", error)
            return _answer(_OUT_OF_RESOURCES, "the spool cannot be used; try again later")
        return _status(outcome)

    def _note(self, kind: str, source: str, code: str) -> None:
        try:
            self._spool.note(kind, source, code)
        except SpoolError as error:
            log.error("an event is lost kind=%s source=%s: %s", kind, source, error)

    def _tidy(self) -> None:
        """Remove what broken associations left; pynetdicom does not."""
        ended = [a for a in self._server.started if not a.is_alive()]
        for association in ended:
            self._server.started.remove(association)
            messages = [association.dimse.message, *association.dimse.msg_queue.queue]
            for message in messages:
                path = _path_of(message)
                if path is not None:
                    self._forget(path)
            if _path_of(association.dimse.message) is not None:
                # A data set that did not come to its end: too long, or the sender went away.
                self._note("connection_ended", association.requestor.ae_title, "broken_off")
            if association in self._cut_off:
                self._cut_off.remove(association)
        if not self._server.started:
            for path in self._folder.iterdir():
                self._forget(path)

    def _forget(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._discarded.discard(path)


def main() -> None:
    """Run the receiving process.

    The control socket is the descriptor in the first argument; on the one in the second, if there
    is one, the parent is asked for what may be given out (`link.py`).
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    settings = Settings(**json.loads(sys.stdin.buffer.read(SETTINGS_BYTES_MAX)))
    log_to_stderr(settings.log_level)
    _limit(settings)
    asking = socket.socket(fileno=int(sys.argv[2])) if len(sys.argv) > 2 else None
    try:
        Receiver(settings, control, asking).run()
    except TrailUnusable as error:
        log.error("nothing can be received: %s", error)
        sys.exit(1)


def _limit(settings: Settings) -> None:
    """Bound what a hostile sender can make this process take."""
    size = settings.quota["instance_bytes_max"] + _FILE_SLACK
    files = _FILES_BASE + _FILES_EACH * settings.associations_max
    for kind, limit in (
        (resource.RLIMIT_DATA, settings.memory_bytes_max),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_NOFILE, files),  # below 1,024, where select ends
        (resource.RLIMIT_CORE, 0),  # a core would hold images
    ):
        hard = resource.getrlimit(kind)[1]
        wanted = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (wanted, wanted))
    threading.stack_size(_STACK_BYTES)


def _application(settings: Settings) -> AE:
    pynetdicom._config.STORE_RECV_CHUNKED_DATASET = True
    pynetdicom._config.UNRESTRICTED_STORAGE_SERVICE = True
    ae = AE(ae_title=settings.ae_title)
    ae.maximum_pdu_size = settings.pdu_bytes_max
    ae.maximum_associations = settings.associations_max
    ae.network_timeout = ae.dimse_timeout = settings.idle_seconds
    ae.acse_timeout = ae.connection_timeout = min(30.0, settings.idle_seconds)
    ae.require_called_aet = True
    ae.require_calling_aet = [peer["ae_title"] for peer in settings.peers]
    ae.add_supported_context("1.2.840.10008.1.1")  # Verification
    ae.add_supported_context("1.2.840.10008.1.20.1")  # Storage Commitment Push Model
    return ae


def _prefer_known_syntaxes(event: evt.Event) -> None:
    """Of the transfer syntaxes offered, take none that only the sender's maker knows."""
    request: Any = event.assoc.requestor.primitive
    for context in request.presentation_context_definition_list:
        known = [uid for uid in context.transfer_syntax if syntax_of(str(uid)) is not None]
        if known:
            context.transfer_syntax = known


def _length(message: Any) -> int:
    return 0 if message.data_set is None else int(message.data_set.tell())


def _path_of(message: Any) -> Path | None:
    """Return the file of a half received message, or of a request that was not served."""
    if isinstance(message, tuple):
        message = message[1]
    path = getattr(message, "_data_set_path", None) or getattr(message, "_dataset_path", None)
    return path if isinstance(path, Path) else None


def _status(outcome: Outcome) -> Dataset:
    """Return what a sender is told (PS3.4 B.2.3)."""
    if isinstance(outcome, Accepted | Duplicate):
        return _answer(_SUCCESS)
    return _answer(_STATUS.get(outcome.code, _CANNOT_UNDERSTAND), outcome.reason)


def _answer(status: int, comment: str = "") -> Dataset:
    answer = Dataset()
    answer.Status = status
    if comment:
        answer.ErrorComment = comment[:_COMMENT_CHARACTERS]
    return answer


if __name__ == "__main__":
    main()
