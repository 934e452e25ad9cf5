"""How a node finds its own place when it starts."""

from dataclasses import replace

import pytest

from consensus.validators import ValidatorSchedule
from node import assembly, keys, provision
from node.ledger import genesis_file
from node.testnet.layout import create_layout, extend_layout, rotate_key
from storage.chain import ChainStore
from storage.memory import MemoryStore


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return create_layout(tmp_path_factory.mktemp("net"), validators=2, observers=1)


@pytest.fixture
def chain(layout):
    store = MemoryStore()
    genesis = genesis_file.load(layout.genesis_file)
    chain = ChainStore(store)
    assembly.open_executor(store, chain, genesis, ValidatorSchedule(genesis.validator_set()))
    return chain


def own_certificate(chain, config):
    return assembly.own_certificate(chain, keys.public_bytes(assembly.private_key(config)), config)


@pytest.mark.parametrize("index", [1, 2])
def test_a_node_of_the_genesis_shows_the_certificate_that_the_chain_has(layout, chain, index):
    (layout.node_folder(index) / provision.CARD).unlink()  # it is not needed
    genesis = genesis_file.load(layout.genesis_file)
    expected = (*genesis.validators, *genesis.observers)[index].certificate
    assert own_certificate(chain, layout.configs[index]) == expected


def test_a_key_of_another_institution_is_refused(layout, chain):
    config = replace(layout.configs[1], institution="north")
    with pytest.raises(assembly.StartRefused, match="lists this key for south"):
        own_certificate(chain, config)


def test_a_node_that_the_chain_does_not_know_yet_shows_its_card(layout, chain):
    extended = extend_layout(layout, "hill")
    card = provision.Card.load(extended.node_folder(3) / provision.CARD)
    assert own_certificate(chain, extended.configs[3]) == card.certificate


def test_so_does_a_node_with_a_new_key(layout, chain):
    rotated, card = rotate_key(layout, 0)
    assert own_certificate(chain, rotated.configs[0]) == card.certificate


@pytest.mark.parametrize("lack", ["none", "of another key", "of another institution"])
def test_without_a_card_that_fits_it_does_not_start(layout, chain, tmp_path, lack):
    rotated, card = rotate_key(layout, 0)
    path = rotated.configs[0].key.file.with_name(provision.CARD)
    match lack:
        case "none":
            path.unlink()
        case "of another key":
            replace(card, node_key=bytes(32)).save(path)
        case _:
            replace(card, institution="hill").save(path)
    with pytest.raises(assembly.StartRefused, match="does not list this node's key") as refused:
        own_certificate(chain, rotated.configs[0])
    assert str(path) in str(refused.value)


def test_a_new_chain_begins_with_the_genesis_as_its_last_certificate(layout, chain):
    genesis = genesis_file.load(layout.genesis_file)
    store = MemoryStore()
    fresh = ChainStore(store)
    schedule = ValidatorSchedule(genesis.validator_set())
    executor = assembly.open_executor(store, fresh, genesis, schedule)
    certificate = assembly.last_certificate(fresh, executor)
    assert (certificate.height, certificate.header) == (0, executor.head.digest)
