"""An audit repository: a real TLS server that takes octet-counted syslog (RFC 5425)."""

import contextlib
import re
import socket
import ssl
import threading
import xml.etree.ElementTree as ET
from dataclasses import dataclass

HEAD = re.compile(
    r"<(?P<priority>\d{1,3})>1 (?P<time>\S+) (?P<host>\S+) (?P<app>\S+) (?P<pid>\S+)"
    r" (?P<id>\S+) \[meta sequenceId=\"(?P<sequence>\d+)\"\] \ufeff(?P<xml>.*)",
    re.DOTALL,
)
PATIENCE_S = 30.0


@dataclass
class Message:
    """One message as it came."""

    priority: int
    id: str
    sequence: int
    xml: str

    @property
    def root(self):
        return ET.fromstring(self.xml)

    @property
    def kind(self):
        codes = self.root.findall("EventIdentification/EventTypeCode")
        return next(c.get("csd-code") for c in codes if c.get("codeSystemName") == "99RADLEDGER")


def parse(data):
    """Return a syslog message; raises what the standard would."""
    match = HEAD.fullmatch(data.decode("utf-8"))
    assert match is not None, data[:200]
    return Message(int(match["priority"]), match["id"], int(match["sequence"]), match["xml"])


class Repository:
    """Listens between `start` and `stop`; the same port again after that."""

    def __init__(self, server, client):
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(server.certificate, server.key)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self._context.load_verify_locations(client.certificate)
        self.messages = []
        self.connections = 0
        self.refused = 0
        self.forgets_after = None  # it loses what it has read past so many messages, until it stops
        self.port = 0
        self._changed = threading.Condition()
        self._listener = self._thread = self._open = None

    def start(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._thread.start()

    def stop(self):
        """Stop listening and cut the connection with a reset, as a crash does."""
        with self._changed:
            listener, self._listener = self._listener, None
        if listener is None:
            return
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        self.cut()
        self._thread.join(PATIENCE_S)

    def cut(self):
        with self._changed, contextlib.suppress(OSError):
            if self._open is not None:
                self._open.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                # Not `SSLSocket.shutdown`: the other thread would go on to read without TLS.
                socket.socket.shutdown(self._open, socket.SHUT_RDWR)

    def sequences(self):
        with self._changed:
            return [message.sequence for message in self.messages]

    def kinds(self):
        with self._changed:
            return [message.kind for message in self.messages]

    def wait(self, condition):
        """Wait until `condition()`, looked at whenever something comes."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_S)

    def _accept(self, listener):
        """Serve one connection after the other, so that messages are in the order of arrival."""
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            with self._context.wrap_socket(
                raw, server_side=True, do_handshake_on_connect=False
            ) as connection:
                with self._changed:
                    if self._listener is not listener:
                        return
                    self._open = connection
                    keeps = self.forgets_after  # of this life: what was buffered outlives the cut
                self._serve(connection, keeps)
                with self._changed:
                    self._open = None

    def _serve(self, connection, keeps):
        try:
            connection.do_handshake()
        except OSError:
            self._tell(refused=1)
            return
        self._tell(connections=1)
        with contextlib.suppress(OSError):
            self._read(connection.makefile("rb"), keeps)

    def _read(self, stream, keeps):
        while True:
            digits = b""
            while (byte := stream.read(1)) not in (b" ", b""):
                digits += byte
            if not digits:
                return
            data = stream.read(int(digits))
            if len(data) < int(digits):
                return
            with self._changed:
                if keeps is None or len(self.messages) < keeps:
                    self.messages.append(parse(data))
                self._changed.notify_all()

    def _tell(self, **more):
        with self._changed:
            for name, count in more.items():
                setattr(self, name, getattr(self, name) + count)
            self._changed.notify_all()
