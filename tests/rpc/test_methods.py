"""Parameters by name and by position, and what a wrong one is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.rpc.methods import InvalidParams, build_methods

METHODS = build_methods(60_000)
TX = "AAECAw=="


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
