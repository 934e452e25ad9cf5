"""Timers, convergence of views, and progress after healing (requirements 21 to 25, 28, 37)."""

import random as randomness

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.effects import (
    Evidence,
    SetTimer,
)
from consensus.inputs import (
    Executed,
    MessageReceived,
    PayloadReady,
    Propose,
    TimerFired,
    WorkPending,
)
from consensus.messages import (
    Commit,
    NewView,
    ViewChange,
    encode,
)
from consensus.options import Options
from consensus.wal import VIEW_CHANGE_KEY
from tests.consensus.certificates import A, B, change
from tests.consensus.cluster import (
    Cluster,
    digest,
)
from tests.consensus.views import broadcasts, cluster_is_together, lone, receive


def test_the_timeout_doubles_per_failed_view_up_to_the_cap_and_resets_at_a_decision():
    """Requirement 21."""
    cluster = Cluster(4, Options(view_timeout_ms=1_000, view_timeout_max_ms=5_000))
    cluster.dropped = lambda letter: isinstance(letter.message, NewView)
    cluster.work()
    seen = [cluster[3].timers["view"]]
    for _ in range(4):
        cluster.fire("view", 3, 2)
        cluster.run()
        if "view" in cluster[3].timers:
            seen.append(cluster[3].timers["view"])
    assert seen == [1_000, 2_000, 4_000, 5_000, 5_000]
    cluster.dropped = lambda letter: False
    while not all(m.replica._state.active for m in cluster.members):
        cluster.fire("view")
        cluster.settle()
    assert cluster[3].timers["view"] == 5_000
    cluster.commit("decided")
    assert cluster[3].timers["view"] == 1_000


def spread(views):
    """Return a cluster whose members come back asking for the given views (0: for none)."""
    cluster = Cluster(4, Options(view_timeout_ms=1_000, view_timeout_max_ms=8_000))
    for member, view in zip(cluster.members, views, strict=True):
        if view:
            message = cluster.signed(change(member.index, view=view))
            member.wal = {VIEW_CHANGE_KEY: encode(message)}
    cluster.letters.clear()
    for member in cluster.members:
        member.start()
        assert member.replica.view == views[member.index]
    return cluster


@pytest.mark.parametrize("views", [(6, 9, 10, 10), (0, 1, 2, 3), (10, 10, 1, 1), (5, 0, 0, 0)])
def test_any_spread_of_views_converges(views):
    """Requirement 23: with retransmission and at most two timer periods."""
    cluster = spread(views)
    cluster.run()
    cluster.work()
    for _ in range(2):
        cluster.settle(3)
        if quorum_is_together(cluster) and any(m.replica.can_propose for m in cluster.members):
            break
        cluster.fire("view")
    cluster.settle(3)
    assert quorum_is_together(cluster)
    cluster.commit("together")
    assert cluster.heights() == [1] * 4


def quorum_is_together(cluster):
    states = [m.replica._state for m in cluster.members]
    active = [s.view for s in states if s.active]
    return max(map(active.count, active), default=0) >= cluster.validators.quorum


def test_a_replica_that_is_slow_itself_does_not_blame_the_primary():
    cluster, replica = lone()
    replica.step(WorkPending(True))
    for sender in (0, 2, 3):
        receive(cluster, replica, Commit(0, 1, A, sender))
    for effects in (replica.step(TimerFired("view")), replica.step(PayloadReady(1, A))):
        assert not broadcasts(effects, ViewChange)
    effects = replica.step(TimerFired("view"))  # it executes
    assert effects == [SetTimer("view", 2_000)]
    replica.step(Executed(1, B))
    assert broadcasts(replica.step(TimerFired("view")), ViewChange)


def test_a_flood_of_view_changes_costs_a_bounded_number_of_verifications():
    """Requirement 28."""
    cluster, replica = lone()
    verified = 0
    for view in range(1, 1_000):
        message = cluster.signed(change(3, view=view))
        if replica.is_relevant(message):
            verified += 1
            replica.step(MessageReceived(message))
    assert verified == 8
    replica.step(TimerFired("resend"))
    assert replica.is_relevant(cluster.signed(change(3, view=5_000)))


def test_f_plus_1_dead_stall_without_a_fork_and_recover():
    """Requirement 25."""
    cluster = Cluster(4)
    cluster.commit("a")
    cluster.crash(0)
    cluster.crash(1)
    cluster.work()
    for _ in range(4):
        cluster.fire("view")
        cluster.settle(2)
    assert cluster.heights()[2:] == [1, 1]
    cluster[0].start()
    cluster[1].start()
    cluster.work()
    for _ in range(3):
        cluster.fire("view")
        cluster.settle(3)
    cluster.commit("b")
    assert digest("b") in [batch for batch, _ in cluster[2].blocks]
    assert len(set(cluster.heights())) == 1
    cluster.assert_agreement()


@pytest.mark.parametrize("deaf", [True, False])
def test_a_one_way_broken_node_does_not_stop_the_rest(deaf):
    """Requirement 24."""
    cluster = Cluster(4)
    broken = 3
    cluster.dropped = lambda letter: (letter.to if deaf else letter.sender) == broken
    cluster.work()
    for name in range(5):
        cluster.commit(name)
        cluster.fire("view", broken)
        cluster.settle(2)
    assert cluster.heights()[:3] == [5, 5, 5]
    assert {m.replica.view for m in cluster.members[:3]} == {0}


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_agreement_and_progress_whatever_the_order_of_events(seed):
    """Requirement 37: view changes, crashes, losses, sync, decisions in any order; then health."""
    rng = randomness.Random(seed)
    n = rng.choice([4, 5, 7])
    cluster = Cluster(n, Options(window=6, in_flight_max=3))
    cluster.work()
    loss = rng.choice([0.0, 0.1, 0.3])
    cluster.dropped = lambda letter: rng.random() < loss
    for step in range(150):
        act = rng.random()
        member = rng.choice(cluster.members)
        if act < 0.15 and member.up and member.replica.can_propose:
            member.step(Propose(digest((seed, step))))
        elif act < 0.19 and member.up:
            cluster.fire("view", member.index)
        elif act < 0.3 and member.up:
            cluster.fire("resend", member.index)
        elif act < 0.33 and member.up and sum(not m.up for m in cluster.members) < n // 2:
            cluster.crash(member.index)
        elif act < 0.38 and not member.up:
            member.start()
            member.step(WorkPending(True))
        else:
            cluster.answer_locally()
            rng.shuffle(cluster.letters)
            for _ in range(min(len(cluster.letters), rng.randrange(25))):
                cluster.deliver(cluster.letters.popleft())
        cluster.assert_agreement()
    cluster.dropped = lambda letter: False
    for member in cluster.members:
        if not member.up:
            member.start()
            member.step(WorkPending(True))
    for _ in range(8):
        cluster.settle(3)
        if cluster_is_together(cluster):
            break
        cluster.fire("view")
    assert cluster_is_together(cluster)
    cluster.commit("healthy")
    cluster.settle(4)
    assert len(set(cluster.heights())) == 1
    cluster.assert_agreement()
    assert not any(member.all_of(Evidence) for member in cluster.members)
