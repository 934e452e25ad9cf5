"""Why there is no progress, for readiness checks and the status page."""

from dataclasses import dataclass

from consensus.slots import Slot
from consensus.state import State


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """What a replica waits for at its lowest unfinished height."""

    phase: str  # idle, pre-prepare, prepare, payload, commit, execute, seal, view-change, sync,
    #             observer, halted
    view: int
    primary: int  # validator index
    height: int  # the lowest height that is not stable
    missing: tuple[int, ...]  # validators whose message of this phase was not heard
    reason: str  # a sentence for an operator


def phase_report(state: State) -> PhaseReport:
    """Return the phase and who is missing at the lowest height that is not stable."""
    phase, heard, reason = _phase(state)
    expected = range(state.validators.n) if heard is not None else ()
    missing = tuple(i for i in expected if heard is not None and i not in heard)
    return PhaseReport(phase, state.view, state.primary, state.low + 1, missing, reason)


def _phase(state: State) -> tuple[str, set[int] | None, str]:
    """Return the phase, the validators heard in it (None: nobody is waited for), the reason."""
    if state.halted is not None:
        return "halted", None, state.halted
    if state.syncing:
        return "sync", None, f"blocks up to height {state.sync_target} are being fetched"
    if state.index is None:
        return "observer", None, "this node follows and does not vote"
    if not state.active:
        heard = {s for s, m in state.view_changes.items() if m.view >= state.view}
        return "view-change", heard, f"waiting for view {state.view} to begin"
    slot = state.slots.get(state.low + 1)
    if slot is None or not (slot.is_open() or slot.prepares.votes or slot.commits.votes):
        if state.work_pending or state.slots:
            waiting = {i for i in range(state.validators.n) if i != state.primary}
            return "pre-prepare", waiting, "transactions wait for the primary to propose"
        return "idle", None, "nothing to order"
    return _slot_phase(state, slot)


def _slot_phase(state: State, slot: Slot) -> tuple[str, set[int] | None, str]:
    if slot.height <= state.executed_height:
        return "seal", set(slot.seals.votes), "waiting for a quorum of seals"
    if slot.decided is not None:
        if state.executing == slot.height:
            return "execute", None, "the committed batch is being executed"
        return "payload", None, "a committed batch is being fetched from peers"
    if slot.commit_sent:
        return "commit", set(slot.commits.votes), "waiting for a quorum of commits"
    if slot.pre_prepare is None:
        waiting = {i for i in range(state.validators.n) if i != state.primary}
        return "pre-prepare", waiting, "waiting for the primary's proposal"
    if not slot.voted:
        return "payload", None, "the proposed batch is being fetched or checked"
    return "prepare", set(slot.prepares.votes) | {state.primary}, "waiting for prepares"
