"""What of a patient's consent goes from a study that is split to its parts, and how it is written.

Pure. Rules about all studies of the patient hold for the parts by themselves. Of the rules about
the study, a refusal goes to both parts; a permission to the rest alone, and only one that the
custodian entered: what the patient permitted by key, the patient gives anew. All that is carried is
entered by the custodian, with the form by which the patient excluded the series. What is set apart
gets a refusal of every use first of all.
"""

from collections.abc import Callable, Iterator

from node.ledger.contracts.consent import CUSTODIAN, DENY, PERMIT
from node.ledger.queries.access_views import ConsentRuleView, ConsentView
from node.ledger.queries.studies import StudySummary
from node.ledger.transaction import Operation

SUPERSEDED = "superseded"
_HOLDING = frozenset({"in_force", "not_yet"})
_OPERATIONS = {DENY: "consent.restrict", PERMIT: "consent.grant"}
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
    """Return the operations that state the rules about the study anew for its parts; none for what
    they say already."""
    rules = () if consent is None else consent.rules
    return [
        Operation(
            _OPERATIONS[rule.effect],
            (
                new_id(),
                study.subject_id,
                part,
                rule.recipient,
                rule.purposes,
                rule.until_height,
                form_digest,
            ),
        )
        for part in (rest, apart)
        for rule in _missing(rules, study.id, part, (DENY, PERMIT) if part == rest else (DENY,))
    ]


def left_to_patient(consent: ConsentView | None, study_id: bytes) -> int:
    """Return how many permissions about the study only the patient can give anew."""
    rules = () if consent is None else consent.rules
    return sum(rule.effect == PERMIT and rule.by != CUSTODIAN for rule in _about(rules, study_id))


def _missing(
    rules: tuple[ConsentRuleView, ...], study_id: bytes, part: bytes, effects: tuple[str, ...]
) -> Iterator[ConsentRuleView]:
    said = {_essence(rule) for rule in _about(rules, part)}
    for rule in _about(rules, study_id):
        may = rule.effect == DENY or rule.by == CUSTODIAN
        if may and rule.effect in effects and _essence(rule) not in said:
            yield rule


def _about(rules: tuple[ConsentRuleView, ...], study_id: bytes) -> Iterator[ConsentRuleView]:
    return (rule for rule in rules if rule.study_id == study_id and rule.state in _HOLDING)


def _essence(rule: ConsentRuleView) -> tuple[object, ...]:
    return rule.effect, rule.recipient, rule.purposes, rule.until_height
