"""What has to happen next with something on the ledger, and who must do it.

An answer that shows a state also shows the way on: a code for programs, the institutions and roles
that may act, the height at which the chance ends, and a sentence for people.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# Sentences for people, by code; {who} is filled with the institutions.
NEXT_STEPS: dict[str, str] = {
    "nothing": "nobody has to act",
    "ask_anew": "nothing follows; {who} may ask anew",
    "give_consent": (
        "the patient consents, or {who} records the signed form; what waits is then decided anew"
    ),
    "consent_then_approve": (
        "the patient consents, or {who} records the signed form; then a person there approves"
    ),
    "approve_or_deny": "a person at {who} approves or denies the request",
    "deliver_key": "{who} delivers the study's key to the requester",
    "receive_study": "{who} fetches the study and confirms that it arrived whole",
    "use_study": "{who} may use the study; each use is recorded",
    "review_break_glass": "the data-protection officer of {who} reviews this emergency access",
    "record_expiry": "its time is over; anybody may record that",
    "resume_institution": "the consortium resumes {who}, which is suspended",
    "vote": "the administrators of {who} vote",
    "change_vote": "all have voted; it passes only if an administrator of {who} changes the vote",
    "execute": "enough have approved; an administrator of one of {who} executes the proposal",
    "clear_problem": "enough have approved, but the state does not allow it as it is",
    "await_height": "nobody has to act; it takes effect at a later height by itself",
    "challenge_key": "another institution challenges {who} to prove that it holds the key",
    "confirm_key": "{who} answers the challenge and so proves that it holds the key",
    "bind_patient": "{who} may bind the patient's own key, so that the patient can act",
}

_NOBODY_SENTENCE = "nobody at present"


@dataclass(frozen=True, slots=True)
class NextStep:
    """Who must act, and for what. Nobody has to when `institutions` and `roles` are empty."""

    code: str  # a key of NEXT_STEPS; programs branch on it
    institutions: tuple[str, ...]  # a member of any of these may act, ascending
    roles: tuple[str, ...]  # of which the member needs one, ascending; empty: any
    until_height: int | None  # the last height at which it can be done; None: no end
    sentence: str  # for people; may be reworded at any time


def step(
    code: str,
    institutions: tuple[str, ...] = (),
    roles: Iterable[str] = (),
    until_height: int | None = None,
) -> NextStep:
    """Return the step with its sentence. `code` must be one of `NEXT_STEPS`."""
    named = tuple(sorted(set(institutions)))
    sentence = NEXT_STEPS[code].format(who=", ".join(named) or _NOBODY_SENTENCE)
    return NextStep(code, named, tuple(sorted(roles)), until_height, sentence)
