"""The trail of a study and the anchors of an institution, on a real chain."""

from dataclasses import replace

import pytest

from node.ledger.queries import audits
from node.ledger.queries.access_views import RequestQuery
from node.ledger.queries.audits import anchors_page, audit_trail
from node.ledger.queries.members import institutions_page
from node.ledger.queries.paging import BadQuery
from node.ledger.queries.requests import requests_page
from storage import schema
from storage.errors import CorruptRecord
from storage.kv import WriteBatch
from storage.leveldb import open_leveldb
from tests.ledger.harness import digest, identity, register
from tests.ledger.query_world import (
    ASKER,
    CUSTODIAN,
    GENESIS,
    THIRD,
    World,
    asking,
    breaking,
    follow,
    member_key,
)

STUDY = identity(("study", "a"))


@pytest.fixture
def world():
    return World()


def trail(world, study_id=STUDY, limit=50, cursor=None):
    return audit_trail(world.moment(), GENESIS.limits, study_id, limit, cursor)


def whole(world, study_id=STUDY, limit=50):
    moment = world.moment()
    return follow(
        lambda cursor: audit_trail(moment, GENESIS.limits, study_id, limit, cursor),
        lambda page: page.entries,
    )


def play(world):
    """A story about study a, with other studies' events in the same transactions and blocks."""
    world.study("other")
    world.send(CUSTODIAN, "gateway", register("b"), register("a"), register("c"))
    world.publish("treatment", "permit", "required")
    world.add(
        world.sent(CUSTODIAN, "gateway", ("study.classify", identity(("study", "b")), "R")),
        world.sent(ASKER, "clinician", asking("r1", "b"), asking("r2", "a"), asking("r3", "a")),
    )
    world.grant(study_id=STUDY)
    world.send(THIRD, "clinician", breaking("emergency"))


STORY = [
    ("access_break_glass", THIRD, "clinician"),
    ("access_granted", CUSTODIAN, "clinician"),
    ("access_granted", CUSTODIAN, "clinician"),
    ("consent_granted", CUSTODIAN, "clinician"),
    ("access_waiting", ASKER, "clinician"),
    ("access_requested", ASKER, "clinician"),
    ("access_waiting", ASKER, "clinician"),
    ("access_requested", ASKER, "clinician"),
    ("study_registered", CUSTODIAN, "gateway"),
]


@pytest.mark.parametrize("limit", [1, 2, 3, 8, 9, 100])
def test_the_trail_has_every_event_and_its_sender_newest_first(world, limit):
    play(world)
    entries, sizes = whole(world, limit=limit)
    assert [(each.name, each.institution) for each in entries] == [each[:2] for each in STORY]
    assert [each.member_key for each in entries] == [member_key(i, r) for _, i, r in STORY]
    assert all(STUDY in each.fields for each in entries if each.name != "consent_granted")
    assert max(sizes) <= limit
    places = [(each.height, each.position, each.number) for each in entries]
    assert places == sorted(places, reverse=True)
    assert [each.position for each in entries[4:8]] == [1] * 4


def test_an_entry_is_the_receipts_event(world):
    play(world)
    for each in trail(world).entries:
        receipt = world.chain.receipts(each.height)[each.position]
        assert each.transaction_id in receipt
        assert each.time_ms == GENESIS.time_ms + 1_000 * each.height


def test_a_derived_study_ends_its_trail_with_the_derivation(world):
    world.study()
    derived = identity("derived")
    model = ("vendor/model", "1.0", digest("weights"))
    description = ("SEG", "chest", 0, 0)
    root = digest("derived root")
    derive = ("study.derive", derived, STUDY, root, "segmentation", *model, *description)
    world.send(CUSTODIAN, "gateway", derive)
    [only] = trail(world, derived).entries
    assert (only.name, only.fields[0]) == ("study_derived", derived)
    names = [each.name for each in trail(world).entries]
    assert names == ["study_derived", "study_registered"]


def test_what_is_no_study_has_no_trail(world):
    assert trail(world, identity("none")).entries == ()


def test_pages_of_a_trail_stay_as_they_were_while_blocks_arrive(world):
    play(world)
    before = whole(world)[0]
    seen, cursor, label = [], None, 0
    while True:
        page = trail(world, limit=2, cursor=cursor)
        seen += page.entries
        world.send(ASKER, "clinician", asking(("late", label)))
        label += 1
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == before


def test_one_block_at_a_time_is_read_for_a_page(world, monkeypatch):
    play(world)
    world.add(*(world.sent(ASKER, "clinician", asking(("more", each))) for each in range(3)))
    loads, load = [], audits._Blocks._load
    monkeypatch.setattr(
        audits._Blocks, "_load", lambda self, height: loads.append(height) or load(self, height)
    )
    entries = trail(world).entries
    assert loads == sorted({each.height for each in entries}, reverse=True)


def test_a_cursor_of_a_trail_belongs_to_its_study(world):
    play(world)
    cursor = trail(world, limit=2).next_cursor
    with pytest.raises(BadQuery, match="cursor"):
        trail(world, identity(("study", "b")), cursor=cursor)
    for limit, study in ((0, STUDY), (101, STUDY), (9, b"short")):
        with pytest.raises(BadQuery):
            trail(world, study, limit)


@pytest.mark.parametrize("table", [schema.PAYLOAD, schema.RECEIPTS])
def test_a_block_that_lacks_an_event_is_reported(world, table):
    world.study()
    damage = WriteBatch()
    for key, _ in world.store.iterate(table, schema.after_prefix(table)):
        damage.delete(key)
    world.store.write(damage, sync=False)
    with pytest.raises(CorruptRecord):
        trail(world)


def anchored(sequence):
    end = GENESIS.time_ms + 10 * sequence
    previous = None if sequence == 1 else digest(sequence - 1)
    return ("audit.anchor", sequence, end - 10, end, 5, digest(sequence), previous)


def test_anchors_come_newest_first_page_by_page(world):
    for sequence in range(1, 6):
        world.send(ASKER, "auditor", anchored(sequence))
    moment = world.moment()
    found, sizes = follow(
        lambda cursor: anchors_page(moment, ASKER, 2, cursor), lambda page: page.anchors
    )
    assert sizes == [2, 2, 1]
    assert [each.sequence for each in found] == [5, 4, 3, 2, 1]
    assert (found[0].root, found[0].previous_root, found[0].count) == (digest(5), digest(4), 5)
    assert found[0].from_ms == found[1].to_ms
    assert found[0].height == world.height
    assert anchors_page(moment, THIRD, 9, None).anchors == ()
    with pytest.raises(BadQuery, match="limit"):
        anchors_page(moment, ASKER, 201, None)


def test_a_database_on_disk_tells_the_same_as_one_in_memory(world, tmp_path):
    on_disk = World(open_leveldb(tmp_path / "db"))
    try:
        for each in (world, on_disk):
            play(each)
        query = RequestQuery(limit=2)
        # Salts, and so the ids of transactions, differ.
        stories = [
            [replace(entry, transaction_id=b"") for entry in whole(each)[0]]
            for each in (on_disk, world)
        ]
        assert stories[0] == stories[1]
        assert requests_page(on_disk.moment(), query) == requests_page(world.moment(), query)
        assert institutions_page(on_disk.moment(), 3, None) == institutions_page(
            world.moment(), 3, None
        )
    finally:
        on_disk.store.close()
