"""From the spool to chain and store: every step can be cut off, and nothing is lost or doubled."""

import asyncio
import io
from contextlib import closing
from functools import partial
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest

from node import keys
from node.exchange.store.errors import StudyUnknown
from node.gateway.index import SpoolError
from node.gateway.intake import Intake
from node.gateway.keeping import Keeper
from node.gateway.outcomes import Accepted
from node.gateway.parsing import Parsing
from node.gateway.web.attributes import CHARACTERS_MAX
from node.imaging.manifest import regrouped
from node.imaging.vault import create_vault
from node.ledger.errors import Refused
from node.rpc.errors import ConnectionLost
from node.studies import Signer, register
from tests.exchange import store_parts
from tests.gateway.conftest import RULES
from tests.gateway.planted_parser import LACKS
from tests.imaging import dicom
from tests.test_studies import CHAIN_ID, Chain


class Cut(BaseException):
    """The process ends here."""


class MemoryStore:
    """What the gateway needs of the store, in memory; idempotent like the real one."""

    def __init__(self):
        self.versions, self.puts, self.fails = {}, 0, []

    def put(self, study_id, version, instances):
        if self.fails:
            raise self.fails.pop(0)
        self.puts += 1
        facts = []
        for source in instances:
            if (study_id, version - 1) not in self.versions or not any(
                known.digest == source.facts.digest
                for known in self.versions[study_id, version - 1]
            ):
                with source.open() as stream:
                    assert len(stream.read()) == source.facts.size
            facts.append(source.facts)
        self.versions[study_id, version] = facts

    def index(self, study_id, version=None):
        newest = max((v for known, v in self.versions if known == study_id), default=None)
        if newest is None:
            raise StudyUnknown("not here")
        facts = self.versions[study_id, version or newest]
        return SimpleNamespace(instances=[SimpleNamespace(facts=f) for f in facts])


@pytest.fixture
def vault(tmp_path):
    with create_vault(tmp_path / "vault.db", "correct horse") as opened:
        yield opened


@pytest.fixture
def chain():
    return Chain()


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def new_intake(vault, chain, store, clock):
    signer = Signer(keys.generate(), "north", CHAIN_ID)

    def make(spool, mapper=map, **changes):
        registering = partial(register, client=chain, vault=vault, signer=signer, mapper=mapper)
        passing = (ConnectionLost, SpoolError, TimeoutError)
        keeper = changes.pop("keeper", Keeper(store))
        return Intake(spool, RULES, registering, keeper, passing, now_ms=clock, **changes)

    return make


@pytest.fixture
def new_study(tmp_path):
    """Return a function that writes a study's instances and gives their paths."""

    def make(count=2, root=None, start=0):
        root = root or f"2.25.{uuid4().int}"
        paths = []
        for number in range(start, start + count):
            pixels = np.full((2, 2), number, "<u2")
            path = tmp_path / f"{root}.{number}"
            paths.append(dicom.minimal(path, sop=path.name, study=root, pixels=pixels))
        return root, paths

    return make


def offer(spool, paths):
    for path in paths:
        with open(path, "rb") as stream:
            spool.accept("test", stream)


def waiting_files(spool):
    return [p for p in (spool.folder / "instances").glob("*/*") if p.is_file()]


async def test_a_quiet_study_is_registered_stored_and_its_files_go(
    spool, new_intake, new_study, clock, chain, store
):
    offer(spool, new_study(3)[1])
    intake = new_intake(spool)
    assert await intake.step() == 0
    assert chain.sent == []
    clock.pass_ms(RULES.quiet_ms)
    assert await intake.step() == 1
    assert len(chain.roots) == 1
    ((_, version),) = store.versions
    assert version == 1
    assert waiting_files(spool) == []
    assert spool.usage()[:2] == (0, 0)
    assert await intake.step() == 0


async def test_instances_are_stored_in_the_manifests_order(
    spool, new_intake, new_study, clock, store, vault
):
    root, paths = new_study(5)
    offer(spool, paths)
    clock.pass_ms(RULES.quiet_ms)
    await new_intake(spool).step()
    manifest = vault.latest(vault.find_study(root).study_id).manifest
    ((_, facts),) = store.versions.items()
    assert [f.sop_instance_uid for f in facts] == [i.sop_uid for i in manifest.instances]
    assert [f.digest for f in facts] == [i.record.file for i in manifest.instances]


async def test_late_instances_make_the_next_version(
    spool, new_intake, new_study, clock, chain, store
):
    root, paths = new_study(2)
    offer(spool, paths)
    clock.pass_ms(RULES.quiet_ms)
    intake = new_intake(spool)
    await intake.step()
    offer(spool, new_study(1, root, start=2)[1])
    clock.pass_ms(RULES.quiet_ms)
    assert await intake.step() == 1
    assert [len(roots) for roots in chain.roots.values()] == [2]
    assert sorted((v, len(facts)) for (_, v), facts in store.versions.items()) == [(1, 2), (2, 3)]


async def test_while_the_chain_is_away_files_stay_and_it_is_tried_again(
    spool, new_intake, new_study, clock, chain, store
):
    offer(spool, new_study(2)[1])
    clock.pass_ms(RULES.quiet_ms)
    chain.answers = [ConnectionLost("gone")] * 2
    intake = new_intake(spool)
    assert await intake.step() == 0
    assert len(waiting_files(spool)) == 2
    assert spool.gatherings()[0].reason.startswith("ConnectionLost")
    assert await intake.step() == 0  # it rests
    assert len(chain.sent) == 1
    clock.pass_ms(60_000)
    await intake.step()
    clock.pass_ms(60_000)
    assert await intake.step() == 1
    assert len(set(chain.sent)) == 1  # the very same transaction
    assert len(store.versions) == 1


async def test_while_the_store_is_away_nothing_is_removed(
    spool, new_intake, new_study, clock, chain, store
):
    offer(spool, new_study(2)[1])
    clock.pass_ms(RULES.quiet_ms)
    store.fails = [TimeoutError("the store is away")]
    intake = new_intake(spool)
    assert await intake.step() == 0
    assert len(waiting_files(spool)) == 2
    clock.pass_ms(60_000)
    assert await intake.step() == 1
    assert len(chain.sent) == 1
    assert waiting_files(spool) == []


@pytest.mark.parametrize("point", ["taken", "sent", "registered", "stored", "finished"])
async def test_cut_off_at_any_step_it_is_gone_on_with(
    open_spool, new_intake, new_study, clock, chain, store, monkeypatch, point
):
    root, paths = new_study(3)
    spool = open_spool()
    offer(spool, paths)
    clock.pass_ms(RULES.quiet_ms)
    intake = new_intake(spool)

    def cut(*_, **__):
        raise Cut

    with monkeypatch.context() as patched:
        if point == "taken":
            patched.setattr(intake, "_register", cut)
        elif point == "sent":
            patched.setattr(chain, "on_submit", cut)
        elif point == "registered":
            patched.setattr(store, "put", cut)
        elif point == "stored":
            patched.setattr(spool.index, "finish", cut)
        else:
            patched.setattr(spool, "_remove", cut)
        with pytest.raises(BaseExceptionGroup):
            await intake.step()
    offer(spool, new_study(1, root, start=3)[1])  # comes while we are away
    spool.close()

    again = open_spool()
    again.recover()
    intake = new_intake(again)
    await intake.step()
    clock.pass_ms(RULES.quiet_ms)
    await intake.step()
    assert [len(roots) for roots in chain.roots.values()] == [2]
    assert sorted((v, len(facts)) for (_, v), facts in store.versions.items()) == [(1, 3), (2, 4)]
    assert waiting_files(again) == []
    assert again.usage()[:2] == (0, 0)


async def test_what_differs_from_what_was_registered_by_hand_goes_to_quarantine(
    spool, new_intake, new_study, clock, chain, store, vault, tmp_path
):
    root, paths = new_study(2)
    signer = Signer(keys.generate(), "north", CHAIN_ID)
    await register(paths, chain, vault, signer)
    other = dicom.minimal(tmp_path / "other", sop=paths[0].name, study=root, SliceThickness="9")
    offer(spool, [other])
    offer(spool, new_study(1, root, start=2)[1])
    clock.pass_ms(RULES.quiet_ms)
    assert await new_intake(spool).step() == 1
    assert [a.code for a in spool.asides()] == ["conflict"]
    assert [len(roots) for roots in chain.roots.values()] == [2]
    assert waiting_files(spool) == []


async def test_while_a_study_is_split_its_images_wait_and_go_to_their_parts_then(
    spool, new_intake, new_study, clock, chain, store, vault
):
    root, paths = new_study(2)
    offer(spool, paths)
    clock.pass_ms(RULES.quiet_ms)
    intake = new_intake(spool)
    await intake.step()
    old = vault.find_study(root)
    split = vault.plan_split(old.study_id, root, [f"{root}.7"], [f"{root}.1"])
    manifest = vault.latest(old.study_id).manifest
    offer(spool, new_study(1, root, start=2)[1])  # of the series that is set apart
    clock.pass_ms(RULES.quiet_ms)
    assert await intake.step() == 0
    assert "being split" in spool.gatherings()[0].reason
    assert len(waiting_files(spool)) == 1
    parts = [regrouped(p.study_id, p.salt, manifest.instances) for p in (split.rest, split.apart)]
    for each in parts:
        vault.put_prepared(each)
    vault.submit_split(parts, b"T" * 32, b"signed")
    vault.finish_split(old.study_id, 9)
    clock.pass_ms(60_000)
    assert await intake.step() == 1
    assert waiting_files(spool) == []
    assert vault.latest(split.apart.study_id).manifest.version == 2
    assert vault.latest(split.rest.study_id).manifest.version == 1
    assert (split.apart.study_id, 2) in store.versions


# The elements of one instance: VR and value by tag.
PLAIN = {
    0x00080016: (b"UI", b"1.2.840.10008.5.1.4.1.1.7\0"),
    0x00080018: (b"UI", b"1.2.3.4.5\0"),
    0x00081030: (b"LO", b"Head"),
    0x00100020: (b"LO", b"P1"),
    0x0020000D: (b"UI", b"1.2.3\0"),
    0x0020000E: (b"UI", b"1.2.3.1\0"),
}
META = dicom.element(0x00020010, b"UI", b"1.2.840.10008.1.2.1\0")
LONG = b"x" * CHARACTERS_MAX
ODD = {
    "an odd length of Rows": {0x00280010: (b"US", b"\1\0\0")},
    "an odd length of Bits Allocated": {0x00280100: (b"US", b"\1")},
    "text as FD of a broken length": {0x00100010: (b"FD", b"Doe^Janet ")},
    "a character set with a NUL": {0x00080005: (b"CS", b"ISO_\0IR 100 ")},
    "a character set that is no text": {
        0x00080005: (b"CS", b"zlib"),
        0x00100010: (b"PN", b"Doe^Jane"),
    },
    "a class as US": {0x00080016: (b"US", PLAIN[0x00080016][1])},
    "a description of five long values": {0x00081030: (b"LO", b"\\".join([LONG] * 5))},
}


def odd_file(elements, meta=META):
    merged = sorted((PLAIN | elements).items())
    data = b"".join(dicom.element(tag, vr, value) for tag, (vr, value) in merged)
    return io.BytesIO(bytes(128) + b"DICM" + meta + data)


async def stored(spool, new_intake, clock, chain, file, folder):
    """Return what the store, the real one, knows of the instance in `file`."""
    store = store_parts.new_store(folder)
    assert isinstance(spool.accept("test", file), Accepted)
    clock.pass_ms(RULES.quiet_ms)
    assert await new_intake(spool, keeper=Keeper(store)).step() == 1
    (study_id,) = chain.roots
    (instance,) = store.index(study_id).instances
    assert waiting_files(spool) == []
    return instance.facts


@pytest.mark.parametrize("elements", ODD.values(), ids=ODD)
async def test_what_the_parser_accepts_is_registered_and_stored(
    spool, new_intake, clock, chain, tmp_path, elements
):
    file = odd_file(elements)
    facts = await stored(spool, new_intake, clock, chain, file, tmp_path)
    assert (facts.sop_instance_uid, facts.series_uid) == ("1.2.3.4.5", "1.2.3.1")
    assert facts.sop_class_uid == "1.2.840.10008.5.1.4.1.1.7"
    assert dict(facts.attributes)[0x00100020] == "P1"


@pytest.mark.parametrize("vr", [b"\0\1", b"OW"], ids=["none", "OW"])
async def test_meta_information_that_only_our_parser_reads_is_enough(
    spool, new_intake, clock, chain, tmp_path, vr
):
    odd = b"\x02\0\x01\0" + vr + b"\x04\0" + b"abcd"
    file = odd_file({}, odd + META)
    facts = await stored(spool, new_intake, clock, chain, file, tmp_path)
    assert facts.transfer_syntax == "1.2.840.10008.1.2.1"


async def test_a_study_that_fails_in_a_new_way_waits_and_the_others_go_on(
    spool, new_intake, new_study, clock, chain, store, caplog
):
    offer(spool, new_study(1)[1])
    offer(spool, new_study(1)[1])
    clock.pass_ms(RULES.quiet_ms)
    store.fails = [RuntimeError("Doe^Jane")]
    intake = new_intake(spool)
    assert await intake.step() == 1
    (left,) = spool.gatherings()
    assert left.reason == "RuntimeError"
    assert "Doe" not in caplog.text
    clock.pass_ms(60_000)
    assert await intake.step() == 1
    assert len(store.versions) == 2


async def test_what_was_accepted_waits_while_the_machine_cannot_read_it(
    spool, new_intake, clock, chain, tmp_path, monkeypatch
):
    plain = dicom.minimal(tmp_path / "a", pixels=np.zeros((LACKS, 8), "<u2"))
    offer(spool, [dicom.rle(plain, tmp_path / "b")])
    clock.pass_ms(RULES.quiet_ms)
    monkeypatch.setattr("node.gateway.parsing.MODULE", "tests.gateway.planted_parser")
    with closing(Parsing(workers=1)) as parsing:
        assert await new_intake(spool, mapper=parsing.map).step() == 0
    assert spool.asides() == []
    assert spool.holds(["1.2.3.4.5"]) == [True]
    clock.pass_ms(60_000)
    assert await new_intake(spool).step() == 1
    assert len(chain.roots) == 1


async def test_an_index_that_cannot_be_written_does_not_end_the_intake(
    spool, new_intake, new_study, clock, chain, monkeypatch
):
    def full(*_):
        raise SpoolError("the disk is full")

    offer(spool, new_study(1)[1])
    clock.pass_ms(RULES.quiet_ms)
    chain.answers = [ConnectionLost("gone")]
    intake = new_intake(spool)
    with monkeypatch.context() as patched:
        patched.setattr(spool.index, "defer", full)
        assert await intake.step() == 0
    assert await intake.step() == 1


async def test_a_refused_study_waits_with_its_reason(spool, new_intake, new_study, clock, chain):
    offer(spool, new_study(1)[1])
    clock.pass_ms(RULES.quiet_ms)
    chain.answers = [Refused("unknown_member", "the key is no member's")]
    assert await new_intake(spool).step() == 0
    assert "member" in spool.gatherings()[0].reason
    assert len(waiting_files(spool)) == 1


async def test_many_studies_are_brought_together(spool, new_intake, new_study, clock, chain):
    for _ in range(9):
        offer(spool, new_study(2)[1])
    clock.pass_ms(RULES.quiet_ms)
    assert await new_intake(spool).step() == 9
    assert len(chain.roots) == 9
    assert chain.most_under_way <= 4


async def test_it_runs_until_it_is_cancelled(spool, new_intake, new_study, clock, chain):
    offer(spool, new_study(1)[1])
    clock.pass_ms(RULES.quiet_ms)
    kept = asyncio.Event()
    running = asyncio.create_task(
        new_intake(spool, on_kept=lambda _: kept.set()).run(poll_seconds=0.01)
    )
    async with asyncio.timeout(20):
        await kept.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
