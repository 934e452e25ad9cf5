"""`radledger store`: what an operator sees and what the exit status says."""

import json

import pytest

from node.config import load_config
from node.exchange.store.blobs import chunk_name
from node.exchange.store.opening import open_store
from tests.cli.conftest import run
from tests.cli.test_documents import documented
from tests.exchange.store_parts import STUDY, contents, sources, study

CONFIG = """
institution = "ukaachen"
data_dir = "data"
genesis_file = "genesis.json"

[key]
file = "identity.pem"

[rpc]
token_file = "token"

[store]
folder = "blobs"
key_file = "store.db"
{master}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "node.toml"
    path.write_text(CONFIG.format(master='master_key_file = "master.key"'))
    assert run("store", "keygen", str(tmp_path / "master.key")).status == 0
    store = open_store(load_config(path).store)
    store.put(STUDY, 1, sources(study()))
    store.close()
    return path


def store(config, command, *arguments):
    return run("store", command, "--config", str(config), *arguments)


def test_usage_says_what_is_there(config):
    answer = store(config, "usage")
    assert answer.status == 0
    assert "5" in answer.words
    found = json.loads(store(config, "usage", "--json").out)
    assert (found["studies"], found["instances"], found["quota_bytes"]) == (1, 5, None)
    assert set(found) == documented("store usage")


def test_scrub_says_what_is_rotten_and_exits_with_1(config):
    assert store(config, "scrub").status == 0
    opened = open_store(load_config(config).store)
    name = chunk_name(opened.index(STUDY).chunks[0].digest)
    opened.close()
    (config.parent / "blobs" / name).write_bytes(b"rot")
    answer = store(config, "scrub", "--json")
    assert answer.status == 1
    found = json.loads(answer.out)
    assert [(each["kind"], each["study_id"]) for each in found] == [("rotten", STUDY.hex())]
    assert "fetch" in store(config, "scrub").out


def test_a_store_moves_to_another_folder(config):
    assert store(config, "migrate").status == 2
    for url in ("s3://", "http://bucket/x", "bucket"):
        answer = store(config, "migrate", "--url", url)
        assert (answer.status, "s3://bucket/prefix" in answer.err) == (2, True)
    answer = store(config, "migrate", "--folder", str(config.parent / "elsewhere"))
    assert answer.status == 0
    assert "2 blobs copied" in answer.out
    again = json.loads(
        store(config, "migrate", "--folder", str(config.parent / "elsewhere"), "--json").out
    )
    assert set(again) == documented("store migrate")
    assert (again["copied"], again["damaged"]) == (0, [])
    config.write_text(config.read_text().replace('"blobs"', '"elsewhere"'))
    opened = open_store(load_config(config).store)
    assert contents(opened) == study()
    opened.close()


def test_the_master_key_is_rotated(config):
    assert run("store", "keygen", str(config.parent / "new.key")).status == 0
    assert store(config, "rotate").status == 2
    answer = store(config, "rotate", "--key-file", str(config.parent / "new.key"))
    assert answer.status == 0
    assert "1 study keys" in answer.out
    before = store(config, "usage")
    assert before.status == 2
    assert "does not open" in before.err
    config.write_text(config.read_text().replace("master.key", "new.key"))
    assert store(config, "usage").status == 0


def test_a_wrong_place_is_said(config):
    config.write_text(config.read_text().replace('"blobs"', '"nowhere"'))
    answer = store(config, "usage")
    assert answer.status == 3
    assert "mounted" in answer.err


def test_a_node_without_a_store_is_said(config):
    config.write_text(config.read_text().partition("[store]")[0])
    answer = store(config, "usage")
    assert answer.status == 2
    assert "[store]" in answer.err
