"""Mutual TLS 1.3 (RFC 8446) between nodes that know each other's Ed25519 keys (RFC 8410).

Identity is the key. Each node presents one self-signed certificate made from its consensus key, and
trusts exactly the certificates of the peers it knows: no certificate authority, no host names. A
certificate is no authority either (CA:FALSE), so no peer can vouch for another. Sessions are never
resumed: every connection proves its key anew, and taking trust back holds from the next handshake.
"""

import datetime
import os
import secrets
import ssl
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from node.network.errors import CertificateRefused

CERTIFICATE_BYTES_MAX = 4096
# How long a key is good for is for the ledger to say, not for a clock: a node whose clock is wrong
# must still be able to connect. The end is RFC 5280 §4.1.2.5's "no well-defined expiration date".
_NOT_BEFORE = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


def make_certificate(private_key: Ed25519PrivateKey, name: str) -> bytes:
    """Return a self-signed X.509 certificate (DER, under 1 KiB) of this key.

    `name` is the institution's or node's, 1 to 64 characters, and public; it carries no trust. Each
    call gives another serial number, so keep the bytes: peers pin them.
    """
    public_key = private_key.public_key()
    digest = x509.SubjectKeyIdentifier.from_public_key(public_key)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            # Two nodes of one name still have different subjects, by which OpenSSL finds anchors.
            x509.NameAttribute(NameOID.SERIAL_NUMBER, digest.digest.hex()),
        ]
    )
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    both_sides = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(both_sides), critical=False)
        .add_extension(digest, critical=False)
        .sign(private_key, None)
    )
    return certificate.public_bytes(Encoding.DER)


def certificate_key(der: bytes) -> bytes:
    """Return the 32-byte Ed25519 public key that `der` is self-signed with.

    Raises `CertificateRefused` for anything else. Says nothing about trust.
    """
    if len(der) > CERTIFICATE_BYTES_MAX:
        raise CertificateRefused(f"{len(der)} bytes; at most {CERTIFICATE_BYTES_MAX}")
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        if not isinstance(key, Ed25519PublicKey):
            raise CertificateRefused("the certificate's key is not Ed25519")
        if certificate.issuer != certificate.subject:
            raise CertificateRefused("the certificate is not self-signed")
        certificate.verify_directly_issued_by(certificate)
    except InvalidSignature as error:
        raise CertificateRefused("the certificate's signature is not its own key's") from error
    except CertificateRefused:
        raise
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise CertificateRefused(f"no X.509 certificate: {type(error).__name__}") from error
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


class TrustedContexts:
    """The two `ssl` contexts of a node and the peers' certificates that they trust."""

    def __init__(
        self, private_key: Ed25519PrivateKey, certificate: bytes, trusted: Iterable[bytes] = ()
    ) -> None:
        """Raises `CertificateRefused` when a certificate, or the node's own, is not usable."""
        self.own_key = certificate_key(certificate)
        if private_key.public_key().public_bytes_raw() != self.own_key:
            raise CertificateRefused("the node's certificate is of another key than the node's")
        self._private_key = private_key
        self._certificate = certificate
        self._trusted: dict[bytes, bytes] = {certificate_key(der): der for der in trusted}
        self._build()

    def trust(self, der: bytes) -> bytes:
        """Accept this certificate from now on, in place of an earlier one of its key.

        Returns the key. Raises `CertificateRefused`.
        """
        key = certificate_key(der)
        if self._trusted.get(key, der) != der:
            del self._trusted[key]
            self._build()
        if key not in self._trusted:
            try:
                for context in (self.server, self.client):
                    context.load_verify_locations(cadata=der)
            except ssl.SSLError as error:
                raise CertificateRefused(f"OpenSSL refuses it: {error.reason}") from error
            self._trusted[key] = der
        return key

    def distrust(self, key: bytes) -> None:
        """Refuse this key in new handshakes; the caller closes the live connection.

        OpenSSL cannot take a certificate out of a store, so both contexts are made anew.
        """
        if self._trusted.pop(key, None) is not None:
            self._build()

    def _build(self) -> None:
        self.server = _context(ssl.PROTOCOL_TLS_SERVER)
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT)
        for context in (self.server, self.client):
            for der in self._trusted.values():
                context.load_verify_locations(cadata=der)
        _load_identity((self.server, self.client), self._private_key, self._certificate)


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # identity is the key, wherever it answers from
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # TLS 1.3 resumption would skip the proof of the peer's key
    return context


def _load_identity(
    contexts: Iterable[ssl.SSLContext], private_key: Ed25519PrivateKey, certificate: bytes
) -> None:
    """Hand the key to OpenSSL, which reads it from files only.

    On Linux the file is in memory alone and has no name. Elsewhere it has mode 0600 and is removed
    before anything else happens. What stands in it is encrypted under 256 random bits that exist in
    this call only, so that a crash in between leaves nothing that anybody could decrypt.
    """
    passphrase = secrets.token_hex(32)
    encryption = BestAvailableEncryption(passphrase.encode())
    key_pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    certificate_pem = ssl.DER_cert_to_PEM_cert(certificate).encode()
    with _passing_file(key_pem + certificate_pem) as path:
        for context in contexts:
            context.load_cert_chain(path, password=passphrase)


@contextmanager
def _passing_file(content: bytes) -> Iterator[str]:
    """Yield the path of a file that is gone afterwards, on Linux also if we are killed."""
    create = getattr(os, "memfd_create", None)
    if create is None:
        descriptor, path = tempfile.mkstemp(prefix="radledger-", suffix=".pem")
    else:
        descriptor = create("radledger")
        os.fchmod(descriptor, 0o600)
        path = f"/proc/self/fd/{descriptor}"
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            yield path
    finally:
        if create is None:
            os.unlink(path)
