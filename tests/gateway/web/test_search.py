"""QIDO-RS: matching by PS3.4 C.2.2.2, paging, includefield, and nothing of the patient outside."""

import json
from contextlib import suppress
from io import BytesIO

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gateway.web.attributes import TAGS, read_attributes
from node.gateway.web.errors import Problem
from node.gateway.web.files import Failed
from node.gateway.web.matching import Key, Level, _wild, matches, read_query
from tests.gateway.web.conftest import OUTSIDE
from tests.imaging.dicom import CT_FOLDER, FILES, minimal, readable

NAME, DATE, TIME, MODALITIES, UID = 0x00100010, 0x00080020, 0x00080030, 0x00080061, 0x0020000D
NUMBER, DESCRIPTION = 0x00200013, 0x00081030


@pytest.mark.parametrize(
    ("tag", "asked", "values", "fits"),
    [
        (NAME, "doe^jane", ("Doe^Jane",), True),
        (NAME, "Doe^Jane", ("Doe^Jane^^",), True),
        (NAME, "doe", ("Doe^Jane",), False),
        (NAME, "doe*", ("Doe^Jane",), True),
        (NAME, "?oe^*", ("Doe^Jane",), True),
        (NAME, "山田*", ("Yamada^Tarou=山田^太郎=やまだ^たろう",), True),
        (NAME, "やまだ*", ("Yamada^Tarou=山田^太郎=やまだ^たろう",), True),
        (NAME, "*", (), True),
        (NAME, "x*", (), False),
        (DESCRIPTION, "HEAD", ("head",), False),
        (DESCRIPTION, "HE[A]D", ("HEAD",), False),
        (DESCRIPTION, "HEAD*", ("HEAD+NECK",), True),
        (DATE, "20200101", ("20200101",), True),
        (DATE, "20200101", ("20200102",), False),
        (DATE, "20200101-20200131", ("20200131",), True),
        (DATE, "20200101-20200131", ("20200201",), False),
        (DATE, "-20200131", ("19990101",), True),
        (DATE, "20200101-", ("19990101",), False),
        (DATE, "20200101", ("2020.01.01",), True),
        (TIME, "10", ("103059.5",), True),
        (TIME, "1000-1030", ("103059.5",), True),
        (TIME, "1000-1030", ("103100",), False),
        (TIME, "10:00-10:30", ("101500",), True),
        (UID, "1.2.3,1.2.4", ("1.2.4",), True),
        (UID, "1.2.3\\1.2.4", ("1.2.3",), True),
        (UID, "1.2.3", ("1.2.34",), False),
        (MODALITIES, "MR", ("CT", "MR"), True),
        (MODALITIES, "PT", ("CT", "MR"), False),
        (MODALITIES, "PT,MR", ("CT", "MR"), True),
        (MODALITIES, "PT\\MR", ("CT", "MR"), True),
        (MODALITIES, "PT, C*", ("CT", "MR"), True),
        (MODALITIES, "PT,US", ("CT", "MR"), False),
        (NUMBER, "7", ("07",), True),
        (NUMBER, "7", ("70",), False),
    ],
)  # fmt: skip
def test_matching(tag, asked, values, fits):
    assert matches([Key(tag, asked)], {tag: values}) is fits


@given(st.text(alphabet="ab*?", max_size=12), st.text(alphabet="ab", max_size=12))
def test_wildcards_as_a_slow_reference_has_them(asked, value):
    def slow(a, v):
        if not a:
            return not v
        if a[0] == "*":
            return slow(a[1:], v) or (bool(v) and slow(a, v[1:]))
        return bool(v) and a[0] in ("?", v[0]) and slow(a[1:], v[1:])

    assert _wild(asked, value) is slow(asked, value)


def test_many_stars_cost_little():
    assert not _wild("*a" * 400, "a" * 399 + "b" * 600)


@pytest.mark.parametrize(
    "parameters",
    [
        [("Nonsense", "1")],
        [("00100010", "a"), ("PatientName", "b")],
        [("limit", "-1")],
        [("limit", "1"), ("limit", "2")],
        [("offset", "x")],
        [("StudyDate", "yesterday")],
        [("StudyDate", "-")],
        [("StudyInstanceUID", "1.2.3 or 1=1")],
        [("PatientName", "x" * 2_000)],
        [("PixelData", "x")],
        [("SOPInstanceUID", "1.2.3")],
        [("includefield", "Nonsense")],
        [("RequestAttributesSequence.ScheduledProcedureStepID", "1")],
    ],
)
def test_what_is_not_understood_is_400(parameters):
    with pytest.raises(Problem) as refused:
        read_query(Level.STUDY, {}, parameters, 100)
    assert refused.value.status == 400
    assert "1=1" not in refused.value.sentence


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=4))
def test_any_query_is_read_or_400(parameters):
    with suppress(Problem):
        read_query(Level.INSTANCE, {}, parameters, 100)


def test_attributes_of_every_shipped_file_are_few_and_short():
    for path in readable():
        with path.open("rb") as stream:
            found = read_attributes(stream)
        assert [tag for tag, _ in found] == sorted(tag for tag, _ in found)
        assert {tag for tag, _ in found} <= TAGS
        assert sum(len(text) for _, text in found) < 4_096
        whole = pydicom.dcmread(path, stop_before_pixels=True)
        if "PatientName" in whole and whole.PatientName:
            assert dict(found)[NAME] == str(whole.PatientName).strip()


@given(st.data())
def test_attributes_of_damaged_files_fail_cleanly(data):
    file = bytearray((FILES / "CT_small.dcm").read_bytes()[:3_000])
    for _ in range(data.draw(st.integers(1, 6))):
        file[data.draw(st.integers(128, len(file) - 1))] = data.draw(st.integers(0, 255))
    with suppress(Failed):
        read_attributes(BytesIO(bytes(file)))


async def search(site, path, token=None):
    status, headers, body = await (site.get(path, token=token) if token else site.get(path))
    assert status == 200, body
    assert headers["Content-Type"] == "application/dicom+json"
    return json.loads(body), headers


def values(rows, tag):
    return [row[tag].get("Value", [None])[0] for row in rows]


async def test_dicomweb_client_finds_studies_series_and_instances(serve):
    paths = sorted(p for p in CT_FOLDER.rglob("*") if p.is_file())
    async with serve([*paths, FILES / "MR_small.dcm"]) as site:
        (study,) = await site.ask("search_for_studies", search_filters={"PatientID": "98890234"})
        assert study["00100010"]["Value"] == [{"Alphabetic": "Doe^Peter"}]
        assert study["00201208"]["Value"] == [len(paths)]
        assert study["00080061"]["Value"] == ["CT"]
        uid = study["0020000D"]["Value"][0]
        series = await site.ask("search_for_series", uid)
        assert sum(row["00201209"]["Value"][0] for row in series) == len(paths)
        instances = await site.ask("search_for_instances", uid)
        assert len(instances) == len(paths)
        first = instances[0]
        url = first["00081190"]["Value"][0]
        assert url.startswith(site.server.url)
        status, _, _ = await site.get(url[len(site.server.url) :], "application/dicom")
        assert status == 200
        assert len(await site.ask("search_for_studies", fuzzymatching=True)) == 2
        assert await site.ask("search_for_studies", search_filters={"PatientID": "nobody"}) == []


async def test_pages_are_disjoint_and_whole(serve, tmp_path):
    paths = [
        minimal(tmp_path / f"{n}.dcm", sop=f"1.2.{n}", study=f"1.2.3.{n}", StudyDate="20200101")
        for n in range(7)
    ]
    async with serve(paths, limits={"results_max": 3}) as site:
        seen = []
        for offset in (0, 3, 6):
            rows, headers = await search(site, f"/studies?offset={offset}")
            seen += values(rows, "0020000D")
            assert ("Warning" in headers) is (offset < 6)
        assert sorted(seen) == [f"1.2.3.{n}" for n in range(7)]
        rows, _ = await search(site, "/studies?limit=2&offset=1")
        assert values(rows, "0020000D") == seen[1:3]
        assert (await search(site, "/studies?limit=0"))[0] == []
        assert (await search(site, "/studies?offset=100"))[0] == []
        assert len((await search(site, "/instances?limit=100"))[0]) == 3


async def test_latest_first_and_numbers_in_order(serve, tmp_path):
    dates = ("20200101", "20220101", "20210101")
    paths = [
        minimal(tmp_path / f"{n}.dcm", sop=f"1.2.{n}", study=f"1.2.3.{n}", StudyDate=date)
        for n, date in enumerate(dates)
    ]
    paths += [
        minimal(tmp_path / f"s{n}.dcm", sop=f"1.3.{n}", study="1.9", InstanceNumber=n)
        for n in (10, 2, 1)
    ]
    async with serve(paths) as site:
        rows, _ = await search(site, "/studies")
        assert values(rows, "00080020") == ["20220101", "20210101", "20200101", None]
        rows, _ = await search(site, "/studies/1.9/instances")
        assert values(rows, "00200013") == [1, 2, 10]


async def test_fields_are_added_by_includefield_only(serve):
    async with serve([FILES / "CT_small.dcm"]) as site:
        (plain,), _ = await search(site, "/studies")
        assert "00081030" not in plain
        assert {"00080020", "00080030", "00080050", "00080056", "00080061", "00080090"} <= set(
            plain
        )
        assert {"00100010", "00100020", "00100030", "00100040", "0020000D", "00200010"} <= set(
            plain
        )
        for field in ("StudyDescription", "00081030", "all", "PatientAge,StudyDescription"):
            (row,), _ = await search(site, f"/studies?includefield={field}")
            assert row["00081030"]["Value"] == ["e+1"]
        (row,), _ = await search(site, "/instances?includefield=00080023")
        assert "00080023" in row
        assert row["00280010"]["Value"] == [128]


async def test_fuzzy_matching_is_said_to_be_missing(serve):
    async with serve([FILES / "CT_small.dcm"]) as site:
        _, headers = await search(site, "/studies?fuzzymatching=true&PatientName=Compressed*")
        assert "fuzzymatching" in headers["Warning"]
        _, headers = await search(site, "/studies?fuzzymatching=false")
        assert "Warning" not in headers


async def test_outside_nothing_of_the_patient_is_given_or_searched(serve):
    async with serve([FILES / "CT_small.dcm"]) as site:
        local = (await search(site, "/studies?includefield=all"))[0][0]
        assert any(tag.startswith("0010") for tag in local)
        for path in ("/studies?includefield=all", "/series?includefield=PatientName", "/instances"):
            (row,), _ = await search(site, path, OUTSIDE)
            assert not [tag for tag in row if tag.startswith("0010")]
            assert "CompressedSamples" not in json.dumps(row)
        status, _, _ = await site.get("/studies?PatientID=1CT1", token=OUTSIDE)
        assert status == 403
        uid = local["0020000D"]["Value"][0]
        for path in (f"/studies/{uid}", f"/studies/{uid}/metadata"):
            assert (await site.get(path, token=OUTSIDE))[0] == 403
        assert (await site.post("/studies", b"x", "application/dicom", token=OUTSIDE))[0] == 403


async def test_a_search_that_is_too_broad_is_413(serve, tmp_path):
    paths = [minimal(tmp_path / f"{n}.dcm", sop=f"1.2.{n}", study=f"1.2.3.{n}") for n in range(4)]
    async with serve(paths, limits={"studies_examined_max": 3}) as site:
        assert (await site.get("/series?SeriesDescription=nothing"))[0] == 413
        assert (await site.get("/series?StudyInstanceUID=1.2.3.1"))[0] == 200
        assert (await site.get("/studies/1.2.3.1/series/1.2.3.1.1/instances"))[0] == 200
        assert (await site.get("/studies/1.2.3.1/instances?StudyInstanceUID=1.2.3.2"))[0] == 400


async def test_no_value_of_a_data_set_reaches_logs_or_errors(serve, caplog, recwarn):
    caplog.set_level("DEBUG")
    async with serve(readable()[:60]) as site:
        rows, _ = await search(site, "/studies?includefield=all")
        for row in rows:
            uid = row["0020000D"].get("Value", [""])[0]
            await site.get(f"/studies/{uid}/metadata")
            status, _, body = await site.get(f"/studies/{uid}/rendered")
            assert status == 404
            assert uid not in body.decode() or not uid
    said = caplog.text + "".join(str(warning.message) for warning in recwarn.list)
    names = {str(v) for row in rows for v in row.get("00100020", {}).get("Value", []) if v}
    names |= {row["0020000D"]["Value"][0] for row in rows if "Value" in row["0020000D"]}
    assert names
    assert not [name for name in names if len(name) > 4 and name in said]
