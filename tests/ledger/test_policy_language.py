"""What is a condition, what is refused and where, and that it means what CEL means."""

import re
import sys

import cel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.ledger.contracts.vocabulary import MODALITIES
from node.ledger.policies import language, program
from node.ledger.policies.facts import FIELDS, Facts, hour, values, variable, weekday
from node.ledger.policies.language import InvalidCondition, check
from tests.bench.policies import COUNT, REQUEST, attempt, hostile_policies

CANONICAL = {
    "true": "true",
    "consent.given": "consent_given",
    "height>5": "height > 5",
    "study.modality=='CT'": 'study_modality == "CT"',
    '"CT" == study.modality': '"CT" == study_modality',
    "study.modality in ['CT',\n\t'MR']": 'study_modality in ["CT", "MR"]',
    "height in [1,-2]": "height in [1, (-2)]",
    "height + 1 in [1]": "height + 1 in [1]",
    "((((height)))) < 1": "height < 1",
    "study.derived && consent.given || true": "(study_derived && consent_given) || true",
    "study.derived && (consent.given || true)": "study_derived && (consent_given || true)",
    "true && true && (true && false)": "true && true && (true && false)",
    "1 - (2 - 3) < 4": "1 - (2 - 3) < 4",
    "1 - 2 - 3 < 4": "1 - 2 - 3 < 4",
    "--height < 0": "(-(-height)) < 0",
    "!!consent.given": "!!consent_given",
    "!(height < 1)": "!(height < 1)",
    "(height < 1) == consent.given": "(height < 1) == consent_given",
    "consent.given ? height < 1 : true": "consent_given ? height < 1 : true",
    "true ? false : true ? false : true": "true ? false : (true ? false : true)",
    "true && true ? true : false": "(true && true) ? true : false",
    "(true ? 1 : 2) == 1": "(true ? 1 : 2) == 1",
    "true ? true || false : true && false": "true ? (true || false) : (true && false)",
    "requester.country != study.country": "requester_country != study_country",
    "study.custodian == requester.institution": "study_custodian == requester_institution",
    "9007199254740992 > height": "9007199254740992 > height",
    "block.hour < 6 || block.weekday >= 5": "block_hour < 6 || block_weekday >= 5",
}

# text -> (where, counted from 0; a part of the sentence)
REFUSED = {
    "": (0, "missing"),
    "   ": (3, "missing"),
    "height": (0, "either true or false"),
    "'CT'": (0, "either true or false"),
    "1 + 1": (0, "either true or false"),
    "true true": (5, "operator is missing"),
    "true)": (4, "operator is missing"),
    "(true": (5, "not closed"),
    "true &&": (7, "missing"),
    "&& true": (0, "missing"),
    "true & true": (5, "this character"),
    "true ? true": (11, "condition ? one : other"),
    "true ? 1 : true": (11, "both sides of :"),
    "true ? 'a' : 'b'": (13, "both sides of :"),
    "1 ? true : false": (0, "before ?"),
    "1 && true": (0, "both sides of &&"),
    "true || 'CT'": (8, "both sides of ||"),
    "true < false": (0, "only numbers"),
    "study.modality < 'MR'": (0, "only numbers"),
    "1 < 2 < 3": (6, "do not chain"),
    "true == true == true": (13, "do not chain"),
    "1 == true": (2, "int and bool"),
    "consent.given + 1 > 0": (0, "next to +"),
    "1 - true > 0": (4, "next to -"),
    "!height": (1, "behind !"),
    "-true": (1, "behind -"),
    "height in 1": (10, "list in square brackets"),
    "height in []": (11, "numbers, or strings"),
    "height in [1": (12, "ends with ]"),
    "height in [1,]": (13, "numbers, or strings"),
    "height in [height]": (11, "numbers, or strings"),
    "height in [-height]": (11, "numbers, or strings"),
    "height in [(1)]": (11, "numbers, or strings"),
    "height in [true]": (11, "numbers, or strings"),
    "height in ['CT']": (11, "list of string"),
    "height in [--true]": (13, "behind -"),
    "consent.given in [1]": (18, "list of int"),
    "'CT' in ['CT']": (0, "compared with a field"),
    "study.modality in [study.region]": (19, "numbers, or strings"),
    "'CT' == 'CT'": (0, "compared with a field"),
    "study.modality == study.region": (18, "never hold the same"),
    "study.custodian == study.country": (19, "never hold the same"),
    "study.modality == 'XX'": (18, "not a DICOM modality"),
    "study.modality == 'ct'": (18, "not a DICOM modality"),
    "study.modality == ''": (18, "not a DICOM modality"),
    "study.confidentiality == 'S'": (25, "not a confidentiality: N, R, V"),
    "request.purpose == 'TREATMENT'": (19, "TREAT"),
    "requester.role in ['clinician', 'nurse']": (32, "data_protection_officer"),
    "requester.country == 'de'": (21, "two capital letters"),
    "requester.country == 'DEU'": (21, "two capital letters"),
    "study.custodian == 'St-Anna'": (19, "name of an institution"),
    "study.custodian == 'an-institution-with-a-name-too-long'": (19, "name of an institution"),
    "study.modality == 'CT \u200b'": (18, "letters, digits"),
    "study.custodian == 'Anna Muster'": (19, "letters, digits"),
    "study.custodian == 'a\\x41'": (19, "letters, digits"),
    '"""CT""" == study.modality': (2, "operator is missing"),
    "r'CT' == study.modality": (0, "fields are in"),
    "study.patient == 1": (0, "study has the fields"),
    "study == study": (0, "study has the fields"),
    "studies.modality == 'CT'": (0, "fields are in block"),
    "request.purpose.size() > 1": (0, "request has the fields"),
    "size(height) > 1": (0, "fields are in"),
    "height.all(x, true)": (0, "height"),
    "[1] == [1]": (0, "missing"),
    "[1].all(x, true)": (3, "this character"),
    "study['modality'] == 'CT'": (0, "study has the fields"),
    "study . modality == 'CT'": (6, "this character"),
    "{}": (0, "this character"),
    "true // why": (5, "this character"),
    "height * 2 > 1": (7, "this character"),
    "height / 2 > 1": (7, "this character"),
    "height % 2 > 1": (7, "this character"),
    "1.5 < 2": (1, "this character"),
    "1u < 2u": (1, "operator is missing"),
    "0x10 > 1": (1, "operator is missing"),
    "007 > 1": (0, "begin with 0"),
    "9007199254740993 > 1": (0, "at most 9007199254740992"),
    "9" * 1_000 + " > 1": (0, "at most"),
    "null == null": (0, "fields are in"),
    "in": (0, "fields are in"),
    "tr\u00fce": (2, "this character"),
    "true\u00a0": (4, "this character"),
    "true\x00": (4, "this character"),
    "\ud800": (0, "this character"),
}


@pytest.mark.parametrize(("text", "expression"), CANONICAL.items())
def test_a_condition_becomes_canonical_cel(text, expression):
    assert check(text).expression == expression


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_condition_is_refused_with_its_place(text):
    position, part = REFUSED[text]
    with pytest.raises(InvalidCondition) as refused:
        check(text)
    assert (refused.value.position, part in refused.value.sentence) == (position, True), (
        refused.value
    )


def test_a_refusal_counts_lines_and_columns_from_one():
    with pytest.raises(InvalidCondition, match=r"^line 3, column 4: "):
        check("true\n&& true\n&& nonsense")


# Six letters or more: shorter ones stand in sentences by chance. RTINTENT and its like are words.
no_words = st.text(alphabet="ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=6, max_size=20).filter(
    lambda name: name not in MODALITIES
)


@given(no_words)
def test_a_refusal_does_not_repeat_what_was_written(name):
    for text in (
        f"study.modality == '{name}'",
        f"study.{name} == 1",
        f"{name} == 1",
        f"true {name}",
    ):
        with pytest.raises(InvalidCondition) as refused:
            check(text)
        assert name not in str(refused.value)


def test_every_field_can_be_asked_for():
    for name, field in FIELDS.items():
        words = {"a country of two capital letters": "DE", "the name of an institution": "charite"}
        word = min(field.words, default=words.get(field.what))
        text = {"bool": name, "int": f"{name} == 0", "string": f"{name} == '{word}'"}[field.type]
        assert check(text).fields == {name}
        assert program.load(text).evaluate(program.values_of(REQUEST)) in (True, False)


def test_fields_hold_what_the_facts_say():
    held = values(REQUEST, frozenset(FIELDS))
    assert held.pop("block_hour") == 22
    assert held.pop("block_weekday") == 1
    assert {variable(name) for name in FIELDS} == held.keys() | {"block_hour", "block_weekday"}
    assert held == {name: value for name, value in REQUEST._asdict().items() if name != "time_ms"}
    kinds = {"bool": bool, "int": int, "string": str}
    for name, field in FIELDS.items():
        assert type(values(REQUEST, {name})[variable(name)]) is kinds[field.type]


def test_hours_and_weekdays_are_those_of_utc():
    assert (hour(0), weekday(0)) == (0, 3)  # a Thursday
    assert (hour(1_767_225_600_000 - 1), weekday(1_767_225_600_000 - 1)) == (23, 2)
    assert (hour(1_767_225_600_000), weekday(1_767_225_600_000)) == (0, 3)
    assert [weekday(day * 86_400_000) for day in range(4, 11)] == list(range(7))


def test_the_institutions_that_are_named_are_found():
    text = "study.custodian in ['charite', 'st-anna'] || 'ukaachen' == requester.institution"
    assert check(text).institutions == {"charite", "st-anna", "ukaachen"}
    assert check("study.country == 'DE' && requester.role == 'gateway'").institutions == set()


def test_parts_are_the_operands_of_the_outermost_operator():
    def parts(text):
        return [text[part.start : part.end] for part in check(text).parts]

    assert parts("height>1 && (true||false) && !true") == ["height>1", "(true||false)", "!true"]
    assert parts("(true && height > 1) || false") == ["(true && height > 1)", "false"]
    assert parts("(true || false)") == ["true", "false"]
    assert parts(" height > 1 ") == ["height > 1"]
    assert parts("true ? true && true : false") == ["true ? true && true : false"]


def test_the_length_is_bounded():
    longest = "true" + " " * (language.LENGTH_MAX - 4)
    assert check(longest).nodes == 1
    with pytest.raises(InvalidCondition, match="2048 characters"):
        check(longest + " ")


def test_the_nodes_are_bounded():
    def chain(operands):
        return " && ".join(["true"] * operands)

    most = language.NODES_MAX // 2
    assert check(chain(most)).nodes == language.NODES_MAX - 1
    assert check("!" + chain(most)).nodes == language.NODES_MAX
    with pytest.raises(InvalidCondition, match="more than 200"):
        check("!!" + chain(most))
    with pytest.raises(InvalidCondition, match="more than 200"):
        check(" || ".join(["(true)"] * 68))


def test_all_that_is_written_counts_as_nodes():
    assert check("(height + 1) in [1, -2] ? !true : 'CT' == study.modality").nodes == 14


@pytest.mark.parametrize(
    ("left", "right", "levels"),
    [("(", ")", 16), ("!", "", 16), ("!(", ")", 8), ("(true ? ", " : false)", 15)],
)
def test_the_depth_is_bounded(left, right, levels):
    assert check(left * levels + "true" + right * levels)
    with pytest.raises(InvalidCondition, match="nested more than 16 deep"):
        check(left * (levels + 1) + "true" + right * (levels + 1))


def test_the_depth_of_choices_in_choices_is_bounded():
    assert check("true ? true : " * 16 + "true")
    with pytest.raises(InvalidCondition, match="nested more than 16 deep"):
        check("true ? true : " * 17 + "true")


def test_lists_are_bounded():
    assert check(f"height in [{','.join('1' * 64)}]")
    with pytest.raises(InvalidCondition, match="at most 64 entries"):
        check(f"height in [{','.join('1' * 65)}]")


def test_all_modalities_fit_into_two_lists():
    words = sorted(MODALITIES)
    halves = [", ".join(f"'{word}'" for word in half) for half in (words[:40], words[40:])]
    assert check(" || ".join(f"study.modality in [{half}]" for half in halves))


@given(st.text(max_size=60))
def test_any_text_is_a_condition_or_refused(text):
    try:
        check(text)
    except InvalidCondition as refused:
        assert 0 <= refused.position <= len(text)  # noqa: PT017


PIECES = [
    *FIELDS, "&&", "||", "!", "==", "!=", "<", "<=", "in", "?", ":", "+", "-", "(", ")", "[", "]",
    ",", "true", "1", "'CT'", "'clinician'", "'DE'", " ", "study.", "x",
]  # fmt: skip


@settings(max_examples=200)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map(" ".join))
def test_what_the_checker_accepts_the_evaluator_evaluates(text):
    try:
        condition = program.load(text)
    except InvalidCondition:
        return
    assert condition.evaluate(program.values_of(REQUEST)) in (True, False)


# Conditions with their meaning: the text, and what it is worth for given variables. The meaning is
# stated here once more, in Python, for comparison with the evaluator's.
def reads(name):
    return lambda v: v[name]


LEAVES_BOOL = st.sampled_from(
    [(name, reads(variable(name))) for name, f in FIELDS.items() if f.type == "bool"]
    + [("true", lambda v: True), ("false", lambda v: False)]
)
LEAVES_INT = st.one_of(
    st.sampled_from(
        [(name, reads(variable(name))) for name, f in FIELDS.items() if f.type == "int"]
    ),
    st.sampled_from([0, 1, 2, 7, 22, 2**53]).map(lambda n: (str(n), lambda v: n)),
)
WORDS = {
    "study.modality": ["CT", "MR", "US"],
    "requester.role": ["clinician", "researcher"],
    "requester.country": ["DE", "FR", "ZZ"],
    "study.custodian": ["charite", "st-anna"],
}
MEMBERSHIP = st.sampled_from(sorted(WORDS)).flatmap(
    lambda name: st.lists(st.sampled_from(WORDS[name]), min_size=1, max_size=3).map(
        lambda words: (f"{name} in {words}", lambda v: v[variable(name)] in words)
    )
)
EQUALITY = st.sampled_from(sorted(WORDS)).flatmap(
    lambda name: st.tuples(st.sampled_from(WORDS[name]), st.booleans()).map(
        lambda word: (
            f'{name} {"==" if word[1] else "!="} "{word[0]}"',
            lambda v: (v[variable(name)] == word[0]) is word[1],
        )
    )
)
RELATIONS = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def bracket(text):
    return text if re.fullmatch(r"[\w.]+", text) else f"({text})"


def negative(meant):
    return f"-{bracket(meant[0])}", lambda v: -meant[1](v)


def added(one, sign, other):
    # The right operand may be a sum only in brackets: minus does not associate.
    text = f"{one[0]} {sign} {bracket(other[0])}"
    if sign == "+":
        return text, lambda v: one[1](v) + other[1](v)
    return text, lambda v: one[1](v) - other[1](v)


def related(one, sign, other):
    return f"{one[0]} {sign} {other[0]}", lambda v: RELATIONS[sign](one[1](v), other[1](v))


def denied(meant):
    return f"!{bracket(meant[0])}", lambda v: not meant[1](v)


def chained(operator, meants):
    # What binds no looser than && needs no brackets in a chain of ||, and so is left to precedence.
    def operand(text):
        looser = "?" in text or (operator == "&&" and "||" in text)
        return bracket(text) if looser else text

    text = f" {operator} ".join(operand(text) for text, _ in meants)
    every = all if operator == "&&" else any
    return text, lambda v: every([meaning(v) for _, meaning in meants])


def chosen(one, other, third):
    text = f"{bracket(one[0])} ? {bracket(other[0])} : {third[0]}"
    return text, lambda v: other[1](v) if one[1](v) else third[1](v)


INTS = st.recursive(
    LEAVES_INT,
    lambda inner: st.one_of(
        inner.map(negative), st.builds(added, inner, st.sampled_from(["+", "-"]), inner)
    ),
    max_leaves=4,
)
BOOLS = st.recursive(
    st.one_of(
        LEAVES_BOOL,
        MEMBERSHIP,
        EQUALITY,
        st.builds(related, INTS, st.sampled_from(sorted(RELATIONS)), INTS),
    ),
    lambda inner: st.one_of(
        inner.map(denied),
        st.builds(chained, st.sampled_from(["&&", "||"]), st.lists(inner, min_size=2, max_size=4)),
        st.builds(chosen, inner, inner, inner),
    ),
    max_leaves=10,
)
FACTS = st.builds(
    REQUEST._replace,
    request_uses=st.sampled_from([0, 1, 2**53]),
    request_deidentified=st.booleans(),
    requester_role=st.sampled_from(["clinician", "researcher"]),
    requester_country=st.sampled_from(["DE", "FR", "ZZ"]),
    study_modality=st.sampled_from(["CT", "MR", "US"]),
    study_derived=st.booleans(),
    consent_given=st.booleans(),
    height=st.sampled_from([0, 7, 2**53]),
    time_ms=st.integers(0, 2**42),
)


def nested(facts: Facts) -> dict:
    """The variables as the text of a condition names them."""
    found: dict = {}
    for name in FIELDS:
        head, _, tail = name.partition(".")
        value = values(facts, {name})[variable(name)]
        if tail:
            found.setdefault(head, {})[tail] = value
        else:
            found[head] = value
    return found


@settings(max_examples=200, deadline=None)
@given(BOOLS, FACTS)
def test_a_condition_means_what_it_means_in_cel_and_in_python(meant, facts):
    text, meaning = meant
    try:
        condition = check(text)
    except InvalidCondition as refused:
        assert "more than" in refused.sentence or "at most" in refused.sentence  # noqa: PT017
        return
    held = program.load(text).evaluate(program.values_of(facts, condition.fields))
    assert held is meaning(values(facts, frozenset(FIELDS)))
    assert held is cel.evaluate(text, nested(facts)), "the text itself, by the evaluator's grammar"


def test_nothing_that_the_checker_lets_through_can_overflow():
    largest = REQUEST._replace(height=2**53)
    text = "+".join(["height"] * 99) + " > 9007199254740992"
    assert program.load(text).evaluate(program.values_of(largest)) is True
    text = "-height" + "-height" * 98 + " < 0"
    assert program.load(text).evaluate(program.values_of(largest)) is True


def test_two_thousand_hostile_policies_are_refused_or_bounded():
    """Steps instead of seconds: calls of Python functions, and the size of what is compiled."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    program.require_evaluator()
    slowest = accepted = 0
    for condition in hostile_policies():
        sys.setprofile(count)
        try:
            calls = 0
            taken = attempt(condition)
        finally:
            sys.setprofile(None)
        slowest = max(slowest, calls)
        if taken:
            accepted += 1
            checked = check(condition)
            assert checked.nodes <= language.NODES_MAX
            assert len(checked.expression) <= 2 * language.LENGTH_MAX
            held = program.load(condition).evaluate(program.values_of(REQUEST))
            assert type(held) is bool
    assert slowest < 20_000
    assert COUNT // 5 < accepted < COUNT * 4 // 5
