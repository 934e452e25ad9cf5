"""Registers and verifies studies: files and the vault on one side, the node's RPC on the other.

The order makes a crash harmless at every point: the vault knows a version before it is signed, and
the signed transaction before it is sent, so that registering again sends the very same bytes. What
counts in the end is the root on the chain, by whichever transaction it came there.
"""

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import keys
from node.imaging.manifest import Manifest
from node.imaging.reader import Mapper, Progress, Step
from node.imaging.register import Action, Options, Preparation, PreparedStudy, prepare
from node.imaging.vault import Vault
from node.imaging.verify import Report, registered_in, verify_studies
from node.ledger.block import OK
from node.ledger.errors import Refused
from node.ledger.transaction import Operation, sign_transaction
from node.rpc.client import Client
from node.rpc.service import Submitted, Wait

VALIDITY_HEIGHTS = 5_000  # how far ahead a transaction stays valid: hours under load
IN_FLIGHT_MAX = 32  # studies that are signed, sent and waited for at once
ROUNDS_MAX = 3  # of preparing again after what an earlier call had left behind is settled
# Codes of refusals after which the very same transaction may still take place.
MAY_SUCCEED_LATER = frozenset({"busy", "duplicate", "mempool_full", "quota_exceeded", "replayed"})

_Answer = TypeVar("_Answer")


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
    submitted: Submitted | None = None  # None when nothing was submitted, or it was refused
    refusal: str = ""  # a sentence
    is_pending: bool = False  # on its way, and not known to be final; register again to find out
    waited_ms: float = 0.0  # from sending it until the answer

    @property
    def is_done(self) -> bool:
        """Whether the study is on the chain as its files are, or as far as was waited for."""
        if self.prepared.action is Action.NOTHING:
            return True
        return self.submitted is not None and self.submitted.code in (OK, None)


@dataclass(frozen=True, slots=True)
class Registrations:
    """What became of everything that was given."""

    studies: tuple[Registration, ...]
    preparation: Preparation  # the last one

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
    options: Options = Options(),  # noqa: B008 - frozen
    progress: Progress | None = None,
    on_settled: Callable[[int], None] | None = None,
    mapper: Mapper = map,
) -> Registrations:
    """Read, commit to and register the studies in `paths`; call again to resume.

    What an earlier call left on its way is settled first, then files are looked at anew.
    `on_settled` is told how many studies still wait for their answer. Raises what `prepare` and
    `Client.submit` raise, except `Refused` and `TimeoutError`, which are part of the answer.
    """
    studies: dict[bytes, Registration] = {}
    refused: list[Registration] = []
    for _ in range(ROUNDS_MAX):
        preparation = await _in_thread(
            lambda step: prepare(paths, vault, options, step, mapper), progress
        )
        turns = asyncio.Semaphore(IN_FLIGHT_MAX)
        session = _Session(client, vault, signer, wait, turns, on_settled)
        results = await session.run(preparation.studies)
        refused = [result for result in results if result.prepared.manifest is None]
        for result in results:
            if result.prepared.manifest is not None:
                study_id = result.prepared.manifest.study_id
                studies[study_id] = _merged(studies.get(study_id), result)
        if not any(_is_settled_leftover(result) for result in results):
            break
    return Registrations((*studies.values(), *refused), preparation)


async def verify(
    paths: Sequence[Path],
    client: Client,
    vault: Vault,
    progress: Progress | None = None,
    mapper: Mapper = map,
) -> Report:
    """Compare files with what was registered: the vault's manifest and the root on the chain."""
    loop = asyncio.get_running_loop()

    def root_of(study_id: bytes) -> bytes | None:
        view = asyncio.run_coroutine_threadsafe(client.study(study_id), loop).result()
        return None if view is None else view.summary.root

    find = registered_in(vault, root_of)
    return await _in_thread(lambda step: verify_studies(paths, find, step, mapper), progress)


@dataclass(frozen=True, slots=True)
class _Session:
    """One round of submissions."""

    client: Client
    vault: Vault
    signer: Signer
    wait: Wait
    turns: asyncio.Semaphore
    on_settled: Callable[[int], None] | None

    async def run(self, studies: Iterable[PreparedStudy]) -> list[Registration]:
        """Submit all, several at a time; one that fails unexpectedly ends the others."""
        tasks = [asyncio.create_task(self._take_turn(study)) for study in studies]
        for task in tasks:
            task.add_done_callback(lambda _: self._tell(sum(not t.done() for t in tasks)))
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _tell(self, waiting: int) -> None:
        if self.on_settled is not None:
            self.on_settled(waiting)

    async def _take_turn(self, prepared: PreparedStudy) -> Registration:
        async with self.turns:
            return await self._register(prepared)

    async def _register(self, prepared: PreparedStudy) -> Registration:
        manifest = prepared.manifest
        if manifest is None or prepared.action in (Action.NOTHING, Action.REFUSED):
            return Registration(prepared, refusal=prepared.refusal)
        transaction_id, raw = await self._signed(prepared, manifest)
        sent = time.monotonic()
        try:
            submitted = await self.client.submit(raw, wait=self.wait)
            waited_ms = (time.monotonic() - sent) * 1_000
        except TimeoutError:
            refusal = "not final in time; register again to find out"
            return Registration(prepared, refusal=refusal, is_pending=True)
        except Refused as refused:
            found = await self._on_chain(manifest, transaction_id)
            if found is not None:
                return Registration(prepared, found)
            if refused.code in MAY_SUCCEED_LATER:  # it stays as it is, and is sent again next time
                return Registration(prepared, refusal=str(refused), is_pending=True)
            await asyncio.to_thread(self.vault.mark_refused, manifest)
            return Registration(prepared, refusal=str(refused))
        if submitted.height is None:
            return Registration(prepared, submitted, waited_ms=waited_ms)
        if submitted.code != OK:
            return await self._rejected(prepared, manifest, submitted)
        mark = partial(self.vault.mark_final, manifest, transaction_id, submitted.height)
        await asyncio.to_thread(mark)
        return Registration(prepared, submitted, waited_ms=waited_ms)

    async def _signed(self, prepared: PreparedStudy, manifest: Manifest) -> tuple[bytes, bytes]:
        """Return id and bytes of the transaction to send, which the vault knows by then."""
        if prepared.transaction_id is not None and prepared.transaction is not None:
            return prepared.transaction_id, prepared.transaction
        if prepared.operation is None:
            raise ValueError(f"nothing to submit for {prepared.action.value}")
        head = await self.client.head()
        transaction_id, raw = self.signer.transaction([prepared.operation], head.height)
        await asyncio.to_thread(self.vault.mark_submitted, manifest, transaction_id, raw)
        return transaction_id, raw

    async def _rejected(
        self, prepared: PreparedStudy, manifest: Manifest, submitted: Submitted
    ) -> Registration:
        found = await self._on_chain(manifest, submitted.id)
        if found is not None:
            return Registration(prepared, found)
        await asyncio.to_thread(self.vault.mark_refused, manifest)
        refusal = f"refused by the contract: {submitted.code}"
        return Registration(prepared, submitted, refusal)

    async def _on_chain(self, manifest: Manifest, transaction_id: bytes) -> Submitted | None:
        """Return where the version's root is on the chain, if an earlier transaction put it there.

        After its validity a transaction's id is forgotten, so a refusal alone does not tell.
        """
        view = await self.client.study(manifest.study_id)
        for version in view.versions if view is not None else ():
            if version.root == manifest.root:
                mark = partial(self.vault.mark_final, manifest, transaction_id, version.height)
                await asyncio.to_thread(mark)
                return Submitted(transaction_id, "final", version.height, code=OK)
        return None


def _is_settled_leftover(result: Registration) -> bool:
    return result.prepared.action is Action.RESUME and not result.is_pending


def _merged(earlier: Registration | None, later: Registration) -> Registration:
    """Return what a study's rounds come to: what the files are found to be, and what was done."""
    if earlier is None or later.prepared.action is not Action.NOTHING:
        return later
    return replace(earlier, prepared=later.prepared)


class _GivenUp(Exception):
    """Whoever wanted the answer has gone."""


async def _in_thread(read: Callable[[Progress], _Answer], progress: Progress | None) -> _Answer:
    """Read files in a worker thread, which ends with the next file when the caller is cancelled."""
    gone = threading.Event()

    def step(done: Step) -> None:
        if gone.is_set():
            raise _GivenUp
        if progress is not None:
            progress(done)

    try:
        return await asyncio.to_thread(read, step)
    except asyncio.CancelledError:
        gone.set()
        raise
