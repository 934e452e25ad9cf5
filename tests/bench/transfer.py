"""python -m tests.bench.transfer: how fast a study moves, beside a plain download.

Both in one run, turn and turn about, on loopback, each side a process of its own, TLS 1.3 with the
same certificates. The plain one is aiohttp's `FileResponse` of one file, written to a file by an
aiohttp client. Ours is `ExchangeServer` and `fetch`: every request and every piece checked against
the permits, every chunk hashed on arrival, written to a file of its own (and, in the second figure,
synced to the disk, which the plain download is not). Figures are reported, never asserted.
"""

import asyncio
import hashlib
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.exchange.hpke import wrapped_digest
from node.exchange.transfer.client import fetch
from node.exchange.transfer.holders import Holder, Identity
from node.exchange.transfer.offer import Delivery, Wanted
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

    def chunks(self) -> tuple[Chunk, ...]:
        return tuple(
            Chunk(bytes.fromhex(path.name), path.stat().st_size)
            for path in sorted(self._folder.iterdir())
        )

    def sealed_study(self, study_id: bytes, version: int) -> SealedStudy:
        return SealedStudy(version, b"index", self.chunks())

    def holds(self, study_id: bytes, digest: bytes) -> bool:
        return self.has_ciphertext(digest)

    def ciphertext(self, digest: bytes) -> bytes:
        return (self._folder / digest.hex()).read_bytes()

    def has_ciphertext(self, digest: bytes) -> bool:
        return (self._folder / digest.hex()).exists()

    def put_ciphertext(self, digest: bytes, data: bytes) -> None:
        path = self._folder / digest.hex()
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(data)
            if self._sync:
                file.flush()
                os.fdatasync(file.fileno())
        new.rename(path)


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
            run = _compare(folder, people, plain_port, port, rounds)
            rates = uvloop.run(run)
        finally:
            ours.send(None)
            server.join()
    figures = {name: round(mib / statistics.median(times), 1) for name, times in rates.items()}
    plain = figures["plain_mib_per_s"]
    figures["share"] = round(figures["transfer_mib_per_s"] / plain, 2)
    figures["share_durable"] = round(figures["transfer_durable_mib_per_s"] / plain, 2)
    return {"mib": mib, "rounds": rounds, **figures}


def _make(folder: Path, mib: int) -> None:
    chunks = FolderChunks(folder / "chunks", sync=False)
    with (folder / "plain").open("wb") as file:
        for _ in range(mib * MIB // CHUNK_BYTES):
            data = os.urandom(CHUNK_BYTES)
            chunks.put_ciphertext(hashlib.sha256(data).digest(), data)
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
    folder: Path, people: list[Identity], plain_port: int, port: int, rounds: int
) -> dict[str, list[float]]:
    certificates = [person.certificate for person in people]
    me = people[1]
    contexts = TrustedContexts(me.private_key, me.certificate, certificates)
    url = f"https://127.0.0.1:{plain_port}/plain"
    holder = Holder("alpha", "127.0.0.1", port, (certificates[0],))
    times: dict[str, list[float]] = {
        "plain_mib_per_s": [],
        "transfer_mib_per_s": [],
        "transfer_durable_mib_per_s": [],
    }
    for _ in range(rounds + 1):  # the first one warms up
        times["plain_mib_per_s"].append(await _download(url, contexts, folder / "received"))
        for name, sync in (("transfer_mib_per_s", False), ("transfer_durable_mib_per_s", True)):
            times[name].append(await _fetch(me, holder, folder / "here", sync=sync))
    return {name: each[1:] for name, each in times.items()}


async def _download(url: str, contexts: TrustedContexts, path: Path) -> float:
    began = time.perf_counter()
    connector = aiohttp.TCPConnector(ssl=contexts.client)
    async with (
        aiohttp.ClientSession(connector=connector, read_bufsize=MIB) as session,
        session.get(url) as response,
    ):
        with path.open("wb") as file:
            async for piece in response.content.iter_chunked(MIB):
                await asyncio.to_thread(file.write, piece)
    took = time.perf_counter() - began
    path.unlink()
    return took


async def _fetch(me: Identity, holder: Holder, folder: Path, *, sync: bool) -> float:
    sink = FolderChunks(folder / "chunks", sync=sync)
    transfers = Transfers(folder / "transfers")
    wanted = Wanted(REQUEST_ID, STUDY_ID, wrapped_digest(WRAPPED), ((1, ROOT),), 1 << 50)
    began = time.perf_counter()
    await fetch(me, wanted, [holder], sink, transfers)
    took = time.perf_counter() - began
    shutil.rmtree(folder)
    return took


if __name__ == "__main__":
    for name, figure in measure(512, 3).items():
        print(f"{name:>28}  {figure}")
