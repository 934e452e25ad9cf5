"""python -m tests.bench.store [--quick]: storing studies, against the least it could cost.

The reference reads the same files, hashes and encrypts them, one after another in one thread, with
the same libraries and the same buffers, and writes nothing. Storing does that, checks every file
against its registered digest (a second SHA-256), and is durable on the disk when it ends.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from io import RawIOBase
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from node.exchange.pages import page_buffer
from node.exchange.store.blobs import open_folder
from node.exchange.store.catalog import open_catalog
from node.exchange.store.index import InstanceFacts, InstanceSource, file_source
from node.exchange.store.local import create_file
from node.exchange.store.master import MasterFile, create_master_file
from node.exchange.store.sealing import CHUNK_BYTES, TAG_BYTES
from node.exchange.store.store import StudyStore

CT = Path(__file__).parents[3] / "shared" / "data" / "ct-head"
SLICES = 500
MIB = 2**20
KINDS = ("unchecked", "off", "fast", "better")


def measure(*, quick: bool, folder: Path | None = None) -> dict[str, Any]:
    """Return rates in MB/s, ratios to the reference of the same run, and peak memory in MiB."""
    with tempfile.TemporaryDirectory(prefix="radledger-bench-", dir=folder) as name:
        place = Path(name)
        create_master_file(place / "master.key")
        files = _files(place / "source")
        report: dict[str, Any] = {
            "instances": len(files),
            "bytes": sum(path.stat().st_size for path in files),
            "source": "ct-head" if CT.is_dir() else "synthetic",
            "runs": [_run(place, files, number) for number in range(1 if quick else 3)],
        }
        for key in ("reference_mb_s", "durable_write_mb_s"):
            report[key] = round(statistics.median(run[key] for run in report["runs"]))
        for compression in KINDS:
            runs = [run[compression] for run in report["runs"]]
            report[compression] = {
                key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]
            }
    sizes = (64, 256) if quick else (64, 1_024, 10_240)
    report["peak_mib"] = {f"{size}_mib_study": peak_mib(size, folder) for size in sizes}
    return report


def peak_mib(size_mib: int, folder: Path | None = None) -> int:
    """Return the peak memory of a process that stores one study of `size_mib` in one file."""
    with tempfile.TemporaryDirectory(prefix="radledger-bench-", dir=folder) as name:
        command = [sys.executable, "-m", "tests.bench.store", "--peak", str(size_mib), name]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
    return int(done.stdout)


class Noise(RawIOBase):
    """A stream of `size` bytes that do not compress, without the memory."""

    block = os.urandom(MIB + 7)

    def __init__(self, size: int) -> None:
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._left, len(self.block))
        buffer[:count] = self.block[:count]
        self._left -= count
        return count


def _peak(size_mib: int, folder: Path) -> int:
    size, running = size_mib * MIB, hashlib.sha256()
    stream, buffer = Noise(size), memoryview(bytearray(CHUNK_BYTES))
    # As the store will ask: in pieces that end where its chunks do.
    left = size
    while left:
        room = CHUNK_BYTES - (size - left) % CHUNK_BYTES
        count = stream.readinto(buffer[: min(room, left)])
        running.update(buffer[:count])
        left -= count
    facts = InstanceFacts("1.2.3", "1.2", "1.3", "1.2.840.10008.1.2.1", size, running.digest())
    create_master_file(folder / "master.key")
    store = _store(folder, "peak", "fast")
    store.put(bytes(16), 1, [InstanceSource(facts, lambda: Noise(size))])
    for _ in store.read(bytes(16), 0):
        pass
    return _peak_kib() // 1024


def _peak_kib() -> int:
    """Return the peak of this program. Linux' ru_maxrss is that of the parent if that is larger."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [each for each in status.read_text().splitlines() if each.startswith("VmHWM")]
        return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # macOS counts bytes


def _files(folder: Path) -> list[Path]:
    folder.mkdir()
    contents = [path.read_bytes() for path in sorted(CT.glob("*.dcm"))]
    contents = contents or [os.urandom(512 * 1024 + 2_000)]
    paths = [folder / f"{number:04}" for number in range(SLICES)]
    for number, path in enumerate(paths):
        path.write_bytes(contents[number % len(contents)])
    return paths


def _store(folder: Path, name: str, compression: str) -> StudyStore:
    catalog = open_catalog(folder / f"{name}.db", MasterFile(folder / "master.key"))
    return StudyStore(open_folder(folder / name), catalog, compression=compression)


def _run(place: Path, files: list[Path], number: int) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in files)
    os.sync()
    before = _reference(files)
    result: dict[str, Any] = {"durable_write_mb_s": _durable(place, size, number)}
    for compression in KINDS:
        trusted = compression == "unchecked"
        store = _store(place, f"{compression}{number}", "off" if trusted else compression)
        sources = [_source(at, path, trusted) for at, path in enumerate(files)]
        os.sync()
        began = time.perf_counter()
        stored = store.put(os.urandom(16), 1, sources)
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        for ordinal in range(len(files)):
            for _ in store.read(stored.study_id, ordinal):
                pass
        result[compression] = {
            "mb_s": size / seconds / 1e6,
            "read_mb_s": size / (time.perf_counter() - began) / 1e6,
            "saved": 1 - stored.stored_bytes / stored.bytes,
        }
        store.erase(stored.study_id)
        store.close()
    reference = (before + _reference(files)) / 2
    result["reference_mb_s"] = reference
    for compression in KINDS:
        result[compression]["ratio"] = result[compression]["mb_s"] / reference
    return result


def _source(number: int, path: Path, is_checked: bool) -> InstanceSource:
    data = path.read_bytes()
    digest = hashlib.sha256(data).digest()
    uid, syntax = f"1.2.826.0.1.{number}", "1.2.840.10008.1.2.1"
    facts = InstanceFacts(uid, "1.2", "1.3", syntax, len(data), digest)
    return file_source(facts, path, is_checked=is_checked)


def _reference(files: list[Path]) -> float:
    cipher, nonce = AESGCM(os.urandom(32)), os.urandom(12)
    buffer, out = memoryview(page_buffer(CHUNK_BYTES)), page_buffer(CHUNK_BYTES + TAG_BYTES)
    size, began = 0, time.perf_counter()
    for path in files:
        with open(path, "rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                piece = buffer[:count]
                hashlib.sha256(piece).digest()
                cipher.encrypt_into(nonce, piece, b"", memoryview(out)[: count + TAG_BYTES])
                size += count
    return size / (time.perf_counter() - began) / 1e6


def _durable(place: Path, size: int, number: int) -> float:
    """What the disk takes from one thread, file by file and synced, with nothing else to do."""
    folder = place / f"disk{number}"
    folder.mkdir()
    data = memoryview(page_buffer(CHUNK_BYTES))
    data[:] = os.urandom(CHUNK_BYTES)
    count = size // CHUNK_BYTES
    began = time.perf_counter()
    for at in range(count):
        create_file(folder / str(at), data)
    return count * CHUNK_BYTES / (time.perf_counter() - began) / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.store", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured")
    parser.add_argument("--peak", nargs=2, metavar=("MIB", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(_peak(int(options.peak[0]), Path(options.peak[1])))
        return 0
    report = measure(quick=options.quick, folder=options.folder)
    del report["runs"]
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
