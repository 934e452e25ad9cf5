"""What a custodian does about a grant: it wraps the study's key to the one who was granted access.

    granted on the ledger -> wrapped, and kept on disk -> its digest on the ledger -> given out

A key is wrapped once: what is kept is what counts, so a crash anywhere is gone on with, by the same
digest. The transfer server gives out only what the ledger names, so a key that was wrapped and
never delivered reaches nobody. A request for a de-identified copy is left to a person: the original
never goes out for it.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from node.exchange import hpke
from node.exchange.hpke import WrapContext
from node.exchange.store.errors import StoreError
from node.exchange.store.store import StudyStore
from node.exchange.transfer.errors import InvalidRecord
from node.exchange.transfer.offer import Delivery, seal_manifest
from node.exchange.transfer.state import Deliveries
from node.gateway.acting import Acting
from node.gateway.backlog import Backlog
from node.gateway.ledger_events import LedgerEvents, id_in
from node.imaging import manifest_codec
from node.imaging.manifest import Manifest
from node.imaging.vault import Vault
from node.ledger.block import OK
from node.ledger.contracts.access_record import CLOSED_CODES, DELIVERED, GRANTED, RECEIVED
from node.ledger.queries.access_views import RequestQuery, RequestView
from node.ledger.queries.member_views import EncryptionKeyView
from node.ledger.queries.studies import StudyView

log = logging.getLogger(__name__)

Manifests = Callable[[bytes, bytes], Manifest | None]  # by study id and root; called in threads

_EVERYTHING = b""  # in the backlog: look for whatever was granted
_CONFIRMED = "confirmed"
# What may be permitted again without a new request.
_MAY_PASS = frozenset(
    {"consent_refused", "consent_missing", "institution_suspended", "request_not_valid_yet"}
)


class Outcome(Enum):
    """What became of a request."""

    DELIVERED = "the key's digest is on the ledger"
    WAITS = "it cannot be delivered yet"
    OVER = "it permits nothing any more"
    BY_HAND = "a person has to deliver it"
    FOREIGN = "it was not made to this hospital"


@dataclass(frozen=True, slots=True)
class _Choice:
    """The version to hand over and the key to wrap to."""

    manifest: Manifest
    key: EncryptionKeyView


class Custodian:
    """Delivers what was granted by this hospital."""

    def __init__(
        self, acting: Acting, store: StudyStore, manifests: Manifests, deliveries: Deliveries
    ) -> None:
        self._acting, self._store = acting, store
        self._manifests, self._deliveries = manifests, deliveries
        self.backlog: Backlog[bytes] = Backlog("deliver", self._work)

    def attach(self, events: LedgerEvents) -> None:
        """Hear of grants, and of what stood in the way of one."""
        add = self.backlog.add
        events.on(lambda view: add(id_in(view)), "access_granted", "access_break_glass")
        events.on(lambda view: add(id_in(view)), "access_revoked", "access_expired")
        events.on(lambda _: self.backlog.hurry(), "registry_key_confirmed", "consent_granted")
        events.on_start(lambda: add(_EVERYTHING))

    async def sweep(self) -> None:
        """Take up everything that was granted and not delivered, and forget what is over."""
        query = RequestQuery(custodian=self._acting.institution, state=GRANTED)
        async for request in self._acting.requests(query):
            self.backlog.add(request.id)
        for request_id in await asyncio.to_thread(list, self._deliveries.requests()):
            self.backlog.add(request_id)

    async def deliver(self, request_id: bytes) -> Outcome:
        """Bring one request as far as it goes; the same again changes nothing.

        Raises what `Client` and the store raise when they cannot be reached: try again later.
        """
        request = await self._acting.client.request(request_id)
        if request is None or request.custodian != self._acting.institution:
            return Outcome.FOREIGN
        if request.state in CLOSED_CODES or request.state not in (GRANTED, DELIVERED, RECEIVED):
            return await self._over(request)
        if request.recorded_state in (DELIVERED, RECEIVED):
            return await self._compare(request)
        if not request.permitted:
            passing = request.refusal in _MAY_PASS
            return Outcome.WAITS if passing else await self._over(request)
        if request.deidentified:
            log.info("a de-identified copy is asked for, by hand request=%s", request_id.hex())
            return Outcome.BY_HAND
        delivery = await self._kept(request_id) or await self._wrap(request)
        if delivery is None:
            return Outcome.WAITS
        return await self._state(request, delivery)

    async def _work(self, request_id: bytes) -> bool:
        if request_id == _EVERYTHING:
            await self.sweep()
            return True
        outcome = await self.deliver(request_id)
        log.debug("delivery request=%s outcome=%s", request_id.hex(), outcome.name)
        return outcome is not Outcome.WAITS

    async def _state(self, request: RequestView, delivery: Delivery) -> Outcome:
        """Put the digest of what is kept on the ledger."""
        digest = hpke.wrapped_digest(delivery.wrapped)
        submitted = await self._acting.submit("access.deliver", (request.id, digest))
        if submitted.code == OK:
            log.info("key delivered request=%s height=%s", request.id.hex(), submitted.height)
            return Outcome.DELIVERED
        log.info("delivery refused request=%s code=%s", request.id.hex(), submitted.code)
        after = await self._acting.client.request(request.id)
        if after is not None and after.recorded_state in (DELIVERED, RECEIVED):
            return await self._compare(after)
        if submitted.code in ("key_retired", "key_unknown"):
            await asyncio.to_thread(self._deliveries.forget, request.id)
            return Outcome.BY_HAND
        return Outcome.WAITS

    async def _compare(self, request: RequestView) -> Outcome:
        delivery = await self._kept(request.id)
        if delivery is None or hpke.wrapped_digest(delivery.wrapped) != request.wrapped_digest:
            log.warning("delivered by somebody else request=%s", request.id.hex())
            return Outcome.BY_HAND
        return Outcome.DELIVERED

    async def _over(self, request: RequestView) -> Outcome:
        await asyncio.to_thread(self._deliveries.forget, request.id)
        return Outcome.OVER

    async def _kept(self, request_id: bytes) -> Delivery | None:
        try:
            return await asyncio.to_thread(self._deliveries.get, request_id)
        except InvalidRecord as error:
            # If the ledger does not name it, another is wrapped; if it does, a person must help.
            log.error("a kept delivery cannot be read: %s", error)
            await asyncio.to_thread(self._deliveries.forget, request_id)
            return None

    async def _wrap(self, request: RequestView) -> Delivery | None:
        choice = await self._choose(request)
        if choice is None:
            return None
        try:
            return await asyncio.to_thread(self._make, request, choice)
        except (StoreError, ValueError) as error:
            log.error("a key cannot be wrapped request=%s: %s", request.id.hex(), error)
            return None

    async def _choose(self, request: RequestView) -> _Choice | None:
        study = await self._acting.client.study(request.study_id)
        key = await self._recipient(request)
        if study is None or key is None:
            log.info("delivery waits for a confirmed key request=%s", request.id.hex())
            return None
        try:
            manifest = await asyncio.to_thread(self._newest, study)
        except StoreError as error:
            log.error("the store cannot be read request=%s: %s", request.id.hex(), error)
            return None
        if manifest is None:
            log.warning("delivery waits, no version is held request=%s", request.id.hex())
            return None
        return _Choice(manifest, key)

    async def _recipient(self, request: RequestView) -> EncryptionKeyView | None:
        """Return the key to wrap to: the one that the request names, else the newest; only one
        whose possession was proved."""
        async for key in self._acting.encryption_keys(request.institution):
            if request.key_id in (None, key.key_id) and key.state == _CONFIRMED:
                return key
        return None

    def _newest(self, study: StudyView) -> Manifest | None:
        """Return the manifest of the newest version on the ledger that is held whole."""
        study_id = study.summary.id
        held = set(self._store.versions(study_id))
        for version in study.versions:
            if version.version in held and self._store.is_complete(study_id, version.version):
                manifest = self._manifests(study_id, version.root)
                if manifest is not None:
                    return manifest
        return None

    def _make(self, request: RequestView, choice: _Choice) -> Delivery:
        manifest, key = choice.manifest, choice.key
        context = WrapContext(
            self._acting.chain_id,
            request.id,
            request.study_id,
            manifest.version,
            manifest.root,
            request.custodian,
            request.institution,
            key.key_id,
        )
        study_key = self._store.key(request.study_id)
        wrapped = hpke.wrap_study_key(context, key.kem, key.public_key, study_key)
        sealed = seal_manifest(context, study_key, manifest_codec.encode(manifest))
        place = request.id, request.study_id, manifest.version, manifest.root
        return self._deliveries.put(Delivery(*place, wrapped, sealed))


def manifests_of(vault: Vault) -> Manifests:
    """Return the manifests that the institution's vault keeps."""

    def find(study_id: bytes, root: bytes) -> Manifest | None:
        versions = reversed(vault.versions(study_id))
        return next((v.manifest for v in versions if v.manifest.root == root), None)

    return find
