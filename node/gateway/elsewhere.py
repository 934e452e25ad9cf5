"""Conflicts with copies at other hospitals: one SOP Instance UID, other content.

    received on the ledger -> its instances known to the spool -> those that contradict what is
    here, and later whatever arrives and contradicts them: an event here, one at the custodian's

A custodian is told the study's id, the version and the instance's position in the manifest, which
both have; no UID and no digest leaves a hospital.

    POST /v1/conflict   (1, study id, version, position) in canonical msgpack -> nothing
"""

import asyncio
import logging

from consensus.wire import NotCanonical, pack, unpack
from node.exchange.federation.ports import FederationEvent, Inquiry, Report
from node.exchange.store.errors import StoreError
from node.exchange.transfer import refusals
from node.exchange.transfer.errors import InvalidRecord
from node.exchange.transfer.holders import (
    HolderBusy,
    HolderFailed,
    HolderLied,
    HolderRefused,
    Identity,
    Link,
    NotHeld,
)
from node.exchange.transfer.limits import ClientLimits
from node.exchange.transfer.posts import Post
from node.exchange.transfer.refusals import Refusal
from node.gateway import arrived
from node.gateway.acting import PASSING, Acting
from node.gateway.backlog import Backlog
from node.gateway.directory import Directory
from node.gateway.foreign import Elsewhere, Notice
from node.gateway.index import SpoolError
from node.gateway.ledger_events import LedgerEvents
from node.gateway.requester import NotAuthentic, Requester
from node.gateway.spool import Spool
from node.imaging.manifest import INSTANCES_MAX, VERSION_MAX, Manifest
from node.ledger.contracts.access_record import DELIVERED, RECEIVED
from node.ledger.queries.access_views import RequestQuery, RequestView

log = logging.getLogger(__name__)

CONFLICT_PATH = "/v1/conflict"
LOOK_S = 5.0
_FORMAT = 1
_BYTES_MAX, _ID_BYTES = 64, 16
_PER_MINUTE = 120
_LIMITS = ClientLimits(parallel=1, stall_timeout_ms=10_000)
_LATER = (HolderFailed, HolderBusy, HolderLied, TimeoutError)


class Conflicts:
    """Finds conflicts with what came from other hospitals, and tells these."""

    def __init__(
        self,
        acting: Acting,
        requester: Requester,
        directory: Directory,
        identity: Identity,
        spool: Spool,
    ) -> None:
        self._acting, self._requester, self._spool = acting, requester, spool
        self._directory, self._identity = directory, identity
        self.backlog: Backlog[bytes] = Backlog("learn what came", self._work)

    def attach(self, events: LedgerEvents) -> None:
        """Hear of what this hospital received, also by the command line."""
        arrived.follow(events, self._acting, self.backlog)

    async def run(self, look_s: float = LOOK_S) -> None:
        """Tell custodians, for ever; whatever leaves a notice may be another process."""
        while True:
            try:
                for notice in await asyncio.to_thread(self._spool.foreign.notices):
                    await self._tell(notice)
            except SpoolError as error:
                log.error("conflicts cannot be read: %s", error)
            await asyncio.sleep(look_s)

    async def _work(self, request_id: bytes) -> bool:
        if request_id == arrived.EVERYTHING:
            await arrived.add_all(self._acting, self.backlog)
            return True
        request = await self._acting.client.request(request_id)
        if request is None or request.institution != self._acting.institution:
            return True
        try:
            return await asyncio.to_thread(self._learn, request)
        except (SpoolError, StoreError, NotAuthentic, InvalidRecord) as error:
            log.error("what came cannot be compared request=%s: %s", request_id.hex(), error)
            return True

    def _learn(self, request: RequestView) -> bool:
        manifest = self._requester.manifest(request.id)
        foreign = self._spool.foreign
        if manifest is None or foreign.version(manifest.study_id) == manifest.version:
            return True
        elsewhere = _instances(self._spool, manifest)
        here = self._spool.index.contents([each.sop for each in elsewhere])
        # What was here before is the index's to compare with what arrives.
        new = [each for each in elsewhere if each.sop not in here]
        for each in elsewhere:
            if each.sop in here:
                contradicts = here[each.sop] != each.content
            else:  # two other hospitals may differ, too
                agrees = foreign.compare(each.sop, each.rules, each.content, manifest.study_id)
                contradicts = agrees is False
            place = manifest.study_id, manifest.version, each.position
            if contradicts and foreign.contradicted(Notice(*place, request.custodian)):
                self._spool.note("conflict", request.custodian, "conflict_elsewhere")
        foreign.learn(manifest.study_id, manifest.version, request.custodian, new)
        return True

    async def _tell(self, notice: Notice) -> None:
        holder = self._directory.holder(notice.institution)
        if holder is None:
            return  # the config or the ledger may name a way later
        link = Link(holder, self._identity, _LIMITS)
        body = pack((_FORMAT, notice.study_id, notice.version, notice.position))
        try:
            await link.post(CONFLICT_PATH, body, _BYTES_MAX)
        except _LATER as error:
            log.warning("a conflict cannot be told institution=%s: %s", notice.institution, error)
            return
        except (HolderRefused, NotHeld) as error:
            log.error("a conflict was not heard institution=%s: %s", notice.institution, error)
        finally:
            await link.close()
        await asyncio.to_thread(self._spool.foreign.told, notice)


def conflict_post(acting: Acting, report: Report) -> Post:
    """Return the path on which others tell of copies that contradict this hospital's."""

    async def respond(institution: str, body: bytes) -> bytes:
        study_id, version, position = _read(body)
        try:
            study = await acting.client.study(study_id)
            is_own = study is not None and study.summary.custodian == acting.institution
            if not is_own or not await _has_come(acting, study_id, institution):
                raise Refusal(403, "conflict_unknown", "that is no study of ours that came to you")
        except PASSING as error:
            raise refusals.unavailable() from error
        place = f"{study_id.hex()}/{version}/{position + 1}"
        log.warning("a copy elsewhere contradicts ours institution=%s at=%s", institution, place)
        report(FederationEvent(Inquiry.CONFLICT, institution, f"conflict_elsewhere {place}"))
        return b""

    return Post(
        path=CONFLICT_PATH,
        respond=respond,
        body_bytes_max=_BYTES_MAX,
        per_minute=_PER_MINUTE,
    )


async def _has_come(acting: Acting, study_id: bytes, institution: str) -> bool:
    query = RequestQuery(institution=institution, study_id=study_id)
    async for request in acting.requests(query):
        if request.recorded_state in (DELIVERED, RECEIVED):
            return True
    return False


def _read(body: bytes) -> tuple[bytes, int, int]:
    try:
        value = unpack(body)
    except NotCanonical:
        value = None
    match value:
        case (1, bytes(study_id), int(version), int(position)) if (
            len(study_id) == _ID_BYTES
            and 1 <= version <= VERSION_MAX
            and 0 <= position < INSTANCES_MAX
        ):
            return study_id, version, position
    raise refusals.invalid("a study's id, version and position")


def _instances(spool: Spool, manifest: Manifest) -> list[Elsewhere]:
    found = []
    for position, instance in enumerate(manifest.instances):
        record = instance.record
        content = spool.content(record.rules, record.core, record.pixels, record.private)
        sop = spool.lookup("sop", instance.sop_uid)
        found.append(Elsewhere(sop, position, record.rules, content))
    return found
