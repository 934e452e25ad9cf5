"""Anchors of audit records, rule by rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.wire import pack
from node.ledger.contracts import audit
from node.ledger.errors import Refused, Rejected
from storage.errors import CorruptRecord
from tests.ledger.contract_ledger import Ledger, digest

R1, R2, R3 = map(digest, ("r1", "r2", "r3"))
HOUR = 3_600_000
NOW = 10 * HOUR
FIRST = ("audit.anchor", 1, 0, HOUR, 70, R1, None)
SECOND = ("audit.anchor", 2, HOUR, 2 * HOUR, 0, R2, R1)


@pytest.fixture
def ledger():
    return Ledger(audit.KINDS)


def stored(ledger, sequence, institution="charite"):
    return audit.decode_anchor(ledger.state.get(audit.anchor_key(institution, sequence)))


def test_anchors_follow_one_another_without_gaps(ledger):
    assert ledger.apply(*FIRST, time_ms=NOW, height=7) == [
        ("audit_anchored", ("charite", 1, 70, R1))
    ]
    ledger.apply(*SECOND, time_ms=NOW, height=9)
    first = audit.Anchor(1, 1, 0, HOUR, 70, R1, None, 7)
    second = audit.Anchor(1, 2, HOUR, 2 * HOUR, 0, R2, R1, 9)
    assert (stored(ledger, 1), stored(ledger, 2)) == (first, second)
    assert audit.latest_anchor(ledger.state.get, "charite") == second
    assert list(ledger.index(audit.INDEX_ANCHOR).values()) == [
        (1).to_bytes(8, "big"),
        (2).to_bytes(8, "big"),
    ]


def test_every_institution_has_its_own_chain(ledger):
    ledger.apply(*FIRST, time_ms=NOW)
    ledger.apply("audit.anchor", 1, 5, 6, 1, R3, None, institution="ukaachen", time_ms=NOW)
    assert stored(ledger, 1).root == R1
    assert stored(ledger, 1, "ukaachen").root == R3
    assert audit.latest_anchor(ledger.state.get, "third") is None


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (FIRST, "sequence_conflict"),
        (("audit.anchor", 3, *SECOND[2:]), "sequence_conflict"),
        ((*SECOND[:6], None), "previous_root_conflict"),
        ((*SECOND[:6], R3), "previous_root_conflict"),
        (("audit.anchor", 2, HOUR + 1, *SECOND[3:]), "period_gap"),
        (("audit.anchor", 2, HOUR - 1, *SECOND[3:]), "period_gap"),
        (("audit.anchor", 2, HOUR, NOW + audit.SKEW_MS + 1, *SECOND[4:]), "period_not_over"),
    ],
)
def test_a_rule_that_is_broken_is_named_and_nothing_changes(ledger, operation, code):
    ledger.apply(*FIRST, time_ms=NOW)
    assert ledger.refusal(*operation, time_ms=NOW) == code
    assert code in audit.REJECTIONS


@pytest.mark.parametrize(
    ("operation", "code"),
    [(SECOND, "sequence_conflict"), ((*FIRST[:6], R2), "previous_root_conflict")],
)
def test_the_first_anchor_follows_none(ledger, operation, code):
    assert ledger.refusal(*operation, time_ms=NOW) == code


def test_a_period_may_end_at_the_blocks_time_give_or_take_the_clocks(ledger):
    ledger.apply("audit.anchor", 1, 0, NOW + audit.SKEW_MS, 1, R1, None, time_ms=NOW)


def test_only_who_keeps_records_anchors_them(ledger):
    for role in ("clinician", "data_protection_officer", "patient", "researcher"):
        with pytest.raises(Rejected, match="role_missing"):
            ledger.apply(*FIRST, roles=(role,))


@pytest.mark.parametrize(
    ("position", "value"),
    [
        *((0, value) for value in (0, -1, audit.SEQUENCE_MAX + 1, True, None, "1")),
        *((1, value) for value in (-1, HOUR, HOUR + 1, None, b"")),
        *((2, value) for value in (0, 2**53 + 1, None)),
        *((3, value) for value in (-1, audit.COUNT_MAX + 1, None, "70")),
        *((4, value) for value in (None, R1[:31], bytes(32), R1.hex())),
        *((5, value) for value in (R1[:31], b"Jane Doe seen on Monday at 09.30", 7)),
    ],
)
def test_other_forms_are_refused(ledger, position, value):
    arguments = list(FIRST[1:])
    arguments[position] = value
    with pytest.raises(Refused, match="operation_invalid"):
        ledger.kinds["audit.anchor"].parse(tuple(arguments))


@given(st.binary(max_size=90))
def test_a_damaged_anchor_is_reported_as_such(row):
    with pytest.raises(CorruptRecord):
        audit.decode_anchor(row)


@pytest.mark.parametrize("row", [(2, 1, 0, 1, 0, R1, None, 7), (1, 1, 0, 1, 0, R1, None), (1,), 1])
def test_an_anchor_of_another_format_is_not_guessed_at(row):
    with pytest.raises(CorruptRecord):
        audit.decode_anchor(pack(row))
