"""Programs that die at any step, rot, and moving house."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from node.exchange.store import pack
from node.exchange.store.blobs import chunk_name, index_name, open_folder, open_memory
from node.exchange.store.errors import ChunkMissing, Damaged, StoreError, StudyErased
from node.exchange.store.scrub import Kind
from tests.damage import last_byte_changed
from tests.exchange.store_parts import (
    OTHER,
    STUDY,
    Dying,
    Offline,
    PowerLoss,
    content,
    contents,
    new_store,
    noise,
    source,
    sources,
    study,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(pack, "CHUNK_BYTES", 4_096)


def wreck(store) -> None:
    """Let the program be gone: what it would still do does not happen."""
    store.close()


@pytest.mark.parametrize("moment", ["before", "torn", "after"])
@pytest.mark.parametrize("step", range(1, 8))
def test_a_put_that_dies_anywhere_is_done_again(tmp_path, step, moment, monkeypatch):
    blobs = Dying(open_folder(tmp_path / "blobs"))
    store = new_store(tmp_path, blobs)
    store.put(OTHER, 1, sources(study()))
    monkeypatch.setattr(type(store), "_remove_unowned", lambda *_: None)
    blobs.left, blobs.moment = step, moment
    with pytest.raises(PowerLoss):
        store.put(STUDY, 1, sources(study()))
    wreck(store)
    blobs.left = None
    store = new_store(tmp_path, blobs)
    assert store.versions(STUDY) == []
    store.put(STUDY, 1, sources(study()))
    assert contents(store) == study()
    orphans = list(store.scrub(collect=True, orphan_age_ms=-60_000))
    assert {f.kind for f in orphans} <= {Kind.ORPHAN}
    assert list(store.scrub(orphan_age_ms=-60_000)) == []
    assert contents(store) == study()
    assert contents(store, study_id=OTHER) == study()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", range(1, 8))
def test_an_erasure_that_dies_anywhere_is_finished_at_the_next_start(tmp_path, step, moment):
    blobs = Dying(open_folder(tmp_path / "blobs"))
    store = new_store(tmp_path, blobs)
    store.put(STUDY, 1, sources(study()))
    blobs.left, blobs.moment = step, moment
    with pytest.raises(PowerLoss):
        store.erase(STUDY)
    with pytest.raises(StudyErased):
        store.key(STUDY)  # the key goes first
    wreck(store)
    blobs.left = None
    store = new_store(tmp_path, blobs)
    assert store.erasure(STUDY).is_complete
    assert [blob.name for blob in blobs.list() if blob.name != "store.id"] == []


_CHILD = """
import json, sys
from pathlib import Path
from tests.exchange.store_parts import STUDY, new_store, source, noise
from node.exchange.store import pack
pack.CHUNK_BYTES = 65_536
store = new_store(Path(sys.argv[1]))
version = 1
while True:
    given = [source(n, noise(90_000, n)) for n in range(version)]
    store.put(STUDY, version, given)
    print(json.dumps(version), flush=True)
    version += 1
"""


@pytest.mark.parametrize("after", [1, 3, 5])
def test_kill_9_loses_nothing_that_was_stored(tmp_path, after):
    command = [sys.executable, "-c", _CHILD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
        last = 0
        while last < after:
            last = json.loads(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().split()
        last = int(rest[-1]) if rest else last
    store = new_store(tmp_path)
    assert store.versions(STUDY)[:last] == list(range(1, last + 1))
    for version in store.versions(STUDY):
        assert contents(store, version) == [noise(90_000, n) for n in range(version)]


def test_rot_is_found_named_and_mended_from_another_holder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here, holder = new_store(tmp_path / "a"), new_store(tmp_path / "b")
    here.put(STUDY, 1, sources(study()))
    holder.adopt(STUDY, here.key(STUDY), here.index_ciphertext(STUDY))
    for digest in holder.missing(STUDY):
        holder.put_ciphertext(digest, here.ciphertext(digest))
    assert list(here.scrub()) == []
    folder = tmp_path / "a" / "blobs"
    first, second, third = (folder / chunk_name(c.digest) for c in here.index(STUDY).chunks[:3])
    first.write_bytes(last_byte_changed(first.read_bytes()))
    second.unlink()
    third.write_bytes(b"")
    found = list(here.scrub())
    kinds = {finding.name.rpartition("/")[2]: finding.kind for finding in found}
    assert kinds == {
        first.name: Kind.ROTTEN,
        second.name: Kind.LOST,
        third.name: Kind.ROTTEN,
    }
    assert {finding.study_id for finding in found} == {STUDY}
    assert here.usage().missing_chunks == 3
    assert len(here.missing(STUDY)) == 3
    for digest in here.missing(STUDY):
        here.put_ciphertext(digest, holder.ciphertext(digest))
    assert list(here.scrub()) == []
    assert contents(here) == study()


def test_rot_met_in_reading_counts_as_missing(tmp_path):
    store = new_store(tmp_path)
    store.put(STUDY, 1, sources(study()))
    digest = store.index(STUDY).chunks[1].digest
    path = tmp_path / "blobs" / chunk_name(digest)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(Damaged):
        content(store, 1)
    assert store.missing(STUDY) == [digest]
    with pytest.raises(ChunkMissing):
        store.ciphertext(digest)


def test_swapped_chunk_files_and_indexes_are_found(tmp_path):
    store = new_store(tmp_path)
    store.put(STUDY, 1, sources(study()))
    store.put(OTHER, 1, sources(study()))
    blobs = tmp_path / "blobs"
    a, b = (blobs / index_name(study_id, 1) for study_id in (STUDY, OTHER))
    shutil.copy(b, a)
    assert [f.kind for f in store.scrub()] == [Kind.INDEX]
    store.close()
    with pytest.raises(Damaged):
        new_store(tmp_path).index(STUDY)


def test_blobs_out_of_reach_are_not_noted_as_lost(tmp_path):
    blobs = Offline(open_folder(tmp_path / "blobs"))
    store = new_store(tmp_path, blobs)
    store.put(STUDY, 1, sources(study()))
    blobs.is_off = True
    with pytest.raises(StoreError):
        list(store.scrub())
    blobs.is_off = False
    assert store.usage().missing_chunks == 0


def test_orphans_are_deleted_only_when_old_and_asked(tmp_path):
    store = new_store(tmp_path)
    store.put(STUDY, 1, sources(study()))
    blobs = open_folder(tmp_path / "blobs")
    blobs.create(chunk_name(b"\1" * 32), b"left behind")
    blobs.create(index_name(OTHER, 1), b"left behind")
    (tmp_path / "blobs" / "chunks" / "01" / "half#123").write_bytes(b"torn")
    assert list(store.scrub(collect=True)) == []  # it may be a put under way
    assert [f.kind for f in store.scrub(orphan_age_ms=-60_000)] == [Kind.ORPHAN] * 2
    assert len(list(store.scrub(collect=True, orphan_age_ms=-60_000))) == 2
    assert list(store.scrub(orphan_age_ms=-60_000)) == []
    assert not list((tmp_path / "blobs").rglob("half*"))
    assert contents(store) == study()


def test_a_store_moves_and_goes_on_where_it_stood(tmp_path):
    old, new = open_folder(tmp_path / "blobs"), open_memory()
    store = new_store(tmp_path)
    store.put(STUDY, 1, sources(study()))
    store.put(OTHER, 1, [source(1, noise(50_000))])
    dying = Dying(new)
    dying.left = 5
    with pytest.raises(PowerLoss):
        store.migrate(dying)
    assert new.read("store.id") is None  # half a move is no store
    seen = []
    moved = store.migrate(new, lambda done, total: seen.append((done, total)))
    assert moved.is_complete
    assert moved.present == 4
    assert moved.copied + moved.present == store.usage().chunks + 2
    assert seen[-1][0] == seen[-1][1]
    store.close()
    store = new_store(tmp_path, new)
    assert contents(store) == study()
    assert list(store.scrub()) == []
    assert len(list(old.list("chunks"))) == store.usage().chunks


def test_a_move_takes_no_rot_along(tmp_path):
    store = new_store(tmp_path)
    store.put(STUDY, 1, sources(study()))
    name = chunk_name(store.index(STUDY).chunks[0].digest)
    (tmp_path / "blobs" / name).write_bytes(b"rot")
    new = open_memory()
    moved = store.migrate(new)
    assert moved.damaged == (name,)
    assert new.read(name) is None
    assert new.read("store.id") is None
    list(store.scrub())
    assert store.migrate(new).is_complete


def test_a_move_onto_another_store_is_refused(tmp_path):
    store = new_store(tmp_path)
    other = open_memory()
    other.create("store.id", b"1" * 32)
    with pytest.raises(StoreError, match="another store"):
        store.migrate(other)
