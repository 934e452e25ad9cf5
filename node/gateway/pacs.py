"""The local PACS by DIMSE: C-STORE to it, C-GET and C-FIND from it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import chain
from pathlib import Path
from ssl import SSLContext
from typing import Any, cast

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dsutils import create_file_meta

from node.gateway import sending
from node.gateway.dataset_bytes import skip_meta
from node.gateway.dialing import PDU_BYTES, Dialer, NotReached, Peer
from node.gateway.holdings import HeldInstance
from node.gateway.sending import Kind, NotSent, Outgoing
from node.gateway.ways import NotOffered, OnFetched, OnSent, Read, Unreachable

FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
READ_BACK_BYTES_MAX = 512 << 20  # one instance, which is in memory
_TIMEOUT_SECONDS = 60.0
_CONTEXTS_MAX = sending.CONTEXTS_MAX - 1
_SUCCESS, _PENDING = 0x0000, (0xFF00, 0xFF01)
_BUSY = range(0xA700, 0xA800)


class DimsePacs:
    """A PACS that is a DICOM peer."""

    def __init__(
        self,
        peer: Peer,
        own_title: str,
        tls: SSLContext | None = None,
        dialer: Dialer | None = None,
    ) -> None:
        """`peer` has host and port; `tls` secures the connections, None leaves them in clear."""
        self._peer, self._own_title = peer, own_title
        self._secure = None if tls is None else lambda: tls
        self._dialer = dialer or Dialer()

    def send(self, instances: Sequence[HeldInstance], read: Read, on_sent: OnSent) -> None:
        """See `Way`. Nagle's algorithm is off and PDUs have 128 KiB where the PACS takes them."""
        left = list(instances)
        for plan in sending.plan(_kind(instance) for instance in left):
            classes = {str(context.abstract_syntax) for context in plan}
            with self._associated(plan) as association:
                for number, instance in enumerate(i for i in left if i.sop_class in classes):
                    try:
                        code = self._send(association, instance, read, number % 65_535 + 1)
                    except _NoAnswer as error:
                        # It may be this one that the PACS falls over: let others go first.
                        on_sent(instance, "no_answer")
                        raise Unreachable(str(error)) from error
                    on_sent(instance, code)

    def _send(
        self, association: Association, instance: HeldInstance, read: Read, number: int
    ) -> str:
        outgoing = Outgoing(_kind(instance), instance.sop_uid, instance.size)
        try:
            status = sending.send(association, outgoing, _data_set(read(instance)), number)
        except NotSent as error:
            if not association.is_established:
                raise _NoAnswer(error.sentence) from error
            return f"status_{error.status:04x}"
        if status in _BUSY:
            raise Unreachable("the PACS has no room now")
        return "" if status == _SUCCESS or status in sending.WARNINGS else f"status_{status:04x}"

    def fetch(self, instances: Sequence[HeldInstance], folder: Path, on_fetched: OnFetched) -> None:
        """See `Way`. One C-GET for each instance."""
        if any(instance.size > READ_BACK_BYTES_MAX for instance in instances):
            raise NotOffered("an instance is too large to be read back by C-GET")
        kinds = list(dict.fromkeys(_kind(instance) for instance in instances))
        for at in range(0, len(kinds), _CONTEXTS_MAX):
            some = kinds[at : at + _CONTEXTS_MAX]
            chosen = [instance for instance in instances if _kind(instance) in some]
            self._fetch(chosen, some, folder, on_fetched)

    def _fetch(
        self,
        instances: Sequence[HeldInstance],
        kinds: Sequence[Kind],
        folder: Path,
        on_fetched: OnFetched,
    ) -> None:
        inbox = _Inbox(folder)
        contexts = [build_context(kind.sop_class, kind.syntax) for kind in kinds]
        roles = [build_role(uid, scp_role=True) for uid in {kind.sop_class for kind in kinds}]
        done = 0
        while done < len(instances):
            with self._associated(
                [build_context(GET), *contexts],
                ext_neg=roles,
                evt_handlers=[(evt.EVT_C_STORE, inbox.take)],
            ) as association:
                _must_offer(association, GET)
                for instance in instances[done:]:
                    _, status = _ask(association, GET, _unique_keys(instance))
                    with inbox.taken(instance.sop_uid) as path:
                        if path is None and status != _SUCCESS:
                            # A PACS that can do it at all may not be able to do it now.
                            kind = Unreachable if done else NotOffered
                            raise kind(f"C-GET ends with status_{status:04x}")
                        on_fetched(instance, path)
                    done += 1
                    if not association.is_established:
                        break  # it was idle for too long while that one was looked at

    def lists(self, instances: Sequence[HeldInstance]) -> frozenset[str]:
        """See `Way`. One C-FIND for each series."""
        found: set[str] = set()
        with self._associated([build_context(FIND)]) as association:
            _must_offer(association, FIND)
            for study_uid, series_uid in dict.fromkeys(
                (i.study_uid, i.series_uid) for i in instances
            ):
                asked = Dataset()
                asked.QueryRetrieveLevel = "IMAGE"
                asked.StudyInstanceUID, asked.SeriesInstanceUID = study_uid, series_uid
                asked.SOPInstanceUID = ""
                rows, status = _ask(association, FIND, asked)
                if status != _SUCCESS:
                    raise Unreachable(f"C-FIND ends with status_{status:04x}")
                found.update(str(row.get("SOPInstanceUID", "")) for row in rows)
        return frozenset(found)

    @contextmanager
    def _associated(self, contexts: Sequence[Any], **options: Any) -> Iterator[Association]:
        ae = AE(ae_title=self._own_title)
        ae.acse_timeout = ae.connection_timeout = 20
        ae.dimse_timeout = ae.network_timeout = _TIMEOUT_SECONDS
        ae.maximum_pdu_size = PDU_BYTES
        try:
            association = self._dialer.dial(ae, self._peer, contexts, self._secure, **options)
        except NotReached as error:
            raise Unreachable(f"no association: {error}") from error
        try:
            yield association
        finally:
            if association.is_established:
                association.release()


class _NoAnswer(Exception):
    """The association ended over an instance."""


class _Inbox:
    """Takes what a C-GET brings, as files."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "fetched.dcm"
        self._sop_uid = ""
        self._error: OSError | None = None

    def take(self, event: evt.Event) -> int:
        request: Any = event.request
        data = request.DataSet.getvalue() if request.DataSet is not None else b""
        head = DicomBytesIO()
        meta = create_file_meta(
            sop_class_uid=event.context.abstract_syntax,
            sop_instance_uid=request.AffectedSOPInstanceUID,
            transfer_syntax=event.context.transfer_syntax,
        )
        write_file_meta_info(head, meta, enforce_standard=True)
        try:
            self._path.write_bytes(bytes(128) + b"DICM" + head.getvalue() + data)
        except OSError as error:
            self._error = error  # so that nobody takes it for a failure of the PACS
            return 0xA700
        self._sop_uid = str(request.AffectedSOPInstanceUID)
        return _SUCCESS

    @contextmanager
    def taken(self, sop_uid: str) -> Iterator[Path | None]:
        try:
            if self._error is not None:
                raise self._error
            yield self._path if self._sop_uid == sop_uid else None
        finally:
            self._sop_uid = ""
            self._path.unlink(missing_ok=True)


def _kind(instance: HeldInstance) -> Kind:
    return Kind(instance.sop_class, instance.syntax)


def _data_set(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a file's data set, without the meta information before it."""
    rest = iter(pieces)
    head = BytesIO(next(rest, b""))
    try:
        skip_meta(head)
    except ValueError as error:
        raise OSError("the stored file is not DICOM") from error
    return chain([head.read()], rest)


def _unique_keys(instance: HeldInstance) -> Dataset:
    asked = Dataset()
    asked.QueryRetrieveLevel = "IMAGE"
    asked.StudyInstanceUID, asked.SeriesInstanceUID = instance.study_uid, instance.series_uid
    asked.SOPInstanceUID = instance.sop_uid
    return asked


def _must_offer(association: Association, service: str) -> None:
    if all(context.abstract_syntax != service for context in association.accepted_contexts):
        raise NotOffered("the PACS does not offer it")


def _ask(association: Association, service: str, keys: Dataset) -> tuple[list[Dataset], int]:
    """Return the identifiers of the pending answers, and the status of the last one.

    Raises `Unreachable` without a last one.
    """
    send = association.send_c_get if service == GET else association.send_c_find
    found, status = [], None
    try:
        for answer, identifier in send(keys, cast(UID, service)):
            status = answer.get("Status")
            if status in _PENDING and isinstance(identifier, Dataset):
                found.append(identifier)
    except (RuntimeError, ValueError) as error:  # so pynetdicom says that there is no association
        raise Unreachable("the association ended before it was asked") from error
    if status is None or not association.is_established:
        raise Unreachable("the PACS does not answer")
    return found, int(status)
