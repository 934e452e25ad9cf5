"""Random governance against a simple reference, which keeps names in lists and counts by hand.

Each step is predicted by the reference to the code, so a rule that one of them lacks shows at once;
after each step what must never happen is looked for in the state itself.
"""

from random import Random

import pytest

from consensus.errors import InvariantViolation
from node.ledger import accounts, membership
from node.ledger.contracts import governance
from node.ledger.contracts import governance_actions as actions
from node.ledger.contracts.governance import find_proposal, tally
from node.ledger.membership import CHANGE_DELAY, PlannedSet
from tests.ledger.consortium import World, consortium, node, node_arguments
from tests.ledger.harness import identity

NAMES = "abcdxy"
PROPOSALS = [identity(("proposal", number)) for number in range(60)]
LABELS = ("a node", "x node", "shared")
SEQUENCES = 250
MANY = consortium(NAMES, "").validator_set()  # as if everybody had a vote


class Reference:
    """What governance is meant to be, without a state, encodings or quorum formulas."""

    def __init__(self, voters):
        self.sets = [(0, [(name, f"{name} node") for name in voters])]
        self.suspended = set()
        self.proposals = {}

    def reigning(self, height):
        return [nodes for begin, nodes in self.sets if begin <= height][-1]

    def voters(self, height):
        return {name for name, _ in self.reigning(height)}

    def quorum(self, height):
        """The least number of which any two groups share more than can be faulty."""
        n = len(self.reigning(height))
        faulty = max(f for f in range(n) if 3 * f < n)
        return min(q for q in range(1, n + 1) if 2 * q - n > faulty)

    def apply(self, verb, by, proposal_id, height, rest):
        held = self.proposals.get(proposal_id)
        if verb == "propose":
            return self._propose(by, proposal_id, height, *rest)
        if held is None:
            return "proposal_unknown"
        if held["state"] != "open":
            return f"proposal_{held['state']}"
        if height >= held["end"]:
            return "proposal_expired"
        if verb == "withdraw":
            if held["by"] != by:
                return "not_proposer"
            held["state"] = "withdrawn"
            return "ok"
        if by not in self.voters(height):
            return "not_validator"
        if verb == "vote":
            held["votes"][by] = rest[0]
            return "ok"
        return self._execute(held, height)

    def _propose(self, by, proposal_id, height, action, arguments, lifetime):
        if by not in self.voters(height):
            return "not_validator"
        if proposal_id in self.proposals:
            return "proposal_exists"
        self.proposals[proposal_id] = {
            "by": by,
            "state": "open",
            "end": height + lifetime,
            "votes": {by: True},
            "effect": (action, *arguments),
        }
        return "ok"

    def _execute(self, held, height):
        approvals = {name for name, approve in held["votes"].items() if approve}
        if len(approvals & self.voters(height)) < self.quorum(height):
            return "quorum_missing"
        code = self._effect(height, *held["effect"])
        if code == "ok":
            held["state"] = "executed"
        return code

    def _effect(self, height, action, name, label=None):
        begin, last = self.sets[-1]
        names = [each for each, _ in last]
        if action == "institution_suspend":
            if name in self.suspended:
                return "institution_suspended"
            if name in names or name in self.voters(height):
                return "institution_votes"
            self.suspended.add(name)
            return "ok"
        if action == "institution_resume":
            if name not in self.suspended:
                return "institution_active"
            self.suspended.remove(name)
            return "ok"
        if begin > height:
            return "change_planned"
        if action == "validator_add":
            if name in self.suspended:
                return "institution_suspended"
            if name in names:
                return "validator_exists"
        elif name not in names:
            return "validator_unknown"
        if action == "validator_remove":
            if len(names) == 1:
                return "validator_last"
            changed = [each for each in last if each[0] != name]
        elif label in [each for _, each in last]:
            return "node_key_used"
        elif action == "validator_add":
            changed = [*last, (name, label)]
        else:
            changed = [(each, label if each == name else old) for each, old in last]
        self.sets.append((height + CHANGE_DELAY, changed))
        return "ok"


def arguments_of(action, name, label):
    return node_arguments(name, label) if label is not None else (name,)


def random_effect(random):
    kind = random.choice(["bring", "bring", "remove", "suspend", "suspend", "resume"])
    name = random.choice("dxy" if random.random() < 0.7 else NAMES)
    if kind == "bring":
        action = random.choice(["validator_add", "validator_rotate"])
        own = [f"{name} node", f"{name} second"]
        return action, name, random.choice(own if random.random() < 0.8 else LABELS)
    return {"remove": "validator_remove"}.get(kind, f"institution_{kind}"), name, None


def random_steps(random, count, play):
    """Steps of which many bring a proposal of somebody who votes to its decision."""
    made = [PROPOSALS[0]]
    for _ in range(count):
        proposal_id = random.choice(made[-3:])
        voting = sorted(play.reference.voters(play.world.height))
        by = random.choice(voting if random.random() < 0.9 else NAMES)
        kind = random.choice(["propose", "decide", "decide", "decide", "vote", "act", "wait"])
        if kind in ("propose", "decide"):
            # Now and then an id that was used before.
            made.append(PROPOSALS[len(made)] if random.random() < 0.95 else proposal_id)
            effect, lifetime = random_effect(random), random.choice([1, 70, 5_000, 5_000])
            yield "propose", by, made[-1], effect, lifetime
            if kind == "decide":
                for voter in random.sample(NAMES, random.randint(3, len(NAMES))):
                    yield "vote", voter, made[-1], random.random() < 0.9
                yield "execute", by, random.choice(made[-2:])
        elif kind == "vote":
            yield "vote", by, proposal_id, random.random() < 0.5
        elif kind == "act":
            yield random.choice(["withdraw", "execute", "execute"]), by, proposal_id
        else:
            yield "wait", random.choice([0, 1, CHANGE_DELAY - 1, CHANGE_DELAY, CHANGE_DELAY, 200])


class Play:
    """One sequence, played to the contracts and to the reference."""

    def __init__(self, voters):
        self.world = World(consortium(voters, "".join(sorted(set(NAMES) - set(voters)))))
        self.reference = Reference(voters)
        self.executed = 0

    def step(self, verb, *rest):
        if verb == "wait":
            self.world.height += 1 + rest[0]
        elif verb == "propose":
            by, proposal_id, (action, *named), lifetime = rest
            arguments = arguments_of(action, *named)
            predicted = action, named, lifetime
            self._apply(verb, by, proposal_id, action, arguments, lifetime, predicted=predicted)
        else:
            self._apply(verb, *rest)
        self._check()

    def _apply(self, verb, by, proposal_id, *rest, predicted=None):
        world, height = self.world, self.world.height
        before = membership.set_count(world.get)
        voters = {each.institution for each in membership.reigning(world.get, height).nodes}
        expected = self.reference.apply(
            verb, by, proposal_id, height, rest if predicted is None else predicted
        )
        code = world.code(f"governance.{verb}", proposal_id, *rest, by=by)
        assert code == expected, (verb, by, rest)
        if verb == "execute" and code == "ok":
            held = find_proposal(world.get, proposal_id)
            approving = {vote.institution for vote in held.votes if vote.approve} & voters
            assert len(approving) >= least_quorum(len(voters))
            self.executed += 1
        else:
            assert membership.set_count(world.get) == before

    def _check(self):
        world, height = self.world, self.world.height
        count = membership.set_count(world.get)
        planned = [membership.planned_set(world.get, index) for index in range(count)]
        assert planned == [
            PlannedSet(begin, tuple(node(name, label) for name, label in nodes))
            for begin, nodes in self.reference.sets
        ]
        assert sum(each.height > height for each in planned) <= 1
        for each in planned:
            names = [voter.institution for voter in each.nodes]
            assert len(names) == len(set(names)) >= 1
            assert len({voter.public_key for voter in each.nodes}) == len(names)
        now = membership.reigning(world.get, height).nodes
        for voter in (*now, *planned[-1].nodes):
            assert accounts.is_active_institution(world.get, voter.institution)


def least_quorum(n):
    return next(q for q in range(1, n + 1) if 2 * q - n > (n - 1) // 3)


def play_all(seeds, steps=40):
    """Play a sequence for each seed; return how many proposals were executed in all."""
    executed = 0
    for seed in seeds:
        random = Random(seed)
        play = Play(random.choice(["a", "ab", "abc", "abcd"]))
        taken = []
        for step in random_steps(random, steps, play):
            taken.append(step)
            try:
                play.step(*step)
            except Exception as error:
                error.add_note(f"seed {seed}, after {len(taken)} steps: {taken}")
                raise
        executed += play.executed
    return executed


def test_governance_does_what_the_reference_does():
    # Sequences in which nothing is ever decided would show little.
    assert play_all(range(SEQUENCES)) > 2 * SEQUENCES


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (governance, "tally", lambda proposal, _: governance.Tally(9, 0, 1, 1)),
        (governance, "tally", lambda held, _: tally(held, MANY)),
        (actions, "_changeable_set", lambda context: membership.latest(context.state.get)),
        (actions, "_require_free_key", lambda *_: None),
        (actions, "_counting_sets", lambda get, height: (membership.latest(get),)),
        (actions, "_counting_sets", lambda get, height: (membership.reigning(get, height),)),
        (actions, "_require_active", lambda *_: None),
        (actions, "CHANGE_DELAY", CHANGE_DELAY - 1),
    ],
)
def test_a_planted_fault_is_caught(monkeypatch, module, name, broken):
    monkeypatch.setattr(module, name, broken)
    with pytest.raises((AssertionError, ValueError, InvariantViolation)):
        play_all(range(SEQUENCES))
