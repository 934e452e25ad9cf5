"""Measures the state tree on LevelDB. By hand: python -m tests.bench.state_tree --keys 1000000

Prints, per batch size, microseconds per changed key: the CPU time of `update` and of the synced
write in their thread, as the median over the batches, so that other work on the machine counts
little; the time of both on the wall; and the CPU of LevelDB's own threads, mostly compaction. Half
of the changes are new keys, half overwrite old ones. To compare runs, it also prints how long one
SHA-256 of 65 bytes takes at that time.
"""

import argparse
import os
import random
import resource
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from statistics import median

from storage.kv import WriteBatch
from storage.leveldb import open_leveldb
from storage.state import StateTree
from storage.state_proof import verify

_SAMPLE = bytes(65)


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = open_leveldb(Path(folder) / "store")
        tree = StateTree(store)
        _fill(store, tree, options.keys)
        _settle(store)
        size = _disk_bytes(Path(folder))
        print(
            f"{tree.key_count:,} keys, {tree.node_count:,} nodes, "
            f"{size / tree.key_count:.0f} bytes on disk per key, "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB resident at most"
        )
        for batch_size in options.batches:
            _measure(store, tree, options.keys, batch_size, options.changes)
        _measure_proofs(store, tree, options.keys)
        store.close()


def _fill(store, tree, keys: int) -> None:
    for start in range(0, keys, 20_000):
        changes = {_key(i): _value(i) for i in range(start, min(start + 20_000, keys))}
        batch = WriteBatch()
        tree.update(changes, batch)
        store.write(batch, sync=False)
        tree.adopt()


def _measure(store, tree, keys: int, batch_size: int, changes_total: int) -> None:
    chance = random.Random(batch_size)
    updates, writes, walls = [], [], []
    rows = row_bytes = changed = 0
    background = time.process_time() - time.thread_time()
    for _ in range(max(1, changes_total // batch_size)):
        changes = {}
        while len(changes) < batch_size:
            place = chance.randrange(keys) if len(changes) % 2 else keys + chance.getrandbits(60)
            changes[_key(place)] = _value(chance.getrandbits(60))
        batch = WriteBatch()
        wall, began = time.perf_counter(), time.thread_time()
        tree.update(changes, batch)
        updated = time.thread_time()
        store.write(batch, sync=True)
        tree.adopt()
        writes.append(time.thread_time() - updated)
        walls.append(time.perf_counter() - wall)
        updates.append(updated - began)
        changed += len(changes)
        rows += len(batch.operations)
        row_bytes += sum(len(key) + len(value or b"") for key, value in batch.operations)
    background = time.process_time() - time.thread_time() - background
    update, write, wall = (1e6 * median(times) / batch_size for times in (updates, writes, walls))
    print(
        f"batches of {batch_size:>4}: update {update:5.1f} us, synced write {write:5.1f} us, "
        f"wall {wall:5.1f} us, background {background / changed * 1e6:5.1f} us "
        f"(one hash {_hash_us():.2f} us), "
        f"{rows / changed:.2f} rows and {row_bytes / changed:,.0f} bytes per changed key"
    )


def _measure_proofs(store, tree, keys: int) -> None:
    sizes = []
    began = time.thread_time_ns()
    for place in range(0, keys, max(1, keys // 500)):
        sizes.append((place, tree.prove(_key(place))))
    proved = time.thread_time_ns()
    absent = [tree.prove(b"absent/%d" % place) for place in range(500)]
    between = time.thread_time_ns()
    for place, proof in enumerate(absent):
        verify(tree.root, b"absent/%d" % place, None, proof)
    done = time.thread_time_ns()
    print(
        f"proof: {sum(len(p) for _, p in sizes) / len(sizes):.0f} bytes on average, "
        f"{max(len(p) for _, p in sizes)} at most, made in "
        f"{(proved - began) / len(sizes) / 1000:.0f} us, "
        f"verified in {(done - between) / 500 / 1000:.0f} us"
    )


def _hash_us() -> float:
    began = time.thread_time()
    for _ in range(20_000):
        sha256(_SAMPLE).digest()
    return (time.thread_time() - began) / 20_000 * 1e6


def _settle(store) -> None:
    for _ in range(8):
        store.write(WriteBatch(), sync=True)
    time.sleep(2)


def _disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _key(place: int) -> bytes:
    return b"study/%016x" % place


def _value(place: int) -> bytes:
    return b"record/%016x" % place


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--changes", type=int, default=20_000, help="per batch size")
    parser.add_argument("--batches", type=int, nargs="+", default=[40, 400])
    parser.add_argument("--folder", default=os.environ.get("TMPDIR"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
