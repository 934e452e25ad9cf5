"""Who is connected: which key each connection proved, and when it last asked for something."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from node.exchange.transfer.limits import ServerLimits
from node.exchange.transfer.ports import Ground, InstitutionOf
from node.network.errors import CertificateRefused
from node.network.tls import certificate_key


@dataclass(slots=True, eq=False)
class Peer:
    """One connection; it asks for one thing after another."""

    transport: asyncio.Transport
    key: bytes  # 32 bytes, of the certificate that it showed
    institution: str  # of that key, as of the last request
    active_s: float
    busy: bool = False
    ground: Ground | None = None  # of what is being answered


class Connections:
    """The open connections, by the protocol object that serves each."""

    def __init__(self, institution_of: InstitutionOf, limits: ServerLimits) -> None:
        self._institution_of = institution_of
        self._limits = limits
        self._peers: dict[asyncio.BaseProtocol, Peer] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(tuple(self._peers.values()))

    def admit(
        self, transport: asyncio.Transport, protocol: asyncio.BaseProtocol, now_s: float
    ) -> tuple[str | None, str]:
        """Take a connection in, or cut it; return its institution and why it was cut, or "".

        Again is no error: the first request may be read before anybody heard of the connection.
        """
        known = self._peers.get(protocol)
        if known is not None:
            return known.institution, ""
        tls = transport.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True) if tls is not None else None
        try:
            key = certificate_key(der or b"")
        except CertificateRefused:
            transport.abort()
            return None, "certificate_refused"
        institution = self._institution_of(key)
        if institution is None:
            transport.abort()
            return None, "peer_unknown"
        self.prune(now_s)
        held = sum(peer.institution == institution for peer in self)
        if held >= self._limits.peer_connections_max:
            transport.abort()
            return institution, "too_many_connections"
        self._peers[protocol] = Peer(transport, key, institution, now_s)
        return institution, ""

    def find(self, protocol: asyncio.BaseProtocol) -> Peer | None:
        """Return the connection of a protocol object that was admitted."""
        return self._peers.get(protocol)

    def prune(self, now_s: float) -> None:
        """Forget what is closed, and cut what asks for nothing: silent sockets, and requests that
        never become whole."""
        idle_s = self._limits.idle_timeout_ms / 1000
        for protocol, peer in tuple(self._peers.items()):
            if not peer.busy and now_s - peer.active_s > idle_s:
                peer.transport.abort()
            if peer.transport.is_closing():
                del self._peers[protocol]
