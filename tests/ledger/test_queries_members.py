"""Institutions, members, keys, parameters and proposals as readers see them, on a real chain."""

import pytest

from node.ledger.contracts import registry
from node.ledger.contracts.governance_actions import CHANGE_DELAY
from node.ledger.errors import Refused
from node.ledger.parameters import PARAMETERS
from node.ledger.queries import proposals as proposals_module
from node.ledger.queries.members import (
    encryption_keys_page,
    find_institution,
    institutions_page,
    members_page,
    parameters,
)
from node.ledger.queries.paging import BadQuery
from node.ledger.queries.proposals import find_proposal, proposals_page, try_proposal
from tests.ledger.harness import digest, identity
from tests.ledger.query_world import (
    ASKER,
    CUSTODIAN,
    FOURTH,
    GENESIS,
    NAMES,
    ROLES,
    THIRD,
    World,
    follow,
    member_key,
    new_member,
    node_key,
)


@pytest.fixture
def world():
    return World()


def add_institution(world, name, label=None):
    key, possession = new_member(name)
    arguments = (name, name.title(), "FR", key, possession)
    proposal = world.govern(label or name, "institution_add", *arguments)
    world.send(CUSTODIAN, "administrator", ("governance.execute", proposal))
    return key


def execute(world, proposal, by=CUSTODIAN):
    world.send(by, "administrator", ("governance.execute", proposal))


def trial(world, action, *arguments, connected=None):
    connected = {node_key(name) for name in NAMES} if connected is None else connected
    return try_proposal(world.moment(), GENESIS.chain_id, action, arguments, connected)


def test_an_institution_shows_its_standing_and_its_nodes(world):
    view = find_institution(world.moment(), THIRD)
    assert (view.display_name, view.country, view.is_active) == ("Ukbonn", "DE", True)
    assert (view.administrators, view.is_validator) == (1, True)
    assert (view.validates_from, view.validates_until) == (None, None)
    assert view.observers == (digest("observer"),)
    assert find_institution(world.moment(), CUSTODIAN).observers == ()
    assert find_institution(world.moment(), "nobody") is None


def test_institutions_come_by_name_page_by_page_while_new_ones_join(world):
    moment = world.moment()
    for limit in (1, 3, 200):
        found, sizes = follow(
            lambda cursor, limit=limit: institutions_page(moment, limit, cursor),
            lambda page: page.institutions,
        )
        assert [view.name for view in found] == sorted(NAMES)
        assert max(sizes) <= limit
    first = institutions_page(moment, 2, None)
    add_institution(world, "zurich")
    add_institution(world, "aarhus")
    rest = institutions_page(world.moment(), 50, first.next_cursor)
    names = [view.name for view in (*first.institutions, *rest.institutions)]
    assert names == [*sorted(NAMES), "zurich"]
    assert rest.institutions[-1].country == "FR"


def test_a_suspended_institution_shows_as_not_active_and_its_members_as_not_acting(world):
    key = add_institution(world, "zurich")
    [member] = members_page(world.moment(), "zurich", 50, None).members
    assert (member.public_key, member.roles, member.acts) == (key, ("administrator",), True)
    execute(world, world.govern("suspend", "institution_suspend", "zurich"))
    assert not find_institution(world.moment(), "zurich").is_active
    [member] = members_page(world.moment(), "zurich", 50, None).members
    assert (member.is_active, member.acts) == (True, False)


def test_members_come_by_key_with_what_they_may_do(world):
    moment = world.moment()
    keys = sorted(member_key(ASKER, role) for role in ROLES)
    for limit in (1, 3, 200):
        found, sizes = follow(
            lambda cursor, limit=limit: members_page(moment, ASKER, limit, cursor),
            lambda page: page.members,
        )
        assert [view.public_key for view in found] == keys
        assert all(view.acts and view.institution == ASKER for view in found)
        assert max(sizes) <= limit
    assert members_page(moment, "nobody", 50, None).members == ()


def test_a_rotated_key_shows_until_when_it_acts(world):
    (old, old_possession), (new, possession) = new_member(ASKER), new_member(ASKER)
    add = ("registry.member_add", old, ("clinician",), old_possession)
    world.send(ASKER, "administrator", add)
    world.send(ASKER, "administrator", ("registry.member_rotate", old, new, possession, 3))
    views = {
        view.public_key: view for view in members_page(world.moment(), ASKER, 50, None).members
    }
    assert views[old].until_height == world.height + 3
    assert views[old].acts
    assert views[new].until_height is None
    world.idle(3)
    views = {
        view.public_key: view for view in members_page(world.moment(), ASKER, 50, None).members
    }
    assert (views[old].acts, views[new].acts) == (False, True)


def test_an_encryption_key_shows_how_far_its_proof_has_come(world):
    key_id, answer = identity("key"), digest("answer")
    publish = ("registry.key_publish", key_id, "x25519", digest("x25519 key"))
    world.send(ASKER, "gateway", publish)

    def view():
        [found] = encryption_keys_page(world.moment(), ASKER, 50, None).keys
        return found

    assert (view().state, view().next_step.code) == ("published", "challenge_key")
    challenge = (ASKER, key_id, b"sealed" * 20, registry.challenge_digest(answer))
    world.send(CUSTODIAN, "gateway", ("registry.key_challenge", *challenge))
    assert (view().state, view().next_step.code) == ("challenged", "confirm_key")
    assert view().next_step.institutions == (ASKER,)
    world.send(ASKER, "gateway", ("registry.key_confirm", key_id, answer))
    assert (view().state, view().confirmed_height) == ("confirmed", world.height)
    world.send(ASKER, "gateway", ("registry.key_retire", key_id))
    assert (view().state, view().retired_height) == ("retired", world.height)
    assert (view().kem, view().public_key) == ("x25519", digest("x25519 key"))


def test_encryption_keys_come_newest_first_page_by_page(world):
    for label in range(5):
        key = ("registry.key_publish", identity(label), "x25519", digest(label))
        world.send(ASKER, "gateway", key)
    moment = world.moment()
    found, sizes = follow(
        lambda cursor: encryption_keys_page(moment, ASKER, 2, cursor), lambda page: page.keys
    )
    assert [view.key_id for view in found] == [identity(label) for label in (4, 3, 2, 1, 0)]
    assert sizes == [2, 2, 1]
    assert encryption_keys_page(moment, THIRD, 2, None).keys == ()


def test_parameters_show_their_value_and_bounds(world):
    views = parameters(world.moment())
    assert [view.name for view in views] == sorted(PARAMETERS)
    assert all(view.low <= view.default == view.value <= view.high for view in views)
    execute(world, world.govern("p", "parameter_set", "break_glass_heights", 77))
    changed = {view.name: view.value for view in parameters(world.moment())}
    assert changed["break_glass_heights"] == 77


def test_a_proposal_shows_who_must_vote_until_a_quorum_approves(world):
    proposal = identity(("proposal", "p"))
    arguments = ("break_glass_heights", 77)
    propose = ("governance.propose", proposal, "parameter_set", arguments, 100)
    world.send(CUSTODIAN, "administrator", propose)
    view = find_proposal(world.moment(), proposal)
    assert (view.state, view.approvals, view.quorum, view.n) == ("open", 1, 3, 4)
    assert view.arguments == arguments
    assert view.not_voted == tuple(sorted((ASKER, THIRD, FOURTH)))
    assert (view.next_step.code, view.next_step.institutions) == ("vote", view.not_voted)
    assert view.next_step.until_height == view.expires_height - 1
    for name, approve in ((ASKER, True), (THIRD, False), (FOURTH, False)):
        world.send(name, "administrator", ("governance.vote", proposal, approve))
    view = find_proposal(world.moment(), proposal)
    assert (view.approvals, view.rejections, view.not_voted) == (2, 2, ())
    assert (view.next_step.code, view.next_step.institutions) == ("change_vote", (THIRD, FOURTH))
    world.send(THIRD, "administrator", ("governance.vote", proposal, True))
    view = find_proposal(world.moment(), proposal)
    assert (view.state, view.recorded_state, view.problem) == ("passed", "open", None)
    assert (view.next_step.code, view.next_step.institutions) == ("execute", tuple(sorted(NAMES)))
    execute(world, proposal, FOURTH)
    view = find_proposal(world.moment(), proposal)
    assert (view.state, view.next_step.code) == ("executed", "nothing")
    assert (view.ended_height, view.activation_height) == (world.height, None)


def test_a_change_of_validators_shows_how_many_heights_are_left(world):
    proposal = world.govern("out", "validator_remove", FOURTH)
    execute(world, proposal)
    view = find_proposal(world.moment(), proposal)
    assert view.activation_height == world.height + CHANGE_DELAY
    assert view.heights_left == CHANGE_DELAY - 1
    assert view.next_step.code == "await_height"
    leaving = find_institution(world.moment(), FOURTH)
    assert (leaving.is_validator, leaving.validates_until) == (True, view.activation_height - 1)
    world.idle(CHANGE_DELAY - 1)
    view = find_proposal(world.moment(), proposal)
    assert (view.heights_left, view.next_step.code) == (0, "nothing")
    gone = find_institution(world.moment(), FOURTH)
    assert (gone.is_validator, gone.validates_until) == (False, None)
    assert [(vote.institution, vote.counts) for vote in view.votes] == [
        (CUSTODIAN, True),
        (ASKER, True),
        (THIRD, True),
    ]


def test_what_would_keep_a_passed_proposal_from_being_executed_is_shown(world):
    one = world.govern("one", "validator_remove", FOURTH)
    two = world.govern("two", "validator_remove", THIRD)
    execute(world, one)
    view = find_proposal(world.moment(), two)
    assert (view.state, view.problem) == ("passed", "change_planned")
    assert view.next_step.code == "clear_problem"


def test_a_proposal_shows_as_expired_when_its_time_is_over(world):
    proposal = world.govern("p", "parameter_set", "break_glass_heights", 77, lifetime=5)
    assert find_proposal(world.moment(), proposal).state == "passed"
    world.idle(1)
    assert find_proposal(world.moment(), proposal).state == "passed"
    world.idle(1)
    view = find_proposal(world.moment(), proposal)
    assert (view.state, view.recorded_state, view.problem) == ("expired", "open", None)
    assert view.expires_height == view.height
    assert view.next_step.code == "nothing"


@pytest.fixture(scope="module")
def consortium():
    """Nine proposals, in every state."""
    made = World()
    order = []
    for label in range(9):
        lifetime = 5 if label % 4 == 3 else 200
        proposal = identity(("proposal", label))
        arguments = ("break_glass_heights", 100 + label)
        propose = ("governance.propose", proposal, "parameter_set", arguments, lifetime)
        made.send(CUSTODIAN, "administrator", propose)
        order.insert(0, proposal)
        if label % 4 == 1:
            made.send(CUSTODIAN, "administrator", ("governance.withdraw", proposal))
        if label % 4 == 2:
            for name in (ASKER, THIRD):
                made.send(name, "administrator", ("governance.vote", proposal, True))
        if label == 6:
            execute(made, proposal)
    made.idle(5)
    return made, [find_proposal(made.moment(), each) for each in order]


@pytest.mark.parametrize("limit", [1, 2, 200])
def test_proposals_come_newest_first_by_state(consortium, limit):
    world, views = consortium
    moment = world.moment()
    assert {view.state for view in views} == proposals_module.STATES
    for state in (None, *proposals_module.STATES):
        found, sizes = follow(
            lambda cursor, state=state: proposals_page(moment, state, limit, cursor),
            lambda page: page.proposals,
        )
        assert found == [view for view in views if state in (None, view.state)]
        assert max(sizes) <= limit


def test_the_work_for_one_page_of_proposals_is_bounded(consortium, monkeypatch):
    world, views = consortium
    monkeypatch.setattr(proposals_module, "ROWS_MAX", 2)
    found, sizes = follow(
        lambda cursor: proposals_page(world.moment(), "executed", 50, cursor),
        lambda page: page.proposals,
    )
    assert found == [view for view in views if view.state == "executed"]
    assert len(sizes) > 2


def test_a_trial_shows_the_quorum_after_the_change_and_who_is_live(world):
    before = dict(world.store.iterate(b"", b"\xff"))
    live = {node_key(CUSTODIAN), node_key(ASKER), node_key(FOURTH)}
    foretold = trial(world, "validator_remove", FOURTH, connected=live)
    assert dict(world.store.iterate(b"", b"\xff")) == before
    assert (foretold.problem, foretold.n, foretold.f, foretold.quorum) == (None, 3, 0, 2)
    assert foretold.activation_height == foretold.height + CHANGE_DELAY
    assert (foretold.added, foretold.removed) == ((), (FOURTH,))
    assert foretold.validators == (CUSTODIAN, ASKER, THIRD)
    assert (foretold.live, foretold.absent) == ((CUSTODIAN, ASKER), (THIRD,))
    assert foretold.has_live_quorum
    assert not trial(world, "validator_remove", FOURTH, connected=set()).has_live_quorum


def test_a_trial_says_why_an_action_would_fail(world):
    foretold = trial(world, "validator_remove", "nobody")
    assert (foretold.problem, foretold.activation_height) == ("validator_unknown", None)
    key, _ = new_member("zurich")
    arguments = ("zurich", "Zurich", "CH", key, bytes(64))
    assert trial(world, "institution_add", *arguments).problem == "possession_unproven"
    for action, arguments in (("abolish", ()), ("parameter_set", ("break_glass_heights", -1))):
        with pytest.raises(Refused) as refused:
            trial(world, action, *arguments)
        assert refused.value.code == "operation_invalid"


@pytest.mark.parametrize(
    ("ask", "named"),
    [
        (lambda moment: find_institution(moment, "Charité"), "name"),
        (lambda moment: institutions_page(moment, 0, None), "limit"),
        (lambda moment: institutions_page(moment, 9, "AA"), "cursor"),
        (lambda moment: members_page(moment, "", 9, None), "institution"),
        (lambda moment: members_page(moment, ASKER, 201, None), "limit"),
        (lambda moment: encryption_keys_page(moment, 5, 9, None), "institution"),
        (lambda moment: encryption_keys_page(moment, ASKER, 9, "x" * 129), "cursor"),
        (lambda moment: proposals_page(moment, "failed", 9, None), "state"),
        (lambda moment: proposals_page(moment, None, True, None), "limit"),
        (lambda moment: find_proposal(moment, b"short"), "id"),
    ],
)
def test_a_question_without_meaning_says_which_field(world, ask, named):
    with pytest.raises(BadQuery, match=f"^{named} must"):
        ask(world.moment())


def test_a_cursor_belongs_to_its_institution(world):
    cursor = members_page(world.moment(), ASKER, 1, None).next_cursor
    with pytest.raises(BadQuery, match="cursor"):
        members_page(world.moment(), THIRD, 1, cursor)
