"""C-STORE, C-ECHO and storage commitment through the front and the receiving process."""

import asyncio
import threading
from collections import Counter

import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, evt

from node.gateway.commitments import PUSH_MODEL_INSTANCE
from node.gateway.dialing import Peer
from node.gateway.spool import Quota, Spool
from tests.gateway import dimse
from tests.gateway.dimse import PUSH_MODEL, VERIFICATION, in_thread, opened_door
from tests.imaging import dicom


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def spool(folder):
    opened = Spool(folder, Quota(disk_reserve_bytes=1))
    yield opened
    opened.close()


def data_set(path):
    """Return the bytes after the file meta information."""
    content = path.read_bytes()
    with open(path, "rb") as file:
        pydicom.filereader.read_preamble(file, False)
        pydicom.filereader._read_file_meta_info(file)
        return content[file.tell() :]


def spooled(spool):
    return [p for p in (spool.folder / "instances").glob("*/*") if p.is_file()]


def sendable():
    """Return readable shipped files that have all UIDs, each instance once, rare forms first."""
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
    heads = {path: pydicom.dcmread(path, stop_before_pixels=True) for path in dicom.readable()}
    syntaxes = Counter(head.file_meta.TransferSyntaxUID for head in heads.values())
    chosen = {}
    for path in sorted(heads, key=lambda path: syntaxes[heads[path].file_meta.TransferSyntaxUID]):
        head = heads[path]
        announced = head.file_meta.get("MediaStorageSOPInstanceUID")
        if all(head.get(name) for name in names) and announced == head.SOPInstanceUID:
            chosen.setdefault(head.SOPInstanceUID, path)
    return list(chosen.values())


async def test_an_echo_is_answered(folder):
    async with opened_door(folder) as door:
        association = await in_thread(dimse.associate, door.port, [build_context(VERIFICATION)])
        status = await in_thread(association.send_c_echo)
        await in_thread(association.release)
    assert status.Status == 0


async def test_every_class_and_syntax_of_the_corpus_goes_in_with_its_very_bytes(folder, spool):
    paths = sendable()
    assert len({pydicom.dcmread(p).file_meta.TransferSyntaxUID for p in paths}) > 10
    groups = [paths[at : at + 60] for at in range(0, len(paths), 60)]  # 128 contexts at most
    async with opened_door(folder) as door:
        statuses = [s for group in groups for s in await in_thread(dimse.send, door.port, group)]
    refused = {p.name for p, status in zip(paths, statuses, strict=True) if status != 0}
    aside = {a.code for a in spool.asides()}
    assert refused == set()
    assert aside == set()
    stored = {data_set(path) for path in spooled(spool)}
    assert stored == {data_set(path) for path in paths}


async def test_a_repeated_instance_succeeds_and_a_changed_one_does_not(folder, spool, tmp_path):
    first = dicom.minimal(tmp_path / "a")
    other = dicom.minimal(tmp_path / "b", SliceThickness="9")
    async with opened_door(folder) as door:
        statuses = await in_thread(dimse.send, door.port, [first, first, other])
    assert statuses == [0x0000, 0x0000, 0xC000]
    assert len(spooled(spool)) == 1
    assert len(spool.asides()) == 2


async def test_what_is_announced_as_another_instance_is_refused(folder, spool, tmp_path):
    path = dicom.minimal(tmp_path / "a")
    lying = pydicom.dcmread(path)
    lying.file_meta.MediaStorageSOPInstanceUID = "1.2.3.999"
    lying.save_as(path, enforce_file_format=False)
    async with opened_door(folder) as door:
        statuses = await in_thread(dimse.send, door.port, [path])
    assert statuses == [0xA900]
    assert [a.code for a in spool.asides()] == ["mismatch"]


async def test_a_full_spool_tells_the_sender_to_come_again(folder, spool, tmp_path):
    quota = Quota(disk_reserve_bytes=1, instances_max=1, instance_bytes_max=64 << 20)
    paths = [dicom.minimal(tmp_path / f"{n}", sop=f"1.2.3.{n}") for n in range(2)]
    async with opened_door(folder, quota=quota) as door:
        statuses = await in_thread(dimse.send, door.port, paths)
    assert statuses == [0x0000, 0xA700]
    assert len(spooled(spool)) == 1


async def test_a_kill_loses_no_acknowledged_instance(folder, tmp_path):
    paths = [dicom.minimal(tmp_path / f"{n}", sop=f"1.2.3.4.{n}") for n in range(40)]
    acknowledged = []

    def store(association, killed):
        for path in paths:
            status = association.send_c_store(str(path))
            if status.get("Status") != 0:
                return
            acknowledged.append(path)
            if len(acknowledged) == 7:
                killed.set()

    async with opened_door(folder) as door:
        association = await in_thread(dimse.associate, door.port, dimse.contexts_of(paths))
        killed = threading.Event()
        sending = asyncio.create_task(in_thread(store, association, killed))
        await in_thread(killed.wait)
        door.receiving._process.kill()
        await sending
    again = Spool(folder, Quota(disk_reserve_bytes=1))
    again.recover()
    kept = {path.read_bytes()[-24:] for path in spooled(again)}
    held = again.holds([f"1.2.3.4.{n}" for n in range(len(acknowledged))])
    again.close()
    assert 7 <= len(acknowledged) < 40
    assert all(held)
    assert kept


async def test_the_receiving_process_comes_back_after_it_died(folder, tmp_path):
    path = dicom.minimal(tmp_path / "a")
    async with opened_door(folder) as door:
        first = door.receiving.pid
        door.receiving._process.kill()
        async with asyncio.timeout(30):
            while door.receiving.pid in (first, None) or door.receiving._control is None:
                await asyncio.sleep(0)
        assert await in_thread(dimse.send, door.port, [path]) == [0]
    assert ("receiver_ended", "gateway", "-9") in door.events


def commitment(*uids):
    request = Dataset()
    request.TransactionUID = "1.2.3.4.5.6.7"
    request.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        item.ReferencedSOPInstanceUID = uid
        request.ReferencedSOPSequence.append(item)
    return request


class Reports:
    """Takes N-EVENT-REPORTs."""

    def __init__(self):
        self.received, self.came = [], threading.Event()
        self.handlers = [(evt.EVT_N_EVENT_REPORT, self.take)]

    def take(self, event):
        information = event.event_information
        failed = information.get("FailedSOPSequence", [])
        self.received.append(
            (
                event.event_type,
                information.TransactionUID,
                [item.ReferencedSOPInstanceUID for item in information.ReferencedSOPSequence],
                [(item.ReferencedSOPInstanceUID, item.FailureReason) for item in failed],
            )
        )
        self.came.set()
        return 0x0000, None


async def test_storage_commitment_is_reported_on_the_asking_association(folder, spool, tmp_path):
    path = dicom.minimal(tmp_path / "a", sop="1.2.3.1")
    reports = Reports()
    contexts = [*dimse.contexts_of([path]), build_context(PUSH_MODEL)]
    async with opened_door(folder) as door:
        association = await in_thread(
            dimse.associate, door.port, contexts, handlers=reports.handlers
        )
        await in_thread(association.send_c_store, str(path))
        status, _ = await in_thread(
            association.send_n_action,
            commitment("1.2.3.1", "1.2.3.2"),
            1,
            PUSH_MODEL,
            PUSH_MODEL_INSTANCE,
        )
        assert await in_thread(reports.came.wait, 20)
        await in_thread(association.release)
    assert status.Status == 0
    assert reports.received == [(2, "1.2.3.4.5.6.7", ["1.2.3.1"], [("1.2.3.2", 0x0112)])]
    assert [study.is_signalled for study in spool.gatherings()] == [True]


async def test_storage_commitment_is_reported_to_the_peers_own_address(folder, spool, tmp_path):
    path = dicom.minimal(tmp_path / "a", sop="1.2.3.1")
    reports = Reports()
    pacs = AE(ae_title=dimse.SENDER)
    pacs.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
    server = pacs.start_server(("127.0.0.1", 0), block=False, evt_handlers=reports.handlers)
    try:
        peer = Peer(dimse.SENDER, "127.0.0.1", server.server_address[1])
        async with opened_door(folder, peers=[peer]) as door:
            assert await in_thread(dimse.send, door.port, [path]) == [0]
            association = await in_thread(dimse.associate, door.port, [build_context(PUSH_MODEL)])
            await in_thread(
                association.send_n_action,
                commitment("1.2.3.1"),
                1,
                PUSH_MODEL,
                PUSH_MODEL_INSTANCE,
            )
            await in_thread(association.release)
            assert await in_thread(reports.came.wait, 20)
    finally:
        server.shutdown()
    assert reports.received == [(1, "1.2.3.4.5.6.7", ["1.2.3.1"], [])]


async def test_a_peer_that_cannot_be_reached_does_not_keep_others_from_their_report(
    folder, spool, tmp_path
):
    reports = Reports()
    pacs = AE(ae_title=dimse.SENDER)
    pacs.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
    server = pacs.start_server(("127.0.0.1", 0), block=False, evt_handlers=reports.handlers)
    try:
        peers = [
            Peer("LOST", "nobody.invalid", 104),
            Peer(dimse.SENDER, "127.0.0.1", server.server_address[1]),
        ]
        async with opened_door(folder, peers=peers) as door:
            for title in ("LOST", dimse.SENDER):
                association = await in_thread(
                    dimse.associate, door.port, [build_context(PUSH_MODEL)], title=title
                )
                request = commitment("1.2.3.1")
                await in_thread(
                    association.send_n_action, request, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE
                )
                await in_thread(association.release)
            assert await in_thread(reports.came.wait, 20)
    finally:
        server.shutdown()
    assert [kind for kind, *_ in reports.received] == [2]


async def test_an_instance_with_a_conflict_is_not_vouched_for(folder, spool, tmp_path):
    first = dicom.minimal(tmp_path / "a", sop="1.2.3.1")
    other = dicom.minimal(tmp_path / "b", sop="1.2.3.1", SliceThickness="9")
    async with opened_door(folder) as door:
        await in_thread(dimse.send, door.port, [first, other])
    assert spool.holds(["1.2.3.1"]) == [False]
