"""`proof`: made by a node, verified with none, and checked against files."""

import json
import shutil

import pytest

from node.cli.demo.material import alter_pixel
from node.cli.failures import Failure
from node.cli.proof_make import _study_id
from node.imaging import vault_keys
from node.imaging.reader import read_studies
from node.imaging.vault import create_vault
from node.ledger import genesis_file
from node.provision import GENESIS
from tests.cli.conftest import asked, executed, python, run
from tests.cli.test_documents import documented
from tests.imaging import dicom
from tests.ledger.test_proofs import PROOFS
from tests.vectors import make_proofs


@pytest.fixture
def desk(tmp_path):
    """A folder with the golden proof files and their genesis, as an auditor has it."""
    genesis_file.save(make_proofs.GENESIS, tmp_path / "genesis.json")
    for name, proof in PROOFS.items():
        (tmp_path / name).write_bytes(proof)
    return tmp_path


def verified(path, genesis, *options, status=0):
    return asked("proof", "verify", path, "--genesis", genesis, *options, status=status)


@pytest.mark.parametrize("name", PROOFS)
def test_every_proof_is_verified_from_the_file_and_the_genesis_alone(desk, name):
    answer = verified(desk / name, desk / "genesis.json")
    assert answer["is_proved"]
    assert answer["statement"]
    assert (answer["quorum"], len(answer["sealed_by"])) == (3, 3)
    words = run("proof", "verify", desk / name, "-g", desk / "genesis.json").words
    assert "Proved:" in words
    assert f"height {answer['height']}" in words
    assert "a quorum" in words


def test_it_says_in_plain_words_what_is_proved(desk):
    def words(name):
        return run("proof", "verify", desk / name, "-g", desk / "genesis.json").words

    assert "its state is granted, decided by rule (north/treatment)" in words("grant")
    assert "validators changed at height 68, at height 132" in words("grant")
    assert "never asked for study" in words("absence")
    assert "2026-01-01 00:00:01.000 UTC" in words("time")


def test_the_answer_for_programs_has_the_record(desk):
    (row,) = verified(desk / "grant", desk / "genesis.json")["rows"]
    assert (row["subject"], row["is_there"]) == ("request", True)
    assert (row["value"]["state"], row["value"]["purpose"]) == ("granted", "TREAT")
    (row,) = verified(desk / "no consent", desk / "genesis.json")["rows"]
    assert (row["subject"], row["is_there"], row["value"]) == ("consent", False, None)
    used = verified(desk / "access", desk / "genesis.json")["transaction"]
    assert (used["institution"], used["code"]) == ("east", "ok")
    assert used["events"][0]["name"] == "access_used"


def test_what_proves_nothing_is_told_with_the_reason(desk):
    proof = (desk / "grant").read_bytes()
    (desk / "damaged").write_bytes(proof[:100] + b"?" + proof[101:])
    (desk / "cut").write_bytes(proof[:-1])
    (desk / "empty").write_bytes(b"")
    for name in ("damaged", "cut", "empty", "genesis.json"):
        answer = run("proof", "verify", desk / name, "--genesis", desk / "genesis.json")
        assert answer.status == 1
        assert "proves nothing" in answer.words
    error = verified(desk / "damaged", desk / "genesis.json", status=1)["error"]
    assert "damaged" in error["lines"][0]


def test_the_genesis_of_another_network_or_none_is_told(desk, net, north):
    other = north.parent.parent / GENESIS
    answer = run("proof", "verify", desk / "grant", "--genesis", other)
    assert (answer.status, "compare which network" in answer.words) == (1, True)
    answer = run("proof", "verify", desk / "grant", "--genesis", desk / "grant")
    assert (answer.status, "genesis cannot be used" in answer.words) == (2, True)


def test_the_reference_names_what_is_answered(desk):
    answer = verified(desk / "grant", desk / "genesis.json")
    assert set(answer) == documented("proof verify")


def test_files_need_a_proof_about_instances(desk):
    answer = run("proof", "verify", desk / "grant", "-g", desk / "genesis.json", "--files", desk)
    assert (answer.status, "proof make instance" in answer.words) == (2, True)


def test_verifying_loads_nothing_of_a_node(desk):
    program = (
        "import sys; from node.cli.main import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print(*sorted(sys.modules))"
    )
    done = python(
        "-c", program, "proof", "verify", desk / "grant", "--genesis", desk / "genesis.json"
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.splitlines()[-1].split()
    assert "node.ledger.proofs.verify" in loaded
    foreign = ("plyvel", "aiohttp", "pydicom", "node.daemon", "node.network", "node.rpc")
    assert not [name for name in loaded if name.startswith(foreign)]


# With a node.


@pytest.fixture
def made(north, tmp_path):
    """Let the node of north make a proof, and verify it."""

    def make(kind, *words, status=0, options=()):
        output = tmp_path / f"{kind}.proof"
        answer = asked(
            "proof", "make", kind, *words, "-c", north, "-o", output, *options, status=status
        )
        if status:
            return answer
        return output, verified(output, north.parent.parent / GENESIS)

    return make


@pytest.fixture
def registered(new_study, north):
    """A registered study: its folder, and what was answered."""
    folder = new_study(3)
    answer = asked("study", "register", folder, "-c", north)
    return folder, answer["studies"][0]


def test_a_node_proves_what_it_holds(made, registered, north):
    _, study = registered
    study_id = study["study_id"]
    _, proved = made("study", study_id)
    assert proved["rows"][0]["value"]["root"] == study["root"]
    _, proved = made("version", study_id, study["root"])
    assert [row["subject"] for row in proved["rows"]] == ["root", "study"]
    _, proved = made("transaction", study["transaction_id"])
    assert (proved["height"], proved["transaction"]["code"]) == (study["height"], "ok")
    _, proved = made("time", study["height"])
    assert proved["height"] == study["height"]
    _, proved = made("absence", "asked", study_id, "south")
    assert "south never asked" in proved["statement"][0]
    _, proved = made("consent", "north", "00" * 16)
    assert not proved["rows"][0]["is_there"]
    _, proved = made("grant", "11" * 16)
    assert "was never made" in proved["statement"][0]


def test_proofs_are_made_while_the_chain_goes_on(made, new_study, north):
    for _ in range(3):
        folder = new_study(1)
        study = asked("study", "register", folder, "-c", north)["studies"][0]
        _, proved = made("study", study["study_id"], options=["--force"])
        assert proved["sealed_height"] >= proved["height"] >= study["height"]


def test_what_is_not_so_is_refused_with_a_sentence(made, registered):
    _, study = registered
    refused = made("study", "22" * 16, status=1)
    assert "no such study" in " ".join(refused["error"]["lines"])
    refused = made("absence", "study", study["study_id"], status=1)
    assert "it is there" in " ".join(refused["error"]["lines"])
    refused = made("access", study["transaction_id"], status=1)
    assert "about study.register only" in " ".join(refused["error"]["lines"])
    for words in (("study",), ("everything",), ("time", "soon"), ("instance",)):
        assert made(*words, status=2)["error"]["lines"]


def test_a_file_is_named_after_what_it_proves_and_never_overwritten(
    registered, north, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _, study = registered
    answer = run("proof", "make", "study", study["study_id"], "-c", north)
    name = f"study-{study['study_id'][:16]}.proof"
    assert answer.status == 0
    assert (tmp_path / name).is_file()
    assert f"radledger proof verify {name}" in answer.words
    again = run("proof", "make", "study", study["study_id"], "-c", north)
    assert (again.status, "--force" in again.words) == (2, True)
    assert run("proof", "make", "study", study["study_id"], "-c", north, "--force").status == 0


def test_one_instance_is_proved_against_its_file(made, registered, north, tmp_path):
    folder, _ = registered
    proof, proved = made("instance", folder / "1.dcm")
    assert (proved["kind"], proved["instances"]) == ("instance", 1)
    genesis = north.parent.parent / GENESIS
    one = verified(proof, genesis, "--files", folder / "1.dcm")["files"]
    assert (one["is_intact"], one["instances"][0]["verdict"]) == (True, "same file")
    among = verified(proof, genesis, "--files", folder)["files"]
    assert (among["is_intact"], len(among["instances"])) == (True, 3)
    other = verified(proof, genesis, "--files", folder / "0.dcm", status=1)["files"]
    assert (other["is_intact"], other["missing"]) == (False, 1)
    alter_pixel(folder / "1.dcm")
    altered = run("proof", "verify", proof, "-g", genesis, "--files", folder / "1.dcm")
    assert (altered.status, "altered: pixels" in altered.words) == (1, True)
    assert (
        "not as it was registered"
        in run(
            "proof", "make", "instance", folder / "1.dcm", "-c", north, "-o", tmp_path / "x"
        ).words
    )
    assert not (tmp_path / "x").exists()


def test_a_whole_study_is_proved_against_its_folder(made, registered, north, tmp_path):
    folder, study = registered
    proof, proved = made("manifest", folder)
    assert (proved["kind"], proved["instances"]) == ("manifest", 3)
    genesis = north.parent.parent / GENESIS
    assert verified(proof, genesis, "--files", folder)["files"]["is_intact"]
    by_id, _ = made("manifest", study["study_id"], options=["--force"])
    words = run("proof", "verify", by_id, "-g", genesis, "--files", folder).words
    assert "none is missing" in words

    short = shutil.copytree(folder, tmp_path / "short")
    (short / "2.dcm").unlink()
    report = verified(proof, genesis, "--files", short, status=1)["files"]
    assert (report["missing"], report["is_intact"]) == (1, False)
    more = shutil.copytree(folder, tmp_path / "more")
    dicom.minimal(more / "stranger.dcm", sop="2.25.7", study="2.25.8")
    report = verified(proof, genesis, "--files", more, status=1)["files"]
    assert [i["verdict"] for i in report["instances"]].count("extra") == 1
    rewritten = shutil.copytree(folder, tmp_path / "rewritten")
    data_set = dicom.pydicom.dcmread(rewritten / "0.dcm")
    data_set.PatientName = "Somebody^Else"
    data_set.save_as(rewritten / "0.dcm")
    report = verified(proof, genesis, "--files", rewritten)["files"]
    assert report["is_intact"]
    assert "patient data changed on import" in json.dumps(report)


def test_a_study_that_is_not_registered_is_told(made, new_study):
    folder = new_study(1)
    for kind, path in (("instance", folder / "0.dcm"), ("manifest", folder)):
        refused = made(kind, path, status=1)
        assert "register it first" in refused["error"]["lines"][0]
    assert made("manifest", "33" * 16, status=1)["error"]["lines"]
    assert made("manifest", folder.parent / "nothing", status=2)["error"]["lines"]


def test_another_node_proves_the_same(registered, south, tmp_path):
    _, study = registered
    executed(south, study["height"])
    output = tmp_path / "proof"
    run("proof", "make", "study", study["study_id"], "-c", south, "-o", output)
    assert verified(output, south.parent.parent / GENESIS)["rows"][0]["is_there"]


def test_files_of_several_parts_are_to_be_named_by_a_study_of_the_ledger(tmp_path, monkeypatch):
    monkeypatch.setattr(vault_keys, "_MEMORY_KIB", 64)
    root = "1.2.3"
    paths = [
        dicom.minimal(tmp_path / str(n), sop=f"{root}.{n}.1", SeriesInstanceUID=f"{root}.{n}")
        for n in (1, 2)
    ]
    with create_vault(tmp_path / "vault.db", "passphrase") as vault:
        subject = vault.subject_id("P", "")
        parts = vault.assign(root, subject, {f"{root}.1": False, f"{root}.2": True})
        (both,) = read_studies(paths).studies
        (one,) = read_studies(paths[1:]).studies
        assert _study_id(vault, one, "one") == parts[f"{root}.2"].study_id
        with pytest.raises(Failure, match="several parts") as refused:
            _study_id(vault, both, "both")
        assert all(part.study_id.hex() in str(refused.value.lines) for part in parts.values())
