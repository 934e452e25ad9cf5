"""`study`: registered once whatever happens, verified in words, found by everybody."""

import asyncio
import shutil

import pytest

from node import studies
from node.cli import registrar
from node.cli.context import Desk
from node.cli.demo.material import alter_pixel
from node.cli.registrar import opened
from node.imaging.register import prepare
from tests.cli.conftest import asked, executed, run
from tests.imaging import dicom


def registered(*paths, config, status=0, options=()):
    return asked("study", "register", *paths, "-c", config, *options, status=status)


def one(answer):
    (study,) = answer["studies"]
    return study


def test_a_study_is_registered_verified_and_shown_everywhere(new_study, north, south):
    folder = new_study(3)
    study = one(registered(folder, config=north, options=["--wait", "sealed"]))
    assert (study["outcome"], study["version"], study["instances"]) == ("registered", 1, 3)
    report = asked("study", "verify", folder, "-c", north)
    assert report["intact"]
    assert {i["verdict"] for i in report["studies"][0]["instances"]} == {"same file"}
    for config in (north, south):
        executed(config, study["height"])
        shown = asked("study", "show", study["study_id"], "-c", config)
        assert shown["summary"]["custodian"] == "north"
        assert shown["summary"]["root"] == study["root"]
        assert (shown["summary"]["modality"], shown["summary"]["region"]) == ("CT", "head")


def test_registering_twice_does_nothing(new_study, north):
    folder = new_study()
    first = one(registered(folder, config=north))
    again = one(registered(folder, config=north))
    assert (again["outcome"], again["study_id"]) == ("unchanged", first["study_id"])
    assert again["transaction_id"] is None
    assert "unchanged" in run("study", "register", folder, "-c", north).words


def test_late_instances_make_the_next_version(new_study, north, tmp_path):
    folder = new_study(3)
    late = folder / "2.dcm"
    aside = late.rename(tmp_path / "late")
    first = one(registered(folder, config=north))
    aside.rename(late)
    second = one(registered(folder, config=north))
    assert (second["outcome"], second["version"], second["added"]) == ("amended", 2, 1)
    shown = asked("study", "show", first["study_id"], "-c", north)
    assert [v["version"] for v in shown["versions"]] == [2, 1]


def test_a_changed_file_is_told_and_replaces_only_when_asked(new_study, north):
    folder = new_study(2)
    registered(folder, config=north)
    alter_pixel(folder / "0.dcm")
    told = one(registered(folder, config=north, status=1))
    assert (told["outcome"], told["changed"]) == ("unchanged", [str(folder / "0.dcm")])
    said = run("study", "register", folder, "-c", north)
    assert "differs from what was registered" in said.words
    new = one(registered(folder, config=north, options=["--replace-changed"]))
    assert (new["outcome"], new["version"], new["is_replaced"]) == ("amended", 2, True)


def test_one_altered_pixel_is_named(new_study, north, tmp_path):
    folder = new_study(3)
    registered(folder, config=north)
    copy = shutil.copytree(folder, tmp_path / "copy")
    alter_pixel(copy / "1.dcm")
    answer = run("study", "verify", copy, "-c", north)
    assert answer.status == 1
    assert "altered: pixels" in answer.words
    assert "1.dcm" in answer.words
    report = asked("study", "verify", copy, "-c", north, status=1)
    verdicts = {i["file"][-5:]: i["verdict"] for i in report["studies"][0]["instances"]}
    assert verdicts == {"0.dcm": "same file", "1.dcm": "altered", "2.dcm": "same file"}


def test_many_files_are_read_by_several_processes_with_one_result(new_study, north, monkeypatch):
    folder = new_study(4)
    first = one(registered(folder, config=north))
    monkeypatch.setattr(registrar, "FILES_PER_PROCESS", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    again = one(registered(folder, config=north, options=["--jobs", 2]))
    assert (again["outcome"], again["study_id"]) == ("unchanged", first["study_id"])
    assert asked("study", "verify", folder, "--jobs", 2, "-c", north)["intact"]


def test_a_missing_and_an_extra_instance_are_not_intact(new_study, north, tmp_path):
    folder = new_study(3)
    registered(folder, config=north)
    (folder / "2.dcm").unlink()
    answer = run("study", "verify", folder, "-c", north)
    assert answer.status == 1
    assert "missing" in answer.words


def test_a_study_that_nobody_registered_is_unknown(new_study, north):
    answer = run("study", "verify", new_study(), "-c", north)
    assert answer.status == 1
    assert "unknown" in answer.words


def test_another_hospital_does_not_know_whose_files_they_are(new_study, north, south):
    folder = new_study()
    registered(folder, config=north)
    assert asked("study", "verify", folder, "-c", south, status=1)["intact"] is False


def test_what_is_not_dicom_is_left_out_with_a_word(new_study, north):
    folder = new_study()
    (folder / "notes.txt").write_text("not an image")
    assert one(registered(folder, config=north))["outcome"] == "registered"
    assert "1 other files" in run("study", "verify", folder, "-c", north).words


def test_a_damaged_instance_is_never_passed_over_in_silence(new_study, north):
    folder = new_study()
    whole = (folder / "0.dcm").read_bytes()
    (folder / "broken.dcm").write_bytes(whole[:-10])
    answer = registered(folder, config=north, status=1)
    assert one(answer)["outcome"] == "registered"
    assert [(f["file"], f["code"]) for f in answer["unreadable"]] == [
        (str(folder / "broken.dcm"), "truncated")
    ]
    assert "broken.dcm" in run("study", "verify", folder, "-c", north).words


@pytest.mark.parametrize("command", ["register", "verify"])
def test_paths_that_hold_no_study_are_exit_status_1(command, north, tmp_path):
    for content in (b"", b"text", bytes(128) + b"DICM", bytes(200)):
        file = tmp_path / "file"
        file.write_bytes(content)
        answer = run("study", command, file, "-c", north)
        assert answer.status == 1
        assert "no DICOM study" in answer.words


@pytest.mark.parametrize("command", ["register", "verify"])
def test_a_path_that_is_not_there_is_wrong_usage(command, north, tmp_path):
    answer = run("study", command, tmp_path / "nowhere", "-c", north)
    assert answer.status == 2
    assert "does not exist" in answer.words


def test_real_series_are_registered_together(north):
    tree = dicom.FILES / "dicomdirtests"
    paths = [tree / name for name in ("77654033", "98892001", "98892003")]
    answer = registered(*paths, config=north)
    assert len(answer["studies"]) == 6
    assert {study["outcome"] for study in answer["studies"]} <= {"registered", "unchanged"}
    assert asked("study", "verify", *paths, "-c", north)["intact"]


def interrupted(desk, folder, *, is_sent):
    """Do what `register` does, and stop between the vault and the chain."""

    async def begin():
        async with desk.client() as client, opened(desk) as (vault, signer):
            (prepared,) = prepare([folder], vault).studies
            head = await client.head()
            transaction_id, raw = signer.transaction([prepared.operation], head.height)
            vault.mark_submitted(prepared.manifest, transaction_id, raw)
            if is_sent:
                await client.submit(raw)
            return transaction_id.hex()

    return asyncio.run(begin())


@pytest.mark.parametrize("is_sent", [False, True], ids=["before sending", "after sending"])
def test_registering_goes_on_where_it_was_killed(is_sent, new_study, north):
    folder = new_study()
    transaction_id = interrupted(Desk.open(north), folder, is_sent=is_sent)
    study = one(registered(folder, config=north))
    assert (study["outcome"], study["transaction_id"]) == ("registered", transaction_id)
    assert one(registered(folder, config=north))["outcome"] == "unchanged"


def test_a_transaction_that_expired_unsent_is_signed_anew(new_study, north, monkeypatch):
    folder = new_study()
    with monkeypatch.context() as patched:
        patched.setattr(studies, "VALIDITY_HEIGHTS", 1)
        old = interrupted(Desk.open(north), folder, is_sent=False)
        for _ in range(2):  # the chain goes on, and the transaction's time is over
            registered(new_study(), config=north)
    study = one(registered(folder, config=north))
    assert study["outcome"] == "registered"
    assert study["transaction_id"] != old
    assert asked("study", "verify", folder, "-c", north)["intact"]


def test_search_finds_by_every_field_and_goes_page_by_page(new_study, north, south):
    # South is asked, which has executed the first before it submits the second.
    first = one(registered(new_study(Modality="MG", BodyPartExamined="BREAST"), config=north))
    second = one(registered(new_study(Modality="MG", BodyPartExamined="BREAST"), config=south))
    height = max(first["height"], second["height"])
    mine = ("study", "search", "--modality", "MG", "--region", "breast", "-c", south)
    found = asked(*mine)["studies"]
    assert [s["id"] for s in found] == [second["study_id"], first["study_id"]]
    page = asked(*mine, "--limit", 1)
    assert [s["id"] for s in page["studies"]] == [second["study_id"]]
    rest = asked(*mine, "--limit", 1, "--cursor", page["next_cursor"])
    assert [s["id"] for s in rest["studies"]] == [first["study_id"]]
    assert [s["id"] for s in asked(*mine, "--custodian", "north")["studies"]] == [first["study_id"]]
    subject = found[0]["subject_id"]
    assert [s["id"] for s in asked(*mine, "--subject", subject)["studies"]] == [second["study_id"]]
    assert asked(*mine, "--status", "retired")["studies"] == []
    assert asked(*mine, "--from", height + 1)["studies"] == []
    assert "No such study" in run(*mine, "--to", 0).words


def test_two_studies_of_one_patient_have_one_pseudonym(new_study, north):
    folders = [new_study(patient="one and the same") for _ in range(2)]
    ids = [s["study_id"] for s in registered(*folders, config=north)["studies"]]
    subjects = {asked("study", "show", id, "-c", north)["summary"]["subject_id"] for id in ids}
    assert len(subjects) == 1


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--modality", "XX"], 2, "modality"),
        (["--cursor", "nonsense"], 2, "cursor"),
        (["--limit", "0"], 2, "--limit"),
        (["--subject", "12"], 2, "32 hexadecimal digits"),
        (["--status", "gone"], 2, "--status"),
    ],
)
def test_a_question_without_sense_is_wrong_usage(options, status, words, north):
    answer = run("study", "search", *options, "-c", north)
    assert answer.status == status
    assert words in answer.words


def test_an_unknown_study_is_exit_status_1(north):
    answer = run("study", "show", "00" * 16, "-c", north)
    assert answer.status == 1
    assert "no study with this id" in answer.words


def test_no_identifier_reaches_the_terminal_or_the_chain(new_study, north):
    folder = new_study(patient="Mustermann^Erika")
    study = one(registered(folder, config=north))
    said = [
        run("study", "register", folder, "-c", north),
        run("study", "verify", folder, "-c", north),
        run("study", "show", study["study_id"], "-c", north),
        run("tx", study["transaction_id"], "-c", north),
    ]
    assert not any("Mustermann" in answer.words or "2.25." in answer.words for answer in said)
