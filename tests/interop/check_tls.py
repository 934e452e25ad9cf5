"""DIMSE over mutual TLS, both ways: `radledger gateway start`, DCMTK's tools, and Orthanc."""

import json
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import build_context

from tests.gateway import dimse
from tests.gateway.identities import Identity
from tests.interop.check_gateway import registered
from tests.interop.check_retrieval import uid
from tests.interop.hospital import TITLE, Hospital, consortium, wait_for
from tests.interop.series import head_ct
from tests.interop.tools import call, free_port, orthanc, program, until

NAME = "tls: storescu, findscu, storescp and Orthanc over mutual TLS"
PACKAGES = {"dcmtk": "storescu", "orthanc": "Orthanc"}
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"


def run(work: Path) -> list[str]:
    """Check, and return what was found."""
    names = ("gateway", "modality", "pacs", "orthanc", "stranger")
    who = {name: Identity(work, name) for name in names}
    receiver, ports = free_port(), (free_port(), free_port())
    modality = str(who["modality"].certificate)
    peers = [{"ae_title": t, "certificate_file": modality} for t in ("SCU", "MOVER")]
    for title, name, port in (("STORESCP", "pacs", receiver), ("ORTHANC", "orthanc", ports[1])):
        peer = {"ae_title": title, "host": "127.0.0.1", "port": port}
        peers.append({**peer, "certificate_file": str(who[name].certificate)})
    with consortium(work / "net", nodes=1) as (hospital,):
        files = {
            "tls_certificate_file": str(who["gateway"].certificate),
            "tls_key_file": str(who["gateway"].key),
        }
        hospital.configure(peers, [], quiet_ms=200, **files)
        hospital.start()
        lines = _inbound(hospital, who)
        study = registered(hospital)
        lines += _moved(hospital, who, receiver, work)
        with _orthanc(work / "orthanc", who, hospital, ports) as pacs:
            return lines + _with_orthanc(hospital, pacs, study)


def _tls(own: Identity, other: Identity) -> tuple:
    return ("+tls", own.key, own.certificate, "+cf", other.certificate)


def _inbound(hospital: Hospital, who: dict) -> list[str]:
    place = ("-aet", "SCU", "-aec", TITLE, "127.0.0.1", hospital.dicom)
    trusted = _tls(who["modality"], who["gateway"])
    for name, options in {
        "in clear": (),
        "anonymous": ("+tla", "+cf", who["gateway"].certificate),
        "a stranger": _tls(who["stranger"], who["gateway"]),
        "another's title": _tls(who["pacs"], who["gateway"]),
    }.items():
        done = call("echoscu", *options, *place)
        assert done.returncode != 0, f"{name} came in"
    refused = {event[2] for event in hospital.happened() if event[0] == "association_refused"}
    assert refused == {"tls", "other_certificate"}, refused
    done = call("echoscu", *trusted, *place)
    assert done.returncode == 0, done.stderr
    paths = head_ct()
    done = call("storescu", *trusted, *place, *paths)
    assert done.returncode == 0, done.stderr
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid(paths[0])}")
    registered(hospital)
    done = call("findscu", "-S", *trusted, *keys, "-v", *place)
    assert done.returncode == 0, done.stderr
    assert "Find Response: 1" in done.stdout + done.stderr, done.stderr
    return [f"storescu +tls: {len(paths)} taken; findscu +tls: 1 found; refused: 4, as {refused}"]


@contextmanager
def _storescp(own: Identity, trusted: Identity, port: int, folder: Path):
    folder.mkdir()
    arguments = ("+B", "-aet", "STORESCP", "-od", folder, *_tls(own, trusted), port)
    with (folder.with_suffix(".log")).open("wb") as log:
        process = subprocess.Popen(
            [program("storescp"), *map(str, arguments)], stdout=log, stderr=log
        )
    try:
        place = ("-aet", "ANY", "-aec", "STORESCP", "127.0.0.1", port)
        until(lambda: call("echoscu", *_tls(trusted, own), *place).returncode == 0, 30, "storescp")
        yield
    finally:
        process.terminate()
        process.wait(30)


def _moved(hospital: Hospital, who: dict, port: int, work: Path) -> list[str]:
    """C-MOVE over TLS to storescp over TLS; to one with another certificate nothing goes."""
    paths = head_ct()
    results = {}
    for name in ("stranger", "pacs"):
        with _storescp(who[name], who["gateway"], port, work / name):
            checked = hospital.tell("gateway", "check", status=1)["peer STORESCP"]
            results[name] = checked, _move(hospital, who, uid(paths[0]))
    assert "not trusted here" in results["stranger"][0], results
    assert results["pacs"][0] == "", results
    assert (results["stranger"][1], results["pacs"][1]) == (0xA801, 0), results
    assert list((work / "stranger").iterdir()) == [], "a stranger got something"
    back = sorted(pydicom.dcmread(path).PixelData for path in (work / "pacs").iterdir())
    assert back == sorted(pydicom.dcmread(path).PixelData for path in paths), "other pixels"
    assert ("peer_not_reached", "STORESCP", "tls") in hospital.happened()
    return [f"C-MOVE to storescp +tls: {len(back)}; to a stranger at its port: none, and an event"]


def _move(hospital: Hospital, who: dict, study: str) -> int:
    tls = who["modality"].client(who["gateway"])
    contexts = [build_context(MOVE)]
    association = dimse.associate(hospital.dicom, contexts, title="MOVER", tls=tls)
    assert association.is_established
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", study
    answers = [status for status, _ in association.send_c_move(asked, "STORESCP", MOVE)]
    association.release()
    return int(answers[-1].Status)


def _orthanc(folder: Path, who: dict, hospital: Hospital, ports: tuple[int, int]):
    folder.mkdir()
    gateway = {"AET": TITLE, "Host": "127.0.0.1", "Port": hospital.dicom, "UseDicomTls": True}
    return orthanc(
        folder,
        "ORTHANC",
        {},
        ports,
        DicomModalities={"gateway": {**gateway, "AllowStorageCommitment": True}},
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(who["orthanc"].certificate),
        DicomTlsPrivateKey=str(who["orthanc"].key),
        DicomTlsTrustedCertificates=str(who["gateway"].certificate),
        DicomTlsRemoteCertificateRequired=True,
    )


def _with_orthanc(hospital: Hospital, pacs, study: str) -> list[str]:
    """Delivery and its reading back, then Orthanc's sending and the report on its commitment."""
    count = len(head_ct())
    done = hospital.tell("study", "deliver", study, "--to", "ORTHANC")["progress"]
    assert (done["state"], done["verified"]) == ("done", count), done
    (found,) = pacs.get("/studies")
    query = json.dumps({"Resources": [found], "StorageCommitment": True}).encode()
    answer = pacs.post("/modalities/gateway/store", query)
    path = f"/storage-commitment/{answer['StorageCommitmentTransactionUID']}"
    wait_for(lambda: pacs.get(path)["Status"] != "Pending", 60, "the commitment report")
    assert pacs.get(path)["Status"] == "Success", pacs.get(path)
    return [f"Orthanc with DICOM TLS: {done['verified']} delivered, verified; sent back; committed"]
