"""The access contract, rule by rule: what becomes of a grant, and emergencies."""

import pytest

from node.ledger.contracts import access_record
from tests.ledger.access_steps import (
    R1,
    WRAPPED,
    ask,
    bind,
    deliver,
    grant,
    held_for,
    receive,
    use,
)
from tests.ledger.access_world import (
    ASKER,
    CUSTODIAN,
    FORM,
    ROLES,
    ROOT,
    STUDY,
    SUBJECT,
    THIRD,
    WHO,
    World,
    breaking,
    digest,
    identity,
)


@pytest.fixture
def world():
    return World()


@pytest.mark.parametrize("state", sorted(access_record.WAITING))
@pytest.mark.parametrize("role", ["clinician", "researcher", "gateway", "administrator"])
def test_the_asker_cancels_what_waits(world, state, role):
    held_for(world, state)
    assert world.act((ASKER, role), "access.cancel", R1) == [
        ("access_cancelled", (R1, STUDY, ASKER))
    ]
    assert (world.held(R1).state, world.held(R1).ended_height) == ("cancelled", world.height)
    assert world.waiting() == []
    assert world.listed("request_waiting", b"charite") == []


def test_nobody_else_cancels(world):
    ask(world)
    assert world.code(WHO.third, "access.cancel", R1) == "not_requester"
    assert world.code(WHO.clinician, "access.cancel", R1) == "not_requester"


@pytest.mark.parametrize("state", sorted(access_record.OPEN))
@pytest.mark.parametrize("role", ["clinician", "administrator", "data_protection_officer"])
def test_the_custodian_revokes(world, state, role):
    held_for(world, state)
    assert world.act((CUSTODIAN, role), "access.revoke", R1, "misuse") == [
        ("access_revoked", (R1, STUDY, ASKER, "misuse", "person"))
    ]
    held = world.held(R1)
    assert (held.state, held.reason, held.ended_height) == ("revoked", "misuse", world.height)
    assert world.permitted(R1) == "request_revoked"


def test_the_bound_patient_revokes_and_no_other(world):
    grant(world)
    assert world.code(WHO.patient, "access.revoke", R1, "patient_request") == "patient_not_bound"
    bind(world)
    other = digest("another patient of the same hospital")
    assert world.code(WHO.patient, "access.revoke", R1, "other", key=other) == "patient_not_bound"
    assert world.code((ASKER, "patient"), "access.revoke", R1, "other") == "not_custodian"
    events = world.act(WHO.patient, "access.revoke", R1, "patient_request")
    assert events == [("access_revoked", (R1, STUDY, ASKER, "patient_request", "patient"))]


def test_nobody_else_revokes(world):
    grant(world)
    for sender in (WHO.asker, WHO.third):
        assert world.code(sender, "access.revoke", R1, "other") == "not_custodian"
    assert world.code(WHO.gateway, "access.revoke", R1, "other") == "role_missing"


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("waiting_consent", "request_waiting"),
        ("waiting_person", "request_waiting"),
        ("denied", "request_denied"),
        ("cancelled", "request_cancelled"),
        ("revoked", "request_revoked"),
        ("expired", "request_expired"),
    ],
)
def test_only_a_grant_is_revoked_delivered_received_or_used(world, state, code):
    held_for(world, state)
    world.height += 1
    assert world.code(WHO.clinician, "access.revoke", R1, "other") == code
    assert world.code(WHO.gateway, "access.deliver", R1, WRAPPED) == code
    assert world.code(WHO.asker, "access.receive", R1, ROOT) == code
    assert world.code(WHO.asker, "access.use", R1) == code
    assert world.permitted(R1) == code


def test_a_grant_is_delivered_received_and_used(world):
    grant(world)
    assert deliver(world) == [("access_delivered", (R1, STUDY, ASKER, WRAPPED))]
    assert world.held(R1).state == "delivered"
    assert (world.held(R1).wrapped_digest, world.held(R1).delivered_height) == (WRAPPED, 11)
    world.height = 12
    assert receive(world) == [("access_received", (R1, STUDY, ASKER, ROOT))]
    assert (world.held(R1).state, world.held(R1).received_height) == ("received", 12)
    assert use(world) == [("access_used", (R1, STUDY, ASKER, 1))]
    assert use(world) == [("access_used", (R1, STUDY, ASKER, 2))]
    assert (world.held(R1).state, world.held(R1).uses) == ("received", 2)


def test_uses_are_counted_to_the_last(world):
    grant(world, uses_max=2)
    deliver(world)
    receive(world)
    use(world)
    assert world.permitted(R1) is None
    use(world)
    assert world.permitted(R1) == "uses_spent"
    assert world.code(WHO.asker, "access.use", R1) == "uses_spent"


def test_steps_come_in_their_order_and_once(world):
    grant(world)
    assert world.code(WHO.asker, "access.receive", R1, ROOT) == "request_not_delivered"
    assert world.code(WHO.asker, "access.use", R1) == "request_not_received"
    deliver(world)
    assert world.code(WHO.gateway, "access.deliver", R1, WRAPPED) == "request_delivered"
    assert world.code(WHO.asker, "access.use", R1) == "request_not_received"
    receive(world)
    assert world.code(WHO.gateway, "access.deliver", R1, WRAPPED) == "request_delivered"
    assert world.code(WHO.asker, "access.receive", R1, ROOT) == "request_received"


def test_a_grant_permits_from_the_next_height_to_the_last_of_its_term(world):
    world.consent()
    world.publish("permit")
    ask(world, heights=5)
    assert world.code(WHO.gateway, "access.deliver", R1, WRAPPED) == "request_not_valid_yet"
    permitted = [height for height in range(9, 20) if world.permitted(R1, height) is None]
    assert permitted == [11, 12, 13, 14, 15]
    world.height = 15
    deliver(world)
    world.height = 16
    assert world.code(WHO.asker, "access.receive", R1, ROOT) == "request_expired"
    assert world.code(WHO.clinician, "access.revoke", R1, "other") == "request_expired"


def test_only_the_custodians_gateway_and_administrator_deliver(world):
    grant(world)
    assert world.code(WHO.asker_gateway, "access.deliver", R1, WRAPPED) == "not_custodian"
    assert world.code(WHO.clinician, "access.deliver", R1, WRAPPED) == "role_missing"
    assert world.code(WHO.administrator, "access.deliver", R1, WRAPPED) is None


def test_only_the_asker_receives_and_uses(world):
    grant(world)
    deliver(world)
    for sender in (WHO.third, WHO.clinician):
        assert world.code(sender, "access.receive", R1, ROOT) == "not_requester"
        assert world.code(sender, "access.use", R1) == "not_requester"
    assert world.code(WHO.researcher, "access.receive", R1, ROOT) == "role_missing"
    assert world.code(WHO.asker_gateway, "access.receive", R1, ROOT) is None
    assert world.code(WHO.researcher, "access.use", R1) == "role_missing"
    other = digest("a colleague in the same role")
    assert world.code(WHO.asker, "access.use", R1, key=other) is None


def test_what_is_received_is_a_version_of_the_study(world):
    grant(world)
    deliver(world)
    world.register(identity("other study"), SUBJECT, digest("other root"))
    world.act(WHO.gateway, "study.amend", STUDY, 2, ROOT, digest("root 2"), 5, 8)
    assert world.code(WHO.asker, "access.receive", R1, digest("other root")) == "root_unknown"
    assert world.code(WHO.asker, "access.receive", R1, digest("no root")) == "root_unknown"
    assert world.code(WHO.asker, "access.receive", R1, digest("root 2")) is None


STEPS = {
    "granted": (WHO.gateway, "access.deliver", R1, WRAPPED),
    "delivered": (WHO.asker, "access.receive", R1, ROOT),
    "received": (WHO.asker, "access.use", R1),
}


def withdraw(world):
    world.height += 1
    world.withdraw()


def restrict(world):
    world.height += 1
    world.consent("restrict", "no", study_id=STUDY)


def opt_out(world):
    world.act(WHO.clinician, "consent.opt_out", SUBJECT, digest("form"))
    world.height += 1


def suspend(world):
    world.set_active(ASKER, active=False)


def retire(world):
    world.act(WHO.gateway, "study.retire", STUDY, "wrong_subject")


def erase(world):
    world.act(WHO.gateway, "study.erase", STUDY, "subject_request")


def move(world, study_id=STUDY, old=CUSTODIAN, new=THIRD, subject_id=SUBJECT):
    world.act((old, "gateway"), "study.offer", study_id, new)
    world.act((new, "gateway"), "study.accept", study_id, subject_id)


@pytest.mark.parametrize("state", sorted(STEPS))
@pytest.mark.parametrize(
    ("happens", "code"),
    [
        (withdraw, "consent_missing"),
        (restrict, "consent_refused"),
        (opt_out, "consent_refused"),
        (suspend, "institution_suspended"),
        (retire, "study_retired"),
        (erase, "study_erased"),
        (move, "custody_moved"),
    ],
)
def test_what_happens_later_stops_delivery_receipt_and_use(world, state, happens, code):
    held_for(world, state)
    assert world.permitted(R1) is None
    happens(world)
    assert world.permitted(R1) == code
    assert world.code(*STEPS[state]) == code
    assert world.held(R1).state == state


@pytest.mark.parametrize("state", sorted(STEPS))
def test_a_withdrawal_leaves_what_rests_on_silence(world, state):
    world.publish("permit", "not_objected", name="mild")
    held_for(world, state)
    assert world.held(R1).consent == "not_objected"
    withdraw(world)
    assert world.code(*STEPS[state]) is None


@pytest.mark.parametrize("happens", [restrict, opt_out])
def test_a_refusal_stops_what_rests_on_silence(world, happens):
    world.publish("permit", "not_objected")
    ask(world)
    world.height += 1
    happens(world)
    assert world.permitted(R1) == "consent_refused"
    assert world.code(*STEPS["granted"]) == "consent_refused"


def test_a_withdrawal_counts_from_the_next_height(world):
    held_for(world, "received")
    world.act(WHO.clinician, "consent.withdraw", SUBJECT, identity("c"), digest("form"))
    assert world.permitted(R1) is None
    assert world.permitted(R1, world.height + 1) == "consent_missing"


def test_a_later_policy_ends_no_grant(world):
    held_for(world, "received")
    world.publish("deny", name="late")
    assert world.code(WHO.asker, "access.use", R1) is None


def test_a_study_that_comes_back_under_another_pseudonym_has_moved(world):
    held_for(world, "granted")
    move(world, subject_id=identity("theirs"))
    move(world, old=THIRD, new=CUSTODIAN, subject_id=identity("new of ours"))
    assert world.permitted(R1) == "custody_moved"


def test_an_opt_out_elsewhere_still_holds_when_the_study_comes_back(world):
    """Not even what was permitted for this very study and asker counts then."""
    world.consent("grant", "narrow", study_id=STUDY, recipient=ASKER)
    held_for(world, "granted")
    theirs = identity("theirs")
    move(world, subject_id=theirs)
    world.act((THIRD, "clinician"), "consent.opt_out", theirs, FORM)
    world.height += 1
    move(world, old=THIRD, new=CUSTODIAN, subject_id=SUBJECT)
    world.height += 1
    assert world.permitted(R1) == "consent_refused"


def test_a_waiting_request_does_not_follow_its_study(world):
    world.consent()
    ask(world)
    move(world)
    assert world.code(WHO.clinician, "access.approve", R1) == "custody_moved"
    assert world.code(WHO.third, "access.approve", R1) == "not_custodian"


def test_consent_for_a_study_that_moved_denies(world):
    world.publish("permit")
    ask(world)
    move(world)
    world.consent()
    assert (world.held(R1).state, world.held(R1).rule) == ("denied", "custody_moved")


@pytest.mark.parametrize("state", sorted(access_record.OPEN | access_record.WAITING))
def test_anybody_writes_down_an_expiry_when_it_is_due(world, state):
    world.set_parameter("request_waiting_heights", 150)
    held_for(world, state)
    due = world.held(R1).expires_height
    world.height = due - 1
    assert world.code(WHO.third, "access.expire", R1) == "request_not_due"
    world.height = due
    assert world.act((THIRD, "auditor"), "access.expire", R1) == [
        ("access_expired", (R1, STUDY, ASKER))
    ]
    assert (world.held(R1).state, world.held(R1).ended_height) == ("expired", due)
    assert world.permitted(R1) == "request_expired"
    assert world.waiting() == []
    assert world.listed("request_waiting", b"charite") == []


@pytest.mark.parametrize("state", sorted(access_record.WAITING))
def test_after_the_waiting_time_nobody_decides(world, state):
    world.set_parameter("request_waiting_heights", 150)
    held_for(world, state)
    world.consent(recipient=THIRD)
    world.height = 160
    assert world.held(R1).expires_height == 160
    assert world.code(WHO.clinician, "access.approve", R1) == "request_expired"
    assert world.code(WHO.clinician, "access.deny", R1, "other") == "request_expired"
    assert world.code(WHO.asker, "access.cancel", R1) == "request_expired"


@pytest.mark.parametrize("state", ["denied", "cancelled", "revoked", "expired"])
def test_what_has_ended_does_not_expire(world, state):
    held_for(world, state)
    world.height = 10_000_000
    assert world.code(WHO.third, "access.expire", R1) == f"request_{state}"


def test_break_glass_grants_at_once_against_consent_and_policy(world):
    world.consent("restrict")
    world.publish("deny")
    assert world.act(WHO.asker, "access.break_glass", *breaking(R1)) == [
        ("access_break_glass", (R1, STUDY, ASKER, "ETREAT", "unconscious"))
    ]
    held = world.held(R1)
    assert (held.state, held.decided_by, held.rule) == ("granted", "rule", "break_glass")
    assert (held.break_glass, held.break_glass_reason, held.finding) == (True, "unconscious", None)
    assert (held.valid_from, held.expires_height, held.uses_max) == (11, 5_011, 1_000)
    world.height = 11
    deliver(world)
    receive(world)
    use(world)
    assert world.held(R1).uses == 1


def test_break_glass_lasts_as_long_as_the_parameter_says(world):
    world.set_parameter("break_glass_heights", 10)
    world.set_parameter("access_uses_max", 4)
    world.act(WHO.asker, "access.break_glass", *breaking(R1))
    assert [h for h in range(9, 30) if world.permitted(R1, h) is None] == list(range(11, 21))
    assert world.held(R1).uses_max == 4


@pytest.mark.parametrize("happens", [withdraw, restrict, opt_out])
def test_consent_does_not_stop_break_glass(world, happens):
    world.consent()
    world.act(WHO.asker, "access.break_glass", *breaking(R1))
    happens(world)
    world.height += 1
    assert world.permitted(R1) is None


@pytest.mark.parametrize(
    ("happens", "code"),
    [
        (suspend, "institution_suspended"),
        (retire, "study_retired"),
        (erase, "study_erased"),
        (move, "custody_moved"),
    ],
)
def test_all_else_stops_break_glass_too(world, happens, code):
    world.act(WHO.asker, "access.break_glass", *breaking(R1))
    world.height += 1
    happens(world)
    assert world.permitted(R1) == code


@pytest.mark.parametrize("role", sorted(ROLES))
def test_only_clinicians_break_glass(world, role):
    code = world.code((ASKER, role), "access.break_glass", *breaking(R1))
    assert code == (None if role == "clinician" else "role_missing")


def test_nobody_breaks_glass_for_an_own_or_an_unknown_study(world):
    assert world.code(WHO.clinician, "access.break_glass", *breaking(R1)) == "own_study"
    asked = breaking(R1, study_id=identity("other"))
    assert world.code(WHO.asker, "access.break_glass", *asked) == "study_unknown"


def test_a_break_glass_is_revoked_like_any_grant_and_keeps_its_reason(world):
    world.act(WHO.asker, "access.break_glass", *breaking(R1))
    world.act(WHO.officer, "access.revoke", R1, "misuse")
    held = world.held(R1)
    assert (held.state, held.reason, held.break_glass_reason) == (
        "revoked",
        "misuse",
        "unconscious",
    )


def test_the_officer_reviews_a_break_glass_once(world):
    world.act(WHO.asker, "access.break_glass", *breaking(R1))
    assert world.listed("break_glass_unreviewed", b"charite") == [R1]
    for sender, code in [
        (WHO.clinician, "role_missing"),
        ((ASKER, "data_protection_officer"), "not_custodian"),
        ((THIRD, "data_protection_officer"), "not_custodian"),
    ]:
        assert world.code(sender, "access.review", R1, "justified") == code
    assert world.act(WHO.officer, "access.review", R1, "unjustified") == [
        ("access_reviewed", (R1, STUDY, ASKER, "unjustified"))
    ]
    assert (world.held(R1).finding, world.held(R1).state) == ("unjustified", "granted")
    assert world.listed("break_glass_unreviewed", b"charite") == []
    assert world.code(WHO.officer, "access.review", R1, "justified") == "request_reviewed"


def test_a_break_glass_that_is_over_is_reviewed_too(world):
    world.act(WHO.asker, "access.break_glass", *breaking(R1))
    world.height = 5_011
    world.act(WHO.third, "access.expire", R1)
    move(world)
    assert world.code(WHO.officer, "access.review", R1, "justified") is None


def test_only_a_break_glass_is_reviewed(world):
    grant(world)
    assert world.code(WHO.officer, "access.review", R1, "justified") == "not_break_glass"
