"""What of a consent goes to the parts of a study that is split: pure decisions."""

import itertools
from types import SimpleNamespace

import pytest

from node.gateway.carrying import (
    carried,
    left_to_patient,
    refused_meanwhile,
    split_operations,
)
from node.ledger.queries.access_views import ConsentRuleView
from node.ledger.transaction import Operation

SUBJECT, OLD, REST, APART, OTHER = (bytes([n]) * 16 for n in range(1, 6))
FORM = b"F" * 32
STUDY = SimpleNamespace(id=OLD, subject_id=SUBJECT, confidentiality="N")
REGISTRATIONS = tuple(Operation("study.register", (each, SUBJECT)) for each in (REST, APART))


def rule(effect, study_id=OLD, to=None, purposes=(), until=None, by="custodian", state="in_force"):
    places = (effect, study_id, to, purposes, 1, until, None, by, None, state)
    return ConsentRuleView(bytes(16), *places)


def consent(*rules):
    return SimpleNamespace(rules=rules)


def said(operations):
    """Return (effect, part, recipient, purposes, until) of each operation of consent."""
    found = []
    for operation in operations:
        _, subject, study_id, recipient, purposes, until, form = operation.arguments
        assert (subject, form) == (SUBJECT, FORM)
        found.append((operation.name, study_id, recipient, purposes, until))
    return found


def carry(*rules):
    ids = itertools.count()
    new_id = lambda: next(ids).to_bytes(16, "big")  # noqa: E731
    return said(carried(STUDY, REST, APART, consent(*rules), FORM, new_id))


def test_a_refusal_goes_to_both_parts_and_a_permission_to_the_rest():
    assert carry(rule("deny", to="gamma"), rule("permit", purposes=("TREAT",), until=99)) == [
        ("consent.restrict", REST, "gamma", (), None),
        ("consent.grant", REST, None, ("TREAT",), 99),
        ("consent.restrict", APART, "gamma", (), None),
    ]


def test_what_the_patient_permitted_by_key_is_left_to_the_patient():
    rules = (rule("permit", by="patient"), rule("deny", by="patient", to="beta"))
    assert carry(*rules) == [
        ("consent.restrict", REST, "beta", (), None),
        ("consent.restrict", APART, "beta", (), None),
    ]
    assert left_to_patient(consent(*rules), OLD) == 1
    assert left_to_patient(None, OLD) == 0


@pytest.mark.parametrize(
    "none", [rule("permit", OTHER), rule("permit", None), rule("deny", state="withdrawn")]
)
def test_what_is_about_other_studies_or_over_is_not_carried(none):
    assert carry(none) == []


def meanwhile(*rules):
    new_id = lambda: bytes(16)  # noqa: E731
    return said(refused_meanwhile(STUDY, REST, APART, consent(*rules), FORM, new_id))


def test_afterwards_only_refusals_come_and_nothing_that_was_once_said():
    rules = [rule("deny", to="gamma"), rule("permit")]
    assert meanwhile(*rules, rule("deny", REST, "gamma")) == [
        ("consent.restrict", APART, "gamma", (), None)
    ]
    taken_back = [rule("deny", part, "gamma", state="withdrawn") for part in (REST, APART)]
    assert meanwhile(*rules, *taken_back) == []
    assert meanwhile(rule("deny", state="expired")) == []


def test_one_transaction_registers_refuses_carries_and_retires_in_that_order():
    study = SimpleNamespace(id=OLD, subject_id=SUBJECT, confidentiality="V")
    rules = consent(rule("permit"))
    made = split_operations(study, REGISTRATIONS, rules, FORM, lambda: b"i" * 16)
    assert [(each.name, each.arguments[:3]) for each in made] == [
        ("study.register", (REST, SUBJECT)),
        ("study.register", (APART, SUBJECT)),
        ("study.classify", (REST, "V")),
        ("study.classify", (APART, "V")),
        ("consent.restrict", (b"i" * 16, SUBJECT, APART)),
        ("consent.grant", (b"i" * 16, SUBJECT, REST)),
        ("study.retire", (OLD, "superseded")),
    ]
    assert made[4].arguments[3:] == (None, (), None, FORM)
