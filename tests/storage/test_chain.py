import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import schema
from storage.chain import ChainStore
from storage.errors import CorruptRecord
from storage.kv import WriteBatch
from storage.memory import MemoryStore
from tests.storage.tools import contents, write

ONE, TWO, THREE = (bytes([n]) * 32 for n in (1, 2, 3))


@pytest.fixture
def chain(store):
    return ChainStore(store)


def commit(store, *steps):
    batch = WriteBatch()
    for step in steps:
        step(batch)
    store.write(batch, sync=True)


def test_an_empty_store_answers_none_everywhere(chain):
    assert chain.head() is None
    for answer in (
        chain.header(0), chain.payload_digest(0), chain.receipts(0), chain.receipt(0, 0),
        chain.certificate(0), chain.height_of(ONE), chain.transaction(ONE), chain.payload(0, ONE),
        chain.body(0, ONE, 0), chain.state_value(b"k"), chain.meta("genesis"),
    ):  # fmt: skip
        assert answer is None
    assert chain.wal() == {}
    assert chain.payload_digests(0) == []
    assert chain.scan_index("study", limit=1) == []


def test_nothing_is_written_before_the_batch_is(store, chain):
    chain.put_block(WriteBatch(), 0, b"header", ONE, TWO, [])
    chain.put_state(WriteBatch(), b"k", b"v")
    assert contents(store) == {}


def test_a_payload_comes_back_whole_and_body_by_body(store, chain):
    bodies = [b"first", b"", b"third" * 100]
    commit(store, lambda out: chain.put_payload(out, 7, ONE, b"batch", bodies))
    assert chain.payload(7, ONE) == (b"batch", bodies)
    assert [chain.body(7, ONE, n) for n in range(-1, 4)] == [None, *bodies, None]
    assert chain.payload(8, ONE) is None
    assert chain.payload(7, TWO) is None


def test_payloads_of_a_height_are_listed_and_deleted_one_by_one(store, chain):
    for height, digest in ((6, ONE), (7, THREE), (7, ONE), (7, TWO), (8, ONE)):
        commit(store, lambda out, h=height, d=digest: chain.put_payload(out, h, d, b"", []))
    assert chain.payload_digests(7) == [ONE, TWO, THREE]
    commit(store, lambda out: chain.delete_payload(out, 7, TWO))
    assert chain.payload_digests(7) == [ONE, THREE]
    assert chain.payload(7, TWO) is None


def test_a_block_comes_back_in_all_its_parts(store, chain):
    commit(
        store,
        lambda out: chain.put_block(out, 3, b"header", ONE, TWO, [b"r0", b"", b"r2"]),
        lambda out: chain.put_certificate(out, 3, b"seals"),
        lambda out: chain.put_transaction(out, THREE, 3, 1),
    )
    assert chain.head() == 3
    assert chain.header(3) == b"header"
    assert chain.payload_digest(3) == TWO
    assert chain.height_of(ONE) == 3
    assert chain.receipts(3) == [b"r0", b"", b"r2"]
    assert [chain.receipt(3, n) for n in range(4)] == [b"r0", b"", b"r2", None]
    assert chain.certificate(3) == b"seals"
    assert chain.transaction(THREE) == (3, 1)


def test_a_block_without_receipts_is_not_a_block_that_is_missing(store, chain):
    commit(store, lambda out: chain.put_block(out, 0, b"", ONE, TWO, []))
    assert chain.receipts(0) == []
    assert chain.header(0) == b""


def test_reads_through_a_snapshot_are_of_one_moment(store, chain):
    commit(store, lambda out: chain.put_block(out, 1, b"one", ONE, TWO, []))
    before = ChainStore(store.snapshot())
    commit(store, lambda out: chain.put_block(out, 2, b"two", TWO, TWO, []))
    assert (before.head(), before.header(2)) == (1, None)
    assert (chain.head(), chain.header(2)) == (2, b"two")


def test_wal_rows_are_overwritten_deleted_and_returned_in_order(store, chain):
    commit(
        store,
        lambda out: chain.put_wal(out, b"vote/2", b"old"),
        lambda out: chain.put_wal(out, b"vote/2", b"new"),
        lambda out: chain.put_wal(out, b"", b"nameless"),
        lambda out: chain.put_wal(out, b"\xff" * 9, b"last"),
        lambda out: chain.put_wal(out, b"vote/1", b"gone"),
        lambda out: chain.delete_wal(out, b"vote/1"),
        lambda out: chain.put_state(out, b"vote/3", b"elsewhere"),
    )
    assert list(chain.wal().items()) == [
        (b"", b"nameless"), (b"vote/2", b"new"), (b"\xff" * 9, b"last"),
    ]  # fmt: skip


def test_state_and_meta_values(store, chain):
    commit(
        store,
        lambda out: chain.put_state(out, b"k", b"v"),
        lambda out: chain.put_state(out, b"", b""),
        lambda out: chain.put_meta(out, "k", b"meta"),
    )
    assert chain.state_value(b"k") == b"v"
    assert chain.state_value(b"") == b""
    assert chain.meta("k") == b"meta"
    commit(store, lambda out: chain.delete_state(out, b"k"))
    assert chain.state_value(b"k") is None


@pytest.mark.parametrize(
    "call",
    [
        lambda chain, out: chain.put_payload(out, 1, b"short", b"", []),
        lambda chain, out: chain.put_block(out, 1, b"", b"x" * 31, TWO, []),
        lambda chain, out: chain.put_block(out, 1, b"", ONE, b"x" * 33, []),
        lambda chain, out: chain.put_block(out, -1, b"", ONE, TWO, []),
        lambda chain, out: chain.put_transaction(out, b"short", 1, 0),
        lambda chain, out: chain.put_transaction(out, ONE, 1, 2**32),
        lambda chain, out: chain.put_certificate(out, 2**63, b""),
        lambda chain, out: chain.transaction(b"short"),
        lambda chain, out: chain.height_of(b""),
        lambda chain, out: chain.header(-1),
        lambda chain, out: chain.scan_index("study", limit=0),
        lambda chain, out: chain.scan_index("study", limit=10_001),
    ],
)
def test_what_no_row_can_have_is_refused(chain, call):
    with pytest.raises(ValueError):  # noqa: PT011
        call(chain, WriteBatch())


@pytest.mark.parametrize(
    ("key", "read"),
    [
        (schema.HEAD, lambda chain: chain.head()),
        (schema.BLOCK + bytes(8), lambda chain: chain.header(0)),
        (schema.BLOCK + bytes(8), lambda chain: chain.payload_digest(0)),
        (schema.RECEIPTS + bytes(8), lambda chain: chain.receipts(0)),
        (schema.RECEIPTS + bytes(8), lambda chain: chain.receipt(0, 0)),
        (schema.HEADER_HEIGHT + ONE, lambda chain: chain.height_of(ONE)),
        (schema.TRANSACTION + ONE, lambda chain: chain.transaction(ONE)),
        (schema.PAYLOAD + bytes(8) + ONE, lambda chain: chain.payload(0, ONE)),
        (schema.PAYLOAD + bytes(8) + ONE, lambda chain: chain.body(0, ONE, 0)),
        (schema.INDEX + b"i\x00x", lambda chain: chain.scan_index("i", limit=1)),
    ],
)
def test_rows_of_another_form_are_corrupt(store, chain, key, read):
    write(store, {key: b"odd"})
    with pytest.raises(CorruptRecord, match="cannot be read"):
        read(chain)


def test_a_payload_without_a_batch_is_corrupt(store, chain):
    write(store, {schema.PAYLOAD + bytes(8) + ONE: bytes(4)})
    with pytest.raises(CorruptRecord, match="payload of height 0"):
        chain.payload(0, ONE)


ROWS = [(b"CT", b"\x00\x01"), (b"CT", b"\x00\x02"), (b"CT", b"\x01\x00"), (b"MR", b"\x00\x01"),
        (b"M", b"\xff"), (b"CTX", b"")]  # fmt: skip


@pytest.fixture
def indexed(store, chain):
    for parts in ROWS:
        commit(store, lambda out, p=parts: chain.put_index(out, "modality", p, b"v" + p[1]))
    commit(store, lambda out: chain.put_index(out, "modalit", (b"y", b""), b"other index"))
    commit(store, lambda out: chain.put_index(out, "modality2", (b"CT", b""), b"other index"))
    return chain


def test_an_index_is_scanned_in_order_of_its_parts(indexed):
    rows = indexed.scan_index("modality", limit=10)
    assert [row.parts for row in rows] == sorted(ROWS)
    assert all(row.value == b"v" + row.parts[1] for row in rows)
    down = indexed.scan_index("modality", reverse=True, limit=10)
    assert down == rows[::-1]


def test_a_prefix_of_parts_matches_whole_parts_only(indexed):
    rows = indexed.scan_index("modality", [b"CT"], limit=10)
    assert [row.parts for row in rows] == [row for row in ROWS if row[0] == b"CT"]
    assert indexed.scan_index("modality", [b"C"], limit=10) == []


@pytest.mark.parametrize("reverse", [False, True])
def test_pages_join_to_the_whole_even_while_rows_go(store, indexed, reverse):
    seen, cursor = [], None
    while rows := indexed.scan_index("modality", after=cursor, reverse=reverse, limit=2):
        seen += [row.parts for row in rows]
        cursor = rows[-1].cursor
        commit(store, lambda out, p=rows[-1].parts: indexed.delete_index(out, "modality", p))
    assert seen == sorted(ROWS, reverse=reverse)


@pytest.mark.parametrize("cursor", [b"", b"CT", b"\x01\x07\x00", b"MR\x00\x01\x01\x01\x02\x00"])
def test_a_cursor_of_another_scan_is_refused(indexed, cursor):
    with pytest.raises(ValueError, match="cursor"):
        indexed.scan_index("modality", [b"CT"], after=cursor, limit=1)


TREES = st.lists(st.tuples(*[st.sampled_from([b"", b"\x00", b"\x01", b"a", b"\xff"])] * 3))


@settings(max_examples=60)
@given(TREES, st.integers(0, 3), st.booleans(), st.integers(1, 4), st.data())
def test_scans_agree_with_sorted_tuples(rows, depth, reverse, limit, data):
    store = MemoryStore()
    chain = ChainStore(store)
    commit(store, *[lambda out, p=parts: chain.put_index(out, "i", p) for parts in rows])
    prefix = data.draw(st.sampled_from([*rows, (b"a", b"", b"\x00")]))[:depth]
    expected = sorted({parts for parts in rows if parts[:depth] == prefix}, reverse=reverse)
    seen, cursor = [], None
    while page := chain.scan_index("i", prefix, after=cursor, reverse=reverse, limit=limit):
        assert len(page) <= limit
        seen += [row.parts for row in page]
        cursor = page[-1].cursor
    assert seen == expected
