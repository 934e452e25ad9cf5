"""`start`: announces itself, ends when told, and says why it cannot begin."""

import json
import os
import shutil
import signal
import socket
import subprocess

import pytest

from node.config import load_config
from node.provision import CONFIG
from node.testnet.layout import create_layout
from tests.cli.conftest import RADLEDGER, asked, python, run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A consortium of one."""
    folder = tmp_path_factory.mktemp("alone")
    create_layout(folder, validators=1)
    return folder


@pytest.fixture
def alone(made, tmp_path):
    """Its files, as they were made."""
    shutil.copytree(made, tmp_path / "net")
    return tmp_path / "net" / "north" / CONFIG


@pytest.fixture
def start():
    """Start nodes as processes; those that are left are ended."""
    processes = []

    def begin(config_file, *options, **environment):
        process = subprocess.Popen(
            [*RADLEDGER, "start", str(config_file), "--announce", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        processes.append(process)
        return process, json.loads(process.stdout.readline())

    yield begin
    for process in processes:
        with process:
            process.kill()


def test_a_node_announces_itself_and_ends_in_order(alone, start):
    process, line = start(alone)
    port = load_config(alone).rpc.port
    assert line["event"] == "listening"
    assert (line["rpc"], line["pid"]) == (f"http://127.0.0.1:{port}", process.pid)
    assert asked("status", "-c", alone)["readiness"]["is_ready"]
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate()
    assert process.returncode == 0
    assert "node stopped" in log
    assert "Traceback" not in log


def test_a_node_that_goes_with_its_parent_ends_when_that_is_gone(alone, start):
    process, _ = start(alone, "--with-parent")
    process.stdin.close()
    assert process.wait() == 0


def test_systemd_is_told_when_the_node_listens_and_when_it_stops(alone, start, tmp_path):
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(path))
        process, _ = start(alone, NOTIFY_SOCKET=str(path))
        assert channel.recv(100) == b"READY=1"
        process.send_signal(signal.SIGTERM)
        assert channel.recv(100) == b"STOPPING=1"


def test_one_folder_serves_one_node(alone, start):
    start(alone)
    answer = run("start", alone)
    assert answer.status == 3
    assert "open in another process" in answer.words


@pytest.mark.parametrize("section", ["network", "rpc"])
def test_a_port_that_is_taken_is_a_sentence(section, alone):
    config = load_config(alone)
    port = config.network.listen_port if section == "network" else config.rpc.port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = python("-m", "node.cli", "start", alone)
    assert done.returncode == 3
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_passphrase_is_a_sentence(alone):
    (alone.parent / "passphrase").write_text("not this one")
    answer = run("start", alone)
    assert answer.status == 2
    assert "passphrase is wrong" in answer.words
    assert "not this one" not in answer.words
