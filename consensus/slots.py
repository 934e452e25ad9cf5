"""What a replica knows about one height: votes by sender, and tallies that never scan them.

The first vote of a sender counts (a Commit may be replaced by that sender's Commit of a later
view); a duplicate or a second, different vote never raises a tally.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

from consensus.messages import Commit, Prepare, PreparedCertificate, PrePrepare, Seal

Kept = TypeVar("Kept", Prepare, Commit, Seal)


class Tally(Generic[Kept]):
    """One vote per sender and the number of votes per key."""

    __slots__ = ("counts", "votes")

    def __init__(self) -> None:
        self.votes: dict[int, Kept] = {}
        self.counts: dict[Hashable, int] = {}

    def add(self, key: Hashable, vote: Kept) -> int:
        """Count `vote`, the first of its sender, and return the number of votes for `key`."""
        self.votes[vote.sender] = vote
        count = self.counts.get(key, 0) + 1
        self.counts[key] = count
        return count

    def remove(self, key: Hashable, sender: int) -> None:
        """Take back the vote of `sender`, which was counted for `key`."""
        del self.votes[sender]
        self.counts[key] -= 1
        if not self.counts[key]:
            del self.counts[key]


class Payload:
    """Where the batch of one digest is: asked for, or ready."""

    __slots__ = ("asked_fresh", "ready", "stale_refusals")

    def __init__(self) -> None:
        self.ready = False
        self.asked_fresh: bool | None = None  # as in the latest ObtainPayload; None: not asked
        # Refusals that may still answer an earlier, stricter question about the same digest.
        self.stale_refusals = 0


class Slot:
    """One height above the stable one."""

    __slots__ = (
        "accused",
        "born",
        "carried_over",
        "commit_sent",
        "commits",
        "decided",
        "decided_view",
        "header",
        "height",
        "payloads",
        "pre_prepare",
        "prepared",
        "prepares",
        "rows",
        "seals",
        "voted",
    )

    def __init__(self, height: int, tick: int) -> None:
        self.height = height
        self.born = tick  # the resend period in which the replica last had something new here
        # In the current view:
        self.pre_prepare: PrePrepare | None = None  # accepted
        self.carried_over = False  # it came inside a NewView
        self.voted = False  # our Prepare, or as the primary our PrePrepare, was sent
        self.commit_sent = False
        self.prepares: Tally[Prepare] = Tally()  # by digest
        # Whatever the view:
        self.prepared: PreparedCertificate | None = None  # the one of the highest view
        self.commits: Tally[Commit] = Tally()  # by (view, digest)
        self.payloads: dict[bytes, Payload] = {}
        self.decided: bytes | None = None  # the digest that a quorum committed
        self.decided_view = 0  # the view of that quorum's Commits
        self.header: bytes | None = None  # ours, after execution
        self.seals: Tally[Seal] = Tally()  # by header
        self.accused: set[tuple[type, int, int]] = set()  # (kind, view, sender)
        self.rows: set[bytes] = set()  # keys of write-ahead rows

    def leave_view(self) -> None:
        """Forget what counts only in the view that ends."""
        self.pre_prepare = None
        self.carried_over = self.voted = self.commit_sent = False
        self.prepares = Tally()

    def payload(self, digest: bytes) -> Payload:
        """Return the record of `digest`, made when missing."""
        found = self.payloads.get(digest)
        if found is None:
            found = self.payloads[digest] = Payload()
        return found

    def is_open(self) -> bool:
        """Whether this replica holds anything here that others may still wait for."""
        return self.pre_prepare is not None or self.decided is not None or self.header is not None
