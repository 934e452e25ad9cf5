"""The command reference says what the commands really answer."""

import json
import re
from pathlib import Path

import pytest

from node.cli.main import COMMANDS
from node.provision import CARD, CONFIG, create_identity
from tests.cli.conftest import asked, executed, run

REFERENCE = Path(__file__).parents[2] / "docs" / "operators" / "commands.md"
SECTIONS = re.split(r"^### `radledger ", REFERENCE.read_text(), flags=re.MULTILINE)[1:]


def section(command):
    """Return the part of the reference about a command."""
    found = [text for text in SECTIONS if re.match(rf"{command}[` ]", text)]
    assert len(found) == 1, command
    return found[0]


def documented(command):
    """Return the fields that the reference names for a command's JSON."""
    (line,) = re.findall(r"^JSON: (.*)$", section(command), re.MULTILINE)
    return set(re.findall(r"`(\w+)`", line))


def test_every_command_has_its_section():
    first_words = {re.match(r"\w+", text).group() for text in SECTIONS}
    assert first_words == set(COMMANDS)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    """Two identities, whose JSON answers are kept by command."""
    folder = tmp_path_factory.mktemp("join")
    create_identity(folder / "b", "b", "B")
    answers = {"keygen": asked("keygen", "a", "-f", folder / "a")}
    cards = [folder / name / CARD for name in "ab"]
    output = folder / "g.json"
    answers["genesis"] = asked("genesis", *cards, "--name", "two", "-o", output)
    answers["init"] = asked("init", "-f", folder / "a", "-g", output, "--peer", "b=h:1")
    answers["config check"] = asked("config", "check", folder / "a" / CONFIG)
    return answers


@pytest.mark.parametrize("command", ["keygen", "genesis", "init", "config check"])
def test_what_makes_a_node_answers_as_documented(command, consortium):
    assert set(consortium[command]) == documented(command)


def test_what_asks_a_node_answers_as_documented(new_study, north):
    folder = new_study()
    at = ("-c", north)
    registered = asked("study", "register", folder, *at)
    (study,) = registered["studies"]
    executed(north, study["height"])
    answers = {
        "status": asked("status", *at),
        "study register": registered,
        "study verify": asked("study", "verify", folder, *at),
        "study show": asked("study", "show", study["study_id"], *at),
        "study search": asked("study", "search", *at),
        "tx ID": asked("tx", study["transaction_id"], *at),
        "block": asked("block", *at),
        "events": json.loads(
            run("events", "--from", study["height"], "--to", study["height"], "--json", *at).out
        ),
        "testnet status": asked("testnet", "status", "-f", north.parent.parent),
    }
    for command, answer in answers.items():
        assert set(answer) == documented(command), command
    text = section("study register").partition("Each of `studies`:")[2].partition("###")[0]
    words = set(re.findall(r"`(\w+)`", text)) - {
        "registered", "amended", "unchanged", "accepted", "pending", "refused",
    }  # fmt: skip
    assert set(study) == words


def test_the_guides_name_only_commands_and_options_that_there_are():
    text = "\n".join(path.read_text() for path in sorted(REFERENCE.parent.glob("*.md")))
    leaves = re.findall(r"(?:radledger|\brl) ((?:config|study|tx|testnet) [a-z]+)", text)
    assert "study register" in leaves
    helps = [run(*words.split(), "--help") for words in {*leaves, *COMMANDS}]
    assert all(answer.status == 0 for answer in helps)
    known = set(re.findall(r"--[a-z][a-z-]+", "".join(answer.out for answer in helps)))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", REFERENCE.read_text()))
    assert named <= known | {"--install-completion", "--version"}
