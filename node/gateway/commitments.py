"""Storage commitment (PS3.4 Annex J): a sender asks whether we answer for what it sent.

The request is kept before it is answered, so the report goes out even after a crash. It goes to the
peer's own address where the config names one, and on the asking association, or a later one of that
peer, where it does not. An instance counts as held once it is durable here.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from ssl import SSLContext
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import N_ACTION_RSP

from node.gateway.closing import retry_after
from node.gateway.dialing import Dialer, NotReached, Peer
from node.gateway.index import Promise, SpoolError
from node.gateway.spool import Spool
from node.gateway.tls import client_context

log = logging.getLogger(__name__)

PUSH_MODEL = "1.2.840.10008.1.20.1"
PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
ATTEMPTS_MAX = 200  # some sixteen hours
AGE_MS_MAX = 14 * 24 * 3_600_000  # within which a peer without an address comes for its reports
REFERENCES_MAX = 100_000
_POLL_SECONDS = 2.0
_SUCCESS, _INVALID_ARGUMENT, _RESOURCES, _NO_SUCH_ACTION = 0x0000, 0x0115, 0x0213, 0x0123
_NO_SUCH_INSTANCE = 0x0112
_ALL_HELD, _SOME_FAILED = 1, 2
_UID_CHARACTERS_MAX = 64


class Commitments:
    """Takes requests and reports on them."""

    def __init__(
        self,
        spool: Spool,
        peers: Mapping[str, Peer],
        ae_title: str,
        certificate_file: str | None = None,
        key_file: str | None = None,
        dialer: Dialer | None = None,
    ) -> None:
        self._spool, self._peers, self._ae_title = spool, peers, ae_title
        self._dialer = dialer or Dialer()
        self._files = certificate_file, key_file
        self._waiting: WeakKeyDictionary[Association, list[Promise]] = WeakKeyDictionary()
        self._answered: WeakSet[Association] = WeakSet()
        self._wake, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="commitments", daemon=True)

    def start(self) -> None:
        """Report in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what was not reported is reported after the next start."""
        self._end.set()
        self._wake.set()
        self._thread.join(timeout=_POLL_SECONDS)

    def handlers(self) -> list[Any]:
        """Return what is to be bound to pynetdicom's events."""
        return [
            (evt.EVT_N_ACTION, self._asked),
            (evt.EVT_DIMSE_SENT, self._answering),
            (evt.EVT_PDU_SENT, self._sent),
            (evt.EVT_ESTABLISHED, self._established),
        ]

    def _asked(self, event: evt.Event) -> tuple[int, None]:
        request: Any = event.request
        if event.action_type != 1 or request.RequestedSOPInstanceUID != PUSH_MODEL_INSTANCE:
            return _NO_SUCH_ACTION, None
        try:
            transaction, references = _read(event.action_information)
        except (AttributeError, KeyError, TypeError, ValueError):
            return _INVALID_ARGUMENT, None
        peer = event.assoc.requestor.ae_title
        plain = json.dumps([transaction, references]).encode()
        try:
            promise = self._spool.index.promise(peer, self._spool.seal(plain), _now_ms())
            if promise is None:
                log.warning("storage commitment not taken: too many wait peer=%s", peer)
                return _RESOURCES, None
            self._spool.signal([uid for _, uid in references])
        except SpoolError as error:
            log.error("storage commitment not taken: %s", error)
            return _RESOURCES, None
        if self._address(peer) is None:
            self._waiting.setdefault(event.assoc, []).append(promise)
        else:
            self._wake.set()
        return _SUCCESS, None

    def _answering(self, event: evt.Event) -> None:
        if isinstance(event.message, N_ACTION_RSP) and event.assoc in self._waiting:
            self._answered.add(event.assoc)

    def _sent(self, event: evt.Event) -> None:
        """Report on the asking association once our answer to the request has gone out."""
        if event.assoc in self._answered:
            self._answered.discard(event.assoc)
            self._in_thread(event.assoc, self._waiting.pop(event.assoc, []))

    def _established(self, event: evt.Event) -> None:
        """Report on a later association of a peer that has no address."""
        peer = event.assoc.requestor.ae_title
        contexts = {context.abstract_syntax for context in event.assoc.accepted_contexts}
        if PUSH_MODEL in contexts and self._address(peer) is None:
            due = self._spool.index.promises(peer, _now_ms())
            if due:
                self._in_thread(event.assoc, due)

    def _in_thread(self, association: Association, promises: Sequence[Promise]) -> None:
        arguments = (association, promises)
        threading.Thread(target=self._report_on, args=arguments, daemon=True).start()

    def _report_on(self, association: Association, promises: Sequence[Promise]) -> None:
        for promise in promises:
            self._settle(promise, partial(self._report, association))

    def _work(self) -> None:
        while not self._end.is_set():
            self._wake.wait(_POLL_SECONDS)
            self._wake.clear()
            try:
                self._report_due()
            except (SpoolError, MemoryError) as error:
                log.error("storage commitments cannot be reported: %s", error)

    def _report_due(self) -> None:
        """Report to every peer that has an address; one that cannot be reached delays no other."""
        index = self._spool.index
        for title in index.promised(_now_ms()):
            if (peer := self._address(title)) is not None:
                self._report_to(peer)
        too_old_ms = _now_ms() - AGE_MS_MAX
        if index.promised(too_old_ms):
            count = index.forget_promises(too_old_ms)
            log.error("storage commitments forgotten: nobody came for them count=%d", count)

    def _report_to(self, peer: Peer) -> None:
        """Report what is due to a peer, until a report does not come about."""
        for promise in self._spool.index.promises(peer.ae_title, _now_ms()):
            if not self._settle(promise, partial(self._call, peer)):
                break

    def _call(self, peer: Peer, promise: Promise) -> bool:
        """Open an association to the peer, in the role of the provider, and report there."""
        ae = AE(ae_title=self._ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = 20
        secure = (lambda: self.context(peer)) if self._files[0] else None
        roles = [build_role(PUSH_MODEL, scp_role=True)]
        contexts = [build_context(PUSH_MODEL)]
        try:
            association = self._dialer.dial(ae, peer, contexts, secure, ext_neg=roles)
        except NotReached as error:
            log.warning("peer cannot be called peer=%s code=%s", peer.ae_title, error.code)
            return False
        try:
            return self._report(association, promise)
        finally:
            association.release()

    def _report(self, association: Association, promise: Promise) -> bool:
        sealed = self._spool.index.sealed_promise(promise.number)
        if sealed is None:
            return True  # another association of the peer came first
        transaction, references = json.loads(self._spool.unseal(sealed))
        held = self._spool.holds([uid for _, uid in references])
        report = Dataset()
        report.TransactionUID = transaction
        report.ReferencedSOPSequence = _items(references, held)
        failed = _items(references, [not is_held for is_held in held])
        for item in failed:
            item.FailureReason = _NO_SUCH_INSTANCE
        if failed:
            report.FailedSOPSequence = failed
        kind = _SOME_FAILED if failed else _ALL_HELD
        try:
            status, _ = association.send_n_event_report(
                report, kind, PUSH_MODEL, PUSH_MODEL_INSTANCE
            )
        except (RuntimeError, ValueError, OSError):
            return False  # the association has ended, or has no such context
        return "Status" in status and status.Status == _SUCCESS

    def _settle(self, promise: Promise, report: Callable[[Promise], bool]) -> bool:
        """Report, and forget the promise or let it rest; return whether the report came about."""
        try:
            is_done = report(promise)
        except Exception as error:  # noqa: BLE001 - one promise must not end the thread of all
            log.error("storage commitment not reported error=%s", type(error).__name__)
            is_done = False
        if is_done or promise.attempts >= ATTEMPTS_MAX:
            self._spool.index.promise_kept(promise.number)
            log.info("storage commitment reported=%s peer=%s", is_done, promise.peer)
        else:
            later = _now_ms() + retry_after(promise.attempts)
            self._spool.index.promise_later(promise.number, later)
        return is_done

    def _address(self, title: str) -> Peer | None:
        peer = self._peers.get(title)
        return peer if peer is not None and peer.host is not None else None

    def context(self, peer: Peer) -> SSLContext:
        """Return what a connection that we open to `peer` is secured with."""
        certificate, key = (None if name is None else Path(name) for name in self._files)
        return client_context(peer.trust or "", certificate, key)


def _read(information: Dataset) -> tuple[str, list[tuple[str, str]]]:
    """Return the transaction UID and (SOP class, SOP instance) pairs. Raises `ValueError` etc."""
    items = information.ReferencedSOPSequence
    if not 0 < len(items) <= REFERENCES_MAX:
        raise ValueError("too few or too many references")
    references = [
        (_uid(item.ReferencedSOPClassUID), _uid(item.ReferencedSOPInstanceUID)) for item in items
    ]
    return _uid(information.TransactionUID), references


def _uid(value: object) -> str:
    text = str(value)
    if not 0 < len(text) <= _UID_CHARACTERS_MAX or not set(text) <= set("0123456789."):
        raise ValueError("not a UID")
    return text


def _items(references: Sequence[Sequence[str]], chosen: Sequence[bool]) -> list[Dataset]:
    items = []
    for (sop_class, sop_uid), is_chosen in zip(references, chosen, strict=True):
        if is_chosen:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_uid
            items.append(item)
    return items


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
