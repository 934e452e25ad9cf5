"""What the patient refused at one custodian goes on holding when a study moves to another.

Without this a transfer of custody would open what was closed: the new custodian keeps consent under
a pseudonym of its own, where nothing is refused yet. Permissions do not follow; they were given
for the custodian that asked for them.
"""

import hashlib
from collections.abc import Iterator

from consensus.wire import pack
from node.ledger.contracts.base import Context
from node.ledger.contracts.consent.record import (
    CUSTODIAN,
    OPTED_OUT,
    PERMIT,
    Consent,
    Rule,
    add_rules,
    get_consent,
)
from node.ledger.contracts.forms import ID_BYTES

_TAG = b"radledger/consent-carried/1"


def carry_refusals(
    context: Context, study_id: bytes, custodian: str, subject_id: bytes, new_subject_id: bytes
) -> None:
    """Restate for the sender's institution, from the next height, what `custodian` has on record
    against uses of the study; each refusal becomes a rule about this study alone.

    An opt-out becomes a rule against every use that no other rule beats. What the new record says
    already is left out. Raises `Rejected` with consent_full.
    """
    get, institution = context.state.get, context.institution
    height = context.height + 1
    before = get_consent(get, custodian, subject_id)
    known = get_consent(get, institution, new_subject_id).rules
    missing: dict[Rule, Rule] = {}  # by what they say: one that is said twice is carried once
    for rule in _refusals(before, study_id, height):
        if not any(_says_as_much(old, rule) for old in known):
            missing.setdefault(_essence(rule), rule)
    added = [
        (
            context.ordinal() + bytes((number,)),
            rule._replace(consent_id=_carried_id(context, rule.consent_id)),
        )
        for number, rule in enumerate(missing.values())
    ]
    add_rules(context, institution, new_subject_id, added)
    for _, carried in added:
        context.emit(
            "consent_carried",
            institution,
            new_subject_id,
            carried.consent_id,
            carried.by,
            about=study_id,
        )


def _refusals(consent: Consent, study_id: bytes, height: int) -> Iterator[Rule]:
    if consent.opted_out(height):
        by = consent.opted_out_by or CUSTODIAN
        yield Rule(b"", OPTED_OUT, study_id, None, (), height, None, None, by, None)
    for rule in consent.rules:
        if rule.effect != PERMIT and rule.study_id in (None, study_id) and not rule.is_over(height):
            yield rule._replace(study_id=study_id, from_height=height)


def _says_as_much(old: Rule, new: Rule) -> bool:
    """Return whether `old` forbids what `new` does, for as long, and only the same can end it."""
    return old.from_height <= new.from_height and _essence(old) == _essence(new)


def _essence(rule: Rule) -> Rule:
    return rule._replace(consent_id=b"", from_height=0, form_digest=None)


def _carried_id(context: Context, consent_id: bytes) -> bytes:
    named = pack((context.chain_id, context.ordinal(), consent_id))
    return hashlib.sha256(_TAG + named).digest()[:ID_BYTES]
