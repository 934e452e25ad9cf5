"""`StoreHoldings` over the real encrypted store, and a server on top of both."""

import hashlib
import json

import pytest

from node.exchange.store.index import InstanceFacts, file_source
from node.gateway.holdings import BLOCK_BYTES, StoreHoldings, Withheld
from node.gateway.web.attributes import read_attributes
from tests.exchange.store_parts import new_store, noise
from tests.gateway.web.test_retrieve import AS_STORED, parts_of
from tests.imaging.dicom import CT_FOLDER, minimal

ONE, TWO = bytes(16), bytes(range(16))


def source(path):
    with path.open("rb") as stream:
        attributes = read_attributes(stream)
    texts, data = dict(attributes), path.read_bytes()
    syntax = "1.2.840.10008.1.2.1"
    facts = InstanceFacts(
        texts[0x00080018], texts[0x00080016], texts[0x0020000E], syntax, len(data),
        hashlib.sha256(data).digest(), attributes,
    )  # fmt: skip
    return file_source(facts, path)


@pytest.fixture
def store(tmp_path):
    return new_store(tmp_path)


def ct():
    return sorted(p for p in CT_FOLDER.rglob("*") if p.is_file())


def test_studies_are_listed_found_and_read_exactly(store):
    store.put(ONE, 1, [source(path) for path in ct()])
    holdings = StoreHoldings(store)
    assert holdings.studies() == []
    assert holdings.refresh() == 1
    (row,) = holdings.studies()
    assert row.attributes[0x00201208] == (str(len(ct())),)
    study = holdings.study(row.uid)
    given = []
    for instance in study.instances:
        with holdings.open(instance) as stream:
            given.append(stream.read())
            assert len(given[-1]) == instance.size
    assert sorted(given) == sorted(path.read_bytes() for path in ct())
    assert holdings.study("1.2.3") is None


def test_reading_at_any_place_of_a_long_instance(store, tmp_path):
    path = minimal(tmp_path / "long.dcm", EncapsulatedDocument=noise(2 * BLOCK_BYTES + 4_000))
    data = path.read_bytes()
    store.put(ONE, 1, [source(path)])
    holdings = StoreHoldings(store)
    holdings.refresh()
    (instance,) = holdings.study("1.2.3").instances
    with holdings.open(instance) as stream:
        for start in (0, BLOCK_BYTES - 10, 5, 2 * BLOCK_BYTES - 1, len(data) - 3, len(data) + 9):
            assert stream.seek(start) == start
            assert stream.read(100_000) == data[start : start + 100_000]
        assert stream.seek(-7, 2) == len(data) - 7
        assert stream.read() == data[-7:]


def test_later_versions_new_studies_and_erased_ones(store, tmp_path):
    paths = [minimal(tmp_path / f"{n}.dcm", sop=f"1.2.3.4.{n}") for n in range(2)]
    other = minimal(tmp_path / "other.dcm", sop="1.2.9", study="1.9")
    store.put(ONE, 1, [source(paths[0])])
    holdings = StoreHoldings(store)
    holdings.refresh()
    first = holdings.study("1.2.3")
    store.put(ONE, 2, [source(path) for path in paths])
    store.put(TWO, 1, [source(other)])
    holdings.add(ONE)
    holdings.add(TWO)
    assert len(holdings.study("1.2.3").instances) == 2
    assert len(holdings.studies()) == 2
    store.erase(ONE)
    with pytest.raises(Withheld):
        holdings.open(first.instances[0]).read()
    holdings.refresh()
    assert [row.uid for row in holdings.studies()] == ["1.9"]


def test_a_grant_that_ended_shows_nothing(store, tmp_path):
    store.put(ONE, 1, [source(minimal(tmp_path / "a.dcm"))])
    granted = {ONE}
    holdings = StoreHoldings(store, granted.__contains__)
    holdings.refresh()
    study = holdings.study("1.2.3")
    granted.clear()
    assert holdings.studies() == []
    assert holdings.study("1.2.3") is None
    with pytest.raises(Withheld):
        holdings.open(study.instances[0])


def test_one_study_in_parts_from_two_hospitals(store, tmp_path):
    paths = [minimal(tmp_path / f"{n}.dcm", sop=f"1.2.3.4.{n}") for n in range(3)]
    store.put(ONE, 1, [source(path) for path in paths[:2]])
    store.put(TWO, 1, [source(path) for path in paths[1:]])
    holdings = StoreHoldings(store)
    holdings.refresh()
    assert len(holdings.studies()) == 1
    assert {i.sop_uid for i in holdings.study("1.2.3").instances} == {
        "1.2.3.4.0", "1.2.3.4.1", "1.2.3.4.2",
    }  # fmt: skip


def test_parts_are_listed_as_one_study_and_withheld_ones_not_at_all(store, tmp_path):
    head, psych = "1.2.3.1", "1.2.3.2"
    for study_id, series, modality, count in ((ONE, head, "MR", 2), (TWO, psych, "SM", 1)):
        paths = [
            minimal(
                tmp_path / f"{series}.{n}.dcm",
                sop=f"{series}.{n}",
                SeriesInstanceUID=series,
                Modality=modality,
            )
            for n in range(count)
        ]
        store.put(study_id, 1, [source(path) for path in paths])
    shown = {ONE, TWO}
    holdings = StoreHoldings(store, lambda study_id: study_id in shown)
    holdings.refresh()

    def told():
        (row,) = holdings.studies()
        counts = [row.attributes[tag] for tag in (0x00201206, 0x00201208, 0x00080061)]
        return *counts, set(holdings.study(row.uid).series)

    assert told() == (("2",), ("3",), ("MR", "SM"), {head, psych})
    assert told() == (("2",), ("3",), ("MR", "SM"), {head, psych})
    both = holdings.study("1.2.3").instances
    shown.discard(TWO)
    assert told() == (("1",), ("2",), ("MR",), {head})
    (withheld,) = [each for each in both if each.series_uid == psych]
    with pytest.raises(Withheld):
        holdings.open(withheld)
    shown.add(TWO)
    late = minimal(tmp_path / "late.dcm", sop=f"{psych}.9", SeriesInstanceUID=psych, Modality="SM")
    store.put(TWO, 2, [source(tmp_path / f"{psych}.0.dcm"), source(late)])
    holdings.add(TWO)
    assert told() == (("2",), ("4",), ("MR", "SM"), {head, psych})
    third = minimal(tmp_path / "third.dcm", sop="1.2.3.3.1", SeriesInstanceUID="1.2.3.3")
    store.put(b"3" * 16, 1, [source(third)])
    holdings.add(b"3" * 16)
    assert told()[0] == ("2",)  # it may not be shown
    shown.add(b"3" * 16)
    assert told()[:2] == (("3",), ("5",))
    shown.discard(TWO)
    assert told()[:2] == (("2",), ("3",))
    holdings.remove(b"3" * 16)
    assert told() == (("1",), ("2",), ("MR",), {head})


async def test_a_server_over_the_store(serve, store):
    store.put(ONE, 1, [source(path) for path in ct()])
    holdings = StoreHoldings(store)
    holdings.refresh()
    async with serve(holdings=holdings) as site:
        _, _, body = await site.get("/studies")
        (row,) = json.loads(body)
        uid = row["0020000D"]["Value"][0]
        status, headers, body = await site.get(f"/studies/{uid}", AS_STORED)
        assert status == 200
        given = sorted(data for _, data in parts_of(headers, body))
        assert given == sorted(path.read_bytes() for path in ct())
        assert (await site.get(f"/studies/{uid}/thumbnail"))[0] == 200
        assert len(json.loads((await site.get(f"/studies/{uid}/metadata"))[2])) == len(ct())
        store.erase(ONE)
        assert (await site.get(f"/studies/{uid}", AS_STORED))[0] == 403
