"""What a replica wants done. Perform them in order.

Every Persist must be durable before any effect that follows it in the same list is performed; many
lists may share one synced write.
"""

from dataclasses import dataclass
from typing import TypeAlias

from consensus.messages import Message, SealCertificate


@dataclass(frozen=True, slots=True)
class Persist:
    """Write one write-ahead row; an equal key is overwritten."""

    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete one write-ahead row; may be lazy, need not be synced."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Send to every other validator; the replica has already counted its own copy."""

    message: Message


@dataclass(frozen=True, slots=True)
class Send:
    to: bytes  # public key: indexes change with the validator set, perhaps in this very list
    message: Message


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Start, or start anew, the timer of this name."""

    name: str
    delay_ms: int


@dataclass(frozen=True, slots=True)
class CancelTimer:
    name: str


@dataclass(frozen=True, slots=True)
class ObtainPayload:
    """Get and check the batch named `digest`; answer PayloadReady or PayloadRefused, or stay silent
    while no peer has it. `fresh` is False for a batch that a new view carries over: its time is not
    compared with the clock, and what no longer validates becomes a failed receipt."""

    height: int
    digest: bytes
    fresh: bool


@dataclass(frozen=True, slots=True)
class Execute:
    """Execute the committed batch; heights come strictly in order. NULL_DIGEST: the null block."""

    height: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Stable:
    """The height is sealed by a quorum; keep the certificate with the block.

    It must be durable no later than any Persist that comes after it: a restart that found votes of
    the next validator set, and not that the last set is over, could not tell whose they are.
    """

    certificate: SealCertificate


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two signed messages that one validator cannot both have sent honestly."""

    first: Message
    second: Message


@dataclass(frozen=True, slots=True)
class NeedSync:
    """A quorum is beyond our window: fetch sealed blocks up to at least `height`."""

    height: int


@dataclass(frozen=True, slots=True)
class ViewEntered:
    """The replica works in `view` now (informative: metrics, re-proposing)."""

    view: int


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop the node; the reason is for an operator."""

    reason: str


Effect: TypeAlias = (
    Persist
    | Forget
    | Broadcast
    | Send
    | SetTimer
    | CancelTimer
    | ObtainPayload
    | Execute
    | Stable
    | Evidence
    | NeedSync
    | ViewEntered
    | Halt
)
