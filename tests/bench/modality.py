"""python -m tests.bench.modality PORT [SLICES_PER_S]: sends studies, as cheaply as can be.

It stands for a scanner, which is in no hospital's node, so what it costs here should be little:
every slice is encoded once, and from study to study only its UIDs are written anew. Commands come
on standard input: "on" (studies of 60 slices, one after another), "off" (after the slice that is
under way). Each answer is a line: how many slices were accepted since the last one.
"""

import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_ASSOCIATE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)

from node.gateway.priority import give_way
from tests.gateway import dimse
from tests.imaging import dicom

CT = Path(__file__).parents[3] / "shared" / "data" / "ct-head"
SMALL = 60
_DIGITS = 20  # of a UID, that change
_STUDY, _SERIES, _SLICE = (f"1.2.826.0.1.3680043.10.{n}.1{'0' * _DIGITS}" for n in (1, 2, 3))
_PDU_BYTES = 2**17 - 6
_ASSOCIATED, _DATA, _RELEASE = 2, 4, bytes((5, 0, 0, 0, 0, 4, 0, 0, 0, 0))
_SUCCESS = struct.pack("<HHIH", 0x0000, 0x0900, 2, 0x0000)  # the element Status


def slices() -> list[Path]:
    """Return the files of the real head CT; where it is not, one that pydicom ships."""
    return sorted(CT.glob("*.dcm")) or dicom.readable()[:1]


class _Template:
    """One slice as the PDUs of a C-STORE request, with the places of its UIDs."""

    def __init__(self, path: Path) -> None:
        data_set = pydicom.dcmread(path)
        self.sop_class = data_set.SOPClassUID
        self.syntax = data_set.file_meta.TransferSyntaxUID
        data_set.StudyInstanceUID, data_set.SeriesInstanceUID = _STUDY, _SERIES
        data_set.SOPInstanceUID = _SLICE
        request = C_STORE()
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = self.sop_class, _SLICE
        encoded = encode(data_set, self.syntax.is_implicit_VR, self.syntax.is_little_endian, False)
        request.DataSet = BytesIO(encoded)
        message = C_STORE_RQ()
        message.primitive_to_message(request)
        pdus = []
        for primitive in message.encode_msg(1, _PDU_BYTES):
            pdu = P_DATA_TF()
            pdu.from_primitive(primitive)
            pdus.append(pdu.encode())
        self.data = bytearray(b"".join(pdus))
        self.places = {uid: _find_all(self.data, uid.encode()) for uid in (_STUDY, _SERIES, _SLICE)}

    def with_uids(self, study: int, instance: int) -> bytearray:
        """Return the request for another instance; until the next is asked for."""
        for uid, unique in ((_STUDY, study), (_SERIES, study), (_SLICE, instance)):
            new = f"{uid[:-_DIGITS]}{unique:0{_DIGITS}}".encode()
            for place in self.places[uid]:
                self.data[place : place + len(new)] = new
        return self.data


def _find_all(data: bytearray, wanted: bytes) -> list[int]:
    places, at = [], data.find(wanted)
    while at >= 0:
        places.append(at)
        at = data.find(wanted, at + 1)
    return places


class Modality:
    """A scanner with one association for each study."""

    def __init__(self, port: int, slices_per_s: float | None = None) -> None:
        self._templates = [_Template(path) for path in slices()]
        self._port = port
        self._between_s = 1 / slices_per_s if slices_per_s else 0.0
        self._due_s = 0.0

    def send(self, count: int, is_wanted: Callable[[], bool]) -> int:
        """Send a study, while it is wanted; return how many slices were accepted."""
        unique, first = time.time_ns(), self._templates[0]
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(_association(first.sop_class, first.syntax))
            _require(_answer(connection)[0] == _ASSOCIATED, "no association")
            sent = 0
            while sent < count and is_wanted():
                template = self._templates[sent % len(self._templates)]
                connection.sendall(template.with_uids(unique, unique + sent))
                kind, body = _answer(connection)
                _require(kind == _DATA and _SUCCESS in body, "a slice was not accepted")
                sent += 1
                self._wait()
            connection.sendall(_RELEASE)
            _answer(connection)
        return sent

    def _wait(self) -> None:
        now_s = time.monotonic()
        self._due_s = max(self._due_s, now_s - 0.1) + self._between_s
        if self._between_s:
            time.sleep(max(0.0, self._due_s - now_s))


def _association(sop_class: str, syntax: str) -> bytes:
    context = build_context(sop_class, syntax)
    context.context_id = 1
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16_384
    implementation.implementation_class_uid = UID("1.2.826.0.1.3680043.10.9")
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID("1.2.840.10008.3.1.1.1")
    primitive.calling_ae_title, primitive.called_ae_title = dimse.SENDER, dimse.TITLE
    primitive.presentation_context_definition_list = [context]
    primitive.user_information = [length, implementation]
    request = A_ASSOCIATE_RQ()
    request.from_primitive(primitive)
    return request.encode()


def _answer(connection: socket.socket) -> tuple[int, bytes]:
    kind, _, size = struct.unpack(">BBI", _exactly(connection, 6))
    return kind, _exactly(connection, size)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = connection.recv(count, socket.MSG_WAITALL)
    _require(len(data) == count, "the gateway hung up")
    return data


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise ConnectionError(otherwise)


def main() -> int:
    give_way(19)
    rate = float(sys.argv[2]) if len(sys.argv) > 2 else None
    modality = Modality(int(sys.argv[1]), rate)
    print("ready", flush=True)

    def asked() -> bool:
        return bool(select.select([sys.stdin], [], [], 0)[0])

    for line in sys.stdin:
        if line.strip() == "on":
            count = 0
            while not asked():
                count += modality.send(SMALL, lambda: not asked())
            print(count, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
