"""`consent`: who may allow and forbid, from when, and what is told."""

import os

import pytest

from node.cli.references import salted_digest
from tests.cli.conftest import asked, run


@pytest.fixture
def form(tmp_path):
    file = tmp_path / "form.pdf"
    file.write_bytes(b"I agree. Erika Mustermann")
    return file


def test_staff_records_a_form_and_the_answer_says_from_when(shared, north, form):
    study, subject = shared()
    done = asked("consent", "grant", subject, "--study", study, "--form", form, "-c", north)
    (rule,) = done["consent"]["rules"]
    assert rule["consent_id"] == done["consent_id"]
    assert (rule["effect"], rule["study_id"], rule["by"]) == ("permit", study, "custodian")
    assert rule["from_height"] == done["transaction"]["height"] + 1
    assert done["next"]["code"] == done["consent"]["next_step"]["code"]
    shown = run("consent", "show", subject, "-c", north)
    assert "in_force" in shown.words
    assert "Next:" in shown.words


def test_only_a_salted_digest_of_the_form_goes_on_the_chain(shared, north, form):
    _, subject = shared()
    done = asked("consent", "grant", subject, "--form", form, "-c", north)
    (rule,) = done["consent"]["rules"]
    salt = form.with_name("form.pdf.salt")
    assert salt.stat().st_mode & 0o077 == 0
    assert rule["form_digest"] == salted_digest(form).hex()
    before = salt.read_bytes()
    again = asked("consent", "restrict", subject, "--form", form, "-c", north)
    assert again["consent"]["rules"][-1]["form_digest"] == rule["form_digest"]
    salt.write_bytes(os.urandom(32))
    assert salted_digest(form).hex() != rule["form_digest"]
    assert before != salt.read_bytes()


def test_without_a_form_staff_is_told_what_to_do(shared, north):
    _, subject = shared()
    answer = run("consent", "grant", subject, "-c", north)
    assert answer.status == 1
    assert "form_missing" in answer.words
    assert "what to do: name the signed form (--form FILE)" in answer.words


def test_a_patient_acts_alone_and_only_the_patient_ends_it(shared, north, patient, form):
    study, subject = shared()
    assert patient.code("consent", "grant", subject) == "patient_not_bound"
    asked("consent", "bind", subject, "--patient", patient.public_key, "-c", north)
    options = ("--to", "south", "--purpose", "TREAT", "--purpose", "ETREAT", "--for", 500)
    done = patient.asked("consent", "grant", subject, "--study", study, *options)
    (rule,) = done["consent"]["rules"]
    assert (rule["by"], rule["recipient"], rule["form_digest"]) == ("patient", "south", None)
    assert rule["purposes"] == ["ETREAT", "TREAT"]
    assert rule["until_height"] >= done["transaction"]["height"] + 499
    withdraw = ("consent", "withdraw", subject, done["consent_id"])
    refused = asked(*withdraw, "--form", form, "-c", north, status=1)
    assert refused["error"]["code"] == "patient_decides"
    ended = patient.asked(*withdraw)["consent"]["rules"]
    assert [rule["state"] for rule in ended] == ["withdrawn"]


def test_opting_out_and_in(shared, north, form):
    _, subject = shared()
    out = asked("consent", "opt-out", subject, "--form", form, "-c", north)
    assert out["consent"]["opted_out"]
    assert "by the custodian" in run("consent", "show", subject, "-c", north).words
    back = asked("consent", "opt-in", subject, "--form", form, "-c", north)
    assert not back["consent"]["opted_out"]


def test_other_hospitals_see_the_record_too(shared, north, south, form):
    _, subject = shared()
    asked("consent", "grant", subject, "--form", form, "-c", north)
    assert asked("consent", "show", subject, "-c", south, status=1)["error"]["status"] == 1
    view = asked("consent", "show", subject, "--institution", "north", "-c", north)
    assert view["institution"] == "north"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--purpose", "FUN"], "HL7 PurposeOfUse"),
        (["--until", 9, "--for", 9], "exclude each other"),
        (["--form-digest", "00"], "64 hexadecimal digits"),
        (["--study", "x"], "32 hexadecimal digits"),
    ],
)
def test_wrong_words_are_answered_with_the_right_ones(options, words, north):
    answer = run("consent", "grant", "ab" * 16, *options, "-c", north)
    assert answer.status == 2
    assert words in answer.words


def test_binding_names_a_key_or_none(north):
    answer = run("consent", "bind", "ab" * 16, "-c", north)
    assert answer.status == 2
    assert "--patient KEY or --none" in answer.words
