"""The access contract, rule by rule: from asking to a decision."""

import pytest

from node.ledger.contracts import access, access_record, consent
from node.ledger.contracts.access_decision import facts_of
from node.ledger.contracts.study import decode_study, study_key
from node.ledger.errors import Rejected
from tests.ledger.access_steps import (
    KEY_ID,
    R1,
    R2,
    WRAPPED,
    ask,
    ask_code,
    bind,
    grant,
    held_for,
    names,
    publish_key,
)
from tests.ledger.access_world import (
    ASKER,
    CUSTODIAN,
    ROLES,
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


@pytest.fixture
def world():
    return World()


def test_a_request_is_granted_at_once_where_consent_and_policy_permit(world):
    world.consent()
    world.publish("permit")
    events = ask(world)
    assert events == [
        ("access_requested", (R1, STUDY, ASKER, "TREAT", "clinician")),
        ("access_granted", (R1, STUDY, ASKER, "TREAT", "charite/rule")),
    ]
    assert world.held(R1) == access.Request(
        format=1,
        study_id=STUDY,
        custodian=CUSTODIAN,
        subject_id=SUBJECT,
        institution=ASKER,
        member_key=key_of(*WHO.asker),
        role="clinician",
        purpose="TREAT",
        heights=100,
        uses_max=3,
        asked_height=10,
        state="granted",
        decided_height=10,
        decided_by="rule",
        rule="charite/rule",
        consent="required",
        valid_from=11,
        expires_height=111,
        ordinal=world.held(R1).ordinal,
    )


def test_a_request_keeps_what_was_asked(world):
    ethics = digest("ethics")
    ask(
        world,
        sender=WHO.researcher,
        role="researcher",
        purpose="HRESCH",
        deidentified=True,
        ethics_digest=ethics,
        heights=7,
        uses_max=2,
    )
    held = world.held(R1)
    assert (held.role, held.purpose, held.deidentified) == ("researcher", "HRESCH", True)
    assert (held.ethics_digest, held.heights, held.uses_max) == (ethics, 7, 2)


@pytest.mark.parametrize(
    ("effect", "need", "given", "state", "rule"),
    [
        ("permit", "required", None, "waiting_consent", "charite/rule"),
        ("permit", "required", "grant", "granted", "charite/rule"),
        ("permit", "required", "restrict", "denied", "consent"),
        ("permit", "not_objected", None, "granted", "charite/rule"),
        ("permit", "not_objected", "restrict", "denied", "consent"),
        ("ask", "required", None, "waiting_person", "charite/rule"),
        ("ask", "not_objected", "grant", "waiting_person", "charite/rule"),
        ("ask", "required", "restrict", "denied", "consent"),
        ("deny", "required", "grant", "denied", "charite/rule"),
        ("deny", "not_objected", None, "denied", "charite/rule"),
        (None, "", None, "waiting_person", ""),
        (None, "", "grant", "waiting_person", ""),
        (None, "", "restrict", "denied", "consent"),
    ],
)
def test_consent_and_policy_decide_together(world, effect, need, given, state, rule):
    if given:
        world.consent(given)
    if effect:
        world.publish(effect, need)
    event, (*_, last) = ask(world)[1]
    held = world.held(R1)
    assert (held.state, held.rule) == (state, rule)
    if state.startswith("waiting"):
        assert (event, last) == ("access_waiting", state)
        assert (held.decided_by, held.decided_height, held.valid_from) == ("", None, None)
    else:
        assert (event, last) == (f"access_{state}", rule)
        assert (held.decided_by, held.decided_height) == ("rule", 10)


def test_a_denial_beats_a_permit(world):
    world.consent()
    world.publish("permit", "not_objected", name="a")
    world.publish("deny", name="b", condition='request.purpose == "TREAT"')
    ask(world)
    assert (world.held(R1).state, world.held(R1).rule) == ("denied", "charite/b")


def test_an_opted_out_patient_is_denied(world):
    world.publish("permit", "not_objected")
    world.height -= 1
    world.act(WHO.clinician, "consent.opt_out", SUBJECT, digest("form"))
    world.height += 1
    ask(world)
    assert (world.held(R1).state, world.held(R1).rule) == ("denied", "consent")


def test_what_is_decided_at_a_height_counts_from_the_next(world):
    world.publish("permit")
    world.consent(label="old")
    world.act(WHO.clinician, "consent.withdraw", SUBJECT, identity("old"), digest("form"))
    world.act(WHO.administrator, "policy.publish", "late", "deny", "required", "true")
    ask(world, R1)
    assert world.held(R1).state == "granted"
    world.height += 1
    assert world.permitted(R1) == "consent_missing"
    ask(world, R2)
    assert (world.held(R2).state, world.held(R2).rule) == ("denied", "charite/late")


def test_conditions_see_the_request_as_it_was_asked(world):
    asked = asking(
        R1, purpose="HRESCH", heights=9, uses_max=2, deidentified=True, ethics_digest=digest("e")
    )
    world.act(WHO.clinician, "study.classify", STUDY, "R")
    world.act((THIRD, "clinician"), "access.request", *asked)
    found = decode_study(world.state.get(study_key(STUDY)))
    facts = facts_of(world.state.get, world.held(R1), found, True, 12, 5)
    assert facts._asdict() == {
        "request_purpose": "HRESCH",
        "request_uses": 2,
        "request_heights": 9,
        "request_deidentified": True,
        "request_ethics": True,
        "requester_institution": THIRD,
        "requester_role": "clinician",
        "requester_country": "NL",
        "study_custodian": CUSTODIAN,
        "study_country": "DE",
        "study_modality": "CT",
        "study_region": "chest",
        "study_version": 1,
        "study_derived": False,
        "study_instance_bucket": 5,
        "study_size_bucket": 8,
        "study_confidentiality": "R",
        "consent_given": True,
        "height": 12,
        "time_ms": 5,
    }


def test_a_condition_may_ask_for_consent_and_the_hour(world):
    world.publish("permit", "not_objected", "consent.given && block.hour == 22")
    world.consent()
    world.act(WHO.asker, "access.request", *asking(R1), time_ms=22 * 3_600_000)
    world.act(WHO.asker, "access.request", *asking(R2), time_ms=21 * 3_600_000)
    assert [world.held(each).state for each in (R1, R2)] == ["granted", "waiting_person"]


@pytest.mark.parametrize("role", sorted(ROLES))
def test_clinicians_researchers_and_gateways_ask(world, role):
    asks = role in ("clinician", "researcher", "gateway")
    code = ask_code(world, sender=(ASKER, role), role=role if asks else "clinician")
    assert code == (None if asks else "role_missing")


def test_nobody_asks_in_a_role_that_he_has_not(world):
    assert ask_code(world, sender=WHO.researcher, role="clinician") == "role_missing"


def test_nobody_asks_for_an_unknown_or_for_an_own_study(world):
    assert ask_code(world, study_id=identity("other")) == "study_unknown"
    assert ask_code(world, sender=WHO.clinician) == "own_study"


@pytest.mark.parametrize(
    ("operation", "code"), [("retire", "study_retired"), ("erase", "study_erased")]
)
def test_nothing_is_asked_of_a_study_that_is_closed(world, operation, code):
    reason = {"retire": "quality", "erase": "court_order"}[operation]
    world.act(WHO.gateway, f"study.{operation}", STUDY, reason)
    assert ask_code(world) == code
    assert world.code(WHO.asker, "access.break_glass", *breaking(R1)) == code


def test_a_request_id_is_used_once(world):
    ask(world)
    assert ask_code(world) == "request_exists"
    assert ask_code(world, sender=WHO.third) == "request_exists"
    assert world.code(WHO.asker, "access.break_glass", *breaking(R1)) == "request_exists"


def test_parameters_bound_term_and_uses(world):
    world.set_parameter("access_heights_max", 100)
    world.set_parameter("access_uses_max", 3)
    assert ask_code(world, R1, heights=101) == "heights_over_limit"
    assert ask_code(world, R1, uses_max=4) == "uses_over_limit"
    assert ask_code(world, R1, heights=100, uses_max=3) is None


def test_a_named_key_is_the_askers_own_and_not_retired(world):
    assert ask_code(world, key_id=KEY_ID) == "key_unknown"
    publish_key(world)
    assert ask_code(world, sender=WHO.third, key_id=KEY_ID) == "key_unknown"
    assert ask_code(world, key_id=KEY_ID) is None
    world.act(WHO.asker_gateway, "registry.key_retire", KEY_ID)
    assert ask_code(world, R2, key_id=KEY_ID) == "key_retired"
    assert world.code(WHO.asker, "access.break_glass", *breaking(R2, key_id=KEY_ID)) == (
        "key_retired"
    )


def test_nothing_is_delivered_to_a_key_that_was_retired_since(world):
    publish_key(world)
    grant(world, key_id=KEY_ID)
    world.act(WHO.asker_gateway, "registry.key_retire", KEY_ID)
    assert world.code(WHO.gateway, "access.deliver", R1, WRAPPED) == "key_retired"


def test_a_request_waits_on_the_patients_list_until_consent_is_given(world):
    world.publish("permit")
    ask(world)
    assert world.waiting() == [R1]
    world.height = 20
    events = world.act(
        WHO.clinician, "consent.grant", identity("c"), SUBJECT, None, None, (), None, digest("form")
    )
    assert events[1:] == [("access_granted", (R1, STUDY, ASKER, "TREAT", "charite/rule"))]
    held = world.held(R1)
    assert (held.state, held.decided_by, held.decided_height) == ("granted", "rule", 21)
    assert (held.valid_from, held.expires_height) == (21, 121)
    assert world.waiting() == []
    assert world.permitted(R1) == "request_not_valid_yet"
    assert world.permitted(R1, 21) is None


def test_consent_for_something_else_leaves_a_request_waiting(world):
    world.publish("permit")
    ask(world)
    world.consent(recipient=THIRD)
    assert (world.held(R1).state, world.waiting()) == ("waiting_consent", [R1])


@pytest.mark.parametrize("end", ["opt_in", "withdraw"])
def test_opting_in_and_the_end_of_a_restriction_decide_anew(world, end):
    world.publish("permit")
    ask(world)
    world.publish("permit", "not_objected", name="mild")
    if end == "opt_in":
        world.act(WHO.clinician, "consent.opt_out", SUBJECT, digest("form"))
        world.height += 1
        events = world.act(WHO.clinician, "consent.opt_in", SUBJECT, digest("form"))
    else:
        world.consent("restrict")
        assert world.held(R1).state == "waiting_consent"
        events = world.act(
            WHO.clinician, "consent.withdraw", SUBJECT, identity("c"), digest("form")
        )
    assert names(events)[1:] == ["access_granted"]
    assert (world.held(R1).rule, world.permitted(R1, world.height + 1)) == ("charite/mild", None)


def test_consent_earlier_in_the_same_block_is_not_missed(world):
    world.publish("permit")
    world.act(
        WHO.clinician, "consent.grant", identity("c"), SUBJECT, None, None, (), None, digest("form")
    )
    assert names(ask(world)) == ["access_requested", "access_waiting", "access_granted"]
    held = world.held(R1)
    assert (held.state, held.decided_height, held.valid_from) == ("granted", 11, 11)
    assert (world.waiting(), world.listed("request_waiting", b"charite")) == ([], [])
    assert world.permitted(R1, 11) is None


def test_a_denying_policy_published_meanwhile_denies(world):
    world.publish("permit")
    ask(world)
    world.publish("deny", name="late")
    world.consent()
    held = world.held(R1)
    assert (held.state, held.rule, held.decided_by) == ("denied", "charite/late", "rule")
    assert world.waiting() == []


def test_a_policy_retired_meanwhile_leaves_it_to_a_person(world):
    world.publish("permit")
    ask(world)
    world.height += 1
    world.act(WHO.administrator, "policy.retire", "rule")
    world.height += 2
    world.consent()
    assert world.held(R1).state == "waiting_person"
    assert world.waiting() == []
    assert world.listed("request_waiting", b"charite") == [R1]
    assert world.code(WHO.clinician, "access.approve", R1) is None


@pytest.mark.parametrize(
    ("operation", "reason", "rule"),
    [("retire", "quality", "study_retired"), ("erase", "court_order", "study_erased")],
)
def test_consent_to_a_study_that_was_closed_denies(world, operation, reason, rule):
    world.publish("permit")
    ask(world)
    world.act(WHO.gateway, f"study.{operation}", STUDY, reason)
    world.consent()
    assert (world.held(R1).state, world.held(R1).rule) == ("denied", rule)


def test_consent_after_the_waiting_time_finds_the_request_expired(world):
    world.set_parameter("request_waiting_heights", 100)
    world.publish("permit")
    ask(world)
    world.height = 109
    events = world.act(
        WHO.clinician, "consent.grant", identity("c"), SUBJECT, None, None, (), None, digest("form")
    )
    assert events[1:] == [("access_expired", (R1, STUDY, ASKER))]
    assert (world.held(R1).state, world.waiting()) == ("expired", [])


def test_consent_in_the_last_moment_counts(world):
    world.set_parameter("request_waiting_heights", 100)
    world.publish("permit")
    ask(world)
    world.height = 109
    world.consent()  # made at 108
    assert world.held(R1).state == "granted"


def test_only_so_many_requests_wait_for_one_patient(world):
    world.publish("permit")
    for n in range(consent.WAITING_MAX):
        ask(world, identity("many", n))
    assert ask_code(world) == "waiting_full"
    world.act(WHO.asker, "access.cancel", identity("many", 3))
    assert ask_code(world) is None


def test_reconsidering_anything_else_does_nothing(world):
    ask(world)
    before = world.snapshot()
    context = access.Context(world.state, 10, 0, 0, CUSTODIAN, bytes(32), frozenset(), bytes(32))
    access.reconsider(context, R1)
    access.reconsider(context, R2)
    assert (world.snapshot(), context.events) == (before, [])


@pytest.mark.parametrize("role", sorted(ROLES))
def test_who_approves(world, role):
    world.consent()
    ask(world)
    decides = role in ("clinician", "administrator", "data_protection_officer")
    assert world.code((CUSTODIAN, role), "access.approve", R1) == (
        None if decides else "role_missing"
    )


def test_an_approval_grants(world):
    world.consent()
    ask(world)
    world.height = 30
    assert world.act(WHO.officer, "access.approve", R1) == [
        ("access_granted", (R1, STUDY, ASKER, "TREAT", ""))
    ]
    held = world.held(R1)
    assert (held.state, held.decided_by, held.decided_height) == ("granted", "person", 30)
    assert (held.valid_from, held.expires_height, held.consent) == (31, 131, "required")


def test_an_approval_needs_consent_unless_the_asking_rule_says_otherwise(world):
    ask(world, R1)
    assert world.code(WHO.clinician, "access.approve", R1) == "consent_missing"
    world.publish("ask", "required", name="asking")
    assert world.code(WHO.clinician, "access.approve", R1) == "consent_missing"
    world.publish("ask", "not_objected", name="asking-mildly")
    assert world.code(WHO.clinician, "access.approve", R1) is None
    assert (world.held(R1).rule, world.held(R1).consent) == (
        "charite/asking-mildly",
        "not_objected",
    )


def test_an_approval_cannot_overrule_consent_or_policy(world):
    world.publish("ask", "not_objected")
    ask(world, R1)
    ask(world, R2)
    world.consent("restrict")
    assert world.code(WHO.clinician, "access.approve", R1) == "consent_refused"
    world.withdraw()
    world.publish("deny", name="never")
    with pytest.raises(Rejected) as rejected:
        world.act(WHO.clinician, "access.approve", R1)
    assert (rejected.value.code, rejected.value.rule) == ("policy_refused", "charite/never")


def test_only_the_custodian_decides(world):
    world.consent()
    ask(world)
    for sender in (WHO.asker, WHO.third):
        assert world.code(sender, "access.approve", R1) == "not_custodian"
        assert world.code(sender, "access.deny", R1, "other") == "not_custodian"


def test_a_person_does_not_grant_what_waits_for_consent(world):
    held_for(world, "waiting_consent")
    assert world.code(WHO.clinician, "access.approve", R1) == "consent_missing"
    world.publish("ask", "not_objected")
    assert world.code(WHO.clinician, "access.approve", R1) == "consent_missing"


@pytest.mark.parametrize("state", sorted(access_record.STATES - access_record.WAITING))
def test_what_is_decided_or_over_is_not_decided_again(world, state):
    held_for(world, state)
    assert world.code(WHO.clinician, "access.approve", R1) == "request_not_waiting"
    assert world.code(WHO.clinician, "access.deny", R1, "other") == "request_not_waiting"
    assert world.code(WHO.asker, "access.cancel", R1) == "request_not_waiting"


@pytest.mark.parametrize(
    ("operation", "reason", "code"),
    [("retire", "quality", "study_retired"), ("erase", "court_order", "study_erased")],
)
def test_nothing_is_approved_for_a_study_that_was_closed(world, operation, reason, code):
    world.consent()
    ask(world)
    world.act(WHO.gateway, f"study.{operation}", STUDY, reason)
    assert world.code(WHO.clinician, "access.approve", R1) == code


@pytest.mark.parametrize("state", sorted(access_record.WAITING))
def test_a_denial_ends_what_waits(world, state):
    held_for(world, state)
    world.height = 15
    assert world.act(WHO.clinician, "access.deny", R1, "not_justified") == [
        ("access_denied", (R1, STUDY, ASKER, "TREAT", "not_justified"))
    ]
    held = world.held(R1)
    assert (held.state, held.decided_by, held.reason) == ("denied", "person", "not_justified")
    assert (held.decided_height, held.ended_height, held.expires_height) == (15, 15, None)
    assert world.waiting() == []
    assert world.listed("request_waiting", b"charite") == []


@pytest.mark.parametrize("state", sorted(access_record.WAITING))
def test_the_bound_patient_denies(world, state):
    held_for(world, state)
    assert world.code(WHO.patient, "access.deny", R1, "other") == "patient_not_bound"
    bind(world)
    world.act(WHO.patient, "access.deny", R1, "other")
    assert (world.held(R1).state, world.held(R1).decided_by) == ("denied", "patient")


def test_the_patient_approves_nothing(world):
    world.consent()
    ask(world)
    bind(world)
    assert world.code(WHO.patient, "access.approve", R1) == "role_missing"
