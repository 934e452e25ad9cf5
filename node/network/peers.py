"""Who the peers are, who dials whom, and what is known about a live connection."""

import ipaddress
from dataclasses import dataclass

from node.network.payloads import Hello, Role


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """A node that may connect."""

    certificate: bytes  # DER; the key in it is the identity
    name: str  # institution, for logs
    role: Role = Role.VALIDATOR  # as the chain says, whatever its HELLO does
    host: str | None = None  # DNS name, IPv4 or IPv6 address; None: it is never dialled
    port: int = 0


@dataclass(frozen=True, slots=True)
class Peer:
    """A connected, authenticated and greeted peer."""

    key: bytes  # 32 bytes, Ed25519
    name: str
    hello: Hello
    dialled: bool  # this node made the connection
    address: str  # where the peer is, as text
    role: Role = Role.VALIDATOR  # as this node knows it


@dataclass(slots=True)
class Traffic:
    """Counters of one peer since the node started, over all of its connections."""

    connections: int = 0
    frames_sent: int = 0
    bytes_sent: int = 0  # frames, before TLS
    frames_received: int = 0
    bytes_received: int = 0
    frames_dropped: int = 0  # did not fit into the send queue
    read_pauses: int = 0  # it sent more than its budget
    punishments: int = 0


@dataclass(frozen=True, slots=True)
class PeerReport:
    """One known peer as an operator sees it."""

    key: bytes
    name: str
    role: Role
    address: str  # configured, or seen when it dialled us; may be empty
    state: str  # "connected", "connecting", "waiting", "refused" or "blocked"
    height: int | None  # as of its HELLO
    round_trip_ms: float | None
    queued_bytes: int
    last_error: str  # why the last attempt or connection ended; may be empty
    traffic: Traffic


def dials(own_key: bytes, own_role: Role, peer_key: bytes, peer_role: Role) -> bool:
    """Return whether this node is the one of the pair that dials at once.

    Observers dial validators; of two validators the one with the smaller key dials; two observers
    do not connect. So both sides know, and no pair connects twice at once. Of two validators the
    other one dials only when nothing has come for a while: the first may not know where it is, as
    after a change of the validators.
    """
    if peer_role is not Role.VALIDATOR:
        return False
    return own_role is Role.OBSERVER or own_key < peer_key


def address_text(host: str, port: int) -> str:
    """Return `host:port` for a log line, with brackets around an IPv6 address."""
    try:
        bare = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return f"{host}:{port}"
    return f"[{host}]:{port}" if bare.version == 6 else f"{host}:{port}"
