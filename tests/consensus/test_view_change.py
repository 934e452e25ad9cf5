"""Leaving views and entering them (requirements 8, 12 to 16, 19, 21 to 25, 37, 43)."""

import pytest

from consensus import view_change as derivation
from consensus.effects import (
    Broadcast,
    Evidence,
    Execute,
    Halt,
    ObtainPayload,
    Persist,
    Send,
    Stable,
    ViewEntered,
)
from consensus.inputs import (
    Executed,
    MessageReceived,
    PayloadReady,
    PayloadRefused,
    PrimarySuspected,
    TimerFired,
    WorkPending,
)
from consensus.messages import (
    NULL_DIGEST,
    VIEW_MAX,
    Commit,
    NewView,
    Prepare,
    PrePrepare,
    Seal,
    ViewChange,
)
from tests.consensus.certificates import A, B, change, prepared
from tests.consensus.cluster import (
    GENESIS_CERTIFICATE,
    Cluster,
    digest,
    is_authentic,
    public_key,
    signed_by,
)
from tests.consensus.views import broadcasts, lone, only, receive


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


@pytest.mark.parametrize("batch", [A, NULL_DIGEST])
def test_a_primary_that_begins_one_view_twice_stops_nobody(batch):
    """Another quorum of ViewChanges leaves another digest, or a gap, where B was never committed
    before; the others committed B in that very view."""
    cluster, replica = lone(index=3)
    for sender in (0, 1, 2):
        receive(cluster, replica, Commit(1, 1, B, sender))
    held = [prepared(0, 1, A)] if batch == A else []
    changes = [change(s, *held, prepared(0, 2, A), view=1) for s in (0, 1, 2)]
    effects = replica.step(MessageReceived(new_view_of(cluster, 1, changes)))
    effects += replica.step(PayloadReady(2, A))
    assert not only(effects, Halt)
    assert only(effects, ViewEntered)
    assert [vote.height for vote in broadcasts(effects, Prepare)] == [2]
    assert only(replica.step(PayloadReady(1, B)), Execute) == [Execute(1, B)]


def test_a_new_view_of_several_stops_nobody_when_the_window_moves():
    cluster, replica = lone(index=3)
    changes = [change(s, prepared(0, 1, A), prepared(0, 3, A), view=1) for s in (0, 1, 2)]
    replica.step(MessageReceived(new_view_of(cluster, 1, changes)))  # height 2 is a gap
    for height, batch in ((1, A), (2, B)):
        replica.step(PayloadReady(height, batch))
        for sender in (0, 1, 2):
            receive(cluster, replica, Commit(1, height, batch, sender))
    effects = replica.step(Executed(1, digest("header")))
    for sender in (0, 1, 2):
        effects += receive(cluster, replica, Seal(1, digest("header"), sender))
    assert only(effects, Stable)
    assert not only(effects, Halt)
    assert Execute(2, B) in effects or ObtainPayload(2, B, False) in effects


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


def test_a_proposal_of_the_view_that_is_asked_for_waits_until_it_begins():
    """Requirement 8: what the new view carries over comes first."""
    cluster, replica = lone(index=2)
    replica.step(PrimarySuspected(0))
    assert replica.view == 1
    assert receive(cluster, replica, PrePrepare(1, 1, B, 1)) == []
    changes = [change(s, prepared(0, 1, A), view=1) for s in (0, 1, 3)]
    effects = replica.step(MessageReceived(new_view_of(cluster, 1, changes)))
    # The primary contradicts its own NewView: nobody votes for that, and it is on record.
    assert only(effects, ObtainPayload) == [ObtainPayload(1, A, False)]
    assert only(effects, Evidence)


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
    assert (sent.to, type(sent.message)) == (public_key(3), NewView)
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
