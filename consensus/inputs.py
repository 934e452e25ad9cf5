"""What can happen to a replica. `Replica.step` takes exactly one of these."""

from dataclasses import dataclass
from typing import TypeAlias

from consensus.messages import Message, SealCertificate


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A message whose every signature was checked (`authentication.signatures_of`)."""

    message: Message


@dataclass(frozen=True, slots=True)
class TimerFired:
    name: str  # as in the SetTimer effect; a cancelled or replaced timer must not fire


@dataclass(frozen=True, slots=True)
class Propose:
    """A batch is ready; only meaningful while `Replica.can_propose`."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class PayloadReady:
    """Answer to ObtainPayload: the batch is here, valid, and durable with the next Persist."""

    height: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class PayloadRefused:
    """Answer to ObtainPayload: the batch breaks a rule; a correct primary would not propose it."""

    height: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Executed:
    """Answer to Execute: the block of `height` is durable and its header has this digest."""

    height: int
    header: bytes  # 32 bytes


@dataclass(frozen=True, slots=True)
class Synced:
    """Blocks up to `certificate.height` were fetched, verified, executed, and are durable."""

    certificate: SealCertificate


@dataclass(frozen=True, slots=True)
class WorkPending:
    """Whether transactions wait to be ordered; the view timer runs only then (OSDI §4.4)."""

    pending: bool


@dataclass(frozen=True, slots=True)
class PrimarySuspected:
    """The node saw the primary of `view` leave out a transaction or fall far behind."""

    view: int


Input: TypeAlias = (
    MessageReceived
    | TimerFired
    | Propose
    | PayloadReady
    | PayloadRefused
    | Executed
    | Synced
    | WorkPending
    | PrimarySuspected
)
