"""A TLS connection to the audit repository, in blocking calls: it lives in the sender's thread.

Syslog has no acknowledgement. What can be known is whether the other side's system has taken all
bytes (its TCP acknowledged them) and whether the connection still stands.
"""

import fcntl
import select
import socket
import ssl
import struct
import termios
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CONNECT_SECONDS = 10.0
SEND_SECONDS = 10.0  # for one message: a repository that takes nothing for so long is gone
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


@dataclass(frozen=True, slots=True)
class Repository:
    """Where the repository is, and how both sides know each other."""

    host: str
    port: int
    certificate_file: Path  # ours, PEM
    key_file: Path
    trust_file: Path | None = None  # PEM of authorities: the server is known by its name
    server_certificate_file: Path | None = None  # PEM: it is known by this very certificate


def client_context(repository: Repository) -> ssl.SSLContext:
    """Return a context that shows our certificate and demands the repository's.

    TLS 1.2 or later (BCP 195, PS3.15 B.12). Raises `OSError` for files that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    trusted = repository.trust_file
    if repository.server_certificate_file is not None:
        trusted = repository.server_certificate_file
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if trusted is None:
        raise OSError("neither trust_file nor server_certificate_file is set")
    context.load_verify_locations(trusted)
    context.load_cert_chain(repository.certificate_file, repository.key_file)
    return context


class Connection:
    """An open connection. `abort` may be called from another thread; it ends every wait."""

    def __init__(self, context: ssl.SSLContext, host: str, port: int) -> None:
        """Connect. Raises `OSError`, of which `ssl.SSLError` is one."""
        raw = socket.create_connection((host, port), CONNECT_SECONDS)
        try:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE:
                raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            self._socket = context.wrap_socket(raw, server_hostname=host)
        except BaseException:
            raw.close()
            raise
        self._socket.settimeout(SEND_SECONDS)

    def send(self, data: bytes) -> None:
        """Hand data to the system. Raises `OSError` when the connection is gone."""
        self._socket.sendall(data)

    def unacknowledged(self) -> int:
        """Return how many bytes the other side's TCP has not acknowledged."""
        answer = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4))
        return int(struct.unpack("i", answer)[0])

    def require_open(self) -> None:
        """Raise `OSError` if the other side has closed or broken the connection."""
        self._socket.settimeout(0)
        try:
            if not select.select([self._socket], [], [], 0)[0] and not self._socket.pending():
                return
            # Session tickets are read here, too; a repository has nothing else to say.
            if not self._socket.recv(1_024):
                raise ConnectionResetError("the repository closed the connection")
        except ssl.SSLWantReadError:
            return
        finally:
            self._socket.settimeout(SEND_SECONDS)

    def close(self) -> None:
        """End the connection; what was sent still goes out."""
        self._socket.close()

    def abort(self) -> None:
        """End the connection at once."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
