"""Registers and verifies studies: files and the vault on one side, the node's RPC on the other.

The order makes a crash harmless at every point: the vault knows a version before it is signed, and
the signed transaction before it is sent, so that registering again sends the very same bytes.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import keys
from node.imaging.reader import Progress
from node.imaging.register import Action, Options, Preparation, PreparedStudy, prepare
from node.imaging.vault import Vault
from node.imaging.verify import Report, registered_in, verify_studies
from node.ledger.block import OK
from node.ledger.errors import Refused
from node.ledger.transaction import Operation, sign_transaction
from node.rpc.client import Client
from node.rpc.service import Submitted, Wait

VALIDITY_HEIGHTS = 5_000  # how far ahead a transaction stays valid: hours under load
_MAY_SUCCEED_LATER = frozenset({"busy", "duplicate", "mempool_full", "quota_exceeded", "replayed"})


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signs for the institution."""

    private: Ed25519PrivateKey
    institution: str
    chain_id: bytes

    def transaction(self, operations: Sequence[Operation], height: int) -> tuple[bytes, bytes]:
        """Return (id, encoding) of a signed transaction, valid from `height` on for a while."""
        signed = sign_transaction(
            self.private.sign,
            keys.public_bytes(self.private),
            chain_id=self.chain_id,
            institution=self.institution,
            valid_until=height + VALIDITY_HEIGHTS,
            operations=operations,
            salt=secrets.token_bytes(16),
        )
        return signed.id, signed.raw


@dataclass(frozen=True, slots=True)
class Registration:
    """What became of one study."""

    prepared: PreparedStudy
    submitted: Submitted | None  # None when there was nothing to do, or it was refused
    refusal: str = ""  # a sentence

    @property
    def is_done(self) -> bool:
        """Whether the study is on the chain as its files are."""
        if self.prepared.action is Action.NOTHING:
            return True
        return self.submitted is not None and self.submitted.code == OK


@dataclass(frozen=True, slots=True)
class Registrations:
    """What became of everything that was given."""

    studies: tuple[Registration, ...]
    preparation: Preparation

    @property
    def is_done(self) -> bool:
        """Whether there was a study, and every one is on the chain."""
        return bool(self.studies) and all(study.is_done for study in self.studies)


async def register(
    paths: Sequence[Path],
    client: Client,
    vault: Vault,
    signer: Signer,
    *,
    wait: Wait = "final",
    options: Options = Options(),
    progress: Progress | None = None,
    on_submitted: Callable[[], None] | None = None,
) -> Registrations:
    """Read, commit to and register the studies in `paths`; call again to resume.

    Raises what `prepare` and `Client.submit` raise, except `Refused`, which is part of the answer.
    """
    preparation = await asyncio.to_thread(prepare, paths, vault, options, progress)
    studies = []
    for prepared in preparation.studies:
        studies.append(await _register_one(prepared, client, vault, signer, wait))
        if on_submitted is not None:
            on_submitted()
    return Registrations(tuple(studies), preparation)


async def _register_one(
    prepared: PreparedStudy, client: Client, vault: Vault, signer: Signer, wait: Wait
) -> Registration:
    manifest = prepared.manifest
    if manifest is None or prepared.action in (Action.NOTHING, Action.REFUSED):
        return Registration(prepared, None, prepared.refusal)
    if prepared.transaction_id is not None and prepared.transaction is not None:
        transaction_id, raw = prepared.transaction_id, prepared.transaction
    else:
        if prepared.operation is None:
            return Registration(prepared, None, "nothing to submit")
        head = await client.head()
        transaction_id, raw = signer.transaction([prepared.operation], head.height)
        await asyncio.to_thread(vault.mark_submitted, manifest, transaction_id, raw)
    try:
        submitted = await client.submit(raw, wait=wait)
    except Refused as refused:
        # One that may still be ordered elsewhere stays as it is, and is sent again next time.
        if refused.code not in _MAY_SUCCEED_LATER:
            await asyncio.to_thread(vault.mark_refused, manifest)
        return Registration(prepared, None, str(refused))
    if submitted.height is not None:
        if submitted.code == OK:
            mark = partial(vault.mark_final, manifest, transaction_id, submitted.height)
            await asyncio.to_thread(mark)
        else:
            await asyncio.to_thread(vault.mark_refused, manifest)
    refusal = "" if submitted.code in (OK, None) else f"refused by the contract: {submitted.code}"
    return Registration(prepared, submitted, refusal)


async def verify(
    paths: Sequence[Path], client: Client, vault: Vault, progress: Progress | None = None
) -> Report:
    """Compare files with what was registered: the vault's manifest and the root on the chain."""
    loop = asyncio.get_running_loop()

    def root_of(study_id: bytes) -> bytes | None:
        view = asyncio.run_coroutine_threadsafe(client.study(study_id), loop).result()
        return None if view is None else view.summary.root

    find = registered_in(vault, root_of)
    return await asyncio.to_thread(verify_studies, paths, find, progress)
