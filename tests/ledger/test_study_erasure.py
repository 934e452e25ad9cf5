"""Erasure of studies and its attestation, rule by rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.ledger.contracts import study, study_erasure
from node.ledger.errors import Refused, Rejected
from storage.errors import CorruptRecord
from tests.ledger import contract_ledger
from tests.ledger.contract_ledger import digest, identity

S1, SUBJECT = map(identity, ("s1", "subject"))
REGISTER = ("study.register", S1, SUBJECT, digest("r1"), "CT", "chest", 5, 8)
RETIRE = ("study.retire", S1, "superseded")
ERASE = ("study.erase", S1, "court_order")
ATTEST = ("study.attest_erasure", S1)


class Ledger(contract_ledger.Ledger):
    def __init__(self):
        super().__init__((*study.KINDS, *study_erasure.KINDS))

    def study(self):
        return study.decode_study(self.state.get(study.study_key(S1)))


@pytest.fixture
def ledger():
    return Ledger()


def test_erasing_leaves_a_tombstone_that_is_retired_too(ledger):
    ledger.apply(*REGISTER)
    before = ledger.study()
    assert ledger.apply(*ERASE, height=9) == [("study_erased", (S1, "court_order"))]
    assert ledger.study() == before._replace(
        retired="court_order", erased_height=9, changed_height=9
    )
    assert ledger.state.get(study.root_key(digest("r1"))) is not None
    listed = {(before.ordinal,): study.listing(S1, before)}
    assert ledger.index(study.INDEX_RETIRED) == ledger.index(study.INDEX_ERASED) == listed


def test_a_retired_study_is_erased_and_keeps_why_it_was_retired(ledger):
    ledger.apply(*REGISTER)
    ledger.apply(*RETIRE)
    ledger.apply(*ERASE, height=9)
    assert (ledger.study().retired, ledger.study().erased_height) == ("superseded", 9)


def test_other_institutions_attest_once_each(ledger):
    ledger.apply(*REGISTER)
    ledger.apply(*ERASE)
    for name in ("ukaachen", "third"):
        events = ledger.apply(*ATTEST, institution=name, height=10)
        assert events == [("study_erasure_attested", (S1, name))]
        row = ledger.state.get(study_erasure.attestation_key(S1, name))
        assert study_erasure.decode_attestation(row) == (1, 10)
        assert ledger.refusal(*ATTEST, institution=name) == "erasure_attested"
    assert ledger.trail(S1) == 3


@pytest.mark.parametrize(
    ("before", "operation", "sender", "code"),
    [
        ([], ERASE, "charite", "study_unknown"),
        ([REGISTER], ERASE, "ukaachen", "not_custodian"),
        ([REGISTER, ERASE], ERASE, "charite", "study_erased"),
        ([REGISTER, ERASE], ERASE, "ukaachen", "not_custodian"),
        ([], ATTEST, "ukaachen", "study_unknown"),
        ([REGISTER], ATTEST, "ukaachen", "study_not_erased"),
        ([REGISTER, RETIRE], ATTEST, "ukaachen", "study_not_erased"),
        ([REGISTER, ERASE], ATTEST, "charite", "erasure_own"),
    ],
)
def test_a_rule_that_is_broken_is_named_and_nothing_changes(
    ledger, before, operation, sender, code
):
    for each in before:
        ledger.apply(*each)
    assert ledger.refusal(*operation, institution=sender) == code
    assert code in study_erasure.REJECTIONS


@pytest.mark.parametrize("operation", [ERASE, ATTEST])
def test_erasure_is_no_business_of_readers_and_clinicians(ledger, operation):
    for role in ("auditor", "clinician", "patient", "researcher"):
        with pytest.raises(Rejected, match="role_missing"):
            ledger.apply(*operation, roles=(role,))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("study.erase", (S1,)),
        ("study.erase", (S1, "because the patient asked")),
        ("study.erase", (S1, None)),
        ("study.erase", (S1[:15], "other")),
        ("study.attest_erasure", ()),
        ("study.attest_erasure", (bytes(16),)),
        ("study.attest_erasure", (S1, S1)),
    ],
)
def test_other_forms_are_refused(ledger, name, arguments):
    with pytest.raises(Refused, match="operation_invalid"):
        ledger.kinds[name].parse(arguments)


@given(st.binary(max_size=40))
def test_a_damaged_attestation_is_reported_as_such(row):
    with pytest.raises(CorruptRecord):
        study_erasure.decode_attestation(row)
