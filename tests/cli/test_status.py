"""`status` and everything that keeps a command from talking to its node."""

import shutil

import pytest

from node.config import load_config
from node.provision import TOKEN
from tests.cli.conftest import asked, run


def test_status_shows_where_the_node_stands(north):
    answer = asked("status", "-c", north)
    assert answer["status"]["institution"] == "north"
    assert answer["status"]["is_validator"]
    assert answer["status"]["stable_height"] <= answer["status"]["height"]
    assert answer["readiness"]["is_ready"]
    assert {p["institution"] for p in answer["peers"]} == {"south", "east", "west"}
    assert all(peer["is_connected"] for peer in answer["peers"])
    assert answer["validators"][0]["institution"] == "north"
    words = run("status", "-c", north).words
    assert "north (validator)" in words
    assert "ready yes" in words


def test_the_config_may_be_named_by_the_environment(north):
    assert run("status", env={"RADLEDGER_CONFIG": str(north)}).status == 0


def test_check_is_for_scripts(north):
    assert run("status", "--check", "-c", north).status == 0


@pytest.fixture
def copied(north, tmp_path):
    """North's files, to be changed: the node runs on."""
    folder = tmp_path / "north"
    shutil.copytree(north.parent, folder, ignore=shutil.ignore_patterns("data"))
    shutil.copy(north.parent.parent / "genesis.json", tmp_path)
    return folder / north.name


EVERY_CLIENT = [
    ["status"],
    ["block"],
    ["events"],
    ["tx", "00" * 32],
    ["study", "search"],
    ["study", "show", "00" * 16],
]


@pytest.mark.parametrize("command", EVERY_CLIENT)
def test_a_node_that_is_down_is_a_sentence(command, copied):
    port = load_config(copied).rpc.port
    copied.write_text(copied.read_text().replace(f"port = {port}", "port = 9"))
    answer = run(*command, "-c", copied)
    assert answer.status == 3
    assert "cannot connect to http://127.0.0.1:9" in answer.words
    assert "radledger start" in answer.words


def test_a_wrong_token_is_a_sentence_and_is_not_shown(copied):
    (copied.parent / TOKEN).write_text("t" * 43)
    answer = run("status", "-c", copied)
    assert answer.status == 2
    assert "refused the token" in answer.words
    assert "ttt" not in answer.words


def test_a_failure_is_json_for_programs(copied):
    (copied.parent / TOKEN).unlink()
    answer = asked("status", "-c", copied, status=2)
    assert answer["error"]["status"] == 2
    assert "rpc.token" in answer["error"]["lines"][0]


def test_a_port_that_the_system_chooses_cannot_be_found(copied):
    port = load_config(copied).rpc.port
    copied.write_text(copied.read_text().replace(f"port = {port}", "port = 0"))
    answer = run("status", "-c", copied)
    assert answer.status == 2
    assert "set a port" in answer.words
