"""What stands in a hospital beside the gateway: a scanner that sends, and a PACS that keeps."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, evt
from pynetdicom.events import Event
from pynetdicom.transport import ThreadedAssociationServer

from node.testnet.layout import LOOPBACK

SCANNER, PACS, GATEWAY = "SCANNER", "PACS", "RADLEDGER"  # AE titles
_FIND, _GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
_SUCCESS, _PENDING = 0x0000, 0xFF00
_TIMEOUT_S = 20.0


class NotTaken(Exception):
    """The gateway did not take an image."""


def send(files: Sequence[Path], port: int) -> None:
    """Send files to the gateway at `port` by C-STORE, on one association. Raises `NotTaken`."""
    scanner = AE(ae_title=SCANNER)
    scanner.acse_timeout = scanner.dimse_timeout = _TIMEOUT_S
    for sop_class, syntax in sorted(_kinds(files)):
        scanner.add_requested_context(sop_class, syntax)
    association = scanner.associate(LOOPBACK, port, ae_title=GATEWAY)
    if not association.is_established:
        raise NotTaken("the gateway does not take the association")
    try:
        for number, file in enumerate(files, 1):
            status = association.send_c_store(file).get("Status")
            if status != _SUCCESS:
                raise NotTaken(f"image {number} was answered with status {status}")
    finally:
        association.release()


class Pacs:
    """A PACS in memory, in threads of this process: C-STORE, and C-FIND and C-GET to read back."""

    def __init__(self) -> None:
        self.kept: dict[str, Dataset] = {}  # by SOP Instance UID
        self._server: ThreadedAssociationServer | None = None

    def start(self, port: int, files: Sequence[Path]) -> None:
        """Listen for images of the kinds of `files`. Raises `OSError`."""
        application = AE(ae_title=PACS)
        application.supported_contexts = [
            build_context(sop_class, syntax) for sop_class, syntax in sorted(_kinds(files))
        ]
        for context in application.supported_contexts:
            context.scu_role = context.scp_role = True  # what C-GET gives back comes by C-STORE
        application.add_supported_context(_FIND)
        application.add_supported_context(_GET)
        self._server = application.start_server(
            (LOOPBACK, port),
            block=False,
            evt_handlers=[
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_C_FIND, self._find),
                (evt.EVT_C_GET, self._get),
            ],
        )

    def stop(self) -> None:
        """Listen no more."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()

    def _store(self, event: Event) -> int:
        instance = event.dataset
        instance.file_meta = event.file_meta
        self.kept[str(instance.SOPInstanceUID)] = instance
        return _SUCCESS

    def _find(self, event: Event) -> Iterator[tuple[int, Dataset]]:
        for instance in self._matching(event.identifier):
            row = Dataset()
            row.QueryRetrieveLevel = "IMAGE"
            row.SOPInstanceUID = instance.SOPInstanceUID
            yield _PENDING, row

    def _get(self, event: Event) -> Iterator[int | tuple[int, Dataset]]:
        found = self._matching(event.identifier)
        yield len(found)
        for instance in found:
            yield _PENDING, instance

    def _matching(self, asked: Dataset) -> list[Dataset]:
        wanted = asked.get("SOPInstanceUID")
        return [
            instance
            for uid, instance in list(self.kept.items())
            if wanted in (None, "", uid) and instance.StudyInstanceUID == asked.StudyInstanceUID
        ]


def same_pixels(file: Path, instance: Dataset | None) -> bool:
    """Return whether an instance has the very pixels of a file."""
    if instance is None:
        return False
    sent: bytes = pydicom.dcmread(file).PixelData
    kept: bytes = instance.PixelData
    return sent == kept


def sop_instance_uid(file: Path) -> str:
    """Return a file's SOP Instance UID."""
    return str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID)


def _kinds(files: Sequence[Path]) -> set[tuple[str, str]]:
    """Return the SOP classes and transfer syntaxes of files."""
    metas = [pydicom.dcmread(file, stop_before_pixels=True).file_meta for file in files]
    return {(str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)) for meta in metas}
