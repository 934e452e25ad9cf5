"""Parameters by name and by position, and what a wrong one is told."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import rpc
from node.rpc.methods import InvalidParams, build_methods

METHODS = build_methods(60_000)
TX = "AAECAw=="
TRY = ["ab" * 16, "north", "clinician", "TREAT", 5, 1]
DRAFT = {"name": "n", "effect": "permit", "consent": "required", "condition": "true"}


@pytest.mark.parametrize(
    "params",
    [[TX, "sealed", 5], {"timeout_ms": 5, "transaction": TX, "wait": "sealed"}],
)
def test_by_position_and_by_name_mean_the_same(params):
    assert METHODS["submit"].bind(params) == [b"\x00\x01\x02\x03", "sealed", 5]


@pytest.mark.parametrize("params", [[TX], {"transaction": TX}, [TX, None, None]])
def test_defaults(params):
    assert METHODS["submit"].bind(params) == [b"\x00\x01\x02\x03", "final", 60_000]


@pytest.mark.parametrize(
    ("method", "params", "sentence"),
    [
        ("submit", [], "transaction is missing; submit takes transaction, wait, timeout_ms"),
        ("submit", {}, "transaction is missing"),
        ("submit", {"transaction": TX, "wiat": "final"}, "unknown parameter 'wiat'"),
        ("submit", [TX, "final", 5, 6], "4 parameters; submit takes transaction, wait, timeout_ms"),
        ("submit", [None], "transaction: needs base64 text"),
        ("submit", [7], "transaction: needs base64 text"),
        ("submit", [""], "transaction: needs base64 text"),
        ("submit", ["AAEC Aw=="], "transaction: not standard base64"),
        ("submit", ["AAECAw"], "transaction: not standard base64"),
        ("submit", ["AAECAw==AA"], "transaction: not standard base64"),
        ("submit", ["é"], "transaction: not standard base64"),
        ("submit", [TX, "soon"], "wait: needs one of accepted, final, sealed"),
        ("submit", [TX, ["final"]], "wait: needs one of"),
        ("submit", [TX, "final", 0], "timeout_ms: needs an integer from 1 to 60000"),
        ("submit", [TX, "final", 60_001], "timeout_ms: needs an integer"),
        ("submit", [TX, "final", True], "timeout_ms: needs an integer"),
        ("submit", [TX, "final", 1.0], "timeout_ms: needs an integer"),
        ("transaction", ["ab" * 31], "id: needs 64 hexadecimal digits"),
        ("transaction", ["zz" * 32], "id: needs 64 hexadecimal digits"),
        ("transaction", ["a b" * 21 + "a"], "id: needs 64 hexadecimal digits"),
        ("study", ["ab" * 32], "id: needs 32 hexadecimal digits"),
        ("block", [-1], "height: needs an integer from 0"),
        ("block", [2**60], "height: needs an integer from 0"),
        ("block", ["1"], "height: needs an integer from 0"),
        ("status", [1], "1 parameters; status takes none"),
        ("status", {"a": 1}, "unknown parameter 'a'; status takes none"),
        ("search", {"limit": 0}, "limit: needs an integer from 1"),
        ("search", {"modality": 5}, "modality: needs text"),
        ("search", {"cursor": "x" * 257}, "cursor: needs text"),
        ("consent", ["north"], "subject_id is missing; consent takes institution, subject_id"),
        ("consent", ["north", "ab"], "subject_id: needs 32 hexadecimal digits"),
        ("policy_try", {"study_id": "ab" * 16}, "institution is missing"),
        ("policy_try", ["ab" * 16, "n", "r", "p", 0, 1], "heights: needs an integer from 1"),
        ("policy_try", [*TRY, "yes"], "deidentified: needs true or false"),
        ("policy_try", [*TRY, True, None, None, {}], "drafts: needs an array of at most 8 rules"),
        ("policy_try", [*TRY, True, None, None, [DRAFT] * 9], "drafts: needs an array of at most"),
        ("policy_try", [*TRY, True, None, None, [{}]], "drafts: a rule is an object with cond"),
        ("policy_try", [*TRY, True, None, None, [5]], "drafts: a rule is an object with"),
        ("policy_try", [*TRY, True, None, None, [DRAFT | {"name": 5}]], "drafts: name is text"),
        ("requests", {"break_glass_unreviewed": 1}, "break_glass_unreviewed: needs true or false"),
        ("requests", {"limit": 201}, "limit: needs an integer from 1 to 200"),
        ("audit_trail", ["ab" * 16, 101], "limit: needs an integer from 1 to 100"),
        ("proposal_try", ["a", "AA=="], "arguments: needs an array"),
        ("proposal_try", ["a", "wQ=="], "arguments: not canonical msgpack"),
        ("proposal_try", ["a", "?"], "arguments: not standard base64"),
        ("proof", ["time", "7"], "arguments: needs an array of at most 16 texts"),
        ("proof", ["time", ["7"] * 17], "arguments: needs an array of at most 16 texts"),
        ("proof", ["time", [7]], "arguments: needs text"),
        ("subscribe", [0, "study"], "events: needs an array of at most 64 event names"),
        ("subscribe", [0, ["a"] * 65], "events: needs an array of at most 64 event names"),
        ("subscribe", [0, [1]], "events: an event name is text of 1 to 64 characters"),
        ("subscribe", [0, [[]]], "events: an event name is text"),
        ("unsubscribe", [], "subscription is missing"),
    ],
)
def test_a_wrong_parameter_is_named(method, params, sentence):
    with pytest.raises(InvalidParams) as refused:
        METHODS[method].bind(params)
    assert str(refused.value).startswith(sentence)


def test_the_guide_has_every_method_with_its_parameters():
    rows = {}
    for line in (Path(rpc.__file__).parent / "README.md").read_text().splitlines():
        if line.startswith("| `") and line.count("|") == 4:
            _, name, parameters, _, _ = line.split("|")
            rows[name.strip(" `")] = [
                word for word in re.findall(r"`(\w+)`", parameters) if word.islower()
            ]
    for name, method in METHODS.items():
        assert rows[name] == [parameter.name for parameter in method.parameters], name


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


@given(
    st.sampled_from(sorted(METHODS)),
    st.lists(json_values, max_size=10)
    | st.dictionaries(
        st.sampled_from(["transaction", "wait", "id", "height", "events", "limit", "x"]),
        json_values,
    ),
)
def test_any_params_bind_or_are_refused(method, params):
    try:
        arguments = METHODS[method].bind(params)
    except InvalidParams:
        return
    assert len(arguments) == len(METHODS[method].parameters)
