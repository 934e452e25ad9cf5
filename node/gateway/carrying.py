"""What of a patient's consent goes from a study that is split to its parts, and how it is written.

Pure. Rules about all studies of the patient hold for the parts by themselves. Of the rules about
the study, a refusal goes to both parts; a permission to the rest alone, and only one that the
custodian entered: what the patient permitted by key, the patient gives anew. All that is carried is
entered by the custodian, with the form by which the patient excluded the series. What is set apart
gets a refusal of every use first of all.
"""

from collections.abc import Callable
from functools import partial

from node.ledger.contracts.consent import CUSTODIAN, DENY, OPTED_OUT, PERMIT
from node.ledger.queries.access_views import ConsentRuleView, ConsentView
from node.ledger.queries.studies import StudySummary
from node.ledger.transaction import Operation

SUPERSEDED = "superseded"
_HOLDING = frozenset({"in_force", "not_yet"})
_OPERATIONS = {
    DENY: "consent.restrict",
    OPTED_OUT: "consent.restrict",
    PERMIT: "consent.grant",
}
_NORMAL = "N"

NewId = Callable[[], bytes]  # 16 random bytes


def split_operations(
    study: StudySummary,
    registrations: tuple[Operation, Operation],
    consent: ConsentView | None,
    form_digest: bytes,
    new_id: NewId,
) -> list[Operation]:
    """Return what one transaction does to split a study: all of it takes place, or nothing.

    `registrations` are those of the rest and of what is set apart. At no height is there a part
    without its refusals, or a study that is given out beside its parts.
    """
    rest, apart = (bytes(each.arguments[0]) for each in registrations)  # type: ignore[arg-type]
    operations = [*registrations]
    if study.confidentiality != _NORMAL:
        levels = [(part, study.confidentiality) for part in (rest, apart)]
        operations += [Operation("study.classify", arguments) for arguments in levels]
    everything = (new_id(), study.subject_id, apart, None, (), None, form_digest)
    operations.append(Operation(_OPERATIONS[DENY], everything))
    operations += carried(study, rest, apart, consent, form_digest, new_id)
    operations.append(Operation("study.retire", (study.id, SUPERSEDED)))
    return operations


def carried(
    study: StudySummary,
    rest: bytes,
    apart: bytes,
    consent: ConsentView | None,
    form_digest: bytes,
    new_id: NewId,
) -> list[Operation]:
    """Return the operations that state the rules about the study for its new parts."""
    state = partial(_stated, study, form_digest, new_id)
    rules = [rule for rule in _about(consent, study.id) if rule.state in _HOLDING]
    refusals = [rule for rule in rules if rule.effect != PERMIT]
    permissions = [rule for rule in rules if rule.effect == PERMIT and rule.by == CUSTODIAN]
    return [
        *[state(rest, rule) for rule in (*refusals, *permissions)],
        *[state(apart, rule) for rule in refusals],
    ]


def refused_meanwhile(
    study: StudySummary,
    rest: bytes,
    apart: bytes,
    consent: ConsentView | None,
    form_digest: bytes,
    new_id: NewId,
) -> list[Operation]:
    """Return the operations that state refusals about the study which came while the transaction
    was on its way.

    What was once said about a part is never said again, whether it still holds or not: the patient
    may have taken it back. So no permission comes this way at all.
    """
    operations = []
    for part in (rest, apart):
        said = {_essence(rule) for rule in _about(consent, part)}
        for rule in _about(consent, study.id):
            if rule.effect != PERMIT and rule.state in _HOLDING and _essence(rule) not in said:
                operations.append(_stated(study, form_digest, new_id, part, rule))
    return operations


def left_to_patient(consent: ConsentView | None, study_id: bytes) -> int:
    """Return how many permissions about the study only the patient can give anew."""
    rules = [rule for rule in _about(consent, study_id) if rule.state in _HOLDING]
    return sum(rule.effect == PERMIT and rule.by != CUSTODIAN for rule in rules)


def _stated(
    study: StudySummary, form_digest: bytes, new_id: NewId, part: bytes, rule: ConsentRuleView
) -> Operation:
    about = part, rule.recipient, rule.purposes, rule.until_height
    arguments = (new_id(), study.subject_id, *about, form_digest)
    return Operation(_OPERATIONS[rule.effect], arguments)


def _about(consent: ConsentView | None, study_id: bytes) -> list[ConsentRuleView]:
    rules = () if consent is None else consent.rules
    return [rule for rule in rules if rule.study_id == study_id]


def _essence(rule: ConsentRuleView) -> tuple[object, ...]:
    return _OPERATIONS[rule.effect], rule.recipient, rule.purposes, rule.until_height
