"""A disk that fills up: the reserve is left alone, senders are told, and others go on."""

import asyncio
import io
import socket
import tempfile
import threading
from contextlib import asynccontextmanager
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pynetdicom
import pytest
from pynetdicom import build_context
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE

from node.gateway.closing import Rules
from node.gateway.front import Front, FrontRules
from node.gateway.index import SpoolError
from node.gateway.scp import COMMAND_BYTES_MAX, READY, UNCHECKED_BYTES_MAX, Receiver, Settings
from node.gateway.spool import COPY_BYTES, Quota
from tests.gateway import dimse
from tests.gateway.dimse import SENDER, TITLE, VERIFICATION, in_thread
from tests.imaging import dicom

MEBIBYTE = 1 << 20
RESERVE = 1 << 30
ROOM = 8 * MEBIBYTE
QUOTA = Quota(disk_reserve_bytes=RESERVE, instance_bytes_max=64 * MEBIBYTE)
BIG = np.zeros((4_096, 4_096), "<u2")  # 32 MiB


class Disk:
    """A disk that has `ROOM` beyond the reserve, of which the files that come take their part."""

    def __init__(self, folder):
        self.folder, self.lowest = folder, RESERVE + ROOM

    def usage(self, _):
        files = (self.folder / "incoming").rglob("*")
        free = RESERVE + ROOM - sum(path.stat().st_size for path in files if path.is_file())
        self.lowest = min(self.lowest, free)
        return SimpleNamespace(free=free)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    made = Disk(tmp_path / "spool")
    monkeypatch.setattr("node.gateway.spool.shutil.disk_usage", made.usage)
    return made


@pytest.fixture
def receiver(tmp_path, monkeypatch):
    """Return a receiver in this process and the other end of its control socket."""
    monkeypatch.setattr(tempfile, "tempdir", None)  # put back, as are the others that it sets
    for name in ("STORE_RECV_CHUNKED_DATASET", "UNRESTRICTED_STORAGE_SERVICE"):
        monkeypatch.setattr(pynetdicom._config, name, True)
    settings = Settings(
        str(tmp_path / "spool"),
        asdict(QUOTA),
        asdict(Rules()),
        TITLE,
        [asdict(peer) for peer in dimse.PEERS],
        pdu_bytes_max=2**17,
        associations_max=16,
        idle_seconds=20.0,
        memory_bytes_max=512 * MEBIBYTE,
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made = Receiver(settings, theirs)
    yield made, ours
    ours.close()
    theirs.close()


@asynccontextmanager
async def served(receiver, control):
    """Yield the port at which the receiver serves."""

    def hand(connection, peer):
        socket.send_fds(control, [peer.encode()], [connection.fileno()])
        return True

    thread = threading.Thread(target=receiver.run, daemon=True)
    thread.start()
    assert await in_thread(control.recv, 64) == READY
    front = Front(FrontRules(TITLE, {SENDER: None}), hand, lambda *_: None, None)
    await front.start("127.0.0.1", 0)
    try:
        yield front.port
    finally:
        await front.stop()
        control.close()
        await in_thread(thread.join)


def refuse_notes(receiver, monkeypatch):
    def full(*_):
        raise SpoolError("the disk is full")

    monkeypatch.setattr(receiver._spool.index, "note", full)


async def test_a_data_set_beyond_the_reserve_is_not_kept_and_its_sender_told(
    tmp_path, receiver, disk
):
    served_by, control = receiver
    paths = [
        dicom.minimal(tmp_path / "big", pixels=BIG, sop="1.2.3.1"),
        dicom.minimal(tmp_path / "small", sop="1.2.3.2"),
    ]
    async with served(served_by, control) as port:
        assert await in_thread(dimse.send, port, paths) == [0xA700, 0x0000]
        events = [(event.kind, event.code) for _, event in served_by._spool.index.events()]
        assert served_by._spool.asides() == []
        assert served_by._discarded == set()
    assert disk.lowest > RESERVE - UNCHECKED_BYTES_MAX
    assert events == [("refused", "no_room")]


async def test_what_is_read_from_a_stream_ends_at_the_reserve(open_spool, tmp_path, disk):
    spool = open_spool(QUOTA)
    stream = io.BytesIO(dicom.minimal(tmp_path / "big", pixels=BIG).read_bytes())
    assert spool.accept("test", stream).code == "no_room"
    assert stream.tell() <= ROOM + COPY_BYTES
    assert disk.lowest >= RESERVE
    assert list(spool.incoming.iterdir()) == []


def half_a_request():
    """Return the P-DATA of a C-STORE whose data set does not come to its end."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    request.AffectedSOPInstanceUID = "1.2.3"
    request.DataSet = io.BytesIO(bytes(100_000))
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    return list(message.encode_msg(1, 16_000))[:-1]


async def test_a_transfer_that_breaks_off_does_not_end_the_others_when_it_cannot_be_noted(
    receiver, monkeypatch
):
    served_by, control = receiver
    context = build_context("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.1.2.1")
    refuse_notes(served_by, monkeypatch)
    async with served(served_by, control) as port:
        sender = await in_thread(dimse.associate, port, [context])
        for piece in half_a_request():
            sender.dul.send_pdu(piece)
        (association,) = served_by._server.started
        async with asyncio.timeout(20):
            while association.dimse.message is None:
                await asyncio.sleep(0)
        await in_thread(sender.abort)
        await in_thread(association.join)
        other = await in_thread(dimse.associate, port, [build_context(VERIFICATION)])
        assert (await in_thread(other.send_c_echo)).Status == 0
        await in_thread(other.release)
        assert association not in served_by._server.started


def test_who_asks_too_much_is_cut_off_also_when_that_cannot_be_noted(receiver, monkeypatch):
    served_by, _ = receiver
    refuse_notes(served_by, monkeypatch)
    here, there = socket.socketpair()
    message = C_STORE_RQ()
    message.encoded_command_set.write(bytes(COMMAND_BYTES_MAX + 1))
    association = SimpleNamespace(
        dimse=SimpleNamespace(message=message, msg_queue=SimpleNamespace(qsize=lambda: 0)),
        dul=SimpleNamespace(socket=SimpleNamespace(socket=here)),
        requestor=SimpleNamespace(ae_title=SENDER),
    )
    served_by._hold_back(SimpleNamespace(assoc=association))
    with here, there, pytest.raises(BrokenPipeError):
        there.sendall(b"more")
