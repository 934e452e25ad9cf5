"""How a command reaches its node, and what it trusts."""

import base64
from dataclasses import replace

import pytest
import typer
from cryptography.hazmat.primitives import serialization

from node import keys
from node.cli.arguments import read_address, read_peer
from node.cli.context import Desk
from node.cli.registrar import vault_of
from node.config import PeerAddress, RpcConfig
from node.keys import KeyFileError
from node.network.tls import make_certificate
from node.provision import node_config
from node.rpc.errors import ConnectionLost
from node.rpc.metrics import Metrics
from node.rpc.server import RpcServer
from tests.rpc.conftest import TOKEN, FakeService


def tls_files(folder, name):
    """Make a key and a self-signed certificate that names no host."""
    private = keys.generate()
    der = base64.encodebytes(make_certificate(private, name)).decode()
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    certificate.write_text(f"-----BEGIN CERTIFICATE-----\n{der}-----END CERTIFICATE-----\n")
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, key


@pytest.fixture
def desk(tmp_path):
    """A desk whose config is in no file."""
    keys.save_secret(tmp_path / "token", TOKEN.encode())
    peers = [PeerAddress(institution="south", host="h", port=1)]
    config = node_config("north", listen=("0.0.0.0", 1), peers=peers, rpc_port=1)
    key = replace(config.key, file=tmp_path / "node.key.pem", passphrase_file=tmp_path / "secret")
    rpc = RpcConfig(token_file=tmp_path / "token", port=1)
    return Desk(replace(config, key=key, rpc=rpc, data_dir=tmp_path / "var" / "data"))


def over(desk, **changes):
    return Desk(replace(desk.config, rpc=replace(desk.config.rpc, **changes)))


async def test_over_tls_the_node_must_have_the_very_certificate_of_the_config(desk, tmp_path):
    certificate, key = tls_files(tmp_path, "node")
    other, _ = tls_files(tmp_path, "other")
    serving = over(desk, port=0, tls_certificate_file=certificate, tls_key_file=key)
    async with RpcServer(FakeService(), serving.config.rpc, TOKEN, Metrics()) as server:
        own = over(desk, port=server.port, tls_certificate_file=certificate)
        async with own.client() as client:
            assert (await client.status()).institution == "north"
        stranger = over(desk, port=server.port, tls_certificate_file=other)
        with pytest.raises(ConnectionLost):
            async with stranger.client():
                pass


async def test_a_node_that_listens_everywhere_is_reached_on_loopback(desk):
    rpc = replace(desk.config.rpc, port=0)
    async with RpcServer(FakeService(), rpc, TOKEN, Metrics()) as server:
        everywhere = over(desk, port=server.port, host="0.0.0.0")
        async with everywhere.client() as client:
            assert (await client.status()).institution == "north"


def test_the_vault_lies_beside_the_database(desk, tmp_path):
    assert desk.vault_file == tmp_path / "var" / "vault.db"


def test_a_passphrase_that_is_no_text_opens_no_vault(desk, tmp_path):
    keys.save_secret(tmp_path / "secret", b"\xff\xfe\xfd not text")
    with pytest.raises(KeyFileError, match="not UTF-8"), vault_of(desk):
        pass


@pytest.mark.parametrize(
    ("text", "address"),
    [("h:1", ("h", 1)), ("[::1]:7610", ("::1", 7610)), ("a.b-c:65535", ("a.b-c", 65_535))],
)
def test_addresses_are_read(text, address):
    assert read_address(text) == address
    assert read_peer(f"south={text}") == ("south", *address)


@pytest.mark.parametrize("text", ["", "h", ":1", "h:", "h:x", "h:1٣", "h:65536", "::1:1", "h:-1"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(typer.BadParameter):
        read_address(text)
