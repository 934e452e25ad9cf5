"""Access: a request lives from being asked to its end, and acts by itself where rules suffice.

    asked -> denied | granted | waiting_consent | waiting_person     by consent and policy
    waiting_consent -> granted | denied | waiting_person             when consent changes
    waiting_person  -> granted | denied                              by a person at the custodian
    granted -> delivered -> received, and uses are counted from then on
    waiting -> cancelled; granted, delivered, received -> revoked; any of these -> expired

A grant made at a height permits from the next one. Delivery, receipt and every use ask anew what
`permitted` asks, so that a withdrawal or a restriction stops them although the row still says
"granted". Break-glass skips consent and policy, lasts `break_glass_heights`, and stays on the
list of the custodian's data-protection officer until it is reviewed.

The asker is an institution: who asked, whoever there has the request's role, and its gateway act
for it. A policy counts when it is asked: at the request, when consent changes, and at an approval,
which cannot overrule it; later policies end no grant.
"""

from node.ledger.contracts import access_steps as steps
from node.ledger.contracts.access_decision import Decision, decide
from node.ledger.contracts.access_forms import (
    ASKING_ROLES,
    CLINICIAN,
    Ask,
    BreakGlass,
    Step,
    parse_break_glass,
    parse_deliver,
    parse_deny,
    parse_receive,
    parse_request,
    parse_review,
    parse_revoke,
    parse_step,
)
from node.ledger.contracts.access_record import (
    CANCELLED,
    CLOSED_CODES,
    DELIVERED,
    DENIED,
    GRANTED,
    INDEX_UNREVIEWED,
    RECEIVED,
    REVOKED,
    WAITING,
    WAITING_CONSENT,
    Request,
    asked_key,
    decode_asked,
    decode_request,
    find_request,
    permitted,
    request_key,
    store,
    store_new,
    study_refusal,
)
from node.ledger.contracts.base import Context, OperationKind
from node.ledger.contracts.consent import WAITING_MAX
from node.ledger.contracts.study import REJECTIONS as STUDY_REJECTIONS
from node.ledger.contracts.study import decode_version, root_key
from node.ledger.errors import REFUSALS, Rejected
from node.ledger.genesis import ROLES
from node.ledger.parameters import get_parameter

__all__ = [
    "KINDS",
    "REJECTIONS",
    "Request",
    "asked_key",
    "decode_asked",
    "decode_request",
    "find_request",
    "permitted",
    "reconsider",
    "request_key",
]

REJECTIONS = {
    "request_unknown": "no request with this id was made",
    "request_exists": "a request with this id was made already; ids are used once",
    "own_study": "the sender's institution is the custodian; it needs no grant",
    "heights_over_limit": "longer than the parameter access_heights_max allows",
    "uses_over_limit": "more uses than the parameter access_uses_max allows",
    "not_requester": "another institution made the request",
    "request_waiting": "the request still waits for consent or for a person",
    "request_not_waiting": "the request does not wait for a decision",
    "request_delivered": "the study's key was delivered already",
    "request_not_delivered": "the study's key was not delivered yet",
    "request_received": "the receipt was recorded already",
    "request_not_received": "the receipt was not recorded yet; only what was received is used",
    "request_not_valid_yet": "a grant permits from the height after its decision",
    "request_not_due": "neither the waiting time nor the term of the request is over",
    "request_denied": "the request was denied",
    "request_cancelled": "the request was cancelled",
    "request_revoked": "the grant was revoked",
    "request_expired": "the waiting time or the term of the request is over",
    "uses_spent": "every use that was granted has been made",
    "custody_moved": "another institution has become the study's custodian; ask there anew",
    "consent_refused": "the patient's consent refuses this use",
    "consent_missing": "the patient's consent, which this use needs, is not there",
    "policy_refused": "a policy of the consortium or the custodian refuses this use",
    "root_unknown": "the root is of no version of the study",
    "not_break_glass": "only a break-glass is reviewed",
    "request_reviewed": "the break-glass was reviewed already",
    "key_unknown": "the institution has published no encryption key with this id",
    "key_retired": "the encryption key is retired",
    "patient_not_bound": "the sender's key is not the one bound to the patient",
    "waiting_full": f"{WAITING_MAX} requests wait for the subject's consent already",
    "study_unknown": STUDY_REJECTIONS["study_unknown"],
    "study_retired": STUDY_REJECTIONS["study_retired"],
    "study_erased": STUDY_REJECTIONS["study_erased"],
    "not_custodian": STUDY_REJECTIONS["not_custodian"],
    "role_missing": REFUSALS["role_missing"],
    "institution_suspended": REFUSALS["institution_suspended"],
}


def request(context: Context, asked: Ask) -> None:
    """Ask for access to another institution's study, and decide at once what rules can decide."""
    study = steps.askable_study(context, asked)
    get, height = context.state.get, context.height
    if asked.heights > get_parameter(get, "access_heights_max"):
        raise Rejected("heights_over_limit")
    if asked.uses_max > get_parameter(get, "access_uses_max"):
        raise Rejected("uses_over_limit")
    made = steps.new_request(context, asked, study)._replace(
        deidentified=asked.deidentified,
        ethics_digest=asked.ethics_digest,
        heights=asked.heights,
        uses_max=asked.uses_max,
        expires_height=height + get_parameter(get, "request_waiting_heights"),
    )
    made = steps.decided(context, made, decide(get, made, study, height, context.time_ms), height)
    store_new(context, asked.request_id, made)
    steps.emit(context, "access_requested", asked.request_id, made, made.purpose, made.role)
    steps.emit_decision(context, asked.request_id, made)
    if made.state == WAITING_CONSENT:
        # Consent of this same block counts from the next height, and found nothing waiting yet.
        reconsider(context, asked.request_id)


def break_glass(context: Context, asked: BreakGlass) -> None:
    """Take access in an emergency, whatever consent and policy say; to be reviewed."""
    study = steps.askable_study(context, asked)
    get = context.state.get
    made = steps.new_request(context, asked, study)._replace(
        heights=get_parameter(get, "break_glass_heights"),
        uses_max=get_parameter(get, "access_uses_max"),
        break_glass=True,
        break_glass_reason=asked.reason,
    )
    made = steps.granted(context, made, Decision(GRANTED, "break_glass", ""), context.height)
    store_new(context, asked.request_id, made)
    steps.emit(context, "access_break_glass", asked.request_id, made, made.purpose, asked.reason)


def approve(context: Context, asked: Step) -> None:
    """Grant what waits for a person, if neither consent nor policy speaks against it now."""
    held = steps.custodians_request(context, asked.request_id)
    steps.require_undecided(context, held)
    if held.state == WAITING_CONSENT:
        raise Rejected("consent_missing")
    study = steps.find_study(context, held.study_id)
    steps.reject_if(study_refusal(study, held.custodian, held.subject_id))
    decision = decide(context.state.get, held, study, context.height, context.time_ms)
    steps.reject_if(decision.refusal, decision.rule)
    approved = steps.granted(context, held, decision, context.height, "person")
    store(context, asked.request_id, approved, held.state)
    steps.emit_decision(context, asked.request_id, approved)


def deny(context: Context, asked: Step) -> None:
    """Deny what waits, as the custodian or as the patient."""
    held = steps.held_request(context, asked.request_id)
    by = steps.who_decides(context, held)
    steps.require_undecided(context, held)
    refused = steps.denied(held, asked.word, context.height, by)._replace(reason=asked.word)
    store(context, asked.request_id, refused, held.state)
    steps.emit_decision(context, asked.request_id, refused)


def revoke(context: Context, asked: Step) -> None:
    """End a grant, as the custodian or as the patient."""
    held = steps.held_request(context, asked.request_id)
    by = steps.who_decides(context, held)
    steps.reject_if(CLOSED_CODES.get(held.state))
    if held.is_due(context.height):
        raise Rejected("request_expired")
    ended = held._replace(state=REVOKED, ended_height=context.height, reason=asked.word)
    store(context, asked.request_id, ended, held.state)
    steps.emit(context, "access_revoked", asked.request_id, held, asked.word, by)


def cancel(context: Context, asked: Step) -> None:
    """Take back what still waits, as the institution that asked."""
    held = steps.held_request(context, asked.request_id)
    if held.institution != context.institution:
        raise Rejected("not_requester")
    steps.require_undecided(context, held)
    ended = held._replace(state=CANCELLED, ended_height=context.height, expires_height=None)
    store(context, asked.request_id, ended, held.state)
    steps.emit(context, "access_cancelled", asked.request_id, held)


def expire(context: Context, asked: Step) -> None:
    """Write down that a request is over by its height; anybody may."""
    held = steps.held_request(context, asked.request_id)
    if held.state not in WAITING:
        steps.reject_if(CLOSED_CODES.get(held.state))
    if not held.is_due(context.height):
        raise Rejected("request_not_due")
    steps.expire(context, asked.request_id, held)


def deliver(context: Context, asked: Step) -> None:
    """Record that the custodian handed over the study's key, wrapped to the asker's."""
    held = steps.custodians_request(context, asked.request_id)
    steps.require_permitted(context, held)
    if held.state != GRANTED:
        raise Rejected("request_delivered")
    steps.require_key(context, held.institution, held.key_id)
    delivered = held._replace(
        state=DELIVERED, wrapped_digest=asked.digest, delivered_height=context.height
    )
    store(context, asked.request_id, delivered, held.state)
    steps.emit(context, "access_delivered", asked.request_id, held, asked.digest)


def receive(context: Context, asked: Step) -> None:
    """Record that the asker holds the version of the study whose root it names."""
    held = steps.askers_request(context, asked.request_id)
    steps.require_permitted(context, held)
    if held.state != DELIVERED:
        raise Rejected("request_not_delivered" if held.state == GRANTED else "request_received")
    row = context.state.get(root_key(asked.digest))
    if row is None or decode_version(row).study_id != held.study_id:
        raise Rejected("root_unknown")
    received = held._replace(state=RECEIVED, received_height=context.height)
    store(context, asked.request_id, received, held.state)
    steps.emit(context, "access_received", asked.request_id, held, asked.digest)


def use(context: Context, asked: Step) -> None:
    """Count one use by the asker."""
    held = steps.askers_request(context, asked.request_id)
    steps.require_permitted(context, held)
    if held.state != RECEIVED:
        raise Rejected("request_not_received")
    used = held._replace(uses=held.uses + 1)
    store(context, asked.request_id, used, held.state)
    steps.emit(context, "access_used", asked.request_id, held, used.uses)


def review(context: Context, asked: Step) -> None:
    """Record once what the custodian's data-protection officer found about a break-glass."""
    held = steps.custodians_request(context, asked.request_id)
    if not held.break_glass:
        raise Rejected("not_break_glass")
    if held.finding is not None:
        raise Rejected("request_reviewed")
    store(context, asked.request_id, held._replace(finding=asked.word), held.state)
    context.unindex(INDEX_UNREVIEWED, (held.custodian.encode(), held.ordinal))
    steps.emit(context, "access_reviewed", asked.request_id, held, asked.word)


def reconsider(context: Context, request_id: bytes) -> None:
    """Decide anew, as of the next height, a request that waits for consent.

    For consent to call when it changed; never refuses, since a consent is given whatever waits
    for it. What cannot be granted any more is denied, with the code as its rule.
    """
    held = find_request(context.state.get, request_id)
    if held is None or held.state != WAITING_CONSENT:
        return
    height = context.height + 1
    if held.is_due(height):
        steps.expire(context, request_id, held)
        return
    study = steps.find_study(context, held.study_id)
    code = study_refusal(study, held.custodian, held.subject_id)
    if code is None:
        decision = decide(context.state.get, held, study, height, context.time_ms)
    else:
        decision = Decision(DENIED, code, "")
    if decision.state != WAITING_CONSENT:
        decided = steps.decided(context, held, decision, height)
        store(context, request_id, decided, held.state)
        steps.emit_decision(context, request_id, decided)


_CUSTODIAN_OR_PATIENT = steps.DECIDING_ROLES | {steps.PATIENT}

KINDS = (
    OperationKind("access.request", ASKING_ROLES, parse_request, request),
    OperationKind("access.approve", steps.DECIDING_ROLES, parse_step, approve),
    OperationKind("access.deny", _CUSTODIAN_OR_PATIENT, parse_deny, deny),
    OperationKind("access.revoke", _CUSTODIAN_OR_PATIENT, parse_revoke, revoke),
    OperationKind("access.cancel", ASKING_ROLES | {"administrator"}, parse_step, cancel),
    OperationKind("access.expire", ROLES, parse_step, expire),
    OperationKind(
        "access.deliver", frozenset({"gateway", "administrator"}), parse_deliver, deliver
    ),
    OperationKind("access.receive", ASKING_ROLES, parse_receive, receive),
    OperationKind("access.use", ASKING_ROLES, parse_step, use),
    OperationKind("access.break_glass", frozenset({CLINICIAN}), parse_break_glass, break_glass),
    OperationKind("access.review", frozenset({"data_protection_officer"}), parse_review, review),
)
