"""`tx`, `block` and `events`: what is on the chain, and who sealed it."""

import asyncio
import json
import secrets
from dataclasses import replace

import pytest

from node import keys, provision
from node.cli.context import Desk
from node.cli.seals import sealed_by
from node.config import load_config
from node.ledger import genesis_file
from node.ledger.transaction import Operation, sign_transaction
from tests.cli.conftest import asked, executed, run


def signer_of(config_file):
    folder = config_file.parent
    source = keys.PassphraseFile(folder / provision.PASSPHRASE)
    return provision.load_member_key(folder, keys.read_passphrase(source))


@pytest.fixture(scope="module")
def gateway(net):
    """North's signing key, opened once."""
    return signer_of(net.node("north").folder / provision.CONFIG)


@pytest.fixture
def sign(gateway, north):
    """Return the bytes of a transaction of north's."""
    chain_id = genesis_file.load(load_config(north).genesis_file).chain_id

    def signed(*operations, chain_id=chain_id, valid_until=9_000):
        made = sign_transaction(
            gateway.sign,
            keys.public_bytes(gateway),
            chain_id=chain_id,
            institution="north",
            valid_until=valid_until,
            operations=operations or (registration(),),
        )
        return made.raw

    return signed


def registration():
    ids = secrets.token_bytes(64)
    return Operation("study.register", (ids[:16], ids[16:32], ids[32:], "MR", "chest", 1, 1))


@pytest.fixture
def submit(north, tmp_path):
    def submitted(raw, *options, status=0):
        file = tmp_path / "transaction"
        file.write_bytes(raw)
        return asked("tx", "submit", file, "-c", north, *options, status=status)

    return submitted


def test_a_submitted_transaction_is_found_by_its_id(sign, submit, north, south):
    answer = submit(sign(registration(), registration()), "--wait", "sealed")
    assert (answer["state"], answer["code"]) == ("sealed", "ok")
    for config in (north, south):
        executed(config, answer["height"])
        view = asked("tx", answer["id"], "-c", config)
        assert (view["height"], view["position"]) == (answer["height"], answer["position"])
        assert view["transaction"]["institution"] == "north"
        assert [event["name"] for event in view["receipt"]["events"]] == ["study_registered"] * 2
    words = run("tx", "show", answer["id"], "-c", north).words
    assert "study.register" in words
    assert f"{answer['height']}, position {answer['position']}" in words


def test_the_same_bytes_again_are_the_same_transaction(sign, submit):
    raw = sign()
    first, again = submit(raw), submit(raw)
    assert (again["id"], again["height"]) == (first["id"], first["height"])


def test_a_transaction_that_a_contract_refuses_is_exit_status_1(sign, submit, north):
    operation = registration()
    submit(sign(operation))
    answer = submit(sign(operation), status=1)
    assert answer["code"] in ("study_exists", "root_exists")
    assert "at operation 0" in run("tx", answer["id"], "-c", north).words


HOSTILE = [
    (b"", 2, "is empty"),
    (b"\x00", 1, "refused (malformed)"),
    (b"\x98" * 300, 1, "refused (malformed)"),
    (b"x" * (2 << 20), 2, "no transaction is so long"),
    (b"x" * 100_000, 1, "refused (too_large)"),
]


@pytest.mark.parametrize(("raw", "status", "words"), HOSTILE, ids=lambda v: repr(v)[:20])
def test_bytes_that_are_no_transaction_are_refused(raw, status, words, north, tmp_path):
    file = tmp_path / "raw"
    file.write_bytes(raw)
    answer = run("tx", "submit", file, "-c", north)
    assert answer.status == status
    assert words in answer.words


def test_a_transaction_of_another_chain_is_refused(sign, north, tmp_path):
    file = tmp_path / "raw"
    file.write_bytes(sign(chain_id=bytes(32)))
    answer = run("tx", "submit", file, "-c", north)
    assert answer.status == 1
    assert "wrong_chain" in answer.words


def test_a_transaction_comes_from_standard_input_too(sign, north):
    answer = run("tx", "submit", "-", "-c", north, "--json", stdin=sign())
    assert json.loads(answer.out)["code"] == "ok"


def test_a_missing_file_is_a_sentence(north, tmp_path):
    answer = run("tx", "submit", tmp_path / "none", "-c", north)
    assert answer.status == 3
    assert "No such file" in answer.words


@pytest.mark.parametrize("text", ["", "00", "zz" * 32, "00" * 33, "é" * 64])
def test_what_is_no_id_is_wrong_usage(text, north):
    answer = run("tx", "show", "-c", north, "--", text)
    assert answer.status == 2
    assert "64 hexadecimal digits" in answer.words


def test_an_id_that_is_not_on_the_chain_is_exit_status_1(north):
    answer = run("tx", "00" * 32, "-c", north)
    assert answer.status == 1
    assert "no executed transaction" in answer.words


def test_a_block_names_the_institutions_that_sealed_it(sign, submit, north):
    submitted = submit(sign(), "--wait", "sealed")
    answer = asked("block", submitted["height"], "-c", north)
    assert answer["is_sealed"]
    assert len(answer["seals"]["institutions"]) == answer["seals"]["quorum"] == 3
    assert set(answer["seals"]["institutions"]) <= {"north", "south", "east", "west"}
    assert answer["block"]["header"]["height"] == submitted["height"]
    ids = [receipt["transaction_id"] for receipt in answer["block"]["receipts"]]
    assert submitted["id"] in ids
    words = run("block", submitted["height"], "-c", north).words
    assert f"{', '.join(answer['seals']['institutions'])} (quorum 3)" in words


def test_without_a_height_the_last_block_is_shown(sign, submit, north):
    submitted = submit(sign(), "--wait", "sealed")
    shown = asked("block", "-c", north)
    assert shown["block"]["header"]["height"] >= submitted["height"]


def test_the_genesis_needs_no_seals(north):
    answer = asked("block", 0, "-c", north)
    assert answer["seals"] == {"institutions": [], "quorum": 3, "problem": ""}
    assert "the genesis needs none" in run("block", 0, "-c", north).words


def test_a_block_that_is_not_there_yet_is_exit_status_1(north):
    answer = run("block", 2**40, "-c", north)
    assert answer.status == 1
    assert "no block at height" in answer.words


def test_seals_are_believed_only_if_their_signatures_verify(sign, submit, north):
    height = submit(sign(), "--wait", "sealed")["height"]
    desk = Desk.open(north)
    genesis = desk.genesis()

    async def ask():
        async with desk.client() as client:
            return await client.block(height)

    block = asyncio.run(ask())
    assert sealed_by(block, genesis).is_sealed
    seals = block.certificate.seals
    forged = ((seals[0][0], bytes(64)), *seals[1:])
    for bad in (
        replace(block.certificate, seals=forged),
        replace(block.certificate, seals=seals[1:]),
        replace(block.certificate, header=bytes(32)),
        replace(block.certificate, height=height + 1),
    ):
        found = sealed_by(replace(block, certificate=bad), genesis)
        assert not found.is_sealed
        assert found.problem
    other = replace(genesis, validators=genesis.validators[1:])
    assert "another validator set" in sealed_by(block, other).problem


def test_events_are_told_height_by_height(sign, submit, north):
    first = submit(sign(registration(), registration()))
    last = submit(sign())
    answer = run("events", "--from", first["height"], "--to", last["height"], "-c", north, "--json")
    assert answer.status == 0
    blocks = [json.loads(line) for line in answer.out.splitlines()]
    assert blocks[0]["height"] == first["height"]
    assert blocks[-1]["height"] == last["height"]
    assert {e["transaction_id"] for e in blocks[0]["events"]} == {first["id"]}
    assert [e["event"]["name"] for e in blocks[0]["events"]] == ["study_registered"] * 2


def test_events_can_be_chosen_by_name(sign, submit, north):
    height = submit(sign())["height"]
    heights = ("events", "--from", height, "--to", height, "-c", north)
    assert "study_registered" in run(*heights, "--name", "study_registered").out
    assert run(*heights, "--name", "study_retired").out == ""


def test_events_end_before_they_begin(north):
    answer = run("events", "--from", 5, "--to", 4, "-c", north)
    assert answer.status == 2
    assert "is below" in answer.words
