"""One behaviour for both stores: LevelDB and its in-memory twin."""

import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from storage.kv import WriteBatch
from storage.leveldb import open_leveldb
from storage.memory import MemoryStore
from tests.storage.tools import EVERYTHING, contents, write

KEYS = st.binary(min_size=1, max_size=3)
ROWS = st.dictionaries(KEYS, st.none() | st.binary(max_size=4), max_size=8)


def test_a_missing_key_is_none_and_an_empty_value_is_not(store):
    write(store, {b"a": b""})
    assert store.get(b"a") == b""
    assert store.get(b"b") is None


def test_keys_order_as_unsigned_bytes(store):
    keys = [
        b"\x00",
        b"\x00\x00",
        b"\x01",
        b"a",
        b"a\x00",
        b"a\xff",
        b"b",
        b"\x7f",
        b"\x80",
        b"\xff",
    ]
    write(store, dict.fromkeys(reversed(keys), b"v"))
    assert list(contents(store)) == sorted(keys)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_includes_its_start_and_excludes_its_stop(store, reverse):
    write(store, {bytes([n]): b"%d" % n for n in range(10)})
    rows = list(store.iterate(b"\x03", b"\x06", reverse=reverse))
    expected = [(b"\x03", b"3"), (b"\x04", b"4"), (b"\x05", b"5")]
    assert rows == (expected[::-1] if reverse else expected)


@pytest.mark.parametrize("bounds", [(b"b", b"b"), (b"c", b"b"), (b"x", b"y")])
def test_a_scan_of_nothing_is_empty(store, bounds):
    write(store, {b"a": b"1", b"b": b"2"})
    assert list(store.iterate(*bounds)) == []
    assert list(store.iterate(*bounds, reverse=True)) == []


def test_the_later_operation_on_a_key_wins(store):
    batch = WriteBatch()
    batch.put(b"a", b"1")
    batch.delete(b"a")
    batch.put(b"b", b"1")
    batch.put(b"b", b"2")
    later = WriteBatch()
    later.delete(b"b")
    later.put(b"a", b"3")
    batch.extend(later)
    store.write(batch, sync=True)
    assert contents(store) == {b"a": b"3"}


def test_an_empty_batch_and_deleting_what_is_not_there_are_no_errors(store):
    store.write(WriteBatch(), sync=True)
    write(store, {b"a": None})
    assert contents(store) == {}


def test_a_snapshot_keeps_its_moment(store):
    write(store, {b"a": b"1", b"b": b"1"})
    snapshot = store.snapshot()
    write(store, {b"a": b"2", b"b": None, b"c": b"2"})
    assert snapshot.get(b"a") == b"1"
    assert snapshot.get(b"c") is None
    assert list(snapshot.iterate(*EVERYTHING, reverse=True)) == [(b"b", b"1"), (b"a", b"1")]
    assert contents(store) == {b"a": b"2", b"c": b"2"}


@pytest.mark.parametrize("of", ["store", "snapshot"])
def test_a_scan_sees_the_moment_of_its_call(store, of):
    write(store, {b"a": b"1", b"b": b"1"})
    reader = store if of == "store" else store.snapshot()
    rows = reader.iterate(*EVERYTHING)
    write(store, {b"a": None, b"b": b"2", b"c": b"2"})
    assert list(rows) == [(b"a", b"1"), (b"b", b"1")]


def test_a_closed_snapshot_refuses_reads_and_its_open_scans_end(store):
    write(store, {b"a": b"1", b"b": b"1"})
    snapshot = store.snapshot()
    rows = snapshot.iterate(*EVERYTHING)
    next(rows)
    snapshot.close()
    snapshot.close()
    with pytest.raises(ValueError, match="snapshot is closed"):
        snapshot.get(b"a")
    with pytest.raises(ValueError, match="snapshot is closed"):
        snapshot.iterate(*EVERYTHING)
    with pytest.raises(ValueError, match="snapshot is closed"):
        next(rows)
    assert store.get(b"a") == b"1"


def test_a_closed_store_refuses_everything(store):
    write(store, {b"a": b"1", b"b": b"1"})
    snapshot, rows = store.snapshot(), store.iterate(*EVERYTHING)
    next(rows)
    store.close()
    store.close()
    for call in (
        lambda: store.get(b"a"),
        lambda: store.write(WriteBatch(), sync=True),
        store.snapshot,
        lambda: store.iterate(*EVERYTHING),
        lambda: snapshot.get(b"a"),
        lambda: snapshot.iterate(*EVERYTHING),
        lambda: next(rows),
    ):
        with pytest.raises(ValueError, match="the database is closed"):
            call()
    snapshot.close()


def test_readers_in_other_threads_never_meet_half_a_batch(store):
    keys = [b"%d" % n for n in range(20)]
    write(store, dict.fromkeys(keys, b"0"))
    failures, done = [], threading.Event()

    def read():
        while not done.is_set():
            snapshot = store.snapshot()
            values = {snapshot.get(key) for key in keys}
            values |= {value for _, value in snapshot.iterate(*EVERYTHING)}
            snapshot.close()
            if len(values) != 1:
                failures.append(values)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(200):
        write(store, dict.fromkeys(keys, b"%d" % turn), sync=turn % 20 == 0)
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []


def test_two_writers_lose_nothing(store):
    def fill(name):
        for turn in range(100):
            write(store, {b"%s/%d" % (name, turn): b"v"}, sync=turn % 10 == 0)

    writers = [threading.Thread(target=fill, args=(name,)) for name in (b"blocks", b"wal")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(contents(store)) == 200


def test_close_waits_for_calls_of_other_threads_under_way(store):
    write(store, {b"%d" % n: b"v" * 100 for n in range(500)})
    started = threading.Barrier(4)
    seen = []

    def read():
        started.wait()
        try:
            while True:
                store.get(b"7")
                sum(1 for _ in store.iterate(*EVERYTHING))
        except ValueError as error:
            seen.append(str(error))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    started.wait()
    store.close()
    for reader in readers:
        reader.join()
    assert seen == ["the database is closed"] * 3


def test_close_does_not_return_while_a_call_is_under_way(tmp_path):
    store = open_leveldb(tmp_path / "ledger")
    started, release = threading.Event(), threading.Event()

    def call():
        store.call(lambda: started.set() or release.wait())

    caller, closer = threading.Thread(target=call), threading.Thread(target=store.close)
    caller.start()
    started.wait()
    closer.start()
    closer.join(0.2)
    is_waiting = closer.is_alive()
    release.set()
    caller.join()
    closer.join()
    assert is_waiting


class StoreAgainstDict(RuleBasedStateMachine):
    """Any sequence of writes, snapshots and scans, compared with plain dicts."""

    snapshots = Bundle("snapshots")

    def __init__(self):
        super().__init__()
        self.model: dict[bytes, bytes] = {}
        self.store = self.make()

    def make(self):
        return MemoryStore()

    @rule(rows=ROWS, sync=st.booleans())
    def write(self, rows, sync):
        write(self.store, rows, sync=sync)
        self.model = {k: v for k, v in (self.model | rows).items() if v is not None}

    @rule(target=snapshots)
    def take_snapshot(self):
        return self.store.snapshot(), dict(self.model)

    @rule(snapshot=snapshots, bounds=st.tuples(KEYS, KEYS), reverse=st.booleans())
    def scan_snapshot(self, snapshot, bounds, reverse):
        self.check_scan(*snapshot, bounds, reverse)

    @rule(bounds=st.tuples(KEYS, KEYS), reverse=st.booleans())
    def scan(self, bounds, reverse):
        self.check_scan(self.store, self.model, bounds, reverse)

    @rule(snapshot=snapshots, key=KEYS)
    def get_from_snapshot(self, snapshot, key):
        assert snapshot[0].get(key) == snapshot[1].get(key)

    @rule(key=KEYS)
    def get(self, key):
        assert self.store.get(key) == self.model.get(key)

    @rule(snapshot=consumes(snapshots))
    def close_snapshot(self, snapshot):
        snapshot[0].close()

    @invariant()
    def holds_what_the_model_holds(self):
        assert contents(self.store) == self.model

    def check_scan(self, reader, model, bounds, reverse):
        start, stop = bounds
        expected = sorted((k, v) for k, v in model.items() if start <= k < stop)
        rows = list(reader.iterate(start, stop, reverse=reverse))
        assert rows == (expected[::-1] if reverse else expected)

    def teardown(self):
        self.store.close()


class LevelDbAgainstDict(StoreAgainstDict):
    def make(self):
        self.folder = tempfile.TemporaryDirectory()
        return open_leveldb(Path(self.folder.name) / "store")

    def teardown(self):
        super().teardown()
        self.folder.cleanup()


class PersistentAgainstDict(LevelDbAgainstDict):
    """The same with the database closed and opened again in between; it has no snapshots then."""

    take_snapshot = None

    @rule()
    def reopen(self):
        self.store.close()
        self.store = open_leveldb(Path(self.folder.name) / "store")


StoreAgainstDict.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
LevelDbAgainstDict.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None
)
PersistentAgainstDict.TestCase.settings = settings(
    max_examples=10, stateful_step_count=12, deadline=None
)
TestMemoryAgainstDict = StoreAgainstDict.TestCase
TestLevelDbAgainstDict = LevelDbAgainstDict.TestCase
TestPersistentAgainstDict = PersistentAgainstDict.TestCase
