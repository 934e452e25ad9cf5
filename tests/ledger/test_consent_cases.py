"""Requirement 9, case by case: which consent lets a request through, and which does not.

Whole studies are excluded, not series: a grant hands over one key, which opens all of a study, so
an exclusion of a series would be a promise that nothing keeps.
"""

import pytest

from consensus.wire import pack
from node.ledger import accounts
from tests.ledger.access_steps import R1, R2, bind, deliver, grant
from tests.ledger.access_world import (
    CUSTODIAN,
    STUDY,
    SUBJECT,
    THIRD,
    WHO,
    World,
    asking,
    breaking,
    digest,
    identity,
    key_of,
)

DECISIONS = {"access_granted", "access_denied", "access_waiting"}
RESEARCH = {"sender": WHO.researcher, "role": "researcher"}
OTHER_STUDY = identity("another study of the same patient")


@pytest.fixture
def world():
    """A custodian whose policy permits whatever the patient consents to."""
    made = World()
    made.publish("permit")
    return made


def decided(world, request_id=R1, sender=WHO.asker, **asked):
    """Ask; return what became of it. Each request is decided by exactly one event."""
    events = world.act(sender, "access.request", *asking(request_id, **asked))
    assert [name for name, _ in events if name == "access_requested"] == ["access_requested"]
    (decision,) = [event for event in events if event[0] in DECISIONS]
    assert len(events) == 2
    held = world.held(request_id)
    world.height += 1
    is_permitted = world.permitted(request_id) is None
    world.height -= 1
    assert is_permitted == (decision[0] == "access_granted") == (held.state == "granted")
    return held.state


def test_without_any_consent_nothing_is_permitted(world):
    assert decided(world) == "waiting_consent"
    assert world.permitted(R1, 11) == "request_waiting"
    assert world.code(WHO.gateway, "access.deliver", R1, digest("key")) == "request_waiting"


def test_without_any_policy_a_person_decides_and_until_then_nothing_is_permitted():
    assert decided(World()) == "waiting_person"


def test_consent_to_treatment_permits_treatment_and_nothing_else(world):
    world.consent(purposes=("TREAT",))
    assert decided(world, purpose="TREAT") == "granted"
    assert decided(world, R2, purpose="HRESCH", **RESEARCH) == "waiting_consent"


@pytest.mark.parametrize(
    ("consented", "asked", "state"),
    [
        (("HRESCH",), "HRESCH", "granted"),
        (("CLINTRCH", "HRESCH"), "CLINTRCH", "granted"),
        ((), "HRESCH", "granted"),  # every purpose
        (("CLINTRCH",), "HRESCH", "waiting_consent"),
        (("HRESCH",), "CLINTRCH", "waiting_consent"),
        (("TREAT", "CAREMGT"), "HRESCH", "waiting_consent"),
    ],
)
def test_research_needs_the_very_code_that_was_consented_to(world, consented, asked, state):
    world.consent(purposes=consented)
    assert decided(world, purpose=asked, **RESEARCH) == state


def test_research_may_be_refused_by_who_consents_to_all_else(world):
    world.consent(label="all")
    world.consent("restrict", label="research", purposes=("HRESCH",))
    assert decided(world, purpose="TREAT") == "granted"
    assert decided(world, R2, purpose="HRESCH", **RESEARCH) == "denied"


def test_consent_that_expires_permits_to_its_last_height(world):
    world.consent(until=20)
    assert decided(world) == "granted"
    permitted = [height for height in range(10, 40) if world.permitted(R1, height) is None]
    assert permitted == list(range(11, 21))
    world.height = 21
    assert decided(world, R2) == "waiting_consent"


def test_a_withdrawal_ends_what_rests_on_it(world):
    world.consent()
    assert decided(world) == "granted"
    world.height = 12
    world.withdraw()
    assert world.permitted(R1) == "consent_missing"
    assert world.code(WHO.gateway, "access.deliver", R1, digest("key")) == "consent_missing"
    assert decided(world, R2) == "waiting_consent"


def test_a_study_is_excluded_from_consent_to_all(world):
    world.register(OTHER_STUDY, SUBJECT, digest("its root"))
    world.consent(label="all")
    world.consent("restrict", label="but one", study_id=OTHER_STUDY)
    assert decided(world) == "granted"
    assert decided(world, R2, study_id=OTHER_STUDY) == "denied"


def test_consent_for_a_named_recipient_is_nobody_elses(world):
    world.consent(recipient=THIRD)
    assert decided(world) == "waiting_consent"
    assert decided(world, R2, sender=WHO.third) == "granted"


def test_a_guardian_decides_by_key_until_the_patient_does(world):
    """A guardian's key is bound as the patient's is; of age, the patient's own takes its place."""
    guardian, own = key_of(*WHO.patient), digest("own key")
    bind(world)
    rule = (SUBJECT, None, None, (), None, None)
    world.height -= 1
    world.act(WHO.patient, "consent.grant", identity("g"), *rule, key=guardian)
    world.height += 1
    assert decided(world) == "granted"
    member = accounts.member_key(CUSTODIAN, own)
    world.state.put(member, pack(accounts.new_member(("patient",))))
    world.act(WHO.gateway, "consent.bind", SUBJECT, own)
    withdraw = (SUBJECT, identity("g"), None)
    refused = world.code(WHO.patient, "consent.withdraw", *withdraw, key=guardian)
    assert refused == "patient_not_bound"
    world.act(WHO.patient, "consent.withdraw", *withdraw, key=own)
    world.height += 1
    assert world.permitted(R1) == "consent_missing"


def test_break_glass_needs_no_consent_and_is_one_loud_event(world):
    world.consent("restrict")
    events = world.act(WHO.asker, "access.break_glass", *breaking(R1))
    assert [name for name, _ in events] == ["access_break_glass"]
    assert world.permitted(R1, 11) is None


@pytest.mark.parametrize("scope", [{}, {"study_id": STUDY}, {"purposes": ("TREAT",)}])
def test_a_refusal_beats_an_older_permission(world, scope):
    world.consent(label="old", **scope)
    assert decided(world) == "granted"
    world.height = 15
    assert world.permitted(R1) is None
    world.consent("restrict", label="new", **scope)
    assert world.permitted(R1) == "consent_refused"
    assert decided(world, R2) == "denied"


def test_opting_out_beats_whatever_was_permitted_more_narrowly(world):
    world.consent(study_id=STUDY, recipient=WHO.asker[0], purposes=("TREAT",))
    assert decided(world) == "granted"
    world.act(WHO.clinician, "consent.opt_out", SUBJECT, digest("form"))
    world.height += 1
    assert world.permitted(R1) == "consent_refused"
    assert decided(world, R2) == "denied"


def test_every_step_of_a_grant_is_one_event_and_a_refused_one_is_none(world):
    grant(world)
    world.height += 1
    before = world.snapshot()
    assert world.code(WHO.third_gateway, "access.deliver", R1, digest("key")) == "not_custodian"
    assert world.snapshot() == before
    assert [name for name, _ in deliver(world)] == ["access_delivered"]
