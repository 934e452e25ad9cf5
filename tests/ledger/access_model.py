"""What the contracts should do with requests, said once more without rows, bytes or speed."""

from dataclasses import dataclass, field
from math import inf

from tests.ledger.access_world import ASKER, CUSTODIAN, ROLES, THIRD

REQUESTS = 4

INSTITUTIONS = (ASKER, CUSTODIAN, THIRD)
ROLE_WORDS = tuple(sorted(ROLES))

HEIGHTS_MAX, USES_MAX, WAITING_HEIGHTS, GLASS_HEIGHTS = 9, 2, 7, 6
STUDIES = {"a": (CUSTODIAN, "s"), "b": (CUSTODIAN, "s"), "c": (THIRD, "t")}
CONDITIONS = {
    "true": lambda request, study, given: True,
    'request.purpose == "TREAT"': lambda request, study, given: request.purpose == "TREAT",
    'requester.institution == "ukbonn"': lambda request, study, given: request.asker == THIRD,
    "consent.given": lambda request, study, given: given,
    "request.uses > 1 && request.heights < 6": lambda request, study, given: (
        request.uses_max > 1 and request.heights < 6
    ),
    'study.custodian != "charite"': lambda request, study, given: study.custodian != CUSTODIAN,
}
PERMITTING = ("granted", "delivered", "received")
WAITING = ("waiting_consent", "waiting_person")
ORDER = {
    ("deny", "required"): 0,
    ("deny", "not_objected"): 0,
    ("permit", "not_objected"): 1,
    ("permit", "required"): 2,
    ("ask", "not_objected"): 3,
    ("ask", "required"): 4,
}
DECIDERS = ("clinician", "administrator", "data_protection_officer")


@dataclass
class Study:
    custodian: str
    subject: str
    closed: str = ""  # "retired" or "erased"


@dataclass
class Request:
    study: str
    custodian: str
    subject: str
    asker: str
    role: str
    purpose: str
    heights: int
    uses_max: int
    state: str
    over: float  # the first height at which it is over
    begin: float = inf
    needs_consent: bool = False
    uses: int = 0
    glass: bool = False
    finding: str | None = None


@dataclass
class Record:
    """A subject's consent: rules are [name, effect, study, recipient, purposes, first, last]."""

    rules: list = field(default_factory=list)
    opted_out: list = field(default_factory=list)  # [first, last]
    bound: bool = False


class Model:
    """What the contracts should do, said once more without rows, bytes or speed."""

    def __init__(self):
        self.height = 10
        self.studies = {name: Study(*where) for name, where in STUDIES.items()}
        self.requests = {}
        self.records = {}
        self.policies = []  # [institution, name, effect, consent, condition, first, last]
        self.suspended = set()
        self.events = []

    def record(self, custodian, subject):
        return self.records.setdefault((custodian, subject), Record())

    def consent(self, request, height):
        record = self.record(request.custodian, request.subject)
        if any(first <= height <= last for first, last in record.opted_out):
            return "deny"
        found = [
            ((study is not None, recipient is not None, purposes != ()), effect)
            for _, effect, study, recipient, purposes, first, last in record.rules
            if first <= height <= last
            and study in (None, request.study)
            and recipient in (None, request.asker)
            and (purposes == () or request.purpose in purposes)
        ]
        top = [effect for rank, effect in found if rank == max(rank for rank, _ in found)]
        return "deny" if "deny" in top else "permit" if top else "none"

    def decide(self, request, height):
        """(state, rule, whether consent is needed, the code of an approval)"""
        given = self.consent(request, height)
        if given == "deny":
            return "denied", "consent", True, "consent_refused"
        matching = [
            (effect, need, institution, name)
            for institution, name, effect, need, condition, first, last in self.policies
            if institution in ("", request.custodian)
            and first <= height <= last
            and CONDITIONS[condition](request, self.studies[request.study], given == "permit")
        ]
        matching.sort(key=lambda rule: (ORDER[rule[:2]], rule[2], rule[3]))
        effect, need, institution, name = (*matching, ("none", "required", "", ""))[0]
        rule = f"{institution or 'consortium'}/{name}" if name else ""
        if effect == "deny":
            return "denied", rule, True, "policy_refused"
        missing = need == "required" and given == "none"
        code = "consent_missing" if missing else None
        if effect == "permit":
            return "waiting_consent" if missing else "granted", rule, need == "required", code
        return "waiting_person", rule, need == "required", code

    def world_code(self, request):
        study = self.studies[request.study]
        if study.closed:
            return f"study_{study.closed}"
        if (study.custodian, study.subject) != (request.custodian, request.subject):
            return "custody_moved"
        return None

    def permitted(self, request, height):
        if request.state in WAITING:
            return "request_waiting"
        if request.state not in PERMITTING:
            return f"request_{request.state}"
        if height < request.begin:
            return "request_not_valid_yet"
        if height >= request.over:
            return "request_expired"
        if request.uses == request.uses_max:
            return "uses_spent"
        if self.world_code(request):
            return self.world_code(request)
        if request.asker in self.suspended:
            return "institution_suspended"
        if request.glass:
            return None
        given = self.consent(request, height)
        if given == "deny":
            return "consent_refused"
        return "consent_missing" if given == "none" and request.needs_consent else None

    def settle(self, name, request, decision):
        state, rule, needed, _ = decision
        request.state = state
        request.needs_consent = needed
        if state == "granted":
            request.begin = self.height + 1
            request.over = request.begin + request.heights
        self.events.append((f"access_{state if state[:7] != 'waiting' else 'waiting'}", name, rule))

    def reconsider(self, custodian, subject):
        """Decide all that waits for one patient's consent, as of the next height."""
        for name, request in self.requests.items():
            if request.state == "waiting_consent" and (request.custodian, request.subject) == (
                custodian,
                subject,
            ):
                self.reconsider_one(name, request)

    def reconsider_one(self, name, request):
        if self.height + 1 >= request.over:
            request.state = "expired"
            self.events.append(("access_expired", name))
        elif self.world_code(request):
            self.settle(name, request, ("denied", self.world_code(request), True, None))
        else:
            decision = self.decide(request, self.height + 1)
            if decision[0] != "waiting_consent":
                self.settle(name, request, decision)

    # Each operation returns the code of its refusal, or None when it took effect.

    def access_request(self, sender, name, study, role, purpose, heights, uses):
        code = self.ask_code(sender, name, study, role, ("clinician", "researcher", "gateway"))
        if code:
            return code
        if heights > HEIGHTS_MAX:
            return "heights_over_limit"
        if uses > USES_MAX:
            return "uses_over_limit"
        custodian, subject = self.studies[study].custodian, self.studies[study].subject
        over = self.height + WAITING_HEIGHTS
        request = Request(
            study, custodian, subject, sender[0], role, purpose, heights, uses, "", over
        )
        self.requests[name] = request
        self.events.append(("access_requested", name))
        self.settle(name, request, self.decide(request, self.height))
        if request.state == "waiting_consent":
            self.reconsider_one(name, request)
        return None

    def access_break_glass(self, sender, name, study, role, purpose, reason):
        code = self.ask_code(sender, name, study, role, ("clinician",))
        if code:
            return code
        custodian, subject = self.studies[study].custodian, self.studies[study].subject
        begin = self.height + 1
        self.requests[name] = Request(
            study,
            custodian,
            subject,
            sender[0],
            role,
            purpose,
            GLASS_HEIGHTS,
            USES_MAX,
            "granted",
            begin + GLASS_HEIGHTS,
            begin,
            glass=True,
        )
        self.events.append(("access_break_glass", name))
        return None

    def ask_code(self, sender, name, study, role, roles):
        institution, own = sender
        if own not in roles:
            return "role_missing"
        if name in self.requests:
            return "request_exists"
        if own != role:
            return "role_missing"
        if self.studies[study].custodian == institution:
            return "own_study"
        return f"study_{self.studies[study].closed}" if self.studies[study].closed else None

    def access_approve(self, sender, name):
        request = self.requests.get(name)
        code = self.decider_code(sender, request, DECIDERS) or self.undecided_code(request)
        if code:
            return code
        if request.state == "waiting_consent":
            return "consent_missing"
        if self.world_code(request):
            return self.world_code(request)
        _, rule, needed, code = self.decide(request, self.height)
        if code is None:
            self.settle(name, request, ("granted", rule, needed, None))
        return code

    def access_deny(self, sender, name, reason):
        request = self.requests.get(name)
        code = self.decider_code(sender, request, (*DECIDERS, "patient"))
        code = code or self.undecided_code(request)
        if code is None:
            self.settle(name, request, ("denied", reason, True, None))
        return code

    def access_revoke(self, sender, name, reason):
        request = self.requests.get(name)
        code = self.decider_code(sender, request, (*DECIDERS, "patient"))
        if code:
            return code
        if request.state not in PERMITTING:
            return "request_waiting" if request.state in WAITING else f"request_{request.state}"
        if self.height >= request.over:
            return "request_expired"
        return self.end(name, request, "revoked")

    def access_cancel(self, sender, name):
        request = self.requests.get(name)
        if sender[1] not in ("clinician", "researcher", "gateway", "administrator"):
            return "role_missing"
        if request is None:
            return "request_unknown"
        if sender[0] != request.asker:
            return "not_requester"
        return self.undecided_code(request) or self.end(name, request, "cancelled")

    def access_expire(self, sender, name):
        request = self.requests.get(name)
        if request is None:
            return "request_unknown"
        if request.state not in (*PERMITTING, *WAITING):
            return f"request_{request.state}"
        if self.height < request.over:
            return "request_not_due"
        return self.end(name, request, "expired")

    def end(self, name, request, state):
        request.state = state
        self.events.append((f"access_{state}", name))

    def access_deliver(self, sender, name):
        request = self.requests.get(name)
        if sender[1] not in ("gateway", "administrator"):
            return "role_missing"
        if request is None:
            return "request_unknown"
        if sender[0] != request.custodian:
            return "not_custodian"
        code = self.permitted(request, self.height)
        if code is None and request.state != "granted":
            code = "request_delivered"
        return code or self.end(name, request, "delivered")

    def access_receive(self, sender, name, root):
        request = self.requests.get(name)
        code = self.asker_code(sender, request) or self.permitted(request, self.height)
        if code:
            return code
        if request.state == "granted":
            return "request_not_delivered"
        if request.state == "received":
            return "request_received"
        return "root_unknown" if root != request.study else self.end(name, request, "received")

    def access_use(self, sender, name):
        request = self.requests.get(name)
        code = self.asker_code(sender, request) or self.permitted(request, self.height)
        if code:
            return code
        if request.state != "received":
            return "request_not_received"
        request.uses += 1
        self.events.append(("access_used", name, request.uses))
        return None

    def access_review(self, sender, name, finding):
        request = self.requests.get(name)
        code = self.decider_code(sender, request, ("data_protection_officer",))
        if code:
            return code
        if not request.glass:
            return "not_break_glass"
        if request.finding is not None:
            return "request_reviewed"
        request.finding = finding
        self.events.append(("access_reviewed", name))
        return None

    def decider_code(self, sender, request, roles):
        institution, role = sender
        if role not in roles:
            return "role_missing"
        if request is None:
            return "request_unknown"
        if institution != request.custodian:
            return "not_custodian"
        bound = self.record(request.custodian, request.subject).bound
        return "patient_not_bound" if role == "patient" and not bound else None

    def undecided_code(self, request):
        if request.state not in WAITING:
            return "request_not_waiting"
        return "request_expired" if self.height >= request.over else None

    def asker_code(self, sender, request):
        institution, role = sender
        if role not in ("clinician", "researcher", "gateway"):
            return "role_missing"
        if request is None:
            return "request_unknown"
        if institution != request.asker:
            return "not_requester"
        return None if role in (request.role, "gateway") else "role_missing"

    # The world around; whether these are accepted is tested with their own contracts.

    def consent_rule(self, custodian, subject, name, effect, study, recipient, purposes, last):
        rule = [name, effect, study, recipient, purposes, self.height + 1, last or inf]
        self.record(custodian, subject).rules.append(rule)
        if effect == "permit":
            self.reconsider(custodian, subject)

    def consent_withdraw(self, custodian, subject, name):
        for rule in self.record(custodian, subject).rules:
            if rule[0] == name:
                rule[-1] = min(rule[-1], self.height)
                if rule[1] == "deny":
                    self.reconsider(custodian, subject)

    def consent_opt_out(self, custodian, subject):
        periods = self.record(custodian, subject).opted_out
        if periods and periods[-1][1] == self.height:
            periods[-1][1] = inf
        else:
            periods.append([self.height + 1, inf])

    def consent_opt_in(self, custodian, subject):
        self.record(custodian, subject).opted_out[-1][1] = self.height
        self.reconsider(custodian, subject)

    def consent_bind(self, custodian, subject):
        self.record(custodian, subject).bound = True

    def policy_retire(self, institution, name):
        for rule in list(self.policies):
            if rule[:2] == [institution, name] and rule[-1] == inf:
                rule[-1] = self.height
                if rule[-2] > self.height:
                    self.policies.remove(rule)

    def policy_publish(self, institution, name, effect, need, condition):
        self.policy_retire(institution, name)
        self.policies.append([institution, name, effect, need, condition, self.height + 1, inf])

    def institution_suspend(self, institution):
        self.suspended.add(institution)

    def institution_resume(self, institution):
        self.suspended.discard(institution)

    def study_close(self, study, how):
        self.studies[study].closed = how

    def study_move(self, study, institution, subject):
        """What was refused for the study follows it to its new custodian."""
        before = self.record(self.studies[study].custodian, self.studies[study].subject)
        self.studies[study].custodian, self.studies[study].subject = institution, subject
        after = self.record(institution, subject).rules
        first = self.height + 1
        if any(last >= first for _, last in before.opted_out):
            after.append([None, "deny", study, None, (), first, inf])
        for _, effect, about, recipient, purposes, _, last in list(before.rules):
            if effect == "deny" and about in (None, study) and last >= first:
                after.append([None, "deny", study, recipient, purposes, first, last])
