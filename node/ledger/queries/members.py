"""Institutions, their members and encryption keys, and the numbers that governance may change.

Institutions and members have no order of their own but that of name and key, which never changes:
a page goes on behind the last one seen, whatever has been added in between.
"""

from collections.abc import Callable
from typing import TypeVar

from node.ledger import accounts, membership
from node.ledger.contracts import registry
from node.ledger.contracts.registry import EncryptionKey
from node.ledger.parameters import PARAMETERS, get_parameter
from node.ledger.queries import paging
from node.ledger.queries.member_views import (
    MEMBERS_LIMIT_MAX,
    EncryptionKeyPage,
    EncryptionKeyView,
    InstitutionPage,
    InstitutionView,
    MemberPage,
    MemberView,
    ParameterView,
)
from node.ledger.queries.moment import Moment
from node.ledger.queries.paging import check_institution
from node.ledger.queries.steps import NextStep, step
from storage import schema
from storage.chain import ChainStore
from storage.errors import CorruptRecord

OBSERVERS_MAX = 2_000  # looked at for one page

Answer = TypeVar("Answer")


def find_institution(moment: Moment, name: str) -> InstitutionView | None:
    """Return the institution of this name, or None. Raises `BadQuery`, `CorruptRecord`."""
    check_institution("name", name)
    return _institution(moment, name, _observers(moment.chain))


def institutions_page(moment: Moment, limit: int, cursor: str | None) -> InstitutionPage:
    """Return one page of institutions, by name. Raises `BadQuery`, `CorruptRecord`."""
    paging.check_limit(limit, MEMBERS_LIMIT_MAX)
    observers = _observers(moment.chain)

    def read(name: bytes) -> InstitutionView:
        found = _institution(moment, name.decode(), observers)
        if found is None:
            raise CorruptRecord("an index names an institution that the state does not hold")
        return found

    asked = paging.question("institutions")
    found, after = _ascend(moment.chain, accounts.INDEX_INSTITUTION, (), asked, limit, cursor, read)
    return InstitutionPage(found, after)


def members_page(moment: Moment, institution: str, limit: int, cursor: str | None) -> MemberPage:
    """Return one page of an institution's members, by key. Raises `BadQuery`, `CorruptRecord`."""
    check_institution("institution", institution)
    paging.check_limit(limit, MEMBERS_LIMIT_MAX)
    asked = paging.question("members", institution)
    found, after = _ascend(
        moment.chain,
        accounts.INDEX_MEMBER,
        (institution.encode(),),
        asked,
        limit,
        cursor,
        lambda key: _member(moment, institution, key),
    )
    return MemberPage(found, after)


def encryption_keys_page(
    moment: Moment, institution: str, limit: int, cursor: str | None
) -> EncryptionKeyPage:
    """Return one page of an institution's encryption keys, newest first.

    Raises `BadQuery`, `CorruptRecord`.
    """
    check_institution("institution", institution)
    paging.check_limit(limit, MEMBERS_LIMIT_MAX)
    asked = paging.question("encryption_keys", institution)
    below = paging.decode_cursor(asked, cursor)
    rows = paging.newest_first(
        moment.chain, registry.INDEX_ENCRYPTION_KEY, [(institution.encode(),)], below
    )

    def read(key_id: bytes) -> EncryptionKeyView:
        stored = registry.encryption_key(moment.get, institution, key_id)
        if stored is None:
            raise CorruptRecord("an index names an encryption key that the state does not hold")
        return _encryption_key(institution, key_id, stored)

    found, last = paging.cut_page(rows, limit, read, paging.ROWS_MAX)
    return EncryptionKeyPage(tuple(found), paging.next_cursor(asked, last))


def parameters(moment: Moment) -> tuple[ParameterView, ...]:
    """Return every parameter with its value, by name. Raises `CorruptRecord`."""
    return tuple(
        [
            ParameterView(name, get_parameter(moment.get, name), each.default, each.low, each.high)
            for name, each in sorted(PARAMETERS.items())
        ]
    )


def _ascend(
    chain: ChainStore,
    name: str,
    prefix: tuple[bytes, ...],
    asked: bytes,
    limit: int,
    cursor: str | None,
    read: Callable[[bytes], Answer],
) -> tuple[tuple[Answer, ...], str | None]:
    """Return a page of an index in ascending order of its last part, and the next cursor."""
    position = paging.decode_cursor(asked, cursor)
    after = None if position is None else schema.encode_parts((*prefix, position))
    rows = chain.scan_index(name, prefix, after=after, limit=limit + 1)
    found = tuple([read(row.parts[-1]) for row in rows[:limit]])
    if len(rows) <= limit:
        return found, None
    return found, paging.encode_cursor(asked, rows[limit - 1].parts[-1])


def _institution(
    moment: Moment, name: str, observers: dict[str, list[bytes]]
) -> InstitutionView | None:
    stored = accounts.find_institution(moment.get, name)
    if stored is None:
        return None
    votes = membership.reigning(moment.get, moment.height).node_of(name) is not None
    planned = membership.latest(moment.get)
    will_vote = planned.node_of(name) is not None
    return InstitutionView(
        name=name,
        display_name=stored.display_name,
        country=stored.country,
        is_active=stored.active,
        administrators=stored.administrators,
        is_validator=votes,
        validates_from=planned.height if will_vote and not votes else None,
        validates_until=planned.height - 1 if votes and not will_vote else None,
        observers=tuple(observers.get(name, ())),
    )


def _observers(chain: ChainStore) -> dict[str, list[bytes]]:
    """Return the keys of observers by institution."""
    found: dict[str, list[bytes]] = {}
    for row in chain.scan_index(membership.INDEX_OBSERVER, limit=OBSERVERS_MAX):
        node = membership.decode_observer(row.parts[0], row.value)
        found.setdefault(node.institution, []).append(node.public_key)
    return found


def _member(moment: Moment, institution: str, public_key: bytes) -> MemberView:
    stored = accounts.find_member(moment.get, institution, public_key)
    if stored is None:
        raise CorruptRecord("an index names a member that the state does not hold")
    roles = accounts.member_roles(moment.get, institution, public_key, moment.height)
    return MemberView(
        institution,
        public_key,
        stored.roles,
        stored.active,
        stored.until_height,
        roles is not None,
    )


def _encryption_key(institution: str, key_id: bytes, stored: EncryptionKey) -> EncryptionKeyView:
    state, next_step = _key_state(institution, stored)
    return EncryptionKeyView(
        institution=institution,
        key_id=key_id,
        kem=stored.kem,
        public_key=stored.public_key,
        published_height=stored.height,
        confirmed_height=stored.confirmed_height,
        retired_height=stored.retired_height,
        state=state,
        next_step=next_step,
    )


def _key_state(institution: str, stored: EncryptionKey) -> tuple[str, NextStep]:
    if stored.retired_height is not None:
        return "retired", step("nothing")
    if stored.confirmed_height is not None:
        return "confirmed", step("nothing")
    if stored.challenge is not None:
        return "challenged", step("confirm_key", (institution,), registry.KEY_ROLES)
    return "published", step("challenge_key", (institution,))
