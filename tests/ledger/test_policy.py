"""The policy contract, rule by rule."""

import contextlib
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.wire import pack
from node.ledger.accounts import institution_key
from node.ledger.contracts import policy
from node.ledger.contracts.base import Context
from node.ledger.contracts.policy import PolicyAnswer, Publish, Rule, decide, try_policies
from node.ledger.errors import Refused, Rejected
from node.ledger.policies import language, program
from node.ledger.state import StateView
from storage.errors import CorruptRecord
from tests.bench.policies import REQUEST

OPERATIONS = {kind.name: kind for kind in policy.KINDS}
GOOD = ("treatment", "permit", "required", 'request.purpose == "TREAT"')
NOBODY = PolicyAnswer("none", "", "required")


def state_with(*institutions):
    return StateView({institution_key(name): b"a row" for name in institutions}.get)


@dataclass
class Ledger:
    """Applies operations one after another to one state, as one institution or another."""

    state: StateView = field(default_factory=lambda: state_with("charite", "ukaachen"))

    def context(self, height, institution="charite"):
        roles = frozenset({"administrator"})
        return Context(self.state, height, 1_000, 0, institution, bytes(32), roles)

    def apply(self, name, *arguments, institution="charite", height=7):
        context = self.context(height, institution)
        kind = OPERATIONS[name]
        kind.apply(context, kind.parse(arguments))
        return [(event.name, event.fields) for event in context.events]

    def publish(self, *arguments, **where):
        return self.apply("policy.publish", *arguments, **where)

    def publish_common(self, *arguments, height=7):
        context = self.context(height)
        policy.apply_publish(context, policy.CONSORTIUM, policy.parse_publish(arguments))
        return [(event.name, event.fields) for event in context.events]

    def decide(self, height=8, custodian="charite", **changes):
        return decide(self.state.get, custodian, REQUEST._replace(height=height, **changes))

    def names(self, height, institution="charite"):
        return [rule.name for rule in policy.rules_in_force(self.state.get, institution, height)]

    def stored(self, institution="charite"):
        return policy.decode_policies(self.state.get(policy.policy_key(institution)))


@pytest.fixture
def ledger():
    return Ledger()


def test_publish_makes_a_rule_from_the_next_height(ledger):
    assert ledger.decide() == NOBODY
    events = ledger.publish(*GOOD, height=7)
    assert events == [("policy_published", ("charite", "treatment", "permit", "required"))]
    assert ledger.stored() == (Rule(*GOOD, 8, None),)
    assert ledger.decide(height=7) == NOBODY
    assert ledger.decide(height=8) == PolicyAnswer("permit", "charite/treatment", "required")
    assert ledger.decide(height=8, request_purpose="HRESCH") == NOBODY
    assert ledger.decide(height=9_999).effect == "permit"


def test_rules_hold_for_the_studies_of_their_institution_alone(ledger):
    ledger.publish(*GOOD)
    assert ledger.decide(custodian="ukaachen") == NOBODY
    ledger.publish("treatment", "deny", "required", "true", institution="ukaachen")
    assert ledger.decide(custodian="ukaachen").rule == "ukaachen/treatment"
    assert ledger.decide(custodian="charite").effect == "permit"


def test_a_replaced_rule_holds_until_the_height_of_the_replacement(ledger):
    ledger.publish(*GOOD, height=7)
    ledger.publish("treatment", "ask", "not_objected", "true", height=20)
    assert ledger.decide(height=20) == PolicyAnswer("permit", "charite/treatment", "required")
    assert ledger.decide(height=21) == PolicyAnswer("ask", "charite/treatment", "not_objected")
    assert ledger.names(20) == ledger.names(21) == ["treatment"]


def test_of_two_changes_at_one_height_the_last_comes_into_force(ledger):
    ledger.publish(*GOOD, height=7)
    ledger.publish("treatment", "deny", "required", "true", height=20)
    ledger.publish("treatment", "ask", "required", "true", height=20)
    assert [ledger.decide(height=height).effect for height in (20, 21)] == ["permit", "ask"]
    ledger.apply("policy.retire", "treatment", height=20)
    assert [ledger.decide(height=height).effect for height in (20, 21)] == ["permit", "none"]
    ledger.publish(*GOOD, height=20)
    assert [ledger.decide(height=height).effect for height in (20, 21)] == ["permit", "permit"]


def test_a_retired_rule_holds_until_the_height_of_its_end(ledger):
    ledger.publish(*GOOD, height=7)
    events = ledger.apply("policy.retire", "treatment", height=20)
    assert events == [("policy_retired", ("charite", "treatment"))]
    assert [ledger.decide(height=height).effect for height in (20, 21)] == ["permit", "none"]


def test_rules_that_ended_leave_the_state_with_the_next_change(ledger):
    ledger.publish(*GOOD, height=7)
    for height in range(8, 20):
        ledger.publish("other", "ask", "required", f"height > {height}", height=height)
    assert [(rule.name, rule.until_height) for rule in ledger.stored()] == [
        ("other", 19),
        ("other", None),
        ("treatment", None),
    ]
    ledger.apply("policy.retire", "treatment", height=30)
    ledger.apply("policy.retire", "other", height=31)
    assert [rule.name for rule in ledger.stored()] == ["other"]
    ledger.publish("brief", "ask", "required", "true", height=40)
    ledger.apply("policy.retire", "brief", height=40)
    assert ledger.state.get(policy.policy_key("charite")) is None


@pytest.mark.parametrize("name", ["treatment", "other"])
def test_only_a_rule_that_is_there_can_be_retired(ledger, name):
    ledger.publish(*GOOD, institution="ukaachen")
    ledger.publish("other", "ask", "required", "true")
    ledger.apply("policy.retire", "other", height=9)
    with pytest.raises(Rejected, match="policy_unknown"):
        ledger.apply("policy.retire", name, height=9)
    with pytest.raises(Rejected, match="policy_unknown"):
        ledger.apply("policy.retire", name, height=10)


def test_rules_of_the_consortium_hold_for_all_studies(ledger):
    events = ledger.publish_common("open", "permit", "required", "true")
    assert events == [("policy_published", ("", "open", "permit", "required"))]
    for custodian in ("charite", "ukaachen"):
        answer = ledger.decide(custodian=custodian)
        assert answer == PolicyAnswer("permit", "consortium/open", "required")
    context = ledger.context(9)
    policy.apply_retire(context, policy.CONSORTIUM, policy.parse_retire(("open",)))
    assert [(event.name, event.fields) for event in context.events] == [
        ("policy_retired", ("", "open"))
    ]
    assert ledger.decide(height=10) == NOBODY


@pytest.mark.parametrize(
    "condition",
    [
        "study.custodian == 'charitee'",
        "requester.institution in ['charite', 'ukachen']",
        "true || 'nobody' != requester.institution",
    ],
)
def test_a_condition_names_only_institutions_that_are_there(ledger, condition):
    with pytest.raises(Rejected, match="institution_unknown"):
        ledger.publish("typo", "deny", "required", condition)
    assert ledger.state.get(policy.policy_key("charite")) is None
    ledger.publish("right", "deny", "required", "requester.institution == 'ukaachen'")


def test_an_institution_has_a_bounded_number_of_rules(ledger):
    for number in range(policy.RULES_MAX):
        ledger.publish(f"rule-{number}", "ask", "required", "true")
    with pytest.raises(Rejected, match="policy_full"):
        ledger.publish("one-more", "ask", "required", "true")
    ledger.publish("rule-3", "deny", "required", "true", height=9)
    ledger.apply("policy.retire", "rule-4", height=9)
    ledger.publish("one-more", "ask", "required", "true", height=9)
    assert len(ledger.names(9)) == len(ledger.names(10)) == policy.RULES_MAX
    assert len(ledger.stored()) == policy.RULES_MAX + 2
    ledger.publish("their-own", "ask", "required", "true", institution="ukaachen")


def test_an_institution_has_a_bounded_number_of_nodes(ledger):
    condition = " || ".join(["study.derived"] * (language.NODES_MAX // 2)) + " "
    fitting = policy.NODES_MAX // (language.NODES_MAX - 1)
    for number in range(fitting):
        ledger.publish(f"rule-{number}", "ask", "required", condition)
    left = policy.NODES_MAX - fitting * (language.NODES_MAX - 1)
    with pytest.raises(Rejected, match="policy_full"):
        ledger.publish(
            "long", "ask", "required", "!" * (left % 2) + "true" + "&&true" * (left // 2)
        )
    ledger.publish("short", "ask", "required", "true" + "&&true" * (left // 2 - 1))
    ledger.publish("rule-0", "ask", "required", "true", height=9)
    ledger.publish("long", "ask", "required", condition, height=9)


def test_a_refused_publication_changes_nothing(ledger):
    ledger.publish(*GOOD)
    before = ledger.state.changes()
    with pytest.raises(Rejected):
        ledger.publish("typo", "deny", "required", "study.custodian == 'nobody'", height=9)
    with pytest.raises(Rejected):
        ledger.apply("policy.retire", "typo", height=9)
    assert ledger.state.changes() == before


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, ""),
        (0, "Treatment"),
        (0, "anna muster"),
        (0, "case-123456"),
        (0, "a" * 33),
        (0, "trailing-"),
        (0, "ümlaut"),
        (0, "1st"),
        (0, b"treatment"),
        (0, None),
        (1, "allow"),
        (1, "none"),
        (1, None),
        (2, "given"),
        (2, True),
        (3, "height"),
        (3, "study.modality == 'Anna'"),
        (3, "true " * 500),
        (3, b"true"),
        (3, None),
        (3, ("true",)),
    ],
)
def test_arguments_of_the_wrong_form_are_refused(position, value):
    arguments = list(GOOD)
    arguments[position] = value
    with pytest.raises(Refused) as refused:
        policy.parse_publish(tuple(arguments))
    assert refused.value.code == "operation_invalid"
    assert type(value) is not str or len(value) < 5 or value not in refused.value.sentence


def test_a_refused_condition_says_where():
    with pytest.raises(Refused, match="condition, line 2, column 4: "):
        policy.parse_publish((*GOOD[:3], "true\n&& height"))


@pytest.mark.parametrize("arguments", [(), GOOD[:3], (*GOOD, 1)])
def test_the_number_of_arguments_is_checked(arguments):
    with pytest.raises(Refused, match="4 arguments"):
        policy.parse_publish(arguments)
    with pytest.raises(Refused, match="1 arguments"):
        policy.parse_retire(("a", "b"))


@given(st.lists(st.one_of(st.none(), st.integers(), st.text(), st.binary()), max_size=5).map(tuple))
def test_any_arguments_are_parsed_or_refused(arguments):
    for parse in (policy.parse_publish, policy.parse_retire):
        with contextlib.suppress(Refused):
            parse(arguments)


def test_administrators_and_data_protection_officers_change_policies():
    assert {kind.name for kind in policy.KINDS} == {"policy.publish", "policy.retire"}
    for kind in policy.KINDS:
        assert kind.roles == {"administrator", "data_protection_officer"}


def test_each_rejection_has_a_sentence():
    assert policy.REJECTIONS.keys() == {"institution_unknown", "policy_unknown", "policy_full"}


# Who decides


def rules(*given_rules):
    """A state with rules: (institution, name, effect, consent, holds)."""
    found: dict[str, list[Rule]] = {}
    for institution, name, effect, consent, holds in given_rules:
        condition = {True: "true", False: "false"}.get(holds, holds)
        found.setdefault(institution, []).append(Rule(name, effect, consent, condition, 1, None))
    return {
        policy.policy_key(institution): pack((1, tuple(sorted(each))))
        for institution, each in found.items()
    }


@pytest.mark.parametrize(
    ("given_rules", "answer"),
    [
        ([("charite", "a", "permit", "required", False)], NOBODY),
        (
            [
                ("charite", "z", "deny", "required", True),
                ("charite", "a", "permit", "not_objected", True),
                ("", "a", "permit", "not_objected", True),
            ],
            ("deny", "charite/z", "required"),
        ),
        (
            [
                ("charite", "a", "deny", "required", True),
                ("", "z", "deny", "not_objected", True),
            ],
            ("deny", "consortium/z", "not_objected"),
        ),
        (
            [
                ("charite", "b", "deny", "required", True),
                ("charite", "a", "deny", "required", True),
            ],
            ("deny", "charite/a", "required"),
        ),
        (
            [
                ("", "a", "permit", "required", True),
                ("charite", "z", "permit", "not_objected", True),
                ("charite", "b", "ask", "not_objected", True),
            ],
            ("permit", "charite/z", "not_objected"),
        ),
        (
            [
                ("", "z", "permit", "required", True),
                ("charite", "a", "permit", "required", True),
                ("charite", "b", "permit", "not_objected", False),
                ("charite", "c", "deny", "required", False),
            ],
            ("permit", "consortium/z", "required"),
        ),
        (
            [
                ("", "a", "ask", "required", True),
                ("charite", "z", "ask", "not_objected", True),
                ("charite", "b", "permit", "required", False),
            ],
            ("ask", "charite/z", "not_objected"),
        ),
        (
            [("charite", "a", "ask", "required", True), ("", "b", "ask", "required", True)],
            ("ask", "consortium/b", "required"),
        ),
    ],
)
def test_who_decides(given_rules, answer):
    assert decide(rules(*given_rules).get, "charite", REQUEST) == answer


RULE = st.tuples(
    st.sampled_from(["", "charite"]),
    st.sampled_from([f"rule-{letter}" for letter in "abcdefgh"]),
    st.sampled_from(sorted(policy.EFFECTS)),
    st.sampled_from(sorted(policy.CONSENTS)),
    st.booleans(),
)


def obvious(given_rules):
    """Who decides, as the agreement says it."""
    ordered = sorted(given_rules, key=lambda rule: (rule[0] != "", rule[1]))
    matching = [
        PolicyAnswer(effect, f"{institution or 'consortium'}/{name}", consent)
        for institution, name, effect, consent, holds in ordered
        if holds
    ]
    for wanted in (
        lambda each: each.effect == "deny",
        lambda each: each.effect == "permit" and each.consent == "not_objected",
        lambda each: each.effect == "permit",
        lambda each: each.effect == "ask" and each.consent == "not_objected",
        lambda each: each.effect == "ask",
    ):
        for each in matching:
            if wanted(each):
                return each
    return NOBODY


@settings(max_examples=300)
@given(st.lists(RULE, max_size=10, unique_by=lambda rule: rule[:2]))
def test_the_quick_decision_agrees_with_an_obvious_one_and_with_the_dry_run(given_rules):
    state = rules(*given_rules)
    answer = decide(state.get, "charite", REQUEST)
    assert answer == obvious(given_rules)
    tried, trials = try_policies(state.get, "charite", REQUEST)
    assert tried == answer
    assert [trial.rule for trial in trials if trial.is_decisive] == [answer.rule] * bool(
        answer.rule
    )
    assert len(trials) == len(given_rules)


class Failing:
    """A condition that the evaluator cannot evaluate."""

    fields = frozenset()

    def evaluate(self, values):
        return None


def test_a_condition_that_fails_denies_and_permits_nothing(monkeypatch):
    policy._load.cache_clear()
    load, failing = program.load, "true "
    monkeypatch.setattr(program, "load", lambda text: Failing() if text == failing else load(text))
    state = rules(
        ("charite", "a", "permit", "not_objected", failing),
        ("charite", "b", "ask", "not_objected", failing),
        ("charite", "c", "ask", "required", True),
    )
    assert decide(state.get, "charite", REQUEST).rule == "charite/c"
    state = rules(
        ("charite", "a", "permit", "not_objected", True),
        ("charite", "b", "deny", "required", failing),
    )
    assert decide(state.get, "charite", REQUEST) == ("deny", "charite/b", "required")
    trials = try_policies(state.get, "charite", REQUEST)[1]
    assert [trial.outcome for trial in trials] == ["match", "error"]
    policy._load.cache_clear()


# Dry runs


def test_a_dry_run_says_how_each_rule_came_out_and_why():
    state = rules(
        ("", "abroad", "deny", "required", "requester.country != study.country"),
        ("charite", "ct", "permit", "required", "study.modality in ['CT'] && request.uses < 5"),
        ("charite", "mr", "permit", "not_objected", "study.modality == 'MR' && consent.given"),
    )
    answer, trials = try_policies(state.get, "charite", REQUEST)
    assert answer == ("permit", "charite/ct", "required")
    assert trials == (
        policy.Trial(
            "consortium/abroad",
            "deny",
            "required",
            "no_match",
            False,
            (("requester.country != study.country", False),),
        ),
        policy.Trial(
            "charite/ct",
            "permit",
            "required",
            "match",
            True,
            (("study.modality in ['CT']", True), ("request.uses < 5", True)),
        ),
        policy.Trial(
            "charite/mr",
            "permit",
            "not_objected",
            "no_match",
            False,
            (("study.modality == 'MR'", False), ("consent.given", True)),
        ),
    )


def test_a_dry_run_takes_drafts_as_if_they_were_published():
    state = rules(
        ("charite", "ct", "permit", "required", True), ("", "ct", "ask", "required", True)
    )
    drafts = (Publish("ct", "deny", "required", "true"), Publish("aa", "ask", "required", "false"))
    answer, trials = try_policies(state.get, "charite", REQUEST, drafts)
    assert answer == ("deny", "charite/ct", "required")
    assert [trial.rule for trial in trials] == ["consortium/ct", "charite/aa", "charite/ct"]
    with pytest.raises(language.InvalidCondition):
        try_policies(state.get, "charite", REQUEST, (Publish("x", "ask", "required", "nonsense"),))


def test_a_dry_run_looks_at_the_rules_in_force_only(ledger):
    ledger.publish(*GOOD, height=7)
    ledger.apply("policy.retire", "treatment", height=9)
    for height, count in ((7, 0), (8, 1), (9, 1), (10, 0)):
        facts = REQUEST._replace(height=height)
        assert len(try_policies(ledger.state.get, "charite", facts)[1]) == count


# Rows


@pytest.mark.parametrize(
    "row",
    [
        b"",
        b"\xc1",
        pack(1),
        pack((2, ())),
        pack((1,)),
        pack((1, 5)),
        pack((1, (5,))),
        pack((1, (("a", "deny", "required", "true", 1),))),
        pack((1, (("a", "deny", "required", "nonsense", 1, None),))),
        pack((1, (("a", "deny", "required", 7, 1, None),))),
        pack((1, (("a", "allow", "required", "true", 1, None),))),
        pack((1, (("a", "deny", "required", "true", "1", None),))),
        pack((1, (("a", "deny", "required", "true", 1, "2"),))),
        pack((1, ((1, "deny", "required", "true", 1, None),))),
    ],
)
def test_a_damaged_row_stops_the_node(row):
    with pytest.raises(CorruptRecord):
        decide({policy.policy_key("charite"): row}.get, "charite", REQUEST)


@settings(max_examples=300)
@given(st.data())
def test_a_mutated_row_is_read_or_corrupt(data):
    row = bytearray(rules(("charite", "a", "deny", "required", True))[b"policy/charite"])
    at = data.draw(st.integers(0, len(row) - 1))
    row[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(row)))
    for damaged in (bytes(row), bytes(row[:cut]), bytes(row) + b"\x00"):
        with contextlib.suppress(CorruptRecord):
            decide({b"policy/charite": damaged}.get, "charite", REQUEST)


def test_keys_cannot_run_into_each_other():
    assert policy.policy_key("") == b"policy/"
    assert policy.policy_key("charite") == b"policy/charite"
