"""The messages of PBFT as frozen values, their canonical bytes, and what each signature covers.

| message    | from    | to       | says                                                   | paper      |
|------------|---------|----------|--------------------------------------------------------|------------|
| PrePrepare | primary | backups  | "in view v, height n is this digest"                   | OSDI §4.2  |
| Prepare    | backup  | all      | "I accepted that"                                      | OSDI §4.2  |
| Commit     | replica | all      | "a quorum accepted that"                               | OSDI §4.2  |
| Seal       | replica | all      | "I executed height n and got this header" (CHECKPOINT) | OSDI §4.3  |
| ViewChange | replica | all      | "I want view v; this is what I hold"                   | OSDI §4.4  |
| NewView    | primary | backups  | "view v begins with these"                             | OSDI §4.4  |

Every signature covers a domain tag per kind, the protocol version, the chain id and the digest of
the validator set, so a vote of one chain, set, phase or version is none of another (`Domain`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from consensus.errors import InvalidMessage
from consensus.wire import NotCanonical, pack, unpack

PROTOCOL_VERSION = 1
NULL_DIGEST = bytes(32)  # the null request that fills a gap in a new view (OSDI §4.4)
VIEW_MAX = 2**53
HEIGHT_MAX = 2**53


@dataclass(frozen=True, slots=True)
class PrePrepare:
    view: int
    height: int
    digest: bytes  # 32 bytes; NULL_DIGEST only inside a NewView
    sender: int  # index in the validator set of `height`
    signature: bytes = field(default=b"", repr=False)  # 64 bytes, Ed25519


@dataclass(frozen=True, slots=True)
class Prepare:
    view: int
    height: int
    digest: bytes
    sender: int
    signature: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Commit:
    view: int
    height: int
    digest: bytes
    sender: int
    signature: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Seal:
    """A signature over the executed block's header; names no view, so that it outlives one."""

    height: int
    header: bytes  # 32 bytes, the header's digest
    sender: int
    signature: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class SealCertificate:
    """A quorum of seals over one header, in ascending sender order. Height 0 needs none."""

    height: int
    header: bytes
    seals: tuple[tuple[int, bytes], ...]  # (sender, signature)


@dataclass(frozen=True, slots=True)
class PreparedCertificate:
    """A PrePrepare and quorum-1 matching Prepares, in ascending sender order."""

    pre_prepare: PrePrepare
    prepares: tuple[tuple[int, bytes], ...]  # (sender, signature)


@dataclass(frozen=True, slots=True)
class ViewChange:
    view: int  # the view that the sender wants to enter
    stable: SealCertificate
    prepared: tuple[PreparedCertificate, ...]  # ascending height, all above stable.height
    sender: int
    signature: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class NewView:
    view: int
    view_changes: tuple[ViewChange, ...]  # a quorum, in ascending sender order
    pre_prepares: tuple[PrePrepare, ...]  # every height from the stable one + 1, without a gap
    sender: int
    signature: bytes = field(default=b"", repr=False)


Vote: TypeAlias = PrePrepare | Prepare | Commit
Message: TypeAlias = PrePrepare | Prepare | Commit | Seal | ViewChange | NewView

KIND: dict[type, int] = {PrePrepare: 1, Prepare: 2, Commit: 3, Seal: 4, ViewChange: 5, NewView: 6}
TAG: dict[type, bytes] = {
    PrePrepare: b"radledger/pre-prepare/1",
    Prepare: b"radledger/prepare/1",
    Commit: b"radledger/commit/1",
    Seal: b"radledger/seal/1",
    ViewChange: b"radledger/view-change/1",
    NewView: b"radledger/new-view/1",
}


@dataclass(frozen=True, slots=True)
class Domain:
    """What every signature binds besides the message itself."""

    chain_id: bytes  # 32 bytes
    validators_digest: bytes  # 32 bytes, of the set at the message's height
    version: int = PROTOCOL_VERSION

    def signed_bytes(self, message: Message) -> bytes:
        """Return the bytes that `message.signature` covers."""
        body = _body(message)[:-1]  # all but the signature
        head = (self.version, self.chain_id, self.validators_digest)
        return TAG[type(message)] + pack((*head, body))


def encode(message: Message) -> bytes:
    """Return the canonical bytes of `message`, signature included."""
    return pack((KIND[type(message)], *_body(message)))


def decode(data: bytes) -> Message:
    """Return the message that `data` encodes. Raises `InvalidMessage`; checks no signature.

    The caller bounds `len(data)`.
    """
    try:
        value = unpack(data)
    except NotCanonical as error:
        raise InvalidMessage(str(error)) from error
    if not isinstance(value, tuple) or not value:
        raise InvalidMessage("a message is an array that begins with its kind")
    kind, *rest = value
    parse = _PARSERS.get(kind) if type(kind) is int else None
    if parse is None:
        raise InvalidMessage("unknown kind of message")
    return parse(tuple(rest))


def _body(message: object) -> tuple[object, ...]:
    """Return the fields by position; nested messages become arrays of their own fields."""
    return tuple(_plain(getattr(message, name)) for name in message.__slots__)  # type: ignore[attr-defined]


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return _body(value) if hasattr(value, "__slots__") else value
