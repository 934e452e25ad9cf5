"""Who signs what a command does, and what became of it.

A command is signed by the institution's own key, which administers and is the gateway, or with
`--key FILE` by another member: a clinician, a data protection officer, a patient. The passphrase of
such a key is in `FILE.passphrase`, or in the environment, or is asked for at the terminal.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import keys, provision
from node.cli.advice import lines_about
from node.cli.context import Desk
from node.cli.failures import WRONG, Failure
from node.cli.passphrases import beside
from node.ledger.block import OK
from node.ledger.transaction import Operation, sign_transaction
from node.rpc.client import Client
from node.rpc.service import Submitted

VALIDITY_HEIGHTS = 1_000  # a person waits for the answer
PASSPHRASE_VARIABLE = "RADLEDGER_KEY_PASSPHRASE"  # noqa: S105 - a variable's name

KeyFile = Annotated[
    Path | None,
    typer.Option("--key", "-k", help="Sign with this member's key, not with the institution's."),
]


@dataclass(frozen=True, slots=True)
class Actor:
    """A member at the terminal, connected to the institution's node."""

    desk: Desk
    client: Client
    private: Ed25519PrivateKey
    chain_id: bytes  # 32 bytes

    @property
    def institution(self) -> str:
        """The institution for which the member signs."""
        return self.desk.config.institution

    async def submit(self, name: str, arguments: tuple[Any, ...]) -> Submitted:
        """Sign one operation, hand it in, and return once it is final.

        Raises `Failure` with what to do when a contract refuses it, and what `Client.submit` does.
        """
        return await self.submit_all([Operation(name, arguments)])

    async def submit_all(self, operations: Sequence[Operation]) -> Submitted:
        """Do the same with several operations in one transaction: all or none take place."""
        head = await self.client.head()
        signed = sign_transaction(
            self.private.sign,
            keys.public_bytes(self.private),
            chain_id=self.chain_id,
            institution=self.institution,
            valid_until=head.height + VALIDITY_HEIGHTS,
            operations=operations,
        )
        submitted = await self.client.submit(signed)
        require_ok(submitted)
        return submitted


@dataclass(frozen=True, slots=True)
class Call:
    """What all commands that sign have in common."""

    config_file: Path
    key_file: Path | None  # None: the institution's own
    as_json: bool

    @asynccontextmanager
    async def actor(self) -> AsyncIterator[Actor]:
        """Open the key that signs, then connect. Raises `KeyFileError` and what `Desk` raises."""
        desk = Desk.open(self.config_file)
        private = await asyncio.to_thread(open_key, desk, self.key_file)
        chain_id = desk.genesis().chain_id
        async with desk.client() as client:
            yield Actor(desk, client, private, chain_id)


def open_key(desk: Desk, key_file: Path | None) -> Ed25519PrivateKey:
    """Return the institution's key, or the one in `key_file`. Raises `KeyFileError`."""
    if key_file is None:
        return provision.load_member_key(desk.folder, provision.passphrase_of(desk.config.key))
    return keys.load(key_file, keys.read_passphrase(passphrase_source(key_file)))


def passphrase_source(key_file: Path) -> keys.PassphraseSource:
    """Return where the passphrase of a member's key is."""
    if beside(key_file).exists():
        return keys.PassphraseFile(beside(key_file))
    if PASSPHRASE_VARIABLE in os.environ:
        return keys.PassphraseEnvironment(PASSPHRASE_VARIABLE)
    return keys.PassphrasePrompt(f"Passphrase of {key_file}: ")


def require_ok(submitted: Submitted) -> None:
    """Raise `Failure` when a contract refused the transaction."""
    code = submitted.code
    if code not in (OK, None):
        told = lines_about(code, meaning_of_code(code), submitted.rule)
        where = f"transaction {submitted.id.hex()} at height {submitted.height}"
        raise Failure(WRONG, *told, where, code=code)


def new_id() -> bytes:
    """Return a new random id, 16 bytes."""
    return secrets.token_bytes(16)


def meaning_of_code(code: str) -> str:
    """Return what the code of a failed receipt means, in a sentence."""
    # The sentences of all contracts load all contracts; a command that goes well needs none.
    sentence: str = import_module("node.cli.codes").meaning_of_code(code)
    return sentence
