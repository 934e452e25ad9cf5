"""Files that are damaged, hostile or none at all: one clear refusal each, in bounded memory."""

import io
import os
import struct
import tempfile
import tracemalloc
import zlib
from errno import EACCES, EDQUOT, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.imaging import pixels
from node.imaging.commitment import CommittedFile, commit_file
from node.imaging.elements import ITEM, Parser
from node.imaging.errors import UnreadableInstance
from node.imaging.limits import MEBIBYTE, Limits
from node.imaging.pixels import digest_pixels
from node.imaging.reader import read_instance, read_studies
from node.imaging.syntax import syntax_of
from tests.imaging import dicom

DEFLATED = b"1.2.840.10008.1.2.1.99"
RLE = b"1.2.840.10008.1.2.5\0"
IMPLICIT = b"1.2.840.10008.1.2\0"
JPEG2000 = b"1.2.840.10008.1.2.4.91"
UNDEFINED = b"\xff\xff\xff\xff"


def refusal(path, limits=None):
    with pytest.raises(UnreadableInstance) as refused:
        commit_file(path, limits) if limits else commit_file(path)
    return refused.value


def item(data, length=None):
    return b"\xfe\xff\x00\xe0" + (length or struct.pack("<L", len(data))) + data


def image(rows=2, columns=2, bits=8, frames=None):
    """Return the elements that describe an image, up to the pixel data."""
    parts = [
        dicom.element(0x00280002, b"US", struct.pack("<H", 1)),
        dicom.element(0x00280004, b"CS", b"MONOCHROME2 "),
        dicom.element(0x00280008, b"IS", frames) if frames else b"",
        dicom.element(0x00280010, b"US", struct.pack("<H", rows)),
        dicom.element(0x00280011, b"US", struct.pack("<H", columns)),
        dicom.element(0x00280100, b"US", struct.pack("<H", bits)),
        dicom.element(0x00280101, b"US", struct.pack("<H", bits)),
        dicom.element(0x00280103, b"US", bytes(2)),
    ]
    return b"".join(parts)


def encapsulated(*fragments):
    head = b"\xe0\x7f\x10\x00OB\0\0" + UNDEFINED + item(b"")
    return head + b"".join(map(item, fragments)) + b"\xfe\xff\xdd\xe0" + bytes(4)


def native(data):
    return b"\xe0\x7f\x10\x00OB\0\0" + struct.pack("<L", len(data)) + data


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a").touch()
    assert refusal(tmp_path / "a").code == "empty"


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "a").write_text("minutes of the meeting\n" * 100)
    assert refusal(tmp_path / "a").code == "foreign"


def test_a_missing_file_a_folder_and_a_pipe_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "none").code == "unreadable"
    assert refusal(tmp_path).code in ("foreign", "unreadable")
    assert refusal(tmp_path / "pipe").code == "foreign"
    assert read_instance(tmp_path / "no\0name").code == "unreadable"


def test_a_file_beyond_the_limit_is_refused_unread(tmp_path):
    path = dicom.minimal(tmp_path / "a")
    assert refusal(path, Limits(file_bytes_max=100)).code == "too_large"


@pytest.mark.parametrize("name", ["CT_small.dcm", "test-SR.dcm", "MR_small_RLE.dcm", "rtplan.dcm"])
def test_a_file_cut_off_anywhere_in_its_last_element_is_refused(name, tmp_path):
    data = (dicom.FILES / name).read_bytes()
    for kept in (len(data) - 1, len(data) - 9, len(data) // 2, 200, 140, 132):
        (tmp_path / "a").write_bytes(data[:kept])
        result = read_instance(tmp_path / "a")
        assert isinstance(result, UnreadableInstance), kept


def test_an_element_longer_than_the_file_is_refused_without_taking_memory(tmp_path):
    data = b"\x10\0\x10\0OB\0\0" + struct.pack("<L", 0xFFFFFFF0)
    assert refusal(dicom.raw_file(tmp_path / "a", data)).code == "truncated"


def test_a_deflate_bomb_is_refused_in_bounded_memory(tmp_path):
    squeeze = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    zeros = dicom.element(0x00420011, b"OB", b"")[:-4] + struct.pack("<L", 2**31 - 2)
    parts = [squeeze.compress(zeros)]
    parts += [squeeze.compress(bytes(MEBIBYTE)) for _ in range(160)]
    parts.append(squeeze.flush())
    path = dicom.raw_file(tmp_path / "bomb", b"".join(parts), DEFLATED)
    assert path.stat().st_size < MEBIBYTE
    tracemalloc.start()
    assert refusal(path).code == "bomb"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * MEBIBYTE


def test_a_deflated_file_that_breaks_off_or_is_damaged_is_refused(tmp_path):
    data = (dicom.FILES / "image_dfl.dcm").read_bytes()
    (tmp_path / "cut").write_bytes(data[:-50])
    assert refusal(tmp_path / "cut").code == "truncated"
    (tmp_path / "bad").write_bytes(data[:-2000] + b"\xff" * 2000)
    assert refusal(tmp_path / "bad").code in ("malformed", "truncated")


def test_a_blank_image_that_deflates_well_is_read(tmp_path):
    path = dicom.minimal(tmp_path / "a", pixels=np.zeros((2000, 2000), "<u2"))
    assert commit_file(dicom.deflated(path, tmp_path / "b")).commitment.pixels.samples


@pytest.mark.parametrize("delimited", [True, False])
def test_nesting_beyond_the_limit_is_refused(delimited, tmp_path):
    data = b""
    for _ in range(100_000 if delimited else 300):
        length = UNDEFINED if delimited else struct.pack("<L", len(data) + 8)
        inner = item(data, UNDEFINED) if delimited else item(data)
        data = b"\x40\0\x30\xa7SQ\0\0" + length + inner
        if delimited and len(data) > 4000:
            break
    if delimited:
        opening = b"\x40\0\x30\xa7SQ\0\0" + UNDEFINED + b"\xfe\xff\x00\xe0" + UNDEFINED
        data = opening * 100_000
    assert refusal(dicom.raw_file(tmp_path / "a", data)).code == "limit"


def test_nested_unknown_sequences_cost_no_more_than_their_depth(tmp_path):
    """A private value that looks like a sequence is tried as one; trials must not multiply."""
    data = b"x" * 8
    for _ in range(60):
        data = b"\x11\0\x02\x10" + struct.pack("<L", len(data) + 8) + item(data)
    path = dicom.raw_file(tmp_path / "a", data, IMPLICIT)
    assert commit_file(path)


def test_millions_of_empty_items_are_refused_in_bounded_memory(tmp_path):
    items = item(b"") * 20_000
    data = b"\x40\0\x30\xa7SQ\0\0" + struct.pack("<L", len(items)) + items
    path = dicom.raw_file(tmp_path / "a", data)
    tracemalloc.start()
    assert refusal(path, Limits(elements_max=15_000)).code == "limit"
    assert tracemalloc.get_traced_memory()[1] < 10 * MEBIBYTE
    tracemalloc.stop()


def test_too_many_elements_in_one_item_and_too_many_fragments_are_refused(tmp_path):
    many = b"".join(struct.pack("<HH", 0x11, n) + b"US\2\0ab" for n in range(0x1000, 0x3000))
    path = dicom.raw_file(tmp_path / "a", many)
    assert refusal(path, Limits(level_elements_max=1000)).code == "limit"
    path = dicom.raw_file(tmp_path / "b", image() + encapsulated(*[b"ab"] * 50), JPEG2000)
    assert refusal(path, Limits(fragments_max=10)).code == "limit"


@pytest.mark.parametrize(
    ("field", "uid", "code"),
    [
        ("StudyInstanceUID", "../../etc", "bad_uid"),
        ("SOPInstanceUID", "1.2.3/..", "bad_uid"),
        ("SeriesInstanceUID", "1." * 40 + "1", "bad_uid"),
        ("SOPInstanceUID", "1..2", "bad_uid"),
        ("StudyInstanceUID", "1.2.\u0663", "bad_uid"),
        ("StudyInstanceUID", "", "no_uid"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_uid_is_refused_and_not_repeated(field, uid, code, tmp_path):
    path = dicom.minimal(tmp_path / "a")
    ds = dicom.loaded(path)
    ds[field].value = uid.encode().decode("latin_1") if uid else None
    result = read_instance(dicom.save(ds, path))
    assert isinstance(result, UnreadableInstance)
    assert result.code == code
    assert not uid or uid not in result.reason


@pytest.mark.parametrize(
    ("description", "pixels", "syntax"),
    [
        (image(200, 200), native(b"abcd"), b"1.2.840.10008.1.2.1\0"),
        (image(), native(b"ab"), b"1.2.840.10008.1.2.1\0"),
        (image(frames=b"9999999 "), native(b"abcd"), b"1.2.840.10008.1.2.1\0"),
        (image(frames=b"-1"), native(b"abcd"), b"1.2.840.10008.1.2.1\0"),
        (image(frames=b"99999999999 "), native(b"abcd"), b"1.2.840.10008.1.2.1\0"),
        (image(bits=12), native(b"abcd"), b"1.2.840.10008.1.2.1\0"),
        (b"", native(b"abcd"), b"1.2.840.10008.1.2.1\0"),
        (image(), native(b"abcd"), RLE),
        (image(), encapsulated(b"abcd"), b"1.2.840.10008.1.2.1\0"),
        (image(), encapsulated(), JPEG2000),
    ],
)
def test_pixels_that_are_not_what_their_description_says_are_refused(
    description, pixels, syntax, tmp_path
):
    assert refusal(dicom.raw_file(tmp_path / "a", description + pixels, syntax)).code == "pixels"


def test_a_broken_rle_frame_is_refused_by_number(tmp_path):
    good = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x03abcd\0"
    data = image(frames=b"2 ") + encapsulated(good, b"\xff" * 66)
    refused = refusal(dicom.raw_file(tmp_path / "a", data, RLE))
    assert refused.code == "decoder"
    assert "frame 2" in refused.reason


def test_a_decoder_that_raises_beyond_exception_is_contained(tmp_path, monkeypatch):
    class PanicException(BaseException):
        """As native extensions raise it."""

    class Decoder:
        is_available = True

        def as_array(self, *_, **__):
            raise PanicException("rust")

    monkeypatch.setattr("node.imaging.pixels.get_decoder", lambda _: Decoder())
    assert refusal(dicom.FILES / "MR_small_RLE.dcm").code == "decoder"


def test_an_interrupt_during_decoding_is_not_swallowed(monkeypatch):
    class Decoder:
        is_available = True

        def as_array(self, *_, **__):
            raise KeyboardInterrupt

    monkeypatch.setattr("node.imaging.pixels.get_decoder", lambda _: Decoder())
    with pytest.raises(KeyboardInterrupt):
        commit_file(dicom.FILES / "MR_small_RLE.dcm")


def test_a_frame_too_big_to_decode_commits_to_its_payload():
    known = commit_file(dicom.FILES / "MR_small_RLE.dcm", Limits(frame_bytes_max=100))
    assert known.commitment.pixels.samples is None
    assert known.commitment.pixels.payload is not None


def test_frames_that_decode_to_too_much_in_all_commit_to_their_payload(tmp_path, monkeypatch):
    frames = np.zeros((5, 8, 8), "<u2")
    plain = dicom.minimal(tmp_path / "a", pixels=frames)
    path = dicom.rle(plain, tmp_path / "b")
    enough = Limits(decoded_bytes_max=frames.nbytes)
    assert commit_file(path, enough).commitment.pixels.chosen.form is pixels.Form.SAMPLES
    monkeypatch.setattr(pixels, "get_decoder", None)  # none is asked for
    known = commit_file(path, Limits(decoded_bytes_max=frames.nbytes - 1))
    assert known.commitment.pixels.chosen.form is pixels.Form.UNDECODED


def test_running_out_of_memory_says_nothing_of_the_file(monkeypatch, tmp_path):
    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr("node.imaging.commitment.digest_pixels", out_of_memory)
    assert refusal(dicom.minimal(tmp_path / "a")).code == "not_now"


def test_a_decoder_without_memory_says_nothing_of_the_file(monkeypatch):
    class Decoder:
        is_available = True

        def as_array(self, *_, **__):
            raise MemoryError

    monkeypatch.setattr(pixels, "get_decoder", lambda uid: Decoder())
    assert refusal(dicom.FILES / "MR_small_RLE.dcm").code == "not_now"


@pytest.mark.parametrize(
    ("number", "code"),
    [(number, "not_now") for number in (ENOSPC, EDQUOT, EIO, EMFILE, ENFILE, ENOMEM)]
    + [(EACCES, "unreadable")],
)
@pytest.mark.parametrize("where", ["os.open", "_hashed"])
def test_trouble_of_the_machine_is_told_from_the_files(monkeypatch, tmp_path, where, number, code):
    def fail(*_):
        raise OSError(number, "trouble")

    path = dicom.minimal(tmp_path / "a")
    with monkeypatch.context() as patched:
        patched.setattr(f"node.imaging.source.{where}", fail)
        found = read_instance(path)
    assert found.code == code


def test_without_room_to_inflate_nothing_is_said_of_the_file(monkeypatch, tmp_path):
    path = dicom.deflated(dicom.minimal(tmp_path / "a"), tmp_path / "b")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert refusal(path, Limits(spool_bytes=10)).code == "not_now"


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = dicom.minimal(tmp_path / "a")

    def changing(stream, *rest):
        os.utime(path, (1, 1))
        return digest_pixels(stream, *rest)

    monkeypatch.setattr("node.imaging.commitment.digest_pixels", changing)
    assert refusal(path).code == "changed"


@pytest.mark.parametrize(
    "data",
    [
        dicom.element(0x00180050, b"ZZ", b"5 "),  # no such representation
        b"\x18\0\x50\0DS\xff\xff5 ",  # runs past the file
        b"\xfe\xff\x0d\xe0" + bytes(4),  # a delimiter of nothing
        b"\x18\0\x50\0OB\0\0" + UNDEFINED + b"abcd",  # undefined length, no sequence
        b"\x40\0\x30\xa7SQ\0\0\x08\0\0\0" + b"12345678",  # a sequence without items
        b"\x40\0\x30\xa7SQ\0\0\x08\0\0\0" + item(b"", struct.pack("<L", 99)),
        b"\x40\0\x30\xa7SQ\0\0" + UNDEFINED + item(b""),  # never ends
        image() + encapsulated(b"ab")[:-8],
        native(b"ab")[:10],
        dicom.element(0x00180050, b"DS", b"5 ") + b"\1\2\3",
    ],
)
def test_a_malformed_data_set_is_refused(data, tmp_path):
    assert refusal(dicom.raw_file(tmp_path / "a", data)).code in (
        "malformed",
        "truncated",
        "pixels",
    )


def test_trailing_zeros_are_padding(tmp_path):
    whole = dicom.element(0x00180050, b"DS", b"5 ")
    known = commit_file(dicom.raw_file(tmp_path / "a", whole)).commitment
    for zeros in (3, 8, 100):
        padded = commit_file(dicom.raw_file(tmp_path / "b", whole + bytes(zeros))).commitment
        assert padded.core == known.core


def test_a_folder_with_everything_in_it_gives_a_list_and_no_traceback(tmp_path):
    for number, path in enumerate(dicom.shipped()):
        (tmp_path / f"{number}.dcm").write_bytes(path.read_bytes())
    (tmp_path / "notes.txt").write_text("hello")
    reading = read_studies([tmp_path])
    assert {"foreign", "directory", "truncated", "no_uid"} <= {u.code for u in reading.unreadable}
    known = sum(len(s.files) + len(s.repeated) for s in reading.studies)
    in_conflict = sum(len(c.names) for s in reading.studies for c in s.conflicts)
    assert known + in_conflict + len(reading.unreadable) == len(dicom.shipped()) + 1
    assert known > 70


SEEDS = [
    (dicom.FILES / name).read_bytes()
    for name in (
        "rtplan.dcm",
        "test-SR.dcm",
        "MR_small_RLE.dcm",
        "SC_rgb_rle_2frame.dcm",
        "MR_small_bigendian.dcm",
        "UN_sequence.dcm",
        "priv_SQ.dcm",
        "image_dfl.dcm",
        "JPEG2000.dcm",
    )
]
FUZZED = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_or_refuse(path, data):
    path.write_bytes(data)
    result = read_instance(path, Limits(frame_bytes_max=MEBIBYTE, inflated_free_bytes=MEBIBYTE))
    assert isinstance(result, CommittedFile | UnreadableInstance)
    return result


@FUZZED
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused(data, tmp_path):
    mutated = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(128, len(mutated) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=6))
        mutated[at : at + len(patch)] = patch
    cut = data.draw(st.integers(132, len(mutated)))
    read_or_refuse(tmp_path / "a", bytes(mutated[:cut] if cut % 3 == 0 else mutated))


@FUZZED
@given(
    body=st.binary(max_size=400),
    syntax=st.sampled_from([DEFLATED, RLE, IMPLICIT, JPEG2000, b"1.2.840.10008.1.2.2\0"]),
)
def test_random_bytes_after_the_meta_information_are_read_or_refused(body, syntax, tmp_path):
    read_or_refuse(dicom.raw_file(tmp_path / "a", body, syntax), (tmp_path / "a").read_bytes())


class Recorder:
    """A visitor that writes down what pydicom would show of the top level."""

    def __init__(self):
        self.depth, self.values, self.sequences, self.items = 0, {}, {}, []

    def value(self, tag, vr, little_endian, data):
        if not self.depth:
            self.values[tag] = data

    def begin_sequence(self, tag):
        if not self.depth:
            self.sequences[tag] = 0
            self.items = [tag]
        self.depth += 1

    def begin_item(self):
        if self.depth == 1:
            self.sequences[self.items[0]] += 1

    def end_item(self): ...

    def end_sequence(self):
        self.depth -= 1

    def fragments(self, tag, offset_table, spans):
        if not self.depth:
            self.values[tag] = spans


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", dicom.readable(), ids=lambda path: path.name)
def test_the_parser_finds_what_pydicom_finds(path):
    """Two readers, written apart, agree on every shipped file."""
    ds = pydicom.dcmread(path)
    data = path.read_bytes()
    syntax = syntax_of(ds.file_meta.TransferSyntaxUID)
    start = 132 + sum(_encoded_meta(data))
    body = data[start:]
    if syntax.deflated:
        body = zlib.decompress(body, -zlib.MAX_WBITS)
    seen = Recorder()
    Parser(io.BytesIO(body), len(body), "test", Limits(), seen).data_set(syntax)
    assert seen.values.keys() | seen.sequences.keys() == set(ds.keys())
    for tag, count in seen.sequences.items():
        if ds[tag].VR == "SQ":  # pydicom leaves unknown private sequences as bytes
            assert len(ds[tag].value) == count
    for tag, value in seen.values.items():
        raw = ds.get_item(tag)
        if isinstance(value, bytes) and hasattr(raw, "is_raw") and raw.is_raw and raw.value:
            assert raw.value == value


def _encoded_meta(data):
    """Yield the lengths of the elements of group 0002."""
    at = 132
    while data[at : at + 2] == b"\2\0":
        long = data[at + 4 : at + 6] in (b"OB", b"UN")
        size = struct.unpack_from("<L" if long else "<H", data, at + (8 if long else 6))[0]
        yield (12 if long else 8) + size
        at += (12 if long else 8) + size


def test_the_item_tag_is_that_of_the_standard():
    assert ITEM == 0xFFFEE000  # PS3.5 §7.5
