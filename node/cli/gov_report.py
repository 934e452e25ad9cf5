"""How proposals, trials and parameters are shown."""

from node.cli.advice import lines_about
from node.cli.gov_actions import shown_arguments, shown_name
from node.cli.outlook import next_plain, show_next
from node.cli.output import say, show_pairs, show_table
from node.cli.signing import meaning_of_code
from node.ledger.queries.member_views import (
    ParameterView,
    ProposalPage,
    ProposalTrial,
    ProposalView,
)

# What an executed action leaves to do, by its name; the ledger does the rest by itself.
_AFTERWARDS = {
    "institution_add": "its administrator runs `radledger init --candidate` with this genesis, "
    "and adds members once its node has caught up: `radledger member add`",
    "observer_add": "its node may connect now: `radledger start`",
}


def proposal_next(view: ProposalView) -> dict[str, object]:
    """Return what happens next with a proposal, for programs."""
    return next_plain(view.next_step, proposal=view.id)


def show_proposal(view: ProposalView) -> None:
    """Print a proposal whole."""
    show_pairs(
        [
            ("proposal", view.id),
            ("action", shown_name(view.action)),
            ("about", shown_arguments(view.action, view.arguments)),
            ("proposed by", f"{view.institution}, at height {view.proposed_height}"),
            ("state", view.state),
            ("approvals", f"{view.approvals} of the {view.quorum} needed (N = {view.n})"),
            ("for", [vote.institution for vote in view.votes if vote.approves]),
            ("against", [vote.institution for vote in view.votes if not vote.approves]),
            ("not voted", view.not_voted),
        ]
    )
    if view.activation_height is not None:
        say(_activation(view))
    if view.state == "executed" and view.action in _AFTERWARDS:
        say(f"Afterwards: {_AFTERWARDS[view.action]}.")
    show_next(view.next_step, proposal=view.id)


def _activation(view: ProposalView) -> str:
    if not view.heights_left:
        return f"The new set of validators reigns since height {view.activation_height}."
    return (
        f"The new set of validators reigns from height {view.activation_height} on, in "
        f"{view.heights_left} heights; a quiet chain gets there only with further transactions."
    )


def show_page(page: ProposalPage) -> None:
    """Print a list of proposals."""
    if page.proposals:
        show_table(
            ("proposal", "action", "about", "by", "height", "state", "approvals", "next"),
            [
                (
                    view.id,
                    shown_name(view.action),
                    shown_arguments(view.action, view.arguments),
                    view.institution,
                    view.proposed_height,
                    view.state,
                    f"{view.approvals} of {view.quorum}",
                    view.next_step.sentence,
                )
                for view in page.proposals
            ],
        )
    elif page.next_cursor is None:
        say("No such proposal.")
    if page.next_cursor is not None:
        say(f"There may be more: --cursor {page.next_cursor}")


def show_trial(trial: ProposalTrial) -> None:
    """Print what an action would do."""
    if trial.problem is not None:
        for line in lines_about(trial.problem, meaning_of_code(trial.problem)):
            say(line, "red")
        return
    changes_validators = trial.activation_height is not None
    show_pairs(
        [
            ("action", shown_name(trial.action)),
            ("would be executed at", f"height {trial.height}"),
            ("would reign from", trial.activation_height),
            ("added", trial.added),
            ("removed", trial.removed),
            ("validators", f"N = {trial.n}, f = {trial.f}, quorum {trial.quorum}"),
            ("live now", trial.live),
            ("not live", trial.absent),
        ]
    )
    if not trial.has_live_quorum:
        say(
            "Too few of these validators are live for a quorum: the chain would stop there.",
            "bold red",
        )
    elif changes_validators and trial.f == 0:
        say("With fewer than 4 validators the chain stops as soon as one of them does.", "yellow")
    else:
        say("It would work.", "green")


def show_parameters(found: tuple[ParameterView, ...]) -> None:
    """Print the parameters with their bounds."""
    show_table(
        ("parameter", "value", "default", "lowest", "highest"),
        [(p.name, p.value, p.default, p.low, p.high) for p in found],
    )
    say("A vote changes one: radledger gov propose parameter-set NAME VALUE")
