"""WADO-RS against a real server: exact bytes, metadata, frames, pictures; what cannot be is 406."""

import asyncio
import io
import json
import re
import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels import pixel_array
from pydicom.uid import JPEGBaseline8Bit, RLELossless

from node.gateway.web import files
from node.gateway.web.attributes import read_attributes
from node.imaging.commitment import SOP_INSTANCE
from node.imaging.errors import UnreadableInstance
from node.imaging.reader import read_instance
from tests.imaging.dicom import CT_FOLDER, FILES, big_endian, minimal, readable

AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'


def unique():
    """Return the files of the wheel that are instances, one for each SOP Instance UID."""
    read = [read_instance(path) for path in readable()]
    good = [one for one in read if not isinstance(one, UnreadableInstance)]
    assert len(good) > 100
    return {one.text(SOP_INSTANCE): Path(one.name) for one in good}


def parts_of(headers, body):
    """Return the parts of a multipart answer as (header, bytes)."""
    kind = r'multipart/related; type="[^"]+"; boundary=(\w+)'
    boundary = re.fullmatch(kind, headers["Content-Type"])[1]
    assert body.endswith(f"\r\n--{boundary}--\r\n".encode())
    found = []
    for part in body.split(f"--{boundary}\r\n".encode())[1:]:
        head, _, data = part.partition(b"\r\n\r\n")
        lengths = re.search(rb"Content-Length: (\d+)", head)
        found.append((head.decode(), data[: int(lengths[1])]))
    return found


def path_of(path, tail=""):
    with path.open("rb") as stream:
        found = dict(read_attributes(stream))
    series = f"/studies/{found[0x0020000D]}/series/{found[0x0020000E]}"
    return f"{series}/instances/{found[0x00080018]}{tail}"


async def test_every_readable_file_comes_out_as_it_went_in_and_has_metadata(serve):
    known = unique()
    async with serve(known.values()) as site:
        for path in known.values():
            status, headers, body = await site.get(path_of(path), AS_STORED)
            assert status == 200
            ((head, data),) = parts_of(headers, body)
            assert data == path.read_bytes(), path
            assert "transfer-syntax=1.2.840.10008.1.2" in head
            status, headers, body = await site.get(path_of(path, "/metadata"))
            assert (status, headers["Content-Type"]) == (200, "application/dicom+json")
            (found,) = json.loads(body)
            assert found["00080018"]["Value"] == [str(pydicom.dcmread(path).SOPInstanceUID)]
            pydicom.Dataset.from_json(found, lambda tag, vr, uri: b"")


async def test_dicomweb_client_gets_studies_series_and_instances(serve):
    paths = sorted(p for p in CT_FOLDER.rglob("*") if p.is_file())
    async with serve(paths) as site:
        held = site.holdings.study(site.holdings.studies()[0].uid)
        one = held.instances[0]
        whole = await site.ask(
            "retrieve_study", held.uid, media_types=((("application/dicom", "*")),)
        )
        assert {ds.SOPInstanceUID for ds in whole} == held.by_uid.keys()
        series = await site.ask("retrieve_series", held.uid, one.series_uid)
        assert len(series) == len(held.series[one.series_uid])
        single = await site.ask("retrieve_instance", held.uid, one.series_uid, one.sop_uid)
        original = pydicom.dcmread(one.place)
        assert single.PatientName == original.PatientName
        assert np.array_equal(single.pixel_array, original.pixel_array)
        metadata = await site.ask("retrieve_study_metadata", held.uid)
        assert len(metadata) == len(held.instances)
        frames = await site.ask(
            "retrieve_instance_frames", held.uid, one.series_uid, one.sop_uid, [1]
        )
        assert frames == [original.PixelData]
        image = await site.ask(
            "retrieve_instance_rendered", held.uid, one.series_uid, one.sop_uid,
            media_types=("image/png",),
        )  # fmt: skip
        assert Image.open(BytesIO(image)).size == (original.Columns, original.Rows)


TRANSCODED = [
    "MR_small_RLE.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_jpeg_dcmtk.dcm", "image_dfl.dcm",
    "J2K_pixelrep_mismatch.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
]  # fmt: skip


@pytest.mark.parametrize("name", TRANSCODED)
async def test_without_a_syntax_an_object_comes_in_the_default_one(serve, name):
    path = FILES / name
    if not path.exists():
        path = next(p for p in readable() if p.name == name)
    async with serve([path]) as site:
        status, headers, body = await site.get(path_of(path), "application/dicom")
        assert status == 200
        assert headers["Content-Type"] == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
        given, original = pydicom.dcmread(BytesIO(body)), pydicom.dcmread(path)
        assert given.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert given.SOPInstanceUID == original.SOPInstanceUID
        assert np.array_equal(pixel_array(given), pixel_array(original))


async def test_a_syntax_that_cannot_be_given_is_406_and_the_next_best_is_taken(serve):
    path = FILES / "MR_small_RLE.dcm"
    j2k = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.90'
    async with serve([path]) as site:
        assert (await site.get(path_of(path), j2k))[0] == 406
        unknown = j2k.replace("1.2.840.10008.1.2.4.90", "1.2.3")
        assert (await site.get(path_of(path), unknown))[0] == 406
        assert (await site.get(path_of(path), "image/jpeg"))[0] == 406
        status, headers, body = await site.get(path_of(path), f"{j2k}, {AS_STORED};q=0.5")
        assert status == 200
        assert parts_of(headers, body)[0][1] == path.read_bytes()
        jpeg = 'multipart/related; type="image/jpeg"'
        assert (await site.get(path_of(path, "/frames/1"), jpeg))[0] == 406


async def test_an_undecodable_syntax_is_406_with_a_way_out(serve, tmp_path):
    path = FILES / "JPGExtended.dcm"  # twelve bits
    async with serve([path]) as site:
        status, _, body = await site.get(path_of(path))
        assert status == 406
        assert "transfer-syntax=*" in json.loads(body)["error"]["sentence"]
        assert (await site.get(path_of(path, "/rendered")))[0] == 406
        status, headers, body = await site.get(
            path_of(path, "/frames/1"), 'multipart/related; type="image/jpeg"'
        )
        assert status == 200
        assert parts_of(headers, body)[0][1].startswith(b"\xff\xd8")


async def test_frames_native_in_order_and_little_endian(serve, tmp_path):
    pixels = np.arange(5 * 4 * 3, dtype="<u2").reshape(5, 4, 3)
    path = minimal(tmp_path / "frames.dcm", pixels=pixels)
    turned = big_endian(path, tmp_path / "turned.dcm")
    for source in (path, turned):
        async with serve([source]) as site:
            status, headers, body = await site.get(path_of(source, "/frames/4,1,5"))
            assert status == 200
            frames = [data for _, data in parts_of(headers, body)]
            assert frames == [pixels[n].tobytes() for n in (3, 0, 4)]
            status, headers, body = await site.get(
                path_of(source, "/frames/2"), "application/octet-stream"
            )
            assert body == pixels[1].tobytes()
            assert (await site.get(path_of(source, "/frames/6")))[0] == 404
            for bad in ("0", "1,,2", "x", "1-2", "9" * 30):
                assert (await site.get(path_of(source, f"/frames/{bad}")))[0] in (400, 404)


async def test_one_bit_frames_that_begin_within_a_byte(serve, tmp_path):
    bits = np.random.default_rng(1).integers(0, 2, (3, 3, 3), np.uint8)
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    path = minimal(tmp_path / "bits.dcm", pixels=np.zeros((3, 3, 3), np.uint8), BitsAllocated=1,
                   BitsStored=1, HighBit=0, PixelData=packed)  # fmt: skip
    async with serve([path]) as site:
        _, headers, body = await site.get(path_of(path, "/frames/2"))
        ((_, data),) = parts_of(headers, body)
        expected = np.packbits(bits[1].ravel(), bitorder="little").tobytes()
        assert data == expected


async def test_compressed_frames_as_stored_and_decoded(serve, tmp_path):
    pixels = np.arange(3 * 8 * 8, dtype="<u2").reshape(3, 8, 8)
    ds = pydicom.dcmread(minimal(tmp_path / "native.dcm", pixels=pixels))
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(tmp_path / "rle.dcm")
    path = tmp_path / "rle.dcm"
    async with serve([path]) as site:
        _, headers, body = await site.get(
            path_of(path, "/frames/3"), 'multipart/related; type="image/dicom-rle"'
        )
        ((head, data),) = parts_of(headers, body)
        assert "image/dicom-rle; transfer-syntax=1.2.840.10008.1.2.5" in head
        alone = pydicom.dcmread(path)
        alone.NumberOfFrames, alone.PixelData = 1, encapsulate([data])
        assert np.array_equal(alone.pixel_array, pixels[2])
        _, headers, body = await site.get(path_of(path, "/frames/2,3"))
        assert [data for _, data in parts_of(headers, body)] == [
            pixels[1].tobytes(), pixels[2].tobytes(),
        ]  # fmt: skip
        stored = 'multipart/related; type="*/*"; transfer-syntax=*'
        _, headers, body = await site.get(path_of(path, "/bulkdata/7FE00010"), stored)
        assert len(parts_of(headers, body)) == 3


@pytest.mark.parametrize(
    "accept",
    [
        "multipart/related; type=application/octet-stream; transfer-syntax=*",  # OHIF's own
        'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.5',
        "multipart/related; type=image/x-dicom-rle; transfer-syntax=*",
        'multipart/related; type="image/dicom+rle"',
        'multipart/related; type="image/jls", multipart/related; type="image/dicom-rle"',
    ],
)
async def test_viewers_get_compressed_frames_as_stored(serve, accept):
    path = FILES / "MR_small_RLE.dcm"
    async with serve([path]) as site:
        status, headers, body = await site.get(path_of(path, "/frames/1"), accept)
    assert status == 200
    ((head, data),) = parts_of(headers, body)
    assert "image/dicom-rle; transfer-syntax=1.2.840.10008.1.2.5" in head
    assert data in path.read_bytes()


async def test_octets_of_no_syntax_are_samples(serve):
    path = FILES / "MR_small_RLE.dcm"
    octets = 'multipart/related; type="application/octet-stream"'
    async with serve([path]) as site:
        _, headers, body = await site.get(path_of(path, "/frames/1"), octets)
    ((head, data),) = parts_of(headers, body)
    assert "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1" in head
    assert data == pydicom.dcmread(path).pixel_array.tobytes()


class Counted(io.RawIOBase):
    """A file that counts what is read of it, in pieces as the store's."""

    def __init__(self, file):
        self.file, self.bytes = file, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        return self.file.seek(offset, whence)

    def tell(self):
        return self.file.tell()

    def readinto(self, target):
        read = self.file.readinto(target)
        self.bytes += read
        return read

    def close(self):
        self.file.close()
        super().close()


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
async def test_one_frame_of_many_costs_one_frame_where_a_table_says_where_it_is(
    serve, tmp_path, table
):
    frames = [bytes([n]) * 100_000 for n in range(40)]
    ds = pydicom.dcmread(minimal(tmp_path / "native.dcm"))
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.NumberOfFrames = len(frames)
    ds.PixelData = encapsulate(frames, has_bot=table == "basic")
    if table == "extended":
        found = encapsulate_extended(frames)
        ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = found
    ds["PixelData"].VR = "OB"
    path = tmp_path / "many.dcm"
    ds.save_as(path)
    opened = []

    def counted(instance):
        opened.append(Counted(instance.place.open("rb", buffering=0)))
        return io.BufferedReader(opened[-1], 4_096)

    async with serve([path]) as site:
        site.holdings.open = counted
        for number in (1, 20, 40):
            opened.clear()
            uri = path_of(path, f"/frames/{number}")
            _, headers, body = await site.get(uri, 'multipart/related; type="image/jpeg"')
            ((_, data),) = parts_of(headers, body)
            assert data == frames[number - 1]
            (once,) = opened  # for the layout and the frame
            assert once.bytes < (900_000 if table == "none" else 150_000)
        assert (await site.get(path_of(path, "/frames/41")))[0] == 404


async def test_very_many_fragments_without_a_table_are_refused(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LIMITS", replace(files.LIMITS, fragments_max=10))
    ds = pydicom.dcmread(minimal(tmp_path / "native.dcm"))
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([bytes(100)], fragments_per_frame=20, has_bot=False)
    ds["PixelData"].VR = "OB"
    path = tmp_path / "many.dcm"
    ds.save_as(path)
    async with serve([path]) as site:
        uri = path_of(path, "/frames/1")
        assert (await site.get(uri, 'multipart/related; type="image/jpeg"'))[0] == 413
        assert (await site.get(path_of(path, "/metadata")))[0] == 200


async def test_long_values_are_fetched_by_the_address_that_metadata_gives(serve, tmp_path):
    inner, outer = bytes(range(256)) * 8, b"%PDF-1" + bytes(3_000_000)
    item = pydicom.Dataset()
    item.EncapsulatedDocument = inner
    path = minimal(tmp_path / "bulk.dcm", EncapsulatedDocument=outer)
    ds = pydicom.dcmread(path)
    ds.ContentSequence = [pydicom.Dataset(), item]
    ds.save_as(path)
    async with serve([path]) as site:
        found = json.loads((await site.get(path_of(path, "/metadata")))[2])[0]
        root = site.server.url
        for element, value in (
            (found["00420011"], outer),
            (found["0040A730"]["Value"][1]["00420011"], inner),
        ):
            assert element["BulkDataURI"].startswith(root)
            uri = element["BulkDataURI"][len(root) :]
            assert (await site.get(uri, "application/octet-stream"))[2] == value
            _, headers, body = await site.get(uri)
            assert parts_of(headers, body)[0][1] == value
        assert "BulkDataURI" in found["7FE00010"]
        for bad in ("0040A730/7/00420011", "0040A730", "00420012", "zz"):
            assert (await site.get(path_of(path, f"/bulkdata/{bad}")))[0] == 404


async def test_pictures_follow_window_viewport_and_format(serve):
    path = FILES / "CT_small.dcm"
    async with serve([path]) as site:

        async def shown(query="", accept="image/png", kind="rendered"):
            status, headers, body = await site.get(path_of(path, f"/{kind}{query}"), accept)
            assert status == 200, body
            assert headers["Content-Type"] == accept
            return np.asarray(Image.open(BytesIO(body)))

        ds = pydicom.dcmread(path)
        values = ds.pixel_array.astype(float) * ds.RescaleSlope + ds.RescaleIntercept
        expected = ((values - (40 - 0.5)) / (400 - 1) + 0.5) * 255  # PS3.3 C.11.2.1.2.1
        picture = await shown("?window=40,400,linear")
        assert np.abs(picture - expected.clip(0, 255)).max() <= 1
        exact = ((values - 40) / 400 + 0.5) * 255
        assert np.abs(await shown("?window=40,400,linear-exact") - exact.clip(0, 255)).max() <= 1
        assert (await shown("?viewport=64,32")).shape == (32, 32)
        assert (await shown("?viewport=10,10,0,0,20,20")).shape == (10, 10)
        assert (await shown(accept="image/jpeg", kind="thumbnail")).shape == (200, 200)
        assert (await shown(accept="image/gif")).shape == (128, 128)
        assert (await site.get(path_of(path, "/rendered"), "image/webp"))[0] == 406
        for bad in ("viewport=0,1", "viewport=1", "viewport=99999,1", "window=1,0,linear",
                    "window=1,nan,linear", "quality=0", "colour=red",
                    "window=1,2,cubic"):  # fmt: skip
            assert (await site.get(path_of(path, f"/rendered?{bad}")))[0] == 400, bad


async def test_every_image_of_the_wheel_is_shown_but_twelve_bit_jpeg(serve):
    known, refused = unique(), set()
    async with serve(known.values()) as site:
        for path in known.values():
            status, _, body = await site.get(path_of(path, "/rendered?viewport=64,64"))
            if status == 200:
                assert max(Image.open(BytesIO(body)).size) == 64
            elif "PixelData" in pydicom.dcmread(path):
                assert status == 406
                refused.add(path.name)
    assert refused == {"JPGExtended.dcm"}


async def test_monochrome1_is_inverted_and_palettes_and_enhanced_windows_are_applied(
    serve, tmp_path
):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = minimal(tmp_path / "inverse.dcm", pixels=ramp, PhotometricInterpretation="MONOCHROME1")
    ds = pydicom.dcmread(minimal(tmp_path / "enhanced.dcm", sop="1.2.3.4.6",
                                 pixels=np.stack([ramp, ramp])))  # fmt: skip
    per_frame = []
    for center in (64, 192):
        window, groups = pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = center, 2
        groups.FrameVOILUTSequence = [window]
        per_frame.append(groups)
    ds.PerFrameFunctionalGroupsSequence = per_frame
    enhanced = tmp_path / "enhanced.dcm"
    ds.save_as(enhanced)
    async with serve([path, enhanced]) as site:

        async def shown(source, tail):
            return np.asarray(Image.open(BytesIO((await site.get(
                path_of(source, tail), "image/png"))[2])))  # fmt: skip

        assert np.array_equal(await shown(path, "/rendered"), 255 - ramp)
        for number, center in ((1, 64), (2, 192)):
            picture = await shown(enhanced, f"/frames/{number}/rendered")
            assert (picture.ravel()[: center - 2] == 0).all()
            assert (picture.ravel()[center + 2 :] == 255).all()


async def test_thumbnails_of_a_series_and_a_study_show_an_image(serve):
    paths = sorted(p for p in CT_FOLDER.rglob("*") if p.is_file())
    async with serve(paths) as site:
        study = site.holdings.study(site.holdings.studies()[0].uid)
        for path in (
            f"/studies/{study.uid}",
            f"/studies/{study.uid}/series/{study.instances[0].series_uid}",
        ):
            status, headers, body = await site.get(f"{path}/thumbnail")
            assert (status, headers["Content-Type"]) == (200, "image/jpeg")
            assert max(Image.open(BytesIO(body)).size) == 200


async def test_what_is_not_here_or_no_image_says_so(serve):
    report = next(p for p in readable() if p.name == "reportsi.dcm")
    async with serve([report]) as site:
        own = path_of(report)
        assert (await site.get(own + "/rendered"))[0] == 406
        assert (await site.get(own + "/frames/1"))[0] == 406
        study, series = own.split("/")[2], own.split("/")[4]
        for path in (
            "/studies/1.2.3", f"/studies/{study}/series/1.2.3",
            f"/studies/{study}/series/{series}/instances/1.2.3",
            f"/studies/1.2.3/series/{series}/instances/{own.split('/')[6]}", "/nothing",
        ):  # fmt: skip
            assert (await site.get(path))[0] == 404, path
        assert (await site.get("/studies/..%2f..%2fetc"))[0] in (400, 404)
        assert (await site.get("/studies/1.2.x"))[0] == 400


async def test_a_withheld_study_is_403_and_audited(serve):
    path = FILES / "CT_small.dcm"
    async with serve([path]) as site:
        uid = site.holdings.studies()[0].uid
        site.holdings.withheld.add(uid)
        assert (await site.get(f"/studies/{uid}", AS_STORED))[0] == 403
        record = site.audit.records[-1]
        assert (record.status, record.code, record.study_uid) == (403, "withheld", uid)
        assert uid not in repr(record)


async def test_half_a_study_never_looks_like_a_whole_one(serve, tmp_path):
    paths = [minimal(tmp_path / f"{n}.dcm", sop=f"1.2.3.4.{n}") for n in range(3)]
    async with serve(paths) as site:
        paths[2].unlink()
        with pytest.raises(Exception, match=r"payload|disconnect|closed|reset"):
            await site.get("/studies/1.2.3", AS_STORED)
        assert site.audit.records[-1].status == 0


async def test_metadata_of_rows_and_columns_that_do_not_fit_the_pixels(serve, tmp_path):
    path = minimal(tmp_path / "bad.dcm", Rows=500, Columns=500)
    huge = minimal(tmp_path / "huge.dcm", sop="1.2.3.9", Rows=65535, Columns=65535)
    async with serve([path, huge]) as site:
        assert (await site.get(path_of(path, "/metadata")))[0] == 200
        assert (await site.get(path_of(path, "/frames/1")))[0] == 500
        assert (await site.get(path_of(path, "/rendered")))[0] == 500
        assert (await site.get(path_of(huge, "/rendered")))[0] in (413, 500)
        assert (await site.get(path_of(path), AS_STORED))[0] == 200


async def test_a_header_of_very_many_items_is_not_given_to_pydicom(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DEEP_ELEMENTS_MAX", 5_000)  # enough to see it, and quick
    path = minimal(tmp_path / "items.dcm")
    data = path.read_bytes()
    at = data.index(b"\x08\x00\x60\x00CS")
    items = struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 6_000
    head = struct.pack("<HH2sHL", 0x0008, 0x0051, b"SQ", 0, 0xFFFFFFFF)
    path.write_bytes(data[:at] + head + items + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0) + data[at:])
    assert not isinstance(read_instance(path), UnreadableInstance)  # it can be registered
    async with serve([path]) as site:
        assert (await site.get(path_of(path, "/metadata")))[0] == 413
        assert (await site.get(path_of(path, "/rendered")))[0] == 413
        assert (await site.get(path_of(path, "/frames/1")))[0] == 200
        assert (await site.get(path_of(path), AS_STORED))[0] == 200


async def test_a_codec_that_hangs_or_eats_memory_costs_one_answer(serve, tmp_path, monkeypatch):
    bad = pydicom.dcmread(minimal(tmp_path / "bad.dcm", Rows=4096, Columns=4096))
    bad.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    bad.PixelData = encapsulate([b"\xff\xd8" + bytes(range(256)) * 40])
    bad["PixelData"].VR = "OB"
    bad.save_as(tmp_path / "bad.dcm")
    good = minimal(tmp_path / "good.dcm", sop="1.2.3.9")
    async with serve([tmp_path / "bad.dcm", good]) as site:
        assert (await site.get(path_of(tmp_path / "bad.dcm", "/rendered")))[0] == 406
        assert (await site.get(path_of(good, "/rendered")))[0] == 200


async def test_pictures_can_be_asked_for_at_once(serve):
    path = FILES / "CT_small.dcm"
    async with serve([path]) as site:
        answers = await asyncio.gather(*(site.get(path_of(path, "/rendered")) for _ in range(8)))
        assert {status for status, _, _ in answers} == {200}
        assert len({body for _, _, body in answers}) == 1
