"""The side of block sync that answers: bounded per request, per peer and in all. Pure.

Requests wait in a short queue per peer and are taken in turn; a peer that has had its bytes for now
waits until its budget has grown again. Reading happens in a worker thread, through `read_blocks`.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from node.network.payloads import BLOCKS_MAX, Blocks, FetchBlocks


@dataclass(frozen=True, slots=True)
class ServingOptions:
    waiting_max: int = 4  # requests of one peer; more are ignored, the peer's timeout handles it
    blocks_max: int = 256  # in one answer
    answer_bytes: int = 1024 * 1024  # in one answer, unless its first block is larger
    bytes_per_s: int = 32 * 1024 * 1024  # to one peer
    in_hand_max: int = 2  # answers being read, all peers together


@dataclass(slots=True)
class _Peer:
    requests: deque[FetchBlocks] = field(default_factory=deque)
    credit: float = 0.0  # bytes; negative while it has had more than its share
    credited_ms: int = 0


@dataclass(frozen=True, slots=True)
class Serve:
    """Read these blocks and send them to `peer`, then call `BlockServer.served`."""

    peer: bytes
    request: FetchBlocks
    blocks_max: int
    bytes_max: int


class BlockServer:
    """Decides which request is answered next."""

    def __init__(self, options: ServingOptions = ServingOptions()) -> None:
        if not 1 <= options.blocks_max <= BLOCKS_MAX:
            raise ValueError(f"blocks_max must be 1 to {BLOCKS_MAX}")
        self._options = options
        self._peers: OrderedDict[bytes, _Peer] = OrderedDict()  # next in turn first
        self._in_hand = 0
        self.ignored = 0

    def asked(self, peer: bytes, request: FetchBlocks, now_ms: int) -> bool:
        """Take a request; False when the peer has too many waiting and it is ignored."""
        known = self._peers.get(peer)
        if known is None:
            known = _Peer(credit=self._options.bytes_per_s, credited_ms=now_ms)
            self._peers[peer] = known
        if len(known.requests) >= self._options.waiting_max:
            self.ignored += 1
            return False
        known.requests.append(request)
        return True

    def next(self, now_ms: int) -> Serve | None:
        """Return what to serve now, or None. Ask again after `asked`, `served` and now and then."""
        if self._in_hand >= self._options.in_hand_max:
            return None
        for key, peer in self._peers.items():
            if peer.requests and self._credit(peer, now_ms) > 0:
                self._peers.move_to_end(key)
                self._in_hand += 1
                request = peer.requests.popleft()
                return Serve(key, request, self._options.blocks_max, self._options.answer_bytes)
        return None

    def served(self, peer: bytes, size: int) -> None:
        """The answer, of `size` bytes, was handed to the transport (0 when reading failed)."""
        self._in_hand -= 1
        known = self._peers.get(peer)
        if known is not None:
            known.credit -= size

    def disconnected(self, peer: bytes) -> None:
        """Drop what the peer asked for."""
        known = self._peers.get(peer)
        if known is not None:
            known.requests.clear()  # its debt is kept: a reconnect must not pay it

    def _credit(self, peer: _Peer, now_ms: int) -> float:
        rate = self._options.bytes_per_s
        earned = (now_ms - peer.credited_ms) * rate / 1000
        peer.credit = min(rate, peer.credit + earned)
        peer.credited_ms = now_ms
        return peer.credit


def read_blocks(read: Callable[[int], bytes | None], serve: Serve) -> Blocks:
    """Return the answer: blocks from the first on, until one is missing or a limit is reached.

    Calls `read(height)` once per block, so run it in a worker thread.
    """
    request = serve.request
    blocks: list[bytes] = []
    size = 0
    for height in range(request.first, min(request.last, request.first + serve.blocks_max - 1) + 1):
        block = read(height)
        if block is None or (blocks and size + len(block) > serve.bytes_max):
            break
        blocks.append(block)
        size += len(block)
    return Blocks(request.request_id, request.first, tuple(blocks))
