"""A replica's memory out of what is durable, after a crash or a stop.

It comes back in the view that it had entered or asked for, holds what it accepted and prepared, and
votes for nothing else in that view: what it sends again is what it sent before.
"""

from collections.abc import Mapping, Sequence

from consensus import wal
from consensus.checkpoint import seal_own
from consensus.effects import Broadcast, Forget
from consensus.errors import require
from consensus.messages import Prepare, PreparedCertificate, PrePrepare, SealCertificate, ViewChange
from consensus.normal_case import accept
from consensus.state import State
from consensus.view_change import stable_certificate
from consensus.views import adopt, leave


def restore(state: State, rows: Mapping[bytes, bytes], stable: SealCertificate) -> None:
    """Set `state` to what `rows` and the stable certificate say."""
    state.move_window(stable)
    state.begin_reign()
    restored = wal.restore(rows, state.low)
    _require_one_reign(state, restored)
    _note_rows(state, rows)
    if state.index is None:
        return
    _restore_view(state, restored)
    for certificate in restored.prepared:
        _restore_prepared(state, certificate)
    for vote in restored.accepted:
        _restore_accepted(state, vote)
    if state.executed_height > state.low:
        slot = state.slot(state.executed_height)
        slot.header = state.executed_header
        seal_own(state, slot)
    own = state.view_changes.get(state.index)
    if own is not None:
        state.emit(Broadcast(own))


def _require_one_reign(state: State, restored: wal.Restored) -> None:
    """Refuse votes of a later reign: the certificate that ended ours was durable before them."""
    end = state.schedule.next_change_after(state.low + 1)
    votes = [*restored.accepted, *(c.pre_prepare for c in restored.prepared)]
    require(
        end is None or all(vote.height < end for vote in votes),
        f"there are votes of validators that take over at height {end}, and no certificate of "
        "the height before: rows of the database are lost; move the data away and sync anew",
    )


def _note_rows(state: State, rows: Mapping[bytes, bytes]) -> None:
    for key in sorted(rows):
        height = wal.height_of(key)
        if height is not None and height > state.low:
            state.slot(height).rows.add(key)
        elif height is not None:
            state.emit(Forget(key))


def _restore_view(state: State, restored: wal.Restored) -> None:
    new_view, view_change = restored.new_view, restored.view_change
    if new_view is not None and _is_of_this_reign(state, new_view.view_changes):
        leave(state, new_view.view, active=True)
        adopt(state, new_view)
    if view_change is None or view_change.view <= state.view or state.index is None:
        return
    if _is_of_this_reign(state, (view_change,)):
        leave(state, view_change.view, active=False)
        state.view_changes[state.index] = view_change


def _is_of_this_reign(state: State, view_changes: Sequence[ViewChange]) -> bool:
    height = stable_certificate(view_changes).height
    return state.schedule.reign_start(height + 1) == state.reign_start


def _restore_prepared(state: State, certificate: PreparedCertificate) -> None:
    vote = certificate.pre_prepare
    slot = state.slot(vote.height)
    slot.prepared = certificate
    if state.active and vote.view == state.view:
        for sender, signature in certificate.prepares:
            prepare = Prepare(vote.view, vote.height, vote.digest, sender, signature)
            slot.prepares.add(vote.digest, prepare)


def _restore_accepted(state: State, vote: PrePrepare) -> None:
    if not state.active or vote.view != state.view:
        return
    carried = () if state.new_view is None else state.new_view.pre_prepares
    # The batch was checked when it was accepted; its age is no reason to refuse it now.
    accept(state, vote, carried_over=True)
    state.slot(vote.height).carried_over = any(v.height == vote.height for v in carried)
