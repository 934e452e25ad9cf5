"""Requirement 3 across hospitals: one SOP Instance UID, other content, the other copy elsewhere."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pydicom
import pytest

from consensus.wire import pack
from node.exchange.federation.ports import Inquiry
from node.exchange.transfer.holders import HolderRefused, Link
from node.exchange.transfer.limits import ClientLimits
from node.gateway.closing import Rules
from node.gateway.elsewhere import CONFLICT_PATH, Conflicts
from node.gateway.foreign import Elsewhere, Foreign, Notice
from node.gateway.index import SpoolError
from node.gateway.outcomes import Accepted, Conflict, Duplicate
from node.gateway.spool import Quota, Spool
from node.gateway.spool import opened as opened_spool
from tests.gateway.flow_world import until, world

STUDY, OTHER = b"s" * 16, b"t" * 16
SOP = b"i" * 32


@pytest.fixture
def foreign(tmp_path):
    opened = Foreign(tmp_path / "foreign.db")
    yield opened
    opened.close()


def one(content, position=7, rules=1, sop=SOP):
    return Elsewhere(sop, position, rules, content * 32)


def test_copies_that_agree_contradict_or_cannot_be_compared(foreign):
    assert foreign.compare(SOP, 1, b"a" * 32) is None
    foreign.learn(STUDY, 2, "alpha", [one(b"a")])
    assert foreign.compare(SOP, 1, b"a" * 32) is True
    assert foreign.notices() == []
    assert foreign.compare(SOP, 2, b"b" * 32) is None
    assert foreign.compare(SOP, 1, b"b" * 32) is False
    assert foreign.compare(SOP, 1, b"b" * 32) is False
    assert foreign.notices() == [Notice(STUDY, 2, 7, "alpha")]
    # With two hospitals, one of which has the same copy, that one counts.
    foreign.learn(OTHER, 1, "gamma", [one(b"b")])
    assert foreign.compare(SOP, 1, b"b" * 32) is True


def test_what_is_told_or_erased_is_forgotten(tmp_path, foreign):
    foreign.learn(STUDY, 2, "alpha", [one(b"a"), one(b"a", 8, sop=b"j" * 32)])
    foreign.compare(SOP, 1, b"b" * 32)
    foreign.compare(b"j" * 32, 1, b"b" * 32)
    foreign.told(Notice(STUDY, 2, 7, "alpha"))
    assert foreign.notices() == [Notice(STUDY, 2, 8, "alpha")]
    # A sender that tries again and again is no news.
    foreign.compare(SOP, 1, b"b" * 32)
    assert foreign.notices() == [Notice(STUDY, 2, 8, "alpha")]
    foreign.forget(STUDY)
    assert (foreign.version(STUDY), foreign.notices()) == (None, [])
    assert foreign.compare(SOP, 1, b"b" * 32) is None
    left = b"".join(path.read_bytes() for path in tmp_path.glob("foreign.db*"))
    assert SOP not in left
    assert STUDY not in left


def test_a_newer_version_replaces_what_was_learnt(foreign):
    foreign.learn(STUDY, 1, "alpha", [one(b"a")])
    foreign.learn(STUDY, 2, "alpha", [one(b"c")])
    assert foreign.version(STUDY) == 2
    assert foreign.compare(SOP, 1, b"c" * 32) is True


def test_two_processes_share_the_file_and_others_are_refused(tmp_path, foreign):
    foreign.learn(STUDY, 1, "alpha", [one(b"a")])
    second = Foreign(tmp_path / "foreign.db")
    assert second.compare(SOP, 1, b"b" * 32) is False
    assert foreign.notices() == [Notice(STUDY, 1, 7, "alpha")]
    second.close()
    (tmp_path / "torn.db").write_bytes(b"no database" * 100)
    with pytest.raises(SpoolError, match="cannot be used"):
        Foreign(tmp_path / "torn.db")


def manifest(study_id, core, version=1):
    record = SimpleNamespace(rules=1, core=core, pixels=b"p", private=b"x")
    instance = SimpleNamespace(sop_uid="1.2.3", record=record)
    return SimpleNamespace(study_id=study_id, version=version, instances=(instance,))


def learn(spool, custodian, came):
    """Let the spool know what came from a hospital."""
    requester = SimpleNamespace(manifest=lambda request_id: came)
    conflicts = Conflicts(None, requester, None, None, spool)
    assert conflicts._learn(SimpleNamespace(id=b"r" * 16, custodian=custodian))


def test_copies_of_two_other_hospitals_that_differ_are_told_to_both(tmp_path):
    with opened_spool(tmp_path / "spool") as spool:
        learn(spool, "alpha", manifest(STUDY, b"k1"))
        learn(spool, "alpha", manifest(STUDY, b"k2", version=2))  # its own next version
        assert conflicts_of(spool) == []
        learn(spool, "gamma", manifest(OTHER, b"k3"))
        assert set(spool.foreign.notices()) == {
            Notice(STUDY, 2, 0, "alpha"),
            Notice(OTHER, 1, 0, "gamma"),
        }
        assert conflicts_of(spool) == [("gamma", "conflict_elsewhere")]
        learn(spool, "gamma", manifest(OTHER, b"k3"))  # again, as after a restart
        assert len(conflicts_of(spool)) == 1


def changed(path, target):
    """Write a copy of an instance with one pixel bit changed."""
    dataset = pydicom.dcmread(path)
    pixels = bytearray(dataset.PixelData)
    pixels[0] ^= 1
    dataset.PixelData = bytes(pixels)
    dataset.save_as(target)
    return target


def offer(spool, path):
    with open(path, "rb") as stream:
        return spool.accept("MODALITY", stream)


@asynccontextmanager
async def comparing(hospital):
    """Run a hospital's exchange with a spool, as its gateway does."""
    spool = Spool(hospital.folder / "spool", Quota(disk_reserve_bytes=1), Rules(1_000, 60_000))
    try:
        async with hospital.acting() as acting:
            exchange = hospital.make(acting)
            conflicts = exchange.conflicts(spool)
            conflicts.attach(exchange.events)
            async with exchange.running(), asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(conflicts.backlog.run()),
                    group.create_task(conflicts.run(0.01)),
                ]
                yield exchange, spool
                for task in tasks:
                    task.cancel()
    finally:
        spool.close()


def conflicts_of(spool):
    return [
        (event.source, event.code) for _, event in spool.index.events() if event.kind == "conflict"
    ]


def heard_by(hospital):
    return [event for event in hospital.inquired if event.kind is Inquiry.CONFLICT]


async def test_a_copy_that_contradicts_one_from_elsewhere_is_put_aside_and_both_sides_know(
    tmp_path,
):
    async with (
        world(tmp_path) as all_,
        all_.alpha.serving(),
        comparing(all_.beta) as (exchange, spool),
    ):
        alpha, beta = all_.alpha, all_.beta
        study = await alpha.keep(instances=3)
        (here, path), (later, later_path), (same, same_path) = study.files.items()
        before = changed(path, tmp_path / "before.dcm")
        assert isinstance(offer(spool, before), Accepted)  # nobody knows of another copy yet
        request_id = await beta.ask(study)
        await exchange.requester.fetch(request_id, wait_s=30)
        await until(lambda: spool.foreign.version(study.id) == 1)
        # What was here first is told of, with no UID.
        await until(lambda: len(heard_by(alpha)) == 1)
        assert conflicts_of(spool) == [(alpha.name, "conflict_elsewhere")]
        told = heard_by(alpha)[0]
        assert told.institution == beta.name
        assert told.code.startswith(f"conflict_elsewhere {study.id.hex()}/1/")
        # What arrives later and is the same image is no second study of ours, nor a conflict.
        assert isinstance(offer(spool, same_path), Duplicate)
        assert spool.holds([same]) == [False]
        # What arrives later and is another image is put aside.
        outcome = offer(spool, changed(later_path, tmp_path / "later.dcm"))
        assert isinstance(outcome, Conflict)
        assert (outcome.code, outcome.is_kept) == ("conflict_elsewhere", True)
        assert [aside.code for aside in spool.asides()] == ["conflict_elsewhere"]
        assert conflicts_of(spool)[1:] == [("MODALITY", "conflict_elsewhere")]
        await until(lambda: len(heard_by(alpha)) == 2)
        places = {event.code.rsplit("/", 1)[1] for event in heard_by(alpha)}
        assert places <= {"1", "2", "3"}
        assert len(places) == 2
        await until(lambda: not spool.foreign.notices())
        # The images from elsewhere are as they were, and what was ours first still is.
        assert set(beta.bytes_of(study.id)) == {here, later, same}
        assert isinstance(offer(spool, before), Duplicate)
        # It is alpha that answers searches about it.
        assert not await exchange.finding.describe(study.id)


async def test_only_who_received_a_study_can_contradict_it(tmp_path):
    async with world(tmp_path) as all_, all_.alpha.serving(), all_.beta.serving() as exchange:
        study = await all_.alpha.keep(instances=1)
        holder = exchange.directory.holder(all_.alpha.name)
        link = Link(holder, all_.beta.identity, ClientLimits())
        try:
            for body, code in [
                (pack((1, study.id, 1, 0)), "conflict_unknown"),
                (pack((1, bytes(16), 1, 0)), "conflict_unknown"),
                (pack((1, study.id, 0, 0)), "request_invalid"),
                (pack((1, study.id, 1, -1)), "request_invalid"),
                (pack((1, study.id[:5], 1, 0)), "request_invalid"),
                (b"\xc1", "request_invalid"),
                (bytes(100), "request_too_large"),
            ]:
                with pytest.raises(HolderRefused) as refused:
                    await link.post(CONFLICT_PATH, body, 64)
                assert refused.value.code == code
        finally:
            await link.close()
        assert heard_by(all_.alpha) == []
