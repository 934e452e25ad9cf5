"""Consent: what a patient allows and forbids, set by the patient's key or by the custodian's staff.

Each custodian keeps it under its own pseudonym of the patient. `record` says what is stored and
what it answers, `operations` who may change it and how, `custody` what of it follows a study to
another custodian.
"""

from node.ledger.contracts.consent.custody import carry_refusals
from node.ledger.contracts.consent.operations import (
    REJECTIONS,
    Reconsider,
    kinds,
)
from node.ledger.contracts.consent.record import (
    CUSTODIAN,
    DENY,
    INDEX_CONSENT,
    INDEX_SUBJECT,
    NONE,
    OPTED_OUT,
    PATIENT,
    PERMIT,
    RULES_MAX,
    WAITING_MAX,
    Consent,
    ConsentAnswer,
    Rule,
    add_waiting,
    consent_key,
    decode_consent,
    get_consent,
    patient_key,
    remove_waiting,
    status,
)

__all__ = [
    "CUSTODIAN",
    "DENY",
    "INDEX_CONSENT",
    "INDEX_SUBJECT",
    "NONE",
    "OPTED_OUT",
    "PATIENT",
    "PERMIT",
    "REJECTIONS",
    "RULES_MAX",
    "WAITING_MAX",
    "Consent",
    "ConsentAnswer",
    "Reconsider",
    "Rule",
    "add_waiting",
    "carry_refusals",
    "consent_key",
    "decode_consent",
    "get_consent",
    "kinds",
    "patient_key",
    "remove_waiting",
    "status",
]
