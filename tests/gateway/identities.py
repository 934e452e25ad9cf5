"""Certificates of devices, each its own authority, as hospitals have them."""

import datetime
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from node.gateway.tls import client_context, server_context


class Identity:
    """A certificate and key in files, and what a TLS client needs of them."""

    def __init__(self, folder, name):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .sign(key, hashes.SHA256())
        )
        self.certificate, self.key = folder / f"{name}.crt", folder / f"{name}.key"
        pem = serialization.Encoding.PEM
        self.certificate.write_bytes(certificate.public_bytes(pem))
        plain = serialization.NoEncryption()
        private = serialization.PrivateFormat.PKCS8
        self.key.write_bytes(key.private_bytes(pem, private, plain))
        self.digest = certificate.fingerprint(hashes.SHA256())

    @property
    def files(self):
        return self.certificate, self.key

    @property
    def pem(self):
        return self.certificate.read_text()

    def serving(self, *trusted):
        """Return the context of a server that lets only `trusted` in."""
        return server_context(*self.files, "".join(each.pem for each in trusted))

    def calling(self, server):
        """Return the context by which the gateway calls `server`."""
        return client_context(server.pem, *self.files)

    def client(self, server):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(server.certificate)
        context.load_cert_chain(self.certificate, self.key)
        return context
