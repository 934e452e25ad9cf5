"""Batches with their bodies between validators: answers to our requests, and ours to theirs.

A request of a few bytes may want megabytes read. So each peer has one answer at a time and a budget
of bytes per second, which pays for all that was read; what it asks beyond waits, or is forgotten.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from node.ledger.transaction import transaction_digest
from node.network.frames import Kind
from node.network.send_queue import Priority
from node.network.serving import RequestServer, Serve, ServingOptions
from node.replication.chain import Payload
from node.replication.clocks import monotonic_ms
from node.replication.codec import decode_payload, decode_payload_request, encode_payload
from node.replication.links import Links
from node.replication.payloads import PayloadDesk

WAITING_BYTES_MAX = 48 * 1024 * 1024  # of answers waiting to be checked
REQUEST_BYTES = 4096  # what a request costs its peer besides what is read
RETRY_S = 0.05  # until it is seen whether a budget has grown
SERVING = ServingOptions(waiting_max=16, bytes_per_s=8 * 1024 * 1024, in_hand_per_peer_max=1)

Rows = tuple[bytes, list[bytes]]  # an encoded batch and its bodies, in order


class _Request(NamedTuple):
    height: int
    digest: bytes
    missing: tuple[bytes, ...]  # none: everything is wanted


class PayloadFrames:
    """Takes PAYLOAD and FETCH_PAYLOAD frames; `run` in a task."""

    def __init__(
        self,
        desk: PayloadDesk,
        links: Links,
        stored: Callable[[int, bytes], Rows | None],
        now_ms: Callable[[], int] = monotonic_ms,
    ) -> None:
        """`stored(height, digest)` reads the disk; it is called in a thread."""
        self._desk = desk
        self._links = links
        self._stored = stored
        self._now_ms = now_ms
        self._waiting: deque[tuple[bytes, bytes, bytes, tuple[bytes, ...], int]] = deque()
        self._waiting_bytes = 0
        self._woken = asyncio.Event()
        self._server = RequestServer[_Request](SERVING)
        self._retry: asyncio.TimerHandle | None = None
        self._tasks: asyncio.TaskGroup | None = None  # while it runs

    def answer_frame(self, peer: bytes, payload: bytes) -> None:
        """Take one PAYLOAD frame, an answer to our request. Raises `InvalidMessage`."""
        digest, batch, bodies = decode_payload(payload)
        if self._desk.wants(digest) and self._waiting_bytes < WAITING_BYTES_MAX:
            self._waiting_bytes += len(payload)
            self._waiting.append((peer, digest, batch, bodies, len(payload)))
            self._woken.set()

    def request_frame(self, peer: bytes, payload: bytes) -> None:
        """Take one FETCH_PAYLOAD frame; it is answered in its turn. Raises `InvalidMessage`."""
        request = _Request(*decode_payload_request(payload))
        self._server.asked(peer, request, self._now_ms())
        self._serve()

    async def run(self) -> None:
        """Check answers and give others theirs until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._serve()
                await self._check_answers()
        finally:
            self._tasks = None
            if self._retry is not None:
                self._retry.cancel()

    async def _check_answers(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                peer, digest, batch, bodies, size = self._waiting.popleft()
                self._waiting_bytes -= size
                if not await self._desk.received(digest, batch, bodies):
                    self._links.punish(peer, 5, "the payload is not what was asked for")

    def _serve(self) -> None:
        if self._tasks is None:
            return
        while (serve := self._server.next(self._now_ms())) is not None:
            self._tasks.create_task(self._answer(serve))
        if self._server.waiting and self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._serve_again)

    def _serve_again(self) -> None:
        self._retry = None
        self._serve()

    async def _answer(self, serve: Serve[_Request]) -> None:
        cost = REQUEST_BYTES
        try:
            known = self._desk.payload(serve.request.digest)
            found = await asyncio.to_thread(self._find, serve.request, known)
            if found is not None:
                frame, size = found
                cost += size
                self._links.send(serve.peer, Kind.PAYLOAD, frame, Priority.PAYLOAD)
        finally:
            self._server.served(serve.peer, cost)
        self._serve()

    def _find(self, request: _Request, known: Payload | None) -> tuple[bytes, int] | None:
        """Return the answer and the bytes read for it; `known` is what is in memory."""
        rows = self._stored(request.height, request.digest) if known is None else _rows(known)
        if rows is None:
            return None
        batch, bodies = rows
        wanted = set(request.missing)
        chosen = [body for body in bodies if not wanted or transaction_digest(body) in wanted]
        return encode_payload(request.digest, batch, chosen), len(batch) + sum(map(len, bodies))


def _rows(payload: Payload) -> Rows | None:
    """Return what would be stored of a payload; nothing of the null payload."""
    if payload.batch is None:
        return None
    return payload.batch.encode(), [transaction.raw for transaction in payload.transactions]
