"""The watched folder: whole files are taken once, half ones left, no only copy is lost."""

import os
from pathlib import Path

from node.gateway.spool import Quota
from node.gateway.watch import Look, Watch, settled
from tests.imaging import dicom


def test_a_file_is_settled_when_two_looks_agree(tmp_path):
    one, two, new = tmp_path / "1", tmp_path / "2", tmp_path / "3"
    before = {one: Look(5, 1, 1), two: Look(5, 1, 2)}
    now = {one: Look(5, 1, 1), two: Look(6, 1, 2), new: Look(1, 1, 3)}
    assert settled(before, now) == [one]


def folder_of(tmp_path):
    folder = tmp_path / "watch"
    folder.mkdir()
    return folder


def test_a_growing_file_is_taken_when_it_is_whole(spool, tmp_path):
    folder = folder_of(tmp_path)
    whole = dicom.minimal(tmp_path / "whole").read_bytes()
    watch = Watch(folder, spool)
    (folder / "a").write_bytes(whole[:100])
    assert watch.step() == 0
    (folder / "a").write_bytes(whole)
    assert watch.step() == 0
    assert watch.step() == 1
    assert spool.usage().files == 1
    assert list(folder.iterdir()) == []


def test_links_hidden_and_unfinished_files_are_left_alone(spool, tmp_path):
    folder = folder_of(tmp_path)
    secret = dicom.minimal(tmp_path / "elsewhere")
    os.symlink(secret, folder / "link")
    os.mkfifo(folder / "pipe")
    dicom.minimal(folder / ".hidden")
    dicom.minimal(folder / "a.part")
    watch = Watch(folder, spool)
    assert watch.step() == watch.step() == 0
    assert secret.exists()
    assert spool.usage().files == 0


def test_while_there_is_no_room_files_stay_where_they_are(open_spool, tmp_path):
    spool = open_spool(Quota(disk_reserve_bytes=1 << 60))
    folder = folder_of(tmp_path)
    path = dicom.minimal(folder / "a")
    watch = Watch(folder, spool)
    watch.step()
    assert watch.step() == 0
    assert path.exists()


def test_what_quarantine_does_not_keep_stays_too(open_spool, tmp_path):
    spool = open_spool(Quota(disk_reserve_bytes=1, quarantine_bytes_max=1))
    folder = folder_of(tmp_path)
    (folder / "a").write_text("not DICOM")
    watch = Watch(folder, spool)
    watch.step()
    assert watch.step() == 0
    assert (folder / "a").exists()


def refuse_for(monkeypatch, method, name):
    """Let the system refuse `method` to us for the files of that name; return how often it did."""
    real, refused = getattr(Path, method), []

    def call(path, **options):
        if path.name == name:
            refused.append(path)
            raise PermissionError(1, "Operation not permitted")
        return real(path, **options)

    monkeypatch.setattr(Path, method, call)
    return refused


def test_a_file_that_cannot_be_removed_is_taken_once_and_keeps_no_other_from_being_taken(
    spool, tmp_path, monkeypatch, caplog
):
    folder = folder_of(tmp_path)
    stuck = dicom.minimal(folder / "a")
    dicom.minimal(folder / "b", sop="1.2.3.4.6")
    refused = refuse_for(monkeypatch, "unlink", "a")
    watch = Watch(folder, spool)
    assert [watch.step() for _ in range(4)] == [0, 2, 0, 0]
    assert spool.usage().files == 2
    assert list(folder.iterdir()) == [stuck]
    assert len(refused) == len(caplog.records) == 1
    dicom.minimal(stuck, sop="1.2.3.4.789")
    assert [watch.step() for _ in range(3)] == [0, 1, 0]
    assert spool.usage().files == 3


def test_a_name_that_may_not_be_looked_at_keeps_no_other_from_being_taken(
    spool, tmp_path, monkeypatch
):
    folder = folder_of(tmp_path)
    dicom.minimal(folder / "a")
    dicom.minimal(folder / "b", sop="1.2.3.4.6")
    refuse_for(monkeypatch, "lstat", "a")
    watch = Watch(folder, spool)
    assert [watch.step() for _ in range(2)] == [0, 1]
