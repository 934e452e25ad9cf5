"""Consensus messages on their way from a peer to the replica: bounded, then verified.

Each validator has a lane of its own, bounded in messages and in bytes, and the lanes take turns of
a few signature checks each: nobody's flood delays or drops what another one says. A message with
many signatures is verified over several turns, and not beyond the first part with a bad one.
What could change nothing is dropped before its signatures are checked, and again after it waited.
Signatures are checked in worker threads when there are more than a few.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from consensus.authentication import signatures_of
from consensus.errors import InvalidMessage
from consensus.inputs import MessageReceived
from consensus.messages import HEIGHTS_MAX, Message, ViewChange, decode
from consensus.replica import Replica
from consensus.validators import ValidatorSchedule
from node.ledger.verifier import Check, SignatureVerifier, verify_all

LANE_MESSAGES_MAX = 1024  # unverified, of one peer; a full window of votes is about a hundred
LANE_BYTES_MAX = 1024 * 1024  # and the one message that goes beyond
BACKLOG_MAX = 2048  # inputs that wait for the replica; verification waits while there are more
TURN_CHECKS_MAX = 64  # of one peer in a batch
BATCH_CHECKS_MAX = 192  # of all peers; the last turn may go beyond
INLINE_CHECKS_MAX = 4  # about half a millisecond
SIGNATURE_BYTES = 72  # a signature and its sender's index, encoded
VOTE_BYTES = 192  # a vote with its signature, encoded


@dataclass(slots=True)
class _Entry:
    """A message of a peer, and what is left to verify of it."""

    peer: bytes
    message: Message
    size: int
    is_certain: bool = True  # whose signatures it must carry
    checks: list[Check] | None = None  # None until its first turn


@dataclass(slots=True)
class _Lane:
    """What waits of one peer."""

    entries: deque[_Entry] = field(default_factory=deque)
    size: int = 0  # bytes

    @property
    def has_room(self) -> bool:
        return len(self.entries) < LANE_MESSAGES_MAX and self.size < LANE_BYTES_MAX

    def append(self, entry: _Entry) -> None:
        self.entries.append(entry)
        self.size += entry.size

    def put_back(self, entry: _Entry) -> None:
        self.entries.appendleft(entry)
        self.size += entry.size

    def pop(self) -> _Entry:
        entry = self.entries.popleft()
        self.size -= entry.size
        return entry


class Intake:
    """The lanes of unverified messages and the task that works them off; `run` in a task."""

    def __init__(
        self,
        *,
        replica: Replica,
        schedule: ValidatorSchedule,
        chain_id: bytes,
        verifier: SignatureVerifier,
        punish: Callable[[bytes, float, str], None],
        feed: Callable[[MessageReceived], None],
        backlog: Callable[[], int],
    ) -> None:
        """`feed` takes what is genuine, of each peer in the order of its arrival; `backlog` says
        how much of it still waits, so that a slow disk holds verification back: call `wake` when
        there is less."""
        self._replica = replica
        self._schedule = schedule
        self._chain_id = chain_id
        self._verifier = verifier
        self._punish = punish
        self._feed = feed
        self._backlog = backlog
        self._lanes: OrderedDict[bytes, _Lane] = OrderedDict()  # next in turn first, none empty
        self._woken = asyncio.Event()

    def __len__(self) -> int:
        return sum(len(lane.entries) for lane in self._lanes.values())

    def admit(self, peer: bytes) -> bool:
        """Return whether a frame of `peer` is worth decoding; one that has no vote is punished."""
        if not self._votes(peer):
            # Who is behind may not know yet that the other one votes by now.
            if not self._replica.syncing:
                self._punish(peer, 1, "a consensus message of a peer that does not vote")
            return False
        lane = self._lanes.get(peer)
        return lane is None or lane.has_room

    def frame(self, peer: bytes, payload: bytes) -> None:
        """Take one encoded message of a peer that `admit` let in. Raises `InvalidMessage`."""
        # Those who are behind may know of smaller sets only than that of the sender.
        quorum = self._schedule.quorum_max
        if len(payload) > message_bytes_max(quorum):
            raise InvalidMessage(f"a message of {len(payload)} bytes for a quorum of {quorum}")
        self.take(peer, decode(payload), len(payload))

    def take(self, peer: bytes, message: Message, size: int) -> None:
        """Take one message of `size` encoded bytes, unless it could change nothing."""
        if self._replica.is_relevant(message):
            self._lane(peer).append(_Entry(peer, message, size))
            self._woken.set()

    def wake(self) -> None:
        """Look again whether the backlog leaves room for more."""
        if self._lanes:
            self._woken.set()

    async def run(self) -> None:
        """Verify until cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._lanes and self._backlog() < BACKLOG_MAX:
                await self._verify(self._batch())
                await asyncio.sleep(0)  # a batch of few checks does not wait for anything

    def _votes(self, peer: bytes) -> bool:
        # The set that sealed the stable height counts, too: its last votes may be on their way.
        sets = self._schedule.since(self._replica.low)
        return any(each.index_of(peer) is not None for each in sets)

    def _lane(self, peer: bytes) -> _Lane:
        return self._lanes.setdefault(peer, _Lane())

    def _batch(self) -> list[tuple[_Entry, list[Check]]]:
        """Take a turn of each peer, until there are checks enough; who had none is next."""
        batch: list[tuple[_Entry, list[Check]]] = []
        count = 0
        for peer, lane in list(self._lanes.items()):
            if count >= BATCH_CHECKS_MAX:
                break
            for entry, checks in self._turn(lane):
                batch.append((entry, checks))
                count += len(checks)
            if lane.entries:
                self._lanes.move_to_end(peer)
            else:
                del self._lanes[peer]
        return batch

    def _turn(self, lane: _Lane) -> Iterator[tuple[_Entry, list[Check]]]:
        room = TURN_CHECKS_MAX
        while lane.entries and room > 0:
            entry = lane.pop()
            wanted = self._wanted(entry)
            if wanted is not None:
                entry.checks = wanted[room:]
                yield entry, wanted[:room]
            room -= max(1, len(wanted or ()))

    def _wanted(self, entry: _Entry) -> list[Check] | None:
        """Return what is left to verify of a message, or None when it is not worth it."""
        message = entry.message
        if not self._replica.is_relevant(message):
            return None
        if entry.checks is None:
            # Asked now: later the replica may know the validators that we do not ask for here.
            entry.is_certain = self._replica.can_judge(message)
            try:
                signatures = signatures_of(message, self._schedule, self._chain_id)
            except InvalidMessage as error:
                self._blame(entry, 10, str(error))
                return None
            entry.checks = [(c.public_key, c.signed, c.signature) for c in signatures]
        return entry.checks

    async def _verify(self, batch: list[tuple[_Entry, list[Check]]]) -> None:
        checks = [check for _, part in batch for check in part]
        # A hop to a worker thread costs as much as one check, so it pays only for several.
        few = len(checks) <= INLINE_CHECKS_MAX
        verdicts = verify_all(checks) if few else await self._verifier.verify(checks)
        start = 0
        for entry, part in batch:
            genuine = all(verdicts[start : start + len(part)])
            start += len(part)
            if not genuine:
                self._blame(entry, 20, "a consensus message with a bad signature")
            elif entry.checks:
                self._lane(entry.peer).put_back(entry)
            else:
                self._feed(MessageReceived(entry.message))

    def _blame(self, entry: _Entry, points: float, reason: str) -> None:
        if entry.is_certain:
            self._punish(entry.peer, points, reason)
        elif isinstance(entry.message, ViewChange) and not self._replica.syncing:
            # None is dearer to verify. An honest one from there comes while this node is behind, as
            # do votes and certificates, in numbers.
            self._punish(entry.peer, 3, reason)


def message_bytes_max(quorum: int) -> int:
    """Return the most bytes of an honest message: a NewView with a full window in each ViewChange.

    Decoding is where a liar's megabytes would stop the event loop for seconds.
    """
    certificate = SIGNATURE_BYTES * quorum + VOTE_BYTES
    return quorum * certificate * (HEIGHTS_MAX + 1) + VOTE_BYTES * (HEIGHTS_MAX + 1)
