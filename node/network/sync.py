"""Block sync: fetches sealed blocks from several peers at once and hands them on in order. Pure.

Blocks are opaque bytes with a height; the owner verifies them by their seals and executes them, and
says `accepted` or `refused`. What a peer claims decides only what it is asked for: a lie about a
height costs one unanswered request, and the liar then rests. Every method returns what to do now.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

LATE_MAX = 1_024  # given-up requests whose answers may still come without blame


@dataclass(frozen=True, slots=True)
class Ask:
    """Send FETCH_BLOCKS to `peer`."""

    peer: bytes
    request_id: int
    first: int
    last: int  # inclusive


@dataclass(frozen=True, slots=True)
class Deliver:
    """Verify and execute this block, then call `accepted(height)` or `refused(peer, height)`.

    Blocks come in height order. After a `refused`, later ones that were delivered already are void:
    they are delivered again.
    """

    height: int
    block: bytes
    peer: bytes


@dataclass(frozen=True, slots=True)
class Blame:
    """The peer broke the protocol of FETCH_BLOCKS and BLOCKS."""

    peer: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """The height that `target` asked for is reached."""

    height: int


Action: TypeAlias = Ask | Deliver | Blame | Done


@dataclass(frozen=True, slots=True)
class SyncOptions:
    range_blocks: int = 64  # in one request
    range_bytes: int = 1024 * 1024  # what a server puts into one answer, unless a block is larger
    window_blocks: int = 512  # heights above the executed one that are asked for or held
    buffer_bytes_max: int = 32 * 1024 * 1024  # held, plus what outstanding requests may bring
    per_peer: int = 2  # requests outstanding at one peer
    deliver_ahead: int = 8  # blocks delivered and not yet answered
    timeout_ms: int = 5_000
    rest_ms: int = 500  # after a failure; doubles up to the maximum
    rest_ms_max: int = 60_000
    patience_ms: int = 1_000  # how long to wait for consensus to bring what peers already have


@dataclass(slots=True)
class _Peer:
    height: int
    outstanding: int = 0
    failures: int = 0
    rests_until_ms: int = 0


@dataclass(frozen=True, slots=True)
class _Request:
    peer: bytes
    first: int
    last: int
    due_ms: int


@dataclass(frozen=True, slots=True)
class _Held:
    peer: bytes
    block: bytes


@dataclass(slots=True)
class SyncCounters:
    """For metrics."""

    blocks_received: int = 0
    bytes_received: int = 0
    timeouts: int = 0
    refused: int = 0
    late: int = 0


@dataclass(slots=True)
class BlockSync:
    """One node's side that fetches.

    With `follows` (an observer) every block that a peer has is wanted. A validator gets its blocks
    from consensus, and wants blocks only up to a `target`, or when it stands still for
    `patience_ms` while a peer is ahead.
    """

    executed: int  # own height
    now_ms: int  # monotonic; as of the last `tick`
    follows: bool = False
    options: SyncOptions = field(default_factory=SyncOptions)
    counters: SyncCounters = field(default_factory=SyncCounters)
    _behind_since_ms: int | None = None  # a peer is ahead, and nothing was executed since
    _target: int = 0
    _delivered: int = 0
    _next_id: int = 1
    _held_bytes: int = 0
    _peers: dict[bytes, _Peer] = field(default_factory=dict)
    _requests: dict[int, _Request] = field(default_factory=dict)
    _late: dict[int, bytes] = field(default_factory=dict)
    _held: dict[int, _Held] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._delivered = self.executed

    @property
    def is_behind(self) -> bool:
        """Whether a target is not yet reached: the node must not vote."""
        return self.executed < self._target

    @property
    def best_height(self) -> int:
        """The highest block that any peer says it has."""
        return max((peer.height for peer in self._peers.values()), default=0)

    @property
    def held_bytes(self) -> int:
        """The bytes of blocks that wait here."""
        return self._held_bytes

    # What happens.

    def target(self, height: int) -> list[Action]:
        """Want every block up to at least `height` (a quorum is known to have it)."""
        self._target = max(self._target, height)
        return self._plan()

    def on_status(self, peer: bytes, height: int) -> list[Action]:
        """Take note of the highest block that `peer` says it can hand out."""
        known = self._peers.setdefault(peer, _Peer(height))
        known.height = height
        return self._plan()

    def on_disconnected(self, peer: bytes) -> list[Action]:
        """Forget the peer; what it was asked for is asked elsewhere."""
        self._peers.pop(peer, None)
        for request_id in [i for i, r in self._requests.items() if r.peer == peer]:
            del self._requests[request_id]
        return self._plan()

    def on_blocks(
        self, peer: bytes, request_id: int, first: int, blocks: Sequence[bytes]
    ) -> list[Action]:
        """Take a BLOCKS frame: the answer to one request, perhaps not all of it."""
        request = self._requests.get(request_id)
        if request is None or request.peer != peer:
            if self._late.get(request_id) == peer:
                del self._late[request_id]
                self.counters.late += 1
                return []
            return [Blame(peer, "blocks that were not asked for")]
        self._finish(request_id)
        if first != request.first or len(blocks) > request.last - request.first + 1:
            self._rest(peer)
            return [Blame(peer, "other blocks than were asked for"), *self._plan()]
        if not blocks:  # it is pruned, or has less than it said
            self._rest(peer)
            self._peers[peer].height = min(self._peers[peer].height, request.first - 1)
            return self._plan()
        self._peers[peer].failures = 0
        for height, block in enumerate(blocks, first):
            self._hold(peer, height, block)
        return [*self._deliver(), *self._plan()]

    def on_sealed(self, peer: bytes, height: int, block: bytes) -> list[Action]:
        """Take a SEALED frame: a block that a validator pushes to those who follow."""
        known = self._peers.get(peer)
        if known is None:
            return []
        known.height = max(known.height, height)
        room = self._held_bytes + len(block) <= self.options.buffer_bytes_max
        if self.follows and height <= self.executed + self.options.window_blocks and room:
            self._hold(peer, height, block)
        return [*self._deliver(), *self._plan()]

    def accepted(self, height: int) -> list[Action]:
        """The chain has grown to `height`, by sync or by consensus."""
        if height <= self.executed:
            return []
        if height - self.executed > len(self._held):
            passed = [h for h in self._held if h <= height]
        else:
            passed = list(range(self.executed + 1, height + 1))
        for old in passed:
            self._drop(old)
        was_behind = self.is_behind
        self.executed = height
        self._delivered = max(self._delivered, height)
        self._behind_since_ms = None
        done: list[Action] = [Done(height)] if was_behind and not self.is_behind else []
        return [*done, *self._deliver(), *self._plan()]

    def refused(self, peer: bytes, height: int) -> list[Action]:
        """The block at `height`, which `peer` sent, is not valid: nothing of that peer is kept."""
        self.counters.refused += 1
        self._delivered = max(self.executed, min(self._delivered, height - 1))
        self._drop(height)
        for held in [h for h, block in self._held.items() if block.peer == peer]:
            self._drop(held)
            self._delivered = max(self.executed, min(self._delivered, held - 1))
        for request_id in [i for i, r in self._requests.items() if r.peer == peer]:
            self._give_up(request_id)
        self._rest(peer)
        return [*self._deliver(), *self._plan()]

    def tick(self, now_ms: int) -> list[Action]:
        """Let time pass (monotonic milliseconds); call a few times a second."""
        self.now_ms = now_ms
        for request_id, request in list(self._requests.items()):
            if request.due_ms <= now_ms:
                self.counters.timeouts += 1
                self._give_up(request_id)
                self._rest(request.peer)
        return self._plan()

    # What to do about it.

    def _goal(self) -> int:
        """The highest height that is wanted now."""
        best = self.best_height
        if best <= self.executed:
            self._behind_since_ms = None
        elif self._behind_since_ms is None:
            self._behind_since_ms = self.now_ms
        since_ms = self._behind_since_ms
        stands = since_ms is not None and self.now_ms - since_ms >= self.options.patience_ms
        return max(best, self._target) if self.follows or stands else self._target

    def _plan(self) -> list[Action]:
        """Ask for the lowest heights that are neither here nor on their way."""
        goal = min(self._goal(), self.executed + self.options.window_blocks)
        asks: list[Action] = []
        for first, last in self._gaps(goal):
            while first <= last:
                if first > self._delivered + 1 and not self._has_room():
                    return asks
                chosen = self._choose(first)
                if chosen is None:
                    break
                key, peer = chosen
                until = min(last, first + self.options.range_blocks - 1, peer.height)
                asks.append(self._ask(key, peer, first, until))
                first = until + 1
        return asks

    def _gaps(self, goal: int) -> list[tuple[int, int]]:
        """The runs of heights up to `goal` that are missing, in order."""
        here = [(h, h) for h in self._held if self._delivered < h <= goal]
        coming = [(r.first, r.last) for r in self._requests.values()]
        gaps, height = [], self._delivered + 1
        for first, last in sorted(here + coming):
            if height < first <= goal:
                gaps.append((height, first - 1))
            height = max(height, last + 1)
        if height <= goal:
            gaps.append((height, goal))
        return gaps

    def _has_room(self) -> bool:
        expected = (len(self._requests) + 1) * self.options.range_bytes
        return self._held_bytes + expected <= self.options.buffer_bytes_max

    def _choose(self, height: int) -> tuple[bytes, _Peer] | None:
        able = [
            (key, peer)
            for key, peer in self._peers.items()
            if peer.height >= height
            and peer.outstanding < self.options.per_peer
            and peer.rests_until_ms <= self.now_ms
        ]
        return min(able, key=lambda p: (p[1].failures, p[1].outstanding), default=None)

    def _ask(self, key: bytes, peer: _Peer, first: int, last: int) -> Ask:
        request_id, self._next_id = self._next_id, self._next_id % (2**32 - 1) + 1
        due_ms = self.now_ms + self.options.timeout_ms
        self._requests[request_id] = _Request(key, first, last, due_ms)
        peer.outstanding += 1
        return Ask(key, request_id, first, last)

    def _deliver(self) -> list[Action]:
        deliveries: list[Action] = []
        while self._delivered - self.executed < self.options.deliver_ahead:
            held = self._held.get(self._delivered + 1)
            if held is None:
                break
            self._delivered += 1
            deliveries.append(Deliver(self._delivered, held.block, held.peer))
        return deliveries

    def _hold(self, peer: bytes, height: int, block: bytes) -> None:
        if height > self.executed and height not in self._held:
            self._held[height] = _Held(peer, block)
            self._held_bytes += len(block)
            self.counters.blocks_received += 1
            self.counters.bytes_received += len(block)

    def _drop(self, height: int) -> None:
        held = self._held.pop(height, None)
        if held is not None:
            self._held_bytes -= len(held.block)

    def _finish(self, request_id: int) -> None:
        request = self._requests.pop(request_id)
        peer = self._peers.get(request.peer)
        if peer is not None:
            peer.outstanding -= 1

    def _give_up(self, request_id: int) -> None:
        """Its answer may still come; then it is neither used nor blamed."""
        self._late[request_id] = self._requests[request_id].peer
        self._finish(request_id)
        while len(self._late) > LATE_MAX:
            del self._late[next(iter(self._late))]

    def _rest(self, key: bytes) -> None:
        peer = self._peers.get(key)
        if peer is not None:
            rest_ms = min(self.options.rest_ms_max, self.options.rest_ms << min(peer.failures, 16))
            peer.failures += 1
            peer.rests_until_ms = self.now_ms + rest_ms
