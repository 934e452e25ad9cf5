"""The messages of PBFT as frozen values, their canonical bytes, and what each signature covers.

| message    | from    | to      | says                                          | OSDI |
|------------|---------|---------|-----------------------------------------------|------|
| PrePrepare | primary | backups | in view v, height n is this digest            | §4.2 |
| Prepare    | backup  | all     | I accepted that                               | §4.2 |
| Commit     | replica | all     | a quorum accepted that                        | §4.2 |
| Seal       | replica | all     | I executed height n and got this header       | §4.3 |
| ViewChange | replica | all     | I want view v; this is what I hold            | §4.4 |
| NewView    | primary | backups | view v begins with these                      | §4.4 |

A SealCertificate also travels alone: it answers a validator that still votes below the stable
height. It names no sender, and neither it nor a NewView need come from the peer that made it: the
signatures, not the connection, say who speaks.

Every signature covers a domain tag per kind, the protocol version, the chain id and the digest of
the validator set, so a vote of one chain, set, phase or version is none of another (`Domain`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeAlias

from consensus.errors import InvalidMessage
from consensus.wire import NotCanonical, pack, unpack

PROTOCOL_VERSION = 1
NULL_DIGEST = bytes(32)  # the null request that fills a gap in a new view (OSDI §4.4)
VIEW_MAX = 2**53
HEIGHT_MAX = 2**53
VALIDATORS_MAX = 1000  # senders are below this; no certificate is longer
HEIGHTS_MAX = 64  # heights that one ViewChange or NewView may carry; bounds every window


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
Message: TypeAlias = PrePrepare | Prepare | Commit | Seal | SealCertificate | ViewChange | NewView

KIND: dict[type, int] = {
    PrePrepare: 1,
    Prepare: 2,
    Commit: 3,
    Seal: 4,
    ViewChange: 5,
    NewView: 6,
    SealCertificate: 7,
}
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
        """Return the bytes that `message.signature` covers; a SealCertificate has none."""
        kind = type(message)
        head = _signed_head(TAG[kind], self.version, self.chain_id, self.validators_digest)
        return head + pack(_BODY[kind](message)[:-1])


@lru_cache(maxsize=256)
def _signed_head(tag: bytes, version: int, chain_id: bytes, validators_digest: bytes) -> bytes:
    # An array of four of which the message's body, appended by the caller, is the fourth.
    return tag + b"\x94" + pack(version) + pack(chain_id) + pack(validators_digest)


def encode(message: Message) -> bytes:
    """Return the canonical bytes of `message`, signature included."""
    kind = type(message)
    return pack((KIND[kind], *_BODY[kind](message)))


def decode(data: bytes) -> Message:
    """Return the message that `data` encodes. Raises `InvalidMessage`; checks no signature.

    The caller bounds `len(data)`.
    """
    kind, *fields = _array(_unpack(data))
    parse = _PARSERS.get(kind) if type(kind) is int else None
    if parse is None:
        raise InvalidMessage("unknown kind of message")
    return parse(tuple(fields))


def encode_prepared(certificate: PreparedCertificate) -> bytes:
    """Return the canonical bytes of a prepared certificate, for the write-ahead log."""
    return pack(_prepared_body(certificate))


def decode_prepared(data: bytes) -> PreparedCertificate:
    """Return the certificate that `encode_prepared` wrote. Raises `InvalidMessage`."""
    return _parse_prepared(_unpack(data))


_vote_body = attrgetter("view", "height", "digest", "sender", "signature")
_certificate_body = attrgetter("height", "header", "seals")


def _prepared_body(certificate: PreparedCertificate) -> tuple[object, ...]:
    return _vote_body(certificate.pre_prepare), certificate.prepares


def _view_change_body(message: ViewChange) -> tuple[object, ...]:
    stable = _certificate_body(message.stable)
    prepared = list(map(_prepared_body, message.prepared))
    return message.view, stable, prepared, message.sender, message.signature


def _new_view_body(message: NewView) -> tuple[object, ...]:
    view_changes = list(map(_view_change_body, message.view_changes))
    pre_prepares = list(map(_vote_body, message.pre_prepares))
    return message.view, view_changes, pre_prepares, message.sender, message.signature


_BODY: dict[type, Callable[[Any], tuple[object, ...]]] = {
    PrePrepare: _vote_body,
    Prepare: _vote_body,
    Commit: _vote_body,
    Seal: attrgetter("height", "header", "sender", "signature"),
    SealCertificate: _certificate_body,
    ViewChange: _view_change_body,
    NewView: _new_view_body,
}


def _unpack(data: bytes) -> object:
    try:
        return unpack(data)
    except NotCanonical as error:
        raise InvalidMessage(str(error)) from error


def _array(value: object, count: int | None = None) -> tuple[Any, ...]:
    if type(value) is not tuple or not value or count not in (None, len(value)):
        raise InvalidMessage("a message or part of one has the wrong number of fields")
    return value


def _list(value: object, limit: int) -> tuple[Any, ...]:
    if type(value) is not tuple or len(value) > limit:
        raise InvalidMessage(f"not a list of at most {limit} entries")
    return value


def _number(value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InvalidMessage(f"not a number from {low} to {high}")
    return value


def _bytes(value: object, length: int) -> bytes:
    if type(value) is not bytes or len(value) != length:
        raise InvalidMessage(f"not {length} bytes")
    return value


def _sender(value: object) -> int:
    return _number(value, 0, VALIDATORS_MAX - 1)


def _signature_list(value: object) -> tuple[tuple[int, bytes], ...]:
    entries = (_array(entry, 2) for entry in _list(value, VALIDATORS_MAX))
    return tuple((_sender(sender), _bytes(signature, 64)) for sender, signature in entries)


def _vote_fields(fields: object) -> tuple[int, int, bytes, int, bytes]:
    view, height, digest, sender, signature = _array(fields, 5)
    return (
        _number(view, 0, VIEW_MAX),
        _number(height, 1, HEIGHT_MAX),
        _bytes(digest, 32),
        _sender(sender),
        _bytes(signature, 64),
    )


def _parse_pre_prepare(fields: object) -> PrePrepare:
    return PrePrepare(*_vote_fields(fields))


def _parse_seal(fields: object) -> Seal:
    height, header, sender, signature = _array(fields, 4)
    numbers = _number(height, 1, HEIGHT_MAX), _bytes(header, 32), _sender(sender)
    return Seal(*numbers, _bytes(signature, 64))


def _parse_certificate(fields: object) -> SealCertificate:
    height, header, seals = _array(fields, 3)
    return SealCertificate(
        _number(height, 0, HEIGHT_MAX), _bytes(header, 32), _signature_list(seals)
    )


def _parse_prepared(fields: object) -> PreparedCertificate:
    pre_prepare, prepares = _array(fields, 2)
    return PreparedCertificate(_parse_pre_prepare(pre_prepare), _signature_list(prepares))


def _parse_view_change(fields: object) -> ViewChange:
    view, stable, prepared, sender, signature = _array(fields, 5)
    return ViewChange(
        _number(view, 1, VIEW_MAX),
        _parse_certificate(stable),
        tuple(map(_parse_prepared, _list(prepared, HEIGHTS_MAX))),
        _sender(sender),
        _bytes(signature, 64),
    )


def _parse_new_view(fields: object) -> NewView:
    view, view_changes, pre_prepares, sender, signature = _array(fields, 5)
    return NewView(
        _number(view, 1, VIEW_MAX),
        tuple(map(_parse_view_change, _list(view_changes, VALIDATORS_MAX))),
        tuple(map(_parse_pre_prepare, _list(pre_prepares, HEIGHTS_MAX))),
        _sender(sender),
        _bytes(signature, 64),
    )


_PARSERS: dict[int, Callable[[object], Message]] = {
    1: _parse_pre_prepare,
    2: lambda fields: Prepare(*_vote_fields(fields)),
    3: lambda fields: Commit(*_vote_fields(fields)),
    4: _parse_seal,
    5: _parse_view_change,
    6: _parse_new_view,
    7: _parse_certificate,
}
