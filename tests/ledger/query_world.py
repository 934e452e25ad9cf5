"""A consortium on a real chain, for questions: every block is executed and stored."""

from node import keys
from node.ledger.contracts.possession import possession_message
from node.ledger.genesis import Genesis, Institution, Member, NodeIdentity
from node.ledger.queries.moment import moment_of
from storage.chain import ChainStore
from tests.ledger.harness import Chain, digest, identity, register, transaction

CUSTODIAN, ASKER, THIRD, FOURTH = "charite", "ukaachen", "ukbonn", "ukessen"
NAMES = (CUSTODIAN, ASKER, THIRD, FOURTH)
ROLES = (
    "administrator",
    "auditor",
    "clinician",
    "data_protection_officer",
    "gateway",
    "patient",
    "researcher",
)
FORM = digest("form")
ALWAYS = "true"


def member_key(institution, role):
    return digest(("member", institution, role))


def node_key(institution):
    return digest(("node", institution))


GENESIS = Genesis(
    name="test",
    time_ms=1_700_000_000_000,
    institutions=tuple(
        Institution(
            name,
            name.title(),
            tuple(Member(member_key(name, role), (role,)) for role in ROLES),
            "DE",
        )
        for name in NAMES
    ),
    validators=tuple(NodeIdentity(name, node_key(name), b"") for name in NAMES),
    observers=(NodeIdentity(THIRD, digest("observer"), b""),),
)


class World(Chain):
    """Four hospitals, each with a validator and a member for each role."""

    def __init__(self, store=None):
        super().__init__(store, GENESIS)

    @property
    def height(self):
        return self.executor.head.height

    def moment(self):
        """What queries see now."""
        return moment_of(ChainStore(self.store.snapshot()))

    def send(self, institution, role, *operations):
        """One block with one transaction, which must succeed."""
        [code] = self.codes(self.sent(institution, role, *operations))
        assert code == "ok", code

    def sent(self, institution, role, *operations):
        return transaction(
            *operations,
            institution=institution,
            key=member_key(institution, role),
            valid_until=self.height + 500,
            genesis=GENESIS,
        )

    def idle(self, heights):
        for _ in range(heights):
            self.add_null()

    def study(self, label="a", **changes):
        self.send(CUSTODIAN, "gateway", register(label, **changes))
        return identity(("study", label))

    def grant(self, label="c", subject="a", *, verb="grant", **changes):
        """A rule of consent by the signed form."""
        fields = {
            "consent_id": identity(("consent", label)),
            "subject_id": identity(("subject", subject)),
            "study_id": None,
            "recipient": None,
            "purposes": (),
            "until": None,
            "form": FORM,
        } | changes
        self.send(CUSTODIAN, "clinician", (f"consent.{verb}", *fields.values()))
        return fields["consent_id"]

    def publish(self, name, effect="permit", consent="required", condition=ALWAYS, by=CUSTODIAN):
        rule = (name, effect, consent, condition)
        self.send(by, "administrator", ("policy.publish", *rule))

    def ask(self, label="r", study="a", by=ASKER, role="clinician", **changes):
        self.send(by, role, asking(label, study, role=role, **changes))
        return identity(("request", label))

    def govern(self, label, action, *arguments, lifetime=200):
        """Propose and let a quorum approve; return the proposal's id."""
        proposal = identity(("proposal", label))
        propose = ("governance.propose", proposal, action, arguments, lifetime)
        self.send(CUSTODIAN, "administrator", propose)
        for name in (ASKER, THIRD):
            self.send(name, "administrator", ("governance.vote", proposal, True))
        return proposal


def asking(label, study="a", **changes):
    """The operation access.request."""
    fields = {
        "request_id": identity(("request", label)),
        "study_id": identity(("study", study)),
        "role": "clinician",
        "purpose": "TREAT",
        "heights": 100,
        "uses_max": 3,
        "deidentified": False,
        "ethics_digest": None,
        "key_id": None,
    } | changes
    return ("access.request", *fields.values())


def breaking(label, study="a"):
    """The operation access.break_glass."""
    ids = identity(("request", label)), identity(("study", study))
    return ("access.break_glass", *ids, "clinician", "ETREAT", "unconscious", None)


def new_member(institution, chain_id=GENESIS.chain_id):
    """A key that proves its possession: (public key, signature)."""
    private = keys.generate()
    public = keys.public_bytes(private)
    message = possession_message(chain_id, institution, public)
    return public, keys.signer(private)(message)


def follow(page_of, items_of):
    """Call `page_of(cursor)` to the end and return all items and the sizes of the pages."""
    found, sizes, cursor = [], [], None
    while True:
        page = page_of(cursor)
        items = items_of(page)
        found += items
        sizes.append(len(items))
        cursor = page.next_cursor
        if cursor is None:
            return found, sizes
