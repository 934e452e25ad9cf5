"""The RPC over TLS 1.3, as other machines must use it."""

import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from node.config.model import RpcConfig
from node.rpc.client import Client
from node.rpc.errors import ConnectionLost
from node.rpc.metrics import Metrics
from node.rpc.server import RpcServer
from tests.rpc.conftest import TOKEN, FakeService


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    now = datetime.datetime.now(datetime.UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .sign(private, hashes.SHA256())
    )
    (folder / "c.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "k.pem").write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "c.pem", folder / "k.pem"


def server(certificate, key) -> RpcServer:
    config = RpcConfig(
        token_file=Path("unused"), port=0, tls_certificate_file=certificate, tls_key_file=key
    )
    return RpcServer(FakeService(), config, TOKEN, Metrics())


async def test_a_client_that_trusts_the_certificate_is_served(certificate):
    trusting = ssl.create_default_context(cafile=certificate[0])
    async with server(*certificate) as serving:
        assert serving.url.startswith("https://127.0.0.1:")
        async with Client(serving.url, TOKEN, tls=trusting) as client:
            assert (await client.status()).institution == "north"


async def test_others_are_not(certificate):
    old = ssl.create_default_context(cafile=certificate[0])
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with server(*certificate) as serving:
        plain = serving.url.replace("https", "http")
        for url, tls in ((serving.url, None), (serving.url, old), (plain, None)):
            with pytest.raises(ConnectionLost):
                async with Client(url, TOKEN, tls=tls):
                    pass


async def test_files_that_cannot_be_used_are_named(certificate, tmp_path):
    with pytest.raises(OSError, match=r"rpc cannot use .*c\.pem with .*nothing"):
        await server(certificate[0], tmp_path / "nothing").start()
    with pytest.raises(OSError, match="rpc cannot use"):
        await server(certificate[0], certificate[0]).start()
