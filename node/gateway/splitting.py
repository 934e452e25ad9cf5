"""A stored study is split, so that series of it are a study of the ledger by themselves.

    planned in the vault -> manifests kept -> both parts packed anew, each under a key of its own
    -> one transaction kept and sent: parts registered, refusal, consent carried, study retired
    -> vault: the parts take its place -> grants of the study revoked -> (erased, if that is asked)

Every step can be cut off; the same call goes on. Until the transaction is final the study is as it
was, but takes no instances; what comes meanwhile waits in the spool. From the next height nobody is
given anything by a grant of the old study, and nobody anything of what was set apart.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from node.exchange.store.errors import StudyUnknown
from node.exchange.store.store import StudyStore
from node.gateway import carrying
from node.gateway.acting import Acting
from node.gateway.erasures import KeepsKeys
from node.gateway.parting import FORM_NEEDED, Parting, SplitRefused, Wish
from node.imaging.manifest import Manifest
from node.imaging.vault import Vault
from node.imaging.vault_parts import Split
from node.ledger.block import OK
from node.ledger.contracts.access_record import DELIVERED, GRANTED, RECEIVED, WAITING
from node.ledger.errors import Refused
from node.ledger.queries.access_views import ConsentView, RequestQuery, RequestView
from node.ledger.queries.studies import StudySummary
from node.rpc.service import Submitted
from node.studies import MAY_SUCCEED_LATER

log = logging.getLogger(__name__)

_ACTIVE, _ERASED = "active", "erased"
_HELD = (GRANTED, DELIVERED, RECEIVED)
_REVOKED, _DENIED = "patient_request", "not_available"
_ERASE_REASON = "subject_request"


class SplitPending(Exception):
    """It is not known yet whether the split took place; the same call finds out."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a split."""

    rest: bytes  # id of the part that stays together, 16 bytes
    apart: bytes  # of what was set apart
    ended: int  # requests for the old study that this call revoked or denied
    left_to_patient: int  # permissions about the old study that only the patient's key gives anew
    is_erased: bool  # whether the old study is erased


class Splitting:
    """Splits studies of this hospital."""

    def __init__(
        self, acting: Acting, store: StudyStore, vault: Vault, kept: Sequence[KeepsKeys] = ()
    ) -> None:
        """`kept` keep wrapped keys, which are destroyed with an erased study."""
        self._acting, self._store, self._vault, self._kept = acting, store, vault, kept
        self._parting = Parting(store, vault)

    async def split(self, study_id: bytes, wish: Wish) -> Outcome:
        """Set series apart from the rest of a study.

        Raises `SplitRefused`, `SeriesRefused`, `SplitPending`, `VaultError`, `StoreError`, and what
        `Client` raises.
        """
        study = await self._own(study_id)
        split = await asyncio.to_thread(self._vault.split_of, study_id)
        if split is None:
            split = await self._plan(study, wish)
        elif not split.is_done and study.status == _ACTIVE:
            split = await asyncio.to_thread(self._parting.plan_again, study_id, wish.series)
        elif split.is_done:
            await asyncio.to_thread(self._parting.require_apart, split, wish.series)
        if not split.is_done:
            await self._perform(study, split, wish.form_digest)
        left = await self._carry(study, split, wish.form_digest)
        ended = await self._end_grants(study_id)
        if wish.erase:
            await self._erase(study_id)
        view = await self._acting.client.study(study_id)
        is_erased = view is not None and view.summary.status == _ERASED
        return Outcome(split.rest.study_id, split.apart.study_id, ended, left, is_erased)

    async def _own(self, study_id: bytes) -> StudySummary:
        view = await self._acting.client.study(study_id)
        if view is None:
            raise SplitRefused("no study with this id is on the chain")
        if view.summary.custodian != self._acting.institution:
            raise SplitRefused(
                f"its custodian is {view.summary.custodian}; only that one splits it"
            )
        return view.summary

    # Planning

    async def _plan(self, study: StudySummary, wish: Wish) -> Split:
        if study.status != _ACTIVE:
            raise SplitRefused(f"the study is {study.status}")
        if study.derivation is not None:
            raise SplitRefused("the study was derived from another one and stays as it is")
        return await asyncio.to_thread(self._parting.plan, study, wish)

    # Performing

    async def _perform(self, study: StudySummary, split: Split, form_digest: bytes | None) -> None:
        """Bring a planned split to the ledger and, once it is final, into the vault."""
        submitted = await asyncio.to_thread(self._parting.transaction, split)
        if submitted is None:
            if study.status != _ACTIVE:  # retired or erased before the transaction was sent
                await self._drop(split)
                raise SplitRefused(f"the study is {study.status}; the split was given up")
            if form_digest is None:
                raise SplitRefused(FORM_NEEDED)
            # As it is now that nothing can come to it any more.
            study = await self._own(study.id)
            manifests = await asyncio.to_thread(self._parting.manifests, study, split)
            await asyncio.to_thread(self._parting.pack, study.id, manifests)
            submitted = await self._sign(study, split, manifests, form_digest)
        height = await self._send(split, submitted)
        await asyncio.to_thread(self._vault.finish_split, study.id, height)
        log.info("study split study=%s height=%d", study.id.hex(), height)

    async def _sign(
        self,
        study: StudySummary,
        split: Split,
        manifests: tuple[Manifest, Manifest],
        form_digest: bytes,
    ) -> bytes:
        consent = await self._consent(study)
        register = partial(self._parting.registrations, study, manifests)
        rest, apart = await asyncio.to_thread(register)
        operations = carrying.split_operations(study, (rest, apart), consent, form_digest, _new_id)
        head = await self._acting.client.head()
        transaction_id, raw = self._acting.signer.transaction(operations, head.height)
        await asyncio.to_thread(self._vault.submit_split, manifests, transaction_id, raw)
        return raw

    async def _send(self, split: Split, raw: bytes) -> int:
        """Return the height at which the parts are registered."""
        refused: Refused | None = None
        submitted: Submitted | None = None
        try:
            submitted = await self._acting.client.submit(raw)
        except TimeoutError as error:
            raise SplitPending("not final in time") from error
        except Refused as error:
            refused = error
        height = await self._registered(split)
        if height is not None:
            return height
        if refused is not None and refused.code in MAY_SUCCEED_LATER:
            raise SplitPending(str(refused))
        if submitted is not None and (submitted.code == OK or submitted.height is None):
            raise SplitPending("the node does not show it yet")
        await self._drop(split)
        code = submitted.code if submitted is not None else str(refused)
        raise SplitRefused(f"refused: {code}; everything is as it was")

    async def _registered(self, split: Split) -> int | None:
        """Return the height of the parts' registration, by whatever transaction, or None.

        After its validity a transaction's id is forgotten, so a refusal alone does not tell.
        """
        view = await self._acting.client.study(split.apart.study_id)
        return None if view is None else view.summary.registered_height

    async def _drop(self, split: Split) -> None:
        await asyncio.to_thread(self._parting.drop, split)

    # What follows

    async def _carry(self, study: StudySummary, split: Split, form_digest: bytes | None) -> int:
        """Carry refusals of the old study that came while the transaction was on its way; return
        how many permissions only the patient can give anew."""
        consent = await self._consent(study)
        parts = split.rest.study_id, split.apart.study_id
        left = carrying.refused_meanwhile(study, *parts, consent, form_digest or b"", _new_id)
        if left and form_digest is None:
            raise SplitRefused(f"a rule came meanwhile: {FORM_NEEDED}")
        for operation in left:
            stated = await self._acting.submit(operation.name, operation.arguments)
            if stated.code not in (OK, "until_passed"):
                raise SplitRefused(f"a refusal of the study cannot be carried: {stated.code}")
        return carrying.left_to_patient(consent, study.id)

    async def _consent(self, study: StudySummary) -> ConsentView | None:
        return await self._acting.client.consent(study.custodian, study.subject_id)

    async def _end_grants(self, study_id: bytes) -> int:
        """Say of every open request for the old study that it is over; return how many.

        They permit nothing since the study is retired; this is for who reads them.
        """
        query = RequestQuery(custodian=self._acting.institution, study_id=study_id)
        ended = 0
        async for request in self._acting.requests(query):
            ended += await self._end(request)
        return ended

    async def _end(self, request: RequestView) -> bool:
        if request.state in _HELD:
            done = await self._acting.submit("access.revoke", (request.id, _REVOKED))
        elif request.state in WAITING:
            done = await self._acting.submit("access.deny", (request.id, _DENIED))
        else:
            return False
        if done.code != OK:  # over by itself meanwhile
            log.info("a request was not ended request=%s code=%s", request.id.hex(), done.code)
        return done.code == OK

    async def _erase(self, study_id: bytes) -> None:
        """Destroy the old study here, record that, and let the vault forget it."""
        await asyncio.to_thread(self._destroy, study_id)
        view = await self._acting.client.study(study_id)
        if view is not None and view.summary.status != _ERASED:
            done = await self._acting.submit("study.erase", (study_id, _ERASE_REASON))
            if done.code not in (OK, "study_erased"):
                raise SplitRefused(f"the erasure was refused: {done.code}")
        await asyncio.to_thread(self._vault.delete_study, study_id)

    def _destroy(self, study_id: bytes) -> None:
        with contextlib.suppress(StudyUnknown):
            self._store.erase(study_id)
        for kept in self._kept:
            kept.forget_study(study_id)


def _new_id() -> bytes:
    return secrets.token_bytes(16)
