"""`gov`: applications, proposals, votes and dry runs."""

import json
import secrets

import pytest

from node import provision
from node.cli.cards import Application
from node.cli.gov_actions import ACTIONS, usage
from node.ledger.contracts.governance_actions import ACTIONS as LEDGER_ACTIONS
from node.provision import GENESIS
from tests.cli.conftest import asked, executed, run


@pytest.fixture
def hospitals(net):
    return [net.node(name).folder / provision.CONFIG for name in ("north", "south", "east")]


@pytest.fixture
def application(net, tmp_path):
    """What a hospital that nobody knows sends to be let in."""
    name = f"h{secrets.token_hex(4)}"
    folder = tmp_path / name
    asked("keygen", name, "--folder", folder, "--display-name", "New", "--country", "CH")
    genesis = net.layout.folder / GENESIS
    answer = asked("gov", "application", "--folder", folder, "--genesis", genesis)
    assert answer["institution"] == name
    return folder / "application.json"


def decide(hospitals, *action):
    """Propose, vote, execute; return the executed proposal."""
    first, *others = hospitals
    made = asked("gov", "propose", *action, "-c", first)
    proposal, height = made["proposal"]["id"], made["transaction"]["height"]
    for config in others:
        executed(config, height)
        height = asked("gov", "vote", proposal, "--approve", "-c", config)["transaction"]["height"]
    executed(first, height)
    return asked("gov", "execute", proposal, "-c", first)["proposal"]


def test_every_action_of_the_ledger_can_be_typed():
    assert {name.replace("-", "_") for name in ACTIONS} == set(LEDGER_ACTIONS)
    words = run("gov", "propose", "--help").words
    assert all(name in words for name in ACTIONS)


def test_a_parameter_is_changed_by_a_quorum(hospitals):
    first, second, _ = hospitals
    made = asked("gov", "propose", "parameter-set", "access_uses_max", 900, "-c", first)
    proposal = made["proposal"]["id"]
    assert made["next"]["institutions"] == ["east", "south", "west"]
    refused = run("gov", "execute", proposal, "-c", first)
    assert refused.status == 1
    assert "what to do: `radledger gov show` says who has not voted" in refused.words
    executed(second, made["transaction"]["height"])
    asked("gov", "vote", proposal, "--reject", "-c", second)
    shown = run("gov", "show", proposal, "-c", second)
    assert "1 of the 3 needed (N = 4)" in shown.words
    assert "access_uses_max 900" in shown.words
    decided = decide(hospitals, "parameter-set", "access_uses_max", 800)
    assert decided["state"] == "executed"
    values = {p["name"]: p["value"] for p in asked("gov", "parameters", "-c", first)["parameters"]}
    assert values["access_uses_max"] == 800
    withdrawn = asked("gov", "withdraw", proposal, "-c", first)["proposal"]
    assert withdrawn["state"] == "withdrawn"
    listed = asked("gov", "list", "--state", "executed", "-c", first)["proposals"]
    assert decided["id"] in [each["id"] for each in listed]
    assert "parameter-set" in run("gov", "list", "-c", first).words


def test_an_institution_comes_in_and_its_people_follow(hospitals, application, tmp_path):
    name = application.parent.name
    decided = decide(hospitals, "institution-add", application)
    assert decided["state"] == "executed"
    shown = asked("institution", "show", name, "-c", hospitals[0])["institution"]
    assert (shown["country"], shown["is_active"], shown["is_validator"]) == ("CH", True, False)
    listed = asked("institution", "list", "-c", hospitals[0])["institutions"]
    assert name in [each["name"] for each in listed]
    assert "observing" not in run("institution", "list", "-c", hospitals[0]).words


def test_a_dry_run_shows_the_quorum_and_who_is_live(hospitals, application):
    first = hospitals[0]
    trial = asked("gov", "try", "validator-remove", "west", "-c", first)
    assert (trial["n"], trial["f"], trial["quorum"], trial["removed"]) == (3, 0, 2, ["west"])
    words = run("gov", "try", "validator-remove", "west", "-c", first).words
    assert "fewer than 4 validators" in words
    refused = asked("gov", "try", "validator-add", application, "-c", first, status=1)
    assert refused["problem"] == "institution_unknown"
    made = asked("gov", "propose", "parameter-set", "access_uses_max", 700, "-c", first)
    proposal = made["proposal"]["id"]
    assert asked("gov", "try", proposal, "-c", first)["problem"] is None
    asked("gov", "withdraw", proposal, "-c", first)


def test_a_policy_of_the_consortium_comes_from_a_file(hospitals):
    first = hospitals[0]
    two = asked("gov", "propose", "policy-publish", "second-opinion", "-c", first)["proposal"]
    assert two["arguments"][0] == "second-opinion"
    asked("gov", "withdraw", two["id"], "-c", first)
    answer = run("gov", "propose", "policy-publish", "paediatric-restriction", "-c", first)
    assert answer.status == 2
    assert "name one of the rules" in answer.words


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dance"], "is no action; there are:"),
        (["validator-remove"], "this action is: validator-remove NAME"),
        (["parameter-set", "colour", "1"], "a parameter is one of"),
        (["parameter-set", "access_uses_max", "0"], "a number from 1 to"),
        (["observer-remove", "xx"], "64 hexadecimal digits"),
    ],
)
def test_an_action_without_sense_is_wrong_usage(words, told, hospitals):
    answer = run("gov", "propose", *words, "-c", hospitals[0])
    assert answer.status == 2
    assert told in answer.words
    assert run("gov", "try", *words, "-c", hospitals[0]).status == 2


def test_what_may_be_left_out_stands_in_brackets():
    assert usage("policy-publish") == "policy-publish FILE [RULE]"


def test_a_vote_says_yes_or_no(hospitals):
    answer = run("gov", "vote", "ab" * 16, "-c", hospitals[0])
    assert answer.status == 2
    assert "--approve or --reject" in answer.words


def test_a_proposal_that_is_not_there_is_exit_status_1(hospitals):
    for command in (["show"], ["try"], ["vote", "--approve"], ["execute"]):
        answer = run("gov", command[0], "ab" * 16, *command[1:], "-c", hospitals[0])
        assert answer.status == 1, command


def test_an_application_of_another_chain_or_damaged_is_refused_here(hospitals, application):
    value = json.loads(application.read_text())
    application.write_text(json.dumps(value | {"chain_id": "00" * 32}))
    answer = run("gov", "propose", "institution-add", application, "-c", hospitals[0])
    assert answer.status == 2
    assert "another chain" in answer.words
    for content in (b"", b"{}", b"[1]", b"\xff", json.dumps(value | {"node_key": 5}).encode()):
        application.write_bytes(content)
        answer = run("gov", "propose", "institution-add", application, "-c", hospitals[0])
        assert answer.status == 2
        assert "or it is damaged" in answer.words


def test_a_stolen_application_proves_nothing(hospitals, application):
    """Whoever changes the key in it has not its private half."""
    value = json.loads(application.read_text())
    application.write_text(json.dumps(value | {"admin_key": value["node_key"]}))
    answer = run("gov", "propose", "institution-add", application, "-c", hospitals[0])
    assert answer.status == 1
    assert "possession_unproven" in answer.words


def test_an_application_is_never_overwritten(net, application):
    again = run("gov", "application", "-f", application.parent, "-g", net.layout.folder / GENESIS)
    assert again.status == 2
    assert "never overwritten" in again.words
    assert Application.load(application).country == "CH"
