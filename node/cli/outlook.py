"""What happens next, and who must act: at the end of every answer that shows a state.

The ledger says which step follows, who may take it and until when; here it gets the command that
takes it.
"""

from dataclasses import asdict

from node.cli.output import say
from node.ledger.queries.steps import NextStep

# By the code of the step. In capitals what the answer itself does not know.
COMMANDS = {
    "give_consent": "radledger consent grant {subject} ...",
    "consent_then_approve": "radledger consent grant {subject} ..., then "
    "radledger access approve {request}",
    "approve_or_deny": "radledger access approve {request}, or "
    "radledger access deny {request} --reason WORD",
    "deliver_key": "radledger access deliver {request} --wrapped FILE",
    "receive_study": "radledger access receive {request}",
    "use_study": "radledger access use {request}",
    "review_break_glass": "radledger access review {request} --finding WORD",
    "record_expiry": "radledger access expire {request}",
    "ask_anew": "radledger access request {study} --purpose WORD",
    "resume_institution": "radledger gov propose institution-resume NAME",
    "vote": "radledger gov vote {proposal} --approve, or --reject",
    "change_vote": "radledger gov vote {proposal} --approve",
    "execute": "radledger gov execute {proposal}",
    "clear_problem": "radledger gov try {proposal}",
    "bind_patient": "radledger consent bind {subject} --patient KEY",
}


class _Named(dict[str, str]):
    """What a command is about; in capitals when it is not known here."""

    def __missing__(self, key: str) -> str:
        return key.upper()


def command_of(step: NextStep, **named: bytes) -> str | None:
    """Return the command that takes `step`, None when there is none to give.

    `named` are ids by what they are of: request, study, subject, proposal.
    """
    template = COMMANDS.get(step.code)
    if template is None:
        return None
    return template.format_map(_Named({key: value.hex() for key, value in named.items()}))


def next_plain(step: NextStep, **named: bytes) -> dict[str, object]:
    """Return the step for programs: its fields, and `command`."""
    return {**asdict(step), "command": command_of(step, **named)}


def show_next(step: NextStep, **named: bytes) -> None:
    """Say what happens next, who must act, until when, and by which command."""
    say(f"Next: {step.sentence}.", "bold")
    who = []
    if step.institutions:
        who.append(f"at {', '.join(step.institutions)}")
    if step.roles:
        who.append(f"as {' or '.join(step.roles)}")
    if step.until_height is not None:
        who.append(f"up to height {step.until_height}")
    if who:
        say(f"      {', '.join(who)}")
    command = command_of(step, **named)
    if command is not None:
        say(f"      {command}")
