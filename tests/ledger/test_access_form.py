"""The access contract: its rows, and the form of its operations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.wire import pack, unpack
from node.ledger.contracts import access, access_record, consent, policy, registry
from node.ledger.errors import Refused
from storage.errors import CorruptRecord
from tests.ledger.access_steps import (
    KEY_ID,
    R1,
    R2,
    R3,
    WRAPPED,
    ask,
    deliver,
    grant,
)
from tests.ledger.access_world import (
    ASKER,
    CUSTODIAN,
    KINDS,
    ROOT,
    STUDY,
    SUBJECT,
    THIRD,
    WHO,
    World,
    asking,
    breaking,
    digest,
)


@pytest.fixture
def world():
    return World()


def test_requests_are_found_by_asker_custodian_study_and_what_waits(world):
    ask(world, R1)
    ask(world, R2, sender=WHO.third)
    world.act(WHO.asker, "access.break_glass", *breaking(R3))
    assert world.listed("request_institution", b"ukaachen") == [R1, R3]
    assert world.listed("request_institution", b"ukbonn") == [R2]
    assert world.listed("request_custodian", b"charite") == [R1, R2, R3]
    assert world.listed("request_study", STUDY) == [R1, R2, R3]
    assert world.listed("request_waiting", b"charite") == [R1, R2]
    world.consent()
    world.act(WHO.clinician, "access.approve", R1)
    assert world.listed("request_waiting", b"charite") == [R2]
    assert world.listed("request_institution", b"ukaachen") == [R1, R3]


def test_every_event_is_on_the_studys_trail(world):
    grant(world)
    deliver(world)
    assert len(world.listed("study_trail", STUDY)) == 3


def test_that_an_institution_ever_asked_is_in_the_state(world):
    def asked(institution):
        row = world.state.get(access.asked_key(STUDY, institution))
        return None if row is None else access.decode_asked(row)

    assert asked(ASKER) is None
    world.publish("deny", condition='requester.institution == "ukaachen"')
    ask(world, R1)
    assert (asked(ASKER), asked(THIRD)) == ((1, 1, R1), None)
    world.act(WHO.asker, "access.break_glass", *breaking(R2))
    assert asked(ASKER) == (1, 2, R2)


def test_a_request_row_reads_back(world):
    grant(world)
    row = world.state.get(access.request_key(R1))
    assert pack(access.decode_request(row)) == row
    assert unpack(row)[0] == access_record.RECORD_FORMAT


@given(st.binary(max_size=300))
def test_random_rows_are_corrupt(row):
    for decode in (access.decode_request, access.decode_asked):
        with pytest.raises(CorruptRecord):
            decode(row)


@given(st.data())
def test_a_damaged_row_is_corrupt_or_reads_as_something_else(data):
    row = pack(
        access.Request(
            1, STUDY, CUSTODIAN, SUBJECT, ASKER, bytes(32), "clinician", "TREAT", state="denied"
        )
    )
    place = data.draw(st.integers(0, len(row) - 1))
    damaged = row[:place] + bytes((data.draw(st.integers(0, 255)),)) + row[place + 1 :]
    for bytes_ in (damaged, row[:place], row + b"\x00"):
        try:
            found = access.decode_request(bytes_)
        except CorruptRecord:
            continue
        assert bytes_ == damaged
        assert pack(found) == damaged


@pytest.mark.parametrize(
    "value",
    [(), (1,), (2, *range(30)), (1, *range(30)), 7, (True, *range(30))],
)
def test_a_row_of_another_form_is_corrupt(value):
    with pytest.raises(CorruptRecord):
        access.decode_request(pack(value))


GOOD = {
    "access.request": asking(R1, ethics_digest=digest("e"), key_id=KEY_ID),
    "access.approve": (R1,),
    "access.deny": (R1, "other"),
    "access.revoke": (R1, "other"),
    "access.cancel": (R1,),
    "access.expire": (R1,),
    "access.deliver": (R1, WRAPPED),
    "access.receive": (R1, ROOT),
    "access.use": (R1,),
    "access.break_glass": breaking(R1, key_id=KEY_ID),
    "access.review": (R1, "justified"),
}
BAD = [
    "Meyer, Hans",
    b"1234567890123456",
    b"PATIENT^NAME^1234567890123456789",
    "",
    0,
    -1,
    1 << 40,
    (),
    2,
]


def test_good_arguments_cover_every_operation():
    assert GOOD.keys() == {kind.name for kind in access.KINDS}
    for name, arguments in GOOD.items():
        KINDS[name].parse(arguments)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_no_argument_takes_free_text_or_anything_unbounded(name):
    for position in range(len(GOOD[name])):
        numeric = name == "access.request" and position in (4, 5)
        for bad in BAD:
            if numeric and bad == 2:
                continue
            arguments = list(GOOD[name])
            arguments[position] = bad
            with pytest.raises(Refused) as refused:
                KINDS[name].parse(tuple(arguments))
            assert refused.value.code == "operation_invalid"
            assert "Meyer" not in refused.value.sentence


@pytest.mark.parametrize("name", sorted(GOOD))
def test_every_argument_is_needed_and_no_more(name):
    for arguments in (GOOD[name][:-1], (*GOOD[name], 1)):
        with pytest.raises(Refused):
            KINDS[name].parse(arguments)


@pytest.mark.parametrize(
    ("name", "position", "value"),
    [
        ("access.request", 2, "auditor"),
        ("access.request", 2, "patient"),
        ("access.request", 3, "treat"),
        ("access.request", 6, 1),
        ("access.break_glass", 2, "researcher"),
        ("access.break_glass", 3, "HRESCH"),
        ("access.break_glass", 4, "curiosity"),
        ("access.deny", 1, "misuse"),
        ("access.revoke", 1, "not_justified"),
        ("access.review", 1, "perhaps"),
    ],
)
def test_words_are_those_of_the_vocabulary(name, position, value):
    arguments = list(GOOD[name])
    arguments[position] = value
    with pytest.raises(Refused):
        KINDS[name].parse(tuple(arguments))


@pytest.mark.parametrize("name", sorted(set(GOOD) - {"access.request", "access.break_glass"}))
def test_an_unknown_request_is_refused(world, name):
    kind = KINDS[name]
    role = sorted(kind.roles)[0]
    assert world.code((CUSTODIAN, role), name, *GOOD[name]) == "request_unknown"


def test_a_code_has_one_sentence_wherever_it_is_used():
    for module in (consent, policy, registry):
        for code in access.REJECTIONS.keys() & module.REJECTIONS.keys():
            assert access.REJECTIONS[code] == module.REJECTIONS[code]
