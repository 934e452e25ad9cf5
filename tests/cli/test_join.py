"""From keys to a config: keygen, genesis, init, config check, and every mistake on the way."""

import json

import pytest

from node import keys, provision
from node.config import load_config
from node.ledger import genesis_file
from tests.cli.conftest import asked, run

NAMES = ("north", "south", "east", "west")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Four identities and their genesis, which no test changes."""
    folder = tmp_path_factory.mktemp("made")
    for name in NAMES:
        provision.create_identity(folder / name, name, f"{name} hospital")
    provision.create_identity(folder / "watcher", "watcher", "A watcher", observer=True)
    cards = [folder / name / provision.CARD for name in (*NAMES, "watcher")]
    answer = run("genesis", *cards, "--name", "consortium", "-o", folder / "genesis.json")
    assert answer.status == 0
    return folder


@pytest.fixture
def own(made, tmp_path):
    """A folder like north's after keygen, to be changed."""
    folder = tmp_path / "north"
    folder.mkdir()
    for name in (provision.NODE_KEY, provision.GATEWAY_KEY, provision.PASSPHRASE, provision.CARD):
        (folder / name).write_bytes((made / "north" / name).read_bytes())
        (folder / name).chmod(0o600)
    return folder


def card(made, name):
    return made / name / provision.CARD


PEERS = [f"{name}=ledger.{name}.example:7610" for name in ("south", "east", "west")]
PEER_OPTIONS = [part for peer in PEERS for part in ("--peer", peer)]


def test_keygen_makes_keys_that_open_and_a_card_that_is_theirs(tmp_path):
    folder = tmp_path / "deep" / "st-mary"
    names = ("--display-name", "St Mary's", "--country", "GB")
    answer = asked("keygen", "st-mary", "--folder", folder, *names)
    passphrase = (folder / provision.PASSPHRASE).read_bytes().strip()
    node = keys.load(folder / provision.NODE_KEY, passphrase)
    gateway = keys.load(folder / provision.GATEWAY_KEY, passphrase)
    assert answer["node_key"] == keys.public_bytes(node).hex()
    assert answer["gateway_key"] == keys.public_bytes(gateway).hex()
    loaded = provision.Card.load(folder / provision.CARD)
    assert (loaded.institution, loaded.display_name) == ("st-mary", "St Mary's")
    assert (loaded.country, answer["country"]) == ("GB", "GB")
    assert loaded.node_key.hex() == answer["node_key"]
    private = [p for p in folder.iterdir() if p.name != provision.CARD]
    assert all(p.stat().st_mode & 0o077 == 0 for p in private)


def test_keys_are_never_overwritten(own):
    before = {p.name: p.read_bytes() for p in own.iterdir()}
    answer = run("keygen", "north", "--folder", own)
    assert answer.status == 2
    assert "never overwritten" in answer.words
    assert {p.name: p.read_bytes() for p in own.iterdir()} == before


def test_a_half_made_identity_leaves_nothing_more_behind(tmp_path):
    (tmp_path / provision.GATEWAY_KEY).write_text("an old key")
    assert run("keygen", "north", "--folder", tmp_path).status == 2
    assert [p.name for p in tmp_path.iterdir()] == [provision.GATEWAY_KEY]


@pytest.mark.parametrize("name", ["North", "st mary", "", "-x", "ä", "x" * 33, "a/../b"])
def test_a_name_that_no_genesis_takes_is_refused_at_once(name, tmp_path):
    answer = run("keygen", "--folder", tmp_path / "new", "--", name)
    assert answer.status == 2
    assert "must match" in answer.words
    assert not (tmp_path / "new").exists()


def test_the_passphrase_may_come_from_a_file(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"correct horse battery\n")
    secret.chmod(0o600)
    folder = tmp_path / "n"
    assert run("keygen", "north", "--folder", folder, "--passphrase-file", secret).status == 0
    assert not (folder / provision.PASSPHRASE).exists()
    keys.load(folder / provision.NODE_KEY, b"correct horse battery")


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"correct horse battery", 0o644, "chmod 600"),
        (b"short", 0o600, "fewer than 8 bytes"),
        (b"", 0o600, "no passphrase"),
        (None, 0, "cannot be read"),
    ],
)
def test_a_passphrase_file_that_is_no_good_is_refused(content, mode, words, tmp_path):
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
        secret.chmod(mode)
    answer = run("keygen", "n", "--folder", tmp_path / "n", "--passphrase-file", secret)
    assert answer.status == 2
    assert words in answer.words


def test_genesis_shows_what_the_consortium_tolerates(made, tmp_path):
    output = tmp_path / "g.json"
    cards = [card(made, name) for name in (*NAMES, "watcher")]
    answer = asked("genesis", *cards, "--name", "consortium", "-o", output)
    assert (answer["n"], answer["f"], answer["quorum"]) == (4, 1, 3)
    assert answer["validators"] == list(NAMES)
    assert answer["observers"] == ["watcher"]
    assert answer["chain_id"] == genesis_file.load(output).chain_id.hex()


def test_a_genesis_is_not_replaced_by_accident(made):
    before = (made / "genesis.json").read_bytes()
    answer = run("genesis", card(made, "north"), "--name", "x", "-o", made / "genesis.json")
    assert answer.status == 2
    assert "exists" in answer.words
    assert (made / "genesis.json").read_bytes() == before


def test_fewer_than_four_validators_are_warned_of(made, tmp_path):
    cards = [card(made, "north"), card(made, "south")]
    answer = run("genesis", *cards, "--name", "two", "-o", tmp_path / "g")
    assert answer.status == 0
    assert "fewer than 4 validators" in answer.words


def test_every_problem_of_every_card_is_listed_together(made, tmp_path):
    value = json.loads(card(made, "north").read_text())
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(value | {"display_name": "", "node_key": "00" * 32}))
    south = card(made, "south")
    answer = run("genesis", bad, south, south, "--name", "No Name", "-o", tmp_path / "g")
    assert answer.status == 2
    said = answer.err
    assert "name: must match" in said
    assert f"{bad}.display_name: must be 1 to 128" in said
    assert f"{bad}.public_key: is not the 32 bytes" in said
    assert f"{south}.institution: is the same as {south}" in said
    assert not (tmp_path / "g").exists()


HOSTILE_CARDS = [
    b"",
    b"\xff\xfe",
    b"[]",
    b"null",
    b"7",
    b'"card"',
    b"[" * 100_000,
    b"{}",
    b'{"version": 2}',
    b'{"version": [1]}',
    b'{"version": 1, "institution": 5, "display_name": "x"}',
    b'{"version": 1, "institution": "x", "display_name": "x", "members": 3, "node_key": "00"}',
    b'{"version": 1, "institution": "x", "display_name": "x", "members": [1], "node_key": "00"}',
    b'{"version": 1, "institution": "x", "display_name": "x", "members": [], "node_key": "xy"}',
    b'{"version": 1, "institution": "x", "display_name": "x", "members": [], "node_key": "00",'
    b' "certificate": "?"}',
    b" " * (2 << 20),
]


@pytest.mark.parametrize("content", HOSTILE_CARDS, ids=lambda c: repr(c[:20]))
def test_a_broken_card_is_a_sentence(content, tmp_path):
    broken = tmp_path / "card.json"
    broken.write_bytes(content)
    answer = run("genesis", broken, tmp_path / "missing.json", "--name", "x", "-o", tmp_path / "g")
    assert answer.status == 2
    assert str(broken) in answer.err
    assert "missing.json: No such file" in answer.err


def test_init_writes_a_config_that_a_node_can_use(made, own):
    answer = asked("init", "-f", own, "-g", made / "genesis.json", *PEER_OPTIONS)
    config = load_config(own / provision.CONFIG)
    assert answer["role"] == "validator"
    assert answer["peers"] == ["south", "east", "west"]
    assert answer["without_address"] == ["watcher"]
    assert config.institution == "north"
    assert config.data_dir == own / "data"
    assert config.key.file == own / provision.NODE_KEY
    assert config.key.passphrase_file == own / provision.PASSPHRASE
    assert genesis_file.load(config.genesis_file).chain_id.hex() == answer["chain_id"]
    assert len(keys.load_token(config.rpc.token_file)) > 40
    checked = asked("config", "check", own / provision.CONFIG, "--open-key")
    assert checked["is_valid"]


def test_a_folder_can_move_after_init(made, own):
    run("init", "-f", own, "-g", made / "genesis.json", *PEER_OPTIONS)
    moved = own.rename(own.with_name("etc"))
    assert asked("config", "check", moved / provision.CONFIG)["is_valid"]


def test_init_replaces_a_config_only_when_told_and_keeps_the_token(made, own):
    command = ("init", "-f", own, "-g", made / "genesis.json", *PEER_OPTIONS)
    assert run(*command).status == 0
    token = (own / provision.TOKEN).read_bytes()
    again = run(*command, "--rpc-port", 9000)
    assert again.status == 2
    assert "--force" in again.words
    assert run(*command, "--rpc-port", 9000, "--force").status == 0
    assert load_config(own / provision.CONFIG).rpc.port == 9000
    assert (own / provision.TOKEN).read_bytes() == token


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--peer", "mars=h:1"], "mars: is not in the genesis"),
        (["--peer", "north=h:1"], "is this node itself"),
        (["--peer", "south=h:1", "--peer", "south=h:2"], "given 2 times"),
        (["--peer", "south"], "institution=host:port"),
        (["--peer", "south=h"], "is not host:port"),
        (["--peer", "south=h:70000"], "is not host:port"),
        (["--peer", "south=::1:7610"], "in brackets"),
        (["--peer", "south=a b:7610"], "does not have the form"),
        (["--peer", "south=h:0"], "is below 1"),
        (["--listen", "nowhere"], "is not host:port"),
        (["--listen", "0.0.0.0:7610", "--rpc-port", "0"], "Invalid value for '--rpc-port'"),
    ],
)
def test_init_refuses_what_does_not_fit_and_writes_nothing(options, words, made, own):
    before = sorted(own.iterdir())
    answer = run("init", "-f", own, "-g", made / "genesis.json", *options)
    assert answer.status == 2
    assert words in answer.words
    assert sorted(own.iterdir()) == before


def test_init_refuses_a_genesis_that_does_not_have_this_key(made, own, tmp_path):
    others = [card(made, name) for name in ("south", "east")]
    run("genesis", *others, "--name", "others", "-o", tmp_path / "others.json")
    answer = run("init", "-f", own, "-g", tmp_path / "others.json")
    assert answer.status == 2
    assert "does not list the key of north" in answer.words


def test_init_never_swaps_the_genesis_of_a_folder(made, own, tmp_path):
    run("genesis", card(made, "north"), "--name", "other", "-o", own / provision.GENESIS)
    before = (own / provision.GENESIS).read_bytes()
    answer = run("init", "-f", own, "-g", made / "genesis.json")
    assert answer.status == 2
    assert "another chain" in answer.words
    assert (own / provision.GENESIS).read_bytes() == before


def test_init_asks_for_keygen_first(made, tmp_path):
    answer = run("init", "-f", tmp_path, "-g", made / "genesis.json")
    assert answer.status == 2
    assert "radledger keygen" in answer.words


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b'{"format": "x"}', b"\x00\xff"])
def test_a_broken_genesis_is_a_list_of_problems(content, own, tmp_path):
    broken = tmp_path / "g.json"
    broken.write_bytes(content)
    answer = run("init", "-f", own, "-g", broken)
    assert answer.status == 2
    assert "the genesis cannot be used" in answer.words


@pytest.fixture
def ready(made, own):
    """A folder with a config that is valid."""
    run("init", "-f", own, "-g", made / "genesis.json", *PEER_OPTIONS)
    return own


def rewrite(folder, old, new):
    file = folder / provision.CONFIG
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def problems(folder):
    answer = asked("config", "check", folder / provision.CONFIG, status=2)
    assert not answer["is_valid"]
    return {(p["path"], p["line"] > 0): p["sentence"] for p in answer["problems"]}


def test_all_mistakes_of_a_config_are_listed_with_their_lines(ready):
    rewrite(ready, "[network]", "[network]\nlisten_prot = 7")
    rewrite(ready, 'institution = "north"', 'institution = "North!"')
    found = problems(ready)
    assert "did you mean listen_port?" in found["network.listen_prot", True]
    assert "does not have the form" in found["institution", True]
    answer = run("config", "check", ready / provision.CONFIG)
    assert f"{ready / provision.CONFIG}:1: institution:" in answer.err


def test_files_that_a_config_names_are_checked_too(ready):
    (ready / provision.TOKEN).chmod(0o644)
    (ready / provision.GATEWAY_KEY).unlink()
    (ready / provision.PASSPHRASE).write_text("")
    found = problems(ready)
    assert "chmod 600" in found["rpc.token_file", False]
    assert "cannot be read" in found["key.file", False]
    assert "no passphrase" in found["key.passphrase_file", False]


def test_a_key_that_the_genesis_does_not_know_is_found_without_opening_it(ready, made):
    stranger = (made / "south" / provision.NODE_KEY).read_bytes()
    (ready / provision.NODE_KEY).write_bytes(stranger)
    assert "another key for north" in problems(ready)["key.file", False]


def test_an_institution_that_the_genesis_does_not_know_is_found(ready):
    rewrite(ready, 'institution = "north"', 'institution = "mars"')
    assert "lists north, south" in problems(ready)["institution", False]


def test_a_wrong_passphrase_is_found_when_asked(ready):
    (ready / provision.PASSPHRASE).write_text("something else entirely")
    assert asked("config", "check", ready / provision.CONFIG)["is_valid"]
    answer = run("config", "check", ready / provision.CONFIG, "--open-key")
    assert answer.status == 2
    assert "passphrase is wrong" in answer.words
    assert "something else" not in answer.words


def test_a_peer_without_an_address_is_a_note_only(ready):
    rewrite(ready, '"west"', '"mars"')
    answer = asked("config", "check", ready / provision.CONFIG)
    assert answer["is_valid"]
    said = [warning["sentence"] for warning in answer["warnings"]]
    assert any("mars is not in the genesis" in sentence for sentence in said)
    assert any("no address for west" in sentence for sentence in said)


def test_a_genesis_that_cannot_be_used_is_a_problem_of_the_config(ready):
    (ready / provision.GENESIS).write_text("{}")
    assert problems(ready)[str(ready / provision.GENESIS), False]


@pytest.mark.parametrize("command", [["start"], ["status", "-c"], ["config", "check"]])
def test_a_config_that_is_not_there_is_a_sentence(command, tmp_path):
    answer = run(*command, tmp_path / "none.toml")
    assert answer.status == 2
    assert "none.toml" in answer.words
    assert "cannot be read" in answer.words


def test_start_refuses_a_key_that_is_not_in_the_genesis(ready, made):
    for name in (provision.NODE_KEY, provision.PASSPHRASE):
        (ready / name).write_bytes((made / "watcher" / name).read_bytes())
    answer = run("start", ready / provision.CONFIG)
    assert answer.status == 2
    assert "lists this key for watcher" in answer.words


@pytest.fixture
def newcomer(made, tmp_path):
    """Keys of a hospital that the genesis does not know."""
    folder = tmp_path / "hill"
    asked("keygen", "hill", "--folder", folder)
    return folder


def test_a_candidate_gets_a_config_although_no_genesis_lists_it(newcomer, made):
    options = ("--folder", newcomer, "--genesis", made / "genesis.json", *PEER_OPTIONS)
    assert run("init", *options).status == 2
    # Whoever came in by a vote before is in no genesis, either.
    late = ("--peer", "late=ledger.late.example:7610")
    answer = asked("init", "--candidate", *options, *late)
    assert (answer["role"], answer["peers"][-1]) == ("candidate", "late")
    checked = asked("config", "check", newcomer / provision.CONFIG)
    assert checked["is_valid"]
    notes = {note["path"]: note["sentence"] for note in checked["warnings"]}
    assert "once a vote has let it in" in notes["key.file"]
    (newcomer / provision.CARD).unlink()
    assert not asked("config", "check", newcomer / provision.CONFIG, status=2)["is_valid"]


def test_a_node_of_the_genesis_is_no_candidate(own, made):
    options = ("--folder", own, "--genesis", made / "genesis.json", *PEER_OPTIONS)
    answer = run("init", "--candidate", *options)
    assert answer.status == 2
    assert "leave --candidate out" in answer.words


def test_the_human_answer_to_a_candidate_says_how_it_is_voted_in(newcomer, made):
    options = ("--folder", newcomer, "--genesis", made / "genesis.json", *PEER_OPTIONS)
    assert "radledger gov application" in run("init", "--candidate", *options).words
