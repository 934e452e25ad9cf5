"""Measures the state tree on LevelDB. By hand: python -m tests.bench.state_tree --keys 1000000

Prints, per batch size, microseconds per changed key: of `update` (Python), of the synced write, and
of CPU in all threads of the process, compaction included. Half of the changes are new keys, half
overwrite old ones.
"""

import argparse
import os
import random
import resource
import tempfile
import time
from pathlib import Path

from storage.kv import WriteBatch
from storage.leveldb import open_leveldb
from storage.state import StateTree
from storage.state_proof import verify


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
    update_ns = write_ns = rows = row_bytes = changed = 0
    cpu_before, start = _cpu_seconds(), time.perf_counter()
    for _ in range(max(1, changes_total // batch_size)):
        changes = {}
        while len(changes) < batch_size:
            place = chance.randrange(keys) if len(changes) % 2 else keys + chance.getrandbits(60)
            changes[_key(place)] = _value(chance.getrandbits(60))
        batch = WriteBatch()
        began = time.perf_counter_ns()
        tree.update(changes, batch)
        updated = time.perf_counter_ns()
        store.write(batch, sync=True)
        write_ns += time.perf_counter_ns() - updated
        update_ns += updated - began
        tree.adopt()
        changed += len(changes)
        rows += len(batch.operations)
        row_bytes += sum(len(key) + len(value or b"") for key, value in batch.operations)
    cpu = _cpu_seconds() - cpu_before
    wall = time.perf_counter() - start
    print(
        f"batches of {batch_size:>4}: update {update_ns / changed / 1000:5.1f} us, "
        f"synced write {write_ns / changed / 1000:5.1f} us, wall {wall / changed * 1e6:5.1f} us, "
        f"CPU {cpu / changed * 1e6:5.1f} us, "
        f"{rows / changed:.2f} rows and {row_bytes / changed:,.0f} bytes per changed key"
    )


def _measure_proofs(store, tree, keys: int) -> None:
    sizes = []
    began = time.perf_counter_ns()
    for place in range(0, keys, max(1, keys // 500)):
        sizes.append((place, tree.prove(_key(place))))
    proved = time.perf_counter_ns()
    absent = [tree.prove(b"absent/%d" % place) for place in range(500)]
    between = time.perf_counter_ns()
    for place, proof in enumerate(absent):
        verify(tree.root, b"absent/%d" % place, None, proof)
    done = time.perf_counter_ns()
    print(
        f"proof: {sum(len(p) for _, p in sizes) / len(sizes):.0f} bytes on average, "
        f"{max(len(p) for _, p in sizes)} at most, made in "
        f"{(proved - began) / len(sizes) / 1000:.0f} us, "
        f"verified in {(done - between) / 500 / 1000:.0f} us"
    )


def _settle(store) -> None:
    for _ in range(8):
        store.write(WriteBatch(), sync=True)
    time.sleep(2)


def _disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _cpu_seconds() -> float:
    return time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)


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
