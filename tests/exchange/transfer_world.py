"""Hospitals on loopback that exchange ciphertext: chunks in memory, a ledger by hand."""

import asyncio
import hashlib
import os
import secrets
import threading
from contextlib import asynccontextmanager
from pathlib import Path

from node.exchange.hpke import wrapped_digest
from node.exchange.transfer.client import Holder, Identity
from node.exchange.transfer.errors import NotPermitted, WrongDigest
from node.exchange.transfer.limits import ClientLimits, ServerLimits
from node.exchange.transfer.offer import Delivery, Wanted
from node.exchange.transfer.ports import Chunk, Permit, SealedStudy
from node.exchange.transfer.server import ExchangeServer
from node.exchange.transfer.state import Deliveries, Transfers
from node.network.tls import TrustedContexts
from tests.network.harness import make_identities

PATIENCE_S = 20.0
QUICK = ClientLimits(
    parallel=4,
    connect_timeout_ms=3_000,
    stall_timeout_ms=5_000,
    backoff_min_ms=1,
    backoff_max_ms=20,
    attempts_max=3,
)


class Chunks:
    """ChunkSource and ChunkSink in memory; counts what is asked of it."""

    def __init__(self):
        self.study_id = secrets.token_bytes(16)
        self.chunks = {}
        self.order = []
        self.expected = ()
        self.sent = []
        self.puts = []
        self.index = b"index ciphertext"
        self._lock = threading.Lock()

    def fill(self, count, size):
        for _ in range(count):
            data = os.urandom(size)
            digest = hashlib.sha256(data).digest()
            self.chunks[digest] = data
            self.order.append(Chunk(digest, size))
        return self

    def copy(self):
        twin = Chunks()
        twin.study_id, twin.order, twin.chunks = self.study_id, self.order, dict(self.chunks)
        return twin

    def sealed_study(self, study_id, version):
        if (study_id, version) != (self.study_id, 1):
            raise LookupError("another study")
        return SealedStudy(1, self.index, tuple(self.order))

    def holds(self, study_id, digest):
        return study_id == self.study_id and digest in self.chunks

    def ciphertext(self, digest):
        with self._lock:
            self.sent.append(digest)
        return self.chunks[digest]

    def missing(self, study_id, version):
        return {chunk.digest for chunk in self.expected if chunk.digest not in self.chunks}

    def put_ciphertext(self, digest, data, found):
        assert found == hashlib.sha256(data).digest()
        if found != digest:
            raise WrongDigest(digest.hex())
        with self._lock:
            self.puts.append(digest)
            self.chunks[digest] = bytes(data)


class Ledger:
    """`Permits` by hand: what is in `permits` is permitted, `refusals` say why not."""

    def __init__(self):
        self.permits = {}
        self.refusals = {}
        self.failure = None
        self.asked = 0

    async def permit(self, request_id):
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        if request_id in self.refusals:
            raise NotPermitted(self.refusals[request_id])
        if request_id not in self.permits:
            raise NotPermitted("request_unknown")
        return self.permits[request_id]


class Hospital:
    """One hospital: its identity, its chunks, its server if it runs."""

    def __init__(self, name, person, chunks, folder):
        self.name, self.person, self.chunks = name, person, chunks
        self.deliveries = Deliveries(folder / name / "deliveries")
        self.transfers = Transfers(folder / name / "transfers")
        self.contexts = TrustedContexts(person.private_key, person.certificate)
        self.identity = Identity(person.private_key, person.certificate)
        self.events = []
        self.admitted = []
        self.is_admitting = True
        self.server = None

    async def admit(self, event):
        self.admitted.append(event)
        return self.is_admitting

    @property
    def holder(self):
        return Holder(self.name, "127.0.0.1", self.server.port, (self.person.certificate,))


class World:
    """A custodian "alpha", a second holder "gamma", and "beta", which was granted access."""

    def __init__(self, folder: Path, count=6, size=40_000, index=b"index ciphertext"):
        self.ledger = Ledger()
        names = ("alpha", "beta", "gamma", "delta")
        people = {person.name: person for person in make_identities(*names)}
        study = Chunks().fill(count, size)
        study.index = index
        stores = {"alpha": study, "gamma": study.copy(), "beta": Chunks(), "delta": Chunks()}
        self.hospitals = {n: Hospital(n, people[n], stores[n], folder) for n in names}
        self.alpha, self.beta, self.gamma, self.delta = (self.hospitals[n] for n in names)
        self.keys = {people[n].key: n for n in names if n != "delta"}  # nobody knows delta
        for hospital in self.hospitals.values():
            for name in self.keys.values():
                hospital.contexts.trust(people[name].certificate)
        self.study = study
        stores["beta"].expected = study.order
        self.request_id = secrets.token_bytes(16)
        wrapped = secrets.token_bytes(1_168)
        self.delivery = Delivery(self.request_id, study.study_id, 1, b"\x11" * 32, wrapped, b"m")
        self.alpha.deliveries.put(self.delivery)
        self.wanted = Wanted(
            self.request_id,
            study.study_id,
            wrapped_digest(wrapped),
            ((1, self.delivery.root),),
            1 << 40,
        )
        self.permit("beta")

    @property
    def alpha_certificates(self):
        return (self.alpha.person.certificate,)

    def chunk_path(self, digest):
        return f"/v1/chunk/{digest.hex()}?request={self.request_id.hex()}"

    def permit(self, institution):
        self.ledger.permits[self.request_id] = Permit(
            self.request_id, self.study.study_id, institution, self.wanted.wrapped_digest
        )

    async def start(self, name, **limits):
        hospital = self.hospitals[name]
        hospital.server = ExchangeServer(
            hospital.contexts,
            self.keys.get,
            self.ledger,
            hospital.chunks,
            hospital.deliveries,
            limits=ServerLimits(**limits),
            report=hospital.events.append,
            admit=hospital.admit,
        )
        await hospital.server.start("127.0.0.1")
        return hospital

    @asynccontextmanager
    async def serving(self, *names, **limits):
        started = [await self.start(name, **limits) for name in names]
        try:
            yield started[0] if len(started) == 1 else started
        finally:
            for hospital in started:
                await hospital.server.close()


async def until(condition):
    """Wait for what must happen; the only clock is the patience of a test that has failed."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


TRUSTED = object()


async def get(who, hospital, path, headers="", context=TRUSTED):
    """One GET over a raw connection; return status, headers and body."""
    if context is TRUSTED:
        context = who.contexts.client
    reader, writer = await connect(hospital, context)
    try:
        return await ask(reader, writer, path, headers)
    finally:
        writer.transport.abort()


async def connect(hospital, context):
    return await asyncio.open_connection(
        "127.0.0.1", hospital.server.port, ssl=context, server_hostname="" if context else None
    )


async def ask(reader, writer, path, headers=""):
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
    async with asyncio.timeout(PATIENCE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.splitlines()
        found = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        return int(first.split()[1]), found, await reader.readexactly(int(found["content-length"]))
