"""What hospitals ask and tell each other: forms on the wire, what matches, what is counted."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.wire import pack, unpack
from node.exchange.federation import matching
from node.exchange.federation.answer import Answer, FoundStudy, decode_answer, encode_answer
from node.exchange.federation.errors import InvalidAnswer, InvalidQuestion
from node.exchange.federation.fields import Field, age_band, make_facts
from node.exchange.federation.question import (
    QUESTION_BYTES_MAX,
    Condition,
    Kind,
    decode_question,
    encode_question,
)
from tests.exchange.federation_parts import answers, entry, question, questions

ALL = frozenset(Field)
A_STUDY = FoundStudy(b"s" * 16, "granted", {Field.MODALITY: ("CT",)})


def asked_for(answer):
    """Return a question to which the answer fits."""
    told = {field for study in answer.studies for field in study.told}
    counted = {tally.field for tally in answer.tallies}
    return question(kind=answer.kind, fields=tuple(told | counted), limit=1_000)


@given(questions)
def test_a_question_comes_back_as_it_was(asked):
    assert decode_question(encode_question(asked)) == asked


@given(answers)
def test_an_answer_comes_back_as_it_was(answer):
    assert decode_answer(encode_answer(answer), asked_for(answer)) == answer


@given(st.binary(max_size=300))
def test_random_bytes_are_no_question_and_no_answer(data):
    with pytest.raises(InvalidQuestion):
        decode_question(data)
    with pytest.raises(InvalidAnswer):
        decode_answer(data, question())


@given(questions, answers, st.data())
def test_damage_is_refused_or_is_another_right_one(asked, answer, data):
    for right, decode, encode, error in (
        (encode_question(asked), decode_question, encode_question, InvalidQuestion),
        (
            encode_answer(answer),
            lambda damaged: decode_answer(damaged, asked_for(answer)),
            encode_answer,
            InvalidAnswer,
        ),
    ):
        damaged = bytearray(right)
        at = data.draw(st.integers(0, len(damaged) - 1))
        if data.draw(st.booleans()):
            damaged[at] ^= data.draw(st.integers(1, 255))
        else:
            del damaged[at:]
        with contextlib.suppress(error):
            assert encode(decode(bytes(damaged))) == bytes(damaged)


def test_what_is_too_large_is_not_read():
    with pytest.raises(InvalidQuestion, match="at most"):
        decode_question(bytes(QUESTION_BYTES_MAX + 1))
    with pytest.raises(InvalidAnswer, match="larger"):
        decode_answer(bytes(5 << 20), question())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"purpose": "CURIOSITY"}, "purpose"),
        ({"role": "admin"}, "role"),
        ({"ethics_digest": b"short"}, "32 bytes"),
        ({"limit": 0}, "limit"),
        ({"limit": 1_001}, "limit"),
        ({"since": 12}, "months"),
        ({"until": 3_000 * 12}, "months"),
        ({"fields": (Field.AGE, Field.AGE)}, "twice"),
        ({"conditions": (Condition(Field.SEX, ()),)}, "1 to 16"),
        ({"conditions": (Condition(Field.SEX, ("F",) * 17),)}, "1 to 16"),
        ({"conditions": (Condition(Field.SEX, ("Jane Doe",)),)}, "sex"),
        ({"conditions": (Condition(Field.SEX, ("F",)),) * 17}, "at most 16"),
        ({"kind": Kind.COUNT, "fields": (Field.WORD,)}, "words"),
    ],
)
def test_questions_that_nobody_answers(changes, sentence):
    asked = question(**changes)
    with pytest.raises(InvalidQuestion, match=sentence):
        encode_question(asked)


def test_a_field_that_there_is_not_is_refused_on_the_wire():
    parts = list(unpack(encode_question(question(fields=(Field.SEX,)))))
    parts[9] = ("patient_name",)
    with pytest.raises(InvalidQuestion, match="no such field"):
        decode_question(pack(tuple(parts)))


@pytest.mark.parametrize(
    ("answer", "changes", "sentence"),
    [
        (Answer(kind=Kind.COUNT, offered=()), {}, "another question"),
        (
            Answer(kind=Kind.FIND, offered=(), studies=(A_STUDY,)),
            {"fields": ()},
            "not asked for",
        ),
        (
            Answer(kind=Kind.FIND, offered=(), studies=(A_STUDY, A_STUDY)),
            {},
            "twice",
        ),
        (
            Answer(
                kind=Kind.FIND,
                offered=(),
                studies=(A_STUDY, replace(A_STUDY, study_id=b"t" * 16)),
            ),
            {"limit": 1},
            "more studies",
        ),
        (
            Answer(kind=Kind.FIND, offered=(), studies=(replace(A_STUDY, outcome="denied"),)),
            {},
            "not as it must be",
        ),
        (
            Answer(
                kind=Kind.FIND,
                offered=(),
                studies=(replace(A_STUDY, told={Field.MODALITY: ("\x1b[31mCT",)}),),
            ),
            {},
            "form of its field",
        ),
    ],
)
def test_answers_that_cannot_be(answer, changes, sentence):
    asked = question(**({"fields": (Field.MODALITY,)} | changes))
    with pytest.raises(InvalidAnswer, match=sentence):
        decode_answer(encode_answer(answer), asked)


def test_what_is_not_in_its_form_never_becomes_a_fact():
    facts = make_facts(
        {
            Field.SEX: ["Jane Doe", "F"],
            Field.YEAR: ["20240131", "2024"],
            Field.MONTH: ["2024-13", "2024-01-31"],
            Field.AGE: ["41"],
            Field.WORD: ["x", "doe^jane", "contrast"],
            Field.MODEL: ["Serial 123456", "Model\n2", "Model 2"],
        }
    )
    assert dict(facts.values) == {
        Field.YEAR: ("2024",),
        Field.SEX: ("F",),
        Field.WORD: ("contrast",),
        Field.MODEL: ("Model 2",),
    }


@pytest.mark.parametrize(
    ("years", "band"),
    [(0, "0-1"), (1, "0-1"), (2, "2-11"), (17, "12-17"), (18, "18-29"), (89, "80-89"), (90, "90+")],
)
def test_age_bands(years, band):
    assert age_band(years) == band


def month(year, number):
    return year * 12 + number - 1


@pytest.mark.parametrize(
    ("offered", "since", "until", "expected"),
    [
        ({Field.MONTH}, month(2024, 3), None, True),
        ({Field.MONTH}, month(2024, 4), None, False),
        ({Field.MONTH}, None, month(2024, 3), True),
        ({Field.MONTH}, None, month(2024, 2), False),
        # Where only years are told, the month must not be found by asking for it.
        ({Field.YEAR}, month(2024, 4), None, True),
        ({Field.YEAR}, None, month(2024, 1), True),
        ({Field.YEAR}, month(2025, 1), None, False),
        ({Field.YEAR}, None, month(2023, 12), False),
    ],
)
def test_spans_of_time_are_as_exact_as_what_is_told(offered, since, until, expected):
    facts = entry(year=["2024"], month=["2024-03"]).facts
    asked = question(since=since, until=until)
    assert not matching.unoffered(asked, offered)
    assert matching.matches(asked, facts, offered) is expected


def test_who_asks_by_what_is_not_offered_learns_nothing_but_that():
    asked = question(conditions=(Condition(Field.AGE, ("40-49",)),), since=month(2024, 1))
    assert matching.unoffered(asked, {Field.MODALITY}) == (Field.YEAR, Field.AGE)
    assert matching.unoffered(asked, {Field.AGE, Field.MONTH}) == ()


def test_conditions_must_all_hold_and_their_values_are_alternatives():
    facts = entry(modality=["CT", "PT"], word=["head", "contrast"]).facts
    both = Condition(Field.WORD, ("head",)), Condition(Field.WORD, ("contrast",))
    assert matching.matches(question(conditions=both), facts, ALL)
    either = Condition(Field.MODALITY, ("MR", "PT"))
    assert matching.matches(question(conditions=(either, *both)), facts, ALL)
    neither = Condition(Field.MODALITY, ("MR", "US"))
    assert not matching.matches(question(conditions=(neither, *both)), facts, ALL)


def test_only_what_was_asked_and_is_offered_is_told():
    facts = entry(modality=["CT"], sex=["F"], age=["40-49"]).facts
    asked = question(fields=(Field.SEX, Field.MODALITY, Field.MODEL))
    assert matching.told(asked, facts, {Field.MODALITY, Field.AGE}) == {Field.MODALITY: ("CT",)}


def counts(entries, least=5, **changes):
    changes = {"kind": Kind.COUNT, "fields": (Field.MODALITY, Field.SEX)} | changes
    return matching.count(question(**changes), entries, ALL, least)


def test_counts_of_few_patients_are_not_told_however_many_studies_they_have():
    many = [entry(modality=["CT"], sex=["F"]) for _ in range(13)]
    one_patient = b"p" * 16
    rare = [entry(subject=one_patient, modality=["MR"], sex=["F"]) for _ in range(40)]
    found = counts(many + rare)
    assert found.total == (50, 10)  # of 53 studies of 14 patients
    told = {
        (tally.field.value, each.value): (each.studies, each.subjects)
        for tally in found.tallies
        for each in tally.counted
    }
    assert told == {("modality", "CT"): (10, 10), ("sex", "F"): (50, 10)}


def test_of_too_few_nothing_is_told_not_even_what_they_have():
    few = [entry(modality=["CT"]) for _ in range(4)]
    assert counts(few) == counts([])
    assert counts(few).total is None
    studies_of_one = [entry(subject=b"p" * 16, modality=["CT"]) for _ in range(40)]
    assert counts(studies_of_one) == counts([])


def test_two_questions_that_differ_by_one_patient_have_one_answer():
    patients = [entry(modality=["CT"], sex=["F"]) for _ in range(12)]
    without = counts(patients[:-1])
    assert counts(patients) == without


def test_a_long_count_is_cut_and_says_so():
    entries = [entry(year=[str(year)]) for year in range(2_000, 2_006) for _ in range(5)]
    found = counts(entries, fields=(Field.YEAR,), limit=3)
    assert (len(found.tallies[0].counted), found.is_cut) == (3, True)
    assert not counts(entries, fields=(Field.YEAR,), limit=6).is_cut
