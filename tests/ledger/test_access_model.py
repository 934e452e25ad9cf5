"""Random lives of requests, against a model that says in a few lines what should happen.

A sequence is a list of steps made from a seed; every step is done to the contracts and to the model
and must come out alike: accepted or refused with which code, which events, which states, and what
each request permits. A sequence that fails is cut down to the steps that matter and printed. To
replay one: `python -m tests.ledger.test_access_model SEED`.
"""

import sys
from collections import Counter
from functools import cache
from math import inf

import pytest

from node.ledger.contracts import access, policy
from node.ledger.contracts.access_record import STATES
from node.ledger.contracts.base import Context
from node.ledger.contracts.study import decode_study, study_key
from node.ledger.errors import Rejected
from tests.ledger.access_author import Author
from tests.ledger.access_model import (
    GLASS_HEIGHTS,
    HEIGHTS_MAX,
    INSTITUTIONS,
    REQUESTS,
    STUDIES,
    USES_MAX,
    WAITING,
    WAITING_HEIGHTS,
    Model,
)
from tests.ledger.access_world import World, digest, identity, key_of

SEQUENCES = 10_000
STEPS = 26


@cache
def beginning():
    world = World(with_study=False)
    for name, (custodian, subject) in STUDIES.items():
        root = digest("root", name)
        world.register(identity("study", name), identity("subject", subject), root, custodian)
    for name, value in {
        "access_heights_max": HEIGHTS_MAX,
        "access_uses_max": USES_MAX,
        "request_waiting_heights": WAITING_HEIGHTS,
        "break_glass_heights": GLASS_HEIGHTS,
    }.items():
        world.set_parameter(name, value)
    return world.fork()


class Contracts:
    """Does the model's steps to the contracts; each returns the events."""

    def __init__(self):
        self.world = beginning().fork()

    def access(self, sender, verb, name, *rest):
        if verb == "request":
            study, *rest = rest
            arguments = (identity("study", study), *rest, False, None, None)
        elif verb == "break_glass":
            study, *rest = rest
            arguments = (identity("study", study), *rest, None)
        elif verb == "deliver":
            arguments = (digest("wrapped"),)
        elif verb == "receive":
            arguments = (digest("root", *rest),)
        else:
            arguments = rest
        return self.world.act(sender, f"access.{verb}", identity("request", name), *arguments)

    def consent_rule(self, custodian, subject, name, effect, study, recipient, purposes, last):
        return self._consent(
            custodian,
            "grant" if effect == "permit" else "restrict",
            identity("consent", name),
            identity("subject", subject),
            study and identity("study", study),
            recipient,
            purposes,
            last,
        )

    def consent_withdraw(self, custodian, subject, name):
        ids = identity("subject", subject), identity("consent", name)
        return self._consent(custodian, "withdraw", *ids)

    def consent_opt_out(self, custodian, subject):
        return self._consent(custodian, "opt_out", identity("subject", subject))

    def consent_opt_in(self, custodian, subject):
        return self._consent(custodian, "opt_in", identity("subject", subject))

    def _consent(self, custodian, verb, *arguments):
        sender = custodian, "clinician"
        return self.world.act(sender, f"consent.{verb}", *arguments, digest("form"))

    def consent_bind(self, custodian, subject):
        arguments = identity("subject", subject), key_of(custodian, "patient")
        return self.world.act((custodian, "gateway"), "consent.bind", *arguments)

    def policy_publish(self, institution, *rule):
        return self._policy(policy.apply_publish, institution, policy.parse_publish(rule))

    def policy_retire(self, institution, name):
        return self._policy(policy.apply_retire, institution, policy.parse_retire((name,)))

    def _policy(self, apply, institution, parsed):
        """The consortium's rules too, which a vote changes."""
        world = self.world
        world.position += 1
        place = world.height, 0, world.position
        apply(Context(world.state, *place, "", bytes(32), frozenset()), institution, parsed)
        return ()

    def study_close(self, study, how):
        study_id, custodian = self._study(study)
        verb = {"retired": "retire", "erased": "erase"}[how]
        return self.world.act((custodian, "gateway"), f"study.{verb}", study_id, "other")

    def study_move(self, study, institution, subject):
        study_id, custodian = self._study(study)
        self.world.act((custodian, "gateway"), "study.offer", study_id, institution)
        arguments = study_id, identity("subject", subject)
        return self.world.act((institution, "gateway"), "study.accept", *arguments)

    def _study(self, study):
        study_id = identity("study", study)
        return study_id, decode_study(self.world.state.get(study_key(study_id))).custodian

    def institution_suspend(self, institution):
        self.world.set_active(institution, active=False)
        return ()

    def institution_resume(self, institution):
        self.world.set_active(institution)
        return ()


class Mismatch(Exception):
    """The contracts and the model came out differently."""


NAMES = {identity("request", number): number for number in range(-1, REQUESTS)}
_RULE_FIELD = {"access_granted": 4, "access_denied": 4, "access_waiting": 4, "access_used": 3}


class Play:
    """One sequence, done to the contracts and to the model side by side."""

    def __init__(self, seen=None):
        self.model = Model()
        self.contracts = Contracts()
        self.seen = Counter() if seen is None else seen
        self.steps = 0

    def do(self, step, *, strict=True):
        """Do one step to both. Raises `Mismatch`; where not `strict`, a step of the world around
        that is refused is left out."""
        kind, *arguments = step
        self.steps += 1
        self.model.events = []
        if kind == "height":
            self.model.height += arguments[0]
            self.contracts.world.height += arguments[0]
            events = ()
        else:
            events = self._do(kind, arguments, strict)
        if events is not None:
            self._compare_events(events)
        self._compare_requests()

    def _do(self, kind, arguments, strict):
        code, events = None, ()
        try:
            events = getattr(self.contracts, kind)(*arguments)
        except Rejected as rejected:
            code = rejected.code
        if kind != "access":
            if code is None:
                getattr(self.model, kind)(*arguments)
            elif strict:
                raise Mismatch(f"{kind} was refused: {code}")
            self.seen[kind] += code is None
            return events
        sender, verb, *rest = arguments
        expected = getattr(self.model, f"access_{verb}")(sender, *rest)
        self.seen[verb, expected] += 1
        if code != expected:
            raise Mismatch(f"the contract says {code}, the model {expected}")
        return events

    def _compare_events(self, events):
        found = []
        for name, fields in events:
            if name.startswith("access_"):
                rule = (fields[_RULE_FIELD[name]],) if name in _RULE_FIELD else ()
                found.append((name, NAMES[fields[0]], *rule))
        if found != self.model.events:
            raise Mismatch(f"events are {found}, the model has {self.model.events}")

    def _compare_requests(self):
        get = self.contracts.world.state.get
        height = self.model.height
        for name, expected in self.model.requests.items():
            held = access.find_request(get, identity("request", name))
            if (held.state, held.uses) != (expected.state, expected.uses):
                raise Mismatch(f"request {name} is {held.state}, in the model {expected.state}")
            # At this height or, every other time, at the next: what counts only from then on.
            at = height + self.steps % 2
            code, wanted = access.permitted(get, held, at), self.model.permitted(expected, at)
            if code != wanted:
                raise Mismatch(f"request {name} permits {code} at {at}, in the model {wanted}")
            self.seen["permitted", code] += 1

    def finish(self):
        """Compare all that the steps left behind."""
        world, model = self.contracts.world, self.model
        for name, expected in model.requests.items():
            held = world.held(identity("request", name))
            found = held.valid_from, held.expires_height, held.finding, held.break_glass
            over = None if expected.state in ("denied", "cancelled") else expected.over
            begin = None if expected.begin == inf else expected.begin
            if found != (begin, over, expected.finding, expected.glass):
                raise Mismatch(f"request {name} has {found}, in the model {expected}")
            self.seen["ends", expected.state] += 1
        self._compare_lists(
            "request_waiting", lambda request: request.state in WAITING, lambda r: r.custodian
        )
        self._compare_lists(
            "break_glass_unreviewed",
            lambda request: request.glass and request.finding is None,
            lambda r: r.custodian,
        )
        self._compare_lists("request_institution", lambda request: True, lambda r: r.asker)
        self._compare_lists("request_custodian", lambda request: True, lambda r: r.custodian)
        for custodian, subject in model.records:
            waiting = [
                identity("request", name)
                for name, request in model.requests.items()
                if request.state == "waiting_consent"
                and (request.custodian, request.subject) == (custodian, subject)
            ]
            if world.waiting(identity("subject", subject), custodian) != waiting:
                raise Mismatch(f"the list of what waits for {subject} at {custodian} differs")

    def _compare_lists(self, index, listed, key):
        for institution in INSTITUTIONS:
            expected = [
                identity("request", name)
                for name, request in self.model.requests.items()
                if listed(request) and key(request) == institution
            ]
            if self.contracts.world.listed(index, institution.encode()) != expected:
                raise Mismatch(f"the index {index} of {institution} differs")


def play(seed, seen=None):
    """Play the sequence of `seed`. Raises AssertionError with the steps that matter."""
    game = Play(seen)
    author = Author(seed, game.model)
    steps = []
    try:
        for _ in range(STEPS):
            steps.append(author.step())
            game.do(steps[-1])
        game.finish()
    except Mismatch as mismatch:
        steps, mismatch = shrink(steps, mismatch)
        shown = "\n".join(f"    {step}" for step in steps)
        raise AssertionError(f"seed {seed}: {mismatch}\n{shown}") from None
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error!r} after {steps}") from error


def failure(steps):
    """Return how a given list of steps fails, or None."""
    game = Play()
    try:
        for step in steps:
            game.do(step, strict=False)
        game.finish()
    except Mismatch as mismatch:
        return mismatch
    except (KeyError, AttributeError):
        return None  # a step is about something that a step left out would have made
    return None


def shrink(steps, mismatch):
    """Leave out, one after another, the steps without which it fails as well."""
    place = len(steps) - 1
    while place >= 0:
        shorter = steps[:place] + steps[place + 1 :]
        found = failure(shorter)
        if found is not None:
            steps, mismatch = shorter, found
        place -= 1
    return steps, mismatch


@pytest.fixture(scope="module")
def seen():
    """What came up in all sequences, after each came out as the model says."""
    counts = Counter()
    for seed in range(SEQUENCES):
        play(seed, counts)
    return counts


def test_contracts_and_model_agree(seen):
    assert sum(seen["ends", state] for state in STATES) > SEQUENCES


def test_every_state_is_the_end_of_many_sequences(seen):
    rare = {state: seen["ends", state] for state in STATES if seen["ends", state] < 100}
    assert rare == {}


def test_every_operation_takes_effect_and_is_refused_often(seen):
    verbs = [kind.name.removeprefix("access.") for kind in access.KINDS]
    done = {verb: seen[verb, None] for verb in verbs}
    refused = Counter()
    for key, count in seen.items():
        if key[0] in verbs and key[1] is not None:
            refused[key[0]] += count
    assert {verb: count for verb, count in done.items() if count < 200} == {}
    assert {verb for verb in verbs if refused[verb] < 200} == set()


def test_every_code_comes_up_and_every_reason_that_stops_a_grant(seen):
    codes = Counter()
    for key, count in seen.items():
        if isinstance(key, tuple) and key[0] not in ("ends", "permitted"):
            codes[key[1]] += count
    # Keys, parameters of the list and unknown studies are not part of the sequences.
    apart = {"key_unknown", "key_retired", "waiting_full", "study_unknown"}
    assert {code for code in access.REJECTIONS if codes[code] < 5} == apart
    stops = {
        "request_not_valid_yet",
        "request_expired",
        "uses_spent",
        "study_retired",
        "study_erased",
        "custody_moved",
        "institution_suspended",
        "consent_refused",
        "consent_missing",
        None,
    }
    assert {code for code in stops if seen["permitted", code] < 100} == set()


def test_the_world_around_changes_in_every_way(seen):
    kinds = [name for name in vars(Contracts) if name[0] != "_" and name != "access"]
    assert {kind for kind in kinds if seen[kind] < 200} == set()


if __name__ == "__main__":
    play(int(sys.argv[1]))
