"""A fake node behind a real RPC server on loopback.

`FakeService` is a fake: it keeps what was submitted in a list and makes blocks when told to. The
server, the sockets and the client are the real ones.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from node.config.model import RpcConfig, RpcLimits
from node.ledger.block import Event
from node.ledger.errors import Refused
from node.ledger.queries import BadQuery, EventView, StudyPage
from node.rpc.client import Client
from node.rpc.feed import EventFeed
from node.rpc.metrics import Metrics
from node.rpc.server import RpcServer
from node.rpc.service import (
    BlockEvents,
    Head,
    PeerStatus,
    Readiness,
    Status,
    Submitted,
    ValidatorStatus,
)

TOKEN = "t" * 43


def block_events(height: int, *names: str) -> BlockEvents:
    events = [
        EventView(height, position, bytes([height % 256]) * 32, Event(name, 0, (b"\xab", "CT", 7)))
        for position, name in enumerate(names)
    ]
    return BlockEvents(height, tuple(events))


# Methods that are only passed on: what was asked is kept, and `answers` has what to say.
PASSED_ON = (
    "consent",
    "policies",
    "policy_try",
    "request",
    "requests",
    "institution",
    "institutions",
    "members",
    "encryption_keys",
    "proposal",
    "proposals",
    "proposal_try",
    "audit_trail",
    "anchors",
    "parameters",
    "proof",
)


class FakeService:
    """What a test wants to see, without a chain. `gate` holds back submissions when set."""

    def __init__(self) -> None:
        self.submitted: list[bytes] = []
        self.cancelled = 0
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()
        self.queries: list[object] = []
        self.asked: list[tuple[object, ...]] = []
        self.answers: dict[str, object] = {}
        self.ready = Readiness(True, "", (), "idle", 3, 41)
        self.past: dict[int, BlockEvents] = {}
        self.feed = EventFeed(self._read, 0, recent_blocks=4)
        self.reads = 0
        self.open_reads = 0
        self.open_reads_most = 0

    async def _read(self, height: int) -> BlockEvents:
        self.reads += 1
        await asyncio.sleep(0)
        if height not in self.past:
            raise Refused("expired", f"height {height} is not kept")
        return self.past[height]

    def add_block(self, *names: str) -> BlockEvents:
        block = block_events(self.feed.height + 1, *names)
        self.past[block.height] = block
        self.feed.publish(block)
        return block

    async def submit(self, raw, wait, timeout_s):
        self.submitted.append(raw)
        self.entered.set()
        if raw.startswith(b"refuse"):
            raise Refused("quota_exceeded", "north has 100 waiting")
        if raw.startswith(b"late"):
            raise TimeoutError
        if raw.startswith(b"bug"):
            raise KeyError("SECRET patient value")
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        identifier = hashlib.sha256(raw).digest()
        if wait == "accepted":
            return Submitted(identifier, "accepted")
        return Submitted(identifier, wait, 7, 0, "ok")

    async def transaction(self, transaction_id):
        return await self._answer("transaction")

    async def block(self, height):
        self.queries.append(height)
        return await self._answer("block")

    async def study(self, study_id):
        self.queries.append(study_id)
        return await self._answer("study")

    async def search(self, query):
        self.queries.append(query)
        if query.modality == "XX":
            raise BadQuery("modality must be one of CT, MR")
        return StudyPage((), None)

    def __getattr__(self, name):
        if name not in PASSED_ON:
            raise AttributeError(name)

        async def ask(*arguments):
            self.asked.append((name, *arguments))
            answer = self.answers.get(name)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask

    async def _answer(self, name):
        self.open_reads += 1
        self.open_reads_most = max(self.open_reads, self.open_reads_most)
        try:
            if self.gate is not None:
                await self.gate.wait()
            return self.answers.get(name)
        finally:
            self.open_reads -= 1

    def head(self):
        return Head(self.feed.height, b"\x01" * 32, 1_700_000_000_000, self.feed.height)

    def status(self):
        return Status(
            "north", b"\x02" * 32, "0.1.0", True, 41, 40, 3, "west", 5, 1_500, ("south",), False
        )

    def validators(self):
        return (ValidatorStatus("north", b"\x03" * 32, 0, False, True),)

    def peers(self):
        return (PeerStatus("south", "127.0.0.1", 7610, True, True, None, 1, 2, 0),)

    def readiness(self):
        return self.ready

    def subscribe(self, from_height):
        return self.feed.subscribe(from_height)


class Node:
    """A served fake with what a test needs to talk to it."""

    def __init__(self, service: FakeService, server: RpcServer, metrics: Metrics) -> None:
        self.service, self.server, self.metrics = service, server, metrics

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {TOKEN}"}

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        async with aiohttp.ClientSession(self.url, headers=self.headers) as session:
            yield session

    @asynccontextmanager
    async def websocket(self, **options) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        async with self.session() as session, session.ws_connect("/ws", **options) as socket:
            yield socket

    def client(self, **options) -> Client:
        return Client(self.url, TOKEN, **options)

    async def post(self, body: bytes | str) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        async with (
            self.session() as session,
            session.post("/rpc", data=body, headers=headers) as response,
        ):
            return response.status, await response.read()


@pytest.fixture
async def serve():
    """Return a function that serves a fake node; all are closed at the end."""
    servers: list[RpcServer] = []

    async def start(limits: RpcLimits | None = None, port: int = 0, service=None) -> Node:
        service = service or FakeService()
        metrics = Metrics("0.1.0")
        config = RpcConfig(token_file=Path("unused"), port=port, limits=limits or RpcLimits())
        server = RpcServer(service, config, TOKEN, metrics)
        await server.start()
        servers.append(server)
        return Node(service, server, metrics)

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
async def node(serve) -> Node:
    return await serve()


async def eventually(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds; the test's own time limit is the only clock."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)
