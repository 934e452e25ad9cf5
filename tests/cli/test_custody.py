"""`study classify`, `retire`, `offer` and so on: what becomes of a study."""

import pytest

from tests.cli.conftest import asked, executed, run


def test_custody_moves_by_offer_and_acceptance(shared, north, south):
    study, subject = shared()
    offered = asked("study", "offer", study, "--to", "south", "-c", north)
    assert offered["study"]["offered_to"] == "south"
    assert "offered to south" in run("study", "show", study, "-c", north).words
    asked("study", "withdraw-offer", study, "-c", north)
    again = run("study", "offer", study, "--to", "south", "-c", north)
    assert f"radledger study accept {study}" in again.words
    trail = asked("audit", "trail", study, "--limit", 1, "-c", north)["entries"]
    executed(south, trail[0]["height"])
    accepted = asked("study", "accept", study, "-c", south)["study"]
    assert (accepted["custodian"], accepted["offered_to"]) == ("south", None)
    assert accepted["subject_id"] != subject


def test_a_study_is_classified_retired_and_erased(shared, north, south):
    study, _ = shared()
    classified = asked("study", "classify", study, "R", "-c", north)["study"]
    assert classified["confidentiality"] == "R"
    retired = asked("study", "retire", study, "--reason", "superseded", "-c", north)["study"]
    assert (retired["status"], retired["retire_reason"]) == ("retired", "superseded")
    erased = asked("study", "erase", study, "--reason", "subject_request", "-c", north)
    assert erased["study"]["erased_height"] == erased["transaction"]["height"]
    executed(south, erased["transaction"]["height"])
    attest = ("study", "attest-erasure", study, "-c", south)
    assert asked(*attest)["transaction"]["code"] == "ok"
    assert asked(*attest, status=1)["error"]["code"] == "erasure_attested"
    refused = asked("study", "classify", study, "N", "-c", north, status=1)
    assert refused["error"]["code"] == "study_erased"
    names = [entry["name"] for entry in asked("audit", "trail", study, "-c", south)["entries"]]
    assert names == [
        "study_erasure_attested", "study_erased", "study_retired", "study_classified",
        "study_registered",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["classify", "ab" * 16, "X"], "a confidentiality is one of N, R, V"),
        (["retire", "ab" * 16, "--reason", "because"], "a reason is one of"),
        (["erase", "ab" * 16, "--reason", "because"], "a reason is one of"),
    ],
)
def test_wrong_words_are_answered_with_the_right_ones(words, told, north):
    answer = run("study", *words, "-c", north)
    assert answer.status == 2
    assert told in answer.words


def test_only_the_custodian_changes_a_study(shared, south):
    study, _ = shared()
    refused = asked("study", "classify", study, "V", "-c", south, status=1)
    assert refused["error"]["code"] == "not_custodian"
