"""All that one replica holds in memory, shared by the modules that act on it.

Invariants: low <= executed_height or a sync is under way; every slot lies in (low, high]; the
window lies in the reign of one validator set. Only `step` and `start` of the replica change this.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from consensus.buffer import Buffer
from consensus.effects import Effect, Evidence, Halt, Persist
from consensus.messages import (
    Commit,
    Domain,
    NewView,
    Prepare,
    PrePrepare,
    Seal,
    SealCertificate,
    ViewChange,
)
from consensus.options import Options
from consensus.slots import Slot
from consensus.validators import ValidatorSchedule, ValidatorSet

Signed = TypeVar("Signed", PrePrepare, Prepare, Commit, Seal, ViewChange, NewView)


class State:
    """The mutable state of one replica."""

    def __init__(
        self,
        schedule: ValidatorSchedule,
        chain_id: bytes,
        sign: Callable[[bytes], bytes],
        options: Options,
    ) -> None:
        self.schedule = schedule
        self.chain_id = chain_id
        self.options = options
        self._sign = sign
        self.out: list[Effect] = []
        self.touched = False  # whether this step may have changed timers or what can execute
        self.halted: str | None = None

        # The reign of one validator set.
        self.public_key: bytes | None = None
        self.index: int | None = None  # None: this replica does not vote in this reign
        self.validators: ValidatorSet = schedule.at(0)
        self.reign_start = 0
        self.domain = Domain(chain_id, self.validators.digest)

        # The view.
        self.view = 0
        self.active = True  # False: asked for `view` and waits for its NewView
        self.new_view: NewView | None = None  # the one that began `view`
        self.view_changes: dict[int, ViewChange] = {}  # by sender, each one's highest
        self.views_seen: dict[int, int] = {}  # by sender, the highest above our own
        self.failed_views = 0
        self.proposed = 0  # highest height with a PrePrepare of this view, or the one below all
        self.buffer = Buffer(options.buffered_per_sender_max)
        self.accused_views: dict[int, int] = {}  # by sender, the last view it told two tales of

        # Heights.
        self.slots: dict[int, Slot] = {}
        self.low = 0
        self.high = options.window
        self.stable = SealCertificate(0, bytes(32), ())
        self.window_moved = False
        self.executed_height = 0
        self.executed_header = bytes(32)
        self.executing: int | None = None

        # Being behind.
        self.sync_target = 0  # NeedSync was emitted up to here
        self.ahead: SealCertificate | None = None  # the highest one above what we executed
        self.ahead_since: tuple[int, int] = (0, 0)  # (tick, executed height) when we learned it
        self.far: dict[int, dict[int, int]] = {}  # reign start: sender: height above `high`

        # Timers and answers to laggards.
        self.work_pending = False
        self.view_timer_runs = False
        self.view_timer_restarts = False
        self.resend_timer_runs = False
        self.tick = 0  # resend periods so far
        self.answered: set[int] = set()  # senders sent our stable certificate in this period
        self.answered_views: set[int] = set()  # senders sent our NewView in this period
        self.view_changes_heard: dict[int, int] = {}  # by sender, in this period
        self.seal_heard: dict[int, int] = {}  # by sender, the highest height of a Seal

    @property
    def primary(self) -> int:
        return self.validators.primary(self.view)

    @property
    def is_primary(self) -> bool:
        return self.index is not None and self.primary == self.index

    @property
    def syncing(self) -> bool:
        """Whether a quorum is known to have sealed what this replica must fetch."""
        return self.sync_target > self.executed_height

    def key_of(self, sender: int) -> bytes:
        """Return the public key of a validator of this reign."""
        return self.validators.validators[sender].public_key

    def slot(self, height: int) -> Slot:
        """Return the slot of `height`, which lies in the window, made when missing."""
        found = self.slots.get(height)
        if found is None:
            found = self.slots[height] = Slot(height, self.tick)
        return found

    def emit(self, *effects: Effect) -> None:
        self.out += effects

    def signed(self, message: Signed) -> Signed:
        """Return `message` with this replica's signature."""
        return replace(message, signature=self._sign(self.domain.signed_bytes(message)))

    def halt(self, reason: str) -> None:
        """Stop for good; only the first reason is told."""
        if self.halted is None:
            self.halted = reason
            self.emit(Halt(reason))

    def persist(self, slot: Slot, row: Persist) -> None:
        """Write a row about the height of `slot`; it is forgotten together with the slot."""
        slot.rows.add(row.key)
        self.emit(row)

    def accuse(self, slot: Slot, first: Signed, second: Signed) -> None:
        """Report two conflicting votes of one sender, once per kind, view and height."""
        view = 0 if isinstance(first, Seal) else first.view
        key = (type(first), view, first.sender)
        if key not in slot.accused:
            slot.accused.add(key)
            self.emit(Evidence(first, second))

    def open_slots(self) -> list[Slot]:
        """Return the slots where this replica holds something, in ascending order of height."""
        return [self.slots[h] for h in sorted(self.slots) if self.slots[h].is_open()]

    def has_open_heights(self) -> bool:
        """Whether a height was accepted or decided and is not executed yet."""
        return any(
            height > self.executed_height
            and (slot.pre_prepare is not None or slot.decided is not None)
            for height, slot in self.slots.items()
        )

    def begin_reign(self) -> None:
        """Take the validator set that orders the height above `low`; its views begin at 0.

        Votes bind the set's digest and a height, so nothing of an earlier reign can meet them. What
        the buffer holds above `low` came early and is of this reign.
        """
        self.reign_start = self.schedule.reign_start(self.low + 1)
        self.validators = self.schedule.at(self.low + 1)
        self.domain = Domain(self.chain_id, self.validators.digest)
        key = self.public_key
        self.index = None if key is None else self.validators.index_of(key)
        self.view, self.active, self.new_view = 0, True, None
        self.failed_views = 0
        self.proposed = self.low
        self.view_timer_restarts = True
        self.far = {start: far for start, far in self.far.items() if start >= self.reign_start}
        for table in (self.view_changes, self.views_seen, self.accused_views, self.seal_heard):
            table.clear()
        self.answered.clear()
        self.answered_views.clear()

    def move_window(self, stable: SealCertificate) -> None:
        """Raise the low watermark to `stable.height`; the window ends where another set begins."""
        self.stable = stable
        self.low = stable.height
        self.window_moved = True
        self.high = self.low + self.options.window
        end = self.schedule.next_change_after(self.low + 1)
        if end is not None:
            self.high = min(self.high, end - 1)
