"""Makes random sequences of steps: lives of requests and a world that changes around them."""

import random
from math import inf

from tests.ledger.access_model import (
    CONDITIONS,
    HEIGHTS_MAX,
    INSTITUTIONS,
    PERMITTING,
    REQUESTS,
    ROLE_WORDS,
    STUDIES,
    USES_MAX,
    WAITING,
)
from tests.ledger.access_world import ASKER, CUSTODIAN, THIRD


class Author:
    """Thinks of steps: mostly the next one in the life of some request, often a wrong one."""

    def __init__(self, seed, model):
        self.random = random.Random(seed)
        self.model = model
        self.named = 0
        # Most sequences begin where there is some chance of a grant.
        self.first = [self.policy] * self.random.randint(0, 2) + [
            lambda: self.rule("permit", CUSTODIAN, "s")
        ] * self.random.randint(0, 1)

    def step(self):
        if self.first:
            return self.first.pop()() or self.later()
        kind = self.random.choices(
            (
                self.later,
                self.ask,
                self.go_on,
                self.anything,
                self.consent,
                self.policy,
                self.world,
            ),
            (17, 14, 52, 6, 11, 6, 4),
        )[0]
        return kind() or self.later()

    def later(self):
        """Some heights pass, often to where some request begins or ends."""
        ends = [
            request.over - self.model.height + self.random.randint(-1, 1)
            for request in self.model.requests.values()
            if request.over > self.model.height
        ]
        if ends and self.random.random() < 0.12:
            return "height", max(self.random.choice(ends), 1)
        return "height", self.random.choice((1, 1, 1, 1, 1, 2))

    def ask(self):
        number = len(self.model.requests)
        if number == REQUESTS:
            return None
        study = self.pick(self.model.studies)
        custodian = self.model.studies[study].custodian
        askers = [each for each in INSTITUTIONS if each != custodian]
        sender = (
            self.random.choice(askers if self.usually() else INSTITUTIONS),
            self.role("clinician"),
        )
        role = sender[1] if self.usually() else "clinician"
        if role not in ("clinician", "researcher", "gateway"):
            role = "researcher"
        if self.random.random() < 0.2:
            reason = self.random.choice(("unconscious", "other"))
            asked = study, "clinician", self.random.choice(("TREAT", "ETREAT")), reason
            return "access", sender, "break_glass", number, *asked
        purpose = self.random.choice(("TREAT", "TREAT", "HRESCH"))
        heights = self.random.randint(2, HEIGHTS_MAX) if self.usually() else HEIGHTS_MAX + 1
        uses = self.random.randint(1, USES_MAX) if self.usually() else USES_MAX + 1
        return "access", sender, "request", number, study, role, purpose, heights, uses

    def go_on(self):
        """The next step in the life of a request, by who may do it."""
        if not self.model.requests:
            return None
        number = self.random.choices(
            list(self.model.requests),
            [4 if self.lives(each) else 1 for each in self.model.requests.values()],
        )[0]
        request = self.model.requests[number]
        height = self.model.height
        if request.over <= height and self.random.random() < 0.3:
            return "access", (THIRD, "auditor"), "expire", number
        if request.state == "granted" and height < request.begin and self.usually():
            return self.later()
        verb = self.next_verb(request)
        if verb == "approve" and self.model.decide(request, height)[3] == "consent_missing":
            verb = self.random.choice(("approve", "permit", "permit"))
        if verb == "permit":
            return self.rule("permit", request.custodian, request.subject)
        if not self.usually():
            verb = self.random.choice(("deliver", "receive", "use", "review", "revoke"))
        return self.act(verb, number, request)

    def lives(self, request):
        return request.state in (*PERMITTING, *WAITING) and self.model.height < request.over

    def next_verb(self, request):
        if request.glass and request.finding is None and self.random.random() < 0.2:
            return "review"
        verbs = {
            "waiting_person": ("approve",) * 9 + ("deny", "cancel"),
            "waiting_consent": ("permit",) * 8 + ("deny", "cancel", "approve"),
            "granted": ("deliver",) * 9 + ("revoke",),
            "delivered": ("receive",) * 9 + ("revoke",),
            "received": ("use",) * 9 + ("revoke",),
        }
        over = ("use", "deny", "revoke", "deliver", "expire", "cancel")
        return self.random.choice(verbs.get(request.state, over))

    def act(self, verb, number, request):
        asker = verb in ("receive", "use", "cancel")
        institution = request.asker if asker else request.custodian
        roles = {
            "deliver": "gateway",
            "review": "data_protection_officer",
            "deny": self.random.choice(("clinician", "clinician", "patient")),
            "revoke": self.random.choice(("clinician", "patient")),
        }
        role = roles.get(verb, request.role if asker else "clinician")
        return self.said(verb, number, request.study, (institution, self.role(role)))

    def anything(self):
        """Any operation by anybody on any request, or on none that there is."""
        number = self.random.randint(-1, max(len(self.model.requests) - 1, -1))
        sender = self.random.choice(INSTITUTIONS), self.role("")
        verbs = "approve deny revoke cancel expire deliver receive use review request break_glass"
        verb = self.random.choice(verbs.split())
        if verb in ("request", "break_glass"):
            asked = ("HRESCH", 1, 1) if verb == "request" else ("TREAT", "other")
            number = max(number, 0)
            return "access", sender, verb, number, self.pick(STUDIES), "clinician", *asked
        return self.said(verb, number, self.pick(STUDIES), sender)

    def said(self, verb, number, study, sender):
        root = study if self.usually() else self.pick(STUDIES)
        says = {
            "deny": ("other",),
            "revoke": ("misuse",),
            "receive": (root,),
            "review": ("justified",),
        }
        return "access", sender, verb, number, *says.get(verb, ())

    def consent(self):
        (custodian, subject) = self.subject()
        record = self.model.record(custodian, subject)
        height = self.model.height
        verb = self.random.choices(
            ("permit", "deny", "withdraw", "opt", "bind"), (35, 14, 25, 8, 6)
        )[0]
        if record.opted_out and record.opted_out[-1][1] == inf and self.random.random() < 0.5:
            verb = "opt"
        if verb in ("permit", "deny"):
            return self.rule(verb, custodian, subject)
        if verb == "bind":
            if record.bound or custodian in self.model.suspended:
                return None
            return "consent_bind", custodian, subject
        if verb == "opt":
            out = record.opted_out and record.opted_out[-1][1] == inf
            return "consent_opt_in" if out else "consent_opt_out", custodian, subject
        names = [rule[0] for rule in record.rules if rule[0] is not None and rule[-1] > height]
        if names:
            return "consent_withdraw", custodian, subject, self.random.choice(names)
        return None

    def rule(self, effect, custodian, subject):
        self.named += 1
        studies = [
            name
            for name, study in self.model.studies.items()
            if (study.custodian, study.subject) == (custodian, subject) and study.closed != "erased"
        ]
        study = self.random.choice((None, None, *studies))
        recipient = self.random.choice((None, None, ASKER, THIRD))
        purposes = self.random.choice(((), (), ("TREAT",), ("HRESCH", "TREAT")))
        last = self.random.choice((None, None, self.model.height + self.random.randint(1, 6)))
        name = self.named
        return "consent_rule", custodian, subject, name, effect, study, recipient, purposes, last

    def policy(self):
        institution = self.random.choice(("", CUSTODIAN, CUSTODIAN, THIRD))
        names = [
            name
            for owner, name, *_, last in self.model.policies
            if (owner, last) == (institution, inf)
        ]
        if names and self.random.random() < 0.25:
            return "policy_retire", institution, self.random.choice(names)
        effect = self.random.choice(("permit", "permit", "permit", "ask", "ask", "deny"))
        need = self.random.choice(("required", "required", "not_objected"))
        condition = self.pick(CONDITIONS)
        if effect == "deny" and condition == "true":
            condition = "consent.given"
        return (
            "policy_publish",
            institution,
            self.random.choice(("x", "y", "z")),
            effect,
            need,
            condition,
        )

    def world(self):
        study = self.pick(STUDIES)
        found = self.model.studies[study]
        roll = self.random.random()
        if roll < 0.4:
            institution = self.random.choice(sorted(self.model.suspended) or (ASKER, THIRD))
            verb = "resume" if institution in self.model.suspended else "suspend"
            return f"institution_{verb}", institution
        if found.closed:
            return None
        if roll < 0.6:
            return "study_close", study, self.random.choice(("retired", "erased"))
        others = [each for each in (CUSTODIAN, THIRD) if each != found.custodian]
        return "study_move", study, self.random.choice(others), self.random.choice(("s", "t"))

    def subject(self):
        """A custodian and a pseudonym, mostly of a study."""
        study = self.model.studies[self.pick(STUDIES)]
        return study.custodian, study.subject

    def role(self, role):
        return role if role and self.usually() else self.random.choice(ROLE_WORDS)

    def usually(self):
        return self.random.random() < 0.93

    def pick(self, names):
        return self.random.choice(list(names))
