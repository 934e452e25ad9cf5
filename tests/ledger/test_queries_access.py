"""Consent, policies and access requests as readers see them, on a real chain."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.wire import pack
from node.ledger.contracts import access_record
from node.ledger.queries import paging
from node.ledger.queries import requests as requests_module
from node.ledger.queries.access_views import PolicyDraft, PolicyQuestion, RequestQuery
from node.ledger.queries.audits import audit_trail
from node.ledger.queries.consents import find_consent
from node.ledger.queries.members import institutions_page, members_page
from node.ledger.queries.paging import BadQuery
from node.ledger.queries.policies import policies, try_policy
from node.ledger.queries.requests import find_request, requests_page
from tests.ledger.harness import digest, identity
from tests.ledger.query_world import (
    ASKER,
    CUSTODIAN,
    FORM,
    FOURTH,
    GENESIS,
    THIRD,
    World,
    asking,
    breaking,
    follow,
    member_key,
)

SUBJECT = identity(("subject", "a"))
STUDY = identity(("study", "a"))
NOW_MS = 1_700_000_100_000


@pytest.fixture
def world():
    made = World()
    made.study()
    return made


def consent_of(world):
    return find_consent(world.moment(), CUSTODIAN, SUBJECT)


def request_of(world, label="r"):
    return find_request(world.moment(), identity(("request", label)))


def question(**changes):
    return PolicyQuestion(
        **{
            "study_id": STUDY,
            "institution": ASKER,
            "role": "clinician",
            "purpose": "TREAT",
            "heights": 100,
            "uses_max": 3,
        }
        | changes
    )


def trial(world, **changes):
    return try_policy(world.moment(), question(**changes), NOW_MS)


def test_a_subject_without_a_record_has_no_consent(world):
    assert consent_of(world) is None


def test_each_rule_of_consent_says_whether_it_is_in_force_at_the_next_height(world):
    lasting = world.grant("lasting")
    short = world.grant("short", until=world.height + 2)
    ended = world.grant("ended", verb="restrict", recipient=ASKER)
    world.send(CUSTODIAN, "clinician", ("consent.withdraw", SUBJECT, ended, FORM))
    view = consent_of(world)
    assert view.height == world.height + 1
    states = {rule.consent_id: rule.state for rule in view.rules}
    assert states == {lasting: "in_force", short: "expired", ended: "withdrawn"}
    assert [rule.effect for rule in view.rules] == ["permit", "permit", "deny"]
    assert (view.rules[2].recipient, view.rules[2].ended_height) == (ASKER, world.height)
    assert (view.opted_out, view.patient_key) == (False, None)
    assert (view.next_step.code, view.next_step.institutions) == ("bind_patient", (CUSTODIAN,))


def test_an_opt_out_shows_until_it_ends_and_who_can_end_it(world):
    patient = member_key(CUSTODIAN, "patient")
    world.send(CUSTODIAN, "gateway", ("consent.bind", SUBJECT, patient))
    world.send(CUSTODIAN, "patient", ("consent.opt_out", SUBJECT, None))
    view = consent_of(world)
    assert (view.opted_out, view.opted_out_by, view.patient_key) == (True, "patient", patient)
    assert view.next_step.code == "nothing"
    world.send(CUSTODIAN, "patient", ("consent.opt_in", SUBJECT, None))
    assert not consent_of(world).opted_out


def test_a_consent_shows_what_waits_for_it_and_who_must_act(world):
    world.publish("treatment")
    request = world.ask()
    view = consent_of(world)
    assert view.waiting == (request,)
    assert view.next_step.code == "give_consent"
    assert "patient" in view.next_step.roles


def test_policies_show_the_consortiums_and_the_institutions_rules(world):
    world.publish("treatment", condition='request.purpose == "TREAT"')
    world.publish("night", "deny")
    world.send(CUSTODIAN, "administrator", ("policy.retire", "night"))
    view = policies(world.moment(), CUSTODIAN)
    assert view.consortium == ()
    assert [(rule.name, rule.effect, rule.in_force) for rule in view.own] == [
        ("night", "deny", False),
        ("treatment", "permit", True),
    ]
    assert view.own[1].condition == 'request.purpose == "TREAT"'
    assert policies(world.moment(), None).own == ()
    rule = ("all", "ask", "required", "true")
    proposal = world.govern("p", "policy_publish", *rule)
    world.send(CUSTODIAN, "administrator", ("governance.execute", proposal))
    assert [rule.name for rule in policies(world.moment(), None).consortium] == ["all"]


SCENES = {
    "granted": {"policy": ("permit", "required"), "consent": "grant"},
    "denied": {"policy": ("deny", "required"), "consent": "grant"},
    "refused": {"policy": ("permit", "required"), "consent": "restrict"},
    "waiting_consent": {"policy": ("permit", "required"), "consent": None},
    "not_objected": {"policy": ("permit", "not_objected"), "consent": None},
    "waiting_person": {"policy": ("ask", "required"), "consent": "grant"},
    "nothing": {"policy": None, "consent": None},
}


@pytest.mark.parametrize("scene", SCENES)
def test_a_trial_foretells_what_becomes_of_the_request(world, scene):
    policy, consent = SCENES[scene]["policy"], SCENES[scene]["consent"]
    if policy is not None:
        world.publish("rule", *policy)
    if consent is not None:
        world.grant(verb=consent)
    before = dict(world.store.iterate(b"", b"\xff"))
    foretold = trial(world)
    assert dict(world.store.iterate(b"", b"\xff")) == before
    world.ask()
    made = request_of(world)
    assert (foretold.outcome, foretold.rule) == (made.state, made.rule)
    assert foretold.consent_needed == made.consent_needed or made.state == "denied"
    assert foretold.next_step == made.next_step
    assert foretold.height == made.asked_height
    if policy is not None:
        [rule] = foretold.rules
        assert (rule.rule, rule.outcome, rule.decides) == (f"{CUSTODIAN}/rule", "match", True)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"institution": CUSTODIAN}, "own_study"),
        ({"institution": "nobody"}, "institution_unknown"),
        ({"study_id": identity("none")}, "study_unknown"),
        ({"heights": 10_000_000}, "heights_over_limit"),
    ],
)
def test_a_trial_says_why_a_request_could_not_be_made(world, changes, code):
    foretold = trial(world, **changes)
    assert (foretold.outcome, foretold.code) == ("rejected", code)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"purpose": "CURIOSITY"}, "purpose"),
        ({"role": "janitor"}, "role"),
        ({"study_id": b"short"}, "study_id"),
        ({"institution": "Charité"}, "institution"),
        ({"time_ms": -1}, "time_ms"),
        ({"drafts": (PolicyDraft("x", "allow", "required", "true"),)}, "drafts: effect"),
        ({"drafts": (PolicyDraft("x", "permit", "required", "1 +"),)}, "drafts: condition"),
        ({"drafts": (PolicyDraft("x", "permit", "required", "true"),) * 9}, "drafts"),
    ],
)
def test_a_trial_without_meaning_says_which_field(world, changes, named):
    with pytest.raises(BadQuery, match=named):
        trial(world, **changes)


def test_a_draft_is_tried_as_if_it_were_published(world):
    world.publish("rule", "deny")
    world.grant()
    assert trial(world).outcome == "denied"
    drafts = (PolicyDraft("rule", "permit", "required", 'request.purpose == "TREAT"'),)
    foretold = trial(world, drafts=drafts)
    assert foretold.outcome == "granted"
    assert [rule.rule for rule in foretold.rules] == [f"{CUSTODIAN}/rule"]
    assert trial(world, drafts=drafts, purpose="HRESCH").outcome == "waiting_person"
    assert trial(world).outcome == "denied"


def test_a_trial_can_be_of_another_time(world):
    world.publish("night", "permit", "not_objected", "block.hour >= 20")
    day, evening = 1_700_049_600_000, 1_700_082_000_000  # 12:00 and 21:00 UTC
    assert trial(world, time_ms=evening).outcome == "granted"
    assert trial(world, time_ms=day).outcome == "waiting_person"


def test_a_request_shows_its_life_and_who_is_next(world):
    world.publish("treatment")
    world.grant()
    request = world.ask()
    granted = request_of(world)
    assert (granted.state, granted.permitted, granted.decided_by) == ("granted", True, "rule")
    assert granted.rule == f"{CUSTODIAN}/treatment"
    assert (granted.next_step.code, granted.next_step.institutions) == ("deliver_key", (CUSTODIAN,))
    assert granted.next_step.until_height == granted.expires_height - 1
    world.send(CUSTODIAN, "gateway", ("access.deliver", request, digest("wrapped")))
    assert request_of(world).next_step.code == "receive_study"
    root = digest(("root", "a", 1))
    world.send(ASKER, "gateway", ("access.receive", request, root))
    assert request_of(world).next_step.code == "use_study"
    for left in (2, 1, 0):
        world.send(ASKER, "clinician", ("access.use", request))
        assert request_of(world).uses_left == left
    spent = request_of(world)
    assert (spent.permitted, spent.refusal, spent.next_step.code) == (
        False,
        "uses_spent",
        "ask_anew",
    )
    assert spent.in_force  # what was counted as the last use goes on
    world.send(CUSTODIAN, "clinician", ("consent.opt_out", SUBJECT, FORM))
    ended = request_of(world)
    assert (ended.refusal, ended.in_force) == ("uses_spent", False)


def test_a_withdrawn_consent_shows_at_once_as_the_reason_why_not(world):
    world.publish("treatment")
    consent = world.grant()
    world.ask()
    world.send(CUSTODIAN, "clinician", ("consent.withdraw", SUBJECT, consent, FORM))
    view = request_of(world)
    assert (view.state, view.permitted, view.refusal) == ("granted", False, "consent_missing")
    assert view.next_step.code == "give_consent"


def test_a_request_shows_as_expired_before_anybody_records_it(world):
    world.publish("treatment", consent="not_objected")
    request = world.ask(heights=2)
    assert request_of(world).state == "granted"
    world.idle(2)
    view = request_of(world)
    assert (view.state, view.recorded_state, view.refusal) == (
        "expired",
        "granted",
        "request_expired",
    )
    assert view.next_step.code == "record_expiry"
    assert requests_page(world.moment(), RequestQuery(state="expired")).requests == (view,)
    assert requests_page(world.moment(), RequestQuery(state="granted")).requests == ()
    world.send(THIRD, "gateway", ("access.expire", request))
    view = request_of(world)
    assert (view.state, view.recorded_state, view.next_step.code) == (
        "expired",
        "expired",
        "ask_anew",
    )


def test_who_must_act_on_a_request_that_waits_for_a_person(world):
    world.ask()
    view = request_of(world)
    assert (view.state, view.next_step.code) == ("waiting_person", "consent_then_approve")
    world.grant()
    view = request_of(world)
    assert (view.next_step.code, view.next_step.institutions) == ("approve_or_deny", (CUSTODIAN,))
    world.send(CUSTODIAN, "clinician", ("access.deny", view.id, "not_justified"))
    view = request_of(world)
    assert (view.state, view.reason, view.next_step.code) == ("denied", "not_justified", "ask_anew")


def test_a_break_glass_shows_its_review_until_it_is_done(world):
    world.send(ASKER, "clinician", breaking("emergency"))
    view = request_of(world, "emergency")
    assert (view.break_glass, view.break_glass_reason, view.permitted) == (
        True,
        "unconscious",
        True,
    )
    assert (view.next_step.code, view.review.code) == ("deliver_key", "review_break_glass")
    assert view.review.roles == ("data_protection_officer",)
    query = RequestQuery(custodian=CUSTODIAN, break_glass_unreviewed=True)
    assert requests_page(world.moment(), query).requests == (view,)
    review = ("access.review", view.id, "justified")
    world.send(CUSTODIAN, "data_protection_officer", review)
    view = request_of(world, "emergency")
    assert (view.finding, view.review) == ("justified", None)
    assert requests_page(world.moment(), query).requests == ()


@pytest.fixture(scope="module")
def consortium():
    """60 requests by three institutions to two custodians, in all kinds of states."""
    world = World()
    labels = itertools.count()
    world.study("a")
    world.study("b")
    world.publish("research", "permit", "not_objected", 'request.purpose == "HRESCH"')
    world.publish("payment", "deny", "required", 'request.purpose == "HPAYMT"')
    world.publish("care", "permit", "required", 'request.purpose == "CAREMGT"')
    order = []
    for by, study, purpose in itertools.product(
        (ASKER, THIRD, FOURTH), "ab", ("TREAT", "HRESCH", "HPAYMT", "CAREMGT")
    ):
        for _ in range(2):
            label = next(labels)
            heights = 5 if label % 8 == 3 else 5_000
            world.ask(label, study, by, purpose=purpose, heights=heights)
            order.append(identity(("request", label)))
    for by in (ASKER, THIRD):
        label = next(labels)
        world.send(by, "clinician", breaking(label, "b"))
        order.append(identity(("request", label)))
    views = [find_request(world.moment(), each) for each in reversed(order)]
    return world, views


def expected(views, query):
    facets = ("institution", "custodian", "study_id", "state")
    asked = {name: getattr(query, name) for name in facets if getattr(query, name) is not None}
    return [
        view
        for view in views
        if asked.items() <= {name: getattr(view, name) for name in facets}.items()
        and (not query.break_glass_unreviewed or view.review is not None)
    ]


REQUEST_FACETS = [
    RequestQuery(institution=i, custodian=c, study_id=s, state=t, break_glass_unreviewed=b)
    for i, c, s, t, b in itertools.product(
        [None, ASKER], [None, CUSTODIAN, THIRD], [None, STUDY],
        [None, "granted", "waiting_person", "waiting_consent", "denied", "expired"], [False, True],
    )
]  # fmt: skip


@pytest.mark.parametrize("limit", [1, 7, 200])
def test_every_question_about_requests_is_answered_whole_newest_first(consortium, limit):
    world, views = consortium
    moment = world.moment()
    assert {"granted", "waiting_person", "waiting_consent", "denied", "expired"} <= {
        view.state for view in views
    }
    for query in REQUEST_FACETS:
        found, sizes = follow(
            lambda cursor, query=query: requests_page(
                moment, replace(query, limit=limit, cursor=cursor)
            ),
            lambda page: page.requests,
        )
        assert found == expected(views, query)
        assert max(sizes) <= limit


def test_the_work_for_one_page_of_requests_is_bounded(consortium, monkeypatch):
    world, views = consortium
    read, decode = [], access_record.decode_request
    monkeypatch.setattr(requests_module, "ROWS_MAX", 10)
    monkeypatch.setattr(
        access_record, "decode_request", lambda row: read.append(row) or decode(row)
    )
    query = RequestQuery(institution=ASKER, state="denied")
    found, sizes = follow(
        lambda cursor: requests_page(world.moment(), replace(query, cursor=cursor)),
        lambda page: page.requests,
    )
    assert found == expected(views, query)
    assert len(sizes) > 1
    assert len(read) <= 10 * len(sizes)


def test_pages_of_requests_stay_as_they_were_while_blocks_arrive(world):
    for label in range(9):
        world.ask(label)
    query = RequestQuery(custodian=CUSTODIAN, limit=2)
    before = [each.id for each in requests_page(world.moment(), replace(query, limit=50)).requests]
    seen, late = [], itertools.count(100)
    while True:
        page = requests_page(world.moment(), query)
        seen += [request.id for request in page.requests]
        world.ask(next(late))
        world.send(ASKER, "clinician", ("access.cancel", before[-1])) if len(seen) == 4 else None
        if page.next_cursor is None:
            break
        query = replace(query, cursor=page.next_cursor)
    assert seen == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"institution": "Aachen!"}, "institution"),
        ({"custodian": 5}, "custodian"),
        ({"study_id": b"short"}, "study_id"),
        ({"state": "lost"}, "state"),
        ({"break_glass_unreviewed": 1}, "break_glass_unreviewed"),
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"cursor": "AA"}, "cursor"),
    ],
)
def test_a_question_about_requests_without_meaning_says_which_field(world, change, named):
    with pytest.raises(BadQuery, match=f"^{named} must"):
        requests_page(world.moment(), replace(RequestQuery(), **change))


def test_a_cursor_of_requests_belongs_to_its_question(world):
    for label in range(3):
        world.ask(label)
    query = RequestQuery(institution=ASKER, limit=1)
    cursor = requests_page(world.moment(), query).next_cursor
    others = (
        {"institution": THIRD},
        {"custodian": CUSTODIAN},
        {"study_id": STUDY},
        {"state": "denied"},
        {"break_glass_unreviewed": True},
    )
    for change in others:
        with pytest.raises(BadQuery, match="cursor"):
            requests_page(world.moment(), replace(query, cursor=cursor, **change))
    assert requests_page(world.moment(), replace(query, cursor=cursor, limit=9)).requests


def test_what_nobody_asked_for_is_none(world):
    assert find_request(world.moment(), bytes(16)) is None
    with pytest.raises(BadQuery):
        find_consent(world.moment(), CUSTODIAN, b"short")
    assert asking("x")[0] == "access.request"


@pytest.fixture(scope="module")
def lists(consortium):
    """Every kind of list with a cursor: the function that asks for a page, and a good cursor."""
    moment = consortium[0].moment()
    asks = [
        lambda cursor: requests_page(moment, RequestQuery(limit=1, cursor=cursor)),
        lambda cursor: institutions_page(moment, 1, cursor),
        lambda cursor: members_page(moment, ASKER, 1, cursor),
        lambda cursor: audit_trail(moment, GENESIS.limits, STUDY, 1, cursor),
    ]
    return [(ask, ask(None).next_cursor) for ask in asks]


@given(
    st.integers(0, 3),
    st.text(max_size=60) | st.text("ABCDEFabcdef0123456789-_=", max_size=60),
    st.data(),
)
def test_any_cursor_of_any_list_is_taken_or_refused(lists, which, text, data):
    ask, good = lists[which]
    at = data.draw(st.integers(0, len(good)))
    for cursor in (text, good[:at] + text[:2] + good[at + 1 :], good[:at]):
        try:
            ask(cursor)
        except BadQuery:
            continue


@pytest.mark.parametrize(
    "position",
    [b"", b"\x00", b"\x01", b"\xff" * 40, bytes(40), b"\x01\x00", pack((b"\xff", b"\x01"))],
)
def test_a_forged_position_is_another_place_to_go_on_or_refused(consortium, position):
    moment = consortium[0].moment()
    for asked, ask in (
        (paging.question("institutions"), lambda c: institutions_page(moment, 1, c)),
        (paging.question("members", ASKER), lambda c: members_page(moment, ASKER, 1, c)),
        (
            paging.question("audit_trail", STUDY),
            lambda c: audit_trail(moment, GENESIS.limits, STUDY, 1, c),
        ),
    ):
        try:
            ask(paging.encode_cursor(asked, position))
        except BadQuery:
            continue
