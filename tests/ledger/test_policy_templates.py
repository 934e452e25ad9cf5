"""The templates in config/policies do what their heads say; a file that is none is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.wire import pack
from node.ledger.contracts import policy
from node.ledger.contracts.policy import RULES_MAX, decide
from node.ledger.policies.templates import (
    BYTES_MAX,
    InvalidTemplate,
    load_template,
    load_templates,
    parse_template,
)
from tests.bench.policies import REQUEST

FOLDER = Path(__file__).parents[2] / "config" / "policies"
TEMPLATES = load_templates(FOLDER)

NIGHT = 1_767_225_600_000  # 2026-01-01, a Thursday, 00:00 UTC
HOUR = 3_600_000
DAY = NIGHT + 12 * HOUR
RESEARCH = {"request_purpose": "HRESCH", "requester_role": "researcher"}
REGISTRY = RESEARCH | {"request_deidentified": True, "request_ethics": True}
CHILD = {"study_confidentiality": "R"}
QUALITY = {"request_purpose": "HQUALIMP", "request_deidentified": True}

# template -> (what differs from a clinician's request for treatment, effect, consent) by row
DECISIONS = {
    "treatment-in-consortium": [
        ({}, "permit", "not_objected"),
        ({"request_purpose": "ETREAT"}, "permit", "not_objected"),
        ({"request_purpose": "CAREMGT"}, "permit", "not_objected"),
        ({"request_purpose": "HRESCH"}, "none", None),
        ({"requester_role": "gateway"}, "none", None),
        ({"study_confidentiality": "R"}, "none", None),
        ({"study_confidentiality": "V"}, "none", None),
    ],
    "second-opinion": [
        ({}, "permit", "required"),
        ({"request_uses": 3, "request_heights": 20_000}, "permit", "required"),
        ({"request_uses": 4}, "none", None),
        ({"request_heights": 20_001}, "none", None),
        ({"study_derived": True}, "none", None),
        ({"study_confidentiality": "V"}, "none", None),
        ({"requester_role": "researcher"}, "none", None),
    ],
    "teleradiology-at-night": [
        ({"time_ms": NIGHT}, "permit", "not_objected"),
        ({"time_ms": NIGHT + 6 * HOUR - 1}, "permit", "not_objected"),
        ({"time_ms": NIGHT + 6 * HOUR}, "ask", "not_objected"),
        ({"time_ms": NIGHT + 18 * HOUR - 1}, "ask", "not_objected"),
        ({"time_ms": NIGHT + 18 * HOUR}, "permit", "not_objected"),
        ({"time_ms": DAY}, "ask", "not_objected"),
        ({"time_ms": DAY + 48 * HOUR}, "permit", "not_objected"),  # Saturday
        ({"time_ms": DAY + 72 * HOUR}, "permit", "not_objected"),  # Sunday
        ({"time_ms": DAY + 96 * HOUR}, "ask", "not_objected"),  # Monday
        ({"time_ms": NIGHT, "request_uses": 3}, "none", None),
        ({"time_ms": NIGHT, "study_modality": "MG"}, "none", None),
        ({"time_ms": NIGHT, "request_purpose": "HRESCH"}, "none", None),
        ({"time_ms": NIGHT, "study_confidentiality": "R"}, "none", None),
    ],
    "research-deidentified": [
        (RESEARCH | {"request_deidentified": True}, "permit", "required"),
        (RESEARCH, "deny", None),
        ({"request_purpose": "CLINTRCH"}, "deny", None),
        (RESEARCH | {"request_deidentified": True, "requester_role": "gateway"}, "none", None),
        (RESEARCH | {"request_deidentified": True, **CHILD}, "none", None),
        ({}, "none", None),
    ],
    "registry-with-ethics": [
        (REGISTRY, "permit", "required"),
        (REGISTRY | {"request_purpose": "PUBHLTH", "requester_role": "gateway"}, "permit", None),
        (REGISTRY | {"request_ethics": False}, "deny", None),
        (REGISTRY | {"request_purpose": "PUBHLTH", "request_ethics": False}, "deny", None),
        (REGISTRY | {"request_deidentified": False}, "none", None),
        (REGISTRY | {"study_region": "head"}, "none", None),
        (REGISTRY | {"study_modality": "US"}, "none", None),
        ({}, "none", None),
    ],
    "paediatric-restriction": [
        (CHILD, "permit", "required"),
        (CHILD | {"request_purpose": "ETREAT", "request_uses": 3}, "permit", "required"),
        (CHILD | {"request_uses": 4}, "deny", None),
        (CHILD | {"request_purpose": "CAREMGT"}, "deny", None),
        (CHILD | {"requester_role": "researcher"}, "deny", None),
        (CHILD | REGISTRY, "deny", None),
        ({}, "none", None),
        (REGISTRY, "none", None),
    ],
    "patient-opt-out": [
        (QUALITY, "permit", "not_objected"),
        (QUALITY | {"request_purpose": "HOPERAT"}, "permit", "not_objected"),
        (QUALITY | {"request_purpose": "PUBHLTH"}, "permit", "not_objected"),
        (QUALITY | {"request_deidentified": False}, "none", None),
        (QUALITY | CHILD, "none", None),
        (RESEARCH | {"request_deidentified": True}, "none", None),
        ({}, "none", None),
    ],
    "cross-border-refusal": [
        ({}, "none", None),
        ({"requester_country": "FR"}, "deny", None),
        ({"requester_country": "FR", "request_purpose": "ETREAT"}, "deny", None),
        ({"requester_country": "ZZ"}, "deny", None),
        ({"study_country": "ZZ"}, "deny", None),
        ({"requester_country": "ZZ", "study_country": "ZZ"}, "deny", None),
        ({"requester_country": "CH", "study_country": "CH"}, "none", None),
    ],
}


def state_of(*names):
    """The state once an institution has published all rules of the named templates."""
    rules = sorted((*rule, 1, None) for name in names for rule in TEMPLATES[name].rules)
    return {policy.policy_key("charite"): pack((1, tuple(rules)))}


def test_there_are_the_eight_templates():
    assert TEMPLATES.keys() == DECISIONS.keys()
    for template in TEMPLATES.values():
        assert len(template.about) > 80, "each says what it does"
        assert template.about.startswith(template.title)


@pytest.mark.parametrize("name", DECISIONS)
def test_a_template_decides_as_its_head_says(name):
    state = state_of(name)
    for change, effect, consent in DECISIONS[name]:
        answer = decide(state.get, "charite", REQUEST._replace(**change))
        assert answer.effect == effect, (change, answer)
        assert consent in (None, answer.consent), (change, answer)


@pytest.mark.parametrize("name", DECISIONS)
def test_every_rule_of_a_template_decides_something(name):
    state = state_of(name)
    answers = [
        decide(state.get, "charite", REQUEST._replace(**change)).rule
        for change, _, _ in DECISIONS[name]
    ]
    assert {rule.name for rule in TEMPLATES[name].rules} <= {
        each.removeprefix("charite/") for each in answers
    }


def test_all_templates_can_be_published_together_and_refusals_win():
    names = [rule.name for template in TEMPLATES.values() for rule in template.rules]
    assert len(set(names)) == len(names) <= RULES_MAX
    state = state_of(*TEMPLATES)
    for change, effect in [
        ({}, "permit"),
        ({"requester_country": "FR"}, "deny"),
        (CHILD | {"request_uses": 4}, "deny"),
        (RESEARCH, "deny"),
        (REGISTRY, "permit"),
        ({"requester_role": "auditor", "request_purpose": "HLEGAL"}, "none"),
    ]:
        assert decide(state.get, "charite", REQUEST._replace(**change)).effect == effect, change


RULE = """
[[rules]]
name = "a"
effect = "ask"
consent = "required"
condition = "true"
"""


def test_a_template_is_read():
    template = parse_template(f'# One.\n#\n# Two.\n\ntitle = "T"\n{RULE}')
    assert template.title == "T"
    assert template.about == "One.\n\nTwo."
    assert template.rules == (policy.Publish("a", "ask", "required", "true"),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "title is missing"),
        ("title = 7" + RULE, "title is missing"),
        ("title = 'T'", "must be given 1 to 32 times"),
        ("title = 'T'\nrules = []", "must be given 1 to 32 times"),
        ("title = 'T'\nrules = [7]", "rule 1: a rule has the keys"),
        ("title = 'T'" + RULE * 33, "must be given 1 to 32 times"),
        ("title = 'T'" + RULE * 2, "two rules have one name"),
        ("title = 'T'\nauthor = 'me'" + RULE, "the key author is not known"),
        ("title = 'T'" + RULE + "more = 1", "rule 1: a rule has the keys"),
        ("title = 'T'" + RULE.replace("ask", "allow"), "rule 1: effect must be"),
        ("title = 'T'" + RULE.replace("true", "nonsense"), "rule 1: condition, line 1, column 1: "),
        ("title = 'T'" + RULE.replace('"true"', "true"), "rule 1: condition must be text"),
        ("title = ", "not TOML"),
        ("a = " + "[" * 5_000, "not TOML"),
    ],
)
def test_what_is_no_template_is_refused(text, problem):
    with pytest.raises(InvalidTemplate) as refused:
        parse_template(text)
    assert any(problem in each for each in refused.value.problems), refused.value.problems


def test_all_problems_are_told_together():
    with pytest.raises(InvalidTemplate) as refused:
        parse_template(RULE.replace("ask", "allow") + RULE.replace("true", "x"))
    assert len(refused.value.problems) == 3


@given(st.text(max_size=200))
def test_any_text_is_a_template_or_refused(text):
    try:
        parse_template(text)
    except InvalidTemplate as refused:
        assert refused.problems  # noqa: PT017


def test_a_file_that_is_no_template_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"title = 'T'")
    with pytest.raises(InvalidTemplate, match=r"mine\.toml: \[\[rules\]\]"):
        load_templates(tmp_path)
    path.write_bytes(b"\xff")
    with pytest.raises(InvalidTemplate, match=r"mine\.toml is not UTF-8"):
        load_template(path)
    path.write_bytes(b" " * (BYTES_MAX + 1))
    with pytest.raises(InvalidTemplate, match=r"mine\.toml has more than 65536 bytes"):
        load_template(path)
    assert load_templates(tmp_path / "nothing") == {}
