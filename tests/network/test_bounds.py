"""The pure parts of the transport: send queue, budgets, misconduct, back-off, who dials."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.network.budgets import BURST_S, RATES, Misconduct, Rate, ReceiveBudget
from node.network.dialer import Backoff
from node.network.frames import PAYLOAD_BYTES_MAX, Kind
from node.network.payloads import Role
from node.network.peers import address_text, dials
from node.network.send_queue import Priority, QueueLimits, SendQueue

C, P, G = Priority
LIMITS = QueueLimits(bytes_max=(60, 40, 40), count_max=(6, 4, 4), total_bytes_max=100)
PUSHES = st.lists(st.tuples(st.sampled_from(Priority), st.integers(1, 70)), max_size=60)


@given(PUSHES)
def test_the_queue_stays_within_every_bound_and_counts_right(pushes):
    queue, accepted = SendQueue(LIMITS), 0
    for priority, size in pushes:
        before = sum(queue.dropped)
        if queue.push(bytes(size), priority):
            accepted += 1
        else:
            assert sum(queue.dropped) > before
        assert queue.size <= LIMITS.total_bytes_max
        for lane, bytes_max, count_max in zip(
            queue._lanes, LIMITS.bytes_max, LIMITS.count_max, strict=True
        ):
            assert lane.size == sum(map(len, lane.frames)) <= bytes_max
            assert len(lane.frames) <= count_max
        assert queue.size == sum(lane.size for lane in queue._lanes)
    left = sum(len(lane.frames) for lane in queue._lanes)
    assert left + sum(queue.dropped) == len(pushes)
    assert len(queue.take(10**9)) == left
    assert not queue


def test_the_oldest_of_the_least_urgent_goes_first():
    queue = SendQueue(LIMITS)
    for name in (b"g1", b"g2"):
        queue.push(name * 10, G)
    queue.push(b"p" * 40, P)
    assert queue.push(b"c" * 30, C)  # 110 bytes: the older gossip goes
    assert queue.dropped == [0, 0, 1]
    assert queue.take(1000) == [b"c" * 30, b"p" * 40, b"g2" * 10]


def test_gossip_never_displaces_what_is_more_urgent():
    queue = SendQueue(LIMITS)
    queue.push(b"c" * 60, C)
    queue.push(b"p" * 40, P)
    assert not queue.push(b"g", G)
    assert queue.dropped == [0, 0, 1]
    assert queue.size == 100


def test_a_full_class_drops_its_own_oldest():
    queue = SendQueue(LIMITS)
    for number in range(6):
        assert queue.push(bytes([number]), G)
    assert queue.take(100) == [b"\x02", b"\x03", b"\x04", b"\x05"]
    assert not queue.push(bytes(41), G)  # larger than the class


def test_take_is_bounded_but_always_takes_one():
    queue = SendQueue(LIMITS)
    queue.push(b"x" * 50, C)
    queue.push(b"y" * 10, P)
    assert queue.take(20) == [b"x" * 50]
    assert queue.take(20) == [b"y" * 10]


def test_a_small_frame_does_not_overtake_a_more_urgent_one_that_did_not_fit():
    queue = SendQueue(LIMITS)
    for frame, priority in ((b"c" * 15, C), (b"d" * 15, C), (b"p", P)):
        queue.push(frame, priority)
    assert queue.take(20) == [b"c" * 15]
    assert queue.take(20) == [b"d" * 15, b"p"]


def test_a_default_queue_holds_the_largest_frame_of_every_kind():
    for kind in Kind:
        for priority in (C, P):
            assert SendQueue(QueueLimits()).push(bytes(PAYLOAD_BYTES_MAX[kind] + 5), priority)


def test_every_kind_has_a_budget_that_allows_its_largest_frame():
    assert set(RATES) == set(Kind)
    for kind, rate in RATES.items():
        assert rate.bytes * BURST_S >= PAYLOAD_BYTES_MAX[kind]


def test_a_budget_allows_a_burst_and_then_the_rate():
    budget = ReceiveBudget({Kind.STATUS: Rate(frames=10, bytes=1_000)}, now_s=0)
    assert not any(budget.spend(Kind.STATUS, 1) for _ in range(20))  # two seconds' worth
    assert budget.spend(Kind.STATUS, 1)
    assert budget.owed_s(0) == pytest.approx(0.1)
    assert budget.owed_s(0.2) == 0


def test_a_budget_counts_bytes_and_each_kind_on_its_own():
    rates = {Kind.STATUS: Rate(10, 1_000), Kind.CONSENSUS: Rate(10, 1_000)}
    budget = ReceiveBudget(rates, now_s=0)
    assert budget.spend(Kind.CONSENSUS, 4_000)
    assert not budget.spend(Kind.STATUS, 10)
    assert budget.owed_s(0) == pytest.approx(2.0)


def test_silence_saves_up_no_more_than_a_burst():
    budget = ReceiveBudget({Kind.STATUS: Rate(1_000, 1_000)}, now_s=0)
    assert budget.spend(Kind.STATUS, 4_000)
    assert budget.owed_s(1_000) == 0
    assert budget.spend(Kind.STATUS, 3_000)
    assert budget.owed_s(1_000) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 1)), min_size=1, max_size=60))
def test_over_any_time_a_peer_gets_at_most_twice_a_burst_and_the_rate(events):
    rate = Rate(frames=20, bytes=1_000)
    budget, now_s, taken = ReceiveBudget({Kind.STATUS: rate}, 0.0), 0.0, 0
    for size, passed_s in events:
        now_s += passed_s
        taken += size
        if budget.spend(Kind.STATUS, size):
            now_s += budget.owed_s(now_s)
        assert taken <= rate.bytes * (2 * BURST_S + now_s) + 1e-6


def test_misconduct_adds_up_fades_and_is_forgiven():
    misconduct = Misconduct(threshold=100, fade_per_s=1, refuse_s=60)
    assert not misconduct.punish(b"k", 60, now_s=0)
    assert not misconduct.punish(b"k", 60, now_s=30)  # 90
    assert misconduct.punish(b"k", 10, now_s=30)
    assert misconduct.refused_for_s(b"k", 40) == 50
    assert misconduct.refused_for_s(b"k", 90) == 0
    assert not misconduct.punish(b"k", 99, now_s=91)
    assert misconduct.refused_for_s(b"other", 0) == 0


def test_back_off_doubles_to_a_cap_with_jitter_and_resets():
    backoff = Backoff(0.05, 10.0, lambda low, high: high)
    delays = [backoff.delay_s() for _ in range(10)]
    assert delays == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    backoff.reset()
    assert backoff.delay_s() == 0.05
    backoff.exhaust()
    assert backoff.delay_s() == 10.0
    assert Backoff(0.05, 10.0, lambda low, high: low).delay_s() == 0.025


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_exactly_one_of_two_validators_dials(one, other):
    validator = Role.VALIDATOR
    if one != other:
        assert dials(one, validator, other, validator) != dials(other, validator, one, validator)
    assert dials(one, Role.OBSERVER, other, validator)
    assert not dials(one, validator, other, Role.OBSERVER)
    assert not dials(one, Role.OBSERVER, other, Role.OBSERVER)


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("10.0.0.1", 7610, "10.0.0.1:7610"),
        ("::1", 7610, "[::1]:7610"),
        ("fe80::1%eth0", 1, "[fe80::1%eth0]:1"),
        ("node.example", 7610, "node.example:7610"),
        ("", 7610, ":7610"),
    ],
)
def test_addresses_read_well(host, port, text):
    assert address_text(host, port) == text
