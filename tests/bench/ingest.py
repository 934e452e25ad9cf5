"""python -m tests.bench.ingest [--quick]: a gateway takes in studies beside one of four validators.

Two questions. What does a 500-slice CT take from the first slice that is sent until it is final on
the ledger and durable in the store, and how much memory? And how much later do transactions become
final while studies come in as fast as they are taken? For the second, stretches without and with
ingest take turns in one run, so that both meet the same machine; p99 is of all stretches together.

"beside" is a hospital's machine among those of others: its node, gateway and modality have one half
of the processors, the other validators and the load, a steady one, the other half; the disk is one
for all. "crowded" is what no hospital has: all of them on all processors, which the load alone
keeps busy. Reported, never asserted.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pydicom
import uvloop
from pydicom.uid import generate_uid

from node.config import StoreConfig
from node.exchange.store.opening import open_store
from node.gateway.priority import give_way
from node.keys import save_secret
from node.testnet.processes import ProcessTestnet
from tests.bench import modality
from tests.bench.load import Load, Result
from tests.gateway import dimse

VALIDATORS, CLIENTS = 4, 16
RATE = 20.0  # transactions a second beside ingest: 1.7 million a day
SLICES = 500  # of the study that is timed
PATIENCE_S = 300.0
_POLL_S, _SETTLE_S = 0.05, 4.0
_START = (sys.executable, "-m", "node.cli", "gateway", "start", "--announce")


def measure(*, quick: bool) -> dict[str, Any]:
    """Return seconds, MiB, and the ratio of the two p99."""
    with tempfile.TemporaryDirectory(prefix="radledger-ingest-") as name:
        return uvloop.run(_measure(Path(name), quick=quick))


async def _measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    net = ProcessTestnet(folder / "net", VALIDATORS)
    await net.start()
    try:
        await net.wait_ready()
        async with _gateway(net, folder) as site, Load(net) as load:
            study = await asyncio.to_thread(_study, folder / "large", SLICES)
            report = {"slices": SLICES, "source": "ct-head" if modality.CT.is_dir() else "pydicom"}
            size = sum(path.stat().st_size for path in study.iterdir())
            report |= await _one_study(site, study, size)
            seconds = 4.0 if quick else 15.0
            report["crowded"] = await _compared(
                lambda seconds: load.closed_loop(CLIENTS, seconds), site, 2, seconds
            )
            report["beside"] = await _apart(net, site, load, 2 if quick else 8, seconds)
    finally:
        await net.stop()
    return report


class Site:
    """A gateway process and the files that are its own."""

    def __init__(self, port: int, pid: int, store: StoreConfig) -> None:
        self.port, self.process, self._store = port, psutil.Process(pid), store
        self.processors: set[int] | None = None  # that are this hospital's; None: all

    def send(self, folder: Path) -> subprocess.Popen[bytes]:
        """Start a modality that sends every file of `folder`."""
        command = (sys.executable, "-m", "tests.bench.ingest", "--send", str(self.port))
        return subprocess.Popen([*command, str(folder)])

    async def stored(self, instances: int) -> None:
        """Return once the store has a version of that many instances."""
        store = await asyncio.to_thread(open_store, self._store)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await asyncio.to_thread(self._has, store, instances):
                    await asyncio.sleep(_POLL_S)
        finally:
            store.close()

    def _has(self, store: Any, instances: int) -> bool:
        return any(len(store.index(study).instances) == instances for study in store.studies())

    def peak_mib(self) -> int:
        """Return the sum of the peaks of all processes of the gateway (Linux)."""
        peaks = 0
        for process in (self.process, *self.process.children(recursive=True)):
            status = Path(f"/proc/{process.pid}/status").read_text()
            (line,) = [each for each in status.splitlines() if each.startswith("VmHWM")]
            peaks += int(line.split()[1])
        return peaks // 1024


@asynccontextmanager
async def _gateway(net: ProcessTestnet, folder: Path) -> AsyncIterator[Site]:
    config_file = net.nodes[0].folder / "node.toml"
    store = StoreConfig(
        key_file=folder / "store.keys",
        folder=folder / "store",
        master_key_file=folder / "master",
        compression="off",
    )
    save_secret(folder / "master", os.urandom(32).hex().encode())
    with config_file.open("a") as file:
        file.write(
            f'[gateway]\nspool_dir = "{folder}/spool"\nlisten_port = 0\n'
            f'peers = [{{ ae_title = "{dimse.SENDER}" }}]\nquiet_ms = 1000\n'
            f'[store]\nfolder = "{store.folder}"\nkey_file = "{store.key_file}"\n'
            f'master_key_file = "{store.master_key_file}"\ncompression = "off"\n'
        )
    with (folder / "gateway.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *_START,
            str(config_file),
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # as a service has one
        )
        try:
            line = await process.stdout.readline()
            yield Site(json.loads(line)["port"], process.pid, store)
        finally:
            process.terminate()
            await process.wait()


async def _one_study(site: Site, folder: Path, size: int) -> dict[str, Any]:
    began = time.perf_counter()
    sender = site.send(folder)
    await asyncio.to_thread(sender.wait)
    sent = time.perf_counter()
    await site.stored(SLICES)
    done = time.perf_counter()
    return {
        "bytes": size,
        "received_s": round(sent - began, 2),
        "slices_per_s": round(SLICES / (sent - began)),
        "final_and_stored_s": round(done - sent, 2),  # a second of it is the quiet period
        "peak_mib": site.peak_mib(),
    }


async def _compared(
    run: Callable[[float], Awaitable[Result]], site: Site, turns: int, seconds: float
) -> dict[str, Any]:
    """Return latencies without and with ingest, in turns of so many seconds each."""
    results: dict[str, list[Result]] = {"without": [], "with": []}
    slices, sending_s = 0, 0.0
    async with _modality(site) as sender:
        await run(2.0)
        for _ in range(turns):
            results["without"].append(await run(seconds))
            began = time.perf_counter()
            sender.stdin.write(b"on\n")
            await run(2.0)
            results["with"].append(await run(seconds))
            sender.stdin.write(b"off\n")
            if not (line := await sender.stdout.readline()):
                raise RuntimeError("the modality ended: a slice was not accepted")
            slices += int(line)
            sending_s += time.perf_counter() - began
            await asyncio.sleep(_SETTLE_S)  # what was sent last is registered before the next turn
    report: dict[str, Any] = {"slices_per_s": round(slices / sending_s, 1)}
    for name, each in results.items():
        whole = Result(0, seconds * turns, [late for result in each for late in result.latencies_s])
        report[f"{name}_tx_per_s"] = round(whole.rate, 1)
        for percent in (50, 99):
            report[f"{name}_p{percent}_ms"] = round(whole.percentile_ms(percent / 100), 1)
    for percentile in ("p50", "p99"):
        slower = report[f"with_{percentile}_ms"] / report[f"without_{percentile}_ms"]
        report[f"{percentile}_ratio"] = round(slower, 2)
    return report


async def _apart(
    net: ProcessTestnet, site: Site, load: Load, turns: int, seconds: float
) -> dict[str, Any]:
    """Compare as if the hospitals had machines of their own."""
    chance = random.Random(1)
    site.processors = _share_out(net, site)
    try:
        report = await _compared(
            lambda seconds: load.poisson(RATE, seconds, chance), site, turns, seconds
        )
    finally:
        if site.processors is not None:
            _bind(os.getpid(), set(range(os.cpu_count() or 1)), is_tree=False)
    return {"processors_shared_out": site.processors is not None, **report}


def _share_out(net: ProcessTestnet, site: Site) -> set[int] | None:
    """Give the first hospital half of the processors, all others the rest.

    Return the first half; None if it cannot be done here.
    """
    processors = range(os.cpu_count() or 1)
    if not hasattr(os, "sched_setaffinity") or len(processors) < 2:
        return None
    first, *others = net.nodes
    half = len(processors) // 2
    mine, theirs = set(processors[:half]), set(processors[half:])
    for pid in (first.pid, site.process.pid):
        _bind(pid, mine)
    for pid in (os.getpid(), *(node.pid for node in others)):
        _bind(pid, theirs, is_tree=pid != os.getpid())
    return mine


def _bind(pid: int, processors: set[int], *, is_tree: bool = True) -> None:
    """Bind all threads of a process, and of those that it started; they hand it on."""
    process = psutil.Process(pid)
    for each in (process, *(process.children(recursive=True) if is_tree else ())):
        for thread in each.threads():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, processors)


@asynccontextmanager
async def _modality(site: Site) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.modality", str(site.port)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # it is another machine's
    )
    try:
        await process.stdout.readline()
        if site.processors is not None:
            _bind(process.pid, site.processors)
        yield process
    finally:
        process.kill()
        await process.wait()


def _study(folder: Path, slices: int) -> Path:
    """Make a study of real slices with UIDs of its own; files that differ in their UIDs alone."""
    folder.mkdir(parents=True)
    read = [pydicom.dcmread(path) for path in modality.slices()]
    study, series = generate_uid(), generate_uid()
    for number in range(slices):
        data_set = read[number % len(read)]
        data_set.StudyInstanceUID, data_set.SeriesInstanceUID = study, series
        data_set.SOPInstanceUID = data_set.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data_set.save_as(folder / f"{number:04}.dcm")
    return folder


def _send(port: int, folder: Path) -> int:
    give_way(19)  # it is in no hospital's node
    statuses = dimse.send(port, sorted(folder.iterdir()))
    return 0 if set(statuses) == {0} else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ingest", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--send", nargs=2, metavar=("PORT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        return _send(int(options.send[0]), Path(options.send[1]))
    print(json.dumps(measure(quick=options.quick), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
