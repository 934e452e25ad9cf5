"""Who may send what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.wire import pack
from node.ledger import accounts
from storage.errors import CorruptRecord
from tests.ledger.harness import AACHEN, GATEWAY, GENESIS, READER

STATE = accounts.genesis_state(GENESIS)


@pytest.mark.parametrize(
    ("institution", "key", "roles"),
    [
        ("charite", GATEWAY, {"gateway"}),
        ("charite", READER, {"auditor", "researcher"}),
        ("ukaachen", AACHEN, {"clinician"}),
        ("ukaachen", GATEWAY, None),
        ("nowhere", GATEWAY, None),
        ("charite", bytes(32), None),
    ],
)
def test_roles_are_those_of_the_genesis(institution, key, roles):
    assert accounts.member_roles(STATE.get, institution, key) == roles


SUSPENDED = {
    "institution": {accounts.institution_key("charite"): accounts.encode_institution(active=False)},
    "member": {
        accounts.member_key("charite", GATEWAY): accounts.encode_member(["gateway"], active=False)
    },
}


@pytest.mark.parametrize(
    ("change", "institution", "key", "code"),
    [
        ({}, "nowhere", GATEWAY, "institution_unknown"),
        ({}, "ukaachen", GATEWAY, "member_unknown"),
        (SUSPENDED["institution"], "charite", GATEWAY, "institution_suspended"),
        (SUSPENDED["member"], "charite", GATEWAY, "member_suspended"),
    ],
)
def test_who_has_no_roles_learns_why(change, institution, key, code):
    get = (STATE | change).get
    assert accounts.member_roles(get, institution, key) is None
    assert accounts.sender_refusal(get, institution, key) == code


def test_a_suspended_institution_stops_all_its_members_and_no_other():
    get = (STATE | SUSPENDED["institution"]).get
    assert accounts.member_roles(get, "charite", READER) is None
    assert accounts.member_roles(get, "ukaachen", AACHEN) == {"clinician"}


def test_no_institution_runs_into_the_key_of_another_members_row():
    keys = {
        accounts.member_key(name, key)
        for name in ("a", "a/", "a/" + "x" * 32)
        for key in (b"x" * 32, b"/" * 32)
    }
    assert len(keys) == 6


def test_roles_have_one_encoding():
    assert accounts.encode_member(["b", "a", "b"]) == accounts.encode_member(("a", "b"))


@given(
    st.one_of(
        st.binary(max_size=40),
        st.tuples(st.integers(0, 3), st.booleans() | st.none(), st.integers(0, 9)).map(pack),
        st.sampled_from([encode[:-1] for encode in STATE.values()]),
    ),
    st.sampled_from([accounts.institution_key("charite"), accounts.member_key("charite", GATEWAY)]),
)
def test_a_damaged_row_is_reported_as_such(row, key):
    with pytest.raises(CorruptRecord):
        accounts.member_roles((STATE | {key: row}).get, "charite", GATEWAY)
