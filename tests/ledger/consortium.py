"""Institutions with administrators and nodes, to which operations are applied one by one."""

from functools import cache

from consensus.wire import Value
from node.ledger import accounts, membership
from node.ledger.contracts import governance, registry
from node.ledger.contracts.base import Context
from node.ledger.contracts.possession import possession_message
from node.ledger.errors import Rejected
from node.ledger.genesis import Genesis, Institution, Member, NodeIdentity
from node.ledger.state import StateView
from tests.ledger.harness import identity
from tests.vectors import make

KINDS = {kind.name: kind for kind in (*registry.KINDS, *governance.KINDS)}
CHAIN_ID = make.digest("chain")

public = cache(make.public)
certificate = cache(make.certificate)


@cache
def possession(institution: str, label: str, chain_id: bytes = CHAIN_ID) -> bytes:
    """The signature by the key `label` that makes it one of `institution`'s."""
    return make.key(label).sign(possession_message(chain_id, institution, public(label)))


def node(institution: str, label: str | None = None) -> NodeIdentity:
    """A node of `institution`; its first, unless `label` names another."""
    label = f"{institution} node" if label is None else label
    return NodeIdentity(institution, public(label), certificate(label))


def node_arguments(institution: str, label: str) -> tuple[Value, ...]:
    """The arguments of an action that brings this node."""
    return institution, public(label), certificate(label), possession(institution, label)


def new_institution_arguments(name: str, country: str = "CH") -> tuple[Value, ...]:
    """The arguments of institution_add; the first administrator's key is `name admin`."""
    admin = f"{name} admin"
    return name, name.title(), country, public(admin), possession(name, admin)


def consortium(names: str = "abcd", others: str = "xy") -> Genesis:
    """Institutions of one letter: the first vote, the others only have an administrator."""
    return Genesis(
        name="consortium",
        time_ms=1,
        institutions=tuple(
            Institution(name, name.title(), (Member(public(f"{name} admin"), ("administrator",)),))
            for name in names + others
        ),
        validators=tuple(node(name) for name in names),
    )


class World:
    """A state to which operations are applied as the executor would: all or nothing."""

    def __init__(self, genesis: Genesis | None = None) -> None:
        genesis = consortium() if genesis is None else genesis
        rows = accounts.genesis_state(genesis) | membership.genesis_rows(genesis)
        self.state = StateView(rows.get)
        self.get = self.state.get
        self.height = 7
        self.position = 0

    def apply(self, name, *arguments, by="a", height=None, roles=("administrator",)):
        """The events of one operation sent by institution `by`; raises Refused or Rejected."""
        kind = KINDS[name]
        height = self.height if height is None else height
        self.position += 1
        context = Context(
            self.state,
            height,
            1_000,
            self.position,
            by,
            public(f"{by} admin"),
            frozenset(roles),
            CHAIN_ID,
        )
        savepoint = self.state.checkpoint()
        try:
            if context.roles.isdisjoint(kind.roles):
                raise Rejected("role_missing")
            kind.apply(context, kind.parse(arguments))
        except Rejected:
            self.state.rollback(savepoint)
            raise
        return [(event.name, *event.fields) for event in context.events]

    def code(self, name, *arguments, **changes):
        """The code with which an operation is rejected; "ok" if it is not. Then nothing changed."""
        before = dict(self.state.changes()), len(self.state.index_changes())
        try:
            self.apply(name, *arguments, **changes)
        except Rejected as rejected:
            assert (dict(self.state.changes()), len(self.state.index_changes())) == before
            return rejected.code
        return "ok"

    def propose(self, action, *arguments, by="a", lifetime=1_000, **changes):
        """Propose under a new id, and return the id."""
        proposal_id = identity(("proposal", self.position))
        self.apply("governance.propose", proposal_id, action, arguments, lifetime, by=by, **changes)
        return proposal_id

    def decide(self, action, *arguments, voters="abc", height=None):
        """Propose, let `voters` approve, execute; the events of the last."""
        first, *others = voters
        asked = self.propose(action, *arguments, by=first, height=height)
        for voter in others:
            self.apply("governance.vote", asked, True, by=voter, height=height)
        return self.apply("governance.execute", asked, by=first, height=height)
