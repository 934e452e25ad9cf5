"""The spool: acknowledged is durable, the same again idempotent, other content kept apart."""

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gateway import spool as spool_module
from node.gateway.index import SpoolError
from node.gateway.outcomes import Accepted, Claimed, Conflict, Duplicate, Refused
from node.gateway.spool import Quota, Spool
from node.imaging.errors import NOT_NOW, UnreadableInstance
from tests.imaging import dicom

STUDY, SOP = "1.2.3", "1.2.3.4.5"


def offer(spool, path, **options):
    with open(path, "rb") as stream:
        return spool.accept("test", stream, **options)


def waiting_files(spool):
    return [p for p in (spool.folder / "instances").glob("*/*") if p.is_file()]


@pytest.fixture
def instance(tmp_path):
    def make(name="a", **options):
        return dicom.minimal(tmp_path / name, **options)

    return make


def test_an_accepted_instance_waits_with_its_exact_bytes(spool, instance):
    path = instance()
    outcome = offer(spool, path)
    assert outcome == Accepted(SOP, "1.2.840.10008.5.1.4.1.1.7", STUDY, STUDY + ".1")
    assert [p.read_bytes() for p in waiting_files(spool)] == [path.read_bytes()]
    assert spool.usage()[:2] == (1, path.stat().st_size)


def test_nothing_is_answered_before_file_folder_and_row_are_synced(spool, instance, monkeypatch):
    done = []
    real = os.fsync

    def fsync(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(spool_module.os, "fsync", fsync)
    record = spool.index.record
    monkeypatch.setattr(
        spool.index, "record", lambda arrival: done.append("row") or record(arrival)
    )
    offer(spool, instance())
    file, folder, row = done
    assert "/instances/" in file
    assert "/instances/" in folder
    assert row == "row"
    connection = spool.index._connection
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: a commit is on disk


def test_the_same_again_is_idempotent(spool, instance):
    path = instance()
    first, second = offer(spool, path), offer(spool, path)
    assert isinstance(first, Accepted)
    assert isinstance(second, Duplicate)
    assert len(waiting_files(spool)) == 1


def test_a_copy_written_in_another_form_is_the_same_instance(spool, instance, tmp_path):
    path = instance()
    again = dicom.implicit(path, tmp_path / "again")
    assert again.read_bytes() != path.read_bytes()
    offer(spool, path)
    assert isinstance(offer(spool, again), Duplicate)


def test_other_content_under_one_uid_is_refused_and_both_are_kept(spool, instance):
    first = instance()
    second = instance("b", SliceThickness="3")
    offer(spool, first)
    outcome = offer(spool, second)
    assert isinstance(outcome, Conflict)
    assert (outcome.code, outcome.is_kept) == ("conflict", True)
    aside = {(spool.folder / "quarantine" / a.name).read_bytes() for a in spool.asides()}
    assert aside == {first.read_bytes(), second.read_bytes()}
    assert [p.read_bytes() for p in waiting_files(spool)] == [first.read_bytes()]
    assert ("conflict", "conflict") in {(e.kind, e.code) for _, e in spool.index.events()}


def test_a_changed_pixel_is_a_conflict_also_after_the_study_was_stored(spool, instance):
    offer(spool, instance())
    study = spool.lookup("study", STUDY)
    spool.take(study)
    spool.finish(study)
    assert waiting_files(spool) == []
    assert isinstance(offer(spool, instance()), Duplicate)
    pixels = np.arange(12, dtype="<u2").reshape(3, 4) ^ 1
    assert isinstance(offer(spool, instance("b", pixels=pixels)), Conflict)


def test_an_instance_of_another_patient_does_not_enter_the_study(spool, instance):
    offer(spool, instance())
    outcome = offer(spool, instance("b", sop="1.2.3.4.6", PatientID="P2"))
    assert outcome.code == "other_patient"
    assert outcome.is_kept


def test_what_is_not_what_was_announced_is_refused(spool, instance):
    wrong = Claimed("1.2.840.10008.5.1.4.1.1.7", "1.2.3.4.999")
    outcome = offer(spool, instance(), claimed=wrong)
    assert outcome.code == "mismatch"
    assert not waiting_files(spool)


def test_an_instance_of_another_study_leaves_nothing(spool, instance):
    outcome = offer(spool, instance(), study_uid="1.2.999")
    assert outcome.code == "other_study"
    assert not waiting_files(spool)
    assert spool.asides() == []
    assert list(spool.incoming.iterdir()) == []


def has_uids(path):
    found = pydicom.dcmread(path)
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
    return all(found.get(name) for name in names)


@pytest.mark.parametrize("path", dicom.shipped(), ids=lambda p: f"{p.parent.name}-{p.name}")
def test_every_shipped_file_goes_in_or_is_clearly_refused(spool, path):
    outcome = offer(spool, path)
    code = dicom.expected_code(path)
    if code is None and not has_uids(path):
        code = "no_uid"
    if code is None:
        assert isinstance(outcome, Accepted)
    else:
        assert (outcome.code, outcome.is_kept) == (code, True)
        assert outcome.reason


def test_an_instance_beyond_the_size_limit_is_refused(open_spool, instance):
    path = instance()
    spool = open_spool(Quota(instance_bytes_max=100, disk_reserve_bytes=1))
    assert offer(spool, path).code == "too_large"
    assert list(spool.incoming.iterdir()) == []


@pytest.mark.parametrize(
    "quota",
    [
        Quota(bytes_max=900, disk_reserve_bytes=1),
        Quota(instances_max=1, disk_reserve_bytes=1),
        Quota(disk_reserve_bytes=1 << 60),
    ],
    ids=["bytes", "instances", "disk"],
)
def test_beyond_the_quota_senders_are_told_to_come_again(open_spool, instance, quota):
    spool = open_spool(quota)
    if quota.disk_reserve_bytes == 1:
        assert isinstance(offer(spool, instance()), Accepted)
    outcome = offer(spool, instance("b", sop="1.2.3.4.6"))
    assert outcome.code == "no_room"
    assert spool.asides() == []


def test_a_full_quarantine_keeps_no_more_but_still_refuses(open_spool, tmp_path):
    spool = open_spool(Quota(quarantine_bytes_max=10, disk_reserve_bytes=1))
    outcome = spool.accept("test", io.BytesIO(b"not DICOM at all"))
    assert (outcome.code, outcome.is_kept) == ("foreign", False)
    assert list((spool.folder / "quarantine").iterdir()) == []


def test_a_sender_that_breaks_off_leaves_nothing(spool):
    class Broken:
        def __init__(self):
            self.pieces = [b"some", b"bytes"]

        def read(self, count):
            if not self.pieces:
                raise ConnectionResetError("gone")
            return self.pieces.pop()

    with pytest.raises(ConnectionResetError):
        spool.accept("test", Broken())
    assert list(spool.incoming.iterdir()) == []
    assert spool.usage().files == 0


def test_recovery_removes_what_was_never_acknowledged_and_keeps_the_rest(open_spool, instance):
    spool = open_spool()
    offer(spool, instance())
    (spool.incoming / "half").write_bytes(b"half")
    (spool.folder / "instances" / "ab" / "abandoned").write_bytes(b"no row")
    (spool.folder / "quarantine" / "orphan").write_bytes(b"no row")
    spool.close()
    again = open_spool()
    again.recover()
    assert len(waiting_files(again)) == 1
    assert list(again.incoming.iterdir()) == []
    assert list((again.folder / "quarantine").iterdir()) == []
    assert len(again.take(again.lookup("study", STUDY))) == 1


def test_a_lost_file_is_reported_and_does_not_stop_the_others(open_spool, instance):
    spool = open_spool()
    offer(spool, instance())
    offer(spool, instance("b", sop="1.2.3.4.6"))
    waiting_files(spool)[0].unlink()
    again = open_spool()
    again.recover()
    assert [e.kind for _, e in again.index.events()] == ["lost"]
    assert len(again.take(again.lookup("study", STUDY))) == 1
    assert again.usage().files == 1


def test_a_spool_has_one_owner(open_spool, spool):
    with pytest.raises(SpoolError, match="another gateway"):
        open_spool().recover()


CRASH = """
import os, sys
from pathlib import Path
from node.gateway import spool as module
from node.gateway.spool import Quota, Spool
spool = Spool(Path(sys.argv[1]), Quota(disk_reserve_bytes=1))
step = int(sys.argv[3])
calls = 0
def dies(real):
    def call(*arguments, **options):
        global calls
        if calls == step:
            os.kill(os.getpid(), 9)
        calls += 1
        return real(*arguments, **options)
    return call
module.os.fsync, module.os.rename = dies(os.fsync), dies(os.rename)
spool.index.record = dies(spool.index.record)
with open(sys.argv[2], "rb") as stream:
    spool.accept("test", stream)
print("acknowledged", flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("step", range(5))
def test_a_kill_at_any_step_loses_nothing_acknowledged(open_spool, instance, tmp_path, step):
    path = instance()
    arguments = [sys.executable, "-c", CRASH, str(tmp_path / "spool"), str(path), str(step)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    spool = open_spool()
    spool.recover()
    held = spool.holds([SOP])[0]
    assert held == ("acknowledged" in done.stdout)
    assert len(waiting_files(spool)) == held
    assert (step == 4) == held  # the steps are what we think they are
    assert isinstance(offer(spool, path), Duplicate if held else Accepted)


def test_what_cannot_be_read_now_is_sent_again_and_not_put_aside(open_spool, instance):
    def read(path, limits):
        return UnreadableInstance(str(path), NOT_NOW, "needs more memory than there is now")

    spool = open_spool(read=read)
    outcome = offer(spool, instance())
    assert (outcome.code, outcome.is_kept) == ("no_room", False)
    assert spool.asides() == []
    assert list(spool.incoming.iterdir()) == []


def test_many_senders_at_once_neither_lose_nor_double(spool, instance):
    paths = [instance(f"f{n}", sop=f"1.2.3.4.{n}") for n in range(8)] * 3
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda path: offer(spool, path), paths))
    kinds = [type(outcome) for outcome in outcomes]
    assert (kinds.count(Accepted), kinds.count(Duplicate)) == (8, 16)
    assert len(waiting_files(spool)) == spool.usage().files == 8


def test_late_instances_are_taken_apart_from_those_under_way(spool, instance):
    study = spool.lookup("study", STUDY)
    offer(spool, instance())
    first = spool.take(study)
    offer(spool, instance("b", sop="1.2.3.4.6"))
    assert spool.take(study) == first
    spool.finish(study)
    second = spool.take(study)
    assert len(second) == 1
    assert second != first


def test_nothing_in_the_index_or_the_names_tells_who_is_examined(spool, instance, tmp_path):
    secret = {"PatientID": "MRN-4711", "PatientName": "Doe^Jane"}
    offer(spool, instance(**secret))
    offer(spool, instance("b", SliceThickness="2", **secret))
    offer(spool, instance("c", sop="1.2.3.4.6", PatientID="MRN-4712"))
    spool.index._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = (spool.folder / "index.db").read_bytes()
    names = "\n".join(str(p.relative_to(spool.folder)) for p in spool.folder.rglob("*"))
    for value in (b"MRN-4711", b"MRN-4712", b"Doe", STUDY.encode(), SOP.encode()):
        assert value not in content
        assert value.decode() not in names


def test_an_erased_study_is_forgotten_and_may_come_again(spool, instance):
    offer(spool, instance())
    spool.forget(STUDY)
    assert waiting_files(spool) == []
    assert spool.holds([SOP]) == [False]
    assert spool.usage().files == 0


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_meet_a_refusal_and_nothing_else(tmp_path_factory, data, has_head):
    spool = shared_spool(tmp_path_factory)
    head = bytes(128) + b"DICM" if has_head else b""
    assert isinstance(spool.accept("test", io.BytesIO(head + data)), Refused)


_shared = {}


def shared_spool(factory):
    if "spool" not in _shared:
        folder = factory.mktemp("spool")
        _shared["spool"] = Spool(folder, Quota(disk_reserve_bytes=1, quarantine_bytes_max=1))
    return _shared["spool"]


def test_an_accepted_file_that_quarantine_has_no_room_for_stays(open_spool, tmp_path):
    spool = open_spool(Quota(disk_reserve_bytes=1, quarantine_bytes_max=1))
    with dicom.minimal(tmp_path / "a.dcm").open("rb") as stream:
        assert isinstance(spool.accept("folder", stream), Accepted)
    (study,) = spool.gatherings()
    (path,) = spool.take(study.study)
    with pytest.raises(SpoolError, match="no room"):
        spool.dispute(path, "parser_died", "the process that read it ended")
    assert path.exists()
    assert spool.take(study.study) == [path]
