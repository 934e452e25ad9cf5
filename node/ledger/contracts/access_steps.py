"""The checks and changes that the operations of access share."""

from consensus.wire import Value
from node.ledger.contracts import consent, registry
from node.ledger.contracts.access_decision import Decision
from node.ledger.contracts.access_forms import Ask, BreakGlass
from node.ledger.contracts.access_record import (
    DENIED,
    EXPIRED,
    GRANTED,
    RECORD_FORMAT,
    WAITING,
    Request,
    find_request,
    permitted,
    request_key,
    store,
    study_refusal,
)
from node.ledger.contracts.base import Context
from node.ledger.contracts.study import Study, decode_study, study_key
from node.ledger.errors import Rejected

DECIDING_ROLES = frozenset({"clinician", "administrator", "data_protection_officer"})
PATIENT = "patient"

_DECISION_EVENTS = {GRANTED: "access_granted", DENIED: "access_denied"}


def find_study(context: Context, study_id: bytes) -> Study:
    """Return the study. Raises `Rejected`: study_unknown."""
    row = context.state.get(study_key(study_id))
    if row is None:
        raise Rejected("study_unknown")
    return decode_study(row)


def held_request(context: Context, request_id: bytes) -> Request:
    """Return the request. Raises `Rejected`: request_unknown."""
    held = find_request(context.state.get, request_id)
    if held is None:
        raise Rejected("request_unknown")
    return held


def custodians_request(context: Context, request_id: bytes) -> Request:
    """Return a request that was made to the sender's institution. Raises `Rejected`."""
    held = held_request(context, request_id)
    if held.custodian != context.institution:
        raise Rejected("not_custodian")
    return held


def askers_request(context: Context, request_id: bytes) -> Request:
    """Return a request for which the sender may act: its institution made it, and the sender has
    its role or is a gateway. Raises `Rejected`."""
    held = held_request(context, request_id)
    if held.institution != context.institution:
        raise Rejected("not_requester")
    if context.roles.isdisjoint((held.role, "gateway")):
        raise Rejected("role_missing")
    return held


def who_decides(context: Context, held: Request) -> str:
    """Return who the sender is to a request: "patient" if its key is bound to the patient, else
    "person", of the custodian's staff.

    Raises `Rejected` for another institution, and for another patient.
    """
    if held.custodian != context.institution:
        raise Rejected("not_custodian")
    if PATIENT in context.roles:
        bound = consent.patient_key(context.state.get, held.custodian, held.subject_id)
        if bound == context.member_key:
            return PATIENT
    if context.roles.isdisjoint(DECIDING_ROLES):
        raise Rejected("patient_not_bound")
    return "person"


def askable_study(context: Context, asked: Ask | BreakGlass) -> Study:
    """Return the study that a new request is for. Raises `Rejected` if none can be made."""
    if context.state.get(request_key(asked.request_id)) is not None:
        raise Rejected("request_exists")
    if asked.role not in context.roles:
        raise Rejected("role_missing")
    study = find_study(context, asked.study_id)
    if study.custodian == context.institution:
        raise Rejected("own_study")
    reject_if(study_refusal(study, study.custodian, study.subject_id))
    require_key(context, context.institution, asked.key_id)
    return study


def reject_if(code: str | None, rule: str = "") -> None:
    """Raise `Rejected` if there is a code."""
    if code is not None:
        raise Rejected(code, rule)


def require_undecided(context: Context, held: Request) -> None:
    """Raise `Rejected` unless the request waits, and may wait still."""
    if held.state not in WAITING:
        raise Rejected("request_not_waiting")
    if held.is_due(context.height):
        raise Rejected("request_expired")


def require_permitted(context: Context, held: Request) -> None:
    """Raise `Rejected` unless the request permits access at this height."""
    reject_if(permitted(context.state.get, held, context.height))


def require_key(context: Context, institution: str, key_id: bytes | None) -> None:
    """Raise `Rejected` if a key is named that the institution has not or not any more."""
    if key_id is None:
        return
    key = registry.encryption_key(context.state.get, institution, key_id)
    if key is None:
        raise Rejected("key_unknown")
    if key.retired_height is not None:
        raise Rejected("key_retired")


def new_request(context: Context, asked: Ask | BreakGlass, study: Study) -> Request:
    """Return the request that the sender makes; what only some requests say is not filled in."""
    return Request(
        format=RECORD_FORMAT,
        study_id=asked.study_id,
        custodian=study.custodian,
        subject_id=study.subject_id,
        institution=context.institution,
        member_key=context.member_key,
        role=asked.role,
        purpose=asked.purpose,
        key_id=asked.key_id,
        asked_height=context.height,
        ordinal=context.ordinal(),
    )


def decided(context: Context, request: Request, decision: Decision, height: int) -> Request:
    """Return `request` as consent and policy left it, by a decision as of `height`."""
    if decision.state == GRANTED:
        return granted(context, request, decision, height)
    if decision.state == DENIED:
        return denied(request, decision.rule, height)
    return request._replace(state=decision.state, rule=decision.rule, consent=decision.consent)


def granted(
    context: Context, request: Request, decision: Decision, height: int, by: str = "rule"
) -> Request:
    """Return `request` granted as of `height`; its term begins with the height after this one."""
    valid_from = context.height + 1
    return request._replace(
        state=GRANTED,
        decided_height=height,
        decided_by=by,
        rule=decision.rule,
        consent=decision.consent,
        valid_from=valid_from,
        expires_height=valid_from + request.heights,
    )


def denied(request: Request, rule: str, height: int, by: str = "rule") -> Request:
    """Return `request` denied as of `height`."""
    return request._replace(
        state=DENIED,
        decided_height=height,
        decided_by=by,
        rule=rule,
        expires_height=None,
        ended_height=height,
    )


def expire(context: Context, request_id: bytes, held: Request) -> None:
    """Write down that a request is over by its height."""
    ended = held._replace(state=EXPIRED, ended_height=context.height)
    store(context, request_id, ended, held.state)
    emit(context, "access_expired", request_id, held)


def emit(context: Context, name: str, request_id: bytes, request: Request, *fields: Value) -> None:
    """Record an event: (request id, study id, institution that asked, `fields`)."""
    study_id = request.study_id
    context.emit(name, request_id, study_id, request.institution, *fields, about=study_id)


def emit_decision(context: Context, request_id: bytes, request: Request) -> None:
    """Record whether a request is granted, denied or waits, and by which rule."""
    if request.state in WAITING:
        emit(
            context,
            "access_waiting",
            request_id,
            request,
            request.purpose,
            request.rule,
            request.state,
        )
    else:
        name = _DECISION_EVENTS[request.state]
        emit(context, name, request_id, request, request.purpose, request.rule)
