"""`radledger study fetch` and `exchange keys`, in processes of their own that are really killed."""

import asyncio
import json
import os
import signal
import sys
from importlib import import_module

from typer.testing import CliRunner

from tests.gateway.flow_world import confirmed, delivered, until, world

SLOW = {"peer_rate_bytes_per_s": 4_000_000, "piece_bytes": 64 * 1024}
LARGE = {"instances": 3, "side": 1_500}  # 13.5 MB in four chunks


def configure(hospital):
    """Add the store and the exchange to a node's config; return its file."""
    file = hospital.net.layout.node_folder(hospital.index) / "node.toml"
    lines = [
        "\n[store]",
        f'key_file = "{hospital.folder}/keys.db"',
        f'folder = "{hospital.folder}/blobs"',
        f'master_key_file = "{hospital.folder}/master"',
        "\n[exchange]",
        f'folder = "{hospital.folder}/exchange"',
    ]
    for place in hospital.places:
        lines += ["\n[[exchange.peers]]", f'institution = "{place.institution}"']
        lines += [f'host = "{place.host}"', f"port = {place.port}"]
    file.write_text(file.read_text() + "\n".join(lines) + "\n")
    return file


async def start(module, *words):
    code = f"from node.cli.{module} import app; app()"
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        *map(str, words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def told(module, *words, status=0):
    """Run a command in this process to its end; return the document that it prints."""
    app = import_module(f"node.cli.{module}").app
    words = [*map(str, words), "--json"]
    result = await asyncio.to_thread(CliRunner().invoke, app, words)
    assert result.exit_code == status, (result.stdout, result.stderr)
    return json.loads(result.stdout)


def whole(folder):
    """Return the chunks that lie there under their own names, which only whole ones have."""
    return [path for path in folder.rglob("*") if len(path.name) == 64]


async def test_a_fetch_that_is_killed_goes_on_and_writes_the_files(tmp_path):
    async with world(tmp_path) as all_:
        alpha, beta = all_.alpha, all_.beta
        config = configure(beta)
        async with alpha.serving(), beta.serving():
            await confirmed(beta)
        study = await alpha.keep(**LARGE)
        request_id = await beta.ask(study)
        fetch = ("fetch", request_id.hex(), "-c", config, "--to", tmp_path / "images")
        async with alpha.serving(server=SLOW):
            await delivered(beta, request_id)
            process = await start(*fetch)
            chunks = beta.folder / "blobs" / "chunks"
            await until(lambda: process.returncode is not None or whole(chunks))
            os.kill(process.pid, signal.SIGKILL)
            await process.communicate()
            assert process.returncode == -signal.SIGKILL
        async with alpha.serving():
            done = await told(*fetch)
            again = await told(*fetch)
        assert 0 < done["received"]["chunks_fetched"] < 4
        assert again["received"]["chunks_fetched"] == 0
        written = {path.read_bytes() for path in (tmp_path / "images").iterdir()}
        assert written == {path.read_bytes() for path in study.files.values()}
        view = await beta.request(request_id)
        assert (view.state, view.uses) == ("received", 1)  # the folder is one use
        refused = await told(*fetch[:4], "--to", tmp_path / "elsewhere")
        assert refused["received"]["chunks_fetched"] == 0
        refused = await told(*fetch[:4], "--to", tmp_path / "third", status=1)
        assert refused["error"]["code"] == "uses_spent"
        assert not (tmp_path / "third").exists()


async def test_keys_are_published_listed_and_retired(tmp_path):
    async with world(tmp_path) as all_:
        config = configure(all_.beta)
        made = await told("exchange", "keys", "publish", "--kem", "x25519", "-c", config)
        key = made["key"]["key_id"]
        assert made["key"]["state"] == "published"
        async with all_.gamma.serving(), all_.beta.serving():
            await confirmed(all_.beta)
        listed = await told("exchange", "keys", "list", "-c", config)
        assert key in listed["files"]
        assert {each["key_id"]: each["state"] for each in listed["keys"]}[key] == "confirmed"
        assert (await told("exchange", "keys", "list", "nobody", "-c", config))["keys"] == []
        retired = await told("exchange", "keys", "retire", key, "-c", config)
        assert retired["key"]["state"] == "retired"
        again = await told("exchange", "keys", "retire", key, "-c", config, status=1)
        assert again["error"]["code"] == "key_retired"


async def test_a_fetch_without_a_delivery_says_what_is_missing(tmp_path):
    async with world(tmp_path) as all_:
        config = configure(all_.beta)
        study = await all_.alpha.keep()
        request_id = await all_.beta.ask(study)
        answer = await told("fetch", request_id.hex(), "-c", config, status=3)
        assert "has not delivered the key yet" in answer["error"]["lines"][0]
        answer = await told("fetch", "ab" * 16, "-c", config, status=1)
        assert answer["error"]["code"] == "request_unknown"
