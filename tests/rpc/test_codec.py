"""Dataclasses to JSON and back."""

from dataclasses import dataclass, field

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.ledger.block import Batch, Event, Header, Receipt
from node.ledger.queries import (
    BlockView,
    EventView,
    StudyPage,
    StudySummary,
    StudyVersion,
    StudyView,
    TransactionView,
)
from node.ledger.queries.access_views import (
    ConsentView,
    PoliciesView,
    PolicyTrial,
    RequestPage,
    RequestView,
)
from node.ledger.queries.audit_views import AnchorPage, ProofFile, TrailPage
from node.ledger.queries.member_views import (
    EncryptionKeyPage,
    InstitutionPage,
    InstitutionView,
    MemberPage,
    ParameterView,
    ProposalPage,
    ProposalTrial,
    ProposalView,
)
from node.ledger.transaction import Transaction
from node.rpc import codec
from node.rpc.codec import NotAnAnswer
from node.rpc.service import (
    BlockEvents,
    Head,
    PeerStatus,
    Readiness,
    Status,
    Submitted,
    ValidatorStatus,
)
from tests.rpc.samples import sample

LEDGER_ANSWERS = [
    *(ConsentView, PoliciesView, PolicyTrial, RequestPage, RequestView),
    *(AnchorPage, ProofFile, TrailPage),
    *(EncryptionKeyPage, InstitutionPage, InstitutionView, MemberPage, ParameterView),
    *(ProposalPage, ProposalTrial, ProposalView),
]
ANSWERS = [
    *(Submitted, Head, Status, ValidatorStatus, PeerStatus, Readiness, BlockEvents),
    *(StudyPage, StudyView, TransactionView, BlockView),
    *LEDGER_ANSWERS,
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def through_json(value):
    return orjson.loads(codec.encode(value))


def test_bytes_are_lower_case_hex_and_come_back():
    submitted = Submitted(b"\xab\xcd" * 16, "final", 5, 0, "ok")
    assert through_json(submitted)["id"] == "abcd" * 16
    assert codec.decode(Submitted, through_json(submitted)) == submitted


def summary() -> StudySummary:
    return StudySummary(
        *(b"\x01" * 16, "north", b"\x02" * 16, "CT", "HEAD", "active", None, 2, b"\x03" * 32),
        *(4, 9, 100, 120, None),
    )


def test_views_of_the_ledger_come_back():
    versions = (StudyVersion(1, b"\x04" * 32, None, 4, 9, 100),)
    study = StudyView(summary(), versions, (b"\x05" * 16,), False)
    assert codec.decode(StudyView, through_json(study)) == study
    page = StudyPage((summary(), summary()), "next")
    assert codec.decode(StudyPage, through_json(page)) == page
    header = Header(b"\x01" * 32, 7, 1_000, *[bytes([i]) * 32 for i in range(7)])
    block = BlockView(
        header, header.digest, Batch(5, (b"\x09" * 32,)), (Receipt(b"\x08" * 32),), None
    )
    assert codec.decode(BlockView, through_json(block)) == block


@pytest.mark.parametrize("kind", LEDGER_ANSWERS)
@pytest.mark.parametrize("is_full", [False, True])
def test_every_view_comes_back(kind, is_full):
    view = sample(kind, is_full=is_full)
    assert codec.decode(kind, through_json(view)) == view


def test_fields_of_events_stay_hexadecimal():
    block = BlockEvents(4, (EventView(4, 0, b"\x01" * 32, Event("a.b", 0, (b"\xff", 5, None))),))
    decoded = codec.decode(BlockEvents, through_json(block))
    assert decoded.events[0].event.fields == ("ff", 5, None)
    assert decoded.events[0].transaction_id == b"\x01" * 32


@dataclass(frozen=True)
class Odd:
    names: frozenset[str]
    table: dict[str, bytes]
    maybe: float | None = None
    derived: int = field(init=False, default=3)


def test_sets_are_sorted_mappings_decode_and_derived_fields_are_left_out():
    odd = Odd(frozenset({"b", "a"}), {"k": b"\x01"}, 1.5)
    assert through_json(odd)["names"] == ["a", "b"]
    assert codec.decode(Odd, through_json(odd)) == odd


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id": "zz"}, "Submitted.id: not hexadecimal text"),
        ({"id": 5}, "Submitted.id: not hexadecimal text"),
        ({"state": "done"}, "Submitted.state: not one of the known words"),
        ({"height": "7"}, "Submitted.height: not of type int"),
        ({"height": True}, "Submitted.height: not of type int"),
        ({"code": 1}, "Submitted.code: not of type str"),
    ],
)
def test_a_wrong_field_is_named(change, sentence):
    answer = through_json(Submitted(b"\x01" * 32, "final", 5, 0, "ok")) | change
    with pytest.raises(NotAnAnswer, match=sentence):
        codec.decode(Submitted, answer)


def test_a_missing_field_is_named_and_an_unknown_one_is_left_out():
    answer = through_json(Head(1, b"", 2, 1))
    assert codec.decode(Head, answer | {"new": 1}) == Head(1, b"", 2, 1)
    del answer["time_ms"]
    with pytest.raises(NotAnAnswer, match=r"Head\.time_ms is missing"):
        codec.decode(Head, answer)


@given(st.sampled_from(ANSWERS), json_values)
def test_any_json_decodes_or_is_no_answer(kind, value):
    try:
        decoded = codec.decode(kind, value)
    except NotAnAnswer:
        return
    assert isinstance(decoded, kind)


@given(st.data())
def test_an_answer_with_one_field_replaced_decodes_or_is_no_answer(data):
    answer = through_json(StudyView(summary(), (), (b"\x05" * 16,), False))
    target = data.draw(st.sampled_from([answer, answer["summary"]]))
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(json_values)
    try:
        codec.decode(StudyView, answer)
    except NotAnAnswer:
        return


def test_what_has_no_form_is_a_type_error():
    for value in (object(), 2**70, {1, 2}):
        with pytest.raises(TypeError):
            codec.encode(value)


def test_every_answer_has_a_decoder_for_each_field():
    for kind in (*ANSWERS, Transaction):
        codec.decoder(kind)
