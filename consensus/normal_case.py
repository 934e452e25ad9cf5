"""The three phases at one height (OSDI §4.2), and execution in the order of heights.

Functions over the shared state; each is called from `Replica` with a message whose signature and
form were checked, for the current view unless said otherwise, at a height inside the window.
"""

from consensus import wal
from consensus.effects import Broadcast, Execute, ObtainPayload
from consensus.messages import NULL_DIGEST, Commit, Prepare, PreparedCertificate, PrePrepare
from consensus.slots import Slot
from consensus.state import State


def next_height(state: State) -> int:
    """Return the height that a primary proposes next: above all that is proposed or executed."""
    return max(state.proposed, state.executed_height, state.low) + 1


def can_propose(state: State) -> bool:
    """Whether `propose` would send a PrePrepare now."""
    if not (state.active and state.is_primary) or state.syncing or state.halted is not None:
        return False
    height = next_height(state)
    if height > state.high:
        return False
    undecided = 0
    for h in range(state.executed_height + 1, height):
        slot = state.slots.get(h)
        undecided += slot is None or slot.decided is None
    return undecided < state.options.in_flight_max


def propose(state: State, digest: bytes) -> None:
    """Assign the next height to `digest`, whose batch the caller has."""
    if len(digest) != 32 or digest == NULL_DIGEST:
        raise ValueError("a proposal is named by 32 bytes that are not all zero")
    if not can_propose(state) or state.index is None:
        return
    height = next_height(state)
    vote = state.signed(PrePrepare(state.view, height, digest, state.index))
    slot = state.slot(height)
    slot.payload(digest).ready = True
    state.persist(slot, wal.accepted_row(vote))
    state.emit(Broadcast(vote))
    accept(state, vote, carried_over=False)


def on_pre_prepare(state: State, vote: PrePrepare) -> None:
    """Accept the primary's first proposal for a height of the current view."""
    if vote.digest == NULL_DIGEST:
        return
    slot = state.slot(vote.height)
    accepted = slot.pre_prepare
    if accepted is not None:
        if accepted.digest != vote.digest:
            state.accuse(slot, accepted, vote)
    elif slot.decided in (None, vote.digest):
        accept(state, vote, carried_over=False)


def accept(state: State, vote: PrePrepare, *, carried_over: bool) -> None:
    """Take `vote` as the proposal of its height; vote for it once its batch is here."""
    slot = state.slot(vote.height)
    slot.pre_prepare, slot.carried_over = vote, carried_over
    slot.born = state.tick
    state.proposed = max(state.proposed, vote.height)
    state.touched = True
    if vote.sender == state.index:
        slot.voted = True  # a primary's PrePrepare, or its NewView, is its vote
    if _is_ready(slot, vote.digest):
        _vote(state, slot)
    else:
        _ask(state, slot, vote.digest, fresh=not carried_over)


def _is_ready(slot: Slot, digest: bytes) -> bool:
    if digest == NULL_DIGEST:
        return True
    payload = slot.payloads.get(digest)
    return payload is not None and payload.ready


def _ask(state: State, slot: Slot, digest: bytes, *, fresh: bool) -> None:
    payload = slot.payload(digest)
    if payload.ready or payload.asked_fresh is False or payload.asked_fresh == fresh:
        return
    if payload.asked_fresh is not None:
        payload.stale_refusals += 1
    payload.asked_fresh = fresh
    state.emit(ObtainPayload(slot.height, digest, fresh))


def on_payload_ready(state: State, height: int, digest: bytes) -> None:
    """The batch is here: vote for it if it is proposed, execute it if it is decided."""
    slot = state.slots.get(height)
    if slot is None:
        return
    slot.payload(digest).ready = True
    state.touched = True
    if state.active and slot.pre_prepare is not None and slot.pre_prepare.digest == digest:
        _vote(state, slot)


def on_payload_refused(state: State, height: int, digest: bytes) -> bool:
    """Return whether the primary of the current view proposed what a correct one would not."""
    slot = state.slots.get(height)
    if slot is None or (payload := slot.payloads.get(digest)) is None or payload.ready:
        return False
    if payload.stale_refusals and payload.asked_fresh is False:
        # The refusal may answer the stricter question that came first; ask again to be sure.
        payload.stale_refusals -= 1
        state.emit(ObtainPayload(height, digest, False))
        return False
    payload.asked_fresh = None
    if slot.decided == digest:
        state.halt(f"a quorum committed at height {height} a batch that this node finds invalid")
        return False
    proposed = slot.pre_prepare is not None and slot.pre_prepare.digest == digest
    return proposed and state.active


def _vote(state: State, slot: Slot) -> None:
    vote = slot.pre_prepare
    if vote is None or state.index is None:
        return
    if not slot.voted:
        if slot.height <= state.sync_target and state.syncing:
            return  # a quorum has sealed it: we fetch it and do not vote
        slot.voted = True
        state.persist(slot, wal.accepted_row(vote))
        prepare = state.signed(Prepare(vote.view, vote.height, vote.digest, state.index))
        slot.prepares.add(vote.digest, prepare)
        state.emit(Broadcast(prepare))
    _check_prepared(state, slot)


def on_prepare(state: State, vote: Prepare) -> None:
    """Count a backup's Prepare in the current view, for whatever digest it names."""
    slot = state.slots.get(vote.height) or state.slot(vote.height)
    first = slot.prepares.votes.get(vote.sender)
    if first is not None:
        if first.digest != vote.digest:
            state.accuse(slot, first, vote)
        return
    if slot.prepares.add(vote.digest, vote) >= state.validators.quorum - 1:
        _check_prepared(state, slot)


def _check_prepared(state: State, slot: Slot) -> None:
    """Send our Commit once the PrePrepare and quorum-1 Prepares match (OSDI §4.2, prepared)."""
    vote = slot.pre_prepare
    if vote is None or not slot.voted or slot.commit_sent or state.index is None:
        return
    wanted = state.validators.quorum - 1
    prepares = slot.prepares
    if prepares.counts.get(vote.digest, 0) < wanted or not _is_ready(slot, vote.digest):
        return
    matching = sorted(s for s, p in prepares.votes.items() if p.digest == vote.digest)
    chosen = tuple((sender, prepares.votes[sender].signature) for sender in matching[:wanted])
    slot.prepared = PreparedCertificate(vote, chosen)
    slot.commit_sent = True
    commit = state.signed(Commit(vote.view, vote.height, vote.digest, state.index))
    state.persist(slot, wal.prepared_row(slot.prepared))
    state.emit(Broadcast(commit))
    on_commit(state, commit)


def on_commit(state: State, vote: Commit) -> None:
    """Count a Commit of any view; a quorum for one (view, digest) decides the height.

    A replica that left the view, or never saw the proposal, learns the decision this way too:
    a commit certificate proves itself whatever the local view is. Of each sender the Commit of
    the highest view is kept.
    """
    slot = state.slots.get(vote.height) or state.slot(vote.height)
    key = (vote.view, vote.digest)
    first = slot.commits.votes.get(vote.sender)
    if first is not None:
        if first.view == vote.view and first.digest != vote.digest:
            state.accuse(slot, first, vote)
        if first.view >= vote.view:
            return
        slot.commits.remove((first.view, first.digest), vote.sender)
    if slot.commits.add(key, vote) >= state.validators.quorum:
        _decide(state, slot, vote.view, vote.digest)


def _decide(state: State, slot: Slot, view: int, digest: bytes) -> None:
    if slot.decided is not None:
        if slot.decided != digest:
            state.halt(f"two digests were committed at height {slot.height}: more than f faulty")
        return
    slot.decided, slot.decided_view = digest, view
    state.touched = True
    if slot.height > state.executed_height and not _is_ready(slot, digest):
        _ask(state, slot, digest, fresh=False)


def execute_next(state: State) -> None:
    """Execute the height after the last one, if it is decided, its batch is here, none runs."""
    height = state.executed_height + 1
    slot = state.slots.get(height)
    if state.executing is not None or slot is None or slot.decided is None:
        return
    if _is_ready(slot, slot.decided):
        state.executing = height
        state.emit(Execute(height, slot.decided))
