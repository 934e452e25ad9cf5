"""docs/operators/formats.md says what the code does."""

import re
from pathlib import Path

import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from node.gateway.keeping import facts_of
from node.gateway.outcomes import Accepted
from node.gateway.spool import Quota, Spool
from node.gateway.web import render
from node.imaging.commitment import commit_file
from node.imaging.manifest import first_version
from node.imaging.syntax import _KNOWN, syntax_of
from tests.imaging import dicom

PAGE = Path(__file__).parents[2] / "docs" / "operators" / "formats.md"
ROOT = "1.2.840.10008.1.2"
ROW = re.compile(r"^\| ([^|]+) \| (\.[\d.]+)? ?\| (samples|payload) \| (yes|no|8 bits) \|$", re.M)
ROWS = {
    ROOT + (tail or ""): (form, shown) for _, tail, form, shown in ROW.findall(PAGE.read_text())
}
# Streams between devices, and references to a server: not files, or no pixels in them.
NO_FILES = re.compile(r"\.7\.\d|\.4\.204|\.4\.205")


@pytest.fixture
def spool(tmp_path):
    opened = Spool(tmp_path / "spool", Quota(disk_reserve_bytes=1))
    yield opened
    opened.close()


def is_decoded(uid):
    assert render  # it registers what decodes
    try:
        return get_decoder(UID(uid)).is_available
    except NotImplementedError:
        return False


@pytest.mark.parametrize("uid", ROWS)
def test_a_row_of_the_table_is_what_the_code_does(uid):
    form, shown = ROWS[uid]
    syntax = syntax_of(uid)
    assert syntax is not None
    decoded = not syntax.encapsulated or is_decoded(uid)
    assert (shown != "no") == decoded
    by_samples = not syntax.encapsulated or (syntax.lossless and decoded)
    assert form == ("samples" if by_samples else "payload")


@pytest.mark.parametrize("tail", [".4.110", ".4.111", ".4.112", ".8.1"])
def test_syntaxes_that_pydicom_does_not_list_are_taken(spool, tmp_path, tail):
    ds = pydicom.dcmread(dicom.FILES / "MR_small_RLE.dcm")
    ds.PixelData = encapsulate([b"a frame of some codec "])
    path = dicom.save(ds, tmp_path / "a")
    data, known = path.read_bytes(), dicom.element(0x00020010, b"UI", b"1.2.840.10008.1.2.5\0")
    uid = (ROOT + tail).encode()
    new = dicom.element(0x00020010, b"UI", uid + b"\0" * (len(uid) % 2))
    assert known in data
    path.write_bytes(data.replace(known, new))
    with path.open("rb") as stream:
        assert isinstance(spool.accept("test", stream), Accepted)
    (record,) = first_version(bytes(16), bytes(32), [commit_file(path)]).instances
    assert facts_of(record, path).transfer_syntax == ROOT + tail


def test_every_transfer_syntax_of_files_has_a_row():
    fragmentable = re.compile(r"\.10\d\.1$")  # the same videos, in more fragments
    wanted = {u for u in _KNOWN if not NO_FILES.search(u) and not fragmentable.search(u)}
    assert wanted <= ROWS.keys()
