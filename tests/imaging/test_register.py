"""From files to operations: registered once, amended, resumed, and nothing told that may not be."""

import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consensus.wire import pack
from node.imaging.commitment import commit_file
from node.imaging.description import modality_of, region_of
from node.imaging.errors import VaultError
from node.imaging.limits import Limits
from node.imaging.reader import read_studies
from node.imaging.register import Action, Options, pending, prepare
from node.imaging.vault import State
from node.ledger.contracts.table import check_form
from node.ledger.contracts.vocabulary import MODALITIES, REGIONS
from node.ledger.limits import HEIGHT_MAX
from node.ledger.transaction import sign_transaction
from tests.imaging import dicom

ID = b"T" * 32


def study_folder(folder, count, **elements):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.full((4, 4), number, "<u2")
        dicom.minimal(folder / f"{number}", sop=f"1.2.3.4.{number}", pixels=pixels, **elements)
    return folder


def one(paths, vault, **options):
    (study,) = prepare(paths, vault, Options(**options)).studies
    return study


def finish(vault, prepared, transaction_id=ID):
    vault.mark_submitted(prepared.manifest, transaction_id, b"signed")
    vault.mark_final(prepared.manifest, transaction_id, 7)


def test_a_new_study_gives_one_register_operation_of_the_contracts_form(vault, tmp_path):
    folder = study_folder(tmp_path / "s", 3, Modality="CT", BodyPartExamined="Head")
    prepared = one([folder], vault)
    assert prepared.action is Action.REGISTER
    study_id, subject, root, modality, region, instances, size = prepared.operation.arguments
    assert prepared.operation.name == "study.register"
    assert (modality, region, instances, size) == ("CT", "head", 2, 0)
    assert (study_id, root) == (prepared.manifest.study_id, prepared.manifest.root)
    assert subject == vault.find_study("1.2.3").subject_id
    check_form([prepared.operation])
    assert vault.latest(study_id).state is State.PREPARED


def test_the_real_series_of_the_wheel_are_prepared_together(vault):
    preparation = prepare([dicom.FILES / "dicomdirtests"], vault)
    assert len(preparation.studies) == len(preparation.operations) >= 5
    check_form(preparation.operations)
    assert {refused.code for refused in preparation.unreadable} == {"directory", "foreign"}
    modalities = {operation.arguments[3] for operation in preparation.operations}
    assert modalities == {"CT", "MR", "CR"}


def test_a_study_of_500_slices_is_one_transaction_of_at_most_2_kilobytes(vault, tmp_path):
    source = dicom.minimal(tmp_path / "seed").read_bytes()
    folder = tmp_path / "big"
    folder.mkdir()
    for number in range(500):
        (folder / str(number)).write_bytes(source.replace(b"1.2.3.4.5\0", b"1.2.3.%03d\0" % number))
    preparation = prepare([folder], vault)
    assert len(preparation.studies[0].manifest.instances) == 500
    assert [len(pack((o.name, o.arguments))) < 200 for o in preparation.operations] == [True]
    key = Ed25519PrivateKey.generate()
    transaction = sign_transaction(
        key.sign,
        key.public_key().public_bytes_raw(),
        chain_id=bytes(32),
        institution="i" * 32,
        valid_until=HEIGHT_MAX,
        operations=tuple(preparation.operations),
        salt=bytes(16),
    )
    assert len(transaction.raw) <= 2_048


def test_nothing_of_the_files_stands_in_an_operation(vault, tmp_path):
    ds = dicom.loaded(dicom.FILES / "CT_small.dcm")
    preparation = prepare([dicom.FILES / "CT_small.dcm"], vault)
    encoded = b"".join(pack((o.name, o.arguments)) for o in preparation.operations)
    for element in ds:
        text = str(element.value).encode()
        allowed = element.keyword == "Modality" or len(text) < 4
        assert allowed or text not in encoded, element.keyword
    known = commit_file(dicom.FILES / "CT_small.dcm").commitment
    for digest in (known.file, known.core, known.private, known.pixels.chosen.digest):
        assert digest not in encoded


def test_preparing_again_before_submitting_gives_the_same_root(vault, tmp_path):
    folder = study_folder(tmp_path / "s", 2)
    assert one([folder], vault).operation == one([folder], vault).operation


def test_a_file_that_came_before_submitting_is_taken_into_the_first_version(vault, tmp_path):
    first = one([study_folder(tmp_path / "s", 2)], vault)
    second = one([study_folder(tmp_path / "s", 3)], vault)
    assert second.action is Action.REGISTER
    assert len(second.manifest.instances) == 3
    with pytest.raises(VaultError, match="another process"):
        vault.mark_submitted(first.manifest, ID, b"signed")


def test_a_crash_after_submitting_resumes_with_the_same_transaction(vault, tmp_path):
    folder = study_folder(tmp_path / "s", 2)
    prepared = one([folder], vault)
    vault.mark_submitted(prepared.manifest, ID, b"signed")
    again = one([folder], vault)
    assert (again.action, again.transaction_id, again.transaction) == (Action.RESUME, ID, b"signed")
    assert again.operation is None
    assert again.manifest == prepared.manifest
    assert pending(vault) == [again]
    vault.mark_final(again.manifest, ID, 7)
    assert one([folder], vault).action is Action.NOTHING
    assert pending(vault) == []


def test_the_same_files_again_are_nothing_to_do(vault, tmp_path):
    folder = study_folder(tmp_path / "s", 2)
    finish(vault, one([folder], vault))
    again = one([folder], vault)
    assert (again.action, again.operation, again.changed) == (Action.NOTHING, None, ())


def test_a_reencoded_copy_is_the_same_instance(vault, tmp_path):
    finish(vault, one([study_folder(tmp_path / "s", 1)], vault))
    copy = dicom.other_patient(
        dicom.implicit(tmp_path / "s" / "0", tmp_path / "copy"), tmp_path / "copy2"
    )
    assert one([copy], vault).action is Action.NOTHING


def test_late_instances_become_the_next_version(vault, tmp_path):
    first = one([study_folder(tmp_path / "s", 2)], vault)
    finish(vault, first)
    late = one([study_folder(tmp_path / "s", 4)], vault)
    assert (late.action, late.added) == (Action.AMEND, 2)
    manifest = late.manifest
    arguments = (manifest.study_id, 2, first.manifest.root, manifest.root, 2, 0)
    assert (late.operation.name, late.operation.arguments) == ("study.amend", arguments)
    check_form([late.operation])
    finish(vault, late, b"U" * 32)
    assert [v.state for v in vault.versions(manifest.study_id)] == [State.FINAL] * 2


def test_late_instances_alone_keep_those_registered_before(vault, tmp_path):
    finish(vault, one([study_folder(tmp_path / "s", 2)], vault))
    dicom.minimal(tmp_path / "late", sop="1.2.3.4.99")
    late = one([tmp_path / "late"], vault)
    assert len(late.manifest.instances) == 3
    assert one([tmp_path / "late"], vault).operation == late.operation


def test_changed_content_is_reported_and_left_out_unless_asked_for(vault, tmp_path):
    folder = study_folder(tmp_path / "s", 2)
    first = one([folder], vault)
    finish(vault, first)
    dicom.minimal(folder / "1", sop="1.2.3.4.1", SliceThickness="9")
    kept = one([folder], vault)
    assert (kept.action, kept.changed) == (Action.NOTHING, (str(folder / "1"),))
    replaced = one([folder], vault, replace_changed=True)
    assert (replaced.action, replaced.replaced) == (Action.AMEND, True)
    assert len(replaced.manifest.instances) == 2
    assert one([folder], vault, replace_changed=True).operation == replaced.operation


def test_another_encoding_succeeds_the_registered_one_only_if_asked_for(vault, tmp_path):
    folder = study_folder(tmp_path / "s", 2)
    first = one([folder], vault)
    finish(vault, first)
    dicom.implicit(folder / "1", folder / "1")
    assert one([folder], vault).action is Action.NOTHING
    again = one([folder], vault, replace_encoding=True)
    assert (again.action, again.changed, again.added) == (Action.AMEND, (), 0)
    assert len(again.manifest.instances) == 2
    files = {each.sop_uid: each.record.file for each in again.manifest.instances}
    assert files["1.2.3.4.1"] == commit_file(folder / "1").commitment.file
    assert one([folder], vault, replace_encoding=True).operation == again.operation
    finish(vault, again, b"U" * 32)
    assert one([folder], vault, replace_encoding=True).action is Action.NOTHING


def test_one_instance_twice_is_idempotent_and_two_contents_are_a_conflict(vault, tmp_path):
    folder = study_folder(tmp_path / "s", 2)
    (folder / "copy").write_bytes((folder / "0").read_bytes())
    dicom.implicit(folder / "1", folder / "other form")
    prepared = one([folder], vault)
    assert sorted(prepared.repeated) == [str(folder / "copy"), str(folder / "other form")]
    dicom.minimal(folder / "wrong", sop="1.2.3.4.1", SliceThickness="9")
    prepared = one([folder], vault)
    assert len(prepared.conflicts[0].names) == 3
    assert len(prepared.manifest.instances) == 1


def test_a_study_wholly_in_conflict_is_refused(vault, tmp_path):
    dicom.minimal(tmp_path / "a")
    dicom.minimal(tmp_path / "b", SliceThickness="9")
    prepared = one([tmp_path / "a", tmp_path / "b"], vault)
    assert prepared.action is Action.REFUSED
    assert "conflict" in prepared.refusal


def test_a_study_that_names_two_patients_is_refused(vault, tmp_path):
    folder = study_folder(tmp_path / "s", 1)
    dicom.minimal(folder / "x", sop="1.2.3.4.77", PatientID="P2")
    prepared = one([folder], vault)
    assert prepared.action is Action.REFUSED
    assert "2 patients" in prepared.refusal
    assert not re.search("P1|P2", prepared.refusal)


def test_studies_of_one_patient_share_the_subject_and_nameless_ones_do_not(vault, tmp_path):
    for number, patient in enumerate(["P1", "P1", "", ""]):
        dicom.minimal(tmp_path / f"{number}", study=f"1.9.{number}", PatientID=patient)
    files = [tmp_path / str(number) for number in range(4)]
    subjects = [o.arguments[1] for o in prepare(files, vault).operations]
    assert subjects[0] == subjects[1]
    assert len(set(subjects)) == 3


def test_unreadable_files_are_listed_and_the_others_go_on(vault, tmp_path):
    folder = study_folder(tmp_path / "s", 2)
    (folder / "notes.txt").write_text("hello")
    (folder / "cut.dcm").write_bytes((folder / "0").read_bytes()[:-5])
    preparation = prepare([folder], vault)
    assert len(preparation.studies[0].manifest.instances) == 2
    assert [(Path(u.name).name, u.code) for u in preparation.unreadable] == [
        ("cut.dcm", "truncated"),
        ("notes.txt", "foreign"),
    ]


def test_progress_counts_files_and_bytes(tmp_path):
    folder = study_folder(tmp_path / "s", 3)
    steps = []
    read_studies([folder], steps.append)
    assert [(s.files_done, s.files_total) for s in steps] == [(1, 3), (2, 3), (3, 3)]
    assert steps[-1].bytes_done == sum(p.stat().st_size for p in folder.iterdir())


def test_hashing_in_other_processes_gives_the_same(tmp_path):
    folder = study_folder(tmp_path / "s", 4)
    (folder / "bad").write_bytes(b"")
    with ProcessPoolExecutor(2) as pool:
        reading = read_studies([folder], mapper=pool.map)
    assert reading.studies == read_studies([folder]).studies
    assert [u.code for u in reading.unreadable] == ["empty"]


def test_too_many_files_and_missing_paths_are_said_at_once(tmp_path):
    folder = study_folder(tmp_path / "s", 3)
    with pytest.raises(ValueError, match="more than 2 files"):
        read_studies([folder], limits=Limits(files_max=2))
    with pytest.raises(ValueError, match="nothing at"):
        read_studies([tmp_path / "none"])


def test_the_same_file_named_twice_is_read_once(tmp_path):
    folder = study_folder(tmp_path / "s", 1)
    reading = read_studies([folder, folder / "0", folder])
    assert reading.studies[0].repeated == []


@pytest.mark.parametrize(
    ("modalities", "parts", "modality", "region"),
    [
        (["CT", "CT", "SR"], ["HEAD", "HEAD", ""], "CT", "head"),
        (["SR", "SR", "MR"], ["", "", "Knee"], "MR", "lower_limb"),
        (["SR"], [""], "SR", "unknown"),
        (["Miller"], ["MILLER JOHN"], "OT", "other"),
        ([""], ["C-SPINE"], "OT", "spine"),
        (["MR", "CT"], ["WHOLE BODY", "whole_body"], "CT", "whole_body"),
    ],
)
def test_words_come_from_fixed_lists_only(modalities, parts, modality, region, tmp_path):
    files = []
    for number, (word, part) in enumerate(zip(modalities, parts, strict=True)):
        path = tmp_path / str(number)
        files.append(commit_file(dicom.minimal(path, Modality=word, BodyPartExamined=part)))
    assert (modality_of(files), region_of(files)) == (modality, region)
    assert modality in MODALITIES
    assert region in REGIONS
