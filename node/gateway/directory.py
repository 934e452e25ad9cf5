"""Which hospitals there are: by which certificates they are known, and where they serve.

Where they serve is in the config. Who they are is on the ledger: a key is an institution's as long
as one of its nodes has it (validator or observer) and the institution is not suspended. The
certificates for these keys come from the genesis, and from the cards of hospitals that joined
later, which the config names; a card may also name a key that only a gateway has.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from node.exchange.transfer.holders import Holder
from node.gateway.acting import Acting
from node.ledger.genesis import Genesis
from node.network.errors import CertificateRefused
from node.network.tls import TrustedContexts, certificate_key

log = logging.getLogger(__name__)

# After these another key may be an institution's.
CHANGES = (
    "governance_executed",
    "governance_validators_planned",
    "governance_observer_added",
    "governance_observer_removed",
    "governance_institution_suspended",
    "governance_institution_resumed",
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a hospital's exchange is, as the config says."""

    institution: str
    host: str
    port: int
    certificate: bytes | None = None  # DER, of its card


class Directory:
    """The other hospitals as of the last `refresh`; before it there are none."""

    def __init__(self, genesis: Genesis, places: Iterable[Place], own: str) -> None:
        """Raises `CertificateRefused` for a card's certificate that cannot be used."""
        self._places = {place.institution: place for place in places if place.institution != own}
        self._own = own
        nodes = (*genesis.validators, *genesis.observers)
        self._certificates = {node.public_key: node.certificate for node in nodes}
        self._cards: dict[bytes, str] = {}
        for place in self._places.values():
            if place.certificate is not None:
                key = certificate_key(place.certificate)
                self._certificates[key] = place.certificate
                self._cards[key] = place.institution
        self._institutions: dict[bytes, str] = {}

    def institution_of(self, key: bytes) -> str | None:
        """Return whose key this is now, None if nobody's."""
        return self._institutions.get(key)

    @property
    def placed(self) -> tuple[str, ...]:
        """The hospitals whose exchange the config names."""
        return tuple(self._places)

    def holder(self, institution: str) -> Holder | None:
        """Return how to reach a hospital's exchange, None if the config or the ledger does not
        say."""
        place = self._places.get(institution)
        certificates = tuple(
            self._certificates[key]
            for key, name in sorted(self._institutions.items())
            if name == institution
        )
        if place is None or not certificates:
            return None
        return Holder(institution, place.host, place.port, certificates)

    async def refresh(self, acting: Acting) -> None:
        """Learn anew from the ledger who is who. Raises what `Client` raises."""
        institutions = {each.name: each for each in await acting.institutions()}
        keys = {each.public_key: each.institution for each in await acting.client.validators()}
        for each in institutions.values():
            keys |= dict.fromkeys(each.observers, each.name)
        keys |= {key: name for key, name in self._cards.items() if key not in keys}
        self._institutions = {
            key: name
            for key, name in keys.items()
            if name != self._own
            and key in self._certificates
            and name in institutions
            and institutions[name].is_active
        }

    def apply(self, contexts: TrustedContexts, trusted: Iterable[bytes]) -> tuple[bytes, ...]:
        """Let `contexts`, which trust the keys `trusted`, trust those known now; return those that
        are trusted no longer, whose connections the caller cuts."""
        gone = tuple(key for key in trusted if key not in self._institutions)
        for key in gone:
            contexts.distrust(key)
        for key, name in self._institutions.items():
            try:
                contexts.trust(self._certificates[key])
            except CertificateRefused as error:
                log.error("a certificate cannot be trusted institution=%s: %s", name, error)
        return gone

    @property
    def keys(self) -> tuple[bytes, ...]:
        """All keys that are somebody's."""
        return tuple(self._institutions)
