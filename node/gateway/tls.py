"""TLS with this hospital's equipment (PS3.15 B.12, BCP 195): certificates on both sides."""

import ssl
from collections.abc import Callable
from pathlib import Path


class TellingSocket(ssl.SSLSocket):
    """Tells why a handshake failed.

    With TLS 1.3 the peer's refusal of our certificate comes only with the first bytes that we read.
    """

    tell: Callable[[OSError], None] = staticmethod(lambda error: None)

    def do_handshake(self, block: bool = False) -> None:
        """See `ssl.SSLSocket`."""
        try:
            super().do_handshake(block)
        except OSError as error:
            self.tell(error)
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """See `ssl.SSLSocket`."""
        try:
            return super().recv(buflen, flags)
        except ssl.SSLError as error:
            self.tell(error)
            raise


def server_context(certificate_file: Path, key_file: Path, trust: str) -> ssl.SSLContext:
    """Return a context that demands a certificate: TLS 1.2 or later (PS3.15 B.12, BCP 195).

    `trust` is PEM text: authorities, and peers' very certificates. Raises `OSError`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a certificate may be its own anchor
    context.load_cert_chain(certificate_file, key_file)
    context.load_verify_locations(cadata=trust)
    return context


def client_context(
    trust: str, certificate_file: Path | None, key_file: Path | None
) -> ssl.SSLContext:
    """Return a context for connections that we open to whom `trust` (PEM text) knows.

    Devices are known by their certificates, not by names. Raises `OSError`, `ValueError`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = TellingSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=trust)
    if certificate_file is not None:
        context.load_cert_chain(certificate_file, key_file)
    return context


def handshake_sentence(error: OSError) -> str:
    """Say why a connection that we opened came to no TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: its certificate is not trusted here ({error.verify_message})"
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        return f"TLS: it does not take our certificate ({error.reason})"
    if isinstance(error, ssl.SSLError):
        return f"TLS fails ({error.reason})"
    return "it does not answer in TLS"
