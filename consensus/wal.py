"""The write-ahead rows of a replica: what it must still know after a crash.

| key                    | value                       | why                                    |
|------------------------|-----------------------------|----------------------------------------|
| b"a" + height, 8 bytes | encoded PrePrepare          | never vote for two digests in one view |
| b"p" + height, 8 bytes | encoded PreparedCertificate | a later view must carry it over        |
| b"n"                   | encoded NewView             | the view that was entered last         |
| b"v"                   | encoded ViewChange          | the view that was asked for last       |

Heights are big-endian. A height keeps one row of each kind: a row of a later view replaces that of
an earlier one. Rows at or below the stable height mean nothing and are ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from consensus.effects import Persist
from consensus.errors import InvalidMessage, InvariantViolation
from consensus.messages import (
    Message,
    NewView,
    PreparedCertificate,
    PrePrepare,
    ViewChange,
    decode,
    decode_prepared,
    encode,
    encode_prepared,
)

NEW_VIEW_KEY = b"n"
VIEW_CHANGE_KEY = b"v"
_ACCEPTED = b"a"
_PREPARED = b"p"


@dataclass(slots=True)
class Restored:
    """What the rows say."""

    accepted: list[PrePrepare] = field(default_factory=list)  # ascending heights
    prepared: list[PreparedCertificate] = field(default_factory=list)  # ascending heights
    new_view: NewView | None = None
    view_change: ViewChange | None = None


def accepted_row(vote: PrePrepare) -> Persist:
    """Return the row that must be durable before this replica votes for `vote`."""
    return Persist(_ACCEPTED + vote.height.to_bytes(8, "big"), encode(vote))


def prepared_row(certificate: PreparedCertificate) -> Persist:
    """Return the row that must be durable before this replica sends its Commit."""
    height = certificate.pre_prepare.height
    return Persist(_PREPARED + height.to_bytes(8, "big"), encode_prepared(certificate))


def new_view_row(message: NewView) -> Persist:
    """Return the row that must be durable before this replica votes in the view."""
    return Persist(NEW_VIEW_KEY, encode(message))


def view_change_row(message: ViewChange) -> Persist:
    """Return the row that must be durable before this replica sends `message`."""
    return Persist(VIEW_CHANGE_KEY, encode(message))


def height_of(key: bytes) -> int | None:
    """Return the height of an accepted or prepared row, or None for the rows of views."""
    if len(key) == 9 and key[:1] in (_ACCEPTED, _PREPARED):
        return int.from_bytes(key[1:], "big")
    return None


def restore(rows: Mapping[bytes, bytes], low: int) -> Restored:
    """Return what `rows` say about heights above `low`.

    Raises `InvariantViolation` for a row that no replica wrote: guessing could send a vote that
    conflicts with one that was sent before.
    """
    restored = Restored()
    for key in sorted(rows):
        height = height_of(key)
        if height is not None and height <= low:
            continue
        try:
            _restore_row(restored, key, rows[key], height)
        except InvalidMessage as error:
            raise InvariantViolation(f"write-ahead row {key.hex()} is damaged: {error}") from error
    return restored


def _restore_row(restored: Restored, key: bytes, value: bytes, height: int | None) -> None:
    if key[:1] == _PREPARED and height is not None:
        certificate = decode_prepared(value)
        if certificate.pre_prepare.height != height:
            raise InvalidMessage("it names another height")
        restored.prepared.append(certificate)
        return
    message: Message = decode(value)
    match message:
        case PrePrepare() if height == message.height:
            restored.accepted.append(message)
        case NewView() if key == NEW_VIEW_KEY:
            restored.new_view = message
        case ViewChange() if key == VIEW_CHANGE_KEY:
            restored.view_change = message
        case _:
            raise InvalidMessage("its key does not belong to it")
