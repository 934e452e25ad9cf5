"""The side that answers requests for stored data: bounded per peer and in all. Pure.

Requests wait in a short queue per peer and are taken in turn; a peer that has had its bytes for now
waits until its budget has grown again. Reading happens in a worker thread; that of block sync
through `read_blocks`.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from node.network.payloads import Blocks, FetchBlocks

R = TypeVar("R")  # a request

ANSWER_BLOCKS_MAX = 256  # in one answer; the format allows more
ANSWER_BYTES_MAX = 1024 * 1024  # in one answer, unless its first block is larger


@dataclass(frozen=True, slots=True)
class ServingOptions:
    waiting_max: int = 4  # requests of one peer; more are ignored, the peer's timeout handles it
    bytes_per_s: int = 32 * 1024 * 1024  # to one peer
    in_hand_max: int = 2  # answers being read, all peers together
    in_hand_per_peer_max: int = 2


@dataclass(slots=True)
class _Peer(Generic[R]):
    requests: deque[R] = field(default_factory=deque)
    in_hand: int = 0
    credit: float = 0.0  # bytes; negative while it has had more than its share
    credited_ms: int = 0


@dataclass(frozen=True, slots=True)
class Serve(Generic[R]):
    """Read what `request` wants and send it to `peer`, then call `RequestServer.served`."""

    peer: bytes
    request: R


class RequestServer(Generic[R]):
    """Decides which request is answered next."""

    def __init__(self, options: ServingOptions = ServingOptions()) -> None:
        self._options = options
        self._peers: OrderedDict[bytes, _Peer[R]] = OrderedDict()  # next in turn first
        self._in_hand = 0
        self.ignored = 0

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(len(peer.requests) for peer in self._peers.values())

    def asked(self, peer: bytes, request: R, now_ms: int) -> bool:
        """Take a request; False when the peer has too many waiting and it is ignored."""
        known = self._peers.get(peer)
        if known is None:
            known = _Peer[R](credit=self._options.bytes_per_s, credited_ms=now_ms)
            self._peers[peer] = known
        if len(known.requests) >= self._options.waiting_max:
            self.ignored += 1
            return False
        known.requests.append(request)
        return True

    def next(self, now_ms: int) -> Serve[R] | None:
        """Return what to serve now, or None. Ask again after `asked`, `served` and now and then."""
        if self._in_hand >= self._options.in_hand_max:
            return None
        for key, peer in self._peers.items():
            may_have_more = peer.in_hand < self._options.in_hand_per_peer_max
            if peer.requests and may_have_more and self._credit(peer, now_ms) > 0:
                self._peers.move_to_end(key)
                self._in_hand += 1
                peer.in_hand += 1
                return Serve(key, peer.requests.popleft())
        return None

    def served(self, peer: bytes, size: int) -> None:
        """The answer, which cost `size` bytes, was handed to the transport, or there is none."""
        self._in_hand -= 1
        known = self._peers.get(peer)
        if known is not None:
            known.in_hand -= 1
            known.credit -= size

    def disconnected(self, peer: bytes) -> None:
        """Drop what the peer asked for."""
        known = self._peers.get(peer)
        if known is not None:
            known.requests.clear()  # its debt is kept: a reconnect must not pay it

    def _credit(self, peer: _Peer[R], now_ms: int) -> float:
        rate = self._options.bytes_per_s
        earned = (now_ms - peer.credited_ms) * rate / 1000
        peer.credit = min(rate, peer.credit + earned)
        peer.credited_ms = now_ms
        return peer.credit


def read_blocks(
    read: Callable[[int], bytes | None],
    request: FetchBlocks,
    blocks_max: int = ANSWER_BLOCKS_MAX,
    bytes_max: int = ANSWER_BYTES_MAX,
) -> Blocks:
    """Return the answer: blocks from the first on, until one is missing or a limit is reached.

    Calls `read(height)` once per block, so run it in a worker thread.
    """
    blocks: list[bytes] = []
    size = 0
    for height in range(request.first, min(request.last, request.first + blocks_max - 1) + 1):
        block = read(height)
        if block is None or (blocks and size + len(block) > bytes_max):
            break
        blocks.append(block)
        size += len(block)
    return Blocks(request.request_id, request.first, tuple(blocks))
