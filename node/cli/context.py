"""How commands find a node: its config, and a client of its RPC."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from node import keys
from node.cli.failures import USAGE, Failure
from node.config import NodeConfig, RpcConfig, load_config
from node.ledger import genesis_file
from node.ledger.genesis import Genesis
from node.rpc.client import Client

VAULT = "vault.db"
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not listened on


@dataclass(frozen=True, slots=True)
class Desk:
    """One institution's side of the terminal."""

    config: NodeConfig

    @staticmethod
    def open(config_file: Path) -> "Desk":
        """Read the config. Raises `ConfigError`."""
        return Desk(load_config(config_file))

    @property
    def folder(self) -> Path:
        """Where the institution's keys are."""
        return self.config.key.file.parent

    @property
    def vault_file(self) -> Path:
        """Where the institution's vault is: it grows, so it lies beside the database."""
        return self.config.data_dir.parent / VAULT

    def genesis(self) -> Genesis:
        """Return the consortium's genesis. Raises `InvalidGenesis`."""
        return genesis_file.load(self.config.genesis_file)

    @asynccontextmanager
    async def client(self, in_flight_max: int = 1_024) -> AsyncIterator[Client]:
        """Connect to the node's RPC. Raises `ConnectionLost`, `NotAuthorized`, `KeyFileError`."""
        rpc = self.config.rpc
        token = keys.load_token(rpc.token_file)
        tls = _trust(rpc)
        async with Client(_url(rpc), token, in_flight_max=in_flight_max, tls=tls) as client:
            yield client


def _url(rpc: RpcConfig) -> str:
    if rpc.port == 0:
        raise Failure(USAGE, "rpc.port is 0 in the config: set a port, so that commands find it")
    scheme = "https" if rpc.tls_certificate_file else "http"
    host = _EVERY_ADDRESS.get(rpc.host, rpc.host)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{rpc.port}"


def _trust(rpc: RpcConfig) -> ssl.SSLContext | None:
    """Return a context that accepts the node's very certificate and no other."""
    if rpc.tls_certificate_file is None:
        return None
    try:
        context = ssl.create_default_context(cafile=rpc.tls_certificate_file)
    except (OSError, ssl.SSLError) as error:
        raise Failure(USAGE, f"{rpc.tls_certificate_file}: {error.strerror or error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # It is pinned and on this machine; the name by which others call it does not matter here.
    context.check_hostname = False
    return context
