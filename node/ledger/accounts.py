"""Institutions and their members in the state: who may send what.

    "institution/" + name               -> Institution
    "member/" + name + "/" + key (32)   -> Member

The key has a fixed length, so no name can run into it. Both rows must be there and active for a
member to act; suspending an institution is one row. A key that was rotated out acts up to and with
its last height. `administrators` counts the members who can administer the institution for good:
active, with the role, and not rotated out.

Index rows, for queries only:

    institution (name)          -> empty
    member (institution, key)   -> empty
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from consensus.wire import NotCanonical, pack, unpack
from node.ledger import genesis as origin
from storage.errors import CorruptRecord

RECORD_FORMAT = 2
ADMINISTRATOR = "administrator"
INDEX_INSTITUTION = "institution"
INDEX_MEMBER = "member"

Get: TypeAlias = Callable[[bytes], bytes | None]
IndexRow: TypeAlias = tuple[str, tuple[bytes, ...], bytes]


class Institution(NamedTuple):
    """An institution, as stored."""

    format: int
    active: bool
    display_name: str
    country: str  # ISO 3166-1 alpha-2, "ZZ" where it is not stated
    administrators: int


class Member(NamedTuple):
    """A member, as stored."""

    format: int
    active: bool
    roles: tuple[str, ...]  # ascending
    until_height: int | None  # the last height at which the key acts, once it was rotated out

    @property
    def administers(self) -> bool:
        """Whether the member counts among its institution's administrators."""
        return self.active and self.until_height is None and ADMINISTRATOR in self.roles


def institution_key(institution: str) -> bytes:
    """Return the state key of an institution."""
    return b"institution/" + institution.encode()


def member_key(institution: str, public_key: bytes) -> bytes:
    """Return the state key of a member; `public_key` has 32 bytes."""
    return b"member/" + institution.encode() + b"/" + public_key


def new_institution(
    display_name: str, country: str, administrators: int, *, active: bool = True
) -> Institution:
    """Return the record of an institution."""
    return Institution(RECORD_FORMAT, active, display_name, country, administrators)


def new_member(
    roles: Iterable[str], *, active: bool = True, until_height: int | None = None
) -> Member:
    """Return the record of a member; `roles` in any order."""
    return Member(RECORD_FORMAT, active, tuple(sorted(set(roles))), until_height)


def genesis_state(genesis: origin.Genesis) -> dict[bytes, bytes]:
    """Return the accounts that `genesis` begins with: its institutions and their members."""
    state = {}
    for institution in genesis.institutions:
        members = [(each.public_key, new_member(each.roles)) for each in institution.members]
        record = new_institution(
            institution.display_name,
            institution.country,
            sum(member.administers for _, member in members),
        )
        state[institution_key(institution.name)] = pack(record)
        for public_key, member in members:
            state[member_key(institution.name, public_key)] = pack(member)
    return state


def genesis_index(genesis: origin.Genesis) -> list[IndexRow]:
    """Return the index rows of the same."""
    rows: list[IndexRow] = []
    for institution in genesis.institutions:
        name = institution.name.encode()
        rows.append((INDEX_INSTITUTION, (name,), b""))
        rows += [(INDEX_MEMBER, (name, member.public_key), b"") for member in institution.members]
    return rows


def find_institution(get: Get, name: str) -> Institution | None:
    """Return the institution of this name, or None. Raises `CorruptRecord`."""
    row = get(institution_key(name))
    return None if row is None else decode_institution(row)


def find_member(get: Get, institution: str, public_key: bytes) -> Member | None:
    """Return the member with this key, or None. Raises `CorruptRecord`."""
    row = get(member_key(institution, public_key))
    return None if row is None else decode_member(row)


def is_active_institution(get: Get, name: str) -> bool:
    """Return whether an institution of this name is there and not suspended."""
    row = get(institution_key(name))
    return row is not None and decode_institution(row).active


def member_roles(
    get: Get, institution: str, public_key: bytes, height: int
) -> frozenset[str] | None:
    """Return what a member may do at `height`, or None if it is unknown, suspended or rotated out,
    or its institution is unknown or suspended.

    `get` reads the state. Raises `CorruptRecord`.
    """
    row = get(institution_key(institution))
    if row is None or not decode_institution(row).active:
        return None
    row = get(member_key(institution, public_key))
    if row is None:
        return None
    roles, until_height = _standing(row)
    return roles if until_height is None or height <= until_height else None


def sender_refusal(get: Get, institution: str, public_key: bytes, height: int) -> str:
    """Return the code (`errors.TEMPORARY`) that says why `member_roles` has none for a sender.

    A key after its last height is unknown: to the chain it is any other key.
    """
    found = find_institution(get, institution)
    if found is None:
        return "institution_unknown"
    if not found.active:
        return "institution_suspended"
    member = find_member(get, institution, public_key)
    if member is None or (member.until_height is not None and height > member.until_height):
        return "member_unknown"
    return "member_suspended"


# Every transaction asks, and there are few distinct rows.
@lru_cache(maxsize=1024)
def decode_institution(row: bytes) -> Institution:
    """Return the stored institution. Raises `CorruptRecord`."""
    match _unpack(row):
        case (2, bool() as active, str() as display_name, str() as country, int() as count) if (
            type(count) is int and count >= 0
        ):
            return Institution(RECORD_FORMAT, active, display_name, country, count)
    raise CorruptRecord("the state holds an institution record that cannot be read")


@lru_cache(maxsize=4096)
def decode_member(row: bytes) -> Member:
    """Return the stored member. Raises `CorruptRecord`."""
    match _unpack(row):
        case (2, bool() as active, tuple() as roles, None | int() as until_height) if type(
            until_height
        ) is not bool and all(type(role) is str for role in roles):
            return Member(RECORD_FORMAT, active, roles, until_height)
    raise CorruptRecord("the state holds a member record that cannot be read")


@lru_cache(maxsize=4096)
def _standing(row: bytes) -> tuple[frozenset[str] | None, int | None]:
    member = decode_member(row)
    return (frozenset(member.roles) if member.active else None), member.until_height


def _unpack(row: bytes) -> object:
    try:
        return unpack(row)
    except NotCanonical as error:
        raise CorruptRecord("the state holds an account record that cannot be read") from error
