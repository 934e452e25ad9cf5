"""Who may send what, and until when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.wire import pack
from node.ledger import accounts
from node.ledger.genesis import Institution, Member
from storage.errors import CorruptRecord
from tests.ledger.harness import AACHEN, GATEWAY, GENESIS, READER, Chain

STATE = accounts.genesis_state(GENESIS)
CHARITE = accounts.institution_key("charite")
GATEWAY_ROW = accounts.member_key("charite", GATEWAY)


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
    assert accounts.member_roles(STATE.get, institution, key, 1) == roles


SUSPENDED = {
    "institution": {CHARITE: pack(accounts.new_institution("x", "DE", 0, active=False))},
    "member": {GATEWAY_ROW: pack(accounts.new_member(["gateway"], active=False))},
    "rotated": {GATEWAY_ROW: pack(accounts.new_member(["gateway"], until_height=9))},
    "both": {GATEWAY_ROW: pack(accounts.new_member(["gateway"], active=False, until_height=9))},
}


@pytest.mark.parametrize(
    ("change", "institution", "key", "height", "code"),
    [
        ({}, "nowhere", GATEWAY, 1, "institution_unknown"),
        ({}, "ukaachen", GATEWAY, 1, "member_unknown"),
        (SUSPENDED["institution"], "charite", GATEWAY, 1, "institution_suspended"),
        (SUSPENDED["member"], "charite", GATEWAY, 1, "member_suspended"),
        (SUSPENDED["rotated"], "charite", GATEWAY, 10, "member_unknown"),
        (SUSPENDED["both"], "charite", GATEWAY, 9, "member_suspended"),
        (SUSPENDED["both"], "charite", GATEWAY, 10, "member_unknown"),
    ],
)
def test_who_has_no_roles_learns_why(change, institution, key, height, code):
    get = (STATE | change).get
    assert accounts.member_roles(get, institution, key, height) is None
    assert accounts.sender_refusal(get, institution, key, height) == code


def test_a_rotated_key_acts_up_to_and_with_its_last_height():
    get = (STATE | SUSPENDED["rotated"]).get
    roles = [accounts.member_roles(get, "charite", GATEWAY, height) for height in (1, 9, 10)]
    assert roles == [{"gateway"}, {"gateway"}, None]


def test_a_suspended_institution_stops_all_its_members_and_no_other():
    get = (STATE | SUSPENDED["institution"]).get
    assert accounts.member_roles(get, "charite", READER, 1) is None
    assert accounts.member_roles(get, "ukaachen", AACHEN, 1) == {"clinician"}
    assert not accounts.is_active_institution(get, "charite")
    assert accounts.is_active_institution(get, "ukaachen")
    assert not accounts.is_active_institution(get, "nowhere")


def test_the_genesis_counts_the_administrators_and_keeps_names_and_countries():
    members = (Member(GATEWAY, ("administrator", "gateway")), Member(READER, ("administrator",)))
    institutions = (Institution("a", "A", members, "CH"), Institution("b", "B", ()))
    genesis = type(GENESIS)("test", 1, institutions, GENESIS.validators)
    get = accounts.genesis_state(genesis).get
    assert accounts.find_institution(get, "a") == accounts.new_institution("A", "CH", 2)
    assert accounts.find_institution(get, "b") == accounts.new_institution("B", "ZZ", 0)
    assert accounts.find_institution(get, "c") is None
    assert accounts.find_member(get, "a", READER) == accounts.new_member(["administrator"])


@pytest.mark.parametrize(
    ("member", "administers"),
    [
        (accounts.new_member(["administrator"]), True),
        (accounts.new_member(["administrator", "gateway"]), True),
        (accounts.new_member(["gateway"]), False),
        (accounts.new_member(["administrator"], active=False), False),
        (accounts.new_member(["administrator"], until_height=9), False),
    ],
)
def test_who_counts_as_administrator(member, administers):
    assert member.administers is administers


def test_no_institution_runs_into_the_key_of_another_members_row():
    keys = {
        accounts.member_key(name, key)
        for name in ("a", "a/", "a/" + "x" * 32)
        for key in (b"x" * 32, b"/" * 32)
    }
    assert len(keys) == 6


def test_roles_have_one_encoding():
    assert accounts.new_member(["b", "a", "b"]) == accounts.new_member(("a", "b"))


def test_the_genesis_block_indexes_institutions_and_members():
    chain = Chain().chain
    names = [row.parts for row in chain.scan_index(accounts.INDEX_INSTITUTION, (), limit=9)]
    members = [row.parts for row in chain.scan_index(accounts.INDEX_MEMBER, (), limit=9)]
    assert names == [(b"charite",), (b"ukaachen",)]
    assert sorted(members) == sorted(
        [(b"charite", GATEWAY), (b"charite", READER), (b"ukaachen", AACHEN)]
    )


@given(
    st.one_of(
        st.binary(max_size=40),
        st.tuples(st.integers(0, 3), st.booleans() | st.none(), st.integers(0, 9)).map(pack),
        st.sampled_from([encoded[:-1] for encoded in STATE.values()]),
        st.sampled_from(
            [
                (2, True, "x", "DE", -1),
                (2, True, "x", "DE", True),
                (2, 1, "x", "DE", 0),
                (1, True, ("gateway",), None),
                (2, True, ("gateway", b"x"), None),
                (2, True, ("gateway",), True),
            ]
        ).map(pack),
    ),
    st.sampled_from([CHARITE, GATEWAY_ROW]),
)
def test_a_damaged_row_is_reported_as_such(row, key):
    with pytest.raises(CorruptRecord):
        accounts.member_roles((STATE | {key: row}).get, "charite", GATEWAY, 1)
