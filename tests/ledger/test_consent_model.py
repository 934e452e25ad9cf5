"""What the consent contract answers, against a simple model of it, after any history."""

from dataclasses import dataclass, field
from itertools import product
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.wire import pack
from node.ledger.contracts import consent
from node.ledger.contracts.consent import record
from tests.ledger.contract_ledger import identity
from tests.ledger.test_consent import C1, C2, C3, FORM, PATIENT, S1, S2, SUBJECT, Ledger

C4 = identity("c4")

# The model: the accepted operations in order, and what each answer means in terms of them.

HEIGHTS_AHEAD = 5
ROOM = 4
USES = list(product((S1, S2), ("ukaachen", "third"), ("TREAT", "HRESCH")))


@dataclass
class Entry:
    consent_id: bytes
    effect: str
    scope: tuple
    made: int
    until: int | None
    by: str
    ended: int | None = None

    def holds(self, height):
        last = [each for each in (self.until, self.ended) if each is not None]
        return self.made < height and all(height <= each for each in last)

    def specificity(self):
        study_id, recipient, purposes = self.scope
        return (study_id is not None, recipient is not None, bool(purposes))

    def covers(self, use):
        study_id, recipient, purposes = self.scope
        return (
            study_id in (None, use[0])
            and recipient in (None, use[1])
            and (not purposes or use[2] in purposes)
        )


@dataclass
class Model:
    entries: list = field(default_factory=list)
    opts: list = field(default_factory=list)  # (height, "out" or "in", by)

    def add(self, height, by, consent_id, effect, scope, until):
        if until is not None and until <= height:
            return "until_passed"
        alive = [
            each
            for each in self.entries
            if any(each.holds(later) for later in range(height, height + 100))
            or each.made == height
        ]
        if len(alive) >= ROOM:
            return "consent_full"
        self.entries.append(Entry(consent_id, effect, scope, height, until, by))
        return None

    def withdraw(self, height, by, consent_id):
        entry = next((each for each in self.entries if each.consent_id == consent_id), None)
        if entry is None:
            return "consent_unknown"
        if entry.ended is not None or (entry.until is not None and entry.until < height):
            return "over"
        if entry.by == "patient" and by == "custodian":
            return "patient_decides"
        entry.ended = height
        return None

    def out(self, height, by):
        last = self.opts[-1] if self.opts else None
        if last and last[1] == "out" and (by == "custodian" or last[2] == "patient"):
            return "opted_out"
        self.opts.append((height, "out", by))
        return None

    def in_(self, height, by):
        last = self.opts[-1] if self.opts else None
        if last is None or last[1] == "in":
            return "opted_in"
        if last[2] == "patient" and by == "custodian":
            return "patient_decides"
        self.opts.append((height, "in", by))
        return None

    def status(self, use, height):
        opts = [each for each in self.opts if each[0] < height]
        if opts and opts[-1][1] == "out":
            return "deny", None
        said = [each for each in self.entries if each.holds(height) and each.covers(use)]
        if not said:
            return "none", None
        top = max(each.specificity() for each in said)
        said = [each for each in said if each.specificity() == top]
        effect = "deny" if any(each.effect == "deny" for each in said) else "permit"
        return effect, max(each.consent_id for each in said if each.effect == effect)


SCOPE = st.tuples(
    st.sampled_from((None, S1, S2)),
    st.sampled_from((None, "ukaachen", "third")),
    st.sampled_from(((), ("TREAT",), ("HRESCH", "TREAT"))),
)
STEP = st.tuples(
    st.integers(0, 2),  # heights to move on
    st.sampled_from(("grant", "restrict", "withdraw", "withdraw", "opt_out", "opt_in")),
    st.sampled_from(("patient", "custodian")),
    SCOPE,
    st.none() | st.integers(0, 6),  # heights until the rule ends by itself
    st.integers(0, 9),  # which rule to withdraw
)


def carry_out(ledger, model, height, number, step):
    """Do a step in both; return the codes with which they refuse."""
    _, verb, by, scope, lasting, which = step
    sender = PATIENT if by == "patient" else {}
    form = None if by == "patient" else FORM
    match verb:
        case "grant" | "restrict":
            consent_id = identity(("rule", number))
            until = None if lasting is None else height + lasting
            arguments = (consent_id, SUBJECT, *scope, until, form)
            effect = "permit" if verb == "grant" else "deny"
            expected = model.add(height, by, consent_id, effect, scope, until)
        case "withdraw":
            known = [each.consent_id for each in model.entries] or [C1]
            consent_id = known[which % len(known)]
            arguments = (SUBJECT, consent_id, form)
            expected = model.withdraw(height, by, consent_id)
        case "opt_out":
            arguments, expected = (SUBJECT, form), model.out(height, by)
        case "opt_in":
            arguments, expected = (SUBJECT, form), model.in_(height, by)
    return ledger.refusal(f"consent.{verb}", *arguments, height=height, **sender), expected


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=16))
def test_any_history_answers_as_the_model_at_every_height(steps):
    ledger, model, height = Ledger(), Model(), 3
    ledger.bind()
    with mock.patch.object(record, "RULES_MAX", ROOM):
        for number, step in enumerate(steps):
            height += step[0]
            at_this_height = [model.status(use, height) for use in USES]
            code, expected = carry_out(ledger, model, height, number, step)
            # A rule that is over may have made room: then it is not known any more.
            allowed = {"consent_ended", "consent_unknown"} if expected == "over" else {expected}
            assert code in allowed
            for later in range(height, height + HEIGHTS_AHEAD):
                for use in USES:
                    answer = ledger.status(later, use[0], use[1], use[2])
                    assert answer == model.status(use, later)
            # What a block changes counts from the next height.
            assert [ledger.status(height, *use) for use in USES] == at_this_height
    assert len(ledger.stored().rules) <= ROOM


RULE = st.builds(
    consent.Rule,
    st.sampled_from((C1, C2, C3, C4)) | st.binary(min_size=16, max_size=16),
    st.sampled_from(("permit", "deny")),
    st.sampled_from((None, S1, S2)),
    st.sampled_from((None, "ukaachen", "third")),
    st.sampled_from(((), ("TREAT",), ("HRESCH",))),
    st.integers(1, 9),
    st.none() | st.integers(1, 20),
    st.none() | st.integers(1, 20),
    st.sampled_from(("patient", "custodian")),
    st.none(),
)


@given(st.lists(RULE, max_size=10), st.integers(1, 20), st.randoms(use_true_random=False))
def test_the_order_of_rules_does_not_matter(rules, height, random):
    shuffled = list(rules)
    random.shuffle(shuffled)
    answers = [
        [
            consent.status(
                {
                    consent.consent_key("charite", SUBJECT): pack(record.Consent(rules=tuple(each)))
                }.get,
                "charite",
                SUBJECT,
                *use,
                height,
            )
            for use in USES
        ]
        for each in (rules, shuffled)
    ]
    assert answers[0] == answers[1]
