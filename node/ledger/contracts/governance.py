"""Governance: what the consortium decides by vote of the institutions that have a validator.

    propose -> open -> executed | withdrawn; or over at its expiry, when nothing was decided

Who votes are the institutions of the set that reigns at the height of the operation, one vote each,
given by an administrator and changed at will until the end; to propose is to approve. A proposal is
executed by whichever of them asks first, once as many approve as are a quorum of the set that
reigns then: an approval counts only while its institution votes. An action thus needs as many as a
block does, and never waits for those that are down. An effect that the state does not allow rejects
the execution with its own code, and the proposal stays open.

    "proposal/" + proposal id (16)  -> Proposal

Index rows, for queries only:

    proposal (ordinal)              -> proposal id
"""

from typing import Any, NamedTuple

from consensus.validators import ValidatorSet
from consensus.wire import NotCanonical, Value, pack, unpack
from node.ledger import membership
from node.ledger.accounts import ADMINISTRATOR, Get
from node.ledger.contracts import forms, governance_actions
from node.ledger.contracts.base import Context, OperationKind
from node.ledger.contracts.governance_actions import ACTIONS
from node.ledger.contracts.possession import require_possession
from node.ledger.errors import Refused, Rejected
from node.ledger.genesis import NodeIdentity
from node.ledger.parameters import PARAMETERS, get_parameter
from node.ledger.state import StateView
from storage.errors import CorruptRecord

RECORD_FORMAT = 1
GOVERNANCE_ROLES = frozenset({ADMINISTRATOR})
OPEN, EXECUTED, WITHDRAWN = "open", "executed", "withdrawn"

REJECTIONS = {
    "not_validator": "the sender's institution has no validator in the set that reigns",
    "not_proposer": "another institution made the proposal",
    "proposal_unknown": "no proposal with this id was made",
    "proposal_exists": "a proposal with this id was made already; ids are used once",
    "proposal_executed": "the proposal was executed",
    "proposal_withdrawn": "the proposal was withdrawn",
    "proposal_expired": "the time of the proposal is over",
    "lifetime_over_limit": "a longer time than the parameter proposal_heights allows",
    "quorum_missing": "fewer institutions approve than are a quorum of the set that reigns",
    **governance_actions.REJECTIONS,
}

INDEX_PROPOSAL = "proposal"


class Vote(NamedTuple):
    """What one institution says; it counts while the institution has a validator."""

    institution: str
    approve: bool


class Proposal(NamedTuple):
    """A proposal and its votes, as stored."""

    format: int
    institution: str  # of the proposer
    member_key: bytes
    action: str
    arguments: tuple[Value, ...]
    proposed_height: int
    expires_height: int  # the first height at which it is over
    state: str
    votes: tuple[Vote, ...]  # by institution
    ordinal: bytes  # of the proposing
    ended_height: int | None  # executed or withdrawn
    activation_height: int | None  # from which on a change of the validators reigns


class Tally(NamedTuple):
    """The votes that count at some height, and how many approvals decide."""

    approvals: int
    refusals: int
    n: int
    quorum: int

    @property
    def passed(self) -> bool:
        """Whether the proposal can be executed."""
        return self.approvals >= self.quorum


class DryRun(NamedTuple):
    """What an action would do; of the validator set, what it is after the action."""

    problem: str | None  # the code with which it would fail
    n: int
    f: int
    quorum: int
    activation_height: int | None  # None: the validators stay as they are, or as planned before
    added: tuple[str, ...]  # institutions that get a vote
    removed: tuple[str, ...]  # institutions that lose theirs
    nodes: tuple[NodeIdentity, ...]  # the set, in voting order


class Propose(NamedTuple):
    proposal_id: bytes
    action: str
    arguments: tuple[Value, ...]
    lifetime_heights: int
    asked: Any  # the arguments as the action parsed them


class CastVote(NamedTuple):
    proposal_id: bytes
    approve: bool


def proposal_key(proposal_id: bytes) -> bytes:
    """Return the state key of a proposal."""
    return b"proposal/" + proposal_id


def find_proposal(get: Get, proposal_id: bytes) -> Proposal | None:
    """Return a proposal, or None. Raises `CorruptRecord`."""
    row = get(proposal_key(proposal_id))
    return None if row is None else decode_proposal(row)


def decode_proposal(row: bytes) -> Proposal:
    """Return the stored proposal. Raises `CorruptRecord`."""
    try:
        value = unpack(row)
        if type(value) is tuple and value[:1] == (RECORD_FORMAT,):
            proposal = Proposal(*value)  # type: ignore[arg-type]
            return proposal._replace(votes=tuple(Vote(*vote) for vote in proposal.votes))
    except (NotCanonical, TypeError) as error:
        raise CorruptRecord("the state holds a proposal that cannot be read") from error
    raise CorruptRecord("the state holds a proposal that cannot be read")


def tally(proposal: Proposal, validators: ValidatorSet) -> Tally:
    """Return the count of the votes of `validators`' institutions."""
    voters = {validator.institution for validator in validators.validators}
    counted = [vote.approve for vote in proposal.votes if vote.institution in voters]
    approvals = sum(counted)
    return Tally(approvals, len(counted) - approvals, validators.n, validators.quorum)


def dry_run(
    get: Get,
    action: str,
    arguments: tuple[Value, ...],
    height: int,
    *,
    chain_id: bytes | None = None,
) -> DryRun:
    """Return what would become of `action` if it were executed at `height` on the state of `get`.

    Nothing is written. With `chain_id` a proof of possession is checked, as proposing would.
    Raises `Refused` for an action or arguments that cannot be proposed, and `CorruptRecord`.
    """
    asked = _parse_action(action, arguments)
    state = StateView(get)
    context = Context(state, height, 0, 0, "", bytes(32), GOVERNANCE_ROLES, chain_id or b"")
    before, problem = membership.latest(get), None
    try:
        if chain_id is not None:
            _check_proof(chain_id, action, asked)
        ACTIONS[action].apply(context, asked)
    except Rejected as rejected:
        problem = rejected.code
    after = before if problem is not None else membership.latest(state.get)
    old, new = ({node.institution for node in each.nodes} for each in (before, after))
    validators = after.validator_set()
    return DryRun(
        problem,
        validators.n,
        validators.f,
        validators.quorum,
        after.height if after.height != before.height else None,
        tuple(sorted(new - old)),
        tuple(sorted(old - new)),
        after.nodes,
    )


def parse_propose(arguments: tuple[Value, ...]) -> Propose:
    """(proposal id, action, its arguments, lifetime in heights)"""
    proposal_id, action, of_action, lifetime = forms.fields(arguments, 4)
    proposal_id = forms.random_id(proposal_id, "proposal_id")
    action = forms.word(action, ACTIONS.keys(), "action")
    if type(of_action) is not tuple:
        forms.refuse("arguments", "an array")
    lifetime = forms.integer(lifetime, 1, PARAMETERS["proposal_heights"].high, "lifetime_heights")
    return Propose(proposal_id, action, of_action, lifetime, _parse_action(action, of_action))


def parse_vote(arguments: tuple[Value, ...]) -> CastVote:
    """(proposal id, approve or not)"""
    proposal_id, approve = forms.fields(arguments, 2)
    if type(approve) is not bool:
        forms.refuse("approve", "true or false")
    return CastVote(forms.random_id(proposal_id, "proposal_id"), approve)


def parse_proposal(arguments: tuple[Value, ...]) -> bytes:
    """(proposal id)"""
    (proposal_id,) = forms.fields(arguments, 1)
    return forms.random_id(proposal_id, "proposal_id")


def propose(context: Context, asked: Propose) -> None:
    """Put an action to the vote, with the approval of the sender's institution."""
    _voters(context)
    get = context.state.get
    if get(proposal_key(asked.proposal_id)) is not None:
        raise Rejected("proposal_exists")
    if asked.lifetime_heights > get_parameter(get, "proposal_heights"):
        raise Rejected("lifetime_over_limit")
    _check_proof(context.chain_id, asked.action, asked.asked)
    ordinal = context.ordinal()
    proposal = Proposal(
        RECORD_FORMAT,
        context.institution,
        context.member_key,
        asked.action,
        asked.arguments,
        context.height,
        context.height + asked.lifetime_heights,
        OPEN,
        (Vote(context.institution, True),),
        ordinal,
        None,
        None,
    )
    context.state.put(proposal_key(asked.proposal_id), pack(proposal))
    context.index(INDEX_PROPOSAL, (ordinal,), asked.proposal_id)
    context.emit("governance_proposed", asked.proposal_id, context.institution, asked.action)


def vote(context: Context, asked: CastVote) -> None:
    """Give the vote of the sender's institution, or change it."""
    proposal = _open_proposal(context, asked.proposal_id)
    _voters(context)
    votes = dict(proposal.votes) | {context.institution: asked.approve}
    changed = proposal._replace(votes=tuple(Vote(*each) for each in sorted(votes.items())))
    context.state.put(proposal_key(asked.proposal_id), pack(changed))
    word = "approved" if asked.approve else "refused"
    context.emit("governance_voted", asked.proposal_id, context.institution, word)


def withdraw(context: Context, proposal_id: bytes) -> None:
    """End a proposal of the sender's institution, whether or not it still has a validator."""
    proposal = _open_proposal(context, proposal_id)
    if proposal.institution != context.institution:
        raise Rejected("not_proposer")
    changed = proposal._replace(state=WITHDRAWN, ended_height=context.height)
    context.state.put(proposal_key(proposal_id), pack(changed))
    context.emit("governance_withdrawn", proposal_id, context.institution)


def execute(context: Context, proposal_id: bytes) -> None:
    """Bring about what a quorum approves."""
    proposal = _open_proposal(context, proposal_id)
    count = tally(proposal, _voters(context))
    if not count.passed:
        raise Rejected("quorum_missing")
    get = context.state.get
    sets = membership.set_count(get)
    asked = _parse_action(proposal.action, proposal.arguments)
    ACTIONS[proposal.action].apply(context, asked)
    is_change = membership.set_count(get) != sets
    changed = proposal._replace(
        state=EXECUTED,
        ended_height=context.height,
        activation_height=membership.latest(get).height if is_change else None,
    )
    context.state.put(proposal_key(proposal_id), pack(changed))
    context.emit("governance_executed", proposal_id, proposal.action, count.approvals)


def _parse_action(action: str, arguments: tuple[Value, ...]) -> Any:
    known = ACTIONS.get(action)
    if known is None:
        raise Refused("operation_invalid", f"action must be one of {', '.join(ACTIONS)}")
    return known.parse(arguments)


def _check_proof(chain_id: bytes, action: str, asked: Any) -> None:
    proof = ACTIONS[action].proof
    if proof is not None:
        require_possession(chain_id, *proof(asked))


def _voters(context: Context) -> ValidatorSet:
    """Return the set that reigns, of which the sender's institution must be."""
    reigning = membership.reigning(context.state.get, context.height)
    if reigning.node_of(context.institution) is None:
        raise Rejected("not_validator")
    return reigning.validator_set()


def _open_proposal(context: Context, proposal_id: bytes) -> Proposal:
    proposal = find_proposal(context.state.get, proposal_id)
    if proposal is None:
        raise Rejected("proposal_unknown")
    if proposal.state != OPEN:
        raise Rejected(f"proposal_{proposal.state}")
    if context.height >= proposal.expires_height:
        raise Rejected("proposal_expired")
    return proposal


KINDS = (
    OperationKind("governance.propose", GOVERNANCE_ROLES, parse_propose, propose),
    OperationKind("governance.vote", GOVERNANCE_ROLES, parse_vote, vote),
    OperationKind("governance.withdraw", GOVERNANCE_ROLES, parse_proposal, withdraw),
    OperationKind("governance.execute", GOVERNANCE_ROLES, parse_proposal, execute),
)
