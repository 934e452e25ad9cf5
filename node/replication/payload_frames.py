"""Batches with their bodies between validators: answers to our requests, and ours to theirs."""

import asyncio
from collections import deque
from collections.abc import Callable

from node.network.frames import Kind
from node.network.send_queue import Priority
from node.replication.chain import Payload
from node.replication.codec import decode_payload, decode_payload_request, encode_payload
from node.replication.links import Links
from node.replication.payloads import PayloadDesk

WAITING_BYTES_MAX = 48 * 1024 * 1024  # of answers waiting to be checked
READS_PER_PEER_MAX = 4  # requests being answered out of the disk


class PayloadFrames:
    """Takes PAYLOAD and FETCH_PAYLOAD frames; `run` in a task."""

    def __init__(
        self, desk: PayloadDesk, links: Links, stored: Callable[[int, bytes], Payload | None]
    ) -> None:
        """`stored(height, digest)` reads the disk; it is called in a thread."""
        self._desk = desk
        self._links = links
        self._stored = stored
        self._waiting: deque[tuple[bytes, bytes, bytes, tuple[bytes, ...], int]] = deque()
        self._waiting_bytes = 0
        self._woken = asyncio.Event()
        self._reading: list[bytes] = []  # whose requests are being answered
        self._tasks: asyncio.TaskGroup | None = None  # while it runs

    def answer_frame(self, peer: bytes, payload: bytes) -> None:
        """Take one PAYLOAD frame, an answer to our request. Raises `InvalidMessage`."""
        digest, batch, bodies = decode_payload(payload)
        if self._desk.wants(digest) and self._waiting_bytes < WAITING_BYTES_MAX:
            self._waiting_bytes += len(payload)
            self._waiting.append((peer, digest, batch, bodies, len(payload)))
            self._woken.set()

    def request_frame(self, peer: bytes, payload: bytes) -> None:
        """Answer one FETCH_PAYLOAD frame. Raises `InvalidMessage`."""
        height, digest, missing = decode_payload_request(payload)
        known = self._desk.payload(digest)
        if known is not None:
            self._send(peer, known, missing)
        elif self._tasks is not None and self._reading.count(peer) < READS_PER_PEER_MAX:
            self._reading.append(peer)
            self._tasks.create_task(self._send_stored(peer, height, digest, missing))

    async def run(self) -> None:
        """Check answers until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await self._check_answers()
        finally:
            self._tasks = None

    async def _check_answers(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                peer, digest, batch, bodies, size = self._waiting.popleft()
                self._waiting_bytes -= size
                if not await self._desk.received(digest, batch, bodies):
                    self._links.punish(peer, 5, "the payload is not what was asked for")

    async def _send_stored(
        self, peer: bytes, height: int, digest: bytes, missing: tuple[bytes, ...]
    ) -> None:
        """Answer out of the disk; what a peer asks beyond its share, it will ask again."""
        try:
            stored = await asyncio.to_thread(self._stored, height, digest)
        finally:
            self._reading.remove(peer)
        if stored is not None:
            self._send(peer, stored, missing)

    def _send(self, peer: bytes, known: Payload, missing: tuple[bytes, ...]) -> None:
        if known.batch is not None:
            wanted = set(missing)
            bodies = [t.raw for t in known.transactions if not missing or t.digest in wanted]
            frame = encode_payload(known.digest, known.batch.encode(), bodies)
            self._links.send(peer, Kind.PAYLOAD, frame, Priority.PAYLOAD)
