"""Media with a DICOMDIR: DCMTK reads ours and Orthanc imports it; we take in DCMTK's."""

import re
import shutil
from pathlib import Path

import pydicom

from node.gateway.importing import import_folder
from node.gateway.media_out import write_media
from node.gateway.spool import Quota, Spool
from node.imaging.media import read_media
from tests.exchange.store_parts import new_store
from tests.gateway.test_media_out import in_its_syntax
from tests.gateway.web.test_store_holdings import ONE, source
from tests.imaging import vendor
from tests.interop.series import head_ct
from tests.interop.tools import call, orthanc

NAME = "media: DCMTK and Orthanc read our file sets, and we read DCMTK's"
PACKAGES = {"dcmtk": "dcmmkdir", "orthanc": "Orthanc"}


def run(work: Path) -> list[str]:
    """Check, and return what was found."""
    ct, kinds = head_ct(), list(vendor.generate(work / "vendor").values())
    return [*_out(work, ct, kinds), *_in(work, ct)]


def _out(work: Path, ct: list[Path], kinds: list[Path]) -> list[str]:
    store = new_store(work)
    lines = []
    for number, paths in enumerate((ct, kinds)):
        study, folder = bytes([number]) + ONE[1:], work / f"disc {number}"
        store.put(study, 1, [in_its_syntax(source(path), path) for path in paths])
        write_media(store, study, None, folder, lambda done: None)
        dumped = call("dcmdump", "+P", "0004,1500", "+P", "0004,1430", "DICOMDIR", folder=folder)
        assert dumped.returncode == 0, dumped.stderr
        ids = re.findall(r"\(0004,1500\) CS \[(\S+)\]", dumped.stdout)
        assert len(ids) == len(paths), f"dcmdump finds {len(ids)} of {len(paths)} files"
        for file_id in ids:
            assert (folder / file_id.replace("\\", "/")).is_file(), file_id
        # DCMTK's own directory writer reads ours and adds the same files to it.
        known = call("dcmmkdir", "+A", "+r", "+I", "+id", ".", "+m", folder=folder)
        assert known.returncode == 0, known.stderr
        lines.append(f"dcmdump and dcmmkdir: {len(ids)} files in our DICOMDIR")
    with orthanc(work / "orthanc", "ORTHANC", {}) as pacs:
        for path in read_media(work / "disc 0" / "DICOMDIR").files:
            pacs.post("/instances", path.read_bytes())
        held = len(pacs.get("/instances"))
    assert held == len(ct), held
    return [*lines, f"Orthanc: imported all {held} files of the disc"]


def _in(work: Path, ct: list[Path]) -> list[str]:
    disc = work / "theirs"
    disc.mkdir()
    for number, path in enumerate(ct):
        shutil.copy(path, disc / f"IM{number:06}")
    made = call("dcmmkdir", "-W", "+I", "+id", disc, "+r", "+D", disc / "DICOMDIR", folder=disc)
    assert made.returncode == 0, made.stderr
    spool = Spool(work / "spool", Quota(disk_reserve_bytes=1))
    done = import_folder(disc, spool, lambda number, count: None)
    spool.close()
    assert (done.taken, done.refused, done.missing, done.outside) == (len(ct), [], [], 0), done
    assert pydicom.dcmread(disc / "DICOMDIR").DirectoryRecordSequence
    return [f"dcmmkdir: all {done.taken} files of its disc taken in"]
