"""Governance, rule by rule: proposals, votes, the dry run; the actions have tests of their own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.wire import pack
from node.ledger import membership
from node.ledger.contracts import governance
from node.ledger.contracts.governance import dry_run, find_proposal, tally
from node.ledger.errors import Refused
from node.ledger.membership import CHANGE_DELAY
from node.ledger.parameters import encode_parameter, get_parameter, parameter_key
from storage.errors import CorruptRecord
from tests.ledger.consortium import (
    KINDS,
    World,
    certificate,
    consortium,
    node,
    node_arguments,
    possession,
    public,
)
from tests.ledger.harness import Chain, identity, transaction

ID = identity("proposal")
SET_USES = ("access_uses_max", 5)
REGISTER_X = node_arguments("x", "x node")


@pytest.fixture
def world():
    return World()


def proposal(world, proposal_id):
    return find_proposal(world.get, proposal_id)


def vote(world, asked, by, approve=True, **changes):
    return world.apply("governance.vote", asked, approve, by=by, **changes)


# The life of a proposal


def test_a_proposal_is_put_voted_and_executed(world):
    asked = ("parameter_set", SET_USES, 100)
    assert world.apply("governance.propose", ID, *asked) == [
        ("governance_proposed", ID, "a", "parameter_set")
    ]
    made = proposal(world, ID)
    assert (made.institution, made.member_key, made.state) == ("a", public("a admin"), "open")
    assert (made.proposed_height, made.expires_height) == (7, 107)
    assert (made.action, made.arguments) == ("parameter_set", SET_USES)
    assert world.state.index_changes() == [(governance.INDEX_PROPOSAL, (made.ordinal,), ID)]
    assert vote(world, ID, "b") == [("governance_voted", ID, "b", "approved")]
    assert vote(world, ID, "c", approve=False) == [("governance_voted", ID, "c", "refused")]
    assert world.code("governance.execute", ID) == "quorum_missing"
    vote(world, ID, "d", height=8)
    assert world.apply("governance.execute", ID, by="c", height=9) == [
        ("governance_parameter_set", "access_uses_max", 5),
        ("governance_executed", ID, "parameter_set", 3),
    ]
    made = proposal(world, ID)
    assert (made.state, made.ended_height, made.activation_height) == ("executed", 9, None)
    assert get_parameter(world.get, "access_uses_max") == 5


def test_to_propose_is_to_approve_and_votes_are_kept_by_institution(world):
    asked = world.propose("parameter_set", *SET_USES, by="c")
    assert proposal(world, asked).votes == (("c", True),)
    vote(world, asked, "a", approve=False)
    assert proposal(world, asked).votes == (("a", False), ("c", True))


def test_one_institution_has_one_vote_which_it_can_change(world):
    asked = world.propose("parameter_set", *SET_USES)
    for _ in range(3):
        vote(world, asked, "a")
        vote(world, asked, "b")
    assert world.code("governance.execute", asked) == "quorum_missing"
    vote(world, asked, "c")
    vote(world, asked, "b", approve=False)
    assert world.code("governance.execute", asked) == "quorum_missing"
    vote(world, asked, "b")
    assert world.code("governance.execute", asked) == "ok"


@pytest.mark.parametrize("verb", ["propose", "vote", "execute"])
@pytest.mark.parametrize("by", ["x", "nowhere"])
def test_only_institutions_with_a_validator_take_part(world, verb, by):
    asked = world.propose("parameter_set", *SET_USES)
    arguments = {
        "propose": (ID, "parameter_set", SET_USES, 9),
        "vote": (asked, True),
        "execute": (asked,),
    }[verb]
    assert world.code(f"governance.{verb}", *arguments, by=by) == "not_validator"


@pytest.mark.parametrize("kind", governance.KINDS, ids=lambda kind: kind.name)
def test_only_administrators_take_part(kind):
    assert kind.roles == {"administrator"}


def test_a_proposal_id_is_used_once(world):
    asked = world.propose("parameter_set", *SET_USES)
    again = (asked, "parameter_set", SET_USES, 9)
    assert world.code("governance.propose", *again, by="b") == "proposal_exists"


def test_an_unknown_proposal_is_named_as_such(world):
    assert world.code("governance.vote", ID, True) == "proposal_unknown"
    assert world.code("governance.withdraw", ID) == "proposal_unknown"
    assert world.code("governance.execute", ID) == "proposal_unknown"


def test_the_proposers_institution_alone_withdraws(world):
    asked = world.propose("parameter_set", *SET_USES)
    assert world.code("governance.withdraw", asked, by="b") == "not_proposer"
    assert world.apply("governance.withdraw", asked, height=8) == [
        ("governance_withdrawn", asked, "a")
    ]
    assert (proposal(world, asked).state, proposal(world, asked).ended_height) == ("withdrawn", 8)


def end(world, how):
    asked = world.propose("parameter_set", *SET_USES, lifetime=10)
    vote(world, asked, "b")
    vote(world, asked, "c")
    if how == "expired":
        world.height += 10
    elif how == "executed":
        world.apply("governance.execute", asked)
    else:
        world.apply("governance.withdraw", asked)
    return asked


@pytest.mark.parametrize("how", ["executed", "withdrawn", "expired"])
def test_what_has_ended_takes_no_more(world, how):
    asked = end(world, how)
    for verb, *rest in (("vote", True), ("withdraw",), ("execute",)):
        assert world.code(f"governance.{verb}", asked, *rest) == f"proposal_{how}"


def test_a_proposal_lives_until_the_height_before_its_end(world):
    asked = world.propose("parameter_set", *SET_USES, lifetime=10)
    vote(world, asked, "b", height=16)
    vote(world, asked, "c", height=16)
    assert world.code("governance.execute", asked, height=17) == "proposal_expired"
    assert world.code("governance.execute", asked, height=16) == "ok"


def test_the_lifetime_is_bounded_by_a_parameter(world):
    world.state.put(parameter_key("proposal_heights"), encode_parameter(100))
    asked = (ID, "parameter_set", SET_USES)
    assert world.code("governance.propose", *asked, 101) == "lifetime_over_limit"
    assert world.code("governance.propose", *asked, 100) == "ok"


def test_an_effect_that_fails_leaves_the_proposal_open(world):
    asked = world.propose("institution_resume", "x")
    vote(world, asked, "b")
    vote(world, asked, "c")
    assert world.code("governance.execute", asked) == "institution_active"
    assert proposal(world, asked).state == "open"
    world.decide("institution_suspend", "x")
    assert world.code("governance.execute", asked) == "ok"


@pytest.mark.parametrize(
    ("voters", "n", "quorum"),
    [("a", 1, 1), ("ab", 2, 2), ("abc", 3, 2), ("abcd", 4, 3), ("abcde", 5, 4), ("abcdef", 6, 4)],
)
def test_a_quorum_decides_whatever_the_number_of_validators(voters, n, quorum):
    world = World(consortium(voters))
    asked = world.propose("parameter_set", *SET_USES)
    for count, voter in enumerate(voters, 1):
        vote(world, asked, voter)
        expected = "ok" if count >= quorum else "quorum_missing"
        savepoint = world.state.checkpoint()
        assert world.code("governance.execute", asked) == expected
        world.state.rollback(savepoint)
    validators = membership.latest(world.get).validator_set()
    assert tally(proposal(world, asked), validators) == (n, 0, n, quorum)


def test_votes_count_only_while_their_institution_has_a_validator(world):
    asked = world.propose("parameter_set", *SET_USES, by="d")
    vote(world, asked, "c")
    vote(world, asked, "b", approve=False)
    world.decide("validator_remove", "d")
    begin = world.height + CHANGE_DELAY
    assert world.code("governance.execute", asked, height=begin) == "quorum_missing"
    assert world.code("governance.vote", asked, True, by="d", height=begin) == "not_validator"
    vote(world, asked, "a", height=begin)
    # Of a, b, c two are a quorum; before, with d among four, three would have been.
    assert world.code("governance.execute", asked, height=begin) == "ok"


def test_who_has_no_validator_any_more_can_still_withdraw(world):
    asked = world.propose("parameter_set", *SET_USES, by="d")
    world.decide("validator_remove", "d")
    height = world.height + CHANGE_DELAY
    assert world.code("governance.withdraw", asked, by="d", height=height) == "ok"


# The dry run


def test_a_dry_run_shows_the_set_that_would_follow_and_changes_nothing(world):
    before = world.state.changes()
    tried = dry_run(world.get, "validator_add", REGISTER_X, 7)
    assert tried == (None, 5, 1, 4, 7 + CHANGE_DELAY, ("x",), (), tried.nodes)
    assert tried.nodes[-1] == node("x")
    assert dry_run(world.get, "validator_remove", ("d",), 7)[:7] == (
        (None, 3, 0, 2, 7 + CHANGE_DELAY, (), ("d",))
    )
    rotated = dry_run(world.get, "validator_rotate", node_arguments("b", "b second"), 7)
    assert rotated[:7] == (None, 4, 1, 3, 7 + CHANGE_DELAY, (), ())
    assert world.state.changes() == before
    assert world.state.index_changes() == []


def test_a_dry_run_of_another_action_shows_the_set_as_it_is(world):
    assert dry_run(world.get, "parameter_set", SET_USES, 7)[:7] == (None, 4, 1, 3, None, (), ())
    assert get_parameter(world.get, "access_uses_max") == 1_000


def test_a_dry_run_names_the_problem_that_execution_would(world):
    world.decide("validator_remove", "d")
    tried = dry_run(world.get, "validator_add", REGISTER_X, 7)
    assert tried[:7] == ("change_planned", 3, 0, 2, None, (), ())


@pytest.mark.parametrize(
    ("action", "arguments"), [("reboot", ()), ("parameter_set", ("x", 1)), ("validator_add", ())]
)
def test_a_dry_run_refuses_what_cannot_be_proposed(world, action, arguments):
    with pytest.raises(Refused) as refused:
        dry_run(world.get, action, arguments, 7)
    assert refused.value.code == "operation_invalid"


# Forms


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("propose", (b"text like a name", "parameter_set", SET_USES, 9)),
        ("propose", (ID, "reboot", (), 9)),
        ("propose", (ID, ["parameter_set"], (), 9)),
        ("propose", (ID, "parameter_set", "access_uses_max", 9)),
        ("propose", (ID, "parameter_set", SET_USES, 0)),
        ("propose", (ID, "parameter_set", SET_USES, 10**9)),
        ("propose", (ID, "parameter_set", SET_USES)),
        ("vote", (ID, 1)),
        ("vote", (ID, None)),
        ("vote", (b"x", True)),
        ("withdraw", ()),
        ("execute", (bytes(16),)),
    ],
)
def test_operations_of_the_wrong_form_are_refused(verb, arguments):
    with pytest.raises(Refused) as refused:
        KINDS[f"governance.{verb}"].parse(arguments)
    assert refused.value.code == "operation_invalid"


@given(
    st.binary(max_size=60)
    | st.sampled_from(
        [(), (1,), (2, *range(11)), (1, *range(11)), (1, *range(7), (5,), 9, 0, 1)]
    ).map(pack)
)
def test_a_damaged_proposal_is_reported_as_such(row):
    with pytest.raises(CorruptRecord):
        governance.decode_proposal(row)


def test_what_is_stored_is_read_back(world):
    asked = world.propose("validator_add", *REGISTER_X)
    row = world.get(governance.proposal_key(asked))
    assert pack(governance.decode_proposal(row)) == row


def test_every_code_has_a_sentence():
    assert all(sentence and sentence[0].islower() for sentence in governance.REJECTIONS.values())


# On a chain


def test_a_vote_on_a_chain_changes_who_seals_and_who_may_send():
    genesis = consortium("abcd", "x")
    chain = Chain(genesis=genesis)

    def send(by, *operations, label=None):
        key = public(f"{by} admin" if label is None else label)
        return transaction(*operations, institution=by, key=key, genesis=genesis)

    x_node = ("x", public("x node"), certificate("x node"))
    proof = possession("x", "x node", genesis.chain_id)
    asked = ("governance.propose", ID, "validator_add", (*x_node, proof), 100)
    codes = chain.codes(
        send("a", asked),
        send("b", ("governance.vote", ID, True)),
        send("x", ("governance.vote", ID, True)),
        send("c", ("governance.vote", ID, True), ("governance.execute", ID)),
    )
    assert codes == ["ok", "ok", "not_validator", "ok"]
    planned = membership.latest(chain.chain.state_value)
    assert (planned.height, planned.nodes[-1]) == (1 + CHANGE_DELAY, node("x"))
    rotated = ("registry.member_rotate", public("x admin"), public("x second"))
    signature = possession("x", "x second", genesis.chain_id)
    assert chain.codes(send("x", (*rotated, signature, 1))) == ["ok"]
    old, new = genesis.validator_set().digest, planned.validator_set().digest
    while chain.executor.head.height < CHANGE_DELAY - 1:
        header = chain.add_null().header
        assert (header.validators_digest, header.next_validators_digest) == (old, old)
    header = chain.add_null().header
    assert (header.validators_digest, header.next_validators_digest) == (old, new)
    late = ("governance.propose", identity("late"), "parameter_set", SET_USES, 9)
    block = chain.add(send("x", late), send("x", late, label="x second"))
    assert [receipt.code for receipt in block.receipts] == ["member_unknown", "ok"]
    assert block.header.validators_digest == new
