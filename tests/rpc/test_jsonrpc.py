"""The decoder, without sockets. Examples are those of the JSON-RPC 2.0 specification, §7."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.rpc import jsonrpc
from node.rpc.jsonrpc import Call, Failure


def decode(data, batch_calls_max=10, depth_max=8):
    return jsonrpc.decode(
        data if isinstance(data, bytes) else data.encode(), batch_calls_max, depth_max
    )


@pytest.mark.parametrize(
    ("text", "call"),
    [
        (
            '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}',
            Call("subtract", [42, 23], 1, True),
        ),
        (
            '{"jsonrpc": "2.0", "method": "subtract", "params": {"a": 1}, "id": "3"}',
            Call("subtract", {"a": 1}, "3", True),
        ),
        (
            '{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}',
            Call("update", [1, 2, 3, 4, 5], None, False),
        ),
        ('{"jsonrpc": "2.0", "method": "foobar"}', Call("foobar", [], None, False)),
        ('{"jsonrpc": "2.0", "method": "foobar", "id": null}', Call("foobar", [], None, True)),
    ],
)
def test_calls_of_the_specification(text, call):
    assert decode(text) == call


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ('{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', jsonrpc.PARSE_ERROR),
        ('{"jsonrpc": "2.0", "method": 1, "params": "bar"}', jsonrpc.INVALID_REQUEST),
        ("[", jsonrpc.PARSE_ERROR),
        ("[]", jsonrpc.INVALID_REQUEST),
        ("", jsonrpc.PARSE_ERROR),
        ("5", jsonrpc.INVALID_REQUEST),
        ("null", jsonrpc.INVALID_REQUEST),
        ('{"jsonrpc": "2.0", "method": "a", "params": [NaN], "id": 1}', jsonrpc.PARSE_ERROR),
        ('{"jsonrpc": "2.0", "method": "a", "params": [Infinity]}', jsonrpc.PARSE_ERROR),
        ('{"jsonrpc": "1.0", "method": "a", "id": 1}', jsonrpc.INVALID_REQUEST),
        ('{"jsonrpc": 2.0, "method": "a", "id": 1}', jsonrpc.INVALID_REQUEST),
        ('{"method": "a", "id": 1}', jsonrpc.INVALID_REQUEST),
        ('{"jsonrpc": "2.0", "method": "a", "params": "bar", "id": 1}', jsonrpc.INVALID_REQUEST),
        ('{"jsonrpc": "2.0", "method": "a", "params": null, "id": 1}', jsonrpc.INVALID_REQUEST),
        ('{"jsonrpc": "2.0", "id": 1}', jsonrpc.INVALID_REQUEST),
    ],
)
def test_what_is_no_call_has_the_error_of_the_specification(text, number):
    failure = decode(text)
    assert isinstance(failure, Failure)
    assert failure.number == number


def test_bytes_that_are_no_utf8_are_a_parse_error():
    assert decode(b'{"jsonrpc":"2.0","method":"\xff"}').number == jsonrpc.PARSE_ERROR


def test_a_batch_keeps_order_and_tells_bad_elements_apart():
    good, one = decode('[{"jsonrpc": "2.0", "method": "sum", "id": "1"}, 1]')
    assert good == Call("sum", [], "1", True)
    assert (one.number, one.id) == (jsonrpc.INVALID_REQUEST, None)
    assert [failure.number for failure in decode("[1,2,3]")] == [jsonrpc.INVALID_REQUEST] * 3


def test_an_invalid_request_keeps_a_readable_id():
    assert decode('{"jsonrpc": "2.0", "method": 1, "id": 9}').id == 9


@pytest.mark.parametrize(
    "identifier",
    ["1.5", "1e3", "true", "[1]", "{}", "99999999999999999999999999", '"' + "x" * 129 + '"'],
)
def test_an_unusable_id_is_refused_and_not_echoed(identifier):
    failure = decode(f'{{"jsonrpc": "2.0", "method": "a", "id": {identifier}}}')
    assert (failure.number, failure.id) == (jsonrpc.INVALID_REQUEST, None)


@pytest.mark.parametrize("identifier", [0, -1, 2**63 - 1, -(2**63), "", "x" * 128, None])
def test_a_usable_id_is_echoed(identifier):
    call = decode(json.dumps({"jsonrpc": "2.0", "method": "a", "id": identifier}))
    assert call.id == identifier
    assert orjson.loads(jsonrpc.result_bytes(call.id, 1))["id"] == identifier


def test_of_a_member_that_occurs_twice_the_last_counts():
    call = decode('{"jsonrpc":"2.0","method":"a","id":1,"method":"b","id":2}')
    assert (call.method, call.id) == ("b", 2)


def test_a_batch_beyond_the_limit_is_refused_as_one():
    call = '{"jsonrpc":"2.0","method":"a","id":1}'
    assert len(decode(f"[{','.join([call] * 10)}]")) == 10
    assert decode(f"[{','.join([call] * 11)}]").code == "batch_too_long"


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_refused_within_and_beyond_the_parsers_own_limit(opening, closing):
    def nested(levels):
        inner = opening * (levels - 1) + "1" + closing * (levels - 1)
        return decode(f'{{"jsonrpc":"2.0","method":"a","params":[{inner}]}}', depth_max=8)

    assert isinstance(nested(7), Call)
    assert nested(8).code == "too_deep"
    assert isinstance(nested(5_000), Failure)
    assert isinstance(nested(200_000), Failure)


def test_many_brackets_that_do_not_nest_are_fine():
    params = json.dumps([[1]] * 50)
    assert isinstance(decode(f'{{"jsonrpc":"2.0","method":"a","params":{params}}}'), Call)


def test_an_error_has_a_code_and_a_sentence():
    failure = Failure(jsonrpc.REFUSED, "quota_exceeded", "too many", 3)
    assert orjson.loads(jsonrpc.failure_bytes(failure)) == {
        "jsonrpc": "2.0",
        "id": 3,
        "error": {
            "code": -32000,
            "message": "Refused",
            "data": {"code": "quota_exceeded", "sentence": "too many"},
        },
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
members = st.dictionaries(
    st.sampled_from(["jsonrpc", "method", "params", "id", "x"]),
    st.sampled_from(["2.0", "a", [], {}, 1, None]) | json_values,
)


def check(data: bytes) -> None:
    decoded = decode(data)
    for request in decoded if isinstance(decoded, list) else [decoded]:
        if isinstance(request, Failure):
            assert request.number in jsonrpc.MESSAGES
            orjson.loads(jsonrpc.failure_bytes(request))
        else:
            assert isinstance(request.method, str)
            assert isinstance(request.params, list | dict)
            orjson.loads(jsonrpc.result_bytes(request.id, None))


@given(st.binary(max_size=300))
def test_random_bytes_give_only_failures(data):
    check(data)


@given(members | st.lists(members, max_size=12) | json_values)
def test_random_json_gives_a_call_or_a_failure(value):
    check(json.dumps(value).encode())


@given(st.data())
def test_mutated_calls_give_a_call_or_a_failure(data):
    text = b'[{"jsonrpc":"2.0","method":"submit","params":{"transaction":"AAAA"},"id":17}]'
    position = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 5))
    check(text[:position] + data.draw(st.binary(max_size=5)) + text[position + cut :])
