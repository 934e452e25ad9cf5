"""What consent and policy together say to a request: granted, denied, or who must act.

Pure over the state. Consent that refuses decides first and alone; then the policies of the
consortium and the custodian. A permit whose consent is not there waits for the patient; where no
policy permits, a person at the custodian decides, and consent is required unless a policy says
that silence is enough.
"""

from typing import NamedTuple

from node.ledger import accounts
from node.ledger.accounts import Get
from node.ledger.contracts import policy
from node.ledger.contracts.access_record import (
    DENIED,
    GRANTED,
    WAITING_CONSENT,
    WAITING_PERSON,
    Request,
    consent_effect,
    consent_refusal,
)
from node.ledger.contracts.study import Study
from node.ledger.contracts.vocabulary import COUNTRY_NOT_STATED
from node.ledger.policies.facts import Facts

CONSENT_RULE = "consent"


class Decision(NamedTuple):
    """What becomes of a request."""

    state: str  # GRANTED, DENIED, WAITING_CONSENT or WAITING_PERSON
    rule: str  # CONSENT_RULE, or the policy's name, "" where none matched
    consent: str  # what a grant needs: "required" or "not_objected"
    refusal: str | None = None  # the code, when consent or policy refuses or consent is missing


def decide(get: Get, request: Request, study: Study, height: int, time_ms: int) -> Decision:
    """Return what becomes of `request` for `study` as of `height`, in a block of `time_ms`.

    Raises `CorruptRecord`.
    """
    effect = consent_effect(get, request, height)
    if effect == "deny":
        return Decision(DENIED, CONSENT_RULE, "required", "consent_refused")
    facts = facts_of(get, request, study, effect == "permit", height, time_ms)
    answer = policy.decide(get, request.custodian, facts)
    if answer.effect == "deny":
        return Decision(DENIED, answer.rule, answer.consent, "policy_refused")
    needed = "required" if answer.effect == "none" else answer.consent
    missing = consent_refusal(effect, needed)
    if answer.effect != "permit":
        return Decision(WAITING_PERSON, answer.rule, needed, missing)
    return Decision(WAITING_CONSENT if missing else GRANTED, answer.rule, needed, missing)


def facts_of(
    get: Get, request: Request, study: Study, consented: bool, height: int, time_ms: int
) -> Facts:
    """Return what conditions may know of `request`."""
    return Facts(
        request_purpose=request.purpose,
        request_uses=request.uses_max,
        request_heights=request.heights,
        request_deidentified=request.deidentified,
        request_ethics=request.ethics_digest is not None,
        requester_institution=request.institution,
        requester_role=request.role,
        requester_country=_country(get, request.institution),
        study_custodian=request.custodian,
        study_country=_country(get, request.custodian),
        study_modality=study.modality,
        study_region=study.region,
        study_version=study.version,
        study_derived=study.derivation is not None,
        study_instance_bucket=study.instance_bucket,
        study_size_bucket=study.size_bucket,
        study_confidentiality=study.confidentiality,
        consent_given=consented,
        height=height,
        time_ms=time_ms,
    )


def _country(get: Get, name: str) -> str:
    institution = accounts.find_institution(get, name)
    return COUNTRY_NOT_STATED if institution is None else institution.country
