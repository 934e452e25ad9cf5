"""python -m tests.bench.transfer: how fast a study moves, beside a plain download.

Both in one run, turn and turn about, on loopback, each side a process of its own, TLS 1.3 with the
same certificates. The plain one is aiohttp's `FileResponse` of one file, written to a file by an
aiohttp client. Ours is `ExchangeServer` and `fetch`: every request and every piece checked against
the permits, every chunk hashed on arrival and written (in the second figure synced to the disk,
too, which the plain download is not). Both write over what the round before wrote, so that the
page cache's growth is in neither figure. Processor time of both processes is compared as well: it
says the same on a machine that is busy with other things. Figures are reported, never asserted.
"""

import asyncio
import hashlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Collection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import uvloop
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.exchange.hpke import wrapped_digest
from node.exchange.transfer.client import fetch
from node.exchange.transfer.errors import WrongDigest
from node.exchange.transfer.holders import Holder, Identity
from node.exchange.transfer.offer import Delivery, Offer, Wanted
from node.exchange.transfer.ports import Chunk, Permit, SealedStudy
from node.exchange.transfer.server import ExchangeServer
from node.exchange.transfer.state import Deliveries, Transfers
from node.network.tls import TrustedContexts, make_certificate

MIB = 1 << 20
CHUNK_BYTES = 4 * MIB
REQUEST_ID, STUDY_ID, ROOT, WRAPPED = b"\x91" * 16, b"\x92" * 16, b"\x93" * 32, b"\x94" * 1_168


class FolderChunks:
    """Chunks as files; `sync` makes each durable."""

    def __init__(self, folder: Path, *, sync: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._sync = folder, sync
        self._wanted: Collection[bytes] = ()

    def adopt(self, offer: Offer) -> None:
        self._wanted = [chunk.digest for chunk in offer.chunks]

    def chunks(self) -> tuple[Chunk, ...]:
        return tuple(
            Chunk(bytes.fromhex(path.name), path.stat().st_size)
            for path in sorted(self._folder.iterdir())
        )

    def sealed_study(self, study_id: bytes, version: int) -> SealedStudy:
        return SealedStudy(version, b"index", self.chunks())

    def holds(self, study_id: bytes, digest: bytes) -> bool:
        return (self._folder / digest.hex()).exists()

    def ciphertext(self, digest: bytes) -> bytes:
        return (self._folder / digest.hex()).read_bytes()

    def missing(self, study_id: bytes, version: int) -> Collection[bytes]:
        return self._wanted

    def put_ciphertext(self, digest: bytes, data: memoryview, found: bytes) -> None:
        if found != digest:
            raise WrongDigest
        with open(self._folder / digest.hex(), "r+b", opener=_over) as file:
            file.write(data)
            file.flush()
            if self._sync:
                os.fdatasync(file.fileno())


def _over(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o600)


class Always:
    """A ledger that permits; the RPC's own time is not what is measured here."""

    async def permit(self, request_id: bytes) -> Permit:
        return Permit(request_id, STUDY_ID, "beta", wrapped_digest(WRAPPED))


def measure(mib: int, rounds: int) -> dict[str, Any]:
    """Return rates in MiB/s and the ratios; medians over `rounds`."""
    keys = [Ed25519PrivateKey.generate() for _ in range(2)]
    people = [Identity(key, make_certificate(key, "bench")) for key in keys]
    secrets = [key.private_bytes_raw() for key in keys]
    certificates = [person.certificate for person in people]
    with tempfile.TemporaryDirectory(prefix="radledger-transfer-") as name:
        folder = Path(name)
        _make(folder, mib)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        server = context.Process(target=_serve, args=(theirs, folder, secrets, certificates))
        server.start()
        try:
            plain_port, port = ours.recv()
            processes = [psutil.Process(), psutil.Process(server.pid)]
            run = _compare(folder, people, (plain_port, port), processes, rounds)
            rounds_ = uvloop.run(run)
        finally:
            ours.send(None)
            server.join()
    report: dict[str, Any] = {"mib": mib, "rounds": rounds}
    wall = {name: statistics.median(wall for wall, _ in each) for name, each in rounds_.items()}
    cpu = {name: statistics.median(cpu for _, cpu in each) for name, each in rounds_.items()}
    for name in rounds_:
        report[f"{name}_mib_per_s"] = round(mib / wall[name], 1)
        report[f"{name}_cpu_s"] = round(cpu[name], 2)
    for name in ("transfer", "durable"):
        report[f"{name}_share"] = round(wall["plain"] / wall[name], 2)
        report[f"{name}_share_by_cpu"] = round(cpu["plain"] / cpu[name], 2)
    return report


def _make(folder: Path, mib: int) -> None:
    chunks = FolderChunks(folder / "chunks", sync=False)
    with (folder / "plain").open("wb") as file:
        for _ in range(mib * MIB // CHUNK_BYTES):
            data = os.urandom(CHUNK_BYTES)
            digest = hashlib.sha256(data).digest()
            chunks.put_ciphertext(digest, memoryview(data), digest)
            file.write(data)


def _serve(pipe: Connection, folder: Path, secrets: list[bytes], certificates: list[bytes]) -> None:
    """Both servers, in a process of their own."""
    uvloop.run(_serve_until_told(pipe, folder, secrets, certificates))


async def _serve_until_told(
    pipe: Connection, folder: Path, secrets: list[bytes], certificates: list[bytes]
) -> None:
    key = Ed25519PrivateKey.from_private_bytes(secrets[0])
    contexts = TrustedContexts(key, certificates[0], certificates)
    application = web.Application()

    async def plain(request: web.Request) -> web.FileResponse:
        return web.FileResponse(folder / "plain")

    application.router.add_get("/plain", plain)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=contexts.server)
    await site.start()
    deliveries = Deliveries(folder / "deliveries")
    deliveries.put(Delivery(REQUEST_ID, STUDY_ID, 1, ROOT, WRAPPED, b""))
    source = FolderChunks(folder / "chunks", sync=False)
    server = ExchangeServer(contexts, lambda key: "beta", Always(), source, deliveries)
    await server.start("127.0.0.1")
    pipe.send((runner.addresses[0][1], server.port))
    await asyncio.to_thread(pipe.recv)
    await server.close()
    await runner.cleanup()


async def _compare(
    folder: Path,
    people: list[Identity],
    ports: tuple[int, int],
    processes: list[psutil.Process],
    rounds: int,
) -> dict[str, list[tuple[float, float]]]:
    certificates = [person.certificate for person in people]
    me = people[1]
    contexts = TrustedContexts(me.private_key, me.certificate, certificates)
    url = f"https://127.0.0.1:{ports[0]}/plain"
    holder = Holder("alpha", "127.0.0.1", ports[1], (certificates[0],))
    here = folder / "here"
    runs = {
        "plain": lambda: _download(url, contexts, folder / "received"),
        "transfer": lambda: _fetch(me, holder, here, sync=False),
        "durable": lambda: _fetch(me, holder, here, sync=True),
    }
    rounds_: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds + 1):  # the first one warms up
        for name, run in runs.items():
            before = _cpu_s(processes)
            wall_s = await run()
            rounds_[name].append((wall_s, _cpu_s(processes) - before))
    return {name: each[1:] for name, each in rounds_.items()}


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


async def _download(url: str, contexts: TrustedContexts, path: Path) -> float:
    began = time.perf_counter()
    connector = aiohttp.TCPConnector(ssl=contexts.client)
    async with (
        aiohttp.ClientSession(connector=connector, read_bufsize=MIB) as session,
        session.get(url) as response,
    ):
        with await asyncio.to_thread(open, path, "r+b", opener=_over) as file:
            async for piece in response.content.iter_chunked(MIB):
                await asyncio.to_thread(file.write, piece)
    return time.perf_counter() - began


async def _fetch(me: Identity, holder: Holder, folder: Path, *, sync: bool) -> float:
    sink = FolderChunks(folder / "chunks", sync=sync)
    transfers = Transfers(folder / "transfers")
    wanted = Wanted(REQUEST_ID, STUDY_ID, wrapped_digest(WRAPPED), ((1, ROOT),), 1 << 50)
    began = time.perf_counter()
    await fetch(me, wanted, [holder], sink, transfers, prepare=sink.adopt)
    took = time.perf_counter() - began
    transfers.forget(REQUEST_ID)
    return took


if __name__ == "__main__":
    for name, figure in measure(512, 5).items():
        print(f"{name:>28}  {figure}")
