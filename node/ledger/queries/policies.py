"""Policies as they are published, and a dry run of a request against them.

A dry run makes the request on a copy of the state, in a block that never is: what it answers is
what the contracts would do. Drafts are published on that copy first.
"""

import hashlib
from dataclasses import replace
from typing import NamedTuple

from consensus.wire import pack
from node.ledger import accounts
from node.ledger.contracts import access_record, consent, policy
from node.ledger.contracts.access_decision import Decision, decide, facts_of
from node.ledger.contracts.access_record import Request
from node.ledger.contracts.base import Context
from node.ledger.contracts.consent import ConsentAnswer
from node.ledger.contracts.study import Study, decode_study, study_key
from node.ledger.contracts.table import OPERATIONS
from node.ledger.errors import Refused, Rejected
from node.ledger.limits import TIME_MS_MAX
from node.ledger.queries.access_views import (
    DRAFTS_MAX,
    PoliciesView,
    PolicyDraft,
    PolicyQuestion,
    PolicyRuleView,
    PolicyTrial,
    RuleTrial,
)
from node.ledger.queries.moment import Moment
from node.ledger.queries.paging import BadQuery, check_id, check_institution
from node.ledger.queries.requests import view
from node.ledger.queries.steps import step
from node.ledger.state import StateView

_NO_MEMBER = bytes(32)


class _Tried(NamedTuple):
    """What the contracts would make of a request."""

    request: Request
    decision: Decision
    consent: ConsentAnswer
    answer: policy.PolicyAnswer
    trials: tuple[policy.Trial, ...]


def policies(moment: Moment, institution: str | None) -> PoliciesView:
    """Return the consortium's rules and, if one is named, the institution's; those that are just
    replaced or retired are there as long as decisions may have followed them.

    Raises `BadQuery`, `CorruptRecord`.
    """
    check_institution("institution", institution)
    return PoliciesView(
        institution,
        moment.height,
        _rules(moment, policy.CONSORTIUM),
        () if institution is None else _rules(moment, institution),
    )


def try_policy(moment: Moment, question: PolicyQuestion, now_ms: int) -> PolicyTrial:
    """Return what would become of a request in the next block, `now_ms` being its time unless the
    question has one. Raises `BadQuery`, `CorruptRecord`."""
    _check(question)
    time_ms = max(now_ms, moment.time_ms + 1) if question.time_ms is None else question.time_ms
    overlay = StateView(moment.get)
    try:
        tried = _try(moment, overlay, question, time_ms)
    except Rejected as rejected:
        return _rejected(question, moment.height, time_ms, rejected)
    return PolicyTrial(
        question=question,
        height=moment.height,
        time_ms=time_ms,
        outcome=tried.request.state,
        code=None,
        refusal=tried.decision.refusal,
        rule=tried.decision.rule,
        effect=tried.answer.effect,
        consent_needed=tried.decision.consent,
        consent_effect=tried.consent.effect,
        consent_id=tried.consent.consent_id,
        rules=tuple([_trial(each) for each in tried.trials]),
        # A grant permits from the height after its own.
        next_step=view(replace(moment, height=moment.height + 1), b"", tried.request).next_step,
    )


def _try(moment: Moment, overlay: StateView, question: PolicyQuestion, time_ms: int) -> _Tried:
    get, height = overlay.get, moment.height
    study = _study(overlay, question.study_id)
    # Published in the last block, a rule holds for decisions in the next one.
    before = Context(overlay, height - 1, time_ms, 0, study.custodian, _NO_MEMBER, frozenset())
    for draft in question.drafts:
        policy.apply_publish(before, study.custodian, _parse_draft(draft))
    request = _request(overlay, question, height, time_ms)
    subject = request.custodian, request.subject_id, request.study_id
    answer = consent.status(get, *subject, request.institution, request.purpose, height)
    facts = facts_of(get, request, study, answer.effect == "permit", height, time_ms)
    return _Tried(
        request,
        decide(get, request, study, height, time_ms),
        answer,
        *policy.try_policies(get, request.custodian, facts),
    )


def _study(overlay: StateView, study_id: bytes) -> Study:
    row = overlay.get(study_key(study_id))
    if row is None:
        raise Rejected("study_unknown")
    return decode_study(row)


def _request(overlay: StateView, question: PolicyQuestion, height: int, time_ms: int) -> Request:
    """Make the request on the overlay and return its record. Raises `Rejected`, `BadQuery`."""
    institution = accounts.find_institution(overlay.get, question.institution)
    if institution is None:
        raise Rejected("institution_unknown")
    if not institution.active:
        raise Rejected("institution_suspended")
    roles = frozenset({question.role})
    request_id = hashlib.sha256(pack((question.study_id, height))).digest()[:16]
    operation = OPERATIONS["access.request"]
    try:
        asked = operation.parse(
            (
                request_id,
                question.study_id,
                question.role,
                question.purpose,
                question.heights,
                question.uses_max,
                question.deidentified,
                question.ethics_digest,
                None,
            )
        )
    except Refused as refused:
        raise BadQuery(refused.sentence) from refused
    context = Context(overlay, height, time_ms, 0, question.institution, _NO_MEMBER, roles)
    operation.apply(context, asked)
    made = access_record.find_request(overlay.get, request_id)
    if made is None:
        raise Rejected("request_unknown")
    return made


def _check(question: PolicyQuestion) -> None:
    check_id("study_id", question.study_id)
    check_institution("institution", question.institution)
    check_id("ethics_digest", question.ethics_digest, 32)
    time_ms = question.time_ms
    if time_ms is not None and (type(time_ms) is not int or not 0 <= time_ms <= TIME_MS_MAX):
        raise BadQuery("time_ms must be milliseconds since 1970")
    if len(question.drafts) > DRAFTS_MAX:
        raise BadQuery(f"drafts must be at most {DRAFTS_MAX} rules")


def _parse_draft(draft: PolicyDraft) -> policy.Publish:
    try:
        return policy.parse_publish((draft.name, draft.effect, draft.consent, draft.condition))
    except Refused as refused:
        raise BadQuery(f"drafts: {refused.sentence}") from refused


def _rejected(
    question: PolicyQuestion, height: int, time_ms: int, rejected: Rejected
) -> PolicyTrial:
    return PolicyTrial(
        question=question,
        height=height,
        time_ms=time_ms,
        outcome="rejected",
        code=rejected.code,
        refusal=rejected.code,
        rule=rejected.rule,
        effect="none",
        consent_needed="required",
        consent_effect="none",
        consent_id=None,
        rules=(),
        next_step=step("nothing"),
    )


def _rules(moment: Moment, institution: str) -> tuple[PolicyRuleView, ...]:
    row = moment.get(policy.policy_key(institution))
    rules = () if row is None else policy.decode_policies(row)
    return tuple(
        [
            PolicyRuleView(
                name=rule.name,
                effect=rule.effect,
                consent=rule.consent,
                condition=rule.condition,
                from_height=rule.from_height,
                until_height=rule.until_height,
                in_force=rule.is_in_force(moment.height),
            )
            for rule in rules
        ]
    )


def _trial(trial: policy.Trial) -> RuleTrial:
    return RuleTrial(
        trial.rule,
        trial.effect,
        trial.consent,
        trial.outcome,
        trial.is_decisive,
        trial.parts,
    )
