"""The command reference says what the commands really answer."""

import json
import re
from pathlib import Path

import pytest

from node.cli.main import COMMANDS
from node.provision import CARD, CONFIG, create_identity
from tests.cli.conftest import asked, executed, run

REFERENCE = Path(__file__).parents[2] / "docs" / "operators" / "commands.md"
LEAVES = {"block", "demo", "events", "genesis", "init", "keygen", "start", "status"}
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


@pytest.fixture
def sharing_answers(shared, north, doctor, officer, tmp_path):
    """What the commands of sharing answer, by their place in the reference."""
    study, subject = shared()
    form, log = tmp_path / "form", tmp_path / "log"
    form.write_text("yes")
    log.write_text("one")
    at, signed = ("-c", north), ("--form", form, "-c", north)
    asked("consent", "grant", subject, *signed)
    given = asked("consent", "grant", subject, *signed)
    request = doctor.asked("access", "request", study, "--purpose", "CAREMGT")
    executed(north, request["transaction"]["height"])
    request_id = request["request"]["id"]
    approved = asked("access", "approve", request_id, *at)
    delivered = asked("access", "deliver", request_id, "--wrapped-digest", "ab" * 32, *at)
    executed(doctor.config, delivered["transaction"]["height"])
    glass = doctor.asked("access", "break-glass", study, "--reason", "other")
    proposed = asked("gov", "propose", "parameter-set", "access_uses_max", 500, *at)
    proposal = proposed["proposal"]["id"]
    question = ("policy", "try", study, "--by", "south", "--purpose", "TREAT", *at)
    rule = ("--name", "doc", "--effect", "deny", "--condition", "study.version > 9")
    published = officer.asked("policy", "publish", *rule)
    return {
        "consent grant": given,
        "consent withdraw": asked("consent", "withdraw", subject, given["consent_id"], *signed),
        "consent opt-out": asked("consent", "opt-out", subject, *signed),
        "consent bind": asked("consent", "bind", subject, "--none", *at, status=1),
        "consent show": asked("consent", "show", subject, *at),
        "policy publish": published,
        "policy list": asked("policy", "list", *at),
        "policy show": asked("policy", "show", "doc", *at),
        "policy retire": officer.asked("policy", "retire", "doc"),
        "policy try": asked(*question),
        "policy check": asked("policy", "check", "second-opinion"),
        "policy templates": asked("policy", "templates"),
        "access request": request,
        "access approve": approved,
        "access deliver": delivered,
        "access receive": doctor.asked("access", "receive", request_id, status=1),
        "access break-glass": glass,
        "access show": asked("access", "show", request_id, *at),
        "access list": asked("access", "list", *at),
        "audit trail": asked("audit", "trail", study, *at),
        "audit anchors": asked("audit", "anchors", *at),
        "audit check": asked("audit", "check", log, *at, status=1),
        "member list": asked("member", "list", *at),
        "institution list": asked("institution", "list", *at),
        "institution show": asked("institution", "show", *at),
        "gov propose": proposed,
        "gov try": asked("gov", "try", proposal, *at),
        "gov vote": asked("gov", "vote", proposal, "--reject", *at),
        "gov execute": asked("gov", "withdraw", proposal, *at),
        "gov show": asked("gov", "show", proposal, *at),
        "gov list": asked("gov", "list", *at),
        "gov parameters": asked("gov", "parameters", *at),
        "study classify": asked("study", "classify", study, "R", *at),
    }


def test_sharing_answers_as_documented(sharing_answers):
    for command, answer in sharing_answers.items():
        if "error" not in answer:
            assert set(answer) == documented(command), command


def test_the_guides_name_only_commands_and_options_that_there_are():
    text = "\n".join(path.read_text() for path in sorted(REFERENCE.parent.glob("*.md")))
    groups = "|".join(["gateway audit", *sorted(set(COMMANDS) - LEAVES)])
    leaves = re.findall(rf"(?:radledger|\brl) ((?:{groups}) [a-z]+(?:-[a-z]+)*)", text)
    assert {"study register", "consent opt-out", "access break-glass"} <= set(leaves)
    helps = [run(*words.split(), "--help") for words in {*leaves, *COMMANDS}]
    assert all(answer.status == 0 for answer in helps)
    known = set(re.findall(r"--[a-z][a-z-]+", "".join(answer.out for answer in helps)))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", REFERENCE.read_text()))
    assert named <= known | {"--install-completion", "--version"}
