"""Blocks come in order, from several peers, and no peer can stop or swell it."""

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.network.payloads import FetchBlocks
from node.network.serving import RequestServer, ServingOptions, read_blocks
from node.network.sync import Ask, Blame, BlockSync, Deliver, Done, SyncOptions

A, B, C = b"A", b"B", b"C"
SMALL = SyncOptions(range_blocks=10, window_blocks=100, per_peer=1, range_bytes=100, patience_ms=50)


def block(height: int) -> bytes:
    return b"block %d" % height


def blocks(first: int, last: int) -> list[bytes]:
    return [block(height) for height in range(first, last + 1)]


def asks(actions):
    return [(a.peer, a.first, a.last) for a in actions if isinstance(a, Ask)]


def delivered(actions):
    return [a.height for a in actions if isinstance(a, Deliver)]


def answer(sync, ask, count=None):
    last = ask.last if count is None else ask.first + count - 1
    return sync.on_blocks(ask.peer, ask.request_id, ask.first, blocks(ask.first, last))


def started(peers, target, options=SMALL, executed=0):
    sync = BlockSync(executed, 0, options=options)
    for peer, height in peers:
        sync.on_status(peer, height)
    return sync, sync.target(target)


def test_ranges_are_asked_of_several_peers_at_once():
    _, actions = started([(A, 100), (B, 100)], 100)
    assert asks(actions) == [(A, 1, 10), (B, 11, 20)]


def test_blocks_are_delivered_in_order_whatever_order_they_come_in():
    sync, (first, second) = started([(A, 20), (B, 20)], 20)
    assert delivered(answer(sync, second)) == []
    actions = answer(sync, first)
    assert delivered(actions) == list(range(1, 9))  # eight ahead of the executor
    assert actions[0] == Deliver(1, block(1), A)
    for height in range(1, 20):
        actions = sync.accepted(height)
        assert delivered(actions) == ([height + 8] if height + 8 <= 20 else [])
    assert sync.is_behind
    assert sync.accepted(20) == [Done(20)]
    assert not sync.is_behind
    assert sync.held_bytes == 0


def test_a_peer_is_asked_only_for_what_it_says_it_has():
    sync, actions = started([(A, 5)], 50)
    assert asks(actions) == [(A, 1, 5)]
    assert asks(sync.on_status(B, 50)) == [(B, 6, 15)]


def test_a_short_answer_leaves_the_rest_to_be_asked_again():
    sync, (ask, *_) = started([(A, 10)], 10)
    assert asks(answer(sync, ask, count=3)) == [(A, 4, 10)]


def test_an_empty_answer_sends_the_request_elsewhere_and_the_peer_to_rest():
    sync, (ask,) = started([(A, 10)], 10)
    sync.on_status(B, 9)
    actions = sync.on_blocks(A, ask.request_id, 1, [])
    assert asks(actions) == [(B, 1, 9)]
    assert sync.best_height == 9
    sync.on_status(A, 10)
    assert asks(sync.tick(499)) == []
    assert asks(sync.tick(500)) == [(A, 10, 10)]


def test_a_timeout_sends_the_request_elsewhere_and_the_late_answer_is_no_offence():
    sync, (ask,) = started([(A, 10)], 10)
    sync.on_status(B, 10)
    assert asks(sync.tick(4_999)) == []
    (again,) = sync.tick(5_000)
    assert (again.peer, again.first, again.last) == (B, 1, 10)
    assert answer(sync, ask) == []
    assert sync.counters.late == 1
    assert delivered(answer(sync, again)) == list(range(1, 9))
    assert answer(sync, ask) == [Blame(A, "blocks that were not asked for")]


def test_what_was_not_asked_is_never_taken():
    sync, (ask,) = started([(A, 10), (B, 0)], 10)
    for peer, request_id in ((B, ask.request_id), (A, ask.request_id + 1)):
        (blame,) = sync.on_blocks(peer, request_id, 1, blocks(1, 10))
        assert (type(blame), blame.peer) == (Blame, peer)
    assert sync.held_bytes == 0
    for first, given_blocks in ((2, blocks(2, 5)), (1, blocks(1, 11))):
        sync, (ask,) = started([(A, 10)], 10)
        actions = sync.on_blocks(A, ask.request_id, first, given_blocks)
        assert actions == [Blame(A, "other blocks than were asked for")]
        assert sync.held_bytes == 0


def test_a_refused_block_voids_what_its_peer_sent_and_what_came_after():
    sync, (first, second) = started([(A, 20), (B, 20)], 20)
    answer(sync, second)
    answer(sync, first)
    sync.accepted(1)
    sync.accepted(2)
    actions = sync.refused(A, 3)
    assert asks(actions) == [(B, 3, 10)]  # A rests
    assert delivered(actions) == []
    again = next(a for a in actions if isinstance(a, Ask))
    assert delivered(answer(sync, again)) == list(range(3, 11))
    assert sync.counters.refused == 1


def test_blocks_of_honest_peers_survive_a_refusal():
    sync, (first, second) = started([(A, 20), (B, 20)], 20)
    answer(sync, second)
    answer(sync, first)
    assert sync.held_bytes == sum(map(len, blocks(1, 20)))
    sync.refused(A, 3)
    assert sync.held_bytes == sum(map(len, blocks(11, 20)))


def test_a_peer_that_leaves_is_replaced():
    sync, (ask,) = started([(A, 10)], 10)
    sync.on_status(B, 10)
    assert asks(sync.on_disconnected(A)) == [(B, 1, 10)]
    assert answer(sync, ask)[0] == Blame(A, "blocks that were not asked for")


def test_a_lonely_liar_about_heights_costs_little_and_never_makes_us_abstain():
    sync = BlockSync(10, 0, options=SMALL)
    sync.on_status(A, 2**53)
    assert not sync.is_behind
    asked, now = 0, 0
    while now < 600_000:
        now += 100
        for action in [*sync.tick(now), *sync.on_status(A, 2**53)]:
            assert isinstance(action, Ask)
            asked += 1
            sync.on_blocks(A, action.request_id, action.first, [])
    assert asked < 20  # ten minutes
    assert not sync.is_behind


def test_a_validator_waits_for_consensus_before_it_fetches_what_a_peer_has():
    sync = BlockSync(10, 0, options=SMALL)
    assert sync.on_status(A, 11) == []
    assert sync.tick(49) == []
    sync.accepted(11)
    sync.on_status(A, 12)
    assert sync.tick(98) == []
    assert asks(sync.tick(99)) == [(A, 12, 12)]


def test_a_validator_that_moves_leaves_it_to_consensus():
    sync = BlockSync(10, 0, options=SMALL)
    sync.on_status(A, 20)
    assert sync.tick(40) == []
    sync.accepted(11)
    assert sync.tick(60) == []
    assert asks(sync.tick(90)) == [(A, 12, 20)]


def test_an_observer_follows_what_is_pushed_and_fetches_gaps():
    sync = BlockSync(10, 0, follows=True, options=SMALL)
    assert sync.on_status(A, 10) == []
    assert delivered(sync.on_sealed(A, 11, block(11))) == [11]
    assert asks(sync.on_sealed(A, 14, block(14))) == [(A, 12, 13)]
    assert sync.on_sealed(B, 12, block(12)) == []  # not connected
    assert delivered(sync.on_sealed(A, 12, block(12))) == [12]
    assert sync.on_sealed(A, 10**6, block(10**6))[:1] != [Deliver(10**6, block(10**6), A)]
    assert sync.held_bytes == sum(map(len, (block(11), block(12), block(14))))


def test_a_validator_takes_no_pushed_blocks():
    sync = BlockSync(10, 0, options=SMALL)
    sync.on_status(A, 10)
    assert sync.on_sealed(A, 11, block(11)) == []
    assert sync.held_bytes == 0
    assert sync.best_height == 11


def test_held_and_expected_bytes_are_bounded_but_the_next_block_is_always_asked_for():
    options = SyncOptions(
        range_blocks=10, window_blocks=1_000, per_peer=50, range_bytes=1_000, buffer_bytes_max=5_000
    )
    sync, actions = started([(A, 1_000)], 1_000, options)
    assert len(asks(actions)) == 5
    for ask in actions[1:]:
        assert asks(sync.on_blocks(A, ask.request_id, ask.first, [bytes(150)] * 10)) == []
    assert sync.held_bytes == 6_000
    sync.on_status(B, 1_000)
    more = sync.tick(5_000)  # the first range never came
    assert asks(more) == [(B, 1, 10)]


def test_consensus_may_bring_the_blocks_itself():
    sync, (ask,) = started([(A, 10)], 10)
    answer(sync, ask)
    assert sync.accepted(200) == [Done(200)]
    assert sync.held_bytes == 0
    assert sync.accepted(150) == []
    assert sync.executed == 200


class Fetching:
    """A node, its peers with all their faults, and a network that reorders."""

    def __init__(self, seed, faults, target):
        self.random = random.Random(seed)
        self.faults = faults
        self.sync = BlockSync(0, 0, options=SMALL)
        self.queue = deque()
        self.chain, self.blamed, self.done = [], [], []
        self.deliveries = deque()
        for peer, fault in faults.items():
            self.do(self.sync.on_status(peer, target * 2 if fault == "boasts" else target))
        self.do(self.sync.target(target))

    def do(self, actions):
        for action in actions:
            match action:
                case Ask():
                    self.queue.append(action)
                case Deliver():
                    self.deliveries.append(action)
                case Blame():
                    self.blamed.append(action.peer)
                case Done():
                    self.done.append(action.height)

    def answer(self, ask):
        fault = self.faults[ask.peer]
        good = blocks(ask.first, ask.last)
        if fault == "silent" or (fault == "flaky" and self.random.random() < 0.5):
            return
        answers = {
            "forges": [b"forged" for _ in good],
            "empty": [],
            "boasts": [b for b in good if int(b[6:]) <= 150],
            "short": good[: self.random.randint(1, len(good))],
            "long": [*good, b"more"],
        }
        given = answers.get(fault, good)
        self.do(self.sync.on_blocks(ask.peer, ask.request_id, ask.first, given))

    def execute(self):
        while self.deliveries:
            delivery = self.deliveries.popleft()
            assert delivery.height == len(self.chain) + 1
            if delivery.block != block(delivery.height):
                self.deliveries.clear()
                assert self.faults[delivery.peer] == "forges"
                self.do(self.sync.refused(delivery.peer, delivery.height))
            else:
                self.chain.append(delivery.block)
                self.do(self.sync.accepted(delivery.height))

    def run(self, target):
        now = 0
        while len(self.chain) < target and now < 600_000:
            now += 250
            self.do(self.sync.tick(now))
            asked = list(self.queue)
            self.queue.clear()
            self.random.shuffle(asked)
            for ask in asked:
                self.answer(ask)
                self.execute()
            assert self.sync.held_bytes <= SMALL.buffer_bytes_max
            assert len(self.sync._requests) <= len(self.faults) * SMALL.per_peer


FAULTS = st.sampled_from(["silent", "flaky", "forges", "empty", "boasts", "short", "long"])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(FAULTS, max_size=4))
def test_one_honest_peer_is_enough_whatever_the_others_do(seed, others):
    faults = {b"honest": None} | {bytes([i]): fault for i, fault in enumerate(others)}
    fetching = Fetching(seed, faults, 150)
    fetching.run(150)
    assert fetching.chain == blocks(1, 150)
    assert fetching.done == [150]
    assert b"honest" not in fetching.blamed


# The side that answers.


def serving(**changes):
    return RequestServer(ServingOptions(**changes))


def test_requests_are_served_in_turn_and_a_few_at_a_time():
    server = serving(in_hand_max=2)
    for peer, number in ((A, 1), (A, 2), (B, 3), (C, 4)):
        assert server.asked(peer, FetchBlocks(number, 1, 5), 0)
    first, second = server.next(0), server.next(0)
    assert (first.request.request_id, second.request.request_id) == (1, 3)
    assert server.next(0) is None
    server.served(A, 100)
    assert server.next(0).request.request_id == 4
    server.served(B, 100)
    assert server.next(0).request.request_id == 2


def test_a_peer_with_too_many_requests_is_ignored():
    server = serving(waiting_max=2)
    assert [server.asked(A, FetchBlocks(i, 1, 1), 0) for i in range(3)] == [True, True, False]
    assert server.ignored == 1
    assert server.asked(B, FetchBlocks(9, 1, 1), 0)


def test_one_peer_does_not_have_all_that_are_in_hand():
    server = serving(in_hand_max=2, in_hand_per_peer_max=1)
    for peer, number in ((A, 1), (A, 2), (B, 3)):
        server.asked(peer, FetchBlocks(number, 1, 5), 0)
    assert [server.next(0).peer, server.next(0).peer] == [A, B]
    server.served(B, 100)
    assert server.next(0) is None
    assert server.waiting == 1
    server.served(A, 100)
    assert server.next(0).request.request_id == 2
    assert server.waiting == 0


def test_bytes_per_second_are_bounded_for_each_peer_also_over_a_reconnect():
    server = serving(bytes_per_s=1_000, in_hand_max=10)
    for number in range(3):
        server.asked(A, FetchBlocks(number, 1, 1), 0)
    assert server.next(0) is not None
    server.served(A, 2_500)
    assert server.next(1_000) is None
    assert server.next(1_500) is None
    assert server.next(1_501) is not None
    server.served(A, 5_000)
    server.disconnected(A)
    server.asked(A, FetchBlocks(7, 1, 1), 1_600)
    assert server.next(1_600) is None
    assert server.asked(B, FetchBlocks(8, 1, 1), 1_600)
    assert server.next(1_600).peer == B


@pytest.mark.parametrize(
    ("first", "last", "bytes_max", "expected"),
    [
        (1, 5, 10**6, [1, 2, 3, 4, 5]),
        (8, 20, 10**6, [8, 9, 10]),  # the chain ends at 10
        (11, 20, 10**6, []),
        (1, 5, 16, [1, 2]),
        (1, 5, 1, [1]),  # a block larger than the limit goes alone
        (1, 10, 10**6, [1, 2, 3, 4, 5, 6]),  # six blocks at most
    ],
)
def test_an_answer_is_bounded_in_blocks_and_bytes(first, last, bytes_max, expected):
    reads = []

    def read(height):
        reads.append(height)
        return block(height) if height <= 10 else None

    given_blocks = read_blocks(read, FetchBlocks(3, first, last), 6, bytes_max)
    assert given_blocks.blocks == tuple(map(block, expected))
    assert (given_blocks.request_id, given_blocks.first) == (3, first)
    assert len(reads) <= len(expected) + 1
