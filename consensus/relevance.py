"""Which messages are worth the verification of their signatures.

Called for every message that arrives, before anything about it is proved: it changes nothing.
"""

from consensus.messages import (
    Commit,
    Message,
    NewView,
    Prepare,
    PrePrepare,
    Seal,
    SealCertificate,
    ViewChange,
)
from consensus.slots import Slot
from consensus.state import State


def is_relevant(state: State, message: Message) -> bool:
    """Whether `message`, if genuine, could change anything in `state`."""
    if state.halted is not None:
        return False
    if is_beyond_horizon(state, message):
        return _is_relevant_hint(state, message)
    if isinstance(message, SealCertificate):
        return message.height > max(state.low, state.ahead.height if state.ahead else 0)
    if state.index is None:
        return _is_relevant_to_observer(state, message)
    if message.sender == state.index:
        return False
    match message:
        case Prepare() | Commit() | Seal() | PrePrepare():
            return _is_relevant_vote(state, message)
        case ViewChange():
            return _is_relevant_view_change(state, message)
        case NewView():
            return message.view > state.view or (message.view == state.view and not state.active)


def is_beyond_horizon(state: State, message: Message) -> bool:
    """Whether a change of validators that we do not know of may reign where `message` belongs.

    Then its signatures may fail though they are genuine, and may verify though they are those of
    validators that left long ago: it says that there is something to fetch, and nothing else.
    """
    horizon = state.executed_height + state.options.horizon
    match message:
        case ViewChange():
            return message.stable.height + 1 > horizon
        case NewView():
            return any(v.stable.height + 1 > horizon for v in message.view_changes)
        case _:
            return message.height > horizon


def _is_relevant_hint(state: State, message: Message) -> bool:
    match message:
        case Commit() | Seal() if state.index is None:
            return _is_relevant_to_observer(state, message)
        case Commit() | Seal():
            return _is_relevant_above(state, message)
        case SealCertificate():
            return message.height > state.sync_target
        case ViewChange():
            return message.stable.height > state.sync_target
        case _:
            return False


def _is_relevant_to_observer(state: State, message: Message) -> bool:
    if not isinstance(message, Commit | Seal) or message.height <= state.executed_height:
        return False
    heard = state.far.get(state.schedule.reign_start(message.height), {})
    return heard.get(message.sender, 0) < message.height


def _is_relevant_vote(state: State, message: PrePrepare | Prepare | Commit | Seal) -> bool:
    if message.height <= state.low:
        return _asks_for_help(state, message)
    if message.height > state.high:
        return _is_relevant_above(state, message)
    slot = state.slots.get(message.height)
    if isinstance(message, Seal):
        return slot is None or _is_relevant_seal(state, slot, message)
    if message.view > state.view:
        if isinstance(message, Commit):
            return state.views_seen.get(message.sender, 0) < message.view or (
                slot is None or _is_relevant_commit(slot, message)
            )
        return message not in state.buffer
    if isinstance(message, Commit):
        return slot is None or _is_relevant_commit(slot, message)
    if message.view < state.view:
        # A primary that was away does not know that its view is over.
        return isinstance(message, PrePrepare) and _can_show_new_view(state, message.sender)
    if not state.active:
        return message not in state.buffer
    return slot is None or _is_relevant_here(slot, message)


def _can_show_new_view(state: State, sender: int) -> bool:
    has_one = state.active and state.new_view is not None
    return has_one and sender not in state.answered_views


def _is_relevant_here(slot: Slot, message: PrePrepare | Prepare) -> bool:
    if isinstance(message, PrePrepare):
        return slot.pre_prepare is None or slot.pre_prepare.digest != message.digest
    if slot.commit_sent:
        return False
    counted = slot.prepares.votes.get(message.sender)
    return counted is None or counted.digest != message.digest


def _is_relevant_commit(slot: Slot, message: Commit) -> bool:
    if slot.decided is not None:
        return False
    counted = slot.commits.votes.get(message.sender)
    if counted is None or counted.view < message.view:
        return True
    return counted.view == message.view and counted.digest != message.digest


def _is_relevant_seal(state: State, slot: Slot, message: Seal) -> bool:
    if state.ahead is not None and message.height <= state.ahead.height:
        return False
    counted = slot.seals.votes.get(message.sender)
    return counted is None or counted.header != message.header


def _asks_for_help(state: State, message: PrePrepare | Prepare | Commit | Seal) -> bool:
    # The sender's index may be that of an older set; then the answer is bounded all the same.
    return message.sender not in state.answered


def _is_relevant_above(state: State, message: PrePrepare | Prepare | Commit | Seal) -> bool:
    far = state.far.get(state.schedule.reign_start(message.height), {})
    if isinstance(message, Commit | Seal) and far.get(message.sender, 0) < message.height:
        return True
    near = message.height <= state.high + state.options.window
    return near and message not in state.buffer


def _is_relevant_view_change(state: State, message: ViewChange) -> bool:
    # They are the dearest to verify, and a faulty validator can make a new one for every view.
    heard = state.view_changes_heard.get(message.sender, 0)
    if heard >= state.options.view_changes_per_period_max:
        return False
    if message.stable.height > state.low:
        return True
    helped = message.sender in state.answered or message.stable.height == state.low
    if state.active and message.view <= state.view:
        return _can_show_new_view(state, message.sender) or not helped
    kept = state.view_changes.get(message.sender)
    return kept is None or kept.view < message.view or not helped
