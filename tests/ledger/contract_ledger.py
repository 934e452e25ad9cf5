"""Contracts without a chain: operations applied one by one to a state in memory."""

import hashlib

from consensus.wire import pack
from node.ledger import accounts
from node.ledger.contracts.base import INDEX_TRAIL, Context
from node.ledger.errors import Rejected
from node.ledger.state import StateView

INSTITUTIONS = ("charite", "ukaachen", "third")


def digest(label: object) -> bytes:
    return hashlib.sha256(str(label).encode()).digest()


def identity(label: object) -> bytes:
    return digest(label)[:16]


class Ledger:
    """Applies operations of `kinds` as any institution, at any height; each is a transaction."""

    def __init__(self, kinds, institutions=INSTITUTIONS):
        self.kinds = {kind.name: kind for kind in kinds}
        rows = {
            accounts.institution_key(name): pack(accounts.new_institution(name, "DE", 1))
            for name in institutions
        }
        self.state = StateView(rows.get)
        self.position = 0

    def add_member(self, institution, key, *roles, active=True):
        row = pack(accounts.new_member(roles, active=active))
        self.state.put(accounts.member_key(institution, key), row)

    def apply(
        self,
        name,
        *arguments,
        institution="charite",
        key=bytes(32),
        roles=("gateway",),
        height=7,
        time_ms=1_000,
    ):
        """Return the events as (name, fields), or raise `Rejected` and leave nothing behind."""
        kind = self.kinds[name]
        if kind.roles.isdisjoint(roles):
            raise Rejected("role_missing")
        self.position += 1
        context = Context(
            self.state,
            height,
            time_ms,
            self.position,
            institution,
            key,
            frozenset(roles),
            digest("chain"),
        )
        savepoint = self.state.checkpoint()
        try:
            kind.apply(context, kind.parse(arguments))
        except Rejected:
            self.state.rollback(savepoint)
            raise
        return [(event.name, event.fields) for event in context.events]

    def refusal(self, *operation, **sender):
        """Return the code with which an operation is rejected; checks that it changes nothing."""
        before = self.state.changes(), list(self.state.index_changes())
        try:
            self.apply(*operation, **sender)
        except Rejected as rejected:
            # A contract checks before it writes, so there was nothing to roll back either.
            assert (self.state.changes(), self.state.index_changes()) == before
            return rejected.code
        return None

    def index(self, name):
        """Return the rows of one index as {parts: value}."""
        rows = {}
        for each, parts, value in self.state.index_changes():
            if each == name:
                rows[parts] = value
        return {parts: value for parts, value in rows.items() if value is not None}

    def trail(self, study_id):
        """Return how many events the audit trail of a study shows."""
        return sum(parts[0] == study_id for parts in self.index(INDEX_TRAIL))
