"""What config/ holds besides node.toml really fits: units of systemd, and the dashboard."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from node.cli import main
from node.gateway.metrics import GatewayMetrics
from node.rpc.metrics import Metrics

CONFIG = Path(__file__).parent.parent / "config"
NODE, GATEWAY = "radledger.service", "radledger-gateway.service"
# What the gateway needs beyond the node, found by strace: it bounds its own processes.
ALSO_CALLED = "setrlimit prlimit64 setpriority mbind"
RUN = {
    "User", "Group", "UMask", "LimitCORE", "NotifyAccess", "StateDirectory", "StateDirectoryMode",
    "Type", "WorkingDirectory",
}  # fmt: skip


def unit(name):
    """Return the settings of a unit by section and key, each with all its values in order."""
    settings = {}
    for line in (CONFIG / name).read_text().splitlines():
        if line.startswith("["):
            section = settings.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return settings


def hardening(name):
    """Return what locks a unit in, and who it runs as."""
    keys = "Capability|Lock|NoNew|Private|Protect|Restrict[A-Z]|SystemCall"
    service = unit(name)["Service"]
    chosen = {key for key in service if re.match(keys, key)} | RUN
    return {key: service.get(key) for key in chosen}


def test_both_units_are_locked_in_alike():
    node, gateway = hardening(NODE), hardening(GATEWAY)
    assert gateway["SystemCallFilter"] == [*node["SystemCallFilter"], ALSO_CALLED]
    del node["SystemCallFilter"], gateway["SystemCallFilter"]
    assert gateway == node
    assert node["NoNewPrivileges"] == node["LockPersonality"] == ["yes"]
    assert None not in node.values()


@pytest.mark.parametrize("name", [NODE, GATEWAY])
def test_a_unit_starts_what_there_is_with_the_sample(name):
    (line,) = unit(name)["Service"]["ExecStart"]
    binary, *words, file = line.split()
    assert (Path(binary).name, Path(file).name) == ("radledger", "node.toml")
    done = CliRunner().invoke(main.app, [*words, "/nowhere/node.toml"])
    assert done.exit_code == 2
    assert "/nowhere/node.toml: cannot be read" in done.stderr  # so the words were understood


def test_the_gateway_comes_after_its_node_and_never_gives_up():
    section = unit(GATEWAY)["Unit"]
    assert all(NODE in section[key][0].split() for key in ("After", "Wants"))
    assert section["StartLimitIntervalSec"] == ["0"]


@pytest.mark.parametrize("name", [NODE, GATEWAY])
def test_systemd_understands_a_unit(name, tmp_path):
    """Where systemd is installed; elsewhere the other tests of units have to do."""
    if shutil.which("systemd-analyze") is None:
        return
    text = (CONFIG / name).read_text().replace("/opt/radledger/bin/radledger", "/bin/true")
    for other in (NODE, GATEWAY):
        (tmp_path / other).write_text((CONFIG / other).read_text() if other != name else text)
    words = ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if line.startswith(name)] == []


SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


def metric_names(metrics):
    return {
        family.name + suffix
        for family in metrics.registry.collect()
        for suffix in SUFFIXES.get(family.type, ("",))
    }


def test_the_dashboard_asks_only_for_metrics_that_there_are():
    board = json.loads((CONFIG / "grafana-dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    names = set(re.findall(r"radledger_\w+", " ".join(asked)))
    known = metric_names(Metrics()) | metric_names(GatewayMetrics())
    assert names - known == set()
    assert any(name.startswith("radledger_gateway_") for name in names)
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places)
