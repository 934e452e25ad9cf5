"""Brings transactions to every validator: push at once, then announce and fetch what lingers.

A node pushes what its own clients submitted to all connected validators, coalesced per turn of the
event loop. That is all there is while the network is well. What a peer sent is not relayed; only
when it still waits `announce_after_ms` later is its digest announced to those who are not known to
have it, and they fetch it. So a lost frame or a missing link costs a third of a second, and the
ordinary case costs each body one frame per validator.

Pure but for what it is handed: no socket, no clock, no task. Every table is bounded: entries that
are not yet verified and digests that are asked for, per peer; entries in the mempool, by it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from node.network.frames import Kind
from node.network.payloads import (
    DIGESTS_MAX,
    TRANSACTIONS_MAX,
    decode_digests,
    decode_transactions,
    encode_digests,
    encode_transactions,
)
from node.network.send_queue import Priority


class Body(Protocol):
    """A transaction as far as gossip is concerned."""

    @property
    def raw(self) -> bytes:
        """The encoded transaction."""
        ...

    @property
    def digest(self) -> bytes:
        """32 bytes that name `raw`."""
        ...


class Pool(Protocol):
    """What gossip needs of the mempool."""

    def get(self, digest: bytes) -> Body | None:
        """Return the transaction that waits here, or None."""
        ...

    def is_known(self, digest: bytes) -> bool:
        """Return whether it waits here or was executed lately, so that it need not be fetched."""
        ...


class Links(Protocol):
    """What gossip needs of the transport."""

    def send(self, key: bytes, kind: Kind, payload: bytes, priority: Priority) -> bool:
        """Queue a frame to one peer."""
        ...

    def broadcast(
        self, keys: Iterable[bytes], kind: Kind, payload: bytes, priority: Priority
    ) -> int:
        """Queue a frame to several peers."""
        ...

    def punish(self, key: bytes, points: float, reason: str) -> None:
        """Count misbehaviour."""
        ...


@dataclass(frozen=True, slots=True)
class GossipOptions:
    frame_bytes: int = 256 * 1024  # of bodies in one TRANSACTIONS frame, unless one is larger
    announce_after_ms: int = 300
    announce_again_ms: int = 10_000  # to everybody, in case a frame was lost
    fetch_timeout_ms: int = 1_000
    verify_patience_ms: int = 10_000  # how long a body may take from arrival into the mempool
    wanted_max: int = 8_192  # digests that one peer announced and that are being fetched
    unverified_max: int = 8_192  # bodies that one peer sent and that are not in the mempool yet
    answer_bytes_per_s: int = 16 * 1024 * 1024  # bodies handed to one peer that fetches
    repeats_per_point: int = 64  # bodies sent again by a peer that sent them before


@dataclass(slots=True)
class GossipCounters:
    """For metrics; all peers together."""

    pushed: int = 0
    announced: int = 0
    asked: int = 0
    answered: int = 0
    received: int = 0
    received_asked: int = 0
    duplicates: int = 0
    over_quota: int = 0
    undelivered: int = 0
    answers_cut: int = 0


@dataclass(slots=True)
class _Peer:
    bit: int
    is_validator: bool
    wanted: int = 0
    unverified: int = 0
    repeats: int = 0
    answered_bytes: int = 0


@dataclass(slots=True)
class _Entry:
    """A digest that is wanted, on its way through admission, or in the mempool."""

    holders: int  # bits of the peers that have it, as far as known
    source: _Peer | None = None  # whose quota it uses, until it is in the mempool
    asked: int = 0  # bits of the peers that were asked for it; 0: the body is here
    is_here: bool = True
    is_pooled: bool = False


@dataclass(slots=True)
class _Asks:
    """Digests to be fetched, by peer."""

    by_peer: dict[bytes, list[bytes]] = field(default_factory=dict)

    def add(self, key: bytes, digest: bytes) -> None:
        self.by_peer.setdefault(key, []).append(digest)


class TransactionGossip:
    """One node's part. Call `tick` about every 50 ms, and the rest when it happens."""

    def __init__(
        self,
        links: Links,
        pool: Pool,
        offer: Callable[[bytes, list[bytes]], None],
        digest_of: Callable[[bytes], bytes],
        now_ms: Callable[[], int],
        call_soon: Callable[[Callable[[], None]], object],
        options: GossipOptions = GossipOptions(),
    ) -> None:
        """`offer(peer, bodies)` takes bodies to be verified; what enters the mempool comes back in
        `entered`. `now_ms` is monotonic. `call_soon` runs a function after this loop turn."""
        self._links = links
        self._pool = pool
        self._offer = offer
        self._digest_of = digest_of
        self._now_ms = now_ms
        self._call_soon = call_soon
        self._options = options
        self._peers: dict[bytes, _Peer] = {}
        self._bits: dict[bytes, int] = {}  # kept over reconnects; one for each key ever known
        self._entries: dict[bytes, _Entry] = {}
        self._outbox: list[Body] = []
        self._unverified: deque[tuple[int, bytes, _Entry]] = deque()  # each in order of time
        self._lingering: deque[tuple[int, bytes, _Entry]] = deque()
        self._announced: deque[tuple[int, bytes, _Entry]] = deque()
        self._fetching: deque[tuple[int, bytes, _Entry]] = deque()
        self._second_began_ms = now_ms()
        self.counters = GossipCounters()

    @property
    def size(self) -> int:
        """How many digests are kept in mind."""
        return len(self._entries)

    # Peers.

    def peer_connected(self, key: bytes, *, is_validator: bool) -> None:
        """Gossip with this peer; a validator hears of everything that lingers here."""
        bit = self._bits.setdefault(key, 1 << len(self._bits))
        self._peers[key] = _Peer(bit, is_validator)
        if is_validator:
            self._announce_all(key)

    def peer_changed(self, key: bytes, *, is_validator: bool) -> None:
        """Take note that a connected peer is a validator now, or is none any more."""
        peer = self._peers.get(key)
        if peer is not None and peer.is_validator != is_validator:
            peer.is_validator = is_validator
            if is_validator:
                self._announce_all(key)

    def peer_disconnected(self, key: bytes) -> None:
        """Ask this peer no more; what it was asked for is asked elsewhere by the next `tick`s."""
        self._peers.pop(key, None)

    # Our own and others' transactions.

    def entered(self, transactions: Sequence[Body]) -> None:
        """Take note of what is verified and in the mempool now, from wherever it came.

        What no peer sent is our own and leaves with the end of this turn of the loop.
        """
        due_ms = self._now_ms() + self._options.announce_after_ms
        for transaction in transactions:
            digest = transaction.digest
            entry = self._entries.get(digest)
            if entry is None or not entry.is_here:
                if entry is not None:
                    self._release(entry)
                entry = self._entries[digest] = _Entry(entry.holders if entry else 0)
                if not self._outbox:
                    self._call_soon(self._push)
                self._outbox.append(transaction)
            elif entry.is_pooled:
                continue
            self._release(entry)
            entry.is_pooled = True
            self._lingering.append((due_ms, digest, entry))

    def transactions_frame(self, key: bytes, payload: bytes) -> None:
        """Take a TRANSACTIONS frame. Raises `InvalidFrame`."""
        bodies = decode_transactions(payload)
        peer = self._peers.get(key)
        if peer is None:
            return
        self.counters.received += len(bodies)
        fresh = [body for body in bodies if self._is_fresh(peer, self._digest_of(body))]
        if fresh:
            self._offer(key, fresh)
        if peer.repeats >= self._options.repeats_per_point:
            points, peer.repeats = divmod(peer.repeats, self._options.repeats_per_point)
            self._links.punish(key, points, "sends the same transactions again and again")

    def _is_fresh(self, peer: _Peer, digest: bytes) -> bool:
        """Whether the body should be verified; enters it in the books."""
        entry = self._entries.get(digest)
        if entry is not None and entry.is_here:
            peer.repeats += bool(entry.holders & peer.bit)
            entry.holders |= peer.bit
            self.counters.duplicates += 1
            return False
        if entry is not None:
            self.counters.received_asked += bool(entry.asked & peer.bit)
            self._release(entry)
        elif self._pool.is_known(digest):
            self.counters.duplicates += 1
            return False
        if peer.unverified >= self._options.unverified_max:
            self._entries.pop(digest, None)
            self.counters.over_quota += 1
            return False
        holders = peer.bit | (entry.holders if entry else 0)
        entry = self._entries[digest] = _Entry(holders, peer)
        peer.unverified += 1
        due_ms = self._now_ms() + self._options.verify_patience_ms
        self._unverified.append((due_ms, digest, entry))
        return True

    def _push(self) -> None:
        outbox, self._outbox = self._outbox, []
        validators = {key: peer.bit for key, peer in self._peers.items() if peer.is_validator}
        if not validators:
            return  # announced to whoever connects
        holders = sum(validators.values())
        for transaction in outbox:
            entry = self._entries.get(transaction.digest)
            if entry is not None:
                entry.holders |= holders
        for payload in self._packed([transaction.raw for transaction in outbox]):
            self._links.broadcast(validators, Kind.TRANSACTIONS, payload, Priority.GOSSIP)
        self.counters.pushed += len(outbox)

    # Announce and fetch.

    def announce_frame(self, key: bytes, payload: bytes) -> None:
        """Take an ANNOUNCE frame: fetch what is not here. Raises `InvalidFrame`."""
        digests = decode_digests(payload)
        peer = self._peers.get(key)
        if peer is None:
            return
        asks = _Asks()
        for digest in digests:
            entry = self._entries.get(digest)
            if entry is not None:
                entry.holders |= peer.bit
            elif not self._pool.is_known(digest):
                if peer.wanted >= self._options.wanted_max:
                    self.counters.over_quota += 1
                    continue
                peer.wanted += 1
                entry = self._entries[digest] = _Entry(peer.bit, peer, is_here=False)
                self._ask(asks, key, peer.bit, digest, entry)
        self._fetch(asks)

    def fetch_frame(self, key: bytes, payload: bytes) -> None:
        """Answer a FETCH_TRANSACTIONS frame with what waits here. Raises `InvalidFrame`."""
        digests = decode_digests(payload)
        peer = self._peers.get(key)
        if peer is None:
            return
        bodies = []
        for digest in digests:
            if peer.answered_bytes >= self._options.answer_bytes_per_s:
                self.counters.answers_cut += 1
                break
            transaction = self._pool.get(digest)
            if transaction is not None:
                bodies.append(transaction.raw)
                peer.answered_bytes += len(transaction.raw)
                entry = self._entries.get(digest)
                if entry is not None:
                    entry.holders |= peer.bit
        for answer in self._packed(bodies):
            self._links.send(key, Kind.TRANSACTIONS, answer, Priority.GOSSIP)
        self.counters.answered += len(bodies)

    def tick(self) -> None:
        """Announce what lingers, ask again for what did not come, forget what is over."""
        now_ms = self._now_ms()
        if now_ms - self._second_began_ms >= 1_000:
            self._second_began_ms = now_ms
            for peer in self._peers.values():
                peer.answered_bytes = 0
        self._drop_unverified(now_ms)
        self._announce_lingering(now_ms)
        self._ask_again(now_ms)

    def _drop_unverified(self, now_ms: int) -> None:
        while self._unverified and self._unverified[0][0] <= now_ms:
            _, digest, entry = self._unverified.popleft()
            if not entry.is_pooled and self._entries.get(digest) is entry:
                del self._entries[digest]
                self._release(entry)

    def _announce_lingering(self, now_ms: int) -> None:
        validators = {key: peer.bit for key, peer in self._peers.items() if peer.is_validator}
        lists: dict[bytes, list[bytes]] = {key: [] for key in validators}
        again_ms = now_ms + self._options.announce_again_ms
        for queue, trusting in ((self._lingering, True), (self._announced, False)):
            while queue and queue[0][0] <= now_ms:
                _, digest, entry = queue.popleft()
                if self._pool.get(digest) is None:
                    if self._entries.get(digest) is entry:
                        del self._entries[digest]
                    continue
                for key, bit in validators.items():
                    if not (trusting and entry.holders & bit):
                        lists[key].append(digest)
                self._announced.append((again_ms, digest, entry))
        self._announce(lists)

    def _announce_all(self, key: bytes) -> None:
        lingering = [digest for digest, entry in self._entries.items() if entry.is_pooled]
        self._announce({key: [d for d in lingering if self._pool.get(d) is not None]})

    def _announce(self, lists: dict[bytes, list[bytes]]) -> None:
        for key, digests in lists.items():
            for start in range(0, len(digests), DIGESTS_MAX):
                part = digests[start : start + DIGESTS_MAX]
                self._links.send(key, Kind.ANNOUNCE, encode_digests(part), Priority.GOSSIP)
                self.counters.announced += len(part)

    def _ask_again(self, now_ms: int) -> None:
        asks = _Asks()
        while self._fetching and self._fetching[0][0] <= now_ms:
            _, digest, entry = self._fetching.popleft()
            if self._entries.get(digest) is not entry:
                continue
            self.counters.undelivered += 1
            other = self._other_holder(entry)
            if other is None:
                del self._entries[digest]
                self._release(entry)
            else:
                self._ask(asks, *other, digest, entry)
        self._fetch(asks)

    def _other_holder(self, entry: _Entry) -> tuple[bytes, int] | None:
        for key, peer in self._peers.items():
            if entry.holders & ~entry.asked & peer.bit:
                return key, peer.bit
        return None

    def _ask(self, asks: _Asks, key: bytes, bit: int, digest: bytes, entry: _Entry) -> None:
        entry.asked |= bit
        asks.add(key, digest)
        due_ms = self._now_ms() + self._options.fetch_timeout_ms
        self._fetching.append((due_ms, digest, entry))

    def _fetch(self, asks: _Asks) -> None:
        for key, digests in asks.by_peer.items():
            for start in range(0, len(digests), DIGESTS_MAX):
                part = encode_digests(digests[start : start + DIGESTS_MAX])
                self._links.send(key, Kind.FETCH_TRANSACTIONS, part, Priority.GOSSIP)
            self.counters.asked += len(digests)

    def _release(self, entry: _Entry) -> None:
        """Give the quota that the entry uses back to the peer that it came from."""
        if entry.source is not None:
            if entry.is_here:
                entry.source.unverified -= 1
            else:
                entry.source.wanted -= 1
            entry.source = None

    def _packed(self, bodies: Sequence[bytes]) -> Iterable[bytes]:
        """The payloads that carry `bodies`, each of about `frame_bytes` at most."""
        start, size = 0, 0
        for index, body in enumerate(bodies):
            full = size + len(body) > self._options.frame_bytes or index - start == TRANSACTIONS_MAX
            if full and index > start:
                yield encode_transactions(bodies[start:index])
                start, size = index, 0
            size += len(body)
        if start < len(bodies):
            yield encode_transactions(bodies[start:])
