"""Transfer of custody, rule by rule."""

from dataclasses import replace

import pytest

from node.ledger import queries
from node.ledger.contracts import consent, study, study_erasure, study_transfer
from node.ledger.contracts.base import INDEX_TRAIL
from node.ledger.errors import Refused, Rejected
from node.ledger.genesis import Member
from tests.ledger import contract_ledger, harness
from tests.ledger.contract_ledger import digest, identity

S1, S2, SUBJECT, OTHER, NEW = map(identity, ("s1", "s2", "subject", "other", "new"))
FORM, PATIENT_KEY = digest("form"), digest("patient key")
REGISTER = ("study.register", S1, SUBJECT, digest("r1"), "CT", "chest", 5, 8)
OFFER = ("study.offer", S1, "ukaachen")
WITHDRAW = ("study.withdraw_offer", S1)
ACCEPT = ("study.accept", S1, NEW)
RETIRE = ("study.retire", S1, "superseded")
ERASE = ("study.erase", S1, "court_order")


class Ledger(contract_ledger.Ledger):
    def __init__(self):
        super().__init__(
            (
                *study.KINDS,
                *study_transfer.KINDS,
                *study_erasure.KINDS,
                *consent.kinds(lambda context, request_id: None),
            )
        )
        self.apply(*REGISTER, height=5)

    def study(self):
        return study.decode_study(self.state.get(study.study_key(S1)))

    def status(self, recipient="third", purpose="TREAT", height=9, custodian="ukaachen", of=NEW):
        get = self.state.get
        return consent.status(get, custodian, of, S1, recipient, purpose, height)

    def move(self, height=8):
        self.apply(*OFFER, height=height)
        return self.apply(*ACCEPT, institution="ukaachen", height=height)

    def rules(self, institution="ukaachen", subject=NEW):
        return consent.get_consent(self.state.get, institution, subject).rules


@pytest.fixture
def ledger():
    return Ledger()


def test_an_offer_names_who_may_accept_and_changes_nothing_else(ledger):
    before = ledger.study()
    assert ledger.apply(*OFFER) == [("study_offered", (S1, "ukaachen"))]
    assert ledger.study() == before._replace(offered_to="ukaachen", changed_height=7)
    assert ledger.index(study.INDEX_OFFERED) == {
        (b"ukaachen", before.ordinal): study.listing(S1, before)
    }


def test_a_withdrawn_offer_can_be_accepted_no_more(ledger):
    ledger.apply(*OFFER)
    assert ledger.apply(*WITHDRAW) == [("study_offer_withdrawn", (S1, "ukaachen"))]
    assert ledger.study().offered_to is None
    assert ledger.index(study.INDEX_OFFERED) == {}
    assert ledger.refusal(*ACCEPT, institution="ukaachen") == "not_offered"
    ledger.apply("study.offer", S1, "third")
    assert ledger.study().offered_to == "third"


def test_accepting_makes_the_sender_custodian_under_its_own_pseudonym(ledger):
    before = ledger.study()
    ledger.apply(*OFFER)
    events = ledger.apply(*ACCEPT, institution="ukaachen", height=8)
    assert events == [("study_accepted", (S1, "charite", "ukaachen"))]
    assert ledger.study() == before._replace(
        custodian="ukaachen", subject_id=NEW, changed_height=8, offered_to=None
    )


def test_the_lists_follow_at_the_place_of_registration(ledger):
    ordinal = ledger.study().ordinal
    ledger.move()
    listed = S1 + b"ukaachen/CT/chest"
    assert ledger.index(study.INDEX_CUSTODIAN) == {(b"ukaachen", ordinal): listed}
    assert ledger.index(study.INDEX_SUBJECT) == {(NEW, ordinal): listed}
    assert ledger.index(study.INDEX_KIND) == {(b"CT", b"chest", ordinal): listed}
    assert ledger.index(study.INDEX_OFFERED) == {}


def test_the_new_custodian_amends_and_the_old_one_no_more(ledger):
    ledger.move()
    amend = ("study.amend", S1, 2, digest("r1"), digest("r2"), 5, 8)
    assert ledger.refusal(*amend) == "not_custodian"
    ledger.apply(*amend, institution="ukaachen")
    ledger.apply("study.offer", S1, "charite", institution="ukaachen")
    ledger.apply("study.accept", S1, SUBJECT)
    assert (ledger.study().custodian, ledger.study().version) == ("charite", 2)


@pytest.mark.parametrize("close", [RETIRE, ERASE])
def test_closing_a_study_ends_its_offer(ledger, close):
    ledger.apply(*OFFER)
    ledger.apply(*close)
    assert ledger.study().offered_to is None
    assert ledger.index(study.INDEX_OFFERED) == {}
    assert ledger.refusal(*ACCEPT, institution="ukaachen") == "not_offered"


@pytest.mark.parametrize(
    ("before", "operation", "sender", "code"),
    [
        ([], ("study.offer", S2, "ukaachen"), "charite", "study_unknown"),
        ([], OFFER, "third", "not_custodian"),
        ([], ("study.offer", S1, "charite"), "charite", "offered_to_self"),
        ([], ("study.offer", S1, "nowhere"), "charite", "institution_unknown"),
        ([OFFER], OFFER, "charite", "study_offered"),
        ([OFFER], ("study.offer", S1, "third"), "charite", "study_offered"),
        ([RETIRE], OFFER, "charite", "study_retired"),
        ([ERASE], OFFER, "charite", "study_erased"),
        ([], WITHDRAW, "charite", "not_offered"),
        ([OFFER], WITHDRAW, "ukaachen", "not_custodian"),
        ([], ("study.withdraw_offer", S2), "charite", "study_unknown"),
        ([RETIRE], WITHDRAW, "charite", "study_retired"),
        ([ERASE], WITHDRAW, "charite", "study_erased"),
        ([], ("study.accept", S2, NEW), "ukaachen", "study_unknown"),
        ([], ACCEPT, "ukaachen", "not_offered"),
        ([OFFER], ACCEPT, "third", "not_offered"),
        ([OFFER], ACCEPT, "charite", "not_offered"),
    ],
)
def test_a_rule_that_is_broken_is_named_and_nothing_changes(
    ledger, before, operation, sender, code
):
    for each in before:
        ledger.apply(*each)
    assert ledger.refusal(*operation, institution=sender) == code
    assert code in study_transfer.REJECTIONS


@pytest.mark.parametrize("operation", [OFFER, WITHDRAW, ACCEPT])
def test_who_reads_or_treats_does_not_transfer(ledger, operation):
    for role in ("auditor", "clinician", "data_protection_officer", "patient", "researcher"):
        with pytest.raises(Rejected, match="role_missing"):
            ledger.apply(*operation, roles=(role,))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("study.offer", (S1,)),
        ("study.offer", (S1, "ukaachen", 1)),
        ("study.offer", (S1[:15], "ukaachen")),
        ("study.offer", (bytes(16), "ukaachen")),
        *(
            ("study.offer", (S1, name))
            for name in ("", "UK Aachen", "a" * 33, "-x", "x\n", "ä", b"ukaachen", None, 1)
        ),
        ("study.withdraw_offer", ()),
        ("study.withdraw_offer", (S1.hex(),)),
        ("study.accept", (S1,)),
        ("study.accept", (S1, b"MRN 000123456789")),
        ("study.accept", (S1, None)),
    ],
)
def test_other_forms_are_refused(ledger, name, arguments):
    with pytest.raises(Refused, match="operation_invalid"):
        ledger.kinds[name].parse(arguments)


def test_every_step_is_on_the_trail(ledger):
    ledger.apply(*OFFER)
    ledger.apply(*WITHDRAW)
    ledger.move()
    assert ledger.trail(S1) == 4


def restrict(ledger, label, study_id=None, recipient=None, purposes=(), *, until=None, **sender):
    arguments = (identity(label), SUBJECT, study_id, recipient, purposes, until)
    form = None if sender else FORM
    ledger.apply("consent.restrict", *arguments, form, height=6, **sender)


def as_patient(ledger):
    ledger.add_member("charite", PATIENT_KEY, "patient")
    ledger.apply("consent.bind", SUBJECT, PATIENT_KEY, height=5)
    return {"key": PATIENT_KEY, "roles": ("patient",)}


def test_a_refusal_follows_the_study_and_is_about_it_alone(ledger):
    restrict(ledger, "c1", None, "third", ("HRESCH",))
    events = ledger.move(height=8)
    (rule,) = ledger.rules()
    assert events == [
        ("study_accepted", (S1, "charite", "ukaachen")),
        ("consent_carried", ("ukaachen", NEW, rule.consent_id, "custodian")),
    ]
    assert rule[1:] == ("deny", S1, "third", ("HRESCH",), 9, None, None, "custodian", FORM)
    assert ledger.status(purpose="HRESCH") == ("deny", rule.consent_id)
    assert ledger.status(purpose="HRESCH", height=8).effect == "none"
    assert ledger.status(purpose="TREAT").effect == "none"
    assert ledger.status(recipient="charite", purpose="HRESCH").effect == "none"


def test_an_opt_out_follows_and_no_rule_beats_it(ledger):
    ledger.apply("consent.opt_out", SUBJECT, None, height=6, **as_patient(ledger))
    ledger.move()
    (rule,) = ledger.rules()
    opted_out = ("opted_out", S1, None, ())
    assert (rule.effect, rule.study_id, rule.recipient, rule.purposes) == opted_out
    assert ledger.status() == ("deny", rule.consent_id)
    # Not the most specific one, by the staff of the new custodian.
    narrow = (identity("c9"), NEW, S1, "third", ("TREAT",), None, FORM)
    ledger.apply("consent.grant", *narrow, institution="ukaachen", height=9)
    assert ledger.status(height=10) == ("deny", rule.consent_id)
    withdraw = ("consent.withdraw", NEW, rule.consent_id, FORM)
    assert ledger.refusal(*withdraw, institution="ukaachen", height=10) == "patient_decides"


def test_what_is_refused_twice_is_carried_once(ledger):
    for label in ("c1", "c2", "c3"):
        restrict(ledger, label, None, "third")
    assert len(ledger.move(height=8)) == 2
    assert len(ledger.rules()) == 1


def test_what_the_patient_refused_the_new_custodian_does_not_end(ledger):
    restrict(ledger, "c1", S1, **as_patient(ledger))
    ledger.move()
    (rule,) = ledger.rules()
    withdraw = ("consent.withdraw", NEW, rule.consent_id)
    assert ledger.refusal(*withdraw, FORM, institution="ukaachen", height=9) == "patient_decides"
    ledger.add_member("ukaachen", PATIENT_KEY, "patient")
    ledger.apply("consent.bind", NEW, PATIENT_KEY, institution="ukaachen", height=9)
    sender = {"institution": "ukaachen", "key": PATIENT_KEY, "roles": ("patient",)}
    ledger.apply(*withdraw, None, height=9, **sender)
    assert ledger.status(height=10).effect == "none"


def test_neither_permissions_nor_what_is_over_or_about_others_follows(ledger):
    grant = (identity("c1"), SUBJECT, None, None, (), None, FORM)
    ledger.apply("consent.grant", *grant, height=6)
    restrict(ledger, "c2", until=8)
    restrict(ledger, "c3")
    ledger.apply("consent.withdraw", SUBJECT, identity("c3"), FORM, height=7)
    ledger.apply("study.register", S2, SUBJECT, digest("r2"), "CT", "chest", 5, 8)
    restrict(ledger, "c4", S2)
    ledger.apply("consent.opt_out", SUBJECT, FORM, height=6)
    ledger.apply("consent.opt_in", SUBJECT, FORM, height=7)
    assert len(ledger.move(height=8)) == 1
    assert ledger.rules() == ()


def test_several_refusals_are_listed_each_for_itself(ledger):
    restrict(ledger, "c1")
    restrict(ledger, "c2", S1, "third")
    ledger.apply("consent.opt_out", SUBJECT, FORM, height=6)
    ledger.move()
    listed = [
        consent_id
        for parts, consent_id in ledger.index(consent.INDEX_CONSENT).items()
        if parts[0] == b"ukaachen"
    ]
    assert sorted(listed) == sorted(rule.consent_id for rule in ledger.rules())
    assert len(listed) == len(set(listed)) == 3
    assert ledger.index(consent.INDEX_SUBJECT).keys() == {(b"charite", SUBJECT), (b"ukaachen", NEW)}
    # An offer, the acceptance, three refusals, and the one that named the study.
    assert len(ledger.index(INDEX_TRAIL)) == 6


def test_a_study_that_comes_back_is_refused_once(ledger):
    restrict(ledger, "c1", S1)
    for number in range(4):
        here, there = ("charite", "ukaachen") if number % 2 == 0 else ("ukaachen", "charite")
        subject = NEW if there == "ukaachen" else SUBJECT
        ledger.apply("study.offer", S1, there, institution=here, height=8)
        ledger.apply("study.accept", S1, subject, institution=there, height=8)
    assert len(ledger.rules()) == len(ledger.rules("charite", SUBJECT)) == 1


def test_no_room_for_a_refusal_stops_the_transfer(ledger):
    """Else it would be lost without a word."""
    restrict(ledger, "c1")
    for number in range(consent.RULES_MAX):
        arguments = (identity(("full", number)), NEW, None, None, (), None, FORM)
        ledger.apply("consent.grant", *arguments, institution="ukaachen", height=6)
    ledger.apply(*OFFER)
    with pytest.raises(Rejected, match="consent_full"):
        ledger.apply(*ACCEPT, institution="ukaachen")
    assert ledger.study().custodian == "charite"


def test_search_finds_a_moved_study_with_its_new_custodian_alone():
    charite, ukaachen = harness.GENESIS.institutions
    aachen = replace(ukaachen, members=(Member(harness.AACHEN, ("gateway",)),))
    genesis = replace(harness.GENESIS, institutions=(charite, aachen))
    chain = harness.Chain(genesis=genesis)
    register = harness.register("moved")
    study_id, subject_id = register[1], register[2]
    by_aachen = {"institution": "ukaachen", "key": harness.AACHEN}
    for operation, sender in [
        (register, {}),
        (harness.register("stays"), {}),
        (("study.offer", study_id, "ukaachen"), {}),
        (("study.accept", study_id, NEW), by_aachen),
    ]:
        assert chain.codes(harness.transaction(operation, genesis=genesis, **sender)) == ["ok"]

    def found(**question):
        page = queries.search(chain.chain, queries.StudyQuery(**question))
        return [each.id for each in page.studies]

    assert found(custodian="ukaachen") == found(subject_id=NEW) == [study_id]
    assert study_id not in found(custodian="charite")
    assert found(subject_id=subject_id) == []
    # Both lists keep the order of registration.
    assert found()[1] == study_id
