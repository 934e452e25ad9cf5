"""What commands need of a node: its config, a client of its RPC, its keys and its vault."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from node import keys, provision
from node.config import NodeConfig, load_config
from node.daemon import passphrase_of
from node.imaging.vault import Vault, create_vault, open_vault
from node.ledger import genesis_file
from node.rpc.client import Client
from node.studies import Signer

VAULT = "vault.db"

ConfigFile = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="RADLEDGER_CONFIG", help="The node's TOML file."),
]
DEFAULT_CONFIG = Path(provision.CONFIG)


@dataclass(frozen=True, slots=True)
class Desk:
    """One institution's side of the terminal."""

    config: NodeConfig

    @staticmethod
    def open(config_file: Path) -> "Desk":
        """Read the config. Raises `ConfigError`."""
        return Desk(load_config(config_file))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Connect to the node's RPC. Raises `ConnectionLost`, `KeyFileError`."""
        rpc = self.config.rpc
        scheme = "https" if rpc.tls_certificate_file else "http"
        host = f"[{rpc.host}]" if ":" in rpc.host else rpc.host
        token = keys.load_token(rpc.token_file)
        async with Client(f"{scheme}://{host}:{rpc.port}", token) as client:
            yield client

    def signer(self) -> Signer:
        """Return who signs for this institution. Raises `KeyFileError`, `InvalidGenesis`."""
        folder = self.config.key.file.parent
        private = provision.load_member_key(folder, passphrase_of(self.config.key))
        chain_id = genesis_file.load(self.config.genesis_file).chain_id
        return Signer(private, self.config.institution, chain_id)

    @contextmanager
    def vault(self) -> Iterator[Vault]:
        """Open the institution's vault, or make it the first time. Raises `VaultError`."""
        path = self.config.key.file.parent / VAULT
        passphrase = passphrase_of(self.config.key).decode("utf-8", "surrogateescape")
        with open_vault(path, passphrase) if path.exists() else create_vault(path, passphrase) as v:
            yield v


@contextmanager
def file_progress(description: str, *, quiet: bool) -> Iterator[Progress]:
    """Show a bar on standard error while files are read."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True, disable=quiet) as bar:
        bar.add_task(description, total=None)
        yield bar
