"""`radledger gateway` on the command line: what waits, why something was refused, what is wrong."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from node.cli import main
from node.config import DicomPeer, GatewayConfig, GatewayLimits, StoreConfig, load_config
from node.config.render import render_config
from node.gateway import health
from node.gateway.health import Health
from node.gateway.spool import Quota, Spool
from node.keys import save_secret
from node.testnet.layout import create_layout
from node.testnet.processes import ProcessTestnet
from tests.cli.test_documents import documented
from tests.gateway import dimse
from tests.imaging import dicom


def run(*arguments):
    done = CliRunner().invoke(main.app, ["gateway", *map(str, arguments)], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def config_file(tmp_path):
    """Return a hospital's config with a gateway in it; no node runs."""
    layout = create_layout(tmp_path / "net", validators=1, observers=0, consensus=None)
    path = layout.node_folder(0) / "node.toml"
    config = load_config(path) if path.exists() else layout.configs[0]
    save_secret(tmp_path / "master", b"ab" * 32)
    gateway = GatewayConfig(
        spool_dir=tmp_path / "spool",
        peers=(
            DicomPeer(ae_title="MODALITY"),
            DicomPeer(ae_title="PACS", host="127.0.0.1", port=1),
            DicomPeer(ae_title="NOBODY", host="nobody.invalid", port=1),
        ),
        limits=GatewayLimits(disk_reserve_bytes=2**20),
    )
    store = StoreConfig(
        key_file=tmp_path / "store.keys",
        folder=tmp_path / "store",
        master_key_file=tmp_path / "master",
    )
    object.__setattr__(config, "gateway", gateway)
    object.__setattr__(config, "store", store)
    path.write_text(render_config(config))
    assert load_config(path).gateway == gateway
    return path


@pytest.fixture
def filled(tmp_path):
    """Fill the spool: one instance that waits, one that was refused."""
    spool = Spool(tmp_path / "spool", Quota(disk_reserve_bytes=1))
    for path in (dicom.minimal(tmp_path / "a"), dicom.FILES / "MR_truncated.dcm"):
        with open(path, "rb") as stream:
            spool.accept("MODALITY", stream)
    yield spool
    spool.close()


def test_status_shows_what_waits_and_what_was_refused(config_file, filled):
    status, out, _ = run("status", "-c", config_file, "--json")
    assert status == 0
    shown = json.loads(out)
    assert shown["usage"]["files"] == 1
    assert [study["waiting"] for study in shown["studies"]] == [1]
    assert [(a["code"], a["source"]) for a in shown["quarantine"]] == [("truncated", "MODALITY")]
    assert [(e["kind"], e["code"]) for e in shown["events"]] == [("refused", "truncated")]
    assert [finding["code"] for finding in shown["findings"]] == ["gateway_down"]
    assert set(shown) == documented("gateway status")
    status, out, _ = run("status", "-c", config_file)
    assert status == 0
    assert "truncated" in out
    assert "gateway_down: the gateway does not run" in out


def test_status_can_be_asked_whether_something_is_in_the_way(config_file, filled):
    assert run("status", "--check", "-c", config_file)[0] == 3
    now_ms = time.time_ns() // 1_000_000
    health.save(filled.folder, Health(now_ms, now_ms, 5, now_ms, ()))
    status, out, _ = run("status", "--check", "-c", config_file)
    assert (status, "nothing keeps it from progress" in out) == (0, True)


def test_studies_can_be_registered_now_and_refused_files_discarded(config_file, filled):
    status, out, _ = run("register-now", "-c", config_file, "--json")
    assert (status, set(json.loads(out))) == (0, documented("gateway register-now"))
    assert [study.is_signalled for study in filled.gatherings()] == [True]
    (aside,) = filled.asides()
    assert run("discard", aside.name, "-c", config_file)[0] == 0
    assert filled.asides() == []
    assert list((filled.folder / "quarantine").iterdir()) == []
    status, _, err = run("discard", aside.name, "-c", config_file)
    assert status == 1, err
    assert "no such file" in err


def test_check_tells_everything_that_is_wrong_at_once(config_file, filled):
    status, out, err = run("check", "-c", config_file, "--json")
    assert status == 1, err
    findings = json.loads(out)
    assert (
        findings["files"]
        == findings["spool"]
        == findings["store"]
        == findings["peer MODALITY"]
        == ""
    )
    assert findings["node"]
    assert "cannot be connected to" in findings["peer PACS"]
    assert "nobody.invalid" in findings["peer NOBODY"]


def test_check_names_a_certificate_that_cannot_be_used(config_file, tmp_path):
    config = load_config(config_file)
    names = {"tls_certificate_file": tmp_path / "no.crt", "tls_key_file": tmp_path / "no.key"}
    (tmp_path / "trust").write_text("nothing")
    gateway = replace(config.gateway, tls_trust_file=tmp_path / "trust", **names)
    object.__setattr__(config, "gateway", gateway)
    config_file.write_text(render_config(config))
    status, out, _ = run("check", "-c", config_file, "--json")
    assert status == 1
    assert "TLS files of [gateway] cannot be used" in json.loads(out)["files"]


def test_without_a_gateway_in_the_config_it_says_so(config_file):
    config = load_config(config_file)
    object.__setattr__(config, "gateway", None)
    config_file.write_text(render_config(config))
    status, _, err = run("start", config_file)
    assert status == 2
    assert "[gateway]" in err


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ('listen_host = "0.0.0.0"', "reachable from other machines"),
        ('tls_key_file = "k"', "come together"),
        ('peers = [{ ae_title = "A" }, { ae_title = "A" }]', "listed twice"),
        ('peers = [{ ae_title = "A", host = "h" }]', "host and port come together"),
        ('peers = [{ ae_title = "SEVENTEEN_LETTERS" }]', "does not have the form"),
        (
            'tls_key_file = "k"\ntls_certificate_file = "c"\npeers = [{ ae_title = "A" }]',
            "certificate_file",
        ),
    ],
)
def test_contradictions_in_the_config_are_told_with_their_line(config_file, lines, sentence):
    text = config_file.read_text()
    head, _, _ = text.partition("[gateway]")
    config_file.write_text(f'{head}[gateway]\nspool_dir = "spool"\n{lines}\n')
    status, _, err = run("status", "-c", config_file)
    assert status == 2
    assert sentence in " ".join(err.split())


@pytest.mark.parametrize(
    ("words", "end"),
    [
        ((), lambda process: process.send_signal(signal.SIGTERM)),
        (("--with-parent",), lambda process: process.stdin.close()),
    ],
)
async def test_start_serves_beside_its_node_until_it_is_told_to_end(tmp_path, words, end):
    net = ProcessTestnet(tmp_path / "net", validators=1)
    await net.start()
    try:
        await net.wait_ready()
        node = next(iter(net.nodes))
        config_file = node.folder / "node.toml"
        save_secret(tmp_path / "master", b"ab" * 32)
        with config_file.open("a") as file:
            file.write(
                f'''
[gateway]
spool_dir = "{tmp_path}/spool"
listen_port = 0
peers = [{{ ae_title = "MODALITY" }}]
quiet_ms = 100
metrics_port = 0
limits.disk_reserve_bytes = 1048576
[store]
folder = "{tmp_path}/store"
key_file = "{tmp_path}/store.keys"
master_key_file = "{tmp_path}/master"
'''
            )
        service_manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        service_manager.bind(str(tmp_path / "notify"))
        service_manager.settimeout(20)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "node.cli",
            "gateway",
            "start",
            str(config_file),
            "--announce",
            *words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        try:
            line = await process.stdout.readline()
            port = json.loads(line)["port"]
            paths = [dicom.minimal(tmp_path / "a.dcm")]
            assert await dimse.in_thread(service_manager.recv, 99) == b"READY=1"
            assert await dimse.in_thread(dimse.send, port, paths) == [0]
        finally:
            end(process)
            _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        with service_manager:
            assert service_manager.recv(99) == b"STOPPING=1"
        assert b"1.2.3" not in errors
    finally:
        await net.kill()
