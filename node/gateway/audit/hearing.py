"""What the parts of the gateway report, as acts of the audit trail: pure translations."""

from collections.abc import Callable, Sequence

from node.exchange.federation.ports import FederationEvent, Inquiry
from node.exchange.transfer.ports import Happening, TransferEvent
from node.gateway.audit.acts import Act, Outcome
from node.gateway.deliver import Given
from node.gateway.link import Action as DimseAction
from node.gateway.link import DimseAccess
from node.gateway.web.audit import Action, WebAccess

StudyIds = Callable[[str], Sequence[bytes]]  # of a Study Instance UID, those that are held

_TRANSFERS = {
    Happening.OFFERING: ("key_given", Outcome.SUCCESS),
    Happening.SENDING: ("chunks_begun", Outcome.SUCCESS),
    Happening.SENT: ("chunks_given", Outcome.SUCCESS),
    Happening.REFUSED: ("transfer_refused", Outcome.SERIOUS),
    Happening.STOPPED: ("transfer_stopped", Outcome.MINOR),
    Happening.NOT_TAKEN: ("fetch_refused", Outcome.SERIOUS),
}
_INQUIRIES = {
    Inquiry.ASKED: ("search_asked", Outcome.SUCCESS),
    Inquiry.ANSWERED: ("search_answered", Outcome.SUCCESS),
    Inquiry.REFUSED: ("search_answered", Outcome.SERIOUS),
    Inquiry.CONFLICT: ("conflict", Outcome.SERIOUS),
}


def asked(access: DimseAccess, ids: StudyIds, *, with_uids: bool, begun: bool = False) -> Act:
    """Return the act of a C-FIND, C-GET or C-MOVE, or with `begun` of the beginning of one."""
    if access.action is DimseAction.SEARCH:
        return Act("searched", _outcome(access.code), who=access.calling, code=access.code)
    return Act(
        "retrieving" if begun else "retrieved",
        Outcome.SUCCESS if begun else _outcome(access.code),
        who=access.calling,
        to=access.destination,
        code="" if begun else access.code,
        studies=_all(access.study_uids, ids),
        instances=access.instances,
        study_uids=access.study_uids if with_uids else (),
    )


def browsed(access: WebAccess, ids: StudyIds, *, with_uids: bool) -> Act | None:
    """Return the act of a DICOMweb request; None for what is no act, or is recorded already.

    A message of instances that were all refused left a record of each.
    """
    kind = {Action.STORE: "stored", Action.SEARCH: "searched", Action.RETRIEVE: "retrieved"}.get(
        access.action, "web_refused"
    )
    if access.action is Action.NONE and not access.code:
        return None  # what a browser asks before it asks
    if access.action is Action.STORE and not access.instances:
        if not access.code:
            return None
        kind = "refused"
    named = (access.study_uid,) if access.study_uid else ()
    return Act(
        kind,
        Outcome.MINOR if kind == "stored" and access.code else _outcome(access.code),
        where=access.remote,
        who=access.role,
        code=access.code,
        studies=_all(named, ids),
        instances=access.instances,
        study_uids=named if with_uids else (),
    )


def transferred(event: TransferEvent) -> Act:
    """Return the act of what the exchange reports.

    `OFFERED` is none: it was recorded, as `OFFERING`, before it began. Raises `KeyError` for it.
    """
    kind, outcome = _TRANSFERS[event.kind]
    if event.kind is Happening.REFUSED and (event.request_id, event.custody) == (None, None):
        kind = "peer_refused"
    return Act(
        kind,
        outcome,
        who=event.institution or "",
        code=event.code or (f"{event.chunks} chunks" if event.chunks else ""),
        request=event.request_id,
        studies=() if event.custody is None else (event.custody.study_id,),
        size=event.bytes,
    )


def fetched(request_id: bytes, study_id: bytes, instances: int) -> Act:
    """Return the act of a granted study that came whole."""
    return Act("fetched", request=request_id, studies=(study_id,), instances=instances)


def mended(study_id: bytes, request_id: bytes | None, chunks: int, size: int) -> Act:
    """Return the act of lost chunks that came back; `request_id` if the study came by one."""
    given = (study_id,)
    return Act("mended", code=f"{chunks} chunks", request=request_id, studies=given, size=size)


def exported(request_id: bytes | None, study_id: bytes, instances: int) -> Act:
    """Return the act of a study that is written to an operator's folder, in clear; `request_id`
    only if it was fetched by one."""
    given = (study_id,)
    return Act("exported", to="folder", request=request_id, studies=given, instances=instances)


def inquired(event: FederationEvent) -> Act:
    """Return the act of a question between hospitals; it holds no value that was asked for."""
    kind, outcome = _INQUIRIES[event.kind]
    words = (event.question, event.purpose, event.role, f"told {event.told}", event.code)
    code = " ".join(filter(None, words))
    if event.kind is Inquiry.ASKED:
        return Act(kind, outcome, to=event.institution, code=code)
    return Act(kind, outcome, who=event.institution, code=code)


def delivered(given: Given, ids: StudyIds, *, with_uids: bool, begun: bool = False) -> Act:
    """Return the act of a delivery to a PACS, or with `begun` of the beginning of one."""
    return Act(
        "delivering" if begun else "delivered",
        Outcome.SUCCESS if begun else _outcome(given.code),
        to=given.target,
        code=given.code,
        studies=_all((given.study_uid,), ids),
        instances=given.instances,
        study_uids=(given.study_uid,) if with_uids else (),
    )


def _outcome(code: str) -> Outcome:
    return Outcome.SERIOUS if code else Outcome.SUCCESS


def _all(uids: Sequence[str], ids: StudyIds) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(study_id for uid in uids for study_id in ids(uid)))
