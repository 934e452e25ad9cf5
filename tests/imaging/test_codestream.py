"""Compressed frames that announce far more than their data set says: refused unread."""

import resource
from struct import pack, pack_into

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, generate_frames

from node.imaging.codestream import announced_samples, rle_bytes
from node.imaging.commitment import commit_file
from node.imaging.errors import UnreadableInstance
from tests.imaging import dicom, vendor

NAMES = ("mr-jpeg-2000", "mr-jpeg-ls", "mr-jpeg-lossless", "mr-rle")
J2K_SIZE, HUGE = b"\xff\x4f\xff\x51", 60_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return vendor.generate(tmp_path_factory.mktemp("vendor"))


def first_frame(path):
    ds = pydicom.dcmread(path)
    return next(generate_frames(ds.PixelData, number_of_frames=int(ds.NumberOfFrames)))


def swollen(name, frame):
    """Return the frame with a header that announces far more samples."""
    frame = bytearray(frame)
    if name.endswith("2000"):
        pack_into(">2L", frame, frame.index(J2K_SIZE) + 8, HUGE, HUGE)
    elif name.endswith("rle"):
        # 64 bytes of head, and runs of 128 zeros: 2 MB unpack to 128 MB.
        return pack("<16L", 2, 64, 66, *[0] * 13) + b"\0\0" + b"\x81\0" * (1 << 20)
    else:
        marker = b"\xff\xf7" if name.endswith("ls") else b"\xff\xc3"
        pack_into(">2H", frame, frame.index(marker) + 5, HUGE, HUGE)
    return bytes(frame)


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_that_announces_more_than_it_may_is_refused_in_little_memory(made, name, tmp_path):
    ds = pydicom.dcmread(made[name])
    frames = list(generate_frames(ds.PixelData, number_of_frames=2))
    ds.PixelData = encapsulate([frames[0], swollen(name, frames[1])])
    path = dicom.save(ds, tmp_path / "a")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableInstance) as refused:
        commit_file(path)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert refused.value.code == "pixels"
    assert refused.value.reason == "frame 2 has another size than its description says"
    assert grown_kib < 64 << 10


@pytest.mark.parametrize("name", [*NAMES[:3], "rgb-jpeg-2000", "rgb-jpeg-ls", "rgb-jpeg-lossless"])
def test_headers_say_what_their_frames_are(made, name):
    ds = pydicom.dcmread(made[name])
    samples = ds.Rows * ds.Columns * ds.SamplesPerPixel
    assert announced_samples(first_frame(made[name])) == samples


def test_rle_segments_are_counted_as_they_unpack(made):
    ds = pydicom.dcmread(made["mr-rle"])
    size = ds.Rows * ds.Columns * 2
    assert rle_bytes(first_frame(made["mr-rle"]), size) == size
    plain = np.zeros(8, "u1").tobytes()
    literal = pack("<16L", 1, 64, *[0] * 14) + bytes([7]) + plain + bytes([0x80])
    assert rle_bytes(literal, 100) == 8


@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8", J2K_SIZE, bytes(64)]))
def test_any_bytes_are_read_to_a_number_or_none(data, head):
    announced = announced_samples(head + data)
    assert announced is None or announced >= 0
    assert rle_bytes(head + data, 1_000) <= 1_000 + 128
