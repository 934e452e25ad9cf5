"""Institutions and their members in the state: who may send what.

    "institution/" + name               -> (format, active)
    "member/" + name + "/" + key (32)   -> (format, active, roles in ascending order)

The key has a fixed length, so no name can run into it. Both rows must be there and active for a
member to act; suspending an institution is one row.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeAlias

from consensus.wire import NotCanonical, pack, unpack
from node.ledger.genesis import Genesis
from storage.errors import CorruptRecord

RECORD_FORMAT = 1

Get: TypeAlias = Callable[[bytes], bytes | None]


def institution_key(institution: str) -> bytes:
    """Return the state key of an institution."""
    return b"institution/" + institution.encode()


def member_key(institution: str, public_key: bytes) -> bytes:
    """Return the state key of a member; `public_key` has 32 bytes."""
    return b"member/" + institution.encode() + b"/" + public_key


def encode_institution(*, active: bool = True) -> bytes:
    """Return the row of an institution."""
    return pack((RECORD_FORMAT, active))


def encode_member(roles: Iterable[str], *, active: bool = True) -> bytes:
    """Return the row of a member."""
    return pack((RECORD_FORMAT, active, tuple(sorted(set(roles)))))


def genesis_state(genesis: Genesis) -> dict[bytes, bytes]:
    """Return the state that `genesis` begins with: its institutions and their members."""
    state = {}
    for institution in genesis.institutions:
        state[institution_key(institution.name)] = encode_institution()
        for member in institution.members:
            state[member_key(institution.name, member.public_key)] = encode_member(member.roles)
    return state


def member_roles(get: Get, institution: str, public_key: bytes) -> frozenset[str] | None:
    """Return the roles of a member, or None if it or its institution is unknown or suspended.

    `get` reads the state. Raises `CorruptRecord`.
    """
    row = get(institution_key(institution))
    if row is None or not _is_active_institution(row):
        return None
    row = get(member_key(institution, public_key))
    return None if row is None else _active_roles(row)


def sender_refusal(get: Get, institution: str, public_key: bytes) -> str:
    """Return the code (`errors.TEMPORARY`) that says why `member_roles` has none for a sender."""
    row = get(institution_key(institution))
    if row is None:
        return "institution_unknown"
    if not _is_active_institution(row):
        return "institution_suspended"
    row = get(member_key(institution, public_key))
    return "member_unknown" if row is None else "member_suspended"


# Every transaction asks, and there are few distinct rows.
@lru_cache(maxsize=1024)
def _is_active_institution(row: bytes) -> bool:
    match _unpack(row):
        case (1, bool(active)):
            return active
    raise CorruptRecord("the state holds an institution record that cannot be read")


@lru_cache(maxsize=1024)
def _active_roles(row: bytes) -> frozenset[str] | None:
    match _unpack(row):
        case (1, bool(active), tuple(roles)):
            return frozenset(map(str, roles)) if active else None
    raise CorruptRecord("the state holds a member record that cannot be read")


def _unpack(row: bytes) -> object:
    try:
        return unpack(row)
    except NotCanonical as error:
        raise CorruptRecord("the state holds an account record that cannot be read") from error
