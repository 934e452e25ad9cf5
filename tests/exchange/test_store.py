"""Putting studies in, reading them back, quotas, versions, adopting and erasing."""

import dataclasses
import hashlib
import os

import pytest

from node.exchange.store import pack
from node.exchange.store.blobs import chunk_name, index_name, open_folder, open_memory
from node.exchange.store.catalog import open_catalog
from node.exchange.store.errors import (
    ChunkMissing,
    ChunkUnknown,
    Damaged,
    FileChanged,
    InvalidIndex,
    QuotaExceeded,
    StoreError,
    StudyErased,
    StudyUnknown,
    VersionConflict,
    VersionUnknown,
)
from node.exchange.store.index import encode_index
from node.exchange.store.sealing import seal_index
from node.exchange.store.store import StudyStore
from tests.damage import last_byte_changed
from tests.exchange.store_parts import (
    OTHER,
    STUDY,
    Offline,
    content,
    contents,
    master,
    new_store,
    noise,
    source,
    sources,
    study,
)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(pack, "CHUNK_BYTES", 4_096)


@pytest.fixture
def store(tmp_path):
    return new_store(tmp_path)


def test_every_instance_comes_back_byte_for_byte(store):
    given = study()
    stored = store.put(STUDY, 1, sources(given))
    assert contents(store) == given
    assert (stored.instances, stored.bytes) == (5, sum(map(len, given)))
    assert stored.chunks == -(-stored.bytes // 4_096)  # small instances share a chunk
    assert stored.stored_bytes == stored.bytes + 30 * stored.chunks
    assert store.versions(STUDY) == [1]
    assert list(store.studies()) == [STUDY]


def test_it_is_there_after_reopening(tmp_path, store):
    store.put(STUDY, 1, sources(study()))
    store.close()
    assert contents(new_store(tmp_path)) == study()


@pytest.mark.parametrize(
    ("start", "stop"), [(0, None), (0, 1), (4_000, 4_200), (1, 12_344), (12_344, None), (7, 7)]
)
def test_a_range_is_a_slice(store, start, stop):
    given = study()
    store.put(STUDY, 1, sources(given))
    assert b"".join(store.read_range(STUDY, 1, start, stop)) == given[1][start:stop]


def test_what_is_asked_and_not_there_is_said(store):
    with pytest.raises(StudyUnknown):
        store.index(OTHER)
    store.put(STUDY, 1, sources(study()))
    with pytest.raises(VersionUnknown):
        store.index(STUDY, 2)
    with pytest.raises(VersionUnknown):
        store.read(STUDY, 5)
    with pytest.raises(ChunkUnknown):
        store.ciphertext(b"\0" * 32)


def test_the_same_version_again_is_what_is_stored_and_other_content_is_refused(store):
    first = store.put(STUDY, 1, sources(study()))
    again = store.put(STUDY, 1, sources(study()))
    assert again.index_digest == first.index_digest
    with pytest.raises(VersionConflict):
        store.put(STUDY, 1, sources(study()[:-1]))
    assert contents(store) == study()


def test_late_instances_make_a_version_that_stores_only_them(store):
    given = study()
    first = store.put(STUDY, 1, sources(given))
    opened = []
    late = noise(3_000, 77)
    again = [source(n, d) for n, d in enumerate(given)]
    for each in again:
        object.__setattr__(each, "open", lambda: opened.append(1))
    second = store.put(STUDY, 2, [source(9, late), *again])
    assert opened == []
    assert second.reused_bytes == first.bytes
    assert second.chunks == first.chunks + 1
    assert contents(store, 2) == [late, *given]
    assert contents(store, 1) == given
    assert store.usage().stored_bytes == second.stored_bytes


def test_a_changed_instance_replaces_its_bytes_in_the_next_version_only(store):
    given = study()
    store.put(STUDY, 1, sources(given))
    changed = [noise(6_000, 50), *given[1:]]
    store.put(STUDY, 2, sources(changed))
    assert contents(store, 2) == changed
    assert contents(store, 1) == given


@pytest.mark.parametrize("wrong", ["short", "long", "other"])
def test_a_source_that_is_not_what_was_registered_leaves_nothing(tmp_path, store, wrong):
    data = noise(9_000)
    size = {"short": 9_001, "long": 8_999, "other": 9_000}[wrong]
    digest = hashlib.sha256(b"other").digest()
    bad = source(9, data, size=size, digest=digest)
    with pytest.raises(FileChanged):
        store.put(STUDY, 1, [*sources(study()), bad])
    assert store.versions(STUDY) == []
    assert list(open_folder(tmp_path / "blobs").list("chunks")) == []


def test_the_quota_refuses_before_the_disk_is_full(tmp_path):
    store = new_store(tmp_path, quota_bytes=20_000)
    store.put(STUDY, 1, [source(1, noise(8_000))])
    with pytest.raises(QuotaExceeded):
        store.put(OTHER, 1, [source(1, noise(12_000))])
    blobs = open_folder(tmp_path / "blobs")
    assert len(list(blobs.list("chunks"))) == 2
    store.erase(STUDY)
    store.put(OTHER, 1, [source(1, noise(12_000))])


def test_no_two_studies_share_a_key_and_no_key_or_identifier_lies_in_clear(tmp_path, store):
    given = study()
    store.put(STUDY, 1, sources(given))
    store.put(OTHER, 1, sources(given))
    assert store.key(STUDY) != store.key(OTHER)
    secrets = [store.key(STUDY), b"1.2.840.99.", b"1.2.840.97.1", given[0][:32]]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [secret for secret in secrets if secret in data], path
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.fixture
def two(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    return new_store(tmp_path / "a"), new_store(tmp_path / "b")


def transfer(here: StudyStore, there: StudyStore, limit: int | None = None) -> int:
    there.adopt(STUDY, here.key(STUDY), here.index_ciphertext(STUDY))
    wanted = there.missing(STUDY)[:limit]
    for digest in wanted:
        there.put_ciphertext(digest, here.ciphertext(digest))
    return len(wanted)


def test_another_hospital_adopts_a_study_and_goes_on_where_it_stood(tmp_path, two):
    here, there = two
    stored = here.put(STUDY, 1, sources(study()))
    assert transfer(here, there, 2) == 2
    assert not there.is_complete(STUDY)
    with pytest.raises(ChunkMissing):
        content(there, 3)
    there.close()
    there = new_store(tmp_path / "b")
    assert transfer(here, there) == stored.chunks - 2
    assert there.is_complete(STUDY)
    assert contents(there) == study()
    here.put(STUDY, 2, [*sources(study()), source(9, noise(100))])
    assert transfer(here, there) == 1


def test_a_chunk_that_was_written_just_before_a_crash_is_not_fetched_again(tmp_path, two):
    here, there = two
    here.put(STUDY, 1, sources(study()))
    transfer(here, there, 0)
    digest = there.missing(STUDY)[0]
    open_folder(tmp_path / "b" / "blobs").create(chunk_name(digest), here.ciphertext(digest))
    there.adopt(STUDY, here.key(STUDY), here.index_ciphertext(STUDY))
    assert digest not in there.missing(STUDY)


def test_a_lying_holder_is_refused(two):
    here, there = two
    here.put(STUDY, 1, sources(study()))
    transfer(here, there, 0)
    first, second = there.missing(STUDY)[:2]
    good = here.ciphertext(first)
    for bad in (here.ciphertext(second), good[:-1], good + b"x", b"", bytes(len(good))):
        with pytest.raises(Damaged):
            there.put_ciphertext(first, bad)
    unasked = noise(100)
    with pytest.raises(ChunkUnknown):
        there.put_ciphertext(hashlib.sha256(unasked).digest(), unasked)


def test_an_index_of_another_study_key_or_version_is_refused(two):
    here, there = two
    here.put(STUDY, 1, sources(study()))
    index = here.index_ciphertext(STUDY)
    for study_id, key, sealed in [
        (OTHER, here.key(STUDY), index),
        (STUDY, os.urandom(32), index),
        (STUDY, here.key(STUDY), index[:1] + b"\0\2" + index[3:]),
        (STUDY, here.key(STUDY), index[:-1]),
    ]:
        with pytest.raises(InvalidIndex):
            there.adopt(study_id, key, sealed)
    assert list(there.studies()) == []


def test_a_study_is_never_adopted_over_one_under_another_key(two):
    here, there = two
    here.put(STUDY, 1, sources(study()))
    there.put(STUDY, 1, sources(study()))
    with pytest.raises(VersionConflict):
        there.adopt(STUDY, here.key(STUDY), here.index_ciphertext(STUDY))
    here.put(STUDY, 2, sources(study()[1:]))
    with pytest.raises(VersionConflict):
        there.adopt(STUDY, here.key(STUDY), here.index_ciphertext(STUDY))
    assert contents(there) == study()


def test_an_adopted_study_counts_against_the_quota_before_it_is_fetched(tmp_path, two):
    here, _ = two
    here.put(STUDY, 1, sources(study()))
    (tmp_path / "c").mkdir()
    small = new_store(tmp_path / "c", quota_bytes=10_000)
    with pytest.raises(QuotaExceeded):
        small.adopt(STUDY, here.key(STUDY), here.index_ciphertext(STUDY))


def test_erasing_destroys_the_key_and_every_trace(tmp_path, store):
    stored = store.put(STUDY, 1, sources(study()))
    store.put(OTHER, 1, sources(study()))
    sealed = store._catalog.study(STUDY).sealed
    key = store.key(STUDY)
    erasure = store.erase(STUDY)
    assert (erasure.chunks, erasure.stored_bytes) == (stored.chunks, stored.stored_bytes)
    assert erasure.is_complete
    assert erasure.key_destroyed_ms > 0
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert sealed not in path.read_bytes(), path
            assert key not in path.read_bytes(), path
    names = [blob.name for blob in open_folder(tmp_path / "blobs").list()]
    assert not [name for name in names if STUDY.hex() in name]
    assert len([name for name in names if "chunks" in name]) == stored.chunks
    for attempt in (
        lambda: store.read(STUDY, 0),
        lambda: store.key(STUDY),
        lambda: store.put(STUDY, 1, sources(study())),
        lambda: store.adopt(STUDY, key, b"\1" + bytes(99)),
    ):
        with pytest.raises((StudyErased, InvalidIndex)):
            attempt()
    assert store.erase(STUDY) == erasure
    assert contents(store, study_id=OTHER) == study()


def test_erasing_with_the_blobs_out_of_reach_still_destroys_the_key(tmp_path):
    blobs = Offline(open_folder(tmp_path / "blobs"))
    store = new_store(tmp_path, blobs)
    store.put(STUDY, 1, sources(study()))
    blobs.is_off = True
    assert not store.erase(STUDY).is_complete
    with pytest.raises(StudyErased):
        store.key(STUDY)
    store.close()
    blobs.is_off = False
    store = new_store(tmp_path, blobs)  # opening goes on with it
    assert store.erasure(STUDY).is_complete
    assert list(blobs.list("chunks")) == []


def test_an_abandoned_study_may_come_back(two):
    here, there = two
    here.put(STUDY, 1, sources(study()))
    transfer(here, there)
    there.abandon(STUDY)
    with pytest.raises(StudyUnknown):
        there.index(STUDY)
    assert there.usage().stored_bytes == 0
    transfer(here, there)
    assert contents(there) == study()
    there.erase(STUDY)
    with pytest.raises(StudyErased):
        there.abandon(STUDY)


def test_a_put_that_meets_an_erasure_stores_nothing(tmp_path, store):
    class Erasing:
        def __call__(self):
            store.erase(STUDY)
            return source(9, data).open()

    data = noise(5_000)
    last = source(9, data)
    object.__setattr__(last, "open", Erasing())
    with pytest.raises(StudyErased):
        store.put(STUDY, 1, [*sources(study()), last])
    assert list(open_folder(tmp_path / "blobs").list("chunks")) == []


def test_another_place_than_the_key_files_own_is_refused(tmp_path, store):
    store.put(STUDY, 1, sources(study()))
    catalog = open_catalog(tmp_path / "keys.db", master(tmp_path))
    with pytest.raises(StoreError, match="mounted"):
        StudyStore(open_memory(), catalog)
    foreign = open_memory()
    foreign.create("store.id", b"0" * 32)
    with pytest.raises(StoreError, match="another key file"):
        StudyStore(foreign, catalog)


def test_usage_adds_up(store):
    stored = store.put(STUDY, 1, sources(study()))
    usage = store.usage()
    assert (usage.studies, usage.versions, usage.instances) == (1, 1, 5)
    assert (usage.bytes, usage.stored_bytes) == (stored.bytes, stored.stored_bytes)
    assert (usage.chunks, usage.missing_chunks) == (stored.chunks, 0)
    assert usage.free_bytes > 0


def test_a_rotten_index_is_said_and_mended_by_adopting_it_again(tmp_path, two):
    here, there = two
    here.put(STUDY, 1, sources(study()))
    transfer(here, there)
    path = tmp_path / "b" / "blobs" / index_name(STUDY, 1)
    path.write_bytes(last_byte_changed(path.read_bytes()))
    there.close()
    there = new_store(tmp_path / "b")
    with pytest.raises(Damaged):
        there.index(STUDY)
    there.adopt(STUDY, here.key(STUDY), here.index_ciphertext(STUDY))
    assert contents(there) == study()


def test_a_later_version_stores_anew_what_rotted_in_the_one_before(tmp_path, store):
    store.put(STUDY, 1, sources(study()))
    digest = store.index(STUDY).chunks[2].digest
    (tmp_path / "blobs" / chunk_name(digest)).unlink()
    list(store.scrub())
    stored = store.put(STUDY, 2, sources(study()))
    assert 0 < stored.reused_bytes < stored.bytes
    assert store.is_complete(STUDY, 2)
    assert contents(store, 2) == study()


def test_a_chunk_that_was_put_back_from_a_backup_is_noticed(tmp_path, store):
    store.put(STUDY, 1, sources(study()))
    path = tmp_path / "blobs" / chunk_name(store.index(STUDY).chunks[2].digest)
    whole = path.read_bytes()
    assert store.last_scrub() is None
    for data, kinds in ((b"rot", ["rotten"]), (b"other", ["missing"]), (whole, [])):
        path.write_bytes(data)
        found = list(store.scrub())
        assert [each.kind.value for each in found] == kinds
        assert sum(store.last_scrub().found.values()) == len(kinds)
    assert store.is_complete(STUDY)
    assert contents(store) == study()


def test_a_forged_index_cannot_claim_another_studys_chunk(two):
    here, there = two
    there.put(STUDY, 1, sources(study()))
    here.put(OTHER, 1, sources(study()))
    index = here.index(OTHER)
    stolen = there.index(STUDY).chunks[0]
    forged = dataclasses.replace(index, chunks=(stolen, *index.chunks[1:]))
    sealed = seal_index(here.key(OTHER), OTHER, 1, encode_index(forged))
    with pytest.raises(VersionConflict, match="another study"):
        there.adopt(OTHER, here.key(OTHER), sealed)
    assert list(there.studies()) == [STUDY]
    assert contents(there) == study()


def test_a_source_that_was_checked_before_is_not_hashed_again_but_its_length_is_kept(store):
    data = noise(9_000)
    wrong = hashlib.sha256(b"other").digest()
    trusted = dataclasses.replace(source(1, data, digest=wrong), is_checked=True)
    store.put(STUDY, 1, [trusted])
    assert contents(store) == [data]
    longer = dataclasses.replace(source(1, data, size=8_999), is_checked=True)
    with pytest.raises(FileChanged):
        store.put(OTHER, 1, [longer])
