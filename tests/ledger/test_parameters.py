"""Parameters: a default until a vote, and bounds that no vote crosses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.wire import pack
from node.ledger.parameters import PARAMETERS, encode_parameter, get_parameter, parameter_key
from storage.errors import CorruptRecord


def test_the_names_and_defaults_are_those_agreed():
    assert {name: each.default for name, each in PARAMETERS.items()} == {
        "access_heights_max": 200_000,
        "access_uses_max": 1_000,
        "request_waiting_heights": 200_000,
        "break_glass_heights": 5_000,
        "proposal_heights": 50_000,
        "key_overlap_heights_max": 100_000,
    }


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_is_its_default_until_a_row_says_otherwise(name):
    bounds = PARAMETERS[name]
    assert bounds.low <= bounds.default <= bounds.high
    assert get_parameter({}.get, name) == bounds.default
    rows = {parameter_key(name): encode_parameter(bounds.high)}
    assert get_parameter(rows.get, name) == bounds.high
    other = next(each for each in PARAMETERS if each != name)
    assert get_parameter(rows.get, other) == PARAMETERS[other].default


def test_an_unknown_parameter_is_the_callers_mistake():
    with pytest.raises(KeyError):
        get_parameter({}.get, "nothing")


@given(st.binary(max_size=20))
def test_what_is_read_is_what_was_written_or_reported(row):
    try:
        value = get_parameter(lambda _: row, "access_uses_max")
    except CorruptRecord:
        return
    assert encode_parameter(value) == row


@pytest.mark.parametrize("fields", [(), (1,), (2, 5), (1, True), (1, -1), (1, None), (1, 5, 5)])
def test_a_damaged_row_is_reported_as_such(fields):
    with pytest.raises(CorruptRecord):
        get_parameter(lambda _: pack(fields), "access_uses_max")
