"""C-FIND, C-MOVE and C-GET through the front and the fenced process; the peer is pynetdicom."""

import asyncio
import threading
from contextlib import asynccontextmanager
from io import BytesIO

import pydicom
import pynetdicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from pynetdicom import AE, build_context, build_role, evt

from node.gateway.dataset_bytes import skip_meta
from node.gateway.dialing import Peer
from node.gateway.link import Action, Lender
from node.gateway.query import Bounds
from tests.gateway import dimse
from tests.gateway.dimse import SENDER, in_thread, opened_door
from tests.gateway.test_scp import sendable
from tests.gateway.web.folder import FolderHoldings
from tests.imaging import dicom

FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2, 3))
PATIENT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
VIEWER = "VIEWER"
CT = sorted(path for path in dicom.CT_FOLDER.rglob("*") if path.is_file())


def data_set(path):
    stream = BytesIO(path.read_bytes())
    skip_meta(stream)
    return stream.read()


class Site:
    """A gateway with holdings, and what its audit was told."""

    def __init__(self, door, holdings, accesses):
        self.door, self.holdings, self.accesses = door, holdings, accesses
        self.told = threading.Condition()

    @property
    def port(self):
        return self.door.port

    def record(self, access):
        with self.told:
            self.accesses.append(access)
            self.told.notify_all()

    async def audited(self, count=1):
        """Return the records once there are `count`."""

        def wait():
            with self.told:
                assert self.told.wait_for(lambda: len(self.accesses) >= count, 20)
            return self.accesses

        return await in_thread(wait)


@asynccontextmanager
async def opened(folder, paths, *, peers=(), bounds=None, **options):
    site = Site(None, FolderHoldings(paths), [])
    lender = Lender(site.holdings, site.record, bounds)
    async with opened_door(folder, peers=[Peer(SENDER), *peers], lender=lender, **options) as door:
        site.door = door
        yield site


def identifier(level, **keys):
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    for name, value in keys.items():
        setattr(ds, name, value)
    return ds


def find(port, asked, model=FIND):
    """Return the pending answers' identifiers and statuses, and the last status."""
    association = dimse.associate(port, [build_context(model)])
    assert association.is_established
    try:
        answers = list(association.send_c_find(asked, model))
    finally:
        association.release()
    *pending, (last, _) = answers
    return [found for _, found in pending], [status.Status for status, _ in pending], last


async def found(site, asked, model=FIND):
    rows, _, last = await in_thread(find, site.port, asked, model)
    assert last.Status == 0
    return rows


def held_uids(paths, name="SOPInstanceUID", **wanted):
    heads = (pydicom.dcmread(path, stop_before_pixels=True) for path in paths)
    return {
        str(head[name].value)
        for head in heads
        if all(str(head.get(key)) == value for key, value in wanted.items())
    }


async def test_studies_are_found_by_the_rules_of_matching(tmp_path):
    paths = [
        dicom.minimal(
            tmp_path / f"{n}",
            sop=f"1.2.{n}.1.1",
            study=f"1.2.{n}",
            PatientName=name,
            StudyDate=date,
            AccessionNumber=f"A{n}",
        )
        for n, name, date in (
            (1, "Müller^Anna", "20200105"),
            (2, "Muller^Bert", "20200229"),
            (3, "Smith^Anna", "20210101"),
        )
    ]
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.save_as(path)
    questions = {
        "single": ({"StudyInstanceUID": "1.2.2"}, {"1.2.2"}),
        "list of uids": ({"StudyInstanceUID": ["1.2.2", "1.2.3", "1.2.9"]}, {"1.2.2", "1.2.3"}),
        "universal": ({"StudyInstanceUID": ""}, {"1.2.1", "1.2.2", "1.2.3"}),
        "star": ({"StudyInstanceUID": "", "PatientName": "m*"}, {"1.2.1", "1.2.2"}),
        "question mark": ({"StudyInstanceUID": "", "PatientName": "M?ller*"}, {"1.2.1", "1.2.2"}),
        "inner star": ({"StudyInstanceUID": "", "PatientName": "*^anna"}, {"1.2.1", "1.2.3"}),
        "date": ({"StudyInstanceUID": "", "StudyDate": "20200229"}, {"1.2.2"}),
        "range": ({"StudyInstanceUID": "", "StudyDate": "20200101-20201231"}, {"1.2.1", "1.2.2"}),
        "until": ({"StudyInstanceUID": "", "StudyDate": "-20200105"}, {"1.2.1"}),
        "from": ({"StudyInstanceUID": "", "StudyDate": "20200106-"}, {"1.2.2", "1.2.3"}),
        "both": ({"StudyInstanceUID": "", "PatientName": "*anna", "StudyDate": "2021-"}, {"1.2.3"}),
        "case counts": ({"StudyInstanceUID": "", "AccessionNumber": "a1"}, set()),
        "none": ({"StudyInstanceUID": "", "AccessionNumber": "A?1"}, set()),
    }
    async with opened(tmp_path / "spool", paths) as site:
        for name, (keys, expected) in questions.items():
            rows = await found(site, identifier("STUDY", **keys))
            assert {row.StudyInstanceUID for row in rows} == expected, name
        asked = identifier("STUDY", StudyInstanceUID="1.2.1", PatientName="", StudyDate="")
        (row,) = await found(site, asked)
    assert str(row.PatientName) == "Müller^Anna"
    assert (row.StudyDate, row.QueryRetrieveLevel) == ("20200105", "STUDY")
    assert (row.RetrieveAETitle, row.InstanceAvailability) == (dimse.TITLE, "ONLINE")
    assert "AccessionNumber" not in row  # not asked for


async def test_every_level_is_found(tmp_path):
    study = held_uids(CT[:1], "StudyInstanceUID").pop()
    async with opened(tmp_path / "spool", CT) as site:
        asked = identifier("STUDY", StudyInstanceUID=study, NumberOfStudyRelatedInstances="")
        (row,) = await found(site, asked)
        assert int(row.NumberOfStudyRelatedInstances) == len(CT)
        asked = identifier("SERIES", StudyInstanceUID=study, SeriesInstanceUID="", Modality="CT")
        series = await found(site, asked)
        assert {r.SeriesInstanceUID for r in series} == held_uids(CT, "SeriesInstanceUID")
        uid = series[0].SeriesInstanceUID
        asked = identifier(
            "IMAGE", StudyInstanceUID=study, SeriesInstanceUID=uid, SOPInstanceUID="", Rows=""
        )
        images = await found(site, asked)
        assert {r.SOPInstanceUID for r in images} == held_uids(CT, SeriesInstanceUID=uid)
        assert all(isinstance(r.Rows, int) for r in images)
        asked = identifier("PATIENT", PatientID="98890234", PatientName="")
        patients = await found(site, asked, PATIENT_FIND)
        assert [p.PatientID for p in patients] == ["98890234"]
        accesses = await site.audited(4)
    assert {(a.action, a.calling, a.code) for a in accesses} == {(Action.SEARCH, SENDER, "")}


@pytest.mark.parametrize(
    ("asked", "model", "status"),
    [
        (identifier("PATIENT", PatientID="1"), FIND, 0xA900),
        (identifier("VOLUME", StudyInstanceUID="1.2"), FIND, 0xA900),
        (identifier("STUDY", StudyInstanceUID="", StudyDate="2020-2021-2022"), FIND, 0xA900),
        (identifier("STUDY", StudyInstanceUID="1.2.*"), FIND, 0xA900),
    ],
)
async def test_what_cannot_be_understood_is_refused(tmp_path, asked, model, status):
    async with opened(tmp_path / "spool", CT) as site:
        rows, _, last = await in_thread(find, site.port, asked, model)
    assert (rows, last.Status) == ([], status)
    assert "ErrorComment" in last


async def test_keys_that_are_not_matched_are_told_by_the_status(tmp_path):
    async with opened(tmp_path / "spool", CT) as site:
        asked = identifier("STUDY", StudyInstanceUID="", PatientComments="nothing like it")
        rows, statuses, last = await in_thread(find, site.port, asked)
    assert (len(rows), set(statuses), last.Status) == (1, {0xFF01}, 0)


async def test_answers_are_bounded(tmp_path):
    paths = [dicom.minimal(tmp_path / f"{n}", f"1.2.{n}.1.1", f"1.2.{n}") for n in range(5)]
    async with opened(tmp_path / "spool", paths, bounds=Bounds(3, 2)) as site:
        studies = await in_thread(find, site.port, identifier("STUDY", StudyInstanceUID=""))
        images = await in_thread(find, site.port, identifier("IMAGE", SOPInstanceUID=""))
        accesses = await site.audited(2)
    assert (len(studies[0]), studies[2].Status) == (3, 0xA700)
    assert (len(images[0]), images[2].Status) == (2, 0xA700)
    assert {access.code for access in accesses} == {"too_broad"}


class Receiver:
    """Takes what comes; keeps each data set's bytes."""

    def __init__(self, status=0x0000):
        self.status, self.taken, self.originators = status, {}, set()
        self.handlers = [(evt.EVT_C_STORE, self.take)]

    def take(self, event):
        request = event.request
        self.taken[str(request.AffectedSOPInstanceUID)] = event.request.DataSet.getvalue()
        self.originators.add(request.MoveOriginatorApplicationEntityTitle)
        return self.status


@pytest.fixture
def buffered(monkeypatch):
    """Let pynetdicom hand over data sets in memory."""
    monkeypatch.setattr(pynetdicom._config, "STORE_RECV_CHUNKED_DATASET", False)


def get(port, asked, kinds, receiver):
    """Return the statuses of a C-GET; `kinds` are (class, syntax)."""
    classes = dict.fromkeys(sop_class for sop_class, _ in kinds)
    contexts = [build_context(GET), *(build_context(*kind) for kind in dict.fromkeys(kinds))]
    ae = AE(ae_title=SENDER)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    association = ae.associate(
        "127.0.0.1",
        port,
        contexts,
        ae_title=dimse.TITLE,
        ext_neg=[build_role(sop_class, scp_role=True) for sop_class in classes],
        evt_handlers=[dimse.AT_ONCE, *receiver.handlers],
    )
    assert association.is_established
    try:
        return [(status, found) for status, found in association.send_c_get(asked, GET)]
    finally:
        association.release()


def kinds_of(paths):
    heads = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    return [(h.SOPClassUID, h.file_meta.TransferSyntaxUID) for h in heads]


async def test_a_study_is_got_with_its_very_bytes(tmp_path, buffered):
    study = held_uids(CT[:1], "StudyInstanceUID").pop()
    receiver = Receiver()
    asked = identifier("STUDY", StudyInstanceUID=study)
    async with opened(tmp_path / "spool", CT) as site:
        answers = await in_thread(get, site.port, asked, kinds_of(CT), receiver)
        (access,) = await site.audited()
    last = answers[-1][0]
    assert (last.Status, last.NumberOfCompletedSuboperations) == (0, len(CT))
    assert set(receiver.taken.values()) == {data_set(path) for path in CT}
    assert (access.action, access.calling, access.code) == (Action.RETRIEVE, SENDER, "")
    assert (access.instances, access.study_uids) == (len(CT), (study,))


async def test_series_and_images_are_got_alone(tmp_path, buffered):
    study = held_uids(CT[:1], "StudyInstanceUID").pop()
    series = sorted(held_uids(CT, "SeriesInstanceUID"))[0]
    image = sorted(held_uids(CT, SeriesInstanceUID=series))[0]
    async with opened(tmp_path / "spool", CT) as site:
        one, other = Receiver(), Receiver()
        asked = identifier("SERIES", StudyInstanceUID=study, SeriesInstanceUID=series)
        await in_thread(get, site.port, asked, kinds_of(CT), one)
        asked = identifier(
            "IMAGE", StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID=image
        )
        await in_thread(get, site.port, asked, kinds_of(CT), other)
    assert one.taken.keys() == held_uids(CT, SeriesInstanceUID=series)
    assert other.taken.keys() == {image}


async def test_who_takes_another_encoding_only_gets_the_same_image_in_that(tmp_path, buffered):
    paths = [
        dicom.minimal(tmp_path / "implicit", "1.2.7.1.1", "1.2.7", syntax=ImplicitVRLittleEndian),
        dicom.minimal(tmp_path / "explicit", "1.2.7.1.2", "1.2.7"),
        dicom.minimal(tmp_path / "rle", "1.2.7.1.3", "1.2.7"),
    ]
    compressed = pydicom.dcmread(paths[2])
    compressed.compress(RLELossless, generate_instance_uid=False)
    compressed.save_as(paths[2])
    receiver = Receiver()
    kinds = [(compressed.SOPClassUID, ExplicitVRLittleEndian)]
    async with opened(tmp_path / "spool", paths) as site:
        asked = identifier("STUDY", StudyInstanceUID="1.2.7")
        answers = await in_thread(get, site.port, asked, kinds, receiver)
    assert answers[-1][0].Status == 0
    meta = b"\x02\x00\x10\x00UI\x14\x00" + b"1.2.840.10008.1.2.1\0"
    heads = [
        pydicom.dcmread(BytesIO(bytes(128) + b"DICM" + meta + data))
        for data in receiver.taken.values()
    ]
    assert {head.SOPInstanceUID for head in heads} == {"1.2.7.1.1", "1.2.7.1.2", "1.2.7.1.3"}
    expected = pydicom.dcmread(paths[1]).pixel_array.tolist()
    assert all(head.pixel_array.tolist() == expected for head in heads)
    assert receiver.taken["1.2.7.1.2"] == data_set(paths[1])  # it needed no change


async def test_what_the_asker_cannot_take_fails_and_is_named(tmp_path, buffered):
    taken = dicom.minimal(tmp_path / "a", "1.2.7.1.1", "1.2.7")
    other = dicom.minimal(tmp_path / "b", "1.2.7.1.2", "1.2.7")
    ds = pydicom.dcmread(other)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    ds.save_as(other)
    receiver = Receiver()
    async with opened(tmp_path / "spool", [taken, other]) as site:
        asked = identifier("STUDY", StudyInstanceUID="1.2.7")
        answers = await in_thread(get, site.port, asked, kinds_of([taken]), receiver)
        (access,) = await site.audited()
    last, failed = answers[-1]
    assert last.Status == 0xB000
    assert (last.NumberOfCompletedSuboperations, last.NumberOfFailedSuboperations) == (1, 1)
    assert failed.FailedSOPInstanceUIDList == "1.2.7.1.2"
    assert (access.code, access.instances) == ("partly_failed", 1)


async def test_a_study_withheld_meanwhile_is_not_given_out(tmp_path, buffered):
    path = dicom.minimal(tmp_path / "a", "1.2.7.1.1", "1.2.7")
    receiver = Receiver()
    async with opened(tmp_path / "spool", [path]) as site:
        site.holdings.withheld.add("1.2.7")
        asked = identifier("STUDY", StudyInstanceUID="1.2.7")
        answers = await in_thread(get, site.port, asked, kinds_of([path]), receiver)
        (access,) = await site.audited()
    assert (answers[-1][0].Status, receiver.taken) == (0xA702, {})
    assert (access.code, access.instances) == ("failed", 0)


@pytest.mark.parametrize(
    "asked",
    [
        identifier("STUDY"),
        identifier("STUDY", PatientName="*"),
        identifier("STUDY", PatientID="98890234"),
        identifier("SERIES", StudyInstanceUID=pydicom.dcmread(CT[0]).StudyInstanceUID),
        identifier("IMAGE", StudyInstanceUID=pydicom.dcmread(CT[0]).StudyInstanceUID),
    ],
)
async def test_a_retrieval_must_name_what_it_wants(tmp_path, buffered, asked):
    async with opened(tmp_path / "spool", CT) as site:
        answers = await in_thread(get, site.port, asked, kinds_of(CT[:1]), Receiver())
        (access,) = await site.audited()
    assert (answers[-1][0].Status, access.code) == (0xA900, "invalid")


def move(port, asked, destination=VIEWER):
    association = dimse.associate(port, [build_context(MOVE)])
    assert association.is_established
    try:
        return [status for status, _ in association.send_c_move(asked, destination, MOVE)]
    finally:
        association.release()


@asynccontextmanager
async def viewer(receiver, kinds, title=VIEWER):
    """Yield a peer that receives the given kinds."""
    ae = AE(ae_title=title)
    for sop_class, syntax in dict.fromkeys(kinds):
        ae.add_supported_context(sop_class, syntax)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=receiver.handlers)
    try:
        yield Peer(title, "127.0.0.1", server.server_address[1])
    finally:
        await asyncio.to_thread(server.shutdown)


async def test_a_study_is_moved_to_a_listed_peer(tmp_path, buffered):
    study = held_uids(CT[:1], "StudyInstanceUID").pop()
    receiver = Receiver()
    async with (
        viewer(receiver, kinds_of(CT)) as peer,
        opened(tmp_path / "spool", CT, peers=[peer]) as site,
    ):
        asked = identifier("STUDY", StudyInstanceUID=study)
        answers = await in_thread(move, site.port, asked)
        (access,) = await site.audited()
    assert (answers[-1].Status, answers[-1].NumberOfCompletedSuboperations) == (0, len(CT))
    assert [a.NumberOfRemainingSuboperations for a in answers[:-1]] == [*range(len(CT))][::-1]
    assert set(receiver.taken.values()) == {data_set(path) for path in CT}
    assert receiver.originators == {SENDER}
    assert (access.calling, access.destination, access.instances) == (SENDER, VIEWER, len(CT))


async def test_every_class_and_syntax_of_the_corpus_goes_out_with_its_very_bytes(
    tmp_path, buffered
):
    paths = [path for path in sendable() if data_set(path)]
    studies = sorted(held_uids(paths, "StudyInstanceUID"))
    receiver = Receiver()
    async with (
        viewer(receiver, kinds_of(paths)) as peer,
        opened(tmp_path / "spool", paths, peers=[peer]) as site,
    ):
        answers = await in_thread(move, site.port, identifier("STUDY", StudyInstanceUID=studies))
        (access,) = await site.audited()
    assert (answers[-1].Status, access.instances) == (0, len(paths))
    sent = {data_set(path) for path in paths}
    padded = {data + b"\0" * (len(data) % 2) for data in sent}  # a deflated one (PS3.5 A.5)
    assert set(receiver.taken.values()) == padded
    assert len(padded - sent) <= 1
    assert set(access.study_uids) == set(studies)


async def test_a_move_to_who_is_not_listed_or_not_there_is_refused(tmp_path):
    study = held_uids(CT[:1], "StudyInstanceUID").pop()
    asked = identifier("STUDY", StudyInstanceUID=study)
    gone = Peer(VIEWER, "127.0.0.1", 1)  # where nobody listens
    async with opened(tmp_path / "spool", CT, peers=[gone]) as site:
        unlisted = await in_thread(move, site.port, asked, "STRANGER")
        unreachable = await in_thread(move, site.port, asked)
        (access,) = await site.audited()
    assert [answer.Status for answer in unlisted] == [0xA801]
    assert [answer.Status for answer in unreachable] == [0xA801]
    assert (access.code, access.instances) == ("unreachable", 0)


async def test_a_destination_that_refuses_is_told_of(tmp_path, buffered):
    path = dicom.minimal(tmp_path / "a", "1.2.7.1.1", "1.2.7")
    async with (
        viewer(Receiver(0xA700), kinds_of([path])) as peer,
        opened(tmp_path / "spool", [path], peers=[peer]) as site,
    ):
        answers = await in_thread(move, site.port, identifier("STUDY", StudyInstanceUID="1.2.7"))
    assert (answers[-1].Status, answers[-1].NumberOfFailedSuboperations) == (0xA702, 1)
