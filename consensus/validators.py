"""The validator set and the only place where quorum arithmetic lives.

f = (n-1)//3 faults are tolerated and a quorum is ceil((n+f+1)/2) members, so that any two quorums
share at least f+1 members for every n. The familiar 2f+1 is that number only when n = 3f+1; at
n = 8 it is unsafe.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from consensus.wire import pack


def faults_tolerated(n: int) -> int:
    """Return f, the number of arbitrarily faulty members that `n` validators withstand."""
    return (n - 1) // 3


def quorum_size(n: int) -> int:
    """Return the number of members whose matching votes decide."""
    return (n + faults_tolerated(n)) // 2 + 1


@dataclass(frozen=True, slots=True)
class Validator:
    """One voting institution."""

    institution: str
    public_key: bytes  # 32 bytes, Ed25519: signs votes and seals, and is pinned in TLS


@dataclass(frozen=True)
class ValidatorSet:
    """An ordered membership; a validator's index is its position."""

    validators: tuple[Validator, ...]
    n: int = field(init=False)
    f: int = field(init=False)
    quorum: int = field(init=False)
    digest: bytes = field(init=False)  # 32 bytes, SHA-256 over the canonical encoding
    _index: dict[bytes, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index = {v.public_key: i for i, v in enumerate(self.validators)}
        names = {v.institution for v in self.validators}
        if not self.validators or len(index) != len(self.validators) or len(names) != len(index):
            raise ValueError("a validator set needs members with distinct keys and institutions")
        if any(len(v.public_key) != 32 for v in self.validators):
            raise ValueError("a validator's public key has 32 bytes")
        rows = tuple((v.institution, v.public_key) for v in self.validators)
        values = {
            "n": len(self.validators),
            "f": faults_tolerated(len(self.validators)),
            "quorum": quorum_size(len(self.validators)),
            "digest": hashlib.sha256(b"radledger/validators/1" + pack(rows)).digest(),
            "_index": index,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def index_of(self, public_key: bytes) -> int | None:
        """Return the position of `public_key`, or None when it does not vote."""
        return self._index.get(public_key)

    def primary(self, view: int) -> int:
        """Return the index of the primary of `view` (PBFT §4.1: p = v mod |R|)."""
        return view % self.n


class ValidatorSchedule:
    """Which set votes at which height. Changes are known before the window reaches them.

    One thread may plan while others ask: what a planned change does not touch reads alike.
    """

    def __init__(self, genesis: ValidatorSet) -> None:
        self._heights = [0]
        self._sets = [genesis]
        self.quorum_max = genesis.quorum  # of all sets, planned ones too

    def at(self, height: int) -> ValidatorSet:
        """Return the set that orders and seals `height`."""
        return self._sets[bisect_right(self._heights, height) - 1]

    def reign_start(self, height: int) -> int:
        """Return the first height of the reign (of one set) in which `height` lies."""
        return self._heights[bisect_right(self._heights, height) - 1]

    def next_change_after(self, height: int) -> int | None:
        """Return the first height above `height` at which another set begins, if one is planned."""
        position = bisect_right(self._heights, height)
        return self._heights[position] if position < len(self._heights) else None

    def since(self, height: int) -> Sequence[ValidatorSet]:
        """Return the set that orders `height` and all that take over from it, in order."""
        return tuple(self._sets[bisect_right(self._heights, height) - 1 :])

    def plan(self, height: int, validators: ValidatorSet) -> None:
        """Let `validators` take over at `height`, which must be above every planned change."""
        if height <= self._heights[-1]:
            raise ValueError(f"height {height} is not above the last planned change")
        self._sets.append(validators)  # first: whoever finds the height finds its set
        self._heights.append(height)
        self.quorum_max = max(self.quorum_max, validators.quorum)

    def sets(self) -> Sequence[ValidatorSet]:
        """Return all sets in the order in which they take over."""
        return tuple(self._sets)
