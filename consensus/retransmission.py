"""Sending again what others may have missed, and the two timers.

Votes are signed once and sent again as they were: Ed25519 here is deterministic, and what is kept
in a slot is what was sent. Only what is older than one whole resend period is repeated, so a
network without losses sees no repetition, and an idle one sees nothing at all.
"""

from consensus.checkpoint import check_behind
from consensus.effects import Broadcast, CancelTimer, NeedSync, SetTimer
from consensus.messages import Message
from consensus.slots import Slot
from consensus.state import State
from consensus.views import begin_view_change, supporters

VIEW_TIMER = "view"
RESEND_TIMER = "resend"


def on_resend_timer(state: State) -> None:
    """Repeat what is still unanswered; the timer runs on only while something is."""
    state.resend_timer_runs = False
    period, state.tick = state.tick, state.tick + 1
    state.touched = True
    state.answered.clear()
    state.answered_views.clear()
    state.view_changes_heard.clear()
    target = state.sync_target
    check_behind(state)
    if state.syncing and state.sync_target == target:
        state.emit(NeedSync(target))
    if state.index is None:
        return
    old = [slot for slot in state.open_slots() if slot.born < period]
    own = None if state.active else state.view_changes.get(state.index)
    if own is not None and _is_view_change_wanted(state):
        state.emit(Broadcast(own))
    if state.new_view is not None and state.is_primary and any(s.carried_over for s in old):
        state.emit(Broadcast(state.new_view))
    for slot in old:
        state.emit(*map(Broadcast, _own_votes(slot, state.index)))


def _own_votes(slot: Slot, index: int) -> list[Message]:
    votes: list[Message] = []
    accepted = slot.pre_prepare
    if accepted is not None and accepted.sender == index and not slot.carried_over:
        votes.append(accepted)
    for tally in (slot.prepares, slot.commits, slot.seals):
        vote = tally.votes.get(index)
        if vote is not None:
            votes.append(vote)
    return votes


def _is_view_change_wanted(state: State) -> bool:
    # A replica that is alone in asking and sees no work is silent; work or company wakes it.
    return state.work_pending or supporters(state) > 1 or state.has_open_heights()


def on_view_timer(state: State) -> None:
    """Ask for the next view, unless the delay is our own: then be patient once more."""
    if not state.view_timer_runs:
        return
    state.view_timer_runs = False
    state.touched = True
    next_slot = state.slots.get(state.executed_height + 1)
    if state.active and next_slot is not None and next_slot.decided is not None:
        return  # decided, but we still fetch or execute it: not the primary's fault
    begin_view_change(state, state.view + 1)


def set_timers(state: State) -> None:
    """Emit what the timers need after a step (OSDI §4.4: no view timer while idle)."""
    wanted = _is_view_timer_wanted(state)
    if wanted and (state.view_timer_restarts or not state.view_timer_runs):
        state.emit(SetTimer(VIEW_TIMER, view_timeout_ms(state)))
    elif not wanted and state.view_timer_runs:
        state.emit(CancelTimer(VIEW_TIMER))
    state.view_timer_runs, state.view_timer_restarts = wanted, False
    if not state.resend_timer_runs and _is_resend_wanted(state):
        state.resend_timer_runs = True
        state.emit(SetTimer(RESEND_TIMER, state.options.resend_ms))


def view_timeout_ms(state: State) -> int:
    """Return the patience with the current view: doubled per failed view, up to the cap."""
    doublings = min(state.failed_views, 32)
    return min(state.options.view_timeout_ms << doublings, state.options.view_timeout_max_ms)


def _is_view_timer_wanted(state: State) -> bool:
    if state.index is None:
        return False
    if state.active:
        # Nobody can help a replica that fetches what a quorum sealed by changing the view.
        return not state.syncing and (state.work_pending or state.has_open_heights())
    # Not before a quorum asks: a lone replica must not run ahead from view to view.
    return supporters(state) >= state.validators.quorum


def _is_resend_wanted(state: State) -> bool:
    if state.answered or state.answered_views or state.view_changes_heard:
        return True  # these are counts for one period
    if state.syncing or state.ahead is not None:
        return True
    if state.index is None:
        return False
    if any(slot.is_open() for slot in state.slots.values()):
        return True
    return not state.active and _is_view_change_wanted(state)
