"""Leaving a view and entering the next (OSDI §4.4): the stateful half of `view_change`.

A replica that asked for a view alone (its timer was wrong) keeps its word and votes in no lower
view, but goes on counting Commits and Seals of every view, executes what others decide, and seals
it. So it stays up to date without a vote; the others either make progress without it, or their
timers fire and they join it. f+1 validators that ask for a view pull the rest along.
"""

from consensus import wal
from consensus.checkpoint import answer, learn_certificate
from consensus.effects import Broadcast, Evidence, Send, ViewEntered
from consensus.errors import require
from consensus.messages import NewView, PrePrepare, ViewChange
from consensus.normal_case import accept
from consensus.state import State
from consensus.view_change import (
    carried_over,
    certificates_above,
    stable_certificate,
    view_to_join,
)


def begin_view_change(state: State, view: int) -> None:
    """Leave the current view for good and ask for `view`, which is higher."""
    if state.index is None:
        return
    require(view > state.view, "a replica never asks for a view that it has left")
    leave(state, view, active=False)
    state.failed_views += 1
    certificates = (slot.prepared for slot in state.slots.values())
    prepared = certificates_above(certificates, state.low)
    message = state.signed(ViewChange(view, state.stable, prepared, state.index))
    state.emit(wal.view_change_row(message), Broadcast(message))
    state.view_changes[state.index] = message
    _begin_new_view(state)


def leave(state: State, view: int, *, active: bool) -> None:
    """Be in `view` from now on; not `active` means to wait for its NewView."""
    state.view, state.active = view, active
    state.new_view = None
    state.touched = state.view_timer_restarts = True
    for slot in state.slots.values():
        slot.leave_view()
    for sender in [s for s, seen in state.views_seen.items() if seen <= view]:
        del state.views_seen[sender]


def note_view(state: State, sender: int, view: int) -> None:
    """`sender` is in `view` or asks for it; join the view above ours that f+1 have reached."""
    if view <= max(state.view, state.views_seen.get(sender, 0)):
        return
    state.views_seen[sender] = view
    target = view_to_join(state.views_seen.values(), state.view, state.validators.f)
    if target is not None:
        begin_view_change(state, target)


def on_view_change(state: State, message: ViewChange) -> None:
    """Keep each sender's ViewChange of the highest view; answer one that comes too late."""
    learn_certificate(state, message.stable)
    sender, height = message.sender, message.stable.height
    state.view_changes_heard[sender] = state.view_changes_heard.get(sender, 0) + 1
    state.touched = True  # the bound on them is lifted by the resend timer
    if height < state.low:
        key = state.schedule.at(height + 1).validators[sender].public_key
        answer(state, state.validators.index_of(key))
    if state.schedule.reign_start(height + 1) != state.reign_start:
        return
    if state.active and message.view <= state.view:
        answer_with_new_view(state, sender)
        return
    kept = state.view_changes.get(sender)
    if kept is not None and kept.view == message.view:
        _accuse(state, kept, message)
    elif kept is None or kept.view < message.view:
        state.view_changes[sender] = message
    note_view(state, sender, message.view)
    _begin_new_view(state)


def _accuse(state: State, first: ViewChange, second: ViewChange) -> None:
    same = (first.stable, first.prepared) == (second.stable, second.prepared)
    if not same and state.accused_views.get(first.sender, 0) < first.view:
        state.accused_views[first.sender] = first.view
        state.emit(Evidence(first, second))


def answer_with_new_view(state: State, sender: int) -> None:
    """Show `sender`, which works below our view, how the view began; once per resend period."""
    if state.active and state.new_view is not None and sender not in state.answered_views:
        state.answered_views.add(sender)
        state.touched = True
        state.emit(Send(state.key_of(sender), state.new_view))


def supporters(state: State) -> int:
    """Return how many validators, this one included, ask for the current view or a higher one."""
    return sum(message.view >= state.view for message in state.view_changes.values())


def _begin_new_view(state: State) -> None:
    """As the primary of the view that is asked for: begin it once a quorum asks (OSDI §4.4)."""
    if state.active or not state.is_primary or state.index is None:
        return
    asking = sorted(s for s, message in state.view_changes.items() if message.view == state.view)
    if len(asking) < state.validators.quorum:
        return
    quorum = tuple(state.view_changes[s] for s in asking[: state.validators.quorum])
    pre_prepares = tuple(
        state.signed(PrePrepare(state.view, height, digest, state.index))
        for height, digest in carried_over(quorum)
    )
    message = state.signed(NewView(state.view, quorum, pre_prepares, state.index))
    state.emit(wal.new_view_row(message), Broadcast(message))
    _enter(state, message)


def on_new_view(state: State, message: NewView) -> None:
    """Derive the proposals ourselves; enter the view if they are the same, else ask for the next.

    A NewView that quotes a quorum is entered even by a replica that did not ask for it.
    """
    stable = stable_certificate(message.view_changes)
    for view_change in message.view_changes:
        learn_certificate(state, view_change.stable)
    if state.schedule.reign_start(stable.height + 1) != state.reign_start:
        return
    if message.view < state.view or (message.view == state.view and state.active):
        return
    derived = carried_over(message.view_changes)
    if [(vote.height, vote.digest) for vote in message.pre_prepares] != derived:
        begin_view_change(state, message.view + 1)
        return
    if state.index is not None:
        state.emit(wal.new_view_row(message))
        _enter(state, message)


def _enter(state: State, message: NewView) -> None:
    leave(state, message.view, active=True)
    adopt(state, message)
    for sender in [s for s, m in state.view_changes.items() if m.view <= message.view]:
        del state.view_changes[sender]
    state.window_moved = True  # what is buffered for this view applies now
    state.emit(ViewEntered(message.view))
    accept_carried_over(state)


def adopt(state: State, message: NewView) -> None:
    """Work under `message`: the next fresh proposal is above all that it names."""
    state.new_view = message
    state.proposed = stable_certificate(message.view_changes).height + len(message.pre_prepares)


def accept_carried_over(state: State) -> None:
    """Accept the NewView's proposals inside the window; again whenever the window moved.

    Heights that were executed take part too, so that others can commit them; their digest cannot
    differ from what was committed in an earlier view unless more than f validators are faulty.
    It can differ from what this view committed: a lying primary may begin one view with several
    quorums of ViewChanges, and of what those leave open, ours may not be what the others got.
    """
    if state.new_view is None or not state.active:
        return
    for vote in state.new_view.pre_prepares:
        if not state.low < vote.height <= state.high:
            continue
        slot = state.slot(vote.height)
        if slot.decided not in (None, vote.digest):
            if slot.decided_view < state.view:
                state.halt(f"a new view undoes what was committed at height {vote.height}")
                return
        elif slot.pre_prepare is None:
            accept(state, vote, carried_over=True)
