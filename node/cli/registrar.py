"""What registering and verifying needs besides the node: who signs, the vault, and the files."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from node import provision
from node.cli.context import Desk
from node.cli.failures import USAGE, Failure
from node.imaging.reader import Mapper, list_files
from node.imaging.vault import Vault, create_vault, open_vault
from node.keys import KeyFileError
from node.studies import Signer

FILES_PER_TASK = 16
FILES_PER_PROCESS = 200  # fewer are read sooner than a process starts


@asynccontextmanager
async def opened(desk: Desk) -> AsyncIterator[tuple[Vault, Signer]]:
    """Open the institution's vault, made the first time, and the key that signs.

    The passphrase is asked for once. Raises `KeyFileError`, `InvalidGenesis`, `VaultError`.
    """
    passphrase = provision.passphrase_of(desk.config.key)
    vault, signer = await asyncio.gather(
        asyncio.to_thread(_vault, desk.vault_file, passphrase),
        asyncio.to_thread(_signer, desk, passphrase),
    )
    with vault:
        yield vault, signer


@contextmanager
def vault_of(desk: Desk) -> Iterator[Vault]:
    """Open the institution's vault alone, as for verifying."""
    with _vault(desk.vault_file, provision.passphrase_of(desk.config.key)) as vault:
        yield vault


def count_files(paths: Sequence[Path]) -> int:
    """Return how many files there are at and below `paths`. Raises `Failure`."""
    try:
        return len(list_files(paths))
    except ValueError as error:
        raise Failure(USAGE, str(error)) from error


@contextmanager
def readers(jobs: int, files: int) -> Iterator[Mapper]:
    """Yield what reads files: here, or in up to `jobs` processes when there are many of them."""
    processes = min(jobs, os.cpu_count() or 1, files // FILES_PER_PROCESS)
    if processes < 2:
        yield map
        return
    # Not forked: there are threads here, and a fork copies their locks.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            yield partial(pool.map, chunksize=FILES_PER_TASK)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _vault(path: Path, passphrase: bytes) -> Vault:
    try:
        text = passphrase.decode()
    except UnicodeDecodeError as error:
        raise KeyFileError("the passphrase is not UTF-8 text, which the vault needs") from error
    return open_vault(path, text) if path.exists() else create_vault(path, text)


def _signer(desk: Desk, passphrase: bytes) -> Signer:
    private = provision.load_member_key(desk.folder, passphrase)
    return Signer(private, desk.config.institution, desk.genesis().chain_id)
