"""Seals, stability and watermarks (OSDI §4.3: a seal is a CHECKPOINT at every height).

A quorum of equal seals makes a height stable. Correct replicas execute the same batches on the
same state, so a header that differs from a quorum's, or seals that no longer can agree, mean that
a machine is broken: the node halts and says so.
"""

from consensus.effects import Broadcast, Forget, NeedSync, Send, Stable
from consensus.errors import require
from consensus.messages import (
    Commit,
    Message,
    Prepare,
    PrePrepare,
    Seal,
    SealCertificate,
    ViewChange,
)
from consensus.slots import Slot
from consensus.state import State
from consensus.wal import NEW_VIEW_KEY, VIEW_CHANGE_KEY


def on_executed(state: State, height: int, header: bytes) -> None:
    """Record our own block of `height` and seal it; a height executed before is a no-op."""
    if height <= state.executed_height:
        return
    require(height == state.executing, f"height {height} was executed without being asked for")
    state.executing = None
    state.executed_height, state.executed_header = height, header
    state.touched = state.view_timer_restarts = True
    if state.active:
        state.failed_views = 0
    if height <= state.low or height > state.high:
        return
    slot = state.slot(height)
    slot.header = header
    seal_own(state, slot)
    ahead = state.ahead
    if ahead is not None and ahead.height <= height:
        state.ahead = None
        learn_certificate(state, ahead)


def seal_own(state: State, slot: Slot) -> None:
    """Send our seal for the header that `slot` has."""
    if state.index is not None and slot.header is not None:
        slot.born = state.tick
        seal = state.signed(Seal(slot.height, slot.header, state.index))
        state.emit(Broadcast(seal))
        _count(state, slot, seal)
    _judge(state, slot)


def on_seal(state: State, seal: Seal) -> None:
    """Count a seal inside the window, whether or not we executed its height yet."""
    state.seal_heard[seal.sender] = max(state.seal_heard.get(seal.sender, 0), seal.height)
    slot = state.slots.get(seal.height) or state.slot(seal.height)
    first = slot.seals.votes.get(seal.sender)
    if first is not None:
        if first.header != seal.header:
            state.accuse(slot, first, seal)
        return
    _count(state, slot, seal)
    _judge(state, slot)


def _count(state: State, slot: Slot, seal: Seal) -> None:
    seals = slot.seals
    if seals.add(seal.header, seal) != state.validators.quorum:
        return
    matching = sorted(s for s, other in seals.votes.items() if other.header == seal.header)
    signatures = tuple((sender, seals.votes[sender].signature) for sender in matching)
    learn_certificate(state, SealCertificate(seal.height, seal.header, signatures))


def _judge(state: State, slot: Slot) -> None:
    counts = slot.seals.counts
    if len(counts) < 2:
        return
    unheard = state.validators.n - len(slot.seals.votes)
    if max(counts.values()) + unheard < state.validators.quorum:
        state.halt(
            f"validators computed different blocks at height {slot.height}, and none of them can "
            "reach a quorum: compare the nodes' versions and state roots"
        )


def learn_certificate(state: State, certificate: SealCertificate) -> None:
    """A quorum sealed this height: it is stable if we executed it, else we are behind."""
    if certificate.height <= state.low:
        return
    if certificate.height > state.executed_height:
        _remember_ahead(state, certificate)
        return
    if _agrees(state, certificate):
        state.emit(Stable(certificate))
        _advance(state, certificate)


def _agrees(state: State, certificate: SealCertificate) -> bool:
    slot = state.slots.get(certificate.height)
    own = state.executed_header if certificate.height == state.executed_height else None
    if slot is not None and slot.header is not None:
        own = slot.header
    if own in (None, certificate.header):
        return True
    state.halt(
        f"this node's block at height {certificate.height} differs from the one that a quorum "
        "sealed: its disk or its software is damaged; move its data away and sync it anew"
    )
    return False


def _remember_ahead(state: State, certificate: SealCertificate) -> None:
    if state.ahead is None or certificate.height > state.ahead.height:
        if state.ahead is None:
            state.ahead_since = (state.tick, state.executed_height)
        state.ahead = certificate
        state.touched = True
    if certificate.height > state.high or state.index is None:
        need_sync(state, certificate.height)


def _advance(state: State, stable: SealCertificate) -> None:
    """Raise the low watermark: forget slots and rows, and begin a new reign if it is time."""
    for height in sorted(h for h in state.slots if h <= stable.height):
        slot = state.slots.pop(height)
        state.emit(*map(Forget, sorted(slot.rows)))
    state.move_window(stable)
    state.touched = True
    if state.schedule.reign_start(state.low + 1) != state.reign_start:
        state.emit(Forget(NEW_VIEW_KEY), Forget(VIEW_CHANGE_KEY))
        state.begin_reign()
    if state.ahead is not None and state.ahead.height <= max(state.low, state.executed_height):
        state.ahead = None


def on_synced(state: State, certificate: SealCertificate) -> None:
    """Blocks up to the certificate's height are durable here; they came from peers."""
    if certificate.height > state.executed_height:
        state.executed_height, state.executed_header = certificate.height, certificate.header
        state.executing = None
        state.view_timer_restarts = True
        if state.active:
            state.failed_views = 0
    state.touched = True
    if certificate.height > state.low and _agrees(state, certificate):
        _advance(state, certificate)


def need_sync(state: State, height: int) -> None:
    """Ask once for blocks up to `height`; the resend timer asks again."""
    if height > max(state.sync_target, state.executed_height):
        state.sync_target = height
        state.touched = True
        state.emit(NeedSync(height))


def check_behind(state: State) -> None:
    """Fetch what a quorum sealed if we came no nearer to it in a whole resend period."""
    ahead, (tick, executed) = state.ahead, state.ahead_since
    if ahead is None or state.executing is not None or state.executed_height != executed:
        state.ahead_since = (state.tick, state.executed_height)
    elif state.tick > tick + 1:
        need_sync(state, ahead.height)


def on_far(state: State, message: PrePrepare | Prepare | Commit | Seal) -> None:
    """Note a message above the window; f+1 validators there mean that we missed a stable height.

    One of f+1 is correct, and its low watermark is at most a window below what it signs.
    """
    if isinstance(message, PrePrepare | Prepare):
        return
    start = state.schedule.reign_start(message.height)
    heights = state.far.setdefault(start, {})
    if heights.get(message.sender, 0) >= message.height:
        return
    heights[message.sender] = message.height
    f = state.schedule.at(message.height).f
    above = sorted((height for height in heights.values() if height > state.high), reverse=True)
    if len(above) > f:
        need_sync(state, max(state.low + 1, above[f] - state.options.window))


def on_beyond_horizon(state: State, message: Message) -> None:
    """Fetch what a message of validators that we may not know says that there is.

    The blocks prove themselves, each by the set that reigned. What is kept of such a certificate
    could be a lie of validators that left, and must not be compared with our own block later.
    """
    match message:
        case Commit() | Seal() if state.index is None:
            observe(state, message)
        case Commit() | Seal():
            on_far(state, message)
        case SealCertificate():
            need_sync(state, message.height)
        case ViewChange():
            need_sync(state, message.stable.height)
        case _:
            pass


def observe(state: State, message: Commit | Seal) -> None:
    """As an observer: f+1 validators beyond our last block mean that there is one to fetch."""
    validators = state.schedule.at(message.height)
    reached = message.height
    if isinstance(message, Commit):
        reached -= state.options.window  # a Commit claims no execution
    heights = state.far.setdefault(state.schedule.reign_start(message.height), {})
    if heights.get(message.sender, 0) >= reached:
        return
    heights[message.sender] = reached
    if len(heights) > validators.f:
        need_sync(state, sorted(heights.values(), reverse=True)[validators.f])


def answer_laggard(state: State, message: PrePrepare | Prepare | Commit | Seal) -> None:
    """Help a validator that still votes at or below our stable height with the certificate.

    At most once per sender and resend period. A Seal asks for help only when it is repeated.
    """
    if state.index is None:
        return
    if isinstance(message, Seal):
        heard = state.seal_heard.get(message.sender, 0)
        state.seal_heard[message.sender] = max(heard, message.height)
        if message.height > heard:
            return
    origin = state.schedule.at(message.height)
    answer(state, state.validators.index_of(origin.validators[message.sender].public_key))


def answer(state: State, sender: int | None) -> None:
    """Send our stable certificate to `sender` unless it was helped in this resend period."""
    if sender is None or sender in state.answered or sender == state.index:
        return
    if state.stable.height:
        state.answered.add(sender)
        state.touched = True
        state.emit(Send(state.key_of(sender), state.stable))
