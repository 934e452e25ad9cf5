"""python -m tests.bench.ingest [--quick]: a gateway takes in studies beside one of four validators.

Two questions. What does a 500-slice CT take from the first slice that is sent until it is final on
the ledger and durable in the store, and how much memory? And how much later do transactions become
final while studies come in without a pause? For the second, stretches without and with ingest take
turns in one run, so that both meet the same machine. The sender (a modality) is a process of its
own that shares the cores, which no modality does in a hospital. Reported, never asserted.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
from tests.bench.load import Load, Result
from tests.gateway import dimse
from tests.imaging import dicom

CT = Path(__file__).parents[3] / "shared" / "data" / "ct-head"
VALIDATORS, CLIENTS = 4, 16
SLICES, SMALL = 500, 60  # of the study that is timed, and of those that come without a pause
PATIENCE_S = 300.0
_POLL_S = 0.05
_START = (
    "nice",
    "-n",
    os.environ.get("NI", "0"),
    sys.executable,
    "-m",
    "node.cli",
    "gateway",
    "start",
    "--announce",
)


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
            report = {"slices": SLICES, "source": "ct-head" if CT.is_dir() else "pydicom"}
            size = sum(path.stat().st_size for path in study.iterdir())
            report |= await _one_study(site, study, size)
            report["beside"] = await _beside(site, load, folder, 2 if quick else 4, quick=quick)
    finally:
        await net.stop()
    return report


class Site:
    """A gateway process and the files that are its own."""

    def __init__(self, port: int, pid: int, store: StoreConfig) -> None:
        self.port, self._process, self._store = port, psutil.Process(pid), store

    def send(self, folder: Path) -> subprocess.Popen[bytes]:
        """Start a modality that sends every file of `folder`, made if it is not there."""
        command = (
            "nice",
            "-n",
            "19",
            sys.executable,
            "-m",
            "tests.bench.ingest",
            "--send",
            str(self.port),
        )
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
        for process in (self._process, *self._process.children(recursive=True)):
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


async def _beside(
    site: Site, load: Load, folder: Path, turns: int, *, quick: bool
) -> dict[str, Any]:
    seconds = 4.0 if quick else 15.0
    results: dict[str, list[Result]] = {"without": [], "with": []}
    await load.closed_loop(CLIENTS, 2.0)
    for turn in range(turns):
        results["without"].append(await load.closed_loop(CLIENTS, seconds, warm_up_s=0.5))
        sending = asyncio.create_task(_send_on(site, folder / f"turn{turn}"))
        try:
            results["with"].append(await load.closed_loop(CLIENTS, seconds, warm_up_s=2.0))
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        await asyncio.sleep(3.0)  # what was sent last is registered before the next turn
    report: dict[str, Any] = {"clients": CLIENTS, "turns": turns}
    for name, each in results.items():
        report[f"{name}_p50_ms"] = round(statistics.median(r.percentile_ms(0.50) for r in each), 1)
        report[f"{name}_p99_ms"] = round(statistics.median(r.percentile_ms(0.99) for r in each), 1)
        report[f"{name}_tx_per_s"] = round(statistics.median(r.rate for r in each), 1)
    report["p99_ratio"] = round(report["with_p99_ms"] / report["without_p99_ms"], 2)
    return report


async def _send_on(site: Site, folder: Path) -> None:
    """Send one small study after another, until cancelled."""
    number = 0
    while True:
        sender = site.send(folder / str(number))  # made over there: here the load is measured
        try:
            while sender.poll() is None:
                await asyncio.sleep(_POLL_S)
        finally:
            sender.kill()
            sender.wait()
        number += 1


def _study(folder: Path, slices: int) -> Path:
    """Make a study of real slices with UIDs of its own; files that differ in their UIDs alone."""
    folder.mkdir(parents=True)
    paths = sorted(CT.glob("*.dcm")) or dicom.readable()[:1]
    read = [pydicom.dcmread(path) for path in paths]
    study, series = generate_uid(), generate_uid()
    for number in range(slices):
        data_set = read[number % len(read)]
        data_set.StudyInstanceUID, data_set.SeriesInstanceUID = study, series
        data_set.SOPInstanceUID = data_set.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data_set.save_as(folder / f"{number:04}.dcm")
    return folder


def _send(port: int, folder: Path) -> int:
    give_way(19)  # it is in no hospital's node
    if not folder.exists():
        _study(folder, SMALL)
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
