"""What `verify` says, in words, of files left alone, rewritten, altered, lost or added."""

import json
import shutil

import numpy as np
import pytest

from node.imaging.commitment import commit_file
from node.imaging.manifest import first_version
from node.imaging.register import Options, prepare
from node.imaging.verify import (
    StudyStatus,
    Verdict,
    element_name,
    registered_in,
    verify,
    verify_studies,
)
from tests.imaging import dicom
from tests.imaging.test_register import finish, one, study_folder


@pytest.fixture
def registered(vault, tmp_path):
    """A CT study of real slices with its manifest: (folder, manifest)."""
    folder = tmp_path / "ct"
    folder.mkdir()
    for path in sorted((dicom.CT_FOLDER / "CT5N").iterdir()):
        shutil.copy(path, folder)
    return folder, one([folder], vault).manifest


def single(path, manifest):
    """Return what is said of the file at `path`."""
    (study,) = verify([path], manifest, manifest.root).studies
    (instance,) = [i for i in study.instances if i.verdict is not Verdict.MISSING]
    return instance


def altered(source, vault, tmp_path, change):
    """Return what is said of `source` after `change` was made to its data set."""
    manifest = one([source], vault).manifest
    ds = dicom.loaded(source)
    change(ds)
    return single(dicom.save(ds, tmp_path / "altered.dcm"), manifest)


def test_untouched_files_are_the_same_files(registered):
    folder, manifest = registered
    report = verify([folder], manifest, manifest.root)
    assert report.intact
    (study,) = report.studies
    assert study.status is StudyStatus.INTACT
    assert study.count(Verdict.SAME_FILE) == len(manifest.instances) == 5
    assert {i.sentence for i in study.instances} == {"same file"}


@pytest.mark.parametrize("path", dicom.readable(), ids=lambda path: path.name)
def test_every_shipped_file_that_is_of_a_study_verifies(path, vault):
    preparation = prepare([path], vault)
    for prepared in preparation.studies:
        report = verify([path], prepared.manifest, prepared.manifest.root)
        assert report.intact
    assert {refused.code for refused in preparation.unreadable} <= {"no_uid"}


@pytest.mark.parametrize("rewrite", dicom.REWRITES)
def test_a_rewrite_is_said_to_be_one(rewrite, vault, tmp_path):
    source = dicom.FILES / "MR_small.dcm"
    manifest = one([source], vault).manifest
    copy = rewrite(source, tmp_path / "copy")
    said = single(copy, manifest)
    if copy.read_bytes() == source.read_bytes():  # pydicom writes as this file was written
        assert said.verdict is Verdict.SAME_FILE
        return
    imported = rewrite in (dicom.other_patient, dicom.other_institution)
    assert said.verdict is (Verdict.IMPORTED if imported else Verdict.REENCODED), said.sentence
    if rewrite is dicom.other_patient:
        assert said.sentence.startswith("patient data changed on import, image intact: patient's")


def test_one_pixel_bit_is_named(vault, tmp_path):
    def change(ds):
        pixels = bytearray(ds.PixelData)
        pixels[100] ^= 1
        ds.PixelData = bytes(pixels)

    assert (
        altered(dicom.FILES / "CT_small.dcm", vault, tmp_path, change).sentence == "altered: pixels"
    )


def test_one_pixel_bit_of_many_frames_is_named_by_its_frame(vault, tmp_path):
    def change(ds):
        pixels = bytearray(ds.PixelData)
        pixels[2 * len(pixels) // 15 + 3] ^= 128
        ds.PixelData = bytes(pixels)

    said = altered(dicom.FILES / "rtdose.dcm", vault, tmp_path, change)
    assert said.sentence == "altered: pixels of frame 3"


def test_a_changed_slice_thickness_is_named(vault, tmp_path):
    def change(ds):
        ds.SliceThickness = "4.0"

    said = altered(dicom.FILES / "CT_small.dcm", vault, tmp_path, change)
    assert said.sentence == "altered: slice thickness"


def test_a_changed_removed_and_added_element_are_named(vault, tmp_path):
    def change(ds):
        ds[0x00431028].value = b"changed!"
        del ds.KVP
        ds.FrameComments = "added"

    said = altered(dicom.FILES / "CT_small.dcm", vault, tmp_path, change)
    assert said.details == (
        "kvp (removed)",
        "frame comments (added)",
        "private element (0043,1028)",
    )


def test_a_changed_private_element_alone_is_named_and_the_study_is_not_intact(vault, tmp_path):
    source = dicom.FILES / "CT_small.dcm"
    manifest = one([source], vault).manifest
    ds = dicom.loaded(source)
    ds[0x00431028].value = b"changed!"
    (study,) = verify([dicom.save(ds, tmp_path / "a")], manifest, manifest.root).studies
    said = "image intact, private elements changed"
    assert study.instances[0].sentence == f"{said}: private element (0043,1028)"
    assert study.status is StudyStatus.PRIVATE


def test_more_frames_or_other_rows_are_caught(vault, tmp_path):
    source = dicom.minimal(tmp_path / "a", pixels=np.zeros((2, 4, 4), "<u2"))
    manifest = one([source], vault).manifest
    dicom.minimal(tmp_path / "b", pixels=np.zeros((3, 4, 4), "<u2"))
    dicom.minimal(tmp_path / "c", pixels=np.zeros((2, 2, 8), "<u2"))
    assert single(tmp_path / "b", manifest).details == ("number of frames", "pixels")
    assert set(single(tmp_path / "c", manifest).details) >= {"rows", "columns"}


def test_missing_extra_and_altered_instances_are_told_apart(registered, tmp_path):
    folder, manifest = registered
    files = sorted(folder.iterdir())
    files[0].unlink()
    shutil.copy(dicom.CT_FOLDER / "CT2N" / "6293", folder / "extra")
    report = verify([folder], manifest, manifest.root)
    (study,) = report.studies
    assert study.status is StudyStatus.INCOMPLETE
    assert study.count(Verdict.MISSING) == study.count(Verdict.EXTRA) == 1
    missing = next(i for i in study.instances if i.verdict is Verdict.MISSING)
    assert missing.label.startswith("series 5, image")
    ds = dicom.loaded(files[1])
    ds.SliceThickness = "9"
    dicom.save(ds, files[1])
    (study,) = verify([folder], manifest, manifest.root).studies
    assert study.status is StudyStatus.ALTERED
    (bad,) = [i for i in study.instances if i.verdict is Verdict.ALTERED]
    assert (bad.name, bad.sentence) == (str(files[1]), "altered: slice thickness")


def test_files_of_different_content_under_one_uid_are_not_intact(registered):
    folder, manifest = registered
    ds = dicom.loaded(sorted(folder.iterdir())[0])
    ds.SliceThickness = "9"
    dicom.save(ds, folder / "second")
    (study,) = verify([folder], manifest, manifest.root).studies
    assert study.status is StudyStatus.ALTERED
    assert study.count(Verdict.CONFLICT) == 2
    assert study.count(Verdict.MISSING) == 0


def test_a_study_that_the_vault_or_the_chain_does_not_know_is_said_so(registered, vault):
    folder, manifest = registered
    (study,) = verify_studies([folder], registered_in(vault, lambda _: None)).studies
    assert study.status is StudyStatus.NOT_REGISTERED
    (study,) = verify([folder], manifest, bytes(32)).studies
    assert study.status is StudyStatus.WRONG_MANIFEST
    report = verify([dicom.FILES / "CT_small.dcm"], manifest, manifest.root)
    assert [s.status for s in report.studies] == [StudyStatus.UNKNOWN, StudyStatus.INCOMPLETE]
    assert not report.intact
    unknown = verify_studies([dicom.FILES / "CT_small.dcm"], lambda _: ())
    assert unknown.studies[0].status is StudyStatus.UNKNOWN


def test_the_version_on_the_chain_is_the_one_compared_with(vault, tmp_path):
    folder = study_folder(tmp_path / "s", 2)
    first = one([folder], vault)
    finish(vault, first)
    second = one([study_folder(folder, 3)], vault)
    find = registered_in(vault, lambda _: first.manifest.root)
    (study,) = verify_studies([folder], find).studies
    assert (study.version, study.status) == (1, StudyStatus.INCOMPLETE)
    find = registered_in(vault, lambda _: second.manifest.root)
    assert verify_studies([folder], find).intact


def test_a_manifest_altered_in_the_vault_does_not_pass(registered):
    """The chain vouches for the manifest, or else whoever alters both would not be found out."""
    folder, manifest = registered
    file = sorted(folder.iterdir())[0]
    ds = dicom.loaded(file)
    ds.SliceThickness = "9"
    dicom.save(ds, file)
    files = map(commit_file, sorted(folder.iterdir()))
    forged = first_version(manifest.study_id, manifest.salt, files)
    report = verify([folder], forged, manifest.root)
    assert not report.intact


def test_a_lossy_copy_of_a_lossless_image_is_altered(vault, tmp_path):
    source = dicom.minimal(tmp_path / "a", pixels=np.zeros((256, 1024), "<u2"))
    manifest = one([source], vault).manifest
    ds, lossy = dicom.loaded(source), dicom.loaded(dicom.FILES / "JPEG-lossy.dcm")
    ds.PixelData = lossy.PixelData
    ds["PixelData"].is_undefined_length = True
    ds["PixelData"].VR = "OB"
    said = single(dicom.save(ds, tmp_path / "b", lossy.file_meta.TransferSyntaxUID), manifest)
    assert said.sentence == "altered: pixels"


def test_what_cannot_be_decoded_here_is_undecided_and_never_intact(vault, tmp_path, no_decoders):
    known = one([dicom.FILES / "MR_small.dcm"], vault).manifest
    ds = dicom.loaded(dicom.FILES / "MR_small.dcm")
    other = dicom.loaded(dicom.FILES / "MR_small_jpeg_ls_lossless.dcm")
    ds.PixelData = other.PixelData
    ds["PixelData"].is_undefined_length = True
    ds["PixelData"].VR = "OB"
    path = dicom.save(ds, tmp_path / "a", other.file_meta.TransferSyntaxUID)
    assert single(path, known).verdict is Verdict.UNDECIDED
    report = verify([path], known, known.root)
    assert report.studies[0].status is StudyStatus.UNDECIDED
    assert not report.intact
    lossy = one([dicom.FILES / "JPEG2000.dcm"], vault).manifest
    ds = dicom.loaded(dicom.FILES / "JPEG2000.dcm")
    ds.PixelData = bytes(ds.Rows * ds.Columns * 2)
    ds["PixelData"].is_undefined_length = False
    said = single(dicom.save(ds, tmp_path / "b", "1.2.840.10008.1.2.1"), lossy)
    assert said.verdict is Verdict.UNDECIDED


def test_a_damaged_file_makes_the_report_not_intact(registered):
    folder, manifest = registered
    file = sorted(folder.iterdir())[0]
    file.write_bytes(file.read_bytes()[:-20])
    report = verify([folder], manifest, manifest.root)
    assert not report.intact
    assert [u.code for u in report.unreadable] == ["truncated"]
    (folder / "notes.txt").write_text("hello")
    assert len(verify([folder], manifest, manifest.root).unreadable) == 2


def test_an_empty_folder_is_not_intact(registered, tmp_path):
    (tmp_path / "empty").mkdir()
    _, manifest = registered
    (study,) = verify([tmp_path / "empty"], manifest, manifest.root).studies
    assert study.count(Verdict.MISSING) == 5


def test_the_machine_form_holds_no_value_of_a_data_set(vault, tmp_path):
    source = dicom.FILES / "CT_small.dcm"
    manifest = one([source], vault).manifest
    copy = dicom.other_patient(source, tmp_path / "copy.dcm")
    ds = dicom.loaded(copy)
    ds.SliceThickness = "9.875"
    report = verify([dicom.save(ds, copy)], manifest, manifest.root)
    text = json.dumps(report.to_plain())
    for data in (ds, dicom.loaded(source)):
        for element in data:
            value = str(element.value)
            assert len(value) < 6 or value not in text, element.keyword


def test_many_changed_elements_are_summed_up(vault, tmp_path):
    def change(ds):
        for element in list(ds):
            if element.tag.group == 0x28 or element.tag.is_private:
                continue
            if element.VR in ("DS", "LO", "SH"):
                element.value = "7"

    said = altered(dicom.FILES / "CT_small.dcm", vault, tmp_path, change)
    assert said.verdict is Verdict.ALTERED
    assert len(said.details) <= 21


def test_options_have_bounds_by_default():
    assert Options().replace_changed is False
    assert Options().limits.file_bytes_max < 2**40


def test_element_names_are_the_dictionarys():
    assert element_name(0x00180050) == "slice thickness"
    assert element_name(0x00091001) == "private element (0009,1001)"
    assert element_name(0x00189FFE) == "element (0018,9ffe)"
