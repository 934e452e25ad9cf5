"""Kinds of instances that the wheel lacks: what P is of each, and that every change is found."""

import numpy as np
import pydicom
import pytest

from node.imaging.commitment import commit_file
from node.imaging.manifest import first_version
from node.imaging.pixels import Form
from node.imaging.verify import compare
from tests.imaging import dicom, vendor

STUDY_ID = bytes(range(16))
FRAMES = {"enhanced-ct": 5, "enhanced-mr": 5, "us-jpeg": 3}
TWO_FRAMES = ("rgb-", "mr-rle", "mr-jpeg", "ybr-full", "ct-jpeg")
NO_PIXELS = {"report", "document", "waveform", "mr-without-pixels"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return vendor.generate(tmp_path_factory.mktemp("vendor"))


def said(before, after):
    """Return what `verify` says of the file `after`, where `before` was registered."""
    (instance,) = first_version(STUDY_ID, bytes(32), [commit_file(before)]).instances
    return compare(instance, commit_file(after)).sentence


def frames_of(name):
    if name == "ybr-full-422":
        return 1
    return FRAMES.get(name, 2 if name.startswith(TWO_FRAMES) else 1)


def test_each_kind_is_committed_to_by_samples_frame_by_frame(made):
    assert len(made) > 30
    for name, path in made.items():
        known = commit_file(path).commitment.pixels.chosen
        if name in NO_PIXELS:
            assert known.form is Form.NONE, name
            continue
        form = Form.LOSSY if name == "us-jpeg" else Form.SAMPLES
        assert (known.form, len(known.frames) // 32) == (form, frames_of(name)), name


def test_one_image_has_one_p_in_every_native_form(made):
    def p(*names):
        return {commit_file(made[name]).commitment.pixels.chosen.digest for name in names}

    assert len(p("mr-implicit", "mr-deflated", "mr-big-endian")) == 1
    assert len(p("rgb-planar-0", "rgb-planar-1", "rgb-rle")) == 1
    assert len(p("rgb-rle", "rgb-jpeg-ls", "rgb-jpeg-2000", "rgb-jpeg-lossless")) == 1
    assert len(p("mr-rle", "mr-jpeg-ls", "mr-jpeg-2000", "mr-jpeg-lossless")) == 1


@pytest.mark.parametrize("name", ["enhanced-ct", "enhanced-mr", "rgb-planar-0", "rgb-planar-1"])
def test_a_changed_sample_is_named_by_its_frame(made, tmp_path, name):
    ds = dicom.loaded(made[name])
    pixels = bytearray(ds.PixelData)
    pixels[len(pixels) // int(ds.NumberOfFrames) + 1] ^= 4
    ds.PixelData = bytes(pixels)
    assert said(made[name], dicom.save(ds, tmp_path / "a")) == "altered: pixels of frame 2"


def test_a_changed_frame_of_a_lossy_ultrasound_is_named(made, tmp_path):
    ds = dicom.loaded(made["us-jpeg"])
    frames = list(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=3))
    frames[2] = frames[2][:-40] + bytes([frames[2][-40] ^ 1]) + frames[2][-39:]
    ds.PixelData = pydicom.encaps.encapsulate(frames)
    assert said(made["us-jpeg"], dicom.save(ds, tmp_path / "a")) == "altered: pixels of frame 3"


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("enhanced-mr", "frames", "altered: per-frame functional groups sequence"),
        ("palette", "palette", "altered: red palette color lookup table data"),
        ("document", "document", "altered: encapsulated document"),
        ("waveform", "waveform", "altered: waveform sequence"),
        ("private", "private", "image intact, private elements changed"),
        ("report", "report", "altered: content sequence"),
        ("long-sequence", "sequence", "altered: referenced image sequence"),
        ("segmentation", "segmentation", "altered: pixels"),
    ],
)
def test_what_changed_is_said_of_every_kind(made, tmp_path, name, change, sentence):
    ds = dicom.loaded(made[name])
    match change:
        case "frames":
            group = ds.PerFrameFunctionalGroupsSequence[3]
            group.PlanePositionSequence[0].ImagePositionPatient = ["0", "0", "9"]
        case "palette":
            ds.RedPaletteColorLookupTableData = bytes(510) + b"\1\1"
        case "document":
            ds.EncapsulatedDocument = ds.EncapsulatedDocument[:-4] + b"!" + bytes(3)
        case "waveform":
            ds.WaveformSequence[0].WaveformData = bytes(2_000)
        case "private":
            ds[0x0019, 0x1101].value = "other text"
        case "report":
            ds.ContentSequence[0].ContentSequence[0].TextValue = "A finding."
        case "sequence":
            ds.ReferencedImageSequence[9_999].ReferencedSOPInstanceUID = "1.2.3"
        case "segmentation":
            ds.PixelData = bytes([ds.PixelData[0] ^ 1]) + ds.PixelData[1:]
    words = said(made[name], dicom.save(ds, tmp_path / "a"))
    assert words == sentence or words.startswith(sentence + ":")


@pytest.mark.parametrize("rewrite", dicom.REWRITES)
def test_the_rewrites_keep_every_kind(made, tmp_path, rewrite):
    for name, path in made.items():
        ds = pydicom.dcmread(path)
        compressed = ds.file_meta.TransferSyntaxUID.is_encapsulated
        if rewrite is dicom.rle and (name in NO_PIXELS or compressed or ds.BitsAllocated == 1):
            continue
        if rewrite is dicom.rle and name in ("ybr-full-422", "rgb-planar-1"):
            continue  # no codec takes the one as it is; pydicom compresses the other wrongly
        if compressed and rewrite not in (dicom.resaved, dicom.other_patient, dicom.other_meta):
            continue  # its syntax is that of its frames
        if name == "mr-big-endian" and rewrite is not dicom.other_meta:
            continue  # pydicom leaves the order of its pixels to us
        words = said(path, rewrite(path, tmp_path / name))
        known = ("same file", "same image, re-encoded", "patient data changed on import")
        assert words.startswith(known), (name, words)


def test_signed_samples_keep_their_sign_through_every_codec(made, tmp_path):
    """12 bits of 16, and below zero: decoders must extend the sign as the source does."""
    source = made["ct-signed-12-of-16"]
    assert pydicom.dcmread(source).pixel_array.min() == -2048
    for syntax in (vendor.RLELossless, vendor.JPEGLSLossless, vendor.JPEG2000Lossless):
        ds = pydicom.dcmread(source)
        ds.compress(syntax, generate_instance_uid=False)
        assert said(source, dicom.save(ds, tmp_path / syntax)) == "same image, re-encoded"


def test_jpeg_lossless_gives_back_signed_samples(made):
    ds = pydicom.dcmread(made["ct-jpeg-lossless"])
    shape = (2, vendor.SIDE, vendor.SIDE)
    wanted = vendor.noise(*shape, kind="<i2", low=-2048, high=2048)
    assert (ds.pixel_array == wanted).all()


def test_bits_beyond_those_stored_are_part_of_p(made, tmp_path):
    """Old scanners keep overlays there: they are seen, so they count."""
    ds = dicom.loaded(made["cr-12-of-16"])
    samples = np.frombuffer(ds.PixelData, "<u2").copy()
    samples[0] |= 0x8000
    ds.PixelData = samples.tobytes()
    assert said(made["cr-12-of-16"], dicom.save(ds, tmp_path / "a")) == "altered: pixels"
