"""`testnet`: nodes that outlive the command, and are found again by it."""

import asyncio
import os
import signal

import pytest

from node.provision import CONFIG
from node.testnet.processes import ProcessTestnet
from tests.cli.conftest import asked, python, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A validator and an observer in the background."""
    place = tmp_path_factory.mktemp("testnet") / "t"
    asked("testnet", "up", "--folder", place, "--nodes", 1, "--observers", 1)
    yield place
    run("testnet", "down", "--folder", place)


def test_nodes_run_on_after_the_command(folder):
    answer = asked("testnet", "status", "--folder", folder)
    north, south = answer["nodes"]
    assert (north["institution"], south["institution"]) == ("north", "south")
    assert [node["is_running"] for node in answer["nodes"]] == [True, True]
    assert [node["status"]["is_validator"] for node in answer["nodes"]] == [True, False]
    assert north["readiness"]["is_ready"]
    os.kill(north["pid"], 0)
    assert asked("status", "-c", folder / "north" / CONFIG)["status"]["institution"] == "north"
    assert "observer" in run("testnet", "status", "--folder", folder).words


def test_up_again_starts_only_what_is_down(folder):
    before = asked("testnet", "status", "--folder", folder)["nodes"]
    asyncio.run(ProcessTestnet(folder).node("north").kill())
    down = asked("testnet", "status", "--folder", folder, status=1)["nodes"]
    assert [node["is_running"] for node in down] == [False, True]
    assert down[0]["problem"] == "is not running"
    after = asked("testnet", "up", "--folder", folder, "--nodes", 1, "--observers", 1)["nodes"]
    assert after[0]["pid"] != before[0]["pid"]
    assert after[1]["pid"] == before[1]["pid"]


def test_a_testnet_keeps_its_size(folder):
    answer = run("testnet", "up", "--folder", folder, "--nodes", 7)
    assert answer.status == 2
    assert "holds a testnet of 2 nodes, not 7" in answer.words


def test_down_stops_and_up_goes_on_from_there(folder):
    assert asked("testnet", "down", "--folder", folder)["stopped"] == ["north", "south"]
    assert asked("testnet", "down", "--folder", folder)["stopped"] == []
    assert run("testnet", "status", "--folder", folder).status == 1
    nodes = asked("testnet", "up", "--folder", folder, "--nodes", 1, "--observers", 1)["nodes"]
    assert all(node["readiness"]["is_ready"] for node in nodes)


@pytest.mark.parametrize("command", ["down", "status"])
def test_a_folder_without_a_testnet_is_a_sentence(command, tmp_path):
    answer = run("testnet", command, "--folder", tmp_path)
    assert answer.status == 2
    assert "holds no testnet" in answer.words


def test_a_node_that_cannot_start_says_why_and_leaves_none_behind(tmp_path):
    place = tmp_path / "t"
    asked("testnet", "up", "--folder", place, "--nodes", 2)
    asked("testnet", "down", "--folder", place)
    (place / "south" / "passphrase").write_text("not the passphrase")
    answer = run("testnet", "up", "--folder", place, "--nodes", 2)
    assert answer.status == 3
    assert "south did not start" in answer.words
    assert "passphrase is wrong" in answer.words
    nodes = asked("testnet", "status", "--folder", place, status=1)["nodes"]
    assert not any(node["is_running"] for node in nodes)


CARELESS = """
import asyncio, os, signal, sys
from pathlib import Path
from node.testnet.processes import ProcessTestnet

async def main():
    await ProcessTestnet(Path(sys.argv[1]), 1).start()
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_nodes_end_with_a_parent_that_was_killed(tmp_path):
    assert python("-c", CARELESS, tmp_path).returncode == -signal.SIGKILL
    node = load_process(tmp_path)
    try:
        async with asyncio.timeout(30):
            await node.wait_ended()
    finally:
        await node.kill()


def load_process(folder):
    (node,) = ProcessTestnet(folder).nodes
    return node


async def test_a_node_is_not_started_twice(tmp_path):
    async with ProcessTestnet(tmp_path, 1) as net:
        with pytest.raises(RuntimeError, match="running already"):
            await load_process(tmp_path).start()
        assert load_process(tmp_path).pid == net.nodes[0].pid
    assert not net.nodes[0].is_running
    with pytest.raises(ValueError, match="not running"):
        _ = net.nodes[0].pid


async def test_a_paused_node_can_be_stopped(tmp_path):
    async with ProcessTestnet(tmp_path, 1) as net:
        net.nodes[0].pause()
        await net.nodes[0].stop()
        assert not net.nodes[0].is_running
        assert "node stopped" in net.nodes[0].last_words()
