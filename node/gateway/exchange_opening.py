"""The exchange that the config describes."""

from node import provision
from node.config.model import ExchangeConfig, NodeConfig, SearchConfig
from node.exchange.federation.answering import Offer
from node.exchange.federation.fields import Field
from node.exchange.store.store import StudyStore
from node.exchange.transfer.holders import Identity
from node.exchange.transfer.limits import ClientLimits, ServerLimits
from node.gateway.acting import Acting
from node.gateway.custodian import manifests_of
from node.gateway.directory import Place
from node.gateway.exchange import Belongings, ExchangeSettings
from node.gateway.finding import FindingSettings
from node.imaging.vault import Vault
from node.keys import load
from node.ledger.genesis import Genesis
from node.provision import CARD, Card, InvalidCard


def belongings_of(
    config: NodeConfig,
    acting: Acting,
    store: StudyStore,
    vault: Vault,
    genesis: Genesis,
) -> Belongings:
    """Return what `Exchange` is given, the node's own key as this hospital's identity.

    Opening keys takes a tenth of a second. Raises `KeyFileError`, `InvalidCard`.
    """
    passphrase = provision.passphrase_of(config.key)
    identity = identity_of(config, passphrase)
    return Belongings(acting, store, manifests_of(vault), identity, genesis, passphrase)


def identity_of(config: NodeConfig, passphrase: bytes) -> Identity:
    """Return the key and the certificate by which others know this hospital.

    The certificate is that of the card beside the key. Raises `KeyFileError`, `InvalidCard`.
    """
    private = load(config.key.file, passphrase)
    card_file = config.key.file.parent / CARD
    card = Card.load(card_file)
    if card.node_key != private.public_key().public_bytes_raw():
        raise InvalidCard(f"{card_file}: the card of another key than {config.key.file}")
    return Identity(private, card.certificate)


def settings_of(config: ExchangeConfig) -> ExchangeSettings:
    """Return the settings. Raises `InvalidCard` for a peer's card that cannot be read."""
    places = []
    for peer in config.peers:
        certificate = None
        if peer.card_file is not None:
            card = Card.load(peer.card_file)
            if card.institution != peer.institution:
                raise InvalidCard(f"{peer.card_file}: not the card of {peer.institution}")
            certificate = card.certificate
        places.append(Place(peer.institution, peer.host, peer.port, certificate))
    rate = config.rate_bytes_per_second
    return ExchangeSettings(
        folder=config.folder,
        host=config.listen_host,
        port=config.listen_port,
        places=tuple(places),
        fetch_at_once=config.fetch_at_once,
        server=ServerLimits() if rate is None else ServerLimits(rate_bytes_per_s=rate),
        client=ClientLimits(parallel=config.parallel),
        finding=_finding(config.search),
    )


def _finding(config: SearchConfig) -> FindingSettings:
    return FindingSettings(
        is_answering=config.answers,
        offer=Offer(
            fields=frozenset(map(Field, config.fields)),
            counts=config.counts,
            askable=config.include_askable,
            least=config.count_min,
            studies_max=config.results_max,
            examined_max=config.examined_max,
            answer_ms=config.answer_timeout_ms,
        ),
        added_words=config.words,
        per_minute=config.questions_per_minute,
    )
