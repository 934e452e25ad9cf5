"""C-FIND, C-MOVE and C-GET for what this hospital holds or was granted (PS3.4 C.4).

Runs in the fenced process, on associations that it serves. Data sets go from the parent to the peer
piece by piece; their bytes are those stored wherever the peer takes that transfer syntax.
"""

import logging
from collections.abc import Callable, Mapping
from io import BytesIO
from ssl import SSLContext
from typing import Any, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_FIND, C_GET, C_MOVE
from pynetdicom.dsutils import decode, encode
from pynetdicom.presentation import PresentationContext

from node.gateway import sending
from node.gateway.dialing import Dialer, NotReached, Peer
from node.gateway.link import Borrower, Loan, Refusal, Selected
from node.gateway.query import Asked, InvalidIdentifier, Model, read_identifier, response
from node.gateway.sending import Kind, NotSent, Originator, Outgoing
from node.gateway.web.files import DAMAGED

log = logging.getLogger(__name__)

FIND = {"1.2.840.10008.5.1.4.1.2.1.1": Model.PATIENT_ROOT}
FIND |= {"1.2.840.10008.5.1.4.1.2.2.1": Model.STUDY_ROOT}
MOVE = {"1.2.840.10008.5.1.4.1.2.1.2": Model.PATIENT_ROOT}
MOVE |= {"1.2.840.10008.5.1.4.1.2.2.2": Model.STUDY_ROOT}
GET = {"1.2.840.10008.5.1.4.1.2.1.3": Model.PATIENT_ROOT}
GET |= {"1.2.840.10008.5.1.4.1.2.2.3": Model.STUDY_ROOT}

_SUCCESS, _PENDING, _PENDING_PARTIAL, _CANCEL = 0x0000, 0xFF00, 0xFF01, 0xFE00
_NO_RESOURCES, _NO_MATCHES_COUNT, _SUBOPERATIONS_FAILED = 0xA700, 0xA701, 0xA702
_UNKNOWN_DESTINATION, _NOT_OF_CLASS, _UNABLE, _WARNING = 0xA801, 0xA900, 0xC000, 0xB000
_COMMENT_CHARACTERS, _FAILED_LISTED_MAX = 64, 1_000

Request = C_FIND | C_MOVE | C_GET


class QueryRetrieve:
    """Answers queries and retrievals."""

    def __init__(
        self,
        borrower: Borrower,
        ae: AE,
        peers: Mapping[str, Peer],
        tls: Callable[[Peer], SSLContext] | None = None,
        dialer: Dialer | None = None,
    ) -> None:
        """`tls` gives the context for a connection that we open to a peer; None: in clear."""
        self._borrower, self._ae, self._peers, self._tls = borrower, ae, peers, tls
        self._dialer = dialer or Dialer()

    def contexts(self) -> list[str]:
        """Return the SOP classes to support."""
        return [*FIND, *MOVE, *GET]

    def handlers(self) -> list[Any]:
        """Return what is to be bound to pynetdicom's events."""
        return [(evt.EVT_ESTABLISHED, self._take_over)]

    def _take_over(self, event: evt.Event) -> None:
        """Serve queries and retrievals of this association ourselves.

        pynetdicom's own service decodes and encodes every data set that it sends, and keeps all
        that waits to be sent in memory.
        """
        association = event.assoc
        serve_others: Callable[[Any, int], None] = association._serve_request

        def serve(message: Any, context_id: int) -> None:
            context = association._accepted_cx.get(context_id)
            if context is None or not isinstance(message, Request):
                serve_others(message, context_id)
                return
            association.dimse.cancel_req = {}
            association._is_paused = True
            try:
                self._serve(association, message, context)
            finally:
                association._is_paused = False
                # Nothing came from the peer meanwhile, which is no idleness.
                association.dul._idle_timer.restart()
                association.dimse.cancel_req = {}

        # The instance's own, for this association only.
        vars(association)["_serve_request"] = serve

    def _serve(
        self, association: Association, request: Request, context: PresentationContext
    ) -> None:
        turn = _Turn(association, request, context, self._ae.ae_title)
        tables = {C_FIND: FIND, C_MOVE: MOVE, C_GET: GET}
        model = tables[type(request)].get(str(context.abstract_syntax))
        try:
            if model is None or not request.is_valid_request:
                raise InvalidIdentifier("not the service of this context")
            asked = read_identifier(_identifier(request, context), model)
            if isinstance(request, C_FIND):
                self._find(turn, asked)
            elif isinstance(request, C_MOVE):
                self._move(turn, request, asked)
            else:
                loan = self._select(turn, asked, "")
                _Batch(turn, loan).run(lambda _: association, None)
        except InvalidIdentifier as error:
            turn.answer(_NOT_OF_CLASS, comment=str(error))
        except Refusal as refusal:
            turn.answer(_status(refusal, request), comment=refusal.sentence)

    def _find(self, turn: "_Turn", asked: Asked) -> None:
        pending = _PENDING_PARTIAL if asked.is_partial else _PENDING
        for row in self._borrower.find(turn.calling, asked.level, asked.keys):
            if turn.is_cancelled():
                turn.answer(_CANCEL)
                return
            turn.answer(pending, identifier=response(asked, row, turn.own_title))
        turn.answer(_SUCCESS)

    def _move(self, turn: "_Turn", request: C_MOVE, asked: Asked) -> None:
        title = str(request.MoveDestination or "").strip()
        peer = self._peers.get(title)
        if peer is None or peer.host is None or peer.port is None:
            turn.answer(_UNKNOWN_DESTINATION, comment="no peer of that AE title has an address")
            return
        loan = self._select(turn, asked, title)
        destination = _Destination(self._dial, peer, loan.instances)
        originator = Originator(turn.calling, cast(int, request.MessageID))
        try:
            _Batch(turn, loan).run(destination.association, originator)
        finally:
            destination.close()

    def _dial(self, peer: Peer, contexts: list[PresentationContext]) -> Association:
        secure = self._tls
        tls = None if secure is None else lambda: secure(peer)
        return self._dialer.dial(self._ae, peer, contexts, tls)

    def _select(self, turn: "_Turn", asked: Asked, destination: str) -> Loan:
        return self._borrower.select(turn.calling, destination, asked.level, asked.keys)


class _Turn:
    """One request and the answers to it."""

    def __init__(
        self,
        association: Association,
        request: Request,
        context: PresentationContext,
        own_title: str,
    ) -> None:
        self.association, self.own_title = association, own_title
        self.calling = association.requestor.ae_title
        self.message_id = cast(int, request.MessageID)
        self._request, self._context = request, context

    @property
    def is_open(self) -> bool:
        return bool(self.association.is_established)

    def is_cancelled(self) -> bool:
        return self.message_id in self.association.dimse.cancel_req

    def answer(
        self,
        status: int,
        *,
        identifier: Dataset | None = None,
        comment: str = "",
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Send one response. Every but the pending ones is the last."""
        if not self.is_open:
            return
        answer: Any = type(self._request)()
        answer.MessageID = answer.MessageIDBeingRespondedTo = self.message_id
        answer.AffectedSOPClassUID = self._request.AffectedSOPClassUID
        answer.Status = status
        for name, count in (counts or {}).items():
            setattr(answer, f"NumberOf{name}Suboperations", count)
        if comment:
            answer.ErrorComment = comment[:_COMMENT_CHARACTERS]
        if identifier is not None:
            answer.Identifier = BytesIO(_encoded(identifier, self._context.transfer_syntax[0]))
        self.association.dimse.send_msg(answer, cast(int, self._context.context_id))


class _Batch:
    """The sub-operations of one retrieval, and their counts."""

    def __init__(self, turn: _Turn, loan: Loan) -> None:
        self._turn, self._loan = turn, loan
        self._done = self._warned = 0
        self._failed: list[str] = []

    def run(
        self, channel: Callable[[Selected], Association | None], originator: Originator | None
    ) -> None:
        """Send everything that was selected, and answer. `channel` gives None if there is none."""
        code = "broken_off"
        try:
            code = self._send_all(channel, originator)
        finally:
            self._loan.close(code)

    def _send_all(
        self, channel: Callable[[Selected], Association | None], originator: Originator | None
    ) -> str:
        turn = self._turn
        for number, instance in enumerate(self._loan.instances):
            if not turn.is_open:
                return "broken_off"
            if turn.is_cancelled():
                turn.answer(_CANCEL, identifier=self._failures(), counts=self._counts(number))
                return "cancelled"
            association = channel(instance)
            if association is None:
                if originator is not None and number == 0:
                    turn.answer(_UNKNOWN_DESTINATION, comment="the destination cannot be reached")
                    return "unreachable"
                self._failed.append(instance.sop_uid)
            else:
                self._send(association, instance, originator)
            if turn.is_open:
                turn.answer(_PENDING, counts=self._counts(number + 1))
        return self._finish()

    def _send(
        self, association: Association, instance: Selected, originator: Originator | None
    ) -> None:
        outgoing = Outgoing(
            Kind(instance.sop_class, instance.syntax), instance.sop_uid, instance.size
        )
        number = (self._turn.message_id + instance.number) % 65_535 + 1
        try:
            pieces = self._loan.read(instance)
            status = sending.send(association, outgoing, pieces, number, originator)
        except NotSent as error:
            log.info("instance not sent status=%04x reason=%s", error.status, error.sentence)
            self._failed.append(instance.sop_uid)
            return
        except Refusal as refusal:
            log.warning("instance not given out code=%s", refusal.code)
            self._failed.append(instance.sop_uid)
            return
        if status == _SUCCESS:
            self._done += 1
        elif status in sending.WARNINGS:
            self._warned += 1
        else:
            self._failed.append(instance.sop_uid)

    def _finish(self) -> str:
        count = len(self._loan.instances)
        if len(self._failed) == count and count:
            status, code = _SUBOPERATIONS_FAILED, "failed"
        elif self._failed or self._warned:
            status, code = _WARNING, "partly_failed"
        else:
            status, code = _SUCCESS, ""
        failures = self._failures() if self._failed else None
        self._turn.answer(status, identifier=failures, counts=self._counts(None))
        return code if self._turn.is_open else "broken_off"

    def _counts(self, tried: int | None) -> dict[str, int]:
        """Return the counts; those left belong in answers before the last, and of a cancel."""
        counts = {"Failed": len(self._failed), "Warning": self._warned, "Completed": self._done}
        if tried is not None:
            counts["Remaining"] = len(self._loan.instances) - tried
        return counts

    def _failures(self) -> Dataset:
        identifier = Dataset()
        identifier.FailedSOPInstanceUIDList = self._failed[:_FAILED_LISTED_MAX]
        return identifier


class _Destination:
    """Associations with where a C-MOVE sends to, one after another as the contexts need."""

    def __init__(
        self,
        dial: Callable[[Peer, list[PresentationContext]], Association],
        peer: Peer,
        instances: list[Selected],
    ) -> None:
        self._dial, self._peer = dial, peer
        self._plans = sending.plan(Kind(i.sop_class, i.syntax) for i in instances)
        self._current: Association | None = None
        self._proposed: frozenset[str] = frozenset()

    def association(self, instance: Selected) -> Association | None:
        """Return an association on which the instance's class was proposed, or None."""
        current = self._current
        if current is not None and current.is_established and instance.sop_class in self._proposed:
            return current
        self.close()
        plan = next(p for p in self._plans if instance.sop_class in _classes(p))
        self._proposed = _classes(plan)
        try:
            self._current = self._dial(self._peer, plan)
        except NotReached as error:
            log.warning("peer cannot be called peer=%s code=%s", self._peer.ae_title, error.code)
            self._current = None
        return self._current

    def close(self) -> None:
        if self._current is not None and self._current.is_established:
            self._current.release()
        self._current = None


def _classes(plan: list[PresentationContext]) -> frozenset[str]:
    return frozenset(str(context.abstract_syntax) for context in plan)


def _identifier(request: Request, context: PresentationContext) -> Dataset:
    syntax = cast(UID, context.transfer_syntax[0])
    if request.Identifier is None:
        raise InvalidIdentifier("no identifier")
    try:
        return decode(
            request.Identifier,
            syntax.is_implicit_VR,
            syntax.is_little_endian,
            syntax.is_deflated,
        )
    except (*DAMAGED, OSError):
        raise InvalidIdentifier("the identifier cannot be read") from None


def _encoded(identifier: Dataset, syntax: UID) -> bytes:
    encoded = encode(identifier, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    if encoded is None:  # a value out of a file that cannot be written: give none of it
        return b""
    return encoded


def _status(refusal: Refusal, request: Request) -> int:
    if refusal.code == "invalid":
        return _NOT_OF_CLASS
    if refusal.code == "too_broad":
        return _NO_RESOURCES if isinstance(request, C_FIND) else _NO_MATCHES_COUNT
    return _UNABLE
