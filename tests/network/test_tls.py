"""Certificates, contexts, and the key's way into OpenSSL."""

import datetime
import os
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from node.network import tls
from node.network.errors import CertificateRefused
from node.network.tls import TrustedContexts, certificate_key, make_certificate
from tests.network.harness import make_identities

# RFC 8032 §7.1, test 1.
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
KEY = Ed25519PrivateKey.from_private_bytes(SECRET)
CERTIFICATE = make_certificate(KEY, "alpha")


def handshake(client: ssl.SSLContext, server: ssl.SSLContext):
    """Both ends after a handshake in memory, and after the client read what the server sent."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_side=False),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    open_ends = list(ends)
    for _ in range(6):
        for end in list(open_ends):
            try:
                end.do_handshake()
                open_ends.remove(end)
            except ssl.SSLWantReadError:
                pass
    assert not open_ends
    ends[1].write(b"hello")
    assert ends[0].read() == b"hello"
    return ends


def test_a_certificate_names_its_key():
    assert certificate_key(CERTIFICATE) == PUBLIC
    assert len(CERTIFICATE) < 1024


def test_each_certificate_has_a_serial_number_of_its_own_and_outlives_every_clock():
    other = x509.load_der_x509_certificate(make_certificate(KEY, "alpha"))
    certificate = x509.load_der_x509_certificate(CERTIFICATE)
    assert other.serial_number != certificate.serial_number
    assert certificate.not_valid_before_utc.year == 2020
    assert certificate.not_valid_after_utc.year == 9999


def test_a_certificate_is_no_authority():
    certificate = x509.load_der_x509_certificate(CERTIFICATE)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert constraints.critical
    assert not constraints.value.ca
    assert not usage.value.key_cert_sign


def test_a_known_peer_cannot_vouch_for_another_key():
    known, other, server = make_identities("known", "other", "server")
    name = x509.load_der_x509_certificate(known.certificate).subject
    issued = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "other")]))
        .issuer_name(name)
        .public_key(other.private_key.public_key())
        .serial_number(7)
        .not_valid_before(datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2999, 1, 1, tzinfo=datetime.UTC))
        .sign(known.private_key, None)
        .public_bytes(Encoding.DER)
    )
    with pytest.raises(CertificateRefused, match="not self-signed"):
        certificate_key(issued)
    context = tls._context(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=server.certificate)
    tls._load_identity([context], other.private_key, issued)
    trusting = TrustedContexts(server.private_key, server.certificate, [known.certificate])
    with pytest.raises(ssl.SSLError):
        handshake(context, trusting.server)


@given(st.data())
def test_a_certificate_with_any_bit_changed_is_refused(data):
    mutated = bytearray(CERTIFICATE)
    position = data.draw(st.integers(0, len(mutated) - 1))
    mutated[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CertificateRefused):
        certificate_key(bytes(mutated))


@given(st.binary(max_size=600))
def test_rubbish_is_no_certificate(rubbish):
    with pytest.raises(CertificateRefused):
        certificate_key(rubbish)


def test_truncated_oversized_and_foreign_certificates_are_refused():
    for length in range(0, len(CERTIFICATE), 7):
        with pytest.raises(CertificateRefused):
            certificate_key(CERTIFICATE[:length])
    for extra in (b"\x00", bytes(5000)):
        with pytest.raises(CertificateRefused):
            certificate_key(CERTIFICATE + extra)
    other = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "alpha")])
    foreign = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(other.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2999, 1, 1, tzinfo=datetime.UTC))
        .sign(other, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    with pytest.raises(CertificateRefused, match="not Ed25519"):
        certificate_key(foreign)


def test_another_keys_certificate_is_not_usable():
    alpha, beta = make_identities("alpha", "beta")
    with pytest.raises(CertificateRefused, match="another key"):
        TrustedContexts(alpha.private_key, beta.certificate)


@pytest.mark.parametrize("flags", [0, ssl.VERIFY_X509_STRICT])
def test_both_ends_see_the_others_key_over_tls_1_3(flags):
    alpha, beta = make_identities("alpha", "beta")
    client = TrustedContexts(alpha.private_key, alpha.certificate, [beta.certificate]).client
    server = TrustedContexts(beta.private_key, beta.certificate, [alpha.certificate]).server
    for context in (client, server):
        context.verify_flags |= flags
        assert context.verify_mode is ssl.CERT_REQUIRED
    near, far = handshake(client, server)
    assert near.version() == "TLSv1.3"
    assert certificate_key(near.getpeercert(binary_form=True)) == beta.key
    assert certificate_key(far.getpeercert(binary_form=True)) == alpha.key


def test_no_session_can_be_resumed():
    alpha, beta = make_identities("alpha", "beta")
    client = TrustedContexts(alpha.private_key, alpha.certificate, [beta.certificate]).client
    server = TrustedContexts(beta.private_key, beta.certificate, [alpha.certificate]).server
    near, _ = handshake(client, server)
    assert near.session is None or not near.session.has_ticket
    assert server.num_tickets == 0


def test_trust_is_given_at_runtime_and_taken_back_for_new_handshakes():
    alpha, beta = make_identities("alpha", "beta")
    client = TrustedContexts(alpha.private_key, alpha.certificate, [beta.certificate])
    server = TrustedContexts(beta.private_key, beta.certificate)
    with pytest.raises(ssl.SSLError):
        handshake(client.client, server.server)
    assert server.trust(alpha.certificate) == alpha.key
    handshake(client.client, server.server)
    server.distrust(alpha.key)
    with pytest.raises(ssl.SSLError):
        handshake(client.client, server.server)


def test_a_newer_certificate_of_a_key_replaces_the_older():
    alpha, beta = make_identities("alpha", "beta")
    newer = make_certificate(alpha.private_key, "alpha")
    server = TrustedContexts(beta.private_key, beta.certificate, [alpha.certificate])
    server.trust(newer)
    old = TrustedContexts(alpha.private_key, alpha.certificate, [beta.certificate]).client
    new = TrustedContexts(alpha.private_key, newer, [beta.certificate]).client
    handshake(new, server.server)
    with pytest.raises(ssl.SSLError):
        handshake(old, server.server)


def test_two_peers_of_one_name_are_told_apart():
    first, second, server = make_identities("same", "same", "server")
    trusting = TrustedContexts(
        server.private_key, server.certificate, [first.certificate, second.certificate]
    )
    for peer in (first, second):
        client = TrustedContexts(peer.private_key, peer.certificate, [server.certificate]).client
        _, far = handshake(client, trusting.server)
        assert certificate_key(far.getpeercert(binary_form=True)) == peer.key


def test_the_key_touches_the_disk_encrypted_private_and_briefly():
    seen = {}

    class Context:
        def load_cert_chain(self, path, password):
            seen["path"], seen["text"] = path, Path(path).read_text()
            seen["mode"] = stat.S_IMODE(os.stat(path).st_mode)
            seen["password"] = password
            raise ssl.SSLError("and OpenSSL fails")

    with pytest.raises(ssl.SSLError, match="and OpenSSL fails"):
        tls._load_identity([Context()], KEY, CERTIFICATE)
    assert "BEGIN ENCRYPTED PRIVATE KEY" in seen["text"]
    assert "BEGIN PRIVATE KEY" not in seen["text"]
    assert seen["mode"] == 0o600
    assert len(seen["password"]) == 64
    assert not Path(seen["path"]).exists()
