"""One replica of PBFT: `step` takes what happened and returns what to do, in order.

The replica is a deterministic function of its inputs. Its parts act on one shared `State`:
`normal_case` (three phases, execution), `checkpoint` (seals, watermarks), `views` (view changes),
`retransmission` (timers). This module decides which part a message belongs to: what is below the
window asks for help, what is above it or of a later view is buffered.
"""

from collections.abc import Callable, Mapping
from typing import Any

from consensus import checkpoint, normal_case, relevance, report, retransmission, views
from consensus.effects import Effect
from consensus.errors import InvariantViolation, require
from consensus.inputs import (
    Executed,
    Input,
    MessageReceived,
    PayloadReady,
    PayloadRefused,
    PrimarySuspected,
    Propose,
    Synced,
    TimerFired,
    WorkPending,
)
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
from consensus.options import Options
from consensus.recovery import restore
from consensus.report import PhaseReport
from consensus.state import State
from consensus.validators import ValidatorSchedule, ValidatorSet

__all__ = ["Options", "PhaseReport", "Replica"]

DEFAULTS = Options()


class Replica:
    """One validator's consensus instance, or an observer's. Holds no socket, file, task or clock.

    `index` is the position in the validator set of the height after the stable one that `start`
    gets, None for an observer. `sign` returns the 64-byte deterministic Ed25519 signature of its
    argument. `public_key`, when given instead of an index, lets an observer vote as soon as a set
    with that key takes over.
    """

    def __init__(
        self,
        index: int | None,
        schedule: ValidatorSchedule,
        chain_id: bytes,
        sign: Callable[[bytes], bytes],
        options: Options = DEFAULTS,
        public_key: bytes | None = None,
    ) -> None:
        self._state = State(schedule, chain_id, sign, options)
        self._index = index
        self._state.public_key = public_key
        self._inputs: dict[type, Callable[[Any], None]] = {
            MessageReceived: self._on_message_received,
            PayloadReady: self._on_payload_ready,
            PayloadRefused: self._on_payload_refused,
            Propose: self._on_propose,
            Executed: self._on_executed,
            Synced: self._on_synced,
            TimerFired: self._on_timer,
            WorkPending: self._on_work_pending,
            PrimarySuspected: self._on_primary_suspected,
        }
        self._messages: dict[type, Callable[[Any], None]] = {
            PrePrepare: self._on_pre_prepare,
            Prepare: self._on_prepare,
            Commit: self._on_commit,
            Seal: self._on_seal,
            SealCertificate: self._on_certificate,
            ViewChange: self._on_view_change,
            NewView: self._on_new_view,
        }

    def start(
        self,
        wal: Mapping[bytes, bytes],
        executed_height: int,
        executed_header: bytes,
        stable: SealCertificate,
        work_pending: bool = False,
    ) -> list[Effect]:
        """Rebuild the replica from what is durable; call it once, before any `step`.

        `wal` holds the rows that Persist wrote and Forget did not delete; `executed_header` is the
        digest of the last executed block's header; a new chain starts with height 0, the genesis
        header and a `stable` certificate of height 0 without seals. Raises `InvariantViolation`
        for rows that no replica wrote.
        """
        state = self._begin()
        require(executed_height >= stable.height, "a stable block is missing: it was not executed")
        if self._index is not None and state.public_key is None:
            members = state.schedule.at(stable.height + 1).validators
            state.public_key = members[self._index].public_key
        state.executed_height, state.executed_header = executed_height, executed_header
        state.work_pending = work_pending
        restore(state, wal, stable)
        self._settle()
        return state.out

    def step(self, happened: Input) -> list[Effect]:
        """Apply one input; return the effects in the order in which to perform them.

        A replica that halted returns nothing. Raises `InvariantViolation` when the caller breaks
        the agreement of `inputs`, or this code its own; the node must stop then.
        """
        state = self._begin()
        if state.halted is None:
            self._inputs[type(happened)](happened)
            if state.touched:
                self._settle()
        return state.out

    def is_relevant(self, message: Message) -> bool:
        """Whether `message` could change anything, so that its signatures are worth checking.

        False for what is old, counted already or beyond every bound, and for votes after their
        quorum. Evidence of equivocation may be lost with the latter: that is the price of
        verifying a third less.
        """
        return relevance.is_relevant(self._state, message)

    def can_judge(self, message: Message) -> bool:
        """Whether this replica knows for certain whose signatures `message` must carry.

        Signatures of any other message may fail without anybody's fault: the validators may have
        changed in blocks that this replica has yet to execute.
        """
        return not relevance.is_beyond_horizon(self._state, message)

    def phase_report(self) -> PhaseReport:
        """Return which phase is waited for, at which height, and who was not heard in it."""
        return report.phase_report(self._state)

    @property
    def index(self) -> int | None:
        """The position in the current validator set; None while this node does not vote."""
        return self._state.index

    @property
    def validators(self) -> ValidatorSet:
        """The set that orders the height above `low`; `index` and `primary` are places in it."""
        return self._state.validators

    @property
    def view(self) -> int:
        """The view that is active or asked for; it begins at 0 with every validator set."""
        return self._state.view

    @property
    def primary(self) -> int:
        """The index of the primary of `view`."""
        return self._state.primary

    @property
    def is_primary(self) -> bool:
        """Whether this replica is the primary of `view`."""
        return self._state.is_primary

    @property
    def can_propose(self) -> bool:
        """Whether `Propose` would be used now: primary of an active view, with room in flight."""
        return normal_case.can_propose(self._state)

    @property
    def next_height(self) -> int:
        """The height that the next `Propose` gets."""
        return normal_case.next_height(self._state)

    @property
    def syncing(self) -> bool:
        """Whether it knows of blocks above what it executed that it has to fetch."""
        return self._state.syncing

    @property
    def low(self) -> int:
        """The low watermark: the last stable height."""
        return self._state.low

    @property
    def high(self) -> int:
        """The high watermark: the last height (inclusive) that may be voted for."""
        return self._state.high

    @property
    def executed_height(self) -> int:
        """The last executed height."""
        return self._state.executed_height

    def proposals(self) -> dict[int, bytes]:
        """Return the digest accepted in this view for each height that is not executed yet."""
        state = self._state
        return {
            height: slot.pre_prepare.digest
            for height, slot in state.slots.items()
            if height > state.executed_height and slot.pre_prepare is not None
        }

    @property
    def halted(self) -> str | None:
        """The reason for which this replica halted, or None."""
        return self._state.halted

    def _begin(self) -> State:
        state = self._state
        state.out = []
        state.touched = False
        return state

    def _settle(self) -> None:
        """Do what follows from a changed state: use a moved window, execute, set timers."""
        state = self._state
        while state.window_moved and state.halted is None:
            state.window_moved = False
            views.accept_carried_over(state)
            if state.buffer:
                view = state.view if state.active else state.view - 1
                for message in state.buffer.release(view, state.low, state.high):
                    self._messages[type(message)](message)
        if state.halted is None:
            normal_case.execute_next(state)
            retransmission.set_timers(state)

    # Messages

    def _on_message_received(self, happened: MessageReceived) -> None:
        message = happened.message
        state = self._state
        if relevance.is_beyond_horizon(state, message):
            checkpoint.on_beyond_horizon(state, message)
        elif state.index is None:
            if isinstance(message, SealCertificate):
                checkpoint.learn_certificate(state, message)
            elif isinstance(message, Commit | Seal) and message.height > state.executed_height:
                checkpoint.observe(state, message)
        elif isinstance(message, SealCertificate) or message.sender != state.index:
            self._messages[type(message)](message)

    def _is_outside(self, message: PrePrepare | Prepare | Commit | Seal) -> bool:
        state = self._state
        height = message.height
        if height <= state.low:
            checkpoint.answer_laggard(state, message)
            return True
        if height > state.high:
            if height <= state.high + state.options.window:
                state.buffer.add(message)
            checkpoint.on_far(state, message)
            return True
        return False

    def _is_of_another_view(self, message: PrePrepare | Prepare) -> bool:
        state = self._state
        if message.view == state.view and state.active:
            return False
        if message.view >= state.view:
            state.buffer.add(message)
            views.note_view(state, message.sender, message.view)
        elif isinstance(message, PrePrepare):
            views.answer_with_new_view(state, message.sender)
        return True

    def _on_pre_prepare(self, message: PrePrepare) -> None:
        if not self._is_outside(message) and not self._is_of_another_view(message):
            normal_case.on_pre_prepare(self._state, message)

    def _on_prepare(self, message: Prepare) -> None:
        if not self._is_outside(message) and not self._is_of_another_view(message):
            normal_case.on_prepare(self._state, message)

    def _on_commit(self, message: Commit) -> None:
        if self._is_outside(message):
            return
        if message.view > self._state.view:
            views.note_view(self._state, message.sender, message.view)
        normal_case.on_commit(self._state, message)

    def _on_seal(self, message: Seal) -> None:
        if not self._is_outside(message):
            checkpoint.on_seal(self._state, message)

    def _on_certificate(self, message: SealCertificate) -> None:
        checkpoint.learn_certificate(self._state, message)

    def _on_view_change(self, message: ViewChange) -> None:
        views.on_view_change(self._state, message)

    def _on_new_view(self, message: NewView) -> None:
        views.on_new_view(self._state, message)

    # Other inputs

    def _on_propose(self, happened: Propose) -> None:
        normal_case.propose(self._state, happened.digest)

    def _on_payload_ready(self, happened: PayloadReady) -> None:
        normal_case.on_payload_ready(self._state, happened.height, happened.digest)

    def _on_payload_refused(self, happened: PayloadRefused) -> None:
        state = self._state
        if normal_case.on_payload_refused(state, happened.height, happened.digest):
            views.begin_view_change(state, state.view + 1)

    def _on_executed(self, happened: Executed) -> None:
        checkpoint.on_executed(self._state, happened.height, happened.header)

    def _on_synced(self, happened: Synced) -> None:
        checkpoint.on_synced(self._state, happened.certificate)

    def _on_work_pending(self, happened: WorkPending) -> None:
        state = self._state
        state.touched = state.touched or state.work_pending != happened.pending
        state.work_pending = happened.pending

    def _on_primary_suspected(self, happened: PrimarySuspected) -> None:
        state = self._state
        if state.active and happened.view == state.view:
            views.begin_view_change(state, state.view + 1)

    def _on_timer(self, happened: TimerFired) -> None:
        state = self._state
        if happened.name == retransmission.RESEND_TIMER:
            retransmission.on_resend_timer(state)
        elif happened.name == retransmission.VIEW_TIMER:
            retransmission.on_view_timer(state)
        else:
            raise InvariantViolation(f"no timer is called {happened.name}")
