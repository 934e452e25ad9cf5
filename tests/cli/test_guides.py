"""The operators' guides: commands in them exist with these options, samples can be used."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from node.cli import main
from node.config import parse_config
from node.gateway.condition import CODES

GUIDES = Path(__file__).parents[2] / "docs" / "operators"
CALL = re.compile(r"(?:^|\s)(?<!-u )(?:rl|(?:\S*/)?radledger) ([a-z].*)")
NODE = """\
institution = "st-mary"
data_dir = "data"
genesis_file = "genesis.json"
key = { file = "key.pem" }
rpc = { token_file = "rpc.token" }
"""


def calls(text):
    """Return the words after `radledger` of every call in code, whole lines and inline."""
    text = text.replace("\\\n", " ")
    lines = re.findall(r"^ {4}(?:\$ )?(.*)$", text, re.MULTILINE)
    code = [*lines, *re.findall(r"`([^`\n]+)`", text)]
    found = (CALL.search(line) for line in code)
    return [re.split(r"\s[|>#;]", each[1])[0] for each in found if each]


def resolved(words):
    """Return the command that the words name, and the words after its name."""
    command = typer.main.get_command(main.app)
    while words and hasattr(command, "get_command"):
        inner = command.get_command(typer.Context(command), words[0])
        if inner is None and command.name == "tx":
            break  # `tx ID` stands for `tx show ID`
        assert inner is not None, f"no command {words[0]}"
        command, words = inner, words[1:]
    return command, words


@pytest.mark.parametrize("guide", sorted(GUIDES.glob("*.md")), ids=lambda path: path.stem)
def test_every_call_names_a_command_and_options_that_it_has(guide):
    for call in calls(guide.read_text()):
        if "COMMAND" in call or "/" in call.split()[0]:
            continue
        words = [word for word in shlex.split(call.replace("'", "")) if word != "..."]
        command, rest = resolved(words)
        known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        options = {word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"}
        assert options <= known | {"--help"}, call


def test_the_guide_of_the_gateway_is_seen():
    found = {" ".join(call.split()[:2]) for call in calls((GUIDES / "gateway.md").read_text())}
    assert {
        "exchange keys", "gateway check", "gateway discard", "gateway register-now",
        "gateway status", "store migrate", "store rotate", "store scrub", "study deliver",
        "study erase", "study fetch", "study find",
    } <= found  # fmt: skip


def test_the_configs_of_the_guides_can_be_used():
    guide = (GUIDES / "gateway.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    config = parse_config((NODE + text).encode(), name="guide", base=Path("/etc/radledger"))
    assert config.gateway.peers[0].takes_fetched
    (orthanc,) = re.findall(r"```json\n(.*?)```", guide, re.DOTALL)
    assert json.loads("{" + orthanc + "}")["DicomAet"] == config.gateway.peers[0].ae_title
    assert str(config.gateway.spool_dir).startswith("/var/lib/radledger/")


def test_every_key_that_the_guide_explains_exists():
    guide = (GUIDES / "gateway.md").read_text()
    sample = (GUIDES.parents[1] / "config" / "node.toml").read_text()
    (table,) = re.findall(r"\| table \| key \| meaning \|\n(.*?)\n\n", guide, re.DOTALL)
    cells = [row.split("|")[2] for row in table.splitlines()]
    keys = {key for cell in cells for key in re.findall(r"`(?:\w+\.)?(\w+)`", cell)}
    assert len(keys) > 25
    assert keys - set(re.findall(r"(\w+) = ", sample)) == set()


def test_every_finding_is_explained():
    guide = (GUIDES / "gateway.md").read_text()
    explained = set(re.findall(r"`(\w+)`", guide.partition("| it says |")[2]))
    assert set(CODES) - explained == set()
