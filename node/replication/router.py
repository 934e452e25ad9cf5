"""Hands each frame of a peer to the part that it is for."""

from collections.abc import Callable, Mapping

from consensus.errors import InvalidMessage
from node.network.errors import InvalidFrame
from node.network.frames import Kind
from node.network.gossip import TransactionGossip
from node.network.payloads import Role
from node.network.peers import Peer
from node.replication.catch_up import CatchUp
from node.replication.driver import Driver


class Router:
    """The transport's handler. Parts are set once, before the transport starts."""

    def __init__(self) -> None:
        self._routes: Mapping[Kind, Callable[[bytes, bytes], None]] = {}
        self._gossip: TransactionGossip | None = None
        self._catch_up: CatchUp | None = None

    def connect(self, driver: Driver, gossip: TransactionGossip, catch_up: CatchUp) -> None:
        """Say who gets what."""
        self._gossip = gossip
        self._catch_up = catch_up
        self._routes = {
            Kind.TRANSACTIONS: gossip.transactions_frame,
            Kind.ANNOUNCE: gossip.announce_frame,
            Kind.FETCH_TRANSACTIONS: gossip.fetch_frame,
            Kind.PROPOSAL: driver.proposal_frame,
            Kind.CONSENSUS: driver.consensus_frame,
            Kind.FETCH_PAYLOAD: driver.payload_request_frame,
            Kind.PAYLOAD: driver.payload_frame,
            Kind.STATUS: catch_up.status_frame,
            Kind.FETCH_BLOCKS: catch_up.fetch_frame,
            Kind.BLOCKS: catch_up.blocks_frame,
            Kind.SEALED: catch_up.sealed_frame,
        }

    def peer_connected(self, peer: Peer) -> None:
        """A peer can be sent to."""
        if self._gossip is not None and self._catch_up is not None:
            is_validator = peer.role is Role.VALIDATOR
            self._gossip.peer_connected(peer.key, is_validator=is_validator)
            self._catch_up.peer_connected(peer)

    def peer_changed(self, peer: Peer) -> None:
        """A connected peer has another role."""
        if self._gossip is not None:
            self._gossip.peer_changed(peer.key, is_validator=peer.role is Role.VALIDATOR)

    def peer_disconnected(self, peer: Peer) -> None:
        """A connection ended."""
        if self._gossip is not None and self._catch_up is not None:
            self._gossip.peer_disconnected(peer.key)
            self._catch_up.peer_disconnected(peer)

    def frame(self, key: bytes, kind: Kind, payload: bytes) -> None:
        """One frame. Raises `InvalidFrame` when its payload is not what its kind allows."""
        route = self._routes.get(kind)
        if route is None:
            raise InvalidFrame(f"{kind.name} is not for this node")
        try:
            route(key, payload)
        except InvalidMessage as error:
            raise InvalidFrame(f"{kind.name}: {error}") from error
