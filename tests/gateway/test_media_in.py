"""Media with a DICOMDIR (IHE PDI): into the watched folder, and by `radledger gateway import`."""

import json
import os
import shutil

import pytest
from pydicom.fileset import FileSet

from node.gateway.spool import Quota, Spool
from node.gateway.watch import TAKEN, Watch
from node.imaging.errors import NOT_NOW, UnreadableInstance
from node.imaging.media import read_media
from node.imaging.reader import read_studies
from tests.gateway.test_cli import config_file, run
from tests.imaging import dicom

__all__ = ["config_file"]  # a fixture
COUNT = 7


@pytest.fixture
def disc(tmp_path):
    """A disc with a real series, its DICOMDIR, a viewer and a readme."""
    files = FileSet()
    for path in sorted(dicom.CT_FOLDER.rglob("*")):
        if path.is_file():
            files.add(path)
    folder = tmp_path / "disc"
    files.write(folder)
    (folder / "README.TXT").write_text("what is on this disc")
    (folder / "VIEWER.EXE").write_bytes(b"MZ" + bytes(500))
    return folder


def rewritten(folder, before, after):
    """Change a file id in the DICOMDIR, at the same length."""
    directory = folder / "DICOMDIR"
    data = directory.read_bytes()
    assert len(before) == len(after)
    assert before in data
    directory.write_bytes(data.replace(before, after))


def test_what_a_directory_names_is_found_whatever_the_case(disc):
    media = read_media(disc / "DICOMDIR")
    assert (len(media.files), media.missing, media.outside) == (COUNT, (), ())
    lower = disc.with_name("lower")
    lower.mkdir()
    for path in sorted(disc.rglob("*")):
        name = str(path.relative_to(disc)).lower()
        target = lower / (name + ";1" if path.is_file() else name)
        target.mkdir(parents=True) if path.is_dir() else shutil.copy(path, target)
    again = read_media(lower / "dicomdir;1")
    assert (len(again.files), again.missing) == (COUNT, ())


def test_a_directory_that_cannot_be_read_now_keeps_its_medium_for_the_next_look(spool, disc):
    troubles = [UnreadableInstance("DICOMDIR", NOT_NOW, "cannot be read")]

    def read(directory):
        if troubles:
            raise troubles.pop()
        return read_media(directory)

    watch = Watch(disc, spool, read)
    assert [watch.step() for _ in range(3)] == [0, 0, COUNT]
    assert [event.code for _, event in spool.index.events()] == [f"{COUNT} named, 0 missing"]


@pytest.mark.parametrize(
    "evil", [rb"..\..\..\etc\pass1", rb"..\PT000000\AB0000", b"/etc/passwd/12345678"]
)
def test_ids_that_lead_out_of_the_folder_are_not_followed(disc, evil):
    known = rb"PT000000\ST000000\SE000000\IM000000"
    rewritten(disc, known, evil.ljust(len(known)))
    media = read_media(disc / "DICOMDIR")
    assert len(media.outside) == 1
    assert len(media.files) == COUNT - 1


def test_a_link_that_leads_out_of_the_folder_is_not_followed(disc, tmp_path):
    secret = dicom.minimal(tmp_path / "secret")
    victim = read_media(disc / "DICOMDIR").files[0]
    victim.unlink()
    victim.symlink_to(secret)
    media = read_media(disc / "DICOMDIR")
    assert (len(media.files), len(media.outside)) == (COUNT - 1, 1)


def test_a_disc_in_the_watched_folder_is_taken_whole_and_leaves_no_refusal(spool, disc, tmp_path):
    folder = tmp_path / "watch"
    folder.mkdir()
    watch = Watch(folder, spool)
    disc.rename(folder / "disc")
    growing = next((folder / "disc").rglob("IM000001"))
    whole = growing.read_bytes()
    growing.write_bytes(whole[:1000])
    assert watch.step() == 0
    growing.write_bytes(whole)
    assert watch.step() == 0  # something grew: nothing of the disc is taken
    assert watch.step() == COUNT
    assert watch.step() == 0
    assert (spool.usage().files, spool.asides()) == (COUNT, [])
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert left == {TAKEN, "README.TXT", "VIEWER.EXE"}
    codes = [event.code for _, event in spool.index.events() if event.kind == "medium"]
    assert codes == [f"{COUNT} named, 0 missing"]


def test_what_is_missing_of_a_disc_is_an_event(spool, disc, tmp_path):
    gone = read_media(disc / "DICOMDIR").files[2]
    gone.unlink()
    watch = Watch(disc, spool)
    watch.step()
    assert watch.step() == COUNT - 1
    codes = [event.code for _, event in spool.index.events() if event.kind == "medium"]
    assert codes == [f"{COUNT} named, 1 missing"]


def test_a_damaged_directory_is_refused_and_the_files_are_taken(spool, disc):
    directory = disc / "DICOMDIR"
    directory.write_bytes(directory.read_bytes()[:900])
    watch = Watch(disc, spool)
    watch.step()
    watch.step()
    assert spool.usage().files == COUNT
    assert "directory" in {aside.code for aside in spool.asides()}
    assert not directory.exists()


def test_registering_a_folder_names_what_its_directory_has_and_it_has_not(disc):
    gone = read_media(disc / "DICOMDIR").files[2]
    gone.unlink()
    reading = read_studies([disc])
    (study,) = reading.studies
    assert len(study.files) == COUNT - 1
    told = {u.code: u for u in reading.unreadable}
    assert told.keys() == {"directory", "foreign", "missing"}
    assert told["missing"].name == str(gone)
    os.rename(disc / "DICOMDIR", disc / "INDEX")  # no medium, but a stray file
    assert "missing" not in {u.code for u in read_studies([disc]).unreadable}


def imported(disc, config_file, status):
    code, out, errors = run("import", disc, "-c", config_file, "--json")
    assert code == status, (out, errors)
    return json.loads(out)


def test_a_disc_is_imported_by_command_and_stays_as_it_is(disc, config_file, tmp_path):
    before = sorted(disc.rglob("*"))
    told = imported(disc, config_file, 0)
    assert told == {"taken": COUNT, "known": 0, "refused": [], "missing": [], "outside": 0}
    assert sorted(disc.rglob("*")) == before
    assert imported(disc, config_file, 0)["known"] == COUNT
    spool = Spool(tmp_path / "spool", Quota(disk_reserve_bytes=1))
    assert (spool.usage().files, spool.asides()) == (COUNT, [])
    spool.close()


def test_an_import_names_what_is_missing_damaged_or_elsewhere(disc, config_file):
    files = read_media(disc / "DICOMDIR").files
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-7])
    rewritten(disc, rb"IM000002", rb"..      ")
    told = imported(disc, config_file, 1)
    assert told["taken"] == COUNT - 3
    assert (told["missing"], told["outside"]) == ([str(files[0].relative_to(disc))], 1)
    (refused,) = told["refused"]
    assert (refused["file"], refused["code"]) == (str(files[1].relative_to(disc)), "truncated")
    code, out, _ = run("import", disc, "-c", config_file)
    assert code == 1
    assert str(files[0].relative_to(disc)) in out


def test_a_folder_without_a_directory_is_imported_file_by_file(config_file, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(dicom.CT_FOLDER, folder)
    (folder / "notes.txt").write_text("no image")
    assert imported(folder, config_file, 0)["taken"] == COUNT
    assert run("import", tmp_path / "nothing", "-c", config_file)[0] == 2
