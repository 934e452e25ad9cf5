"""What must hold after every step, checked as it happens, by code that shares none with the core.

"Honest" below is every node that runs the unchanged replica with a key of its own: the correct
ones, observers, and wiped ones. A wiped node has forgotten its votes, so it may contradict them;
what it executes must agree nevertheless, as long as it counts among the f.
"""

from collections.abc import Callable
from hashlib import sha256
from typing import TypeAlias

from consensus.authentication import SignatureCheck
from consensus.effects import Evidence
from consensus.messages import (
    NULL_DIGEST,
    Commit,
    Domain,
    Message,
    NewView,
    Prepare,
    PrePrepare,
    Seal,
    SealCertificate,
    ViewChange,
)
from consensus.validators import ValidatorSchedule, ValidatorSet
from tests.simulation.disk import Block
from tests.simulation.keys import Keyring
from tests.simulation.trace import brief

Signed: TypeAlias = PrePrepare | Prepare | Commit | Seal | ViewChange | NewView


class Violation(Exception):
    """A promise was broken; the text says which, where, and by whom."""


def header_after(previous: bytes, height: int, digest: bytes) -> bytes:
    """Return what execution of `digest` at `height` gives: a pure function, as in production."""
    return sha256(previous + height.to_bytes(8, "big") + digest).digest()


def height_of(message: Signed) -> int:
    """Return a height whose validators `message` is of."""
    match message:
        case ViewChange():
            return message.stable.height + 1
        case NewView():
            return max(v.stable.height for v in message.view_changes) + 1
        case _:
            return message.height


def smallest_safe_quorum(n: int) -> int:
    """Return the smallest q of which any two sets among `n` share more than (n-1)//3 members."""
    return next(q for q in range(1, n + 1) if 2 * q - n > (n - 1) // 3)


class Checker:
    """Remembers what honest nodes did, across all their crashes, and compares."""

    def __init__(
        self,
        validators: ValidatorSet,
        chain_id: bytes,
        keys: Keyring,
        genesis: Block,
        plan: Callable[[ValidatorSchedule, int, Block], None],
    ) -> None:
        """`plan` puts into a schedule what a block says of the validators to come."""
        self.truth = ValidatorSchedule(validators)  # by all that was decided
        self._plan = plan
        self.decided: list[Block] = [genesis]
        self.faulty: set[int] = set()  # Byzantine: nothing is demanded of them
        self.forgetful: set[int] = set()  # wiped: their votes may contradict each other
        self._chain_id = chain_id
        self._keys = keys
        self._votes: dict[tuple[int, str, int, int], bytes] = {}
        self._commits: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._committed: dict[int, tuple[bytes, int]] = {}
        self._seals: dict[tuple[int, int], bytes] = {}
        self._left: dict[tuple[int, int], int] = {}  # reign, sender -> highest view it asked for
        self._certified: set[SealCertificate] = set()

    def sent(self, sender: int, message: Message) -> None:
        """A validator's message leaves its node."""
        if sender in self.faulty or sender in self.forgetful:
            return
        if isinstance(message, SealCertificate):
            self.stable(sender, message)
            return
        height = height_of(message)
        claimed = self._key_of(message.sender, self.truth.at(height))
        if isinstance(message, NewView) and claimed != sender:
            return  # passed on to one that missed it
        self._expect(claimed == sender, f"validator {sender} sent another's message")
        match message:
            case PrePrepare(view, height, digest) | Prepare(view, height, digest):
                self._vote(sender, "prepare", view, height, digest)
            case Commit(view, height, digest):
                self._vote(sender, "commit", view, height, digest)
                known, first = self._commits.setdefault((view, height), (digest, sender))
                self._expect(
                    known == digest,
                    f"validators {first} and {sender} prepared different batches at height "
                    f"{height} of view {view}",
                )
            case Seal(header=header):
                known_header = self._seals.setdefault((sender, height), header)
                self._expect(
                    known_header == header, f"validator {sender} sealed two headers at {height}"
                )
            case ViewChange(view=view) | NewView(view=view):
                reign = self.truth.reign_start(height), sender
                self._left[reign] = max(view, self._left.get(reign, 0))
                if isinstance(message, NewView):
                    self._begins_rightly(message)

    def _begins_rightly(self, message: NewView) -> None:
        """A new view carries over what the newest certificates name, and null between (§4.4)."""
        stable = max(v.stable.height for v in message.view_changes)
        newest: dict[int, PrePrepare] = {}
        for certificate in (c for v in message.view_changes for c in v.prepared):
            vote = certificate.pre_prepare
            if vote.height > stable and vote.view >= newest.get(vote.height, vote).view:
                newest[vote.height] = vote
        heights = range(stable + 1, max(newest, default=stable) + 1)
        expected = [(h, newest[h].digest if h in newest else NULL_DIGEST) for h in heights]
        self._expect(
            [(vote.height, vote.digest) for vote in message.pre_prepares] == expected,
            f"validator {message.sender} begins view {message.view} with other batches than its "
            f"view changes prove: {brief(message)}",
        )

    def _vote(self, sender: int, kind: str, view: int, height: int, digest: bytes) -> None:
        key = (sender, kind, view, height)
        known = self._votes.get(key)
        if known is None:
            self._votes[key] = digest
            left = self._left.get((self.truth.reign_start(height), sender), 0)
            self._expect(
                view >= left,
                f"validator {sender} made a {kind} vote for height {height} in view {view} after "
                f"it had asked for view {left}",
            )
        else:
            self._expect(
                known == digest,
                f"validator {sender} made two {kind} votes for height {height} in view {view}: "
                f"{known.hex()[:8]} and {digest.hex()[:8]}",
            )

    def committed(self, place: int, height: int, digest: bytes, head: int, has: bool) -> None:
        """An honest node was told to execute."""
        self._expect(
            height <= head + 1, f"place {place} executes height {height} right after {head}"
        )
        self._expect(
            has or digest == NULL_DIGEST,
            f"place {place} executes height {height} without its batch {digest.hex()[:8]}",
        )
        known, first = self._committed.setdefault(height, (digest, place))
        self._expect(
            known == digest,
            f"places {first} and {place} committed different batches at height {height}: "
            f"{known.hex()[:8]} and {digest.hex()[:8]}",
        )

    def durable(self, place: int, height: int, block: Block) -> None:
        """An honest node's block is durable: from now on, clients may rely on it."""
        if height == len(self.decided):
            self.decided.append(block)
            self._plan(self.truth, height, block)
        self._expect(height < len(self.decided), f"place {place} left a gap before {height}")
        known = self.decided[height]
        self._expect(
            known.digest == block.digest and known.header == block.header,
            f"place {place} has another block at height {height}: "
            f"{block.digest.hex()[:8]}, not {known.digest.hex()[:8]}",
        )

    def stable(self, place: int, certificate: SealCertificate) -> None:
        """An honest node holds `certificate` to be proof of a height."""
        if certificate in self._certified:
            return
        self._certified.add(certificate)
        height, header, seals = certificate.height, certificate.header, certificate.seals
        senders = [sender for sender, _ in seals]
        quorum = smallest_safe_quorum(self.truth.at(height).n)
        self._expect(
            senders == sorted(set(senders)) and len(senders) >= quorum * (height > 0),
            f"place {place} took {senders} for a quorum of {quorum} at height {height}",
        )
        for sender, signature in seals:
            self._expect(
                self._is_genuine(Seal(height, header, sender, signature)),
                f"place {place} took a forged seal of validator {sender} at height {height}",
            )
        if height < len(self.decided):
            self._expect(
                self.decided[height].header == header,
                f"place {place} holds a certificate for another block at height {height}",
            )

    def accused(self, place: int, evidence: Evidence) -> None:
        """An honest node says that a validator contradicted itself."""
        first, second = evidence.first, evidence.second
        self._expect(
            first != second and first.sender == second.sender,
            f"place {place} accuses with {brief(first)} and {brief(second)}: no proof",
        )
        for message in (first, second):
            self._expect(
                self._is_genuine(message), f"place {place} accuses with a forged {brief(message)}"
            )
        accused = self._key_of(first.sender, self.truth.at(height_of(first)))
        self._expect(
            accused in self.faulty or accused in self.forgetful,
            f"place {place} frames validator {first.sender} with {brief(first)} and "
            f"{brief(second)}",
        )

    def broken(self, place: int, sentence: str, cause: Exception | None = None) -> None:
        """An honest node stopped, or the network did not do what was demanded of it."""
        raise Violation(f"place {place}: {sentence}") from cause

    def bounded(self, place: int, size: int, limit: int) -> None:
        """An honest node's memory stays within what its options allow."""
        self._expect(
            size <= limit, f"place {place} holds {size} values in memory; {limit} are allowed"
        )

    def _is_genuine(self, message: Signed) -> bool:
        validators = self.truth.at(height_of(message))
        if not 0 <= message.sender < validators.n:
            return False
        signed = Domain(self._chain_id, validators.digest).signed_bytes(message)
        public_key = validators.validators[message.sender].public_key
        return self._keys.verify([SignatureCheck(public_key, signed, message.signature)])

    def _key_of(self, sender: int, validators: ValidatorSet) -> int | None:
        if not 0 <= sender < validators.n:
            return None
        return self._keys.public.index(validators.validators[sender].public_key)

    def _expect(self, condition: bool, sentence: str) -> None:
        if not condition:
            raise Violation(sentence)
