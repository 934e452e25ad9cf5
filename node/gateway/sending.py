"""C-STORE as a service user: data sets go out in pieces, byte for byte as they are stored.

pynetdicom sends what it is given as a data set of its own, or as a file; here pieces from anywhere
go out as they come, and no more of them wait in memory than a few PDUs.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import cast

from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext

from node.gateway.dataset_bytes import PLAIN, RECODED_BYTES_MAX, CannotRecode, recoded
from node.gateway.dialing import PDU_BYTES
from node.imaging.syntax import syntax_of

CONTEXTS_MAX = 128  # of one association (PS3.8 §9.3.2.2)
_QUEUE_MAX = 8  # PDUs that wait to be sent
_PAUSE_SECONDS = 0.0005
_PDV_BYTES = 6
# Of a receiver, or on the way to it: 0110H, processing failure, when it gave no answer.
NO_ANSWER = 0x0110
SOP_CLASS_NOT_SUPPORTED = 0x0122
WARNINGS = frozenset({0xB000, 0xB006, 0xB007})


class NotSent(Exception):
    """The receiver cannot be sent this instance; `status` says why as C-STORE statuses do."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass(frozen=True, slots=True)
class Kind:
    """What has to be negotiated for an instance."""

    sop_class: str
    syntax: str


@dataclass(frozen=True, slots=True)
class Originator:
    """Who asked for the sending by C-MOVE, and in which of its messages."""

    ae_title: str
    message_id: int


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One instance to send."""

    kind: Kind
    sop_uid: str = field(repr=False)
    size: int  # bytes of the file


def plan(kinds: Iterable[Kind]) -> list[list[PresentationContext]]:
    """Return the contexts to propose, for one association after another.

    Each kind has a context of its own with its very transfer syntax. A class has one with the
    native syntaxes too, for receivers that take nothing else.
    """
    by_class: dict[str, list[str]] = {}
    for kind in dict.fromkeys(kinds):
        by_class.setdefault(kind.sop_class, []).append(kind.syntax)
    plans: list[list[PresentationContext]] = [[]]
    for sop_class, syntaxes in by_class.items():
        contexts = [build_context(sop_class, syntax) for syntax in syntaxes]
        contexts.append(build_context(sop_class, list(PLAIN)))
        if len(plans[-1]) + len(contexts) > CONTEXTS_MAX:
            plans.append([])
        plans[-1] += contexts[:CONTEXTS_MAX]
    return plans


def send(
    association: Association,
    instance: Outgoing,
    pieces: Iterable[bytes],
    message_id: int,
    originator: Originator | None = None,
) -> int:
    """Send one instance and return the receiver's status (PS3.4 B.2.3).

    `pieces` make up the data set; they are taken as they can be sent. What the first one raises
    does no harm; later the association ends with it, since a message half sent cannot be taken
    back. Raises `NotSent`.
    """
    context = _context(association, instance.kind)
    sent_as = syntax_of(str(context.transfer_syntax[0]))
    if str(context.transfer_syntax[0]) != instance.kind.syntax:
        pieces = _recoded(instance, pieces, str(context.transfer_syntax[0]))
    pieces = _begun(pieces)
    number = cast(int, context.context_id)
    message = _request(instance, message_id, originator)
    with _Paused(association):
        if not association.is_established:
            raise NotSent(NO_ANSWER, "the association has ended")
        try:
            for command in message.encode_msg(number, _pdu_bytes(association)):
                _put(association, command)
            length = _pdu_bytes(association) - _PDV_BYTES
            for flag, fragment in _fragments(
                pieces, length, sent_as is not None and sent_as.deflated
            ):
                data = P_DATA()
                data.presentation_data_value_list.append((number, flag + fragment))
                _put(association, data)
        except BaseException:
            association.abort()
            raise
        _, answer = association.dimse.get_msg(block=True)
    if answer is None:
        association.abort()
        raise NotSent(NO_ANSWER, "the receiver does not answer")
    status = getattr(answer, "Status", None)
    if not isinstance(answer, C_STORE) or status is None:
        association.abort()
        raise NotSent(NO_ANSWER, "the receiver's answer is no answer to C-STORE")
    return int(status)


class _Paused:
    """Keeps pynetdicom's own reading of messages still while we wait for an answer.

    On an association that we serve, it is still already.
    """

    def __init__(self, association: Association) -> None:
        self._association = association

    def __enter__(self) -> None:
        if self._association.is_requestor:
            self._association._reactor_checkpoint.clear()
            while not self._association._is_paused and self._association.is_alive():
                time.sleep(_PAUSE_SECONDS)

    def __exit__(self, *_: object) -> None:
        if self._association.is_requestor:
            self._association._reactor_checkpoint.set()


def _context(association: Association, kind: Kind) -> PresentationContext:
    """Return the accepted context for `kind`, its very transfer syntax before any other."""
    accepted = [
        context
        for context in association.accepted_contexts
        if context.abstract_syntax == kind.sop_class and _is_sender(association, context)
    ]
    for wanted in (kind.syntax, *PLAIN):
        for context in accepted:
            if str(context.transfer_syntax[0]) == wanted:
                return context
    raise NotSent(SOP_CLASS_NOT_SUPPORTED, "the receiver takes neither this class nor this syntax")


def _is_sender(association: Association, context: PresentationContext) -> bool:
    """Whether we may send in this context: with C-GET only if the asker proposed to receive."""
    if association.is_requestor:
        return bool(context.as_scu)
    roles = association.requestor.role_selection
    role = roles.get(cast(UID, context.abstract_syntax))
    return bool(context.as_scu) and role is not None and bool(role.scp_role)


def _request(instance: Outgoing, message_id: int, originator: Originator | None) -> C_STORE_RQ:
    request = C_STORE()
    request.MessageID = message_id
    request.Priority = 2  # low, as pynetdicom's and others' default
    request.AffectedSOPClassUID = instance.kind.sop_class
    request.AffectedSOPInstanceUID = instance.sop_uid
    if originator is not None:
        request.MoveOriginatorApplicationEntityTitle = originator.ae_title
        request.MoveOriginatorMessageID = originator.message_id
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    message.command_set.CommandDataSetType = 0x0001  # a data set follows
    return message


def _recoded(instance: Outgoing, pieces: Iterable[bytes], wanted: str) -> list[bytes]:
    kind = instance.kind
    known = syntax_of(kind.syntax)
    if known is None or instance.size > RECODED_BYTES_MAX:
        raise NotSent(0xA900, "too large to be written anew in the receiver's transfer syntax")
    try:
        return [recoded(b"".join(pieces), kind.syntax, wanted)]
    except CannotRecode as error:
        raise NotSent(0xA900, f"the receiver takes another transfer syntax only: {error}") from None


def _pdu_bytes(association: Association) -> int:
    """Return the length of a PDU's content that we send: even, and what the peer allows."""
    allowed = association.dimse.maximum_pdu_size or PDU_BYTES
    return min(allowed, PDU_BYTES) & ~1


def _begun(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Return `pieces` with the first of them had."""
    rest = iter(pieces)
    return chain([next(rest, b"")], rest)


def _fragments(
    pieces: Iterable[bytes], length: int, is_deflated: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Yield the data set cut to `length`, with each fragment's flags (PS3.8 E.2).

    Fragments have an even length; a deflated data set is padded to one (PS3.5 A.5).
    """
    waiting = b""
    for piece in pieces:
        waiting += piece
        at = 0
        while len(waiting) - at > length:  # one is kept back: it may be the last
            yield b"\x00", waiting[at : at + length]
            at += length
        waiting = waiting[at:]
    padding = b"\0" if is_deflated and len(waiting) % 2 else b""
    yield b"\x02", waiting + padding


def _put(association: Association, data: P_DATA) -> None:
    """Hand a PDU over, once few enough wait. Raises `NotSent` when the association ends."""
    queue = association.dul.to_provider_queue
    while queue.qsize() >= _QUEUE_MAX:
        if not association.is_established or not association.dul.is_alive():
            raise NotSent(NO_ANSWER, "the association has ended")
        time.sleep(_PAUSE_SECONDS)
    association.dul.send_pdu(data)
