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
        self._listener = None
        self._open = set()

    def start(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self):
        """Stop listening and cut all connections with a reset, as a crash does."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.cut()

    def cut(self):
        with self._changed:
            open_, self._open = self._open, set()
        for each in open_:
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                each.shutdown(socket.SHUT_RDWR)

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
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw):
        try:
            connection = self._context.wrap_socket(raw, server_side=True)
        except (OSError, ssl.SSLError):
            self._tell(refused=1)
            raw.close()
            return
        with self._changed:
            self._open.add(connection)
            keeps = self.forgets_after  # of this life: what it has buffered outlives the cut
        self._tell(connections=1)
        with connection, contextlib.suppress(OSError, EOFError):
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
