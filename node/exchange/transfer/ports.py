"""What the transfer needs of others: the store, the ledger, whoever keeps the audit records."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeAlias


class Chunk(NamedTuple):
    """One chunk of ciphertext."""

    digest: bytes  # 32 bytes, SHA-256 of the ciphertext
    size: int  # bytes of ciphertext


@dataclass(frozen=True, slots=True)
class SealedStudy:
    """One version of a study as it is stored: nothing in it can be read without the study key."""

    version: int
    index: bytes  # ciphertext of the store's index
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Custody:
    """The ground on which a custodian gets back chunks of its own study that it lost."""

    study_id: bytes  # 16 bytes


# On what an answer rests: the id of a request that was granted, or custody.
Ground: TypeAlias = bytes | Custody


@dataclass(frozen=True, slots=True)
class Permit:
    """What the ledger says, as of its newest height, of a ground that permits access."""

    request_id: bytes | None  # 16 bytes; None for custody, by which no key is given out
    study_id: bytes  # 16 bytes
    institution: str  # that may fetch
    wrapped_digest: bytes | None  # 32 bytes, of the key as delivered; None: not delivered yet


class ChunkSource(Protocol):
    """Where ciphertext comes from. Called in threads; each call raises `LookupError` for what is
    not held here (any more)."""

    def sealed_study(self, study_id: bytes, version: int) -> SealedStudy:
        """Return what a receiver needs to know of a version."""
        ...

    def holds(self, study_id: bytes, digest: bytes) -> bool:
        """Return whether this is a chunk of any version of that study."""
        ...

    def ciphertext(self, digest: bytes) -> bytes:
        """Return a chunk."""
        ...


class ChunkSink(Protocol):
    """Where ciphertext goes. Called in threads, several at once. What else these calls raise (no
    room, no study of that id) ends the transfer and reaches the caller of `fetch`."""

    def missing(self, study_id: bytes, version: int) -> Collection[bytes]:
        """Return the digests of the version's chunks that are not held, whole and durable."""
        ...

    def put_ciphertext(self, digest: bytes, data: memoryview, found: bytes) -> None:
        """Keep a chunk, durable on return; twice is no error. `data` is lent for the call only.

        `found` is SHA-256 of `data`, computed as it came. It is here that chunks are verified:
        raises `WrongDigest` if `digest` is another.
        """
        ...


class Permits(Protocol):
    """The ledger's answer, asked anew for every request of a peer and while chunks flow."""

    async def permit(self, ground: Ground) -> Permit:
        """For custody, the permit is the custodian's, whoever asks; the study is not erased.

        Raises `NotPermitted` (code `request_unknown`, too) or `LedgerUnavailable`.
        """
        ...


class Happening(StrEnum):
    """Kinds of `TransferEvent`."""

    OFFERING = "offering"  # the wrapped key and the index are about to go out
    OFFERED = "offered"  # the wrapped key and the index went out
    SENDING = "sending"  # the first chunk under a request is about to go out
    SENT = "sent"  # chunks went out, so many
    REFUSED = "refused"  # a request of a peer, with the code
    STOPPED = "stopped"  # a running transfer, with the code
    NOT_TAKEN = "not_taken"  # what we fetched was refused, by the ledger or by us, with the code


@dataclass(frozen=True, slots=True)
class TransferEvent:
    """Something to be audited; carries nothing that identifies a patient."""

    kind: Happening
    institution: str | None  # None: of a key that nobody knows
    request_id: bytes | None
    code: str = ""
    chunks: int = 0
    bytes: int = 0
    custody: Custody | None = None  # when that is the ground


def event_of(
    kind: Happening,
    institution: str | None,
    ground: Ground | None,
    code: str = "",
    chunks: int = 0,
    size: int = 0,
) -> TransferEvent:
    """Return the event of what happened on a ground."""
    if isinstance(ground, Custody):
        return TransferEvent(kind, institution, None, code, chunks, size, ground)
    return TransferEvent(kind, institution, ground, code, chunks, size)


# Awaited before a key or ciphertext goes out; False: it was not recorded, and must not.
Admit: TypeAlias = Callable[[TransferEvent], Awaitable[bool]]
Report: TypeAlias = Callable[[TransferEvent], None]
InstitutionOf: TypeAlias = Callable[[bytes], str | None]
Progress: TypeAlias = Callable[[int, int], None]  # bytes that are here, bytes in all
