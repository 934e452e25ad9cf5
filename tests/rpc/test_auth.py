"""The gate on its own, where a socket would not get: other machines, other names."""

from pathlib import Path

import pytest

from node.config.model import RpcConfig
from node.rpc.auth import Gate

TOKEN = "s3cret-" * 6


def config(**more) -> RpcConfig:
    return RpcConfig(token_file=Path("unused"), **more)


def denied(gate, path="/rpc", remote="127.0.0.1", **headers):
    refused = gate.denied(path, "http", remote, {"Host": "localhost"} | headers)
    return refused and (refused.status, refused.code)


GATE = Gate(config(), TOKEN)
RIGHT = {"Authorization": f"Bearer {TOKEN}"}


def test_the_right_token_opens():
    assert denied(GATE, **RIGHT) is None


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_health_is_open_on_loopback_only(path):
    assert denied(GATE, path) is None
    assert denied(GATE, path, "::1") is None
    assert denied(GATE, path, "10.0.0.9") == (401, "unauthorized")
    assert denied(GATE, path, None) == (401, "unauthorized")
    assert denied(GATE, path, "10.0.0.9", **RIGHT) is None


@pytest.mark.parametrize("path", ["/healthy", "/health", "/rpc", "/metrics", "/ws", "/x/health/"])
def test_nothing_else_is(path):
    assert denied(GATE, path) == (401, "unauthorized")


def test_health_too_is_closed_to_other_names_and_pages():
    assert denied(GATE, "/health/live", Host="evil.example") == (403, "host_not_allowed")
    origin = {"Origin": "http://evil.example"}
    assert denied(GATE, "/health/live", **origin) == (403, "origin_not_allowed")


def test_further_names_come_from_the_config():
    gate = Gate(config(allowed_hosts=("Ledger.North.example",)), TOKEN)
    assert denied(gate, Host="ledger.north.EXAMPLE:7620", **RIGHT) is None
    assert denied(gate, Host="north.example", **RIGHT) == (403, "host_not_allowed")
    assert denied(GATE, Host="ledger.north.example", **RIGHT) == (403, "host_not_allowed")


def test_listening_everywhere_is_no_name():
    gate = Gate(config(host="0.0.0.0", allow_remote=True), TOKEN)
    assert denied(gate, Host="198.51.100.7", **RIGHT) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "host", ["", "[", "[]", ":", "[::1", "@localhost", "localhost@evil", "\x00"]
)
def test_hosts_of_odd_form_are_refused(host):
    allowed = host == "[::1"  # reads as the name that it is
    assert (denied(GATE, Host=host, **RIGHT) is None) == allowed


def test_the_token_is_in_no_repr():
    assert TOKEN not in repr(GATE)
    assert TOKEN not in repr(GATE.denied("/rpc", "http", None, {"Host": "localhost"}))
