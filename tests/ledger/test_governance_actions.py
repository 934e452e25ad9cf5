"""What each action of governance does, and its form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.wire import pack
from node.ledger import accounts, membership
from node.ledger.contracts import governance, policy
from node.ledger.contracts.governance import dry_run, find_proposal
from node.ledger.contracts.governance_actions import ACTIONS
from node.ledger.errors import REFUSALS, Refused
from node.ledger.genesis import OBSERVERS_MAX, VALIDATORS_MAX, NodeIdentity
from node.ledger.membership import CHANGE_DELAY, PlannedSet
from node.ledger.parameters import PARAMETERS, get_parameter, parameter_key
from tests.ledger.consortium import (
    CHAIN_ID,
    World,
    certificate,
    consortium,
    new_institution_arguments,
    node,
    node_arguments,
    possession,
    public,
)
from tests.ledger.harness import digest, identity

ID = identity("proposal")
SET_USES = ("access_uses_max", 5)
REGISTER_X = node_arguments("x", "x node")


@pytest.fixture
def world():
    return World()


def proposal(world, proposal_id):
    return find_proposal(world.get, proposal_id)


def names(world, height=10**9):
    return [each.institution for each in membership.reigning(world.get, height).nodes]


def vote(world, asked, by, approve=True, **changes):
    return world.apply("governance.vote", asked, approve, by=by, **changes)


def code_of(world, action, *arguments, **changes):
    """The code with which a proposal that all approve fails, or "ok"."""
    asked = world.propose(action, *arguments, **changes)
    for voter in names(world, changes.get("height", world.height)):
        vote(world, asked, voter, **changes)
    return world.code("governance.execute", asked, **changes)


# Validators


def test_a_new_validator_votes_after_the_delay_and_comes_last(world):
    events = world.decide("validator_add", *REGISTER_X)
    assert events[0] == ("governance_validators_planned", 1, 7 + CHANGE_DELAY, 5)
    assert names(world, 6 + CHANGE_DELAY) == ["a", "b", "c", "d"]
    assert names(world, 7 + CHANGE_DELAY) == ["a", "b", "c", "d", "x"]
    assert membership.latest(world.get).nodes[-1] == node("x")
    asked = events[-1][1]
    assert proposal(world, asked).activation_height == 7 + CHANGE_DELAY
    assert world.code("governance.propose", ID, "parameter_set", SET_USES, 9, by="x") == (
        "not_validator"
    )
    begin = {"height": 7 + CHANGE_DELAY}
    assert world.code("governance.propose", ID, "parameter_set", SET_USES, 9, by="x", **begin) == (
        "ok"
    )


def test_a_removed_validator_votes_until_the_set_without_it_reigns(world):
    world.decide("validator_remove", "b")
    assert names(world, 6 + CHANGE_DELAY) == ["a", "b", "c", "d"]
    assert names(world, 7 + CHANGE_DELAY) == ["a", "c", "d"]


def test_a_rotated_validator_keeps_its_place(world):
    world.decide("validator_rotate", *node_arguments("b", "b second"))
    assert names(world) == ["a", "b", "c", "d"]
    assert membership.latest(world.get).node_of("b") == node("b", "b second")


@pytest.mark.parametrize(
    ("action", "arguments"),
    [
        ("validator_add", REGISTER_X),
        ("validator_remove", ("b",)),
        ("validator_rotate", node_arguments("b", "b second")),
    ],
)
def test_one_change_is_planned_at_a_time(world, action, arguments):
    world.decide("validator_remove", "d")
    last = 6 + CHANGE_DELAY
    assert code_of(world, action, *arguments) == "change_planned"
    assert code_of(world, action, *arguments, height=last) == "change_planned"
    assert code_of(world, action, *arguments, height=last + 1) == "ok"


def test_an_institution_has_one_vote(world):
    again = node_arguments("a", "a second")
    assert code_of(world, "validator_add", *again) == "validator_exists"


def test_the_last_validator_stays():
    world = World(consortium("a"))
    assert code_of(world, "validator_remove", "a") == "validator_last"


@pytest.mark.parametrize(
    ("action", "arguments"),
    [("validator_remove", ("x",)), ("validator_rotate", REGISTER_X)],
)
def test_only_a_validator_can_be_removed_or_rotated(world, action, arguments):
    assert code_of(world, action, *arguments) == "validator_unknown"


def test_a_node_key_votes_once(world):
    assert code_of(world, "validator_add", *node_arguments("x", "a node")) == "node_key_used"
    assert code_of(world, "validator_rotate", *node_arguments("b", "a node")) == "node_key_used"
    assert code_of(world, "validator_rotate", *node_arguments("a", "a node")) == "node_key_used"


def test_an_observer_can_be_promoted_by_its_own_institution_only(world):
    world.decide("observer_add", *REGISTER_X)
    assert code_of(world, "validator_add", *node_arguments("y", "x node")) == "node_key_used"
    assert code_of(world, "validator_add", *REGISTER_X) == "ok"
    assert membership.observer(world.get, public("x node")) == node("x")


def test_a_validator_is_of_an_institution_that_acts(world):
    assert code_of(world, "validator_add", *node_arguments("z", "z node")) == "institution_unknown"
    world.decide("institution_suspend", "x")
    assert code_of(world, "validator_add", *REGISTER_X) == "institution_suspended"


def test_there_are_so_many_validators_and_no_more(world):
    nodes = tuple(
        NodeIdentity(f"i{number}", digest(number), b"") for number in range(VALIDATORS_MAX - 1)
    )
    full = PlannedSet(1, (node("a"), *nodes))
    membership.append(world.state.put, world.get, full)
    assert dry_run(world.get, "validator_add", REGISTER_X, 7).problem == "validators_full"


# Observers


def test_an_observer_is_listed_until_it_is_removed(world):
    added = world.decide("observer_add", *REGISTER_X)[0]
    assert added == ("governance_observer_added", "x", public("x node"))
    assert membership.observer(world.get, public("x node")) == node("x")
    removed = world.decide("observer_remove", public("x node"))[0]
    assert removed == ("governance_observer_removed", "x", public("x node"))
    assert membership.observer(world.get, public("x node")) is None


def test_the_rules_of_observers(world):
    world.decide("observer_add", *REGISTER_X)
    assert code_of(world, "observer_add", *REGISTER_X) == "observer_exists"
    assert code_of(world, "observer_add", *node_arguments("y", "x node")) == "observer_exists"
    assert code_of(world, "observer_add", *node_arguments("y", "a node")) == "node_key_used"
    assert code_of(world, "observer_add", *node_arguments("z", "z node")) == "institution_unknown"
    assert code_of(world, "observer_remove", public("y node")) == "observer_unknown"
    world.decide("institution_suspend", "y")
    assert code_of(world, "observer_add", *node_arguments("y", "y node")) == "institution_suspended"


def test_a_validator_that_is_voted_out_can_stay_to_follow(world):
    world.decide("observer_add", *node_arguments("d", "d node"))
    world.decide("validator_remove", "d")
    assert membership.observer(world.get, public("d node")) == node("d")


def test_there_are_so_many_observers_and_no_more(world):
    world.state.put(b"observers", pack((1, OBSERVERS_MAX)))
    assert code_of(world, "observer_add", *REGISTER_X) == "observers_full"


# Institutions


def test_a_new_institution_begins_with_one_administrator(world):
    events = world.decide("institution_add", *new_institution_arguments("st-anna"))
    key = public("st-anna admin")
    assert events[0] == ("governance_institution_added", "st-anna", "CH", key)
    assert accounts.find_institution(world.get, "st-anna") == accounts.new_institution(
        "St-Anna", "CH", 1
    )
    assert accounts.member_roles(world.get, "st-anna", key, 7) == {"administrator"}
    rows = world.state.index_changes()
    assert (accounts.INDEX_INSTITUTION, (b"st-anna",), b"") in rows
    assert (accounts.INDEX_MEMBER, (b"st-anna", key), b"") in rows


def test_an_institutions_name_is_used_once(world):
    assert code_of(world, "institution_add", *new_institution_arguments("x")) == (
        "institution_exists"
    )


def test_an_institution_is_suspended_and_resumed(world):
    assert world.decide("institution_suspend", "x")[0] == ("governance_institution_suspended", "x")
    assert accounts.member_roles(world.get, "x", public("x admin"), 7) is None
    assert code_of(world, "institution_suspend", "x") == "institution_suspended"
    assert world.decide("institution_resume", "x")[0] == ("governance_institution_resumed", "x")
    assert accounts.member_roles(world.get, "x", public("x admin"), 7) == {"administrator"}
    assert code_of(world, "institution_resume", "x") == "institution_active"


@pytest.mark.parametrize("action", ["institution_suspend", "institution_resume"])
def test_an_unknown_institution_is_named_as_such(world, action):
    assert code_of(world, action, "z") == "institution_unknown"


def test_an_institution_with_a_vote_now_or_as_planned_is_not_suspended(world):
    assert code_of(world, "institution_suspend", "d") == "institution_votes"
    world.decide("validator_remove", "d")
    last = 6 + CHANGE_DELAY
    assert code_of(world, "institution_suspend", "d", height=last) == "institution_votes"
    assert code_of(world, "institution_suspend", "d", height=last + 1) == "ok"
    world.decide("validator_add", *REGISTER_X, height=last + 1)
    assert code_of(world, "institution_suspend", "x", height=last + 2) == "institution_votes"


# Parameters and policies


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_is_set_within_its_bounds(world, name):
    bounds = PARAMETERS[name]
    for value in (bounds.low, bounds.high):
        world.decide("parameter_set", name, value)
        assert get_parameter(world.get, name) == value
        world.state.delete(parameter_key("proposal_heights"))
    for value in (bounds.low - 1, bounds.high + 1):
        with pytest.raises(Refused, match="value must be"):
            world.propose("parameter_set", name, value)


def test_a_policy_of_the_consortium_comes_and_goes_by_vote(world):
    rule = ("no-export", "deny", "required", "requester.country != study.country")
    assert world.decide("policy_publish", *rule)[0][:3] == ("policy_published", "", "no-export")
    (held,) = policy.rules_in_force(world.get, policy.CONSORTIUM, 8)
    assert (held.name, held.effect) == ("no-export", "deny")
    assert policy.rules_in_force(world.get, "a", 8) == ()
    assert world.decide("policy_retire", "no-export", height=8)[0] == (
        "policy_retired",
        "",
        "no-export",
    )
    assert policy.rules_in_force(world.get, policy.CONSORTIUM, 9) == ()
    assert code_of(world, "policy_retire", "no-export", height=9) == "policy_unknown"


# Proofs of possession


@pytest.mark.parametrize(
    ("action", "arguments"),
    [
        ("institution_add", new_institution_arguments("st-anna")),
        ("validator_add", REGISTER_X),
        ("validator_rotate", node_arguments("b", "b second")),
        ("observer_add", REGISTER_X),
    ],
)
@pytest.mark.parametrize(
    "signature", [bytes(64), possession("y", "x node"), possession("x", "other")]
)
def test_a_key_whose_possession_is_not_proved_is_not_proposed(world, action, arguments, signature):
    asked = (ID, action, (*arguments[:-1], signature), 9)
    assert world.code("governance.propose", *asked) == "possession_unproven"
    tried = dry_run(world.get, *asked[1:3], 7, chain_id=CHAIN_ID)
    assert tried.problem == "possession_unproven"
    assert world.code("governance.propose", ID, action, arguments, 9) == "ok"


# Forms

GOOD_ACTIONS = {
    "institution_add": new_institution_arguments("st-anna"),
    "institution_suspend": ("x",),
    "institution_resume": ("x",),
    "validator_add": REGISTER_X,
    "validator_remove": ("a",),
    "validator_rotate": node_arguments("a", "a second"),
    "observer_add": REGISTER_X,
    "observer_remove": (public("x node"),),
    "parameter_set": SET_USES,
    "policy_publish": ("night", "permit", "not_objected", "block.hour < 6"),
    "policy_retire": ("night",),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_is_proposed_in_its_form_and_no_other(world, action):
    good = GOOD_ACTIONS[action]
    assert world.code("governance.propose", ID, action, good, 9) == "ok"
    for arguments in (good[:-1], (*good, 0), tuple(None for _ in good)):
        with pytest.raises(Refused):
            world.propose(action, *arguments)


@pytest.mark.parametrize(
    ("action", "position", "value"),
    [
        ("institution_add", 0, "Sankt Anna"),
        ("institution_add", 1, ""),
        ("institution_add", 1, "a\x1b[2J"),
        ("institution_add", 1, "Meier, 19620304"),
        ("institution_add", 1, b"bytes"),
        ("institution_add", 2, "ch"),
        ("institution_add", 2, None),
        ("institution_add", 3, bytes(32)),
        ("institution_add", 4, bytes(65)),
        ("institution_suspend", 0, "Dr. Meier"),
        ("validator_add", 0, 5),
        ("validator_add", 1, public("y node")),
        ("validator_add", 2, b""),
        ("validator_add", 2, certificate("y node")),
        ("validator_add", 2, bytes(5_000)),
        ("validator_add", 2, "text"),
        ("validator_add", 3, b""),
        ("observer_remove", 0, bytes(31)),
        ("parameter_set", 0, "nothing"),
        ("parameter_set", 1, True),
        ("policy_publish", 1, "maybe"),
        ("policy_publish", 3, "patient.name == 'x'"),
    ],
)
def test_arguments_of_the_wrong_form_are_not_proposed(world, action, position, value):
    arguments = list(GOOD_ACTIONS[action])
    arguments[position] = value
    with pytest.raises(Refused) as refused:
        world.propose(action, *arguments)
    assert refused.value.code == "operation_invalid"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 2**40)
    | st.binary(max_size=64)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=6,
)


@given(st.sampled_from(sorted(ACTIONS)), st.data())
def test_no_arguments_do_more_than_be_refused(action, data):
    arguments = tuple(data.draw(st.just(value) | VALUES) for value in GOOD_ACTIONS[action])
    code = None
    try:
        code = dry_run(World().get, action, arguments, 7, chain_id=CHAIN_ID).problem
    except Refused as refused:
        code = refused.code
    assert code in {None} | REFUSALS.keys() | governance.REJECTIONS.keys()
