"""What a custodian has on record of a subject's consent, and which of it is in force."""

from node.ledger.contracts import consent as consent_contract
from node.ledger.contracts.consent import Consent, Rule
from node.ledger.contracts.consent.operations import BIND_ROLES, CONSENT_ROLES
from node.ledger.queries.access_views import ConsentRuleView, ConsentView
from node.ledger.queries.moment import Moment
from node.ledger.queries.paging import check_id, check_institution
from node.ledger.queries.steps import NextStep, step


def find_consent(moment: Moment, institution: str, subject_id: bytes) -> ConsentView | None:
    """Return what `institution` has on record for its subject (16 bytes), or None.

    Raises `BadQuery`, `CorruptRecord`.
    """
    check_institution("institution", institution)
    check_id("subject_id", subject_id)
    if moment.get(consent_contract.consent_key(institution, subject_id)) is None:
        return None
    stored = consent_contract.get_consent(moment.get, institution, subject_id)
    return ConsentView(
        institution=institution,
        subject_id=subject_id,
        height=moment.height,
        patient_key=stored.patient_key,
        opted_out=stored.opted_out(moment.height),
        opted_out_from=stored.opted_out_from,
        opted_out_until=stored.opted_out_until,
        opted_out_by=stored.opted_out_by,
        rules=tuple([_rule(rule, moment.height) for rule in stored.rules]),
        waiting=stored.waiting,
        next_step=_next_step(institution, stored),
    )


def _rule(rule: Rule, height: int) -> ConsentRuleView:
    return ConsentRuleView(
        consent_id=rule.consent_id,
        effect=rule.effect,
        study_id=rule.study_id,
        recipient=rule.recipient,
        purposes=rule.purposes,
        from_height=rule.from_height,
        until_height=rule.until_height,
        ended_height=rule.ended_height,
        by=rule.by,
        form_digest=rule.form_digest,
        state=_state(rule, height),
    )


def _state(rule: Rule, height: int) -> str:
    if rule.holds(height):
        return "in_force"
    if rule.ended_height is not None and rule.ended_height < height:
        return "withdrawn"
    return "expired" if rule.is_over(height) else "not_yet"


def _next_step(institution: str, stored: Consent) -> NextStep:
    if stored.waiting:
        return step("give_consent", (institution,), CONSENT_ROLES)
    if stored.patient_key is None:
        return step("bind_patient", (institution,), BIND_ROLES)
    return step("nothing")
