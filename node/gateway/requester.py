"""What a hospital does with a grant of its own: it fetches the study, and believes nothing of it.

    delivered on the ledger -> offer -> key unwrapped, manifest compared with the root on the ledger
    -> index compared with the manifest -> chunks from any holder -> every instance's bytes compared
    with F in the manifest -> receipt on the ledger -> used, as often as was granted

Every step can be cut off and gone on with: what has arrived and been verified by its digest is
never fetched again, and a use is one signed transaction that is kept before it is sent, so that it
counts once.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from node.exchange.encryption_keys import DecryptionKey
from node.exchange.hpke import CannotOpen, WrapContext, wrapped_digest
from node.exchange.store.errors import (
    Damaged,
    InvalidIndex,
    StoreError,
    StudyErased,
    StudyUnknown,
    VersionUnknown,
)
from node.exchange.store.index import StudyIndex
from node.exchange.store.store import StudyStore
from node.exchange.transfer.client import Fetched, fetch
from node.exchange.transfer.errors import InvalidOffer, InvalidRecord, NotPermitted
from node.exchange.transfer.holders import Holder, Identity
from node.exchange.transfer.limits import ClientLimits
from node.exchange.transfer.offer import Delivery, Offer, Wanted, make_offer, open_manifest
from node.exchange.transfer.state import Deliveries, Transfer, Transfers
from node.gateway.acting import Acting
from node.gateway.chunks import StoreChunks
from node.gateway.directory import Directory
from node.gateway.uses import Uses
from node.imaging import manifest_codec
from node.imaging.errors import InvalidManifest
from node.imaging.manifest import Manifest
from node.ledger.block import OK
from node.ledger.contracts.access_record import DELIVERED, GRANTED, RECEIVED, WAITING
from node.ledger.queries.access_views import RequestQuery, RequestView

log = logging.getLogger(__name__)

BYTES_MAX = 1 << 44
MANIFEST_EXPANDED_MAX = 128 << 20  # bytes in memory; of 20,000 instances with 500 elements each
BEHIND_TRIES, BEHIND_PAUSE_S = 10, 0.2
# What a custodian answers whose node has not executed the height of the grant or the delivery.
_BEHIND = frozenset(
    {"request_unknown", "request_waiting", "request_not_delivered", "request_not_valid_yet"}
)
_WAITED_FOR = ("access_granted", "access_delivered", "access_denied", "access_revoked")


class NotAuthentic(Exception):
    """What the custodian handed over is not what the ledger says; the sentence says how so."""


class NotReady(Exception):
    """The request is not so far: it waits for a decision, or for the custodian's gateway."""


class Unreachable(Exception):
    """The config or the ledger names no way to the custodian."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far a fetch is; the same units within one `what`."""

    what: str  # "fetching" in bytes of ciphertext, "verifying" in bytes of images
    done: int
    total: int


Watch: TypeAlias = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Received:
    """A study that is here whole, verified against the ledger, its receipt recorded."""

    request_id: bytes
    study_id: bytes
    version: int
    root: bytes
    instances: int
    absent: int  # instances of the manifest that the custodian does not hold itself
    bytes: int  # of all instances
    chunks_fetched: int  # in this run
    bytes_fetched: int  # of ciphertext, in this run
    liars: tuple[str, ...]  # hospitals that served wrong bytes, and were left
    left: dict[str, str]  # hospitals that were given up in this run, and why


class Requester:
    """Fetches what was granted to this hospital."""

    def __init__(
        self,
        acting: Acting,
        store: StudyStore,
        keys: Callable[[], Mapping[bytes, DecryptionKey]],
        directory: Directory,
        identity: Identity,
        folder: Path,
        *,
        limits: ClientLimits | None = None,
    ) -> None:
        """`folder` keeps transfers under way, the manifests of what came, and the uses.

        Raises `OSError`.
        """
        self._acting, self._store, self._keys = acting, store, keys
        self._directory, self._identity, self._limits = directory, identity, limits
        self.chunks = StoreChunks(store)
        self.transfers = Transfers(folder / "transfers")
        self.received = Deliveries(folder / "received")
        self._uses = Uses(folder / "uses", acting)

    async def fetch(
        self, request_id: bytes, *, wait_s: float = 0.0, watch: Watch | None = None
    ) -> Received:
        """Fetch, verify and acknowledge a study; the same again goes on, or finds it done.

        Waits up to `wait_s` for the grant and the key. Raises `NotReady`; `NotPermitted` when the
        ledger says no, also in the middle, and then what came is dropped; `TransferIncomplete`,
        `Unreachable`, `ConnectionLost` and the like: again later, nothing is lost; `NotAuthentic`;
        `StoreError`.
        """
        try:
            request = await self._ready(request_id, wait_s)
        except NotPermitted:
            await self.drop_if_over(request_id)
            raise
        delivery = await asyncio.to_thread(self._held, request)
        fetched = None
        if delivery is None:
            fetched = await self._fetch(request, watch)
            delivery = fetched.offer.delivery
        manifest = await asyncio.to_thread(self._verify, request, delivery, watch)
        await asyncio.to_thread(self.received.put, delivery)
        await self._acknowledge(request, delivery)
        await asyncio.to_thread(self.transfers.forget, request_id)
        return await asyncio.to_thread(self._done, delivery, fetched, manifest)

    async def use(self, request_id: bytes, token: bytes) -> None:
        """Count one use, once for each `token` (1 to 32 bytes), however often this is called.

        Call it before images leave the store in clear. Raises `NotPermitted` when the ledger
        permits no more, and what `Client` raises.
        """
        await self._uses.count(request_id, token)

    async def granted(self) -> list[bytes]:
        """Return the requests of this hospital whose study can be fetched and was not yet."""
        query = RequestQuery(institution=self._acting.institution, state=DELIVERED)
        return [each.id async for each in self._acting.requests(query) if each.permitted]

    async def drop_what_is_over(self) -> None:
        """Drop what was being fetched under grants that have ended. Raises what `Client` and the
        store raise."""
        for request_id in await asyncio.to_thread(lambda: list(self.transfers.requests())):
            await self.drop_if_over(request_id)

    async def drop_if_over(self, request_id: bytes) -> None:
        """Drop what came for a request, unless it was received, if our own node says that it is
        not permitted any more. Raises what `Client` and the store raise."""
        view = await self._acting.client.request(request_id)
        if view is None or view.permitted or view.recorded_state in (*WAITING, RECEIVED):
            return
        if await asyncio.to_thread(self.transfers.holds, request_id):
            await asyncio.to_thread(self._drop, view)
            log.warning("fetched data dropped request=%s code=%s", request_id.hex(), view.refusal)

    def is_whole(self, request: RequestView) -> bool:
        """Return whether all that came for a request is still here. Waits for the disk.

        Raises `InvalidRecord`, `StoreError`.
        """
        return self._held(request) is not None

    def manifest(self, request_id: bytes) -> Manifest | None:
        """Return the manifest that came with a study, None if none did or the study was erased.

        Waits for the disk. Raises `InvalidRecord`, `StoreError`, `NotAuthentic`.
        """
        delivery = self.received.get(request_id)
        if delivery is None:
            return None
        try:
            return self._manifest_of(delivery, self._store.key(delivery.study_id))
        except (StudyUnknown, StudyErased):
            return None

    async def _ready(self, request_id: bytes, wait_s: float) -> RequestView:
        """Return the request once its key is delivered."""
        client = self._acting.client
        head = await client.head()
        request = self._judge(await client.request(request_id))
        if request is not None:
            return request
        try:
            async with (
                asyncio.timeout(wait_s),
                aclosing(client.events(head.height + 1, _WAITED_FOR)) as events,
            ):
                async for _ in events:
                    request = self._judge(await client.request(request_id))
                    if request is not None:
                        return request
        except TimeoutError:
            pass
        view = await client.request(request_id)
        state = "unknown" if view is None else view.state
        raise NotReady(f"the request is {state}: its custodian has not delivered the key yet")

    def _judge(self, request: RequestView | None) -> RequestView | None:
        """Return the request if it is delivered, None if that may still come."""
        if request is None or request.institution != self._acting.institution:
            raise NotPermitted("request_unknown")
        if request.state in WAITING:
            return None
        if not request.permitted:
            raise NotPermitted(request.refusal or "request_denied")
        return None if request.state == GRANTED else request

    def _held(self, request: RequestView) -> Delivery | None:
        """Return what came for this request before, if all of it is still here: then nobody has
        to be asked for it."""
        delivery = self._came(request)
        if delivery is None:
            return None
        try:
            self._store.index_ciphertext(delivery.study_id, delivery.version)
            whole = self._store.is_complete(delivery.study_id, delivery.version)
        except (StudyUnknown, StudyErased, VersionUnknown, Damaged):
            return None
        return delivery if whole else None

    def _came(self, request: RequestView) -> Delivery | None:
        """Return what came for this request before, be it whole or not."""
        delivery = self.received.get(request.id)
        if delivery is None or wrapped_digest(delivery.wrapped) != request.wrapped_digest:
            return None
        return delivery

    def _begun(self, request: RequestView) -> bool:
        """Take up the transfer of a study that came before and lost chunks here: what the offer
        said is all here, so any holder can mend it. Return whether there is one."""
        delivery = self._came(request)
        if delivery is None:
            return False
        try:
            if self.transfers.get(request.id) is None:
                study = self.chunks.sealed_study(delivery.study_id, delivery.version)
                self.transfers.save(Transfer(make_offer(delivery, study)))
        except (LookupError, InvalidRecord):
            return False
        return True

    async def _fetch(self, request: RequestView, watch: Watch | None) -> Fetched:
        """Fetch what our own node says is delivered; the custodian's may be a height behind it."""
        for _ in range(BEHIND_TRIES):
            try:
                return await self._fetch_once(request, watch)
            except NotPermitted as error:
                if error.code not in _BEHIND:
                    await self.drop_if_over(request.id)
                    raise
            await asyncio.sleep(BEHIND_PAUSE_S)
        raise NotReady("the custodian's node does not know yet that the key is delivered")

    async def _fetch_once(self, request: RequestView, watch: Watch | None) -> Fetched:
        wanted = await self._wanted(request)
        begun = await asyncio.to_thread(self._begun, request)
        holders = await self._holders(request, needs_custodian=not begun)
        try:
            return await fetch(
                self._identity,
                wanted,
                holders,
                self.chunks,
                self.transfers,
                limits=self._limits,
                prepare=lambda offer: self._adopt(request, offer),
                progress=_told(watch),
            )
        except InvalidOffer as error:
            raise NotAuthentic(str(error)) from error

    async def _wanted(self, request: RequestView) -> Wanted:
        study = await self._acting.client.study(request.study_id)
        if study is None or request.wrapped_digest is None:
            raise NotPermitted("request_not_delivered")
        roots = tuple((version.version, version.root) for version in study.versions)
        return Wanted(request.id, request.study_id, request.wrapped_digest, roots, BYTES_MAX)

    async def _holders(self, request: RequestView, *, needs_custodian: bool) -> list[Holder]:
        """Return the custodian, then other hospitals that have received the study."""
        custodian = self._directory.holder(request.custodian)
        if custodian is None and needs_custodian:
            raise Unreachable(
                f"no way to {request.custodian} is known: name it under [[exchange.peers]]"
            )
        holders = {} if custodian is None else {request.custodian: custodian}
        page = await self._acting.client.requests(
            RequestQuery(study_id=request.study_id, state=RECEIVED)
        )
        for other in page.requests:
            found = self._directory.holder(other.institution)
            if found is not None:
                holders.setdefault(other.institution, found)
        return list(holders.values())

    def _adopt(self, request: RequestView, offer: Offer) -> None:
        """Take the study into the store, if all that can be known of it now is as it must be."""
        delivery = offer.delivery
        try:
            study_key = self._unwrap(request, delivery)
            manifest = self._manifest_of(delivery, study_key)
            index = self._store.adopt(request.study_id, study_key, offer.index)
        except (NotAuthentic, InvalidIndex) as error:
            self.transfers.forget(request.id)  # the next try asks for another offer
            if isinstance(error, NotAuthentic):
                raise
            raise NotAuthentic(f"the index of the study is not as it must be: {error}") from error
        try:
            _require_same(index, manifest)
            _require_listed(index, offer)
        except NotAuthentic:
            self._drop(request)
            raise

    def _unwrap(self, request: RequestView, delivery: Delivery) -> bytes:
        keys = self._keys()
        for key_id, key in keys.items():
            if request.key_id in (None, key_id):
                context = WrapContext(
                    self._acting.chain_id,
                    request.id,
                    request.study_id,
                    delivery.version,
                    delivery.root,
                    request.custodian,
                    request.institution,
                    key_id,
                )
                try:
                    return key.unwrap(context, delivery.wrapped)
                except CannotOpen:
                    continue
        if request.key_id is not None and request.key_id not in keys:
            raise NotAuthentic(f"the key {request.key_id.hex()} of this hospital has no file here")
        raise NotAuthentic("the wrapped key opens with no key of this hospital")

    def _manifest_of(self, delivery: Delivery, study_key: bytes) -> Manifest:
        context = WrapContext(
            self._acting.chain_id,
            delivery.request_id,
            delivery.study_id,
            delivery.version,
            delivery.root,
            "",
            "",
            b"",
        )
        try:
            manifest = manifest_codec.decode(
                open_manifest(context, study_key, delivery.manifest),
                expanded_bytes_max=MANIFEST_EXPANDED_MAX,
            )
        except (InvalidOffer, InvalidManifest) as error:
            raise NotAuthentic(f"the manifest of the study cannot be read: {error}") from error
        stated = (delivery.study_id, delivery.version, delivery.root)
        if (manifest.study_id, manifest.version, manifest.root) != stated:
            raise NotAuthentic("the manifest does not lead to the root on the ledger")
        return manifest

    def _verify(self, request: RequestView, delivery: Delivery, watch: Watch | None) -> Manifest:
        """Compare every instance's bytes with the manifest, whose root is on the ledger."""
        study_id, version = delivery.study_id, delivery.version
        manifest = self._manifest_of(delivery, self._store.key(study_id))
        index = self._store.index(study_id, version)
        known = manifest.by_uid()
        done = 0
        for ordinal, each in enumerate(index.instances):
            digest = hashlib.sha256()
            place = f"instance {ordinal + 1} of {len(index.instances)}"
            try:
                for piece in self._store.read(study_id, ordinal, version):
                    digest.update(piece)
                    done += len(piece)
                    if watch is not None:
                        watch(Step("verifying", done, index.size))
            except Damaged as error:
                if not self._store.is_complete(study_id, version):
                    raise  # it rotted here, and is fetched again
                self._drop(request)
                raise NotAuthentic(f"{place} was never sealed as its index says") from error
            instance = known.get(each.facts.sop_instance_uid)
            if instance is None or digest.digest() != instance.record.file:
                self._drop(request)
                raise NotAuthentic(f"{place} is not the registered file")
        return manifest

    async def _acknowledge(self, request: RequestView, delivery: Delivery) -> None:
        if request.recorded_state == RECEIVED:
            return
        submitted = await self._acting.submit("access.receive", (request.id, delivery.root))
        if submitted.code not in (OK, "request_received"):
            await self.drop_if_over(request.id)
            raise NotPermitted(str(submitted.code))
        log.info("study received request=%s height=%s", request.id.hex(), submitted.height)

    def _drop(self, request: RequestView) -> None:
        """Drop what came for a request; the study, too, unless it came for another as well."""
        try:
            if not self._came_for_others(request):
                self._store.abandon(request.study_id)
        except (StudyUnknown, StudyErased):
            pass
        except StoreError as error:
            log.error("a study cannot be dropped study=%s: %s", request.study_id.hex(), error)
        self.received.forget(request.id)
        self.transfers.forget(request.id)  # last: by it the rest is found after a crash

    def _came_for_others(self, request: RequestView) -> bool:
        kept = self.received.of_study(request.study_id), self.transfers.of_study(request.study_id)
        return any(other != request.id for other in chain(*kept))

    def _done(self, delivery: Delivery, fetched: Fetched | None, manifest: Manifest) -> Received:
        index = self._store.index(delivery.study_id, delivery.version)
        return Received(
            delivery.request_id,
            delivery.study_id,
            delivery.version,
            delivery.root,
            len(index.instances),
            len(manifest.instances) - len(index.instances),
            index.size,
            0 if fetched is None else fetched.chunks_fetched,
            0 if fetched is None else fetched.bytes_fetched,
            () if fetched is None else fetched.liars,
            {} if fetched is None else fetched.left,
        )


def _require_same(index: StudyIndex, manifest: Manifest) -> None:
    """Raise `NotAuthentic` unless the index holds instances of the manifest only, as they are in
    it. Some may be absent: those that the custodian registered from files it does not keep."""
    known = manifest.by_uid()
    if (index.study_id, index.version) != (manifest.study_id, manifest.version):
        raise NotAuthentic("the index is of another version than the manifest")
    for each in index.instances:
        facts = each.facts
        instance = known.get(facts.sop_instance_uid)
        if instance is None:
            raise NotAuthentic("the index names an instance that is not in the manifest")
        if (facts.digest, facts.size) != (instance.record.file, instance.record.size):
            raise NotAuthentic("the index names another file for an instance than the manifest")


def _require_listed(index: StudyIndex, offer: Offer) -> None:
    """Raise `NotAuthentic` unless the offer lists the chunks of the index: an honest holder would
    be taken for a liar."""
    named = {(each.digest, each.stored_bytes) for each in index.chunks}
    if named != {(each.digest, each.size) for each in offer.chunks}:
        raise NotAuthentic("the offer lists other chunks than the index of the study")


def _told(watch: Watch | None) -> Callable[[int, int], None] | None:
    if watch is None:
        return None
    return lambda done, total: watch(Step("fetching", done, total))
