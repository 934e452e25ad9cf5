"""Three hospitals over a dict: the operations of access and all that they depend on, run as the
executor runs them (role, form, effect; a refused one changes nothing), without a chain."""

import hashlib
from functools import cache
from types import SimpleNamespace

from consensus.wire import pack
from node.ledger import accounts, parameters
from node.ledger.contracts import (
    access,
    consent,
    policy,
    registry,
    study,
    study_erasure,
    study_transfer,
)
from node.ledger.contracts.base import Context
from node.ledger.errors import Rejected
from node.ledger.state import StateView

CUSTODIAN, ASKER, THIRD = "charite", "ukaachen", "ukbonn"
ROLES = {
    "administrator",
    "clinician",
    "data_protection_officer",
    "gateway",
    "patient",
    "researcher",
}
KINDS = {
    kind.name: kind
    for kind in (
        *study.KINDS,
        *study_transfer.KINDS,
        *study_erasure.KINDS,
        *consent.kinds(access.reconsider),
        *policy.KINDS,
        *registry.KINDS,
        *access.KINDS,
    )
}


@cache
def digest(*label) -> bytes:
    """32 bytes that look random and are the same in every run."""
    return hashlib.sha256(repr(label).encode()).digest()


@cache
def identity(*label) -> bytes:
    """16 bytes of the same kind."""
    return digest(*label)[:16]


STUDY, SUBJECT, ROOT, FORM = identity("study"), identity("subject"), digest("root"), digest("form")


def key_of(institution: str, role: str) -> bytes:
    """The member key of an institution's only member with `role`."""
    return digest("key", institution, role)


class World:
    """The state, the height, and whoever acts next."""

    def __init__(self, height: int = 10, *, with_study: bool = True) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.state = StateView(self.rows.get)
        self.height = height
        self.index: dict[tuple, bytes] = {}
        self.position = 0
        self._listed = 0
        for institution, country in ((CUSTODIAN, "DE"), (ASKER, "DE"), (THIRD, "NL")):
            self.set_active(institution, country=country)
            for role in sorted(ROLES):
                member = accounts.new_member((role,))
                key = accounts.member_key(institution, key_of(institution, role))
                self.state.put(key, pack(member))
        if with_study:
            self.register(STUDY, SUBJECT, ROOT)

    def fork(self):
        """A world that begins with this one's state and index, and leaves them alone."""
        made = World.__new__(World)
        made.rows = self.rows | {k: v for k, v in self.state.changes().items() if v is not None}
        made.state = StateView(made.rows.get)
        made.height, made.position = self.height, self.position
        made.index, made._listed = dict(self.index), 0
        return made

    def set_active(self, institution, active=True, country="DE"):
        row = accounts.new_institution(institution, country, 1, active=active)
        self.state.put(accounts.institution_key(institution), pack(row))

    def set_parameter(self, name, value):
        self.state.put(parameters.parameter_key(name), parameters.encode_parameter(value))

    def act(self, sender, name, *arguments, key=None, time_ms=1_700_000_000_000):
        """Apply one operation as (institution, role); return its events, or raise `Rejected`."""
        institution, role = sender
        self.position += 1
        context = Context(
            self.state,
            self.height,
            time_ms,
            self.position,
            institution,
            key_of(institution, role) if key is None else key,
            frozenset({role}),
            bytes(32),
        )
        kind = KINDS[name]
        savepoint = self.state.checkpoint()
        try:
            if context.roles.isdisjoint(kind.roles):
                raise Rejected("role_missing")
            kind.apply(context, kind.parse(arguments))
        except Rejected:
            # Checks come before writes, in every contract.
            assert self.state.checkpoint() == savepoint
            raise
        self._fold_index()
        return [(event.name, event.fields) for event in context.events]

    def code(self, sender, name, *arguments, **options):
        """The same, giving the code of the refusal, or None."""
        try:
            self.act(sender, name, *arguments, **options)
        except Rejected as rejected:
            code = rejected.code
        else:
            return None
        assert code in REJECTIONS
        return code

    def snapshot(self):
        return dict(self.state.changes()), list(self.state.index_changes())

    def listed(self, name, *head):
        """The values of the index rows that begin so, in order."""
        size = len(head) + 1
        found = [(key, value) for key, value in self.index.items() if key[:size] == (name, *head)]
        return [value for _, value in sorted(found)]

    def _fold_index(self):
        rows = self.state.index_changes()
        for name, parts, value in rows[self._listed :]:
            if value is None:
                del self.index[name, *parts]
            else:
                self.index[name, *parts] = value
        self._listed = len(rows)

    def register(self, study_id, subject_id, root, custodian=CUSTODIAN):
        self.act(
            (custodian, "gateway"),
            "study.register",
            study_id,
            subject_id,
            root,
            "CT",
            "chest",
            5,
            8,
        )

    def publish(self, effect, consent="required", condition="true", name="rule", by=CUSTODIAN):
        """A rule, in force at once: made at the height before."""
        self.height -= 1
        self.act((by, "administrator"), "policy.publish", name, effect, consent, condition)
        self.height += 1

    def consent(self, verb="grant", label="c", **changes):
        """A rule of consent by form, in force at once: made at the height before."""
        asked = {
            "subject_id": SUBJECT,
            "study_id": None,
            "recipient": None,
            "purposes": (),
            "until": None,
            "form": FORM,
        } | changes
        self.height -= 1
        self.act((CUSTODIAN, "clinician"), f"consent.{verb}", identity(label), *asked.values())
        self.height += 1

    def withdraw(self, label="c"):
        """Its end, at the height before."""
        self.height -= 1
        self.act((CUSTODIAN, "clinician"), "consent.withdraw", SUBJECT, identity(label), FORM)
        self.height += 1

    def held(self, request_id):
        return access.find_request(self.state.get, request_id)

    def permitted(self, request_id, height=None):
        height = self.height if height is None else height
        return access.permitted(self.state.get, self.held(request_id), height)

    def waiting(self, subject_id=SUBJECT, custodian=CUSTODIAN):
        return list(consent.get_consent(self.state.get, custodian, subject_id).waiting)


REJECTIONS = (
    access.REJECTIONS
    | consent.REJECTIONS
    | policy.REJECTIONS
    | study.REJECTIONS
    | study_transfer.REJECTIONS
    | study_erasure.REJECTIONS
    | registry.REJECTIONS
)


def asking(request_id, **changes):
    """The arguments of access.request."""
    fields = {
        "request_id": request_id,
        "study_id": STUDY,
        "role": "clinician",
        "purpose": "TREAT",
        "heights": 100,
        "uses_max": 3,
        "deidentified": False,
        "ethics_digest": None,
        "key_id": None,
    }
    return tuple((fields | changes).values())


def breaking(request_id, **changes):
    """The arguments of access.break_glass."""
    fields = {
        "request_id": request_id,
        "study_id": STUDY,
        "role": "clinician",
        "purpose": "ETREAT",
        "reason": "unconscious",
        "key_id": None,
    }
    return tuple((fields | changes).values())


WHO = SimpleNamespace(
    asker=(ASKER, "clinician"),
    researcher=(ASKER, "researcher"),
    asker_gateway=(ASKER, "gateway"),
    asker_administrator=(ASKER, "administrator"),
    clinician=(CUSTODIAN, "clinician"),
    gateway=(CUSTODIAN, "gateway"),
    officer=(CUSTODIAN, "data_protection_officer"),
    administrator=(CUSTODIAN, "administrator"),
    patient=(CUSTODIAN, "patient"),
    third=(THIRD, "clinician"),
    third_gateway=(THIRD, "gateway"),
)
