"""The genesis: what the nodes of a consortium agree on before the first block.

Its canonical encoding, hashed, is the chain id, which every transaction, vote and header names:

    pack((version, name, time_ms, protocol_version, ((parameter, value), ...),
          ((institution, display_name, country, ((member_key, (role, ...)), ...)), ...),
          ((institution, node_key, certificate), ...),      validators, in voting order
          ((institution, node_key, certificate), ...)))     observers

`genesis_file` reads and writes the same as JSON for people.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from consensus.messages import PROTOCOL_VERSION
from consensus.validators import Validator, ValidatorSet
from consensus.wire import NotCanonical, Value, pack, unpack
from node.ledger.contracts.vocabulary import COUNTRIES, COUNTRY_NOT_STATED
from node.ledger.errors import InvalidGenesis
from node.ledger.limits import LIMIT_NAMES, TIME_MS_MAX, Limits
from node.ledger.transaction import INSTITUTION
from node.ledger.verifier import is_sound_key

GENESIS_VERSION = 2
GENESIS_TAG = b"radledger/genesis/1"
ROLES = frozenset(
    {
        "administrator",
        "auditor",
        "clinician",
        "data_protection_officer",
        "gateway",
        "patient",
        "researcher",
    }
)

CHAIN_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
DISPLAY_NAME_MAX = 128  # characters
INSTITUTIONS_MAX = 1_000
MEMBERS_MAX = 10_000  # of one institution
VALIDATORS_MAX = 100
OBSERVERS_MAX = 1_000
CERTIFICATE_BYTES_MAX = 4_096

Problem: TypeAlias = tuple[str, str]  # (place, what is wrong there)
_Name = TypeVar("_Name", str, bytes)
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Member:
    """Who may sign transactions for an institution."""

    public_key: bytes  # 32 bytes, Ed25519
    roles: tuple[str, ...]  # of ROLES, ascending


@dataclass(frozen=True, slots=True)
class Institution:
    """A hospital, or another body that takes part."""

    name: str  # the slug that transactions carry
    display_name: str
    members: tuple[Member, ...]
    country: str = COUNTRY_NOT_STATED  # where it is, for policies on what crosses a border


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """A node that may connect: its key signs votes, and its certificate is pinned in TLS."""

    institution: str
    public_key: bytes  # 32 bytes, Ed25519
    certificate: bytes  # DER, for the same key


@dataclass(frozen=True, slots=True)
class Genesis:
    """Everything that a chain begins with. Built freely; `problems` says whether it can be used."""

    name: str
    time_ms: int
    institutions: tuple[Institution, ...]
    validators: tuple[NodeIdentity, ...]  # the order is that of the validator set
    observers: tuple[NodeIdentity, ...] = ()  # may connect and follow, but do not vote
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    protocol_version: int = PROTOCOL_VERSION

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return pack(
            (
                GENESIS_VERSION,
                self.name,
                self.time_ms,
                self.protocol_version,
                tuple((name, getattr(self.limits, name)) for name in LIMIT_NAMES),
                tuple(
                    (
                        i.name,
                        i.display_name,
                        i.country,
                        tuple((m.public_key, m.roles) for m in i.members),
                    )
                    for i in self.institutions
                ),
                _node_rows(self.validators),
                _node_rows(self.observers),
            )
        )

    @staticmethod
    def decode(data: bytes) -> "Genesis":
        """Return the genesis that `data` encodes. Raises `InvalidGenesis`."""
        genesis = _decode_form(data)
        raise_problems(genesis.problems())
        return genesis

    @property
    def chain_id(self) -> bytes:
        """The 32 bytes that name this chain."""
        return hashlib.sha256(GENESIS_TAG + self.encode()).digest()

    def validator_set(self) -> ValidatorSet:
        """Return the set that orders and seals from height 1 on."""
        return ValidatorSet(tuple(Validator(v.institution, v.public_key) for v in self.validators))

    def problems(self) -> list[Problem]:
        """Return all that keeps this genesis from being used, each with its place in the file."""
        return [
            *_head_problems(self),
            *((f"parameters.{name}", sentence) for name, sentence in self.limits.problems()),
            *_institution_problems(self.institutions),
            *_node_problems(self),
        ]


def is_display_name(name: str) -> bool:
    """Return whether `name` can be shown to people as the name of an institution."""
    return 1 <= len(name) <= DISPLAY_NAME_MAX and name.isprintable()


def certified_key(certificate: bytes) -> bytes | None:
    """Return the Ed25519 key (32 bytes) of a certificate in DER, or None if it is not such a one.

    Later releases of the library refuse to load a serial number that RFC 5280 §4.1.2.2 forbids;
    all nodes do so, whatever their release.
    """
    if len(certificate) > CERTIFICATE_BYTES_MAX:
        return None
    try:
        loaded = x509.load_der_x509_certificate(certificate)
        key = loaded.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        return None
    if not isinstance(key, Ed25519PublicKey) or loaded.serial_number <= 0:
        return None
    return key.public_bytes_raw()


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raise `InvalidGenesis` with all of `problems`, if there are any."""
    if problems:
        raise InvalidGenesis([f"{place}: {sentence}" for place, sentence in problems])


def _node_rows(nodes: Sequence[NodeIdentity]) -> tuple[Value, ...]:
    return tuple((node.institution, node.public_key, node.certificate) for node in nodes)


def _head_problems(genesis: Genesis) -> Iterator[Problem]:
    if CHAIN_NAME.fullmatch(genesis.name) is None:
        yield "name", f"must match {CHAIN_NAME.pattern}"
    if type(genesis.time_ms) is not int or not 1 <= genesis.time_ms <= TIME_MS_MAX:
        yield "time_ms", f"must be milliseconds since 1970, from 1 to {TIME_MS_MAX}"
    if genesis.protocol_version != PROTOCOL_VERSION:
        yield (
            "protocol_version",
            f"is {genesis.protocol_version}; this program knows version {PROTOCOL_VERSION}",
        )


def _institution_problems(institutions: Sequence[Institution]) -> Iterator[Problem]:
    yield from _count_problems("institutions", institutions, 1, INSTITUTIONS_MAX)
    names: dict[str, str] = {}
    keys: dict[bytes, str] = {}
    for place, institution in _places("institutions", institutions):
        if INSTITUTION.fullmatch(institution.name) is None:
            yield f"{place}.name", f"must match {INSTITUTION.pattern}"
        yield from _repeat_problem(f"{place}.name", institution.name, names)
        if not is_display_name(institution.display_name):
            yield f"{place}.display_name", f"must be 1 to {DISPLAY_NAME_MAX} printable characters"
        if COUNTRIES.fullmatch(institution.country) is None:
            yield f"{place}.country", "must be two letters of ISO 3166-1, or ZZ if it is not stated"
        yield from _count_problems(f"{place}.members", institution.members, 0, MEMBERS_MAX)
        for member_place, member in _places(f"{place}.members", institution.members):
            yield from _key_problems(f"{member_place}.public_key", member.public_key)
            yield from _repeat_problem(f"{member_place}.public_key", member.public_key, keys)
            yield from _role_problems(f"{member_place}.roles", member.roles)


def _role_problems(place: str, roles: Sequence[str]) -> Iterator[Problem]:
    unknown = sorted(set(roles) - ROLES)
    if unknown:
        yield (
            place,
            f"unknown {', '.join(map(repr, unknown))}; known are {', '.join(sorted(ROLES))}",
        )
    elif not roles or list(roles) != sorted(set(roles)):
        yield place, "must name at least one role, each once"


def _node_problems(genesis: Genesis) -> Iterator[Problem]:
    yield from _count_problems("validators", genesis.validators, 1, VALIDATORS_MAX)
    yield from _count_problems("observers", genesis.observers, 0, OBSERVERS_MAX)
    known = {institution.name for institution in genesis.institutions}
    keys: dict[bytes, str] = {}
    voters: dict[str, str] = {}
    for place, node in _places("validators", genesis.validators):
        # One vote for each institution, so that f counts independent parties.
        yield from _repeat_problem(f"{place}.institution", node.institution, voters)
        yield from _identity_problems(place, node, known, keys)
    for place, node in _places("observers", genesis.observers):
        yield from _identity_problems(place, node, known, keys)


def _identity_problems(
    place: str, node: NodeIdentity, known: set[str], keys: dict[bytes, str]
) -> Iterator[Problem]:
    if node.institution not in known:
        yield f"{place}.institution", "is not among the institutions of this file"
    yield from _key_problems(f"{place}.public_key", node.public_key)
    yield from _repeat_problem(f"{place}.public_key", node.public_key, keys)
    if len(node.certificate) > CERTIFICATE_BYTES_MAX:
        yield f"{place}.certificate", f"has more than {CERTIFICATE_BYTES_MAX} bytes"
    elif certified_key(node.certificate) != node.public_key:
        yield f"{place}.certificate", "is not a certificate (X.509, DER) for public_key"


def _key_problems(place: str, public_key: bytes) -> Iterator[Problem]:
    if not is_sound_key(public_key):
        yield place, "is not the 32 bytes of a usable Ed25519 public key"


def _repeat_problem(place: str, value: _Name, seen: dict[_Name, str]) -> Iterator[Problem]:
    if value in seen:
        yield place, f"is the same as {seen[value]}"
    else:
        seen[value] = place


def _count_problems(place: str, rows: Sequence[object], low: int, high: int) -> Iterator[Problem]:
    if not low <= len(rows) <= high:
        yield place, f"has {len(rows)} entries; must have {low} to {high}"


def _places(place: str, rows: Sequence[_Row]) -> Iterator[tuple[str, _Row]]:
    return ((f"{place}[{index}]", row) for index, row in enumerate(rows))


def _decode_form(data: bytes) -> Genesis:
    """Return the genesis with every field of the right type; the rules come after."""
    try:
        value = unpack(data)
    except NotCanonical as error:
        raise InvalidGenesis(["the bytes are not canonical msgpack"]) from error
    match value:
        case (int() as version, *_) if version != GENESIS_VERSION:
            raise InvalidGenesis(
                [f"genesis version {version}; this program knows version {GENESIS_VERSION}"]
            )
        case (
            int() as version,
            str() as name,
            int() as time_ms,
            int() as protocol_version,
            tuple() as parameters,
            tuple() as institutions,
            tuple() as validators,
            tuple() as observers,
        ) if not any(type(number) is bool for number in (version, time_ms, protocol_version)):
            return Genesis(
                name,
                time_ms,
                tuple(map(_decode_institution, institutions)),
                tuple(map(_decode_node, validators)),
                tuple(map(_decode_node, observers)),
                _decode_limits(parameters),
                protocol_version,
            )
    raise _not_a("genesis")


def _decode_limits(rows: tuple[Value, ...]) -> Limits:
    if len(rows) != len(LIMIT_NAMES):
        raise _not_a("list of parameters")
    values = {}
    for row, expected in zip(rows, LIMIT_NAMES, strict=True):
        match row:
            case (str() as name, int() as value) if name == expected:
                values[name] = value
            case _:
                raise _not_a("list of parameters")
    return Limits(**values)


def _decode_institution(value: Value) -> Institution:
    match value:
        case (str() as name, str() as display_name, str() as country, tuple() as members):
            return Institution(name, display_name, tuple(map(_decode_member, members)), country)
    raise _not_a("institution")


def _decode_member(value: Value) -> Member:
    match value:
        case (bytes() as public_key, tuple() as roles):
            named = tuple(role for role in roles if isinstance(role, str))
            if len(named) == len(roles):
                return Member(public_key, named)
    raise _not_a("member")


def _decode_node(value: Value) -> NodeIdentity:
    match value:
        case (str() as institution, bytes() as public_key, bytes() as certificate):
            return NodeIdentity(institution, public_key, certificate)
    raise _not_a("node")


def _not_a(what: str) -> InvalidGenesis:
    return InvalidGenesis([f"the bytes do not have the form of a {what}"])
