"""A PACS for tests: pynetdicom with C-STORE, C-FIND and C-GET over a dictionary."""

import hashlib

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt

from node.gateway.dialing import Peer

TITLE = "PACS"
FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"


class Pacs:
    """Keeps what it is sent; restarts on its port; misbehaves as told."""

    def __init__(self, syntaxes, *, gives_back=True, refuses=lambda uid: 0, tls=None, title=TITLE):
        self.tls, self.title = tls, title
        self.kept, self.received, self.pdu_bytes = {}, [], 0
        self.syntaxes, self.gives_back, self.refuses = syntaxes, gives_back, refuses
        self.stop_after = None
        self.port, self._server = 0, None

    @property
    def peer(self):
        return Peer(self.title, "127.0.0.1", self.port)

    def start(self):
        ae = AE(ae_title=self.title)
        ae.require_called_aet = True
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(
                context.abstract_syntax, self.syntaxes, scu_role=True, scp_role=True
            )
        ae.add_supported_context(FIND)
        if self.gives_back:
            ae.add_supported_context(GET)
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_C_GET, self._get),
        ]
        self._server = ae.start_server(
            ("127.0.0.1", self.port), False, evt_handlers=handlers, ssl_context=self.tls
        )
        self.port = self._server.server_address[1]

    def stop(self):
        self._server.shutdown()
        self._server = None

    def _store(self, event):
        uid = str(event.request.AffectedSOPInstanceUID)
        if self.stop_after is not None and len(self.received) >= self.stop_after:
            event.assoc.abort()
            return 0x0110
        self.received.append(uid)
        status = self.refuses(uid)
        if status == 0:
            ds = event.dataset
            ds.file_meta = event.file_meta
            self.kept.setdefault(uid, (ds, event.request.DataSet.getvalue()))
        return status

    def _matching(self, asked):
        for uid, (ds, _) in self.kept.items():
            wanted = asked.get("SOPInstanceUID") or uid
            if wanted == uid and ds.StudyInstanceUID == asked.StudyInstanceUID:
                yield ds

    def _find(self, event):
        for ds in list(self._matching(event.identifier)):
            row = Dataset()
            row.QueryRetrieveLevel = "IMAGE"
            row.SOPInstanceUID = ds.SOPInstanceUID
            yield 0xFF00, row

    def _get(self, event):
        found = list(self._matching(event.identifier))
        yield len(found)
        for ds in found:
            yield 0xFF00, ds


def changed(ds, **elements):
    """Return a copy of a data set with other values."""
    other = pydicom.dcmread(ds) if not isinstance(ds, Dataset) else ds.copy()
    for name, value in elements.items():
        setattr(other, name, value)
    return other


class Scrambling:
    """Seals the rows of deliveries so that no UID is to be found in the file, and no more."""

    def seal(self, plain):
        return bytes(byte ^ 0x5A for byte in plain)

    unseal = seal

    def lookup(self, kind, *parts):
        return hashlib.sha256(repr((kind, *parts)).encode()).digest()
