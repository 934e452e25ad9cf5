"""Proposals of governance, their votes as they count for the next height, and dry runs."""

from collections.abc import Set

from consensus.validators import ValidatorSet
from consensus.wire import Value, pack
from node.ledger import membership
from node.ledger.contracts import governance
from node.ledger.contracts.governance import EXECUTED, GOVERNANCE_ROLES, OPEN, WITHDRAWN, Proposal
from node.ledger.queries import paging
from node.ledger.queries.member_views import (
    MEMBERS_LIMIT_MAX,
    ProposalPage,
    ProposalTrial,
    ProposalView,
    VoteView,
)
from node.ledger.queries.moment import Moment
from node.ledger.queries.steps import NextStep, step
from storage.errors import CorruptRecord

ROWS_MAX = paging.ROWS_MAX
PASSED, EXPIRED = "passed", "expired"  # what is open may be either, as it is for the next height
STATES = frozenset({OPEN, PASSED, EXECUTED, WITHDRAWN, EXPIRED})


def find_proposal(moment: Moment, proposal_id: bytes) -> ProposalView | None:
    """Return the proposal with this id (16 bytes), or None. Raises `BadQuery`, `CorruptRecord`."""
    paging.check_id("id", proposal_id)
    stored = governance.find_proposal(moment.get, proposal_id)
    if stored is None:
        return None
    return _view(moment, _validators(moment), proposal_id, stored)


def proposals_page(
    moment: Moment, state: str | None, limit: int, cursor: str | None
) -> ProposalPage:
    """Return one page of the proposals in `state` (of `STATES`), or of all; newest first.

    Raises `BadQuery`, `CorruptRecord`.
    """
    paging.check_word("state", state, STATES)
    paging.check_limit(limit, MEMBERS_LIMIT_MAX)
    asked = paging.question("proposals", state)
    below = paging.decode_cursor(asked, cursor)
    validators = _validators(moment)
    rows = paging.newest_first(moment.chain, governance.INDEX_PROPOSAL, [()], below)

    def read(proposal_id: bytes) -> ProposalView | None:
        stored = governance.find_proposal(moment.get, proposal_id)
        if stored is None:
            raise CorruptRecord("an index names a proposal that the state does not hold")
        if state not in (None, _state(stored, validators, moment.height)):
            return None
        return _view(moment, validators, proposal_id, stored)

    found, last = paging.cut_page(rows, limit, read, ROWS_MAX)
    return ProposalPage(tuple(found), paging.next_cursor(asked, last))


def try_proposal(
    moment: Moment,
    chain_id: bytes,
    action: str,
    arguments: tuple[Value, ...],
    connected: Set[bytes],
) -> ProposalTrial:
    """Return what `action` would do in the next block; `connected` are the keys of the nodes that
    are live. Raises `Refused` for what could not be proposed, and `CorruptRecord`."""
    run = governance.dry_run(moment.get, action, arguments, moment.height, chain_id=chain_id)
    live = tuple([node.institution for node in run.nodes if node.public_key in connected])
    return ProposalTrial(
        action=action,
        height=moment.height,
        problem=run.problem,
        n=run.n,
        f=run.f,
        quorum=run.quorum,
        activation_height=run.activation_height,
        added=run.added,
        removed=run.removed,
        validators=tuple([node.institution for node in run.nodes]),
        live=live,
        absent=tuple([n.institution for n in run.nodes if n.public_key not in connected]),
        has_live_quorum=len(live) >= run.quorum,
    )


def _validators(moment: Moment) -> ValidatorSet:
    return membership.reigning(moment.get, moment.height).validator_set()


def _view(
    moment: Moment, validators: ValidatorSet, proposal_id: bytes, stored: Proposal
) -> ProposalView:
    voters = {validator.institution for validator in validators.validators}
    voted = {vote.institution for vote in stored.votes}
    count = governance.tally(stored, validators)
    state = _state(stored, validators, moment.height)
    problem = _problem(moment, stored) if state in (OPEN, PASSED) else None
    activation = stored.activation_height
    not_voted = tuple(sorted(voters - voted))
    return ProposalView(
        id=proposal_id,
        institution=stored.institution,
        member_key=stored.member_key,
        action=stored.action,
        arguments=stored.arguments,
        encoded_arguments=pack(stored.arguments),
        proposed_height=stored.proposed_height,
        expires_height=stored.expires_height,
        state=state,
        recorded_state=stored.state,
        votes=tuple(
            [
                VoteView(vote.institution, vote.approve, vote.institution in voters)
                for vote in stored.votes
            ]
        ),
        approvals=count.approvals,
        rejections=count.refusals,
        n=count.n,
        quorum=count.quorum,
        not_voted=not_voted,
        problem=problem,
        ended_height=stored.ended_height,
        activation_height=activation,
        heights_left=None if activation is None else max(0, activation - moment.height),
        height=moment.height,
        next_step=_next_step(moment, stored, state, problem, voters, not_voted),
    )


def _state(stored: Proposal, validators: ValidatorSet, height: int) -> str:
    if stored.state != OPEN:
        return stored.state
    if height >= stored.expires_height:
        return EXPIRED
    return PASSED if governance.tally(stored, validators).passed else OPEN


def _problem(moment: Moment, stored: Proposal) -> str | None:
    run = governance.dry_run(moment.get, stored.action, stored.arguments, moment.height)
    return run.problem


def _next_step(
    moment: Moment,
    stored: Proposal,
    state: str,
    problem: str | None,
    voters: Set[str],
    not_voted: tuple[str, ...],
) -> NextStep:
    last = stored.expires_height - 1
    if state == PASSED and problem is not None:
        return step("clear_problem", (), (), last)
    if state == PASSED:
        return step("execute", tuple(voters), GOVERNANCE_ROLES, last)
    if state == OPEN and not_voted:
        return step("vote", not_voted, GOVERNANCE_ROLES, last)
    if state == OPEN:
        votes = dict(stored.votes)
        refusing = tuple([name for name in voters if not votes[name]])
        return step("change_vote", refusing, GOVERNANCE_ROLES, last)
    if stored.activation_height is not None and stored.activation_height > moment.height:
        return step("await_height", until_height=stored.activation_height)
    return step("nothing")
