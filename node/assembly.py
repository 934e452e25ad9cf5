"""What a node's settings, genesis and database mean to the parts that `daemon` builds."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consensus.messages import SealCertificate
from consensus.options import Options
from consensus.validators import ValidatorSchedule
from node import keys
from node.config import NodeConfig
from node.ledger.block import decode_certificate, header_digest
from node.ledger.execution import Executor
from node.ledger.genesis import Genesis
from node.ledger.mempool import MempoolBounds
from node.network.options import TransportOptions
from node.provision import CARD, Card, InvalidCard, passphrase_of
from node.replication.nodes import find_node
from storage.chain import ChainStore
from storage.kv import KeyValueStore, WriteBatch
from storage.state import StateTree


class StartRefused(Exception):
    """The node cannot start with these settings; the text says which and what to do."""


def private_key(config: NodeConfig) -> Ed25519PrivateKey:
    """Return the node's key. Raises `KeyFileError`."""
    return keys.load(config.key.file, passphrase_of(config.key))


def open_executor(
    store: KeyValueStore, chain: ChainStore, genesis: Genesis, schedule: ValidatorSchedule
) -> Executor:
    """Return the executor at the head of the chain, with the genesis block written if need be.

    All validator sets that the state has are in `schedule` then. Raises `StorageError`.
    """
    executor = Executor(chain, StateTree(store), genesis, schedule)
    if not executor.is_initialised:
        rows = WriteBatch()
        first = executor.initialise(rows)
        store.write(rows, sync=True)
        executor.adopt(first)
    return executor


def last_certificate(chain: ChainStore, executor: Executor) -> SealCertificate:
    """Return the newest stored certificate; the genesis header is its own."""
    for height in range(executor.head.height, 0, -1):
        encoded = chain.certificate(height)
        if encoded is not None:
            return decode_certificate(encoded)
    return SealCertificate(0, header_digest(chain.header(0) or b""), ())


def own_certificate(chain: ChainStore, public_key: bytes, config: NodeConfig) -> bytes:
    """Return what this node shows to its peers: as the chain has it, or as its card says when the
    chain does not know the node yet. Then it follows, as soon as the others list it.

    Raises `StartRefused`.
    """
    node = find_node(chain, public_key)
    if node is None:
        return _own_card(public_key, config).certificate
    if node.institution != config.institution:
        raise StartRefused(
            f"the chain lists this key for {node.institution}, but the config says "
            f"institution = {config.institution!r}"
        )
    return node.certificate


def _own_card(public_key: bytes, config: NodeConfig) -> Card:
    path = config.key.file.with_name(CARD)
    advice = (
        "use the key whose card went into the genesis or was voted in, or keep the card of this "
        f"one beside it as {path}"
    )
    try:
        card = Card.load(path)
    except InvalidCard as error:
        raise StartRefused(
            f"the chain does not list this node's key, and there is no card: {error}; {advice}"
        ) from error
    if (card.node_key, card.institution) != (public_key, config.institution):
        raise StartRefused(
            f"the chain does not list this node's key, and {path} is of another key or "
            f"institution; {advice}"
        )
    return card


def replica_options(config: NodeConfig) -> Options:
    """Return the options of consensus."""
    consensus = config.consensus
    return Options(
        view_timeout_ms=consensus.view_timeout_ms,
        view_timeout_max_ms=consensus.view_timeout_ms_max,
        resend_ms=consensus.resend_interval_ms,
    )


def mempool_bounds(config: NodeConfig) -> MempoolBounds:
    """Return the bounds of the mempool."""
    mempool = config.mempool
    return MempoolBounds(
        count_max=mempool.transactions_max,
        bytes_max=mempool.bytes_max,
        institution_count_max=mempool.transactions_per_institution_max,
        ttl_ms=mempool.age_ms_max,
    )


def transport_options(config: NodeConfig) -> TransportOptions:
    """Return the options of the transport."""
    network = config.network
    return TransportOptions(
        dial_timeout_ms=network.connect_timeout_ms,
        backoff_max_ms=network.reconnect_delay_ms_max,
        silence_max_ms=network.idle_timeout_ms,
        connections_max=network.inbound_connections_max,
    )
