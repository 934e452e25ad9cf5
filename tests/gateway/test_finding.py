"""Federated search: what a catalogue makes of images, and three hospitals that ask each other."""

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import get_args

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from node.cli import find as find_command
from node.config.model import (
    ExchangeConfig,
    GatewayConfig,
    GatewayLimits,
    SearchConfig,
    SearchField,
)
from node.exchange.federation.answering import Offer
from node.exchange.federation.fields import Field, fits
from node.exchange.federation.ports import Inquiry
from node.exchange.store.index import IndexedInstance, InstanceFacts, StudyIndex
from node.gateway import site
from node.gateway.exchange_opening import settings_of
from node.gateway.facts import facts_of
from node.gateway.finding import FindingSettings
from node.gateway.keeping import Keeper
from node.gateway.outcomes import Accepted
from node.gateway.site import Opened
from node.gateway.web.attributes import read_attributes
from node.studies import register
from tests.cli.test_documents import documented
from tests.gateway.flow_world import HOST, until, until_async, world
from tests.gateway.test_flow_command import configure, told
from tests.imaging import dicom

READ = (  # what facts are made from
    0x00080020,
    0x00080060,
    0x00080070,
    0x00081030,
    0x0008103E,
    0x00081090,
    0x00100030,
    0x00100040,
    0x00101010,
    0x00180015,
    0x00181030,
)
OPEN = FindingSettings(offer=Offer(fields=frozenset(Field)))


def test_the_config_and_the_code_know_the_same_fields_and_defaults(tmp_path):
    assert list(get_args(SearchField)) == [field.value for field in Field]
    settings = settings_of(ExchangeConfig(folder=tmp_path)).finding
    assert settings == FindingSettings()
    changed = SearchConfig(answers=False, fields=("age",), include_askable=True, count_min=9)
    settings = settings_of(ExchangeConfig(folder=tmp_path, search=changed)).finding
    assert not settings.is_answering
    offer = settings.offer
    assert (offer.fields, offer.askable, offer.least) == ({Field.AGE}, True, 9)


def index_of(*instances):
    facts = [
        InstanceFacts(f"1.{number}", "1.2", "1.3", "1.4", 10, bytes(32), tuple(sorted(pairs)))
        for number, pairs in enumerate(instances)
    ]
    return StudyIndex(bytes(16), 1, tuple(IndexedInstance(each, 0, 0) for each in facts), ())


def facts(*instances, words=()):
    found = facts_of(index_of(*instances), "CT", "head", words)
    return {field.value: values for field, values in found.values.items()}


def test_facts_are_coarse_and_of_listed_words():
    found = facts(
        [
            (0x00080020, "20240315"),
            (0x00080060, "CT"),
            (0x00080070, "GE MEDICAL SYSTEMS"),
            (0x00081030, "CT Head w/o contrast, Mrs Smith 12.3.1960"),
            (0x00081090, "LightSpeed Pro 16"),
            (0x00100030, "19600312"),
            (0x00100040, "F"),
            (0x00180015, "BRAIN"),
        ],
        [(0x0008103E, "axial Knobloch"), (0x00080060, "SR"), (0x00180015, "MRSSMITH")],
        [(0x00080060, "MRSSMITH")],
        words=["Knobloch"],
    )
    assert found == {
        "modality": ("CT", "SR"),
        "region": ("head",),
        "year": ("2024",),
        "month": ("2024-03",),
        "age": ("60-69",),
        "sex": ("F",),
        "body_part": ("BRAIN",),
        "word": ("axial", "contrast", "ct", "head", "knobloch"),
        "manufacturer": ("GE MEDICAL SYSTEMS",),
        "model": ("LightSpeed Pro 16",),
    }


@pytest.mark.parametrize(
    ("pairs", "age"),
    [
        ([(0x00101010, "045Y")], "40-49"),
        ([(0x00101010, "011M")], "0-1"),
        ([(0x00101010, "030M")], "2-11"),
        ([(0x00101010, "003W")], "0-1"),
        ([(0x00101010, "099Y")], "90+"),
        ([(0x00100030, "20000315"), (0x00080020, "20180315")], "18-29"),
        ([(0x00100030, "20000316"), (0x00080020, "20180315")], "12-17"),
        ([(0x00100030, "2000.03.15"), (0x00080020, "20180315")], "18-29"),
        ([(0x00100030, "18000101"), (0x00080020, "20180315")], None),
        ([(0x00100030, "20200101"), (0x00080020, "20180315")], None),
        ([(0x00101010, "old"), (0x00100030, "20001399")], None),
    ],
)
def test_ages(pairs, age):
    assert facts(pairs).get("age") == (None if age is None else (age,))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(READ),
            st.text(max_size=40),
        ),
        max_size=11,
        unique_by=lambda pair: pair[0],
    )
)
def test_whatever_a_file_says_facts_keep_their_form(pairs):
    for name, values in facts(pairs).items():
        assert all(fits(Field(name), value) for value in values)


@pytest.mark.parametrize("path", dicom.readable()[::7], ids=lambda path: path.name)
def test_real_files_have_facts(path):
    with path.open("rb") as stream:
        attributes = read_attributes(stream)
    made = facts(attributes)
    assert set(made) >= {"modality", "region"}
    name = str(pydicom.dcmread(path, specific_tags=["PatientName"]).get("PatientName", "")).lower()
    assert not {word for word in name.replace("^", " ").split() if len(word) > 4} & set(
        made.get("word", ())
    )


PATIENTS = [  # sex, birth date, modality, study date, description
    ("F", "19800101", "CT", "20240105", "Head with contrast"),
    ("F", "19820101", "CT", "20240205", "Head"),
    ("F", "19830101", "CT", "20240305", "Head"),
    ("F", "19840101", "CT", "20230405", "Chest with contrast"),
    ("F", "19850101", "CT", "20230505", "Chest"),
    ("M", "20100101", "MR", "20230605", "Knee Zaphod Beeblebrox"),
]


def write(folder, number, patient):
    sex, born, modality, date, description = patient
    folder.mkdir(exist_ok=True)
    return dicom.minimal(
        folder / f"{number}.dcm",
        sop=f"2.25.{number}.9",
        study=f"2.25.{number}",
        PatientID=f"patient {number}",
        PatientSex=sex,
        PatientBirthDate=born,
        Modality=modality,
        StudyDate=date,
        StudyDescription=description,
    )


async def keep_all(hospital, numbers):
    """Register and store the studies of those patients; return their ids by number."""
    paths = [write(hospital.folder / "in", each, PATIENTS[each]) for each in numbers]
    client = await hospital.net.client(hospital.index)
    done = await register(paths, client, hospital.vault, hospital.signer)
    found = {}
    for registration in done.studies:
        assert registration.is_done, registration
        manifest = registration.prepared.manifest
        (instance,) = manifest.instances
        number = int(instance.sop_uid.split(".")[2])
        keep = Keeper(hospital.store).keep
        await asyncio.to_thread(
            keep, manifest, {instance.sop_uid: hospital.folder / "in" / f"{number}.dcm"}
        )
        found[number] = manifest.study_id
    return found


async def catalogued(hospital, ids):
    """Wait until a hospital's catalogue has just these studies."""

    async def has():
        entries = hospital.exchange.finding._catalogue.entries()
        return {each.study_id for each in entries} == set(ids)

    await until_async(has)


@asynccontextmanager
async def three(folder):
    async with world(folder) as all_:
        ids = await keep_all(all_.alpha, range(6))
        foreign = await keep_all(all_.gamma, [0])  # gamma has no policy: nobody is granted it
        async with all_.alpha.serving(finding=OPEN), all_.gamma.serving():
            await catalogued(all_.alpha, ids.values())
            await catalogued(all_.gamma, foreign.values())
            await until_async(lambda: _known(all_.beta, ids[5]))
            yield all_, ids, configure(all_.beta)


async def _known(hospital, study_id):
    return await (await hospital.net.client(hospital.index)).study(study_id) is not None


async def find(config, *words, status=0):
    return await told("find", *words, "-c", config, "--timeout", "20", status=status)


def ids_in(document):
    return {bytes.fromhex(row["study_id"]) for row in document["studies"]}


async def test_hospitals_find_what_policy_grants_them_and_no_more(tmp_path):
    async with three(tmp_path) as (all_, ids, config):
        everything = await find(config)
        assert ids_in(everything) == set(ids.values())
        assert set(everything["hospitals"]) == {all_.alpha.name, all_.gamma.name}
        assert everything["silent"] == {}
        assert set(everything) == documented("study find")
        row = next(r for r in everything["studies"] if bytes.fromhex(r["study_id"]) == ids[5])
        assert row["told"] == {
            "modality": ["MR"],
            "region": ["unknown"],
            "year": ["2023"],
            "month": ["2023-06"],
            "age": ["12-17"],
            "sex": ["M"],
            "word": ["knee"],
        }
        assert (row["institution"], row["outcome"]) == (all_.alpha.name, "granted")
        # What only a person could have typed is nowhere in what was told.
        assert "Zaphod" not in str(everything)
        await _narrowed(config, ids)
        await _counted(all_, config)
        await _shown(all_, config)
        await _refused(all_, config, ids)


async def _narrowed(config, ids):
    for words, numbers in [
        (("--modality", "MR", "--modality", "US"), {5}),
        (("--word", "contrast", "--word", "HEAD"), {0}),
        (("--since", "2024"), {0, 1, 2}),
        (("--since", "2023-05", "--until", "2024-01"), {0, 4, 5}),
        (("--age", "12-17", "--sex", "M"), {5}),
        (("--sex", "O"), set()),
    ]:
        found = await find(config, *words)
        assert ids_in(found) == {ids[number] for number in numbers}, words


async def _counted(all_, config):
    found = (await find(config, "--count", "--by", "sex", "--by", "modality"))["hospitals"]
    alpha = found[all_.alpha.name]
    assert (alpha["studies"], alpha["patients"]) == (5, 5)  # of 6
    assert alpha["by"] == {
        "sex": [{"value": "F", "studies": 5, "subjects": 5}],
        "modality": [{"value": "CT", "studies": 5, "subjects": 5}],
    }
    # Gamma has one that is not granted, and tells nothing, as if it had none.
    gamma = found[all_.gamma.name]
    assert (gamma["studies"], gamma["patients"], gamma["by"]) == (None, None, {})
    found = (await find(config, "--count", "--sex", "M", "--by", "modality"))["hospitals"]
    assert (found[all_.alpha.name]["patients"], found[all_.alpha.name]["by"]) == (None, {})


async def _shown(all_, config):
    """People see the same in tables."""
    shown = await run_find(config, "--sex", "M")
    assert shown.exit_code == 0
    assert re.search(rf"{all_.alpha.name} +at once +MR", shown.stdout)
    assert f"{all_.gamma.name} does not answer about sex; it does about" in shown.stdout
    shown = await run_find(config, "--count", "--by", "sex")
    assert re.search(rf"{all_.alpha.name} +F +5 +5", shown.stdout)
    assert re.search(rf"{all_.gamma.name} +of fewer than 5 patients", shown.stdout)
    for words in [("--by", "sex"), ("--count", "--by", "word"), ("--since", "March")]:
        assert (await run_find(config, *words)).exit_code == 2
    assert (await run_find(config, "--at", "nowhere")).exit_code == 2


async def run_find(config, *words):
    words = [*words, "-c", str(config), "--timeout", "20"]
    return await asyncio.to_thread(CliRunner().invoke, find_command.app, words)


async def _refused(all_, config, ids):
    """No policy, no field, no consent, no study: each ends what is told."""
    alpha, gamma = all_.alpha, all_.gamma
    assert ids_in(await find(config, "--purpose", "HRESCH", "--role", "researcher")) == set()
    answer = (await find(config, "--age", "40-49"))["hospitals"][gamma.name]
    assert answer["unoffered"] == ["age"]
    assert set(answer["offered"]) == {"modality", "region", "year"}
    subject = (await (await alpha.net.client(0)).study(ids[0])).summary.subject_id
    done = await alpha.submit("consent.opt_out", subject, bytes(range(32)))
    await until(lambda: alpha.exchange.events.height >= done.height)
    assert ids[0] not in ids_in(await find(config))
    await alpha.submit("study.retire", ids[1], "quality")
    await catalogued(alpha, [study for number, study in ids.items() if number != 1])
    assert ids_in(await find(config)) == {ids[number] for number in (2, 3, 4, 5)}
    answered = [event for event in alpha.inquired if event.kind is Inquiry.ANSWERED]
    assert {event.institution for event in answered} == {all_.beta.name}
    assert {event.purpose for event in answered} == {"TREAT", "HRESCH"}
    assert answered[-1].told == 4
    assert answered[-1].question.startswith("find age+body_part")


async def test_a_catalogue_outlives_the_process_and_an_erasure_empties_it(tmp_path):
    async with world(tmp_path) as all_:
        alpha = all_.alpha
        ids = await keep_all(alpha, [0, 1])
        async with alpha.serving():
            await catalogued(alpha, ids.values())
        path = alpha.folder / "exchange" / "catalogue.db"
        assert path.stat().st_mode & 0o777 == 0o600
        async with alpha.serving() as exchange:
            assert len(exchange.finding._catalogue) == 2  # before anything was described again
            later = await keep_all(alpha, [2])
            exchange.finding.add(later[2])
            await catalogued(alpha, [*ids.values(), later[2]])
            # The hospital destroys the study's key first, then says so on the ledger.
            await asyncio.to_thread(alpha.store.erase, ids[0])
            exchange.erasures.backlog.add(ids[0])
            exchange.finding.add(ids[0])
            await catalogued(alpha, [ids[1], later[2]])
            left = b"".join(each.read_bytes() for each in path.parent.glob("catalogue.db*"))
            assert ids[0] not in left
            # What the ledger says is erased goes before that is attested.
            await asyncio.to_thread(exchange._erased, ids[1])
            assert exchange.finding._catalogue.version(ids[1]) is None


async def test_who_does_not_answer_is_named_and_nobody_is_a_failure(tmp_path):
    async with world(tmp_path) as all_:
        config = configure(all_.beta)
        async with all_.gamma.serving(finding=replace(OPEN, is_answering=False)):
            await until(lambda: all_.gamma.exchange.directory.keys)
            result = await run_find(config)
    assert result.exit_code == 3
    assert f"{all_.alpha.name} did not answer: the connection failed" in result.stdout
    assert f"{all_.gamma.name} did not answer: it does not answer such" in result.stdout


async def test_a_gateway_answers_about_what_it_has_just_received(tmp_path):
    async with world(tmp_path) as all_:
        alpha = all_.alpha
        config = replace(
            alpha.config,
            gateway=GatewayConfig(
                spool_dir=tmp_path / "spool",
                listen_port=0,
                quiet_ms=1,
                limits=GatewayLimits(disk_reserve_bytes=2**20),
            ),
            exchange=ExchangeConfig(
                folder=alpha.folder / "exchange",
                listen_host=HOST,
                listen_port=alpha.port,
                search=SearchConfig(fields=("modality", "sex"), questions_per_minute=600),
            ),
        )
        client = await alpha.net.client(alpha.index)
        opened = Opened(client, alpha.vault, alpha.signer, alpha.store, alpha.net.genesis)
        beta = configure(all_.beta)
        async with site.running(config, opened) as gateway:
            path = write(alpha.folder / "in", 5, PATIENTS[5])
            with path.open("rb") as stream:
                assert isinstance(gateway.spool.accept("MODALITY", stream), Accepted)
            gateway.spool.signal()

            async def is_found():
                found = await find(beta, "--at", alpha.name, "--sex", "M")
                return [row["told"] for row in found["studies"]] == [
                    {"modality": ["MR"], "sex": ["M"]}
                ]

            await until_async(is_found)
            await until(lambda: "told 1" in _answered(gateway)[-1].code)
            event = _answered(gateway)[-1]
            # An erasure reaches what is known of copies elsewhere, too.
            gateway.spool.foreign.learn(bytes(16), 1, "h2", [])
            await asyncio.to_thread(gateway.forget, bytes(16))
            assert gateway.spool.foreign.version(bytes(16)) is None
    assert (event.kind, event.source) == ("search_answered", all_.beta.name)
    assert event.code.startswith("find age+body_part+")
    assert "TREAT clinician" in event.code


def _answered(gateway):
    events = [event for _, event in gateway.spool.index.last_events(20)]
    return [event for event in events if event.kind == "search_answered"]
