"""Leaving views and entering them (requirements 8, 12 to 16, 19, 21 to 25, 37, 43)."""

import itertools
import random as randomness

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus import view_change as derivation
from consensus.effects import (
    Broadcast,
    Evidence,
    Execute,
    Halt,
    ObtainPayload,
    Persist,
    Send,
    ViewEntered,
)
from consensus.inputs import (
    MessageReceived,
    PayloadReady,
    PayloadRefused,
    PrimarySuspected,
    Propose,
    TimerFired,
    WorkPending,
)
from consensus.messages import (
    NULL_DIGEST,
    VIEW_MAX,
    Commit,
    NewView,
    Prepare,
    PreparedCertificate,
    PrePrepare,
    SealCertificate,
    ViewChange,
    encode,
)
from consensus.options import Options
from consensus.validators import quorum_size
from consensus.wal import VIEW_CHANGE_KEY
from tests.consensus.cluster import (
    GENESIS_CERTIFICATE,
    Cluster,
    digest,
    is_authentic,
    signed_by,
    validator_set,
)

A, B = digest("a"), digest("b")


def prepared(view, height, batch, validators=None):
    validators = validators or validator_set(range(4))
    primary = validators.primary(view)
    backups = [i for i in range(validators.n) if i != primary][: validators.quorum - 1]
    sign = lambda message: signed_by(validators, message)  # noqa: E731
    prepares = ((s, sign(Prepare(view, height, batch, s)).signature) for s in backups)
    return PreparedCertificate(sign(PrePrepare(view, height, batch, primary)), tuple(prepares))


def stable_at(height, validators=None):
    if height == 0:
        return GENESIS_CERTIFICATE
    return SealCertificate(height, digest(("header", height)), ())


def change(sender, *certificates, view=9, stable=0):
    return ViewChange(view, stable_at(stable), certificates, sender)


# The derivation (pure)


def test_nothing_prepared_carries_nothing_over():
    assert derivation.carried_over([change(0), change(1), change(2)]) == []


def test_the_certificate_of_the_highest_view_wins():
    changes = [
        change(0, prepared(1, 1, A)),
        change(1, prepared(3, 1, B)),
        change(2, prepared(2, 1, A)),
    ]
    for order in itertools.permutations(changes):
        assert derivation.carried_over(order) == [(1, B)]


def test_gaps_become_null_blocks():
    """Requirement 14."""
    changes = [change(0, prepared(0, 2, A)), change(1, prepared(0, 5, B)), change(2)]
    assert derivation.carried_over(changes) == [
        (1, NULL_DIGEST), (2, A), (3, NULL_DIGEST), (4, NULL_DIGEST), (5, B),
    ]  # fmt: skip


def test_the_stable_height_is_the_highest_of_all():
    """Requirement 16."""
    changes = [
        change(0, prepared(0, 2, A), prepared(0, 4, A)),
        change(1, stable=3),
        change(2, prepared(0, 2, B), stable=1),
    ]
    for order in itertools.permutations(changes):
        assert derivation.stable_certificate(order).height == 3
        assert derivation.carried_over(order) == [(4, A)]


@pytest.mark.parametrize("n", [4, 5, 6, 7, 8])
def test_what_may_have_committed_is_carried_over_by_every_quorum(n):
    """Requirement 12: whoever committed d had a quorum that prepared d; any quorum of ViewChanges,
    in any order, with the f faulty ones claiming the worst they can prove, yields d."""
    validators, f, quorum = validator_set(range(n)), (n - 1) // 3, quorum_size(n)
    rng = randomness.Random(n)
    window = range(1, 5)
    # A faulty member may hide its certificate or show that of an earlier view.
    earlier, decided = (
        {h: prepared(0, h, A, validators) for h in window},
        {h: prepared(1, h, B, validators) for h in window},
    )
    for committers in itertools.combinations(range(n), quorum):
        faulty = set(committers[:f])
        changes = {}
        for sender in range(n):
            knows = sender in committers and sender not in faulty
            chosen = decided if knows else earlier
            held = [chosen[h] for h in window if knows or rng.random() < 0.7]
            changes[sender] = change(sender, *held)
        for quorum_ in itertools.combinations(range(n), quorum):
            order = [changes[s] for s in quorum_]
            rng.shuffle(order)
            assert derivation.carried_over(order) == [(h, B) for h in window]


def test_with_2f_plus_1_at_8_a_committed_batch_could_be_lost():
    """The same scenario with the familiar quorum: what requirement 1 protects from."""
    f, too_small = 2, 5
    committers, others = set(range(too_small)), {0, 1, 5, 6, 7}
    correct = (committers & others) - set(range(f))
    assert correct == set()


@pytest.mark.parametrize(
    ("views", "current", "f", "expected"),
    [
        ([], 0, 1, None),
        ([2**60, 0, 0], 0, 1, None),
        ([3, 5, 0], 0, 1, 3),
        ([9, 10, 10], 6, 1, 10),
        ([6, 10, 10], 9, 1, 10),
        ([4, 4, 4], 4, 1, None),
        ([7, 8, 9, 0, 0, 0], 0, 2, 7),
        ([1], 0, 0, 1),
    ],
)
def test_f_plus_1_validators_move_a_replica_to_the_view_that_all_of_them_reached(
    views, current, f, expected
):
    """Requirement 22."""
    assert derivation.view_to_join(views, current, f) == expected


# The replicas


def broadcasts(effects, kind):
    return [e.message for e in effects if isinstance(e, Broadcast) and isinstance(e.message, kind)]


def only(effects, kind):
    return [e for e in effects if isinstance(e, kind)]


@pytest.mark.parametrize("n", [4, 5, 6, 7, 8, 10])
def test_a_dead_primary_is_replaced_and_nothing_is_lost(n):
    cluster = Cluster(n)
    cluster.commit("a", "b")
    cluster.propose("c")
    for _ in range(4 * n):  # c is on its way when the primary dies
        cluster.answer_locally()
        cluster.deliver(cluster.letters.popleft())
    cluster.crash(0)
    cluster.run()
    cluster.work()
    cluster.fire("view")
    cluster.settle()
    cluster.commit("d")
    heights = cluster.heights()[1:]
    assert len(set(heights)) == 1
    assert {m.replica.view for m in cluster.members[1:]} == {1}
    assert digest("d") in [batch for batch, _ in cluster[1].blocks]
    cluster[0].start()
    cluster.commit("e")
    cluster.commit("f")
    cluster.settle()
    cluster.assert_agreement()


@pytest.mark.parametrize("letters", range(0, 60, 3))
def test_a_view_change_at_any_moment_keeps_what_was_committed(letters):
    """Requirement 12, with the whole machine: f = 1 dies after any number of deliveries."""
    for dead in range(4):
        cluster = Cluster(4)
        for name in range(3):
            cluster.propose(name)
        for _ in range(letters):
            cluster.answer_locally()
            if cluster.letters:
                cluster.deliver(cluster.letters.popleft())
        cluster.work()
        cluster.crash(dead)
        cluster.letters.clear()  # what was under way is lost, too
        done = {m.index: list(m.blocks) for m in cluster.members}
        for _ in range(1 + (dead == 1)):  # member 1 would be the primary of view 1
            cluster.fire("view")
            cluster.settle()
        cluster.commit("later")
        cluster[dead].start()
        cluster.commit("ignored if the one that came back proposes it in its old view")
        cluster.settle()
        cluster.commit("last")
        cluster.settle()
        cluster.assert_agreement()
        assert len(set(cluster.heights())) == 1
        assert digest("later") in [batch for batch, _ in cluster[0].blocks]
        longest = max((m.blocks for m in cluster.members), key=len)
        for blocks in done.values():
            assert blocks == longest[: len(blocks)]


def lone(index=1, n=4, **options):
    cluster = Cluster(n, Options(**options))
    return cluster, cluster[index].replica


def receive(cluster, replica, message):
    return replica.step(MessageReceived(signed_by(cluster.validators, message)))


def test_the_timer_starts_a_view_change_that_is_durable_before_it_is_sent():
    _, replica = lone()
    replica.step(WorkPending(True))
    effects = replica.step(TimerFired("view"))
    [message] = broadcasts(effects, ViewChange)
    assert message.view == replica.view == 1
    assert isinstance(effects[effects.index(Broadcast(message)) - 1], Persist)


def test_a_replica_that_asked_for_a_view_votes_in_no_lower_one():
    cluster, replica = lone()
    receive(cluster, replica, PrePrepare(0, 1, A, 0))
    replica.step(PrimarySuspected(0))
    effects = replica.step(PayloadReady(1, A))
    effects += receive(cluster, replica, PrePrepare(0, 2, B, 0))
    effects += receive(cluster, replica, Prepare(0, 1, A, 2))
    effects += receive(cluster, replica, Prepare(0, 1, A, 3))
    assert not broadcasts(effects, Prepare)
    assert not broadcasts(effects, Commit)


def test_suspicion_of_another_view_does_nothing():
    _, replica = lone()
    assert replica.step(PrimarySuspected(3)) == []
    replica.step(PrimarySuspected(0))
    assert replica.step(PrimarySuspected(0)) == []
    assert replica.view == 1


def test_a_view_change_carries_every_prepared_certificate_above_the_stable_height():
    cluster, replica = lone()
    for height in (1, 3):
        receive(cluster, replica, PrePrepare(0, height, digest(height), 0))
        replica.step(PayloadReady(height, digest(height)))
        receive(cluster, replica, Prepare(0, height, digest(height), 2))
    receive(cluster, replica, PrePrepare(0, 2, A, 0))
    [message] = broadcasts(replica.step(PrimarySuspected(0)), ViewChange)
    assert [c.pre_prepare.height for c in message.prepared] == [1, 3]
    assert message.stable == GENESIS_CERTIFICATE
    assert is_authentic(message, cluster.schedule)


def new_view_of(cluster, view, changes, pre_prepares=None):
    sign = cluster.signed
    changes = tuple(sign(c) for c in changes)
    primary = cluster.validators.primary(view)
    if pre_prepares is None:
        pre_prepares = derivation.carried_over(changes)
    votes = tuple(sign(PrePrepare(view, h, d, primary)) for h, d in pre_prepares)
    return sign(NewView(view, changes, votes, primary))


def test_the_new_primary_begins_the_view_with_a_quorum():
    cluster, replica = lone()
    replica.step(PrimarySuspected(0))
    assert not broadcasts(receive(cluster, replica, change(2, view=1)), NewView)
    effects = receive(cluster, replica, change(3, prepared(0, 2, A), view=1))
    [message] = broadcasts(effects, NewView)
    assert [c.sender for c in message.view_changes] == [1, 2, 3]
    assert [(v.height, v.digest) for v in message.pre_prepares] == [(1, NULL_DIGEST), (2, A)]
    assert isinstance(effects[effects.index(Broadcast(message)) - 1], Persist)
    assert ViewEntered(1) in effects
    assert is_authentic(message, cluster.schedule)
    assert replica.next_height == 3
    # It lacks the batch that it carries over: it obtains it before it commits (requirement 17).
    assert only(effects, ObtainPayload) == [ObtainPayload(2, A, False)]
    effects = [e for s in (2, 3) for e in receive(cluster, replica, Prepare(1, 2, A, s))]
    assert not broadcasts(effects, Commit)
    assert broadcasts(replica.step(PayloadReady(2, A)), Commit)


def test_a_backup_enters_a_view_that_follows_from_its_view_changes():
    cluster, replica = lone(index=2)
    message = new_view_of(cluster, 1, [change(s, prepared(0, 1, A), view=1) for s in (0, 1, 3)])
    effects = replica.step(MessageReceived(message))
    assert ViewEntered(1) in effects
    assert replica.view == 1
    assert only(effects, ObtainPayload) == [ObtainPayload(1, A, False)]
    assert not broadcasts(effects, Prepare)
    assert broadcasts(replica.step(PayloadReady(1, A)), Prepare)


@pytest.mark.parametrize(
    "proposals",
    [[], [(1, B)], [(1, NULL_DIGEST)], [(1, A), (2, NULL_DIGEST)], [(1, A), (2, B)]],
)
def test_a_new_view_that_does_not_follow_is_refused(proposals):
    """Requirement 15."""
    cluster, replica = lone(index=2)
    changes = [change(s, prepared(0, 1, A), view=1) for s in (0, 1, 3)]
    effects = replica.step(MessageReceived(new_view_of(cluster, 1, changes, proposals)))
    assert not only(effects, ViewEntered)
    [message] = broadcasts(effects, ViewChange)
    assert message.view == replica.view == 2


def test_a_new_view_below_or_equal_to_the_active_one_is_ignored():
    cluster, replica = lone(index=3)
    replica.step(MessageReceived(new_view_of(cluster, 2, [change(s, view=2) for s in (0, 1, 2)])))
    assert replica.view == 2
    for view in (1, 2):
        again = new_view_of(cluster, view, [change(s, view=view) for s in (0, 1, 2)])
        assert not replica.is_relevant(again)
        assert replica.step(MessageReceived(again)) == []


def test_null_blocks_advance_the_chain():
    cluster = Cluster(4)
    cluster.dropped = lambda letter: (
        isinstance(letter.message, Prepare | PrePrepare) and letter.message.height == 1
    )
    cluster.propose("lost")
    cluster.propose("kept")
    cluster.run()
    cluster.dropped = lambda letter: False
    cluster.fire("view")
    cluster.run()
    cluster.commit("next")
    for member in cluster.members:
        batches = [batch for batch, _ in member.blocks[1:]]
        assert batches == [NULL_DIGEST, digest("kept"), digest("next")]


def test_a_carried_over_batch_is_asked_for_without_a_freshness_check():
    """Requirements 18 and 19: also when the fresh one was asked for and refused before."""
    cluster, replica = lone(index=2)
    receive(cluster, replica, PrePrepare(0, 1, A, 0))
    changes = [change(s, prepared(0, 1, A), view=1) for s in (0, 1, 3)]
    effects = replica.step(MessageReceived(new_view_of(cluster, 1, changes)))
    assert only(effects, ObtainPayload) == [ObtainPayload(1, A, False)]
    effects = replica.step(PayloadRefused(1, A))  # an answer to the first question
    assert only(effects, ObtainPayload) == [ObtainPayload(1, A, False)]
    assert replica.view == 1
    replica.step(PayloadRefused(1, A))  # no correct replica can have prepared this
    assert replica.view == 2


def test_executed_heights_take_part_in_a_new_view_and_are_not_executed_again():
    """Requirements 9 and 12: what one executed, the others can still commit."""
    cluster = Cluster(4)
    # Only member 3 gets the commits: it executes; the others do not.
    cluster.dropped = lambda letter: isinstance(letter.message, Commit) and letter.to != 3
    cluster.propose("a")
    cluster.run()
    assert cluster.heights() == [0, 0, 0, 1]
    cluster.dropped = lambda letter: False
    cluster.crash(0)
    cluster.work()
    cluster.fire("view")
    cluster.run()
    assert cluster.heights()[1:] == [1, 1, 1]
    assert len(cluster[3].all_of(Execute)) == 1
    assert any(vote.view == 1 for vote in cluster[3].sent_of(Prepare))
    cluster.assert_agreement()


def test_a_new_view_against_an_executed_height_stops_the_node():
    cluster, replica = lone(index=3)
    receive(cluster, replica, PrePrepare(0, 1, A, 0))
    replica.step(PayloadReady(1, A))
    for sender in (0, 1, 2):
        receive(cluster, replica, Commit(0, 1, A, sender))
    changes = [change(s, prepared(0, 1, B), view=1) for s in (0, 1, 2)]
    effects = replica.step(MessageReceived(new_view_of(cluster, 1, changes)))
    assert only(effects, Halt)


def test_two_committed_digests_stop_the_node():
    cluster, replica = lone(index=3)
    for sender in (0, 1, 2):
        receive(cluster, replica, Commit(0, 1, A, sender))
    effects = []
    for sender in (0, 1, 2):
        effects += receive(cluster, replica, Commit(1, 1, B, sender))
    assert "more than f faulty" in only(effects, Halt)[0].reason
    assert replica.step(TimerFired("resend")) == []


def test_a_message_of_a_higher_view_waits_for_that_view():
    """Requirement 8."""
    cluster, replica = lone(index=2)
    assert not only(receive(cluster, replica, PrePrepare(1, 1, A, 1)), ObtainPayload)
    receive(cluster, replica, Prepare(1, 1, A, 0))
    effects = replica.step(
        MessageReceived(new_view_of(cluster, 1, [change(s, view=1) for s in (0, 1, 3)]))
    )
    assert only(effects, ObtainPayload) == [ObtainPayload(1, A, True)]
    effects = replica.step(PayloadReady(1, A))
    assert broadcasts(effects, Prepare)
    assert broadcasts(effects, Commit)  # the buffered Prepare counted


def test_one_validator_far_above_moves_nobody():
    """Requirement 22."""
    cluster, replica = lone()
    for view in (2**40, 2**52, VIEW_MAX):
        receive(cluster, replica, change(3, view=view))
        receive(cluster, replica, Prepare(view, 1, A, 3))
        receive(cluster, replica, Commit(view, 1, A, 3))
    assert replica.view == 0


@pytest.mark.parametrize("kind", [Prepare, Commit, ViewChange])
def test_f_plus_1_validators_above_are_joined(kind):
    cluster, replica = lone(index=0)

    def above(view, sender):
        return change(sender, view=view) if kind is ViewChange else kind(view, 1, A, sender)

    assert not broadcasts(receive(cluster, replica, above(5, 2)), ViewChange)
    [message] = broadcasts(receive(cluster, replica, above(7, 3)), ViewChange)
    assert message.view == replica.view == 5


def test_a_late_view_change_is_answered_with_the_new_view_once_per_period():
    cluster = Cluster(4)
    cluster.dropped = lambda letter: letter.to == 3
    cluster.work()
    for index in (0, 1, 2):
        cluster[index].fire("view")
    cluster.run()
    assert [m.replica.view for m in cluster.members] == [1, 1, 1, 0]
    late = signed_by(cluster.validators, change(3, view=1))
    replica = cluster[0].replica
    assert replica.is_relevant(late)
    [sent] = only(replica.step(MessageReceived(late)), Send)
    assert (sent.to, type(sent.message)) == (3, NewView)
    assert not replica.is_relevant(late)
    assert not only(replica.step(MessageReceived(late)), Send)
    replica.step(TimerFired("resend"))
    assert only(replica.step(MessageReceived(late)), Send)


def test_a_primary_that_was_away_learns_that_its_view_is_over():
    cluster = Cluster(4)
    cluster.crash(0)
    cluster.work()
    cluster.fire("view")
    cluster.run()
    cluster[0].start()
    assert cluster[0].replica.can_propose  # it does not know better
    cluster.commit("in view 0")
    assert cluster[0].replica.view == 1
    cluster.settle()
    cluster.commit("in view 1")
    assert cluster.heights() == [1] * 4
    cluster.assert_agreement()


def test_one_replica_alone_in_a_higher_view_stays_up_to_date_and_stops_nobody():
    cluster = Cluster(4)
    cluster[3].step(PrimarySuspected(0))
    cluster.commit(*range(40))
    assert cluster.heights() == [40] * 4
    assert [m.replica.view for m in cluster.members] == [0, 0, 0, 1]
    assert cluster[3].sent_of(Prepare) == []
    # With another one dead the rest cannot go on without it; they join it.
    cluster.crash(2)
    cluster.propose("stuck")
    cluster.run()
    cluster.work()
    assert cluster.heights() == [40] * 4
    cluster.fire("view", 0, 1)
    cluster.settle()
    assert [m.replica.view for i, m in enumerate(cluster.members) if i != 2] == [1, 1, 1]
    cluster.commit("on again")
    cluster[2].start()
    cluster.commit("with all")
    cluster.settle()
    assert len(set(cluster.heights())) == 1
    cluster.assert_agreement()


def test_a_lone_replica_without_a_quorum_does_not_run_from_view_to_view():
    cluster = Cluster(4)
    cluster.work()
    cluster[3].fire("view")
    cluster.run()
    assert "view" not in cluster[3].timers
    cluster[2].fire("view")
    cluster.run()  # f+1: all join
    assert {m.replica.view for m in cluster.members} == {1}


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


def cluster_is_together(cluster):
    states = [m.replica._state for m in cluster.members]
    return len({s.view for s in states}) == 1 and all(s.active for s in states)


def test_two_tales_about_one_view_change_are_evidence():
    cluster, replica = lone()
    receive(cluster, replica, change(3, view=4))
    effects = receive(cluster, replica, change(3, prepared(0, 1, A), view=4))
    [evidence] = only(effects, Evidence)
    assert {type(evidence.first), type(evidence.second)} == {ViewChange}
    assert not only(receive(cluster, replica, change(3, prepared(0, 2, A), view=4)), Evidence)


def test_a_view_change_is_repeated_word_for_word():
    cluster = Cluster(4)
    cluster.work()
    cluster[3].fire("view")
    cluster.commit("meanwhile")
    for _ in range(3):
        cluster[3].fire("resend")
    messages = cluster[3].sent_of(ViewChange)
    assert len(messages) >= 3
    assert len(set(messages)) == 1


def test_a_lone_replica_is_silent_while_nothing_is_to_do():
    cluster = Cluster(4)
    cluster[3].step(PrimarySuspected(0))
    cluster.settle(3)
    assert all(member.timers == {} for member in cluster.members)
    cluster.work()
    assert "resend" in cluster[3].timers


def test_a_lost_new_view_is_sent_again():
    cluster = Cluster(4)
    cluster.propose("a")
    cluster.answer_locally()
    cluster.work()
    cluster.dropped = lambda letter: isinstance(letter.message, NewView) and letter.to == 2
    cluster.run()
    cluster.crash(0)
    cluster.fire("view")
    cluster.run()
    assert not cluster[2].replica._state.active
    cluster.dropped = lambda letter: False
    cluster.settle(4)
    assert cluster[2].replica._state.active
    cluster.commit("b")
    assert len(set(cluster.heights()[1:])) == 1


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
