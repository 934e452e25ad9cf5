"""Transactions reach every validator: once in the ordinary case, and in spite of losses."""

import hashlib
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.network.errors import InvalidFrame
from node.network.frames import PAYLOAD_BYTES_MAX, Kind
from node.network.gossip import GossipOptions, TransactionGossip
from node.network.payloads import (
    decode_digests,
    decode_transactions,
    encode_digests,
    encode_transactions,
)

A, B, C = b"A" * 32, b"B" * 32, b"C" * 32


def digest_of(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


@dataclass(frozen=True)
class Tx:
    raw: bytes

    @property
    def digest(self) -> bytes:
        return digest_of(self.raw)


class Pool:
    def __init__(self):
        self.waiting: dict[bytes, Tx] = {}
        self.executed: set[bytes] = set()

    def get(self, digest):
        return self.waiting.get(digest)

    def is_known(self, digest):
        return digest in self.waiting or digest in self.executed

    def execute(self, *txs):
        for tx in txs:
            self.waiting.pop(tx.digest, None)
            self.executed.add(tx.digest)


class Links:
    def __init__(self):
        self.sent: list[tuple[bytes, Kind, bytes]] = []
        self.punished: list[tuple[bytes, float]] = []

    def send(self, key, kind, payload, priority):
        assert len(payload) <= PAYLOAD_BYTES_MAX[kind]
        self.sent.append((key, kind, payload))
        return True

    def broadcast(self, keys, kind, payload, priority):
        return sum(self.send(key, kind, payload, priority) for key in keys)

    def punish(self, key, points, reason):
        self.punished.append((key, points))

    def take(self):
        sent, self.sent = self.sent, []
        return sent


class Side:
    """One node's gossip with everything around it played by the test."""

    def __init__(self, options=None, peers=(A, B, C)):
        self.links, self.pool, self.now_ms = Links(), Pool(), 1_000
        self.offered: list[tuple[bytes, list[bytes]]] = []
        self.soon = []
        self.gossip = TransactionGossip(
            self.links,
            self.pool,
            lambda peer, bodies: self.offered.append((peer, bodies)),
            digest_of,
            lambda: self.now_ms,
            self.soon.append,
            options or GossipOptions(),
        )
        for key in peers:
            self.gossip.peer_connected(key, is_validator=True)

    def turn(self):
        soon, self.soon[:] = list(self.soon), []
        for callback in soon:
            callback()

    def enter(self, *txs):
        for tx in txs:
            self.pool.waiting[tx.digest] = tx
        self.gossip.entered(txs)

    def receive(self, peer, *txs):
        self.gossip.transactions_frame(peer, encode_transactions([tx.raw for tx in txs]))

    def announce(self, peer, *txs):
        self.gossip.announce_frame(peer, encode_digests([tx.digest for tx in txs]))

    def pass_ms(self, ms):
        self.now_ms += ms
        self.gossip.tick()


def txs(count, size=300):
    return [Tx(i.to_bytes(4, "big") + bytes(size - 4)) for i in range(count)]


def test_own_transactions_leave_in_one_frame_per_turn_to_every_validator():
    side = Side(peers=(A, B))
    side.gossip.peer_connected(C, is_validator=False)
    own = txs(100)
    for tx in own:
        side.enter(tx)
    assert side.links.take() == []
    assert len(side.soon) == 1
    side.turn()
    frame = encode_transactions([tx.raw for tx in own])
    assert side.links.take() == [(A, Kind.TRANSACTIONS, frame), (B, Kind.TRANSACTIONS, frame)]


def test_a_push_is_cut_into_frames_of_bounded_size_and_a_large_body_goes_alone():
    side = Side(GossipOptions(frame_bytes=10_000), peers=(A,))
    own = [*txs(100), Tx(b"L" * 50_000), *txs(10, size=301)]
    side.enter(*own)
    side.turn()
    frames = [decode_transactions(payload) for _, _, payload in side.links.take()]
    assert [raw for frame in frames for raw in frame] == [tx.raw for tx in own]
    assert all(sum(map(len, frame)) <= 10_000 or len(frame) == 1 for frame in frames)


def test_what_a_peer_sent_is_verified_once_and_not_relayed():
    side = Side()
    (tx,) = txs(1)
    side.receive(A, tx)
    side.receive(B, tx)
    assert side.offered == [(A, [tx.raw])]
    side.enter(tx)
    side.turn()
    assert side.links.take() == []
    side.receive(C, tx)
    assert len(side.offered) == 1
    assert side.gossip.counters.duplicates == 2


def test_what_is_executed_in_time_is_never_announced_and_leaves_no_trace():
    side = Side()
    (tx,) = txs(1)
    side.receive(A, tx)
    side.enter(tx)
    side.pool.execute(tx)
    side.pass_ms(300)
    assert side.links.take() == []
    assert side.gossip.size == 0


def test_what_lingers_is_announced_to_those_not_known_to_have_it():
    side = Side()
    (tx,) = txs(1)
    side.receive(A, tx)
    side.enter(tx)
    side.announce(B, tx)
    side.pass_ms(299)
    assert side.links.take() == []
    side.pass_ms(1)
    assert side.links.take() == [(C, Kind.ANNOUNCE, tx.digest)]
    side.pass_ms(9_999)
    assert side.links.take() == []
    side.pass_ms(1)  # a frame may have been lost: everybody hears of it again
    assert {key for key, _, _ in side.links.take()} == {A, B, C}


def test_a_peer_that_connects_hears_of_what_lingers():
    side = Side(peers=())
    one, two, gone = txs(3)
    side.enter(one, two, gone)
    side.turn()
    side.pool.execute(gone)
    side.gossip.peer_connected(A, is_validator=True)
    assert side.links.take() == [(A, Kind.ANNOUNCE, one.digest + two.digest)]
    side.gossip.peer_disconnected(A)
    side.gossip.peer_connected(A, is_validator=True)
    assert len(side.links.take()) == 1


def test_the_announced_is_fetched_once_then_elsewhere_then_given_up():
    side = Side()
    (tx,) = txs(1)
    side.announce(A, tx)
    side.announce(B, tx)
    assert side.links.take() == [(A, Kind.FETCH_TRANSACTIONS, tx.digest)]
    side.pass_ms(1_000)
    assert side.links.take() == [(B, Kind.FETCH_TRANSACTIONS, tx.digest)]
    side.pass_ms(1_000)
    assert side.links.take() == []
    assert side.gossip.size == 0
    side.announce(A, tx)  # another chance
    assert side.links.take() == [(A, Kind.FETCH_TRANSACTIONS, tx.digest)]
    side.receive(A, tx)
    assert side.offered == [(A, [tx.raw])]
    assert side.gossip.counters.received_asked == 1
    side.pass_ms(5_000)
    assert side.links.take() == []


def test_a_peer_that_left_is_not_asked():
    side = Side()
    (tx,) = txs(1)
    side.announce(A, tx)
    side.announce(B, tx)
    side.announce(C, tx)
    side.gossip.peer_disconnected(B)
    side.links.take()
    side.pass_ms(1_000)
    assert side.links.take() == [(C, Kind.FETCH_TRANSACTIONS, tx.digest)]


def test_the_known_and_the_executed_are_not_fetched():
    side = Side()
    here, done = txs(2)
    side.enter(here)
    side.turn()
    side.links.take()
    side.pool.execute(done)
    side.announce(A, here, done)
    side.receive(A, done)
    assert side.links.take() == []
    assert side.offered == []


def test_fetches_are_answered_with_what_waits_here_within_a_budget():
    side = Side(GossipOptions(answer_bytes_per_s=1_000))
    own = txs(10)
    side.enter(*own)
    side.turn()
    side.links.take()
    stranger = Tx(b"not here")
    digests = encode_digests([stranger.digest, *[tx.digest for tx in own]])
    side.gossip.fetch_frame(A, digests)
    (answer,) = side.links.take()
    assert decode_transactions(answer[2]) == [tx.raw for tx in own[:4]]
    side.gossip.fetch_frame(A, digests)
    assert side.links.take() == []
    assert side.gossip.counters.answers_cut == 2
    side.gossip.fetch_frame(B, digests)  # another peer has a budget of its own
    assert len(side.links.take()) == 1
    side.pass_ms(1_000)
    side.links.take()
    side.gossip.fetch_frame(A, digests)
    assert len(side.links.take()) == 1


def test_a_flood_of_bodies_is_bounded_per_peer_and_hurts_no_other():
    side = Side(GossipOptions(unverified_max=50))
    flood = txs(200)
    for start in range(0, 200, 20):
        side.receive(A, *flood[start : start + 20])
    assert sum(len(bodies) for _, bodies in side.offered) == 50
    assert side.gossip.size == 50
    assert side.gossip.counters.over_quota == 150
    side.receive(B, flood[199])
    assert side.offered[-1] == (B, [flood[199].raw])
    side.enter(*flood[:50])  # verified: there is room again
    side.receive(A, flood[198])
    assert side.offered[-1] == (A, [flood[198].raw])


def test_bodies_that_are_never_admitted_are_forgotten():
    side = Side(GossipOptions(unverified_max=50))
    side.receive(A, *txs(50))
    side.pass_ms(10_000)
    assert side.gossip.size == 0
    side.receive(A, Tx(b"later"))
    assert side.offered[-1] == (A, [b"later"])


def test_a_flood_of_announcements_is_bounded_per_peer():
    side = Side(GossipOptions(wanted_max=50))
    side.announce(A, *txs(200))
    assert side.gossip.size == 50
    (ask,) = side.links.take()
    assert len(decode_digests(ask[2])) == 50
    side.announce(B, Tx(b"other"))
    assert side.gossip.size == 51
    side.pass_ms(1_000)
    assert side.gossip.size == 0
    side.announce(A, Tx(b"another"))
    assert side.gossip.size == 1


def test_sending_the_same_again_and_again_is_punished():
    side = Side()
    (tx,) = txs(1)
    for _ in range(65):
        side.receive(A, tx)
    assert side.links.punished == [(A, 1)]
    assert len(side.offered) == 1


def test_frames_of_strangers_change_nothing():
    side = Side(peers=())
    (tx,) = txs(1)
    side.receive(A, tx)
    side.announce(A, tx)
    side.gossip.fetch_frame(A, tx.digest)
    assert side.offered == []
    assert side.links.take() == []
    assert side.gossip.size == 0


@pytest.mark.parametrize("take", ["transactions_frame", "announce_frame", "fetch_frame"])
@given(rubbish=st.binary(max_size=200))
def test_rubbish_raises_the_documented_error_only(take, rubbish):
    side = Side()
    try:
        getattr(side.gossip, take)(A, rubbish)
    except InvalidFrame:
        assert side.gossip.size == 0


class World:
    """Several nodes whose links lose frames; admission and mempool are immediate."""

    def __init__(self, seed, count, loss):
        self.random, self.loss = random.Random(seed), loss
        self.names = [bytes([65 + i]) * 32 for i in range(count)]
        self.sides = {name: Side(peers=()) for name in self.names}
        self.bodies = 0
        for name, side in self.sides.items():
            for other in self.names:
                if other != name:
                    side.gossip.peer_connected(other, is_validator=True)

    def step(self):
        for name, side in self.sides.items():
            side.turn()
            for to, kind, payload in side.links.take():
                self.bodies += len(decode_transactions(payload)) if kind == 6 else 0
                if self.random.random() >= self.loss:
                    self.take(self.sides[to], name, kind, payload)
        for side in self.sides.values():
            offered, side.offered = side.offered, []
            for _, bodies in offered:
                side.enter(*[Tx(raw) for raw in bodies if digest_of(raw) not in side.pool.waiting])

    def take(self, side, name, kind, payload):
        takes = {
            Kind.TRANSACTIONS: side.gossip.transactions_frame,
            Kind.ANNOUNCE: side.gossip.announce_frame,
            Kind.FETCH_TRANSACTIONS: side.gossip.fetch_frame,
        }
        takes[kind](name, payload)

    def run(self, ms):
        for _ in range(0, ms, 100):
            for side in self.sides.values():
                side.pass_ms(100)
            for _ in range(3):
                self.step()


def test_without_loss_every_body_travels_once_per_validator():
    world = World(seed=1, count=4, loss=0)
    for index, side in enumerate(world.sides.values()):
        side.enter(*[Tx(bytes([index, i])) for i in range(50)])
    world.run(5_000)
    assert all(len(side.pool.waiting) == 200 for side in world.sides.values())
    assert world.bodies == 200 * 3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(0, 0.6))
def test_whatever_is_lost_everybody_has_everything_in_the_end(seed, count, loss):
    world = World(seed, count, loss)
    for index, side in enumerate(world.sides.values()):
        side.enter(*[Tx(bytes([index, i])) for i in range(10)])
    world.run(20_000)
    world.loss = 0
    world.run(12_000)
    assert all(len(side.pool.waiting) == 10 * count for side in world.sides.values())
    assert all(peer.unverified == peer.wanted == 0 for side in world.sides.values()
               for peer in side.gossip._peers.values())  # fmt: skip
