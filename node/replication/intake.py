"""Consensus messages on their way from a peer to the replica: bounded, then verified.

What could change nothing is dropped before its signatures are checked, and again after it waited.
Signatures are checked in worker threads when there are more than a few.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from consensus.authentication import signatures_of
from consensus.errors import InvalidMessage
from consensus.inputs import MessageReceived
from consensus.messages import Message, decode
from consensus.replica import Replica
from consensus.validators import ValidatorSchedule
from node.ledger.verifier import Check, SignatureVerifier, verify_all

WAITING_MAX = 8192  # unverified consensus messages, over all peers
INLINE_CHECKS_MAX = 4  # about half a millisecond
HEIGHTS_QUOTED_MAX = 64  # twice the window
SIGNATURE_BYTES = 72  # a signature and its sender's index, encoded
VOTE_BYTES = 192  # a vote with its signature, encoded


class Intake:
    """The queue of unverified messages and the task that works it off; `run` in a task."""

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
        """`feed` takes what is genuine, in the order of its arrival; `backlog` says how much of it
        still waits, so that a slow disk holds the intake back, too."""
        self._replica = replica
        self._schedule = schedule
        self._chain_id = chain_id
        self._verifier = verifier
        self._punish = punish
        self._feed = feed
        self._backlog = backlog
        self._waiting: deque[tuple[bytes, Message]] = deque()
        self._woken = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def frame(self, peer: bytes, payload: bytes) -> None:
        """Take one encoded message. Raises `InvalidMessage`."""
        # Those who are behind may know of smaller sets only than that of the sender.
        quorum = self._schedule.quorum_max
        if len(payload) > message_bytes_max(quorum):
            raise InvalidMessage(f"a message of {len(payload)} bytes for a quorum of {quorum}")
        self.take(peer, decode(payload))

    def take(self, peer: bytes, message: Message) -> None:
        """Take one message, unless there is no room or it could change nothing."""
        has_room = len(self._waiting) + self._backlog() < WAITING_MAX
        if has_room and self._replica.is_relevant(message):
            self._waiting.append((peer, message))
            self._woken.set()

    async def run(self) -> None:
        """Verify until cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            taken = [row for row in self._waiting if self._replica.is_relevant(row[1])]
            self._waiting.clear()
            await self._verify(taken)

    async def _verify(self, taken: list[tuple[bytes, Message]]) -> None:
        checks: list[Check] = []
        spans = []
        for peer, message in taken:
            # Asked now: later the replica may know the validators that we do not ask for here.
            is_certain = self._replica.can_judge(message)
            try:
                wanted = signatures_of(message, self._schedule, self._chain_id)
            except InvalidMessage as error:
                if is_certain:
                    self._punish(peer, 10, str(error))
                continue
            spans.append((peer, message, len(wanted), is_certain))
            checks += [(c.public_key, c.signed, c.signature) for c in wanted]
        # A hop to a worker thread costs as much as one check, so it pays only for several.
        few = len(checks) <= INLINE_CHECKS_MAX
        verdicts = verify_all(checks) if few else await self._verifier.verify(checks)
        start = 0
        for peer, message, count, is_certain in spans:
            genuine = all(verdicts[start : start + count])
            start += count
            if genuine:
                self._feed(MessageReceived(message))
            elif is_certain:
                self._punish(peer, 20, "a consensus message with a bad signature")


def message_bytes_max(quorum: int) -> int:
    """Return the most bytes of an honest message: a NewView with a full window in each ViewChange.

    Decoding is where a liar's megabytes would stop the event loop for seconds.
    """
    certificate = SIGNATURE_BYTES * quorum + VOTE_BYTES
    return quorum * certificate * (HEIGHTS_QUOTED_MAX + 1) + VOTE_BYTES * (HEIGHTS_QUOTED_MAX + 1)
