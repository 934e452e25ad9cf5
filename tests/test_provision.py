"""Keys, cards, genesis and config: made once, read back, and never overwritten."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import keys, provision
from node.config import ConfigError, PeerAddress, load_config
from node.ledger import genesis_file
from node.provision import Card, InvalidCard
from node.testnet import layout

PASSPHRASE = b"correct horse battery"


@pytest.fixture(autouse=True)
def quick_passphrases(monkeypatch):
    monkeypatch.setattr(keys, "_SCRYPT_N", 2)


@pytest.fixture
def card(tmp_path):
    return provision.create_identity(tmp_path / "north", "north", "North Hospital")


def settings(**changes):
    peer = PeerAddress(institution="south", host="s.example", port=7610)
    defaults = {"listen": ("0.0.0.0", 7610), "peers": [peer], "rpc_port": 7620}
    return provision.node_config("north", **(defaults | changes))


def test_a_card_is_read_back_as_it_was_written(card, tmp_path):
    assert Card.load(tmp_path / "north" / provision.CARD) == card


def test_a_genesis_of_cards_has_no_problems_and_keeps_their_order(tmp_path):
    cards = [
        provision.create_identity(tmp_path / name, name, name, observer=name == "d")
        for name in "badc"
    ]
    genesis = provision.make_genesis("chain", cards, 1_700_000_000_000)
    assert genesis.problems() == []
    assert [v.institution for v in genesis.validators] == ["b", "a", "c"]
    assert [o.institution for o in genesis.observers] == ["d"]


@pytest.mark.parametrize(
    "name", [provision.NODE_KEY, provision.GATEWAY_KEY, provision.PASSPHRASE, provision.CARD]
)
def test_an_identity_is_made_only_where_there_is_nothing_of_one(name, tmp_path):
    (tmp_path / name).write_text("precious")
    with pytest.raises(keys.KeyFileError, match="never overwritten"):
        provision.create_identity(tmp_path, "north", "North")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_a_passphrase_that_is_given_is_not_kept(tmp_path):
    provision.create_identity(tmp_path, "north", "North", passphrase=PASSPHRASE)
    assert not (tmp_path / provision.PASSPHRASE).exists()
    provision.load_member_key(tmp_path, PASSPHRASE)


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(keys.KeyFileError, match="cannot be made"):
        provision.create_identity(tmp_path / "file" / "below", "north", "North")


@pytest.mark.parametrize("display", ["", "x" * 129, "a\x1b[31m", "a\nb"])
def test_a_display_name_that_no_genesis_takes_is_refused(display, tmp_path):
    with pytest.raises(InvalidCard):
        provision.create_identity(tmp_path, "north", display)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("country", ["", "ch", "CHE", "C1"])
def test_a_country_that_no_genesis_takes_is_refused(country, tmp_path):
    with pytest.raises(InvalidCard, match="ISO 3166-1"):
        provision.create_identity(tmp_path, "north", "North", country=country)
    assert list(tmp_path.iterdir()) == []


def test_the_country_goes_from_the_card_into_the_genesis(card, tmp_path):
    norway = provision.create_identity(tmp_path / "no", "oslo", "Oslo", country="NO")
    assert Card.load(tmp_path / "no" / provision.CARD) == norway
    made = provision.make_genesis("chain", [card, norway], 1)
    assert [each.country for each in made.institutions] == ["ZZ", "NO"]


def test_a_card_of_an_earlier_release_states_no_country(tmp_path):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(GOOD))
    assert "country" not in GOOD
    assert Card.load(path).country == "ZZ"
    path.write_text(json.dumps(GOOD | {"country": 5}))
    with pytest.raises(InvalidCard, match="country must be text"):
        Card.load(path)


def test_the_public_key_is_known_without_the_passphrase(card, tmp_path):
    assert provision.public_key_of(tmp_path / "north" / provision.NODE_KEY) == card.node_key
    other = tmp_path / "other"
    for content in (b"", b"Public-Key: xyz\n", b"-----BEGIN\n", b"Public-Key: \xff\n"):
        other.write_bytes(content)
        other.chmod(0o600)
        assert provision.public_key_of(other) is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
GOOD = {
    "version": 1,
    "institution": "north",
    "display_name": "North",
    "observer": False,
    "node_key": "00" * 32,
    "certificate": "AAAA",
    "members": [{"public_key": "11" * 32, "roles": ["gateway"]}],
}
MEMBERS = st.lists(
    VALUES | st.fixed_dictionaries({"public_key": VALUES, "roles": VALUES}), max_size=2
)
CHANGES = st.dictionaries(st.sampled_from(sorted(GOOD)), VALUES | MEMBERS, max_size=2)
CONTENTS = st.binary(max_size=200) | CHANGES.map(lambda some: json.dumps(GOOD | some).encode())


@given(content=CONTENTS)
def test_whatever_stands_in_a_card_is_a_card_or_invalid(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "hostile.json"
    path.write_bytes(content)
    try:
        card = Card.load(path)
    except InvalidCard:
        return
    provision.make_genesis("chain", [card], 1).problems()


def test_a_config_is_read_back_with_paths_that_hold_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "n").mkdir()
    monkeypatch.chdir(tmp_path)
    config = provision.write_node((tmp_path / "n").relative_to(tmp_path), settings())
    assert config == load_config(tmp_path / "n" / provision.CONFIG)
    assert config.data_dir == tmp_path / "n" / "data"
    assert config.key.passphrase_file == tmp_path / "n" / provision.PASSPHRASE
    assert os.fspath(tmp_path) not in (tmp_path / "n" / provision.CONFIG).read_text()


def test_a_config_that_no_node_takes_is_not_written(tmp_path):
    with pytest.raises(ConfigError, match=r"rpc\.port"):
        provision.write_node(tmp_path, settings(rpc_port=70_000))
    assert list(tmp_path.iterdir()) == []


def test_a_token_is_made_once(tmp_path):
    token = provision.write_node(tmp_path, settings()).rpc.token_file.read_bytes()
    assert provision.write_node(tmp_path, settings()).rpc.token_file.read_bytes() == token


def test_a_layout_is_taken_up_as_it_was_made(tmp_path):
    made = layout.create_layout(tmp_path, validators=2, observers=1)
    assert layout.load_layout(tmp_path) == made
    assert [c.institution for c in made.configs] == ["north", "south", "east"]
    ports = [port for c in made.configs for port in (c.network.listen_port, c.rpc.port)]
    assert len(set(ports)) == 6
    assert all(port in layout.PORTS for port in ports)
    assert genesis_file.load(made.genesis_file).observers[0].institution == "east"


def test_a_layout_that_was_left_half_made_is_none(tmp_path):
    layout.create_layout(tmp_path, validators=1)
    (tmp_path / provision.GENESIS).unlink()
    with pytest.raises(FileNotFoundError):
        layout.load_layout(tmp_path)


def test_names_go_on_after_the_list_of_them():
    names = [layout.institution_name(index) for index in range(25)]
    assert len(set(names)) == 25
    assert names[10] == "north-2"


@pytest.mark.parametrize(("validators", "observers"), [(0, 0), (1, -1)])
def test_a_layout_has_a_sensible_size(validators, observers, tmp_path):
    with pytest.raises(ValueError, match="at least one validator"):
        layout.create_layout(tmp_path, validators=validators, observers=observers)
