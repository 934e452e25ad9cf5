"""`policy`: files and templates checked, published, tried and retired."""

import json

import pytest

from node.cli.policy_files import templates_folder
from tests.cli.conftest import asked, executed, run

NIGHT = """\
# Only for the test.
title = "Night"

[[rules]]
name = "night"
effect = "permit"
consent = "not_objected"
condition = 'block.hour >= 22 && request.purpose == "TREAT"'
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "night.toml"
    path.write_text(NIGHT)
    return path


def test_the_ready_made_templates_are_listed_and_printed():
    answer = asked("policy", "templates")
    names = [template["name"] for template in answer["templates"]]
    assert len(names) == 8
    assert "second-opinion" in names
    printed = run("policy", "templates", "second-opinion").out
    assert printed == (templates_folder() / "second-opinion.toml").read_text()
    assert "Second opinion" in run("policy", "templates").words


def test_every_template_passes_the_check():
    for template in asked("policy", "templates")["templates"]:
        checked = asked("policy", "check", template["name"])
        assert checked["is_valid"]
        assert checked["rules"] == template["rules"]


def test_a_file_with_faults_is_told_every_fault(file):
    file.write_text(NIGHT.replace("TREAT", "FUN").replace("permit", "allow"))
    answer = run("policy", "check", file)
    assert answer.status == 2
    assert "effect" in answer.words
    told = asked("policy", "check", file, status=2)
    assert not told["is_valid"]
    assert told["problems"]
    refused = run("policy", "publish", file)
    assert refused.status == 2
    assert "cannot be published" in refused.words


def test_what_is_neither_a_file_nor_a_template_is_a_sentence(tmp_path):
    for name in ("no-such", "../second-opinion"):
        answer = run("policy", "check", name)
        assert answer.status == 2
        assert "neither a file nor a template" in answer.words


def test_publish_try_and_retire(file, shared, north, south, officer):
    study, _ = shared()
    question = ("policy", "try", study, "--by", "south", "--purpose", "TREAT", "-c", north)
    drafted = asked(*question, "--draft", file, "--at", "2026-11-24T23:00:00")
    assert (drafted["outcome"], drafted["rule"]) == ("granted", "north/night")
    done = officer.asked("policy", "publish", file)
    assert done["rules"] == ["night"]
    night = asked(*question, "--at", "2026-11-24T23:00:00")
    (trial,) = [rule for rule in night["rules"] if rule["rule"] == "north/night"]
    assert (night["outcome"], trial["decides"]) == ("granted", True)
    noon = run(*question, "--at", "2026-11-24T12:00:00")
    assert "does not hold: block.hour >= 22" in noon.words
    executed(south, done["transaction"]["height"])
    assert "night" in run("policy", "list", "north", "-c", south).words
    shown = asked("policy", "show", "night", "-c", north)
    assert shown["rule"]["condition"] == 'block.hour >= 22 && request.purpose == "TREAT"'
    officer.asked("policy", "retire", "night")
    assert asked(*question, "--at", "2026-11-24T23:00:00")["rule"] != "north/night"
    assert officer.code("policy", "retire", "night") == "policy_unknown"


def test_one_rule_by_its_words(north, officer):
    words = ("--effect", "deny", "--condition", 'study.confidentiality == "V"')
    done = officer.asked("policy", "publish", "--name", "very-restricted", *words)
    rules = {rule["name"]: rule for rule in done["policies"]["own"]}
    assert rules["very-restricted"]["effect"] == "deny"
    assert officer.asked("policy", "retire", "very-restricted")["rules"] == ["very-restricted"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give a file or template"),
        (["--name", "x", "--effect", "allow"], "an effect is one of ask, deny, permit"),
        (["--name", "x", "--effect", "deny", "--condition", "nonsense"], "condition"),
        (["second-opinion", "--name", "x"], "give either"),
    ],
)
def test_publishing_without_sense_is_wrong_usage(options, words, north):
    answer = run("policy", "publish", *options, "-c", north)
    assert answer.status == 2
    assert words in answer.words


def test_a_rule_that_is_not_there_is_exit_status_1(north):
    answer = run("policy", "show", "no-such", "-c", north)
    assert answer.status == 1
    assert "policy list" in answer.words


def test_a_program_is_told_the_code_of_a_refusal(north, doctor):
    answer = run("policy", "publish", "second-opinion", "-c", doctor.config, "--key", doctor.key)
    assert answer.status == 1
    assert "what to do: sign with the key of a member who has the role" in answer.words
    again = run(
        "policy", "publish", "second-opinion", "-c", doctor.config, "--key", doctor.key, "--json"
    )
    assert json.loads(again.out)["error"]["code"] == "role_missing"
