"""Real damage to real files: all that was synced is there, or opening (or reading) says no."""

import random
import shutil
import struct
from pathlib import Path

import pytest

from storage.errors import CorruptRecord
from storage.leveldb import open_leveldb
from storage.log_damage import BLOCK_SIZE, hidden_damage
from tests.storage.test_leveldb_open import assert_refused
from tests.storage.tools import contents, fingerprint, write


def only(folder: Path, pattern: str) -> Path:
    (path,) = (folder / "leveldb").glob(pattern)
    return path


def flip(path: Path, offset: int, mask: int = 0xFF) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


@pytest.fixture
def logged(tmp_path):
    """A folder as kill -9 leaves it, its batches in the log only; and where each batch ends."""
    live, folder = tmp_path / "live", tmp_path / "ledger"
    store = open_leveldb(live)
    log = only(live, "*.log")
    chance = random.Random(7)
    batches, ends = [], []
    for number in range(60):
        rows = {b"%d/%d" % (number, n): chance.randbytes(chance.choice((0, 40, 900, 4000)))
                for n in range(4)}  # fmt: skip
        write(store, rows, sync=True)
        batches.append(rows)
        ends.append(log.stat().st_size)
    shutil.copytree(live, folder)
    store.close()
    assert ends[-1] > 3 * BLOCK_SIZE
    return folder, batches, ends


@pytest.fixture
def tabled(tmp_path):
    """A closed folder whose rows are in tables."""
    folder = tmp_path / "ledger"
    for number in range(3):
        store = open_leveldb(folder)
        write(store, {b"%d/%03d" % (number, n): b"v" * 100 for n in range(200)}, sync=True)
        store.close()
    open_leveldb(folder).close()
    assert len(list((folder / "leveldb").glob("*.ldb"))) >= 2
    return folder


def union(batches):
    return {key: value for rows in batches for key, value in rows.items()}


def test_a_torn_end_of_the_log_loses_only_whole_batches_that_were_not_synced(logged, tmp_path):
    folder, batches, ends = logged
    size = ends[-1]
    cuts = {0, 1, 6, 7, 8, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 5, size - 1}
    cuts |= {end + step for end in ends[::9] for step in (-1, 0, 3, 9) if end + step <= size}
    for cut in sorted(cuts):
        torn = tmp_path / f"torn{cut}"
        shutil.copytree(folder, torn)
        log = only(torn, "*.log")
        log.write_bytes(log.read_bytes()[:cut])
        store = open_leveldb(torn, create=False)
        assert contents(store) == union(
            b for b, end in zip(batches, ends, strict=True) if end <= cut
        )
        store.close()


def test_zeros_behind_the_log_are_a_torn_end(logged):
    folder, batches, _ = logged
    log = only(folder, "*.log")
    log.write_bytes(log.read_bytes() + bytes(20_000))
    store = open_leveldb(folder)
    assert contents(store) == union(batches)
    store.close()


def test_a_flipped_byte_anywhere_in_the_log_is_found_and_changes_nothing(logged):
    folder, _, ends = logged
    log = only(folder, "*.log")
    chance = random.Random(11)
    offsets = [chance.randrange(ends[-1]) for _ in range(25)]
    for start in [0, *ends[:-1:12], ends[-2]]:
        offsets += range(start, start + 8)  # a record's header and the first byte of its data
    for offset in offsets:
        flip(log, offset)
        assert_refused(folder, CorruptRecord, "is damaged", "Move the folder away")
        flip(log, offset)
    open_leveldb(folder).close()


@pytest.mark.parametrize("mask", [0x01, 0x40, 0x80])
def test_a_damaged_length_of_the_last_record_is_no_torn_end(logged, mask):
    """LevelDB itself would open and silently drop the last synced batch."""
    folder, _, _ = logged
    log = only(folder, "*.log")
    data = log.read_bytes()
    starts, position = [], 0
    while position + 7 <= len(data):
        if BLOCK_SIZE - position % BLOCK_SIZE < 7:
            position += BLOCK_SIZE - position % BLOCK_SIZE
        starts.append(position)
        position += 7 + struct.unpack_from("<H", data, position + 4)[0]
    flip(log, starts[-1] + 5, mask)
    assert_refused(folder, CorruptRecord, "is damaged")


def test_a_zeroed_header_in_front_of_data_is_no_torn_end(logged):
    folder, _, ends = logged
    log = only(folder, "*.log")
    data = bytearray(log.read_bytes())
    data[ends[-3] : ends[-3] + 7] = bytes(7)
    log.write_bytes(data)
    assert_refused(folder, CorruptRecord, "zeros in front of other data")


@pytest.mark.parametrize("name", ["CURRENT", "MANIFEST-*", "*.ldb"])
def test_a_missing_file_is_found_and_nothing_is_made_in_its_place(tabled, name):
    next((tabled / "leveldb").glob(name)).unlink()
    assert_refused(tabled, CorruptRecord, "is damaged", create=True)


@pytest.mark.parametrize("content", [b"", b"MANIFEST-999999\n", b"nonsense", b"MANIFEST-000002"])
def test_a_damaged_current_is_found(tabled, content):
    (tabled / "leveldb" / "CURRENT").write_bytes(content)
    assert_refused(tabled, CorruptRecord, "is damaged", create=True)


def test_a_flipped_byte_anywhere_in_the_manifest_is_found(tabled):
    manifest = only(tabled, "MANIFEST-*")
    for offset in range(0, manifest.stat().st_size, 3):
        flip(manifest, offset)
        assert_refused(tabled, CorruptRecord, "is damaged")
        flip(manifest, offset)
    open_leveldb(tabled).close()


@pytest.mark.parametrize("how", ["get", "iterate", "snapshot get", "snapshot iterate"])
def test_a_flipped_byte_in_a_table_is_found_when_it_is_read(tabled, how):
    """Tables are not read at opening; what lies in a damaged block is refused, never made up."""
    table = max((tabled / "leveldb").glob("*.ldb"), key=lambda path: path.stat().st_size)
    whole = table.read_bytes()
    expected = {b"%d/%03d" % (number, n) for number in range(3) for n in range(200)}
    for offset in range(100, len(whole) - 48, 3001):
        flip(table, offset)
        with pytest.raises(CorruptRecord, match="is damaged"):
            read_everything(tabled, expected, how)
        table.write_bytes(whole)


def read_everything(folder, keys, how):
    store = open_leveldb(folder)
    try:
        reader = store.snapshot() if "snapshot" in how else store
        if "get" in how:
            for key in keys:
                reader.get(key)
        else:
            contents(reader)
    finally:
        store.close()


def test_a_truncated_table_is_found(tabled):
    for table in (tabled / "leveldb").glob("*.ldb"):
        table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(CorruptRecord, match="is damaged"):
        read_everything(tabled, set(), "iterate")


def test_opening_and_closing_alone_keeps_the_rows_of_a_large_log(logged):
    folder, batches, _ = logged
    for _ in range(3):
        store = open_leveldb(folder)
        assert contents(store) == union(batches)
        store.close()


def record(kind: bytes, data: bytes, length: int, checksum: int) -> bytes:
    return struct.pack("<IH", checksum, length) + kind + data


def masked(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("text", "crc"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43),
     (bytes(range(32)), 0x46DD794E)],
)  # fmt: skip
def test_the_checksum_is_crc32c_of_rfc_3720(text, crc):
    kind, data = text[:1], text[1:]
    whole_of_wrong_length = record(kind, data + b"more", 60_000, masked(crc))
    torn = record(kind, data[:-1], 60_000, masked(crc))
    assert hidden_damage(whole_of_wrong_length) == "a record of impossible length at byte 0"
    assert hidden_damage(torn) is None


def test_a_clean_or_empty_log_has_no_hidden_damage(logged):
    folder, _, _ = logged
    assert hidden_damage(b"") is None
    assert hidden_damage(only(folder, "*.log").read_bytes()) is None
    assert fingerprint(folder) == fingerprint(folder)
