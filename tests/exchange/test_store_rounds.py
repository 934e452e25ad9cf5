"""The slow scrub: all is read once in a period, at its pace, and a restart goes on."""

import shutil
from contextlib import contextmanager

import pytest

from node.exchange.store import pack, rounds
from node.exchange.store.blobs import BlobStore, chunk_name, index_name, open_folder
from node.exchange.store.errors import StoreError
from tests.exchange.store_parts import OTHER, STUDY, Dying, new_store, noise, sources, study

DAY_MS = 86_400_000
PERIOD_MS = 30 * DAY_MS
BEGAN_MS = 1_700_000_000_000


class Clock:
    def __init__(self):
        self.now_ms = BEGAN_MS

    def __call__(self):
        return self.now_ms


class Reading(Dying):
    """Blobs that note what is read."""

    def __init__(self, inner: BlobStore) -> None:
        super().__init__(inner)
        self.names = []

    def read(self, name):
        self.names.append(name)
        return super().read(name)

    def taken(self):
        """Return the chunks and indexes that were read, and forget them."""
        names = [name for name in self.names if "/" in name]
        self.names.clear()
        return names


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(rounds, "PIECE_BLOBS", 2)
    monkeypatch.setattr(pack, "CHUNK_BYTES", 4_096)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def opened(tmp_path, clock):
    """Return a context with a store of two studies and its slow scrub; again, it is a restart."""

    @contextmanager
    def open_it():
        blobs = Reading(open_folder(tmp_path / "blobs"))
        store = new_store(tmp_path, blobs, compression="off")
        store.put(STUDY, 1, sources(study()))
        store.put(OTHER, 1, sources([noise(3_000, 9)]))
        blobs.taken()
        yield store, blobs, store.slow_scrub(PERIOD_MS, now_ms=clock)
        store.close()

    return open_it


def everything(store):
    names = [chunk_name(row.digest) for row in store._catalog.chunks()]
    return names + [index_name(each, 1) for each in sorted((STUDY, OTHER))]


def run_out(scrub, clock):
    """Turn the clock to each piece in turn until the round is over; return when each was due."""
    due = []
    while not scrub._round.is_over:
        clock.now_ms += scrub.wait_ms()
        due.append(clock.now_ms - BEGAN_MS)
        scrub.step()
    return due


def test_all_is_read_once_in_a_period_in_pieces_that_are_spread_over_it(opened, clock):
    with opened() as (store, blobs, scrub):
        names = everything(store)
        due = run_out(scrub, clock)
        assert blobs.taken() == names
        count = len(names) - 2
        assert len(due) >= count // 2 + 2
        assert due[0] == 0
        assert due == sorted(due)
        assert due[count // 2] <= PERIOD_MS
        assert 0 < due[1] < PERIOD_MS
        assert sum(store.last_scrub().found.values()) == 0
        # The next round begins when the period is over, not before.
        assert scrub.wait_ms() == BEGAN_MS + PERIOD_MS - clock.now_ms
        clock.now_ms = BEGAN_MS + PERIOD_MS
        assert scrub.wait_ms() == 0
        scrub.step()
        assert blobs.taken() == names[:2]


def test_a_restart_goes_on_where_it_stood(opened, clock):
    with opened() as (store, blobs, scrub):
        names = everything(store)
        scrub.step()
        clock.now_ms += scrub.wait_ms()
        scrub.step()
        assert blobs.taken() == names[:4]
        wait_ms, progress = scrub.wait_ms(), scrub.progress
    with opened() as (_, blobs, scrub):
        assert (scrub.wait_ms(), scrub.progress) == (wait_ms, progress)
        run_out(scrub, clock)
        assert blobs.taken() == names[4:]
    with opened() as (_, blobs, scrub):
        clock.now_ms -= DAY_MS
        assert scrub.wait_ms() == DAY_MS  # over, and not begun anew


def test_what_was_due_while_nobody_ran_is_due_now(opened, clock):
    with opened() as (store, blobs, scrub):
        scrub.step()
        assert scrub.wait_ms() > 0
    clock.now_ms += 40 * DAY_MS
    with opened() as (store, blobs, scrub):
        while not scrub._round.is_over:
            assert scrub.wait_ms() == 0
            scrub.step()
        assert blobs.taken() == everything(store)[2:]


def test_what_is_rotten_lost_or_missing_is_found_and_noted(opened, clock, tmp_path):
    with opened() as (store, _, scrub):
        first, second, third, *_ = [row.digest for row in store._catalog.chunks(STUDY)]
        store._catalog.mark(third, present=False)
        (tmp_path / "blobs" / chunk_name(third)).unlink()
        (tmp_path / "blobs" / chunk_name(second)).unlink()
        (tmp_path / "blobs" / chunk_name(first)).write_bytes(b"rot")
        (tmp_path / "blobs" / index_name(OTHER, 1)).write_bytes(b"rot")
        found = []
        while not scrub._round.is_over:
            clock.now_ms += scrub.wait_ms()
            found += scrub.step().findings
        kinds = {(each.kind.value, each.study_id) for each in found}
        stated = {("rotten", STUDY), ("lost", STUDY), ("missing", STUDY), ("index", OTHER)}
        assert kinds == stated
        assert store.last_scrub().found == dict.fromkeys(("rotten", "lost", "missing", "index"), 1)
        assert store.usage().missing_chunks == 3
        assert list(store.lacking()) == [STUDY]
        assert {row.digest for row in store.lost(STUDY)} == {first, second, third}


def test_a_place_that_is_gone_is_not_a_store_that_lost_everything(opened, clock, tmp_path):
    with opened() as (store, _, scrub):
        shutil.move(tmp_path / "blobs", tmp_path / "unmounted")
        (tmp_path / "blobs").mkdir()
        with pytest.raises(StoreError):
            scrub.step()
        assert store.usage().missing_chunks == 0


def test_a_clock_that_was_set_back_holds_nothing_up(opened, clock):
    with opened() as (_store, blobs, scrub):
        scrub.step()
        blobs.taken()
        clock.now_ms -= 400 * DAY_MS
        assert scrub.wait_ms() <= PERIOD_MS


@pytest.mark.parametrize("note", [b"", b"5", b'{"began_ms": 1, "other": 2}', b'{"chunk": "x"}'])
def test_a_note_of_another_program_begins_a_round_anew(tmp_path, clock, note):
    store = new_store(tmp_path)
    store._catalog.note("scrubbing", note)
    scrub = store.slow_scrub(PERIOD_MS, now_ms=clock)
    assert (scrub.wait_ms(), scrub.progress) == (0, 0.0)
    scrub.step()
    store.close()


def test_an_empty_store_is_scrubbed_once_in_a_period(tmp_path, clock):
    store = new_store(tmp_path)
    scrub = store.slow_scrub(PERIOD_MS, now_ms=clock)
    while not scrub._round.is_over:
        assert scrub.wait_ms() == 0
        scrub.step()
    assert scrub.wait_ms() == PERIOD_MS
    store.close()
