"""DCMTK and Orthanc send to the gateway: echo, all of the corpus, a study, storage commitment."""

import asyncio
import json
from pathlib import Path

import pydicom

from node.gateway.dialing import Peer
from node.gateway.spool import Quota, Spool
from tests.gateway.dimse import TITLE, opened_door
from tests.gateway.test_scp import data_set, sendable
from tests.interop.series import head_ct
from tests.interop.tools import call, free_port, orthanc, until

NAME = "intake: storescu, echoscu and Orthanc send to the gateway"
PACKAGES = {"dcmtk": "storescu", "orthanc": "Orthanc"}
# DCMTK 3.6.7 has no name for this syntax: pydicom's own JPIP and HTJ2K files are not offered to it.
_FAMILIES = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-x=",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.5": "-xr",
}


def run(work: Path) -> list[str]:
    """Check, and return what was found."""
    return [*asyncio.run(_dcmtk(work)), *asyncio.run(_orthanc(work))]


async def _dcmtk(work: Path) -> list[str]:
    folder = work / "dcmtk"
    async with opened_door(folder, peers=[Peer("STORESCU"), Peer("ECHOSCU")]) as door:
        place = ("-aec", TITLE, "127.0.0.1", door.port)
        echo = await asyncio.to_thread(call, "echoscu", "-aet", "ECHOSCU", *place)
        assert echo.returncode == 0, echo.stderr
        stranger = await asyncio.to_thread(call, "echoscu", "-aet", "STRANGER", *place)
        assert stranger.returncode != 0, "an unlisted AE title came in"
        sent = 0
        wanted = set()
        for path in sendable():
            syntax = pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
            if syntax not in _FAMILIES or syntax == "1.2.840.10008.1.2.1.99":
                continue  # DCMTK inflates and deflates anew
            options = ("-R", _FAMILIES[syntax], "-aet", "STORESCU", *place, path)
            done = await asyncio.to_thread(call, "storescu", *options)
            if done.returncode != 0 or "Status 0x" in done.stderr:
                continue  # DCMTK itself cannot read it
            sent += 1
            wanted.add(_key(path))
    spool = Spool(folder, Quota(disk_reserve_bytes=1))
    stored = {_key(path) for path in (folder / "instances").glob("*/*")}
    aside = [a.code for a in spool.asides()]
    spool.close()
    assert sent > 60, f"DCMTK sent only {sent}"
    assert stored >= wanted, "an instance that DCMTK sent is not here"
    assert aside == [], aside
    return [f"storescu: {sent} files of the corpus taken, none set aside"]


def _key(path: Path) -> tuple[str, str]:
    head = pydicom.dcmread(path, stop_before_pixels=True)
    return head.SOPInstanceUID, head.file_meta.TransferSyntaxUID


async def _orthanc(work: Path) -> list[str]:
    """Orthanc sends a study and asks for storage commitment, which it hears by a call back."""
    folder = work / "spool"
    paths = head_ct()
    gateway_port = free_port()
    with orthanc(work / "orthanc", "ORTHANC", {"gateway": (TITLE, gateway_port)}) as pacs:
        peers = [Peer("ORTHANC", "127.0.0.1", pacs.dicom)]
        async with opened_door(folder, peers=peers, port=gateway_port):
            for path in paths:
                pacs.post("/instances", path.read_bytes())
            (study,) = pacs.get("/studies")
            query = json.dumps({"Resources": [study], "StorageCommitment": True}).encode()
            answer = await asyncio.to_thread(pacs.post, "/modalities/gateway/store", query)
            transaction = answer["StorageCommitmentTransactionUID"]

            def status():
                return pacs.get(f"/storage-commitment/{transaction}")["Status"]

            await asyncio.to_thread(
                until, lambda: status() != "Pending", 60, "the storage commitment report"
            )
            assert status() == "Success", status()
    stored = sorted(data_set(path) for path in (folder / "instances").glob("*/*"))
    assert stored == sorted(data_set(path) for path in paths), "bytes changed on the way"
    return [f"Orthanc: {len(paths)} instances sent and committed, data sets byte for byte"]
