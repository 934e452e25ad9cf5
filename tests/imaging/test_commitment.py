"""F, K, P and X: what they survive and what they catch."""

import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from consensus.wire import pack
from node.imaging import rules
from node.imaging.commitment import commit_file
from node.imaging.errors import UnreadableInstance
from node.imaging.limits import Limits
from node.imaging.pixels import Form
from tests.imaging import dicom

SOURCES = {
    "ct": "CT_small.dcm",
    "mr": "MR_small.dcm",
    "ultrasound colour": "examples_rgb_color.dcm",
    "palette": "examples_palette.dcm",
    "odd colour": "SC_rgb_small_odd.dcm",
    "multi-frame 32 bit": "rtdose.dcm",
    "one bit": "liver_1frame.dcm",
    "overlay": "examples_overlay.dcm",
    "report": "test-SR.dcm",
    "plan": "rtplan.dcm",
    "ecg": "waveform_ecg.dcm",
}
_NOT_FOR_RLE = ("report", "plan", "ecg", "one bit", "multi-frame 32 bit")  # PS3.5 §8.2.2
CASES = [
    pytest.param(source, rewrite, id=f"{kind}-{rewrite.__name__}")
    for kind, source in SOURCES.items()
    for rewrite in dicom.REWRITES
    if not (rewrite is dicom.rle and kind in _NOT_FOR_RLE)
]


def committed(path):
    return commit_file(Path(path)).commitment


def same_image(one, other):
    return (one.core, one.pixels.chosen.digest) == (other.core, other.pixels.chosen.digest)


@pytest.mark.parametrize(("source", "rewrite"), CASES)
def test_core_and_pixels_survive_a_rewrite_that_keeps_the_image(source, rewrite, tmp_path):
    before = committed(dicom.FILES / source)
    after = committed(rewrite(dicom.FILES / source, tmp_path / "copy.dcm"))
    assert same_image(before, after)
    assert before.private == after.private


@pytest.mark.parametrize("rewrite", [dicom.other_patient, dicom.other_institution])
def test_import_at_another_hospital_shows_in_the_import_elements_only(rewrite, tmp_path):
    before = committed(dicom.FILES / "CT_small.dcm")
    after = committed(rewrite(dicom.FILES / "CT_small.dcm", tmp_path / "copy.dcm"))
    assert after.import_elements != before.import_elements
    assert after.core_elements == before.core_elements
    assert after.private == before.private
    assert after.file != before.file


def test_the_file_digest_is_sha256_of_the_bytes():
    path = dicom.FILES / "CT_small.dcm"
    assert committed(path).file == hashlib.sha256(path.read_bytes()).digest()
    assert committed(path).size == path.stat().st_size


@pytest.mark.parametrize("path", dicom.readable(), ids=lambda path: path.name)
def test_every_readable_shipped_file_is_committed_to_and_again_alike(path):
    assert commit_file(path) == commit_file(path)


@pytest.mark.parametrize("path", dicom.readable(), ids=lambda path: path.name)
def test_every_readable_shipped_file_keeps_core_and_pixels_when_saved_again(path, tmp_path):
    if path.name == "winter.dcm":  # holds elements twice, which pydicom drops
        return
    assert same_image(committed(path), committed(dicom.resaved(path, tmp_path / "copy")))


@pytest.mark.parametrize(
    "path", [p for p in dicom.shipped() if dicom.expected_code(p)], ids=lambda path: path.name
)
def test_every_damaged_shipped_file_is_refused_with_its_reason(path):
    with pytest.raises(UnreadableInstance) as refused:
        commit_file(path)
    assert refused.value.code == dicom.expected_code(path)
    assert refused.value.name == str(path)


def test_the_shipped_big_endian_twins_agree_with_the_little_endian_ones():
    twins = {
        "MR_small.dcm": "MR_small_expb.dcm",
        "rtdose.dcm": "rtdose_expb.dcm",
        "liver_1frame.dcm": "liver_expb_1frame.dcm",
        "SC_rgb_small_odd.dcm": "SC_rgb_small_odd_big_endian.dcm",
    }
    for little, big in twins.items():
        pair = [committed(dicom.FILES / name).pixels.chosen.digest for name in (little, big)]
        assert pair[0] == pair[1], little


def test_the_shipped_rle_twins_agree_with_the_native_ones():
    for native, compressed in {
        "MR_small.dcm": "MR_small_RLE.dcm",
        "rtdose.dcm": "rtdose_rle.dcm",
    }.items():
        pair = [committed(dicom.FILES / name).pixels.chosen.digest for name in (native, compressed)]
        assert pair[0] == pair[1], native


def test_a_frame_digest_is_sha256_of_its_little_endian_samples(tmp_path):
    pixels = np.arange(2 * 3 * 4, dtype="<u2").reshape(2, 3, 4)
    known = committed(dicom.minimal(tmp_path / "a", pixels=pixels)).pixels.chosen
    assert known.form is Form.SAMPLES
    assert known.frames == b"".join(hashlib.sha256(f.tobytes()).digest() for f in pixels)


def test_pydicom_decodes_to_the_samples_that_are_digested():
    for name in ("SC_rgb_rle_16bit_2frame.dcm", "SC_rgb_small_odd_big_endian.dcm"):
        ds = pydicom.dcmread(dicom.FILES / name)
        frames = ds.pixel_array.reshape(int(ds.get("NumberOfFrames", 1)), -1)
        wanted = [hashlib.sha256(f.astype(f.dtype.newbyteorder("<")).tobytes()) for f in frames]
        got = committed(dicom.FILES / name).pixels.chosen.frames
        assert got == b"".join(digest.digest() for digest in wanted), name


def test_planar_configuration_makes_no_difference(tmp_path):
    ds = dicom.loaded(dicom.FILES / "SC_rgb_small_odd.dcm")
    before = committed(dicom.FILES / "SC_rgb_small_odd.dcm")
    planes = np.ascontiguousarray(ds.pixel_array.transpose(2, 0, 1))
    ds.PixelData, ds.PlanarConfiguration = planes.tobytes() + b"\0", 1
    assert ds.pixel_array.shape == (3, 3, 3)
    assert same_image(before, committed(dicom.save(ds, tmp_path / "planar.dcm")))


def test_one_changed_pixel_bit_is_caught_by_pixels_alone(tmp_path):
    ds = dicom.loaded(dicom.FILES / "CT_small.dcm")
    pixels = bytearray(ds.PixelData)
    pixels[777] ^= 1
    ds.PixelData = bytes(pixels)
    before, after = (
        committed(dicom.FILES / "CT_small.dcm"),
        committed(dicom.save(ds, tmp_path / "a")),
    )
    assert after.pixels.chosen.digest != before.pixels.chosen.digest
    assert after.core == before.core


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("SliceThickness", "9.9"),
        ("ImagePositionPatient", ["0", "0", "1"]),
        ("Rows", 127),
        ("SOPInstanceUID", "1.2.3"),
        ("LossyImageCompression", "01"),
        ("PhotometricInterpretation", "MONOCHROME1"),
        ("RescaleSlope", "2"),
    ],
)
def test_a_changed_public_element_is_caught_by_the_core_alone(keyword, value, tmp_path):
    ds = dicom.loaded(dicom.FILES / "CT_small.dcm")
    setattr(ds, keyword, value)
    before, after = (
        committed(dicom.FILES / "CT_small.dcm"),
        committed(dicom.save(ds, tmp_path / "a")),
    )
    assert after.core != before.core
    assert after.private == before.private


def test_a_changed_private_element_is_caught_by_the_private_digest_alone(tmp_path):
    ds = dicom.loaded(dicom.FILES / "CT_small.dcm")
    ds[0x00431028].value = b"changed!"
    before, after = (
        committed(dicom.FILES / "CT_small.dcm"),
        committed(dicom.save(ds, tmp_path / "a")),
    )
    assert after.private != before.private
    assert same_image(before, after)


def test_a_change_deep_in_a_sequence_is_caught(tmp_path):
    ds = dicom.loaded(dicom.FILES / "test-SR.dcm")
    before = committed(dicom.FILES / "test-SR.dcm")
    item = ds.ContentSequence[-1]
    while "ContentSequence" in item:
        item = item.ContentSequence[-1]
    item.RelationshipType = "HAS OBS CONTEX"
    assert committed(dicom.save(ds, tmp_path / "a")).core != before.core


def test_a_private_element_inside_a_public_sequence_counts_as_private(tmp_path):
    ds = dicom.loaded(dicom.FILES / "test-SR.dcm")
    block = ds.ContentSequence[0].private_block(0x0011, "TEST", create=True)
    before = committed(dicom.FILES / "test-SR.dcm")
    block.add_new(1, "LO", "hidden")
    after = committed(dicom.save(ds, tmp_path / "a"))
    assert after.core == before.core
    assert after.private != before.private


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_private_sequence_survives_conversion(syntax, tmp_path):
    """Its type is lost in an implicit data set, and it comes back as UN."""
    path = dicom.minimal(tmp_path / "source")
    ds = dicom.loaded(path)
    block = ds.private_block(0x0011, "TEST", create=True)
    item = pydicom.Dataset()
    item.SliceThickness = "2"
    item.add_new(0x00111003, "SQ", Sequence([pydicom.Dataset()]))
    block.add_new(2, "SQ", Sequence([item, pydicom.Dataset()]))
    before = committed(dicom.save(ds, path))
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(tmp_path / "b", implicit_vr=syntax.is_implicit_VR, little_endian=True)
    assert committed(tmp_path / "b").private == before.private


def test_private_text_padded_anew_is_the_same_and_numbers_are_never_trimmed(tmp_path):
    def private(value):
        return committed(
            dicom.raw_file(tmp_path / "a", dicom.element(0x00191024, b"UN", value))
        ).private

    assert private(b"     3.004") == private(b"3.004 ") == private(b"3.004\0")
    assert private(b" 1.5\\ 2.5") == private(b"1.5\\2.5 ")
    assert private(b"3.004 ") != private(b"3.005 ")
    for one, other in ((b"A\0", b"A "), (b"A\0\0\0", b"A\0 \0"), (b" A", b"A\0"), (b"\0\0", b"  ")):
        assert private(one) != private(other)


def test_an_empty_element_counts_as_absent(tmp_path):
    ds = dicom.loaded(dicom.FILES / "CT_small.dcm")
    before = committed(dicom.FILES / "CT_small.dcm")
    ds.KVP, ds.ProtocolName = ds.KVP, ""
    assert committed(dicom.save(ds, tmp_path / "a")).core == before.core


def test_an_element_twice_with_one_value_is_read_and_with_two_is_refused(tmp_path):
    one = dicom.element(0x00180050, b"DS", b"5 ")
    committed(dicom.raw_file(tmp_path / "a", one + one))
    with pytest.raises(UnreadableInstance, match="stands twice"):
        committed(dicom.raw_file(tmp_path / "b", one + dicom.element(0x00180050, b"DS", b"6 ")))


@pytest.mark.parametrize(
    "name",
    ["chrH32", "chrH31", "chrI2", "chrX2", "chrFrenMulti", "chrGreek", "chrArab", "chrHbrw"],
)
def test_text_is_compared_as_unicode_whatever_its_character_set(name, tmp_path):
    ds = pydicom.dcmread(dicom.DATA / "charset_files" / f"{name}.dcm")
    raw, text = ds.get_item("PatientName").value, str(ds.PatientName)
    terms = ds.SpecificCharacterSet
    terms = terms if isinstance(terms, str) else "\\".join(terms)

    def physician(charset, value):  # outside the patient group, so part of K
        data = dicom.element(0x00080005, b"CS", charset) + dicom.element(0x00081050, b"PN", value)
        return committed(dicom.raw_file(tmp_path / "a", data)).core

    before = physician(terms.encode() + b" ", raw)
    assert physician(b"ISO_IR 192", text.encode() + b" ") == before
    assert physician(b"ISO_IR 192", text.encode() + b"x") != before


def test_text_under_an_unknown_character_set_is_compared_byte_by_byte(tmp_path):
    charset = dicom.element(0x00080005, b"CS", b"ISO_IR 9999 ")
    one = dicom.raw_file(tmp_path / "a", charset + dicom.element(0x00181030, b"LO", b"\xe4\xf6"))
    two = dicom.raw_file(tmp_path / "b", charset + dicom.element(0x00181030, b"LO", b"\xe4\xfc"))
    assert committed(one).core != committed(two).core


def test_a_data_set_in_another_form_than_its_syntax_says_is_read(tmp_path):
    path = dicom.implicit(dicom.FILES / "MR_small.dcm", tmp_path / "a")
    data = path.read_bytes().replace(b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.1\0")
    fixed = data.replace(b"\x10\0UI\x12\0", b"\x10\0UI\x14\0", 1)
    (tmp_path / "b").write_bytes(fixed)
    assert same_image(committed(path), committed(tmp_path / "b"))


def test_the_lossy_payload_is_the_frames_without_their_fragmentation(tmp_path):
    source = dicom.FILES / "JPEG2000.dcm"
    known = committed(source).pixels
    assert known.samples is None
    assert known.chosen.form is Form.LOSSY
    frame = next(
        pydicom.encaps.generate_frames(pydicom.dcmread(source).PixelData, number_of_frames=1)
    )
    ds = dicom.loaded(source)
    cut = len(frame) // 4 * 2
    ds.PixelData = b"".join(
        (
            b"\xfe\xff\x00\xe0" + bytes(4),
            *(
                b"\xfe\xff\x00\xe0" + len(part).to_bytes(4, "little") + part
                for part in (frame[:cut], frame[cut:])
            ),
        )
    )
    ds["PixelData"].is_undefined_length = True
    assert committed(dicom.save(ds, tmp_path / "a")).pixels.chosen == known.chosen


def test_a_lossless_syntax_without_decoder_commits_to_the_payload_and_says_so(no_decoders):
    known = committed(dicom.FILES / "MR_small_jpeg_ls_lossless.dcm").pixels
    assert known.samples is None
    assert known.chosen.form is Form.UNDECODED


def test_frames_of_a_basic_offset_table_are_told_apart(tmp_path):
    frames = [b"\xff\xd8one ", b"\xff\xd8two2"]
    parts = [frames[0][:2], frames[0][2:], frames[1]]
    items = [b"\xfe\xff\x00\xe0" + len(p).to_bytes(4, "little") + p for p in parts]
    second = sum(map(len, items[:2]))
    table = b"\xfe\xff\x00\xe0\x08\0\0\0" + bytes(4) + second.to_bytes(4, "little")
    ds = dicom.loaded(dicom.FILES / "JPEG2000.dcm")
    ds.NumberOfFrames = 2
    ds.PixelData = table + b"".join(items)
    ds["PixelData"].is_undefined_length = True
    got = committed(dicom.save(ds, tmp_path / "a")).pixels.chosen.frames
    assert got == b"".join(hashlib.sha256(frame).digest() for frame in frames)


def test_rules_name_what_why_and_where():
    for rule in rules.ENCODING_RULES + rules.IMPORT_RULES:
        assert rule.first <= rule.last
        assert rule.why
        assert rule.source.startswith(("PS3.", "RAD TF"))
    assert rules.part_of(0x00180050) is rules.Part.CORE
    assert rules.part_of(0x00091001) is rules.Part.PRIVATE
    assert rules.part_of(0x00180000) is rules.Part.ENCODING
    assert rules.part_of(0x00100010) is rules.Part.IMPORT


def test_large_values_are_streamed_to_the_same_digest(tmp_path, monkeypatch):
    small = dicom.minimal(tmp_path / "a", ICCProfile=bytes(range(256)) * 64 + b"\0\0")
    whole = committed(small)
    monkeypatch.setattr("node.imaging.core.CHUNK_BYTES", 1000)
    monkeypatch.setattr("node.imaging.pixels.CHUNK_BYTES", 8)
    limits = Limits(inline_bytes_max=100, whole_bytes_max=64)
    assert commit_file(small, limits).commitment == whole
    big = dicom.big_endian(small, tmp_path / "b")
    assert same_image(commit_file(big, limits).commitment, whole)


def test_the_digests_are_those_that_were_registered_with_rules_1(tmp_path):
    """A change here breaks the proof of every study registered before: it needs new rules."""
    item = (
        b"\xfe\xff\x00\xe0" + (10).to_bytes(4, "little") + dicom.element(0x00081150, b"UI", b"1\0")
    )
    data = b"".join(
        (
            dicom.element(0x00080005, b"CS", b"ISO_IR 100"),
            dicom.element(0x00080060, b"CS", b"OT"),
            dicom.element(0x00081050, b"PN", b"M\xfcller^A^^ "),
            dicom.element(0x00081140, b"SQ", item),
            dicom.element(0x00100010, b"PN", b"Nobody"),
            dicom.element(0x00110010, b"LO", b"TEST"),
            dicom.element(0x00180050, b"DS", b" 2.50 "),
            dicom.element(0x00280010, b"US", b"\x01\0"),
            dicom.element(0x00280011, b"US", b"\x02\0"),
            dicom.element(0x00280100, b"US", b"\x10\0"),
            dicom.element(0x7FE00010, b"OW", b"\1\2\3\4"),
        )
    )
    known = committed(dicom.raw_file(tmp_path / "a", data))

    def element(tag, kind, value):
        return (
            tag.to_bytes(4, "big") + hashlib.sha256(tag.to_bytes(4, "big") + kind + value).digest()
        )

    inner = hashlib.sha256(b"radledger/item/1" + element(0x00081150, b"t", b"1")).digest()
    core = (
        element(0x00080060, b"t", b"OT"),
        element(0x00081050, b"t", "M\u00fcller^A".encode()),
        element(0x00081140, b"s", inner),
        element(0x00180050, b"t", b"2.50"),
        element(0x00280010, b"n", b"\x01\0"),
        element(0x00280011, b"n", b"\x02\0"),
        element(0x00280100, b"n", b"\x10\0"),
    )
    assert known.core == hashlib.sha256(b"radledger/core/1" + b"".join(core)).digest()
    private = element(0x00110010, b"r", b"TEST")
    assert known.private == hashlib.sha256(b"radledger/private/1" + private).digest()
    frame = hashlib.sha256(b"\1\2\3\4").digest()
    head = b"radledger/pixels/1" + pack((Form.SAMPLES.value, 1, 2, 1, 16, 1))
    assert known.pixels.chosen.digest == hashlib.sha256(head + frame).digest()
    assert known.core.hex() == "4a6b05a68e38ac718ffd078b71c86d254703a1e896913cb0158432d49ef76dc0"


def test_the_digests_of_real_files_are_those_that_were_registered_with_rules_1():
    digests = [
        committed(dicom.FILES / name)
        for name in (
            "CT_small.dcm",
            "test-SR.dcm",
            "rtdose.dcm",
            "JPEG2000.dcm",
            "waveform_ecg.dcm",
        )
    ]
    together = b"".join(d.core + d.pixels.chosen.digest + d.private for d in digests)
    assert (
        hashlib.sha256(together).hexdigest()
        == "07e8c228f8d6b403b653b79b1fd9c7653a67da57e1c59b8eda1a31f6580ca639"
    )
