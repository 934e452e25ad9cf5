"""One height after another in one view (requirements 2, 6 to 10, 21, 28, 43)."""

import itertools
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consensus.effects import (
    Broadcast,
    CancelTimer,
    Evidence,
    Execute,
    NeedSync,
    ObtainPayload,
    Persist,
    SetTimer,
    Stable,
)
from consensus.errors import InvariantViolation
from consensus.inputs import (
    Executed,
    PayloadReady,
    PayloadRefused,
    Propose,
    TimerFired,
    WorkPending,
)
from consensus.messages import NULL_DIGEST, Commit, Prepare, PrePrepare, Seal, ViewChange
from consensus.options import Options
from tests.consensus.cluster import Cluster, digest, signed_by
from tests.consensus.solo import Solo, only, votes

D, OTHER = digest("batch"), digest("other batch")


def test_a_backup_obtains_the_batch_before_it_votes():
    solo = Solo()
    effects = solo.receive(PrePrepare(0, 1, D, 0))
    assert only(effects, ObtainPayload) == [ObtainPayload(1, D, True)]
    assert not votes(effects, Prepare)
    effects = solo.step(PayloadReady(1, D))
    [prepare] = votes(effects, Prepare)
    assert (prepare.view, prepare.height, prepare.digest, prepare.sender) == (0, 1, D, 1)
    persisted = next(i for i, e in enumerate(effects) if isinstance(e, Persist))
    assert persisted < effects.index(Broadcast(prepare))


def test_the_batch_of_another_digest_does_not_count():
    solo = Solo()
    solo.receive(PrePrepare(0, 1, D, 0))
    assert not votes(solo.step(PayloadReady(1, OTHER)), Prepare)
    assert not votes(solo.step(PayloadReady(2, D)), Prepare)


def test_no_commit_without_the_batch_however_many_prepare():
    solo = Solo()
    solo.receive(PrePrepare(0, 1, D, 0))
    assert not votes(solo.prepare(senders=(2, 3)), Commit)
    effects = solo.step(PayloadReady(1, D))
    assert votes(effects, Prepare)
    assert votes(effects, Commit)


def test_a_primary_proposes_without_obtaining_and_sends_no_prepare():
    solo = Solo(index=0)
    effects = solo.step(Propose(D))
    assert [type(e) for e in effects[:2]] == [Persist, Broadcast]
    assert votes(effects, PrePrepare)
    assert not only(effects, ObtainPayload)
    assert not votes(effects, Prepare)


def test_commit_follows_a_durable_prepared_certificate():
    solo = Solo()
    solo.accept()
    effects = solo.prepare()
    [commit] = votes(effects, Commit)
    assert isinstance(effects[effects.index(Broadcast(commit)) - 1], Persist)


def test_execution_follows_a_quorum_of_commits_and_the_seal_follows_execution():
    solo = Solo()
    solo.accept()
    solo.prepare()
    assert not only(solo.commit(senders=(0,)), Execute)
    assert only(solo.commit(senders=(2,)), Execute) == [Execute(1, D)]
    header = digest("header")
    effects = solo.step(Executed(1, header))
    [seal] = votes(effects, Seal)
    assert (seal.height, seal.header) == (1, header)
    assert not only(effects, Persist)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 10])
def test_all_sizes_order_execute_and_seal(n):
    cluster = Cluster(n)
    cluster.commit("a", "b", "c")
    assert cluster.heights() == [3] * n
    assert {m.replica.low for m in cluster.members} == {3}
    assert all(m.wal == {} for m in cluster.members)
    cluster.assert_agreement()


def test_a_single_validator_decides_at_once():
    effects = Cluster(1)[0].replica.step(Propose(D))
    kinds = [type(e.message) if isinstance(e, Broadcast) else type(e) for e in effects]
    assert kinds[:5] == [Persist, PrePrepare, Persist, Commit, Execute]


ONE_HEIGHT = [
    PrePrepare(0, 1, D, 0),
    Prepare(0, 1, D, 2),
    Prepare(0, 1, D, 3),
    Commit(0, 1, D, 0),
    Commit(0, 1, D, 2),
    Prepare(0, 1, OTHER, 0),
]


@given(st.permutations(ONE_HEIGHT[:5] * 2))
@settings(max_examples=200, deadline=None)
def test_any_order_with_duplicates_commits_and_executes_once(order):
    solo = Solo()
    effects = solo.step(PayloadReady(1, D))
    for message in order:
        effects += solo.receive(message)
        if ObtainPayload(1, D, True) in effects or ObtainPayload(1, D, False) in effects:
            effects += solo.step(PayloadReady(1, D))
    assert len(votes(effects, Prepare)) == 1
    assert len(votes(effects, Commit)) == 1
    assert only(effects, Execute) == [Execute(1, D)]
    assert not only(effects, Evidence)


def test_duplicates_never_raise_a_tally():
    solo = Solo(n=7)  # quorum 5: four matching prepares, one's own counted
    solo.accept()
    assert not votes(solo.prepare(senders=(2, 2, 2, 2, 3)), Commit)
    assert votes(solo.prepare(senders=(4,)), Commit)
    assert not only(solo.commit(senders=(2, 2, 2, 3, 3, 4)), Execute)
    assert only(solo.commit(senders=(5,)), Execute)


def test_only_the_accepted_digest_counts():
    solo = Solo(n=7)
    solo.accept()
    assert not votes(solo.prepare(batch=OTHER, senders=(2, 3, 4, 5, 6)), Commit)
    assert not only(solo.commit(senders=(0, 2)), Execute)


def test_commits_for_two_digests_never_add_up():
    solo = Solo(n=7)
    solo.accept()
    solo.prepare(senders=(2, 3, 4))
    assert not only(solo.commit(batch=OTHER, senders=(3, 4, 5)), Execute)
    assert not only(solo.commit(senders=(0, 2)), Execute)
    assert only(solo.commit(senders=(6,)), Execute) == []
    assert not only(solo.commit(view=1, senders=(3, 4)), Execute)


def test_commits_of_two_views_never_add_up():
    solo = Solo(n=7)
    solo.step(PayloadReady(1, D))
    for sender, view in ((0, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 1)):
        assert not only(solo.commit(view=view, senders=(sender,)), Execute)


def test_a_second_proposal_gets_no_vote_and_is_evidence():
    """Requirement 7."""
    solo = Solo()
    solo.accept()
    effects = solo.receive(PrePrepare(0, 1, OTHER, 0))
    [evidence] = only(effects, Evidence)
    assert (evidence.first.digest, evidence.second.digest) == (D, OTHER)
    assert all(m.signature for m in (evidence.first, evidence.second))
    assert not votes(effects + solo.step(PayloadReady(1, OTHER)), Prepare)
    assert not only(solo.receive(PrePrepare(0, 1, digest(3), 0)), Evidence)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Prepare(0, 1, D, 2), Prepare(0, 1, OTHER, 2)),
        (Commit(0, 1, D, 2), Commit(0, 1, OTHER, 2)),
        (Seal(1, D, 2), Seal(1, OTHER, 2)),
    ],
)
def test_two_votes_of_one_validator_are_evidence_once(first, second):
    """Requirement 43: both messages are there, signed, for anyone to check."""
    solo = Solo()
    assert not only(solo.receive(first) + solo.receive(first), Evidence)
    [evidence] = only(solo.receive(second), Evidence)
    assert (evidence.first, evidence.second) == (
        signed_by(solo.validators, first),
        signed_by(solo.validators, second),
    )
    assert not only(solo.receive(second) + solo.receive(first), Evidence)


def test_honest_replicas_give_no_evidence_whatever_happens():
    cluster = Cluster(4)
    for round_ in range(6):
        cluster.work()
        cluster.commit(*range(3))
        cluster.fire("view")
        cluster.settle()
        cluster.crash(round_ % 4)
        cluster[round_ % 4].start()
        cluster.settle()
    assert not any(member.all_of(Evidence) for member in cluster.members)


def test_several_heights_are_in_flight_in_any_order():
    solo = Solo()
    for height in (3, 1, 2):
        assert votes(solo.accept(height, digest(height)), Prepare)


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_execution_is_strictly_height_by_height(order):
    """Requirement 9."""
    solo = Solo()
    effects = [e for h in order for e in solo.decide(h, digest(h))]
    assert only(effects, Execute) == [Execute(1, digest(1))]
    for height in (1, 2, 3):
        effects = solo.step(Executed(height, digest(("header", height))))
        expected = [Execute(height + 1, digest(height + 1))] if height < 3 else []
        assert only(effects, Execute) == expected


def test_one_execution_at_a_time_and_a_repeated_answer_is_a_no_op():
    solo = Solo()
    solo.decide(1, digest(1))
    assert not only(solo.decide(2, digest(2)), Execute)
    assert only(solo.step(Executed(1, D)), Execute)
    assert solo.step(Executed(1, D)) == []
    with pytest.raises(InvariantViolation):
        solo.step(Executed(5, D))


def test_a_decision_without_the_batch_waits_for_it():
    solo = Solo()
    effects = solo.commit(senders=(0, 2, 3))
    assert only(effects, ObtainPayload) == [ObtainPayload(1, D, False)]
    assert not only(effects, Execute)
    assert only(solo.step(PayloadReady(1, D)), Execute) == [Execute(1, D)]


def test_a_stricter_question_is_asked_again_once_the_height_is_decided():
    solo = Solo()
    solo.receive(PrePrepare(0, 1, D, 0))
    effects = solo.commit(senders=(0, 2, 3))
    assert only(effects, ObtainPayload) == [ObtainPayload(1, D, False)]
    effects = solo.step(PayloadRefused(1, D))  # the answer to the first question: too old
    assert only(effects, ObtainPayload) == [ObtainPayload(1, D, False)]
    assert not votes(effects, ViewChange)
    assert only(solo.step(PayloadReady(1, D)), Execute)


def test_a_committed_batch_that_is_refused_stops_the_node():
    solo = Solo()
    solo.commit(senders=(0, 2, 3))
    solo.step(PayloadRefused(1, D))
    assert "finds invalid" in solo.replica.halted
    assert solo.decide(2) == []


def test_an_invalid_proposal_costs_one_view_change_and_no_more():
    """Requirement 10."""
    solo = Solo()
    solo.receive(PrePrepare(0, 1, D, 0))
    [view_change] = votes(solo.step(PayloadRefused(1, D)), ViewChange)
    assert view_change.view == 1
    for height in range(1, 30):
        effects = solo.receive(PrePrepare(0, height, digest(height), 0))
        effects += solo.step(PayloadRefused(height, digest(height)))
        assert not only(effects, ObtainPayload)
        assert not votes(effects, ViewChange)


def test_a_null_block_is_never_proposed_alone():
    solo = Solo()
    assert solo.receive(PrePrepare(0, 1, NULL_DIGEST, 0)) == []
    with pytest.raises(ValueError, match="not all zero"):
        Solo(index=0).step(Propose(NULL_DIGEST))


def test_a_primary_keeps_to_its_window_and_to_what_may_be_in_flight():
    options = Options(window=6, in_flight_max=4)
    solo = Solo(index=0, options=options)
    proposed = []
    while solo.replica.can_propose:
        proposed.append(solo.replica.next_height)
        solo.step(Propose(digest(len(proposed))))
    assert proposed == [1, 2, 3, 4]
    assert solo.step(Propose(D)) == []
    for height in (1, 2):
        for sender in (1, 2):
            solo.receive(Prepare(0, height, digest(height), sender))
            solo.receive(Commit(0, height, digest(height), sender))
    while solo.replica.can_propose:
        proposed.append(solo.replica.next_height)
        solo.step(Propose(digest(len(proposed))))
    assert proposed == [1, 2, 3, 4, 5, 6]
    assert not solo.replica.can_propose  # height 7 is above the high watermark


def test_a_backup_cannot_propose():
    solo = Solo()
    assert not solo.replica.can_propose
    assert solo.step(Propose(D)) == []


def test_messages_above_the_window_are_kept_and_used_when_it_moves():
    options = Options(window=2, in_flight_max=2)
    cluster = Cluster(4, options)
    held = []
    cluster.dropped = lambda letter: (
        letter.to == 3 and isinstance(letter.message, Seal) and not held.append(letter)
    )
    cluster.commit("a", "b")
    assert cluster[3].replica.low == 0
    cluster.propose("c")
    cluster.run()
    assert cluster.heights() == [3, 3, 3, 2]
    cluster.dropped = lambda letter: False
    cluster.letters.extend(letter for letter in held if letter.message.height <= 2)
    cluster.run()
    assert cluster.heights() == [3, 3, 3, 3]
    cluster.assert_agreement()


def test_a_flooding_validator_fills_only_its_own_bounded_buffer():
    """Requirement 28."""
    options = Options(window=8, buffered_per_sender_max=20)
    solo = Solo(options=options)
    for view in range(1, 2000):
        solo.receive(Prepare(view, 1 + view % 40, digest(view), 2))
        solo.receive(Commit(view, 1 + view % 40, digest(view), 2))
        solo.receive(Seal(1 + view % 40, digest(view), 2))
    state = solo.replica._state
    assert len(state.buffer) <= 20
    assert len(state.slots) <= 8
    assert all(len(slot.commits.counts) <= 1 for slot in state.slots.values())
    assert solo.replica.view == 0
    solo.receive(Prepare(1, 1, D, 3))
    assert solo.replica.view == 1  # the other validator's message was kept all the same


def test_messages_far_above_every_bound_are_not_even_verified():
    solo = Solo()
    assert not solo.replica.is_relevant(Prepare(0, 10_000, D, 2, b""))
    assert not solo.replica.is_relevant(PrePrepare(0, 10_000, D, 0, b""))


def test_late_votes_need_no_verification():
    solo = Solo(n=4)
    solo.accept()
    relevant = solo.replica.is_relevant
    assert relevant(Prepare(0, 1, D, 2))
    solo.prepare(senders=(2,))
    assert not relevant(Prepare(0, 1, D, 2))
    assert not relevant(Prepare(0, 1, D, 3))
    assert relevant(Commit(0, 1, D, 3))
    solo.commit(senders=(0, 2))
    assert not relevant(Commit(0, 1, D, 3))
    assert not relevant(PrePrepare(0, 1, D, 0))
    assert relevant(PrePrepare(0, 1, OTHER, 0))
    solo.step(Executed(1, D))
    solo.receive(Seal(1, D, 0))
    assert not relevant(Seal(1, D, 0))
    assert relevant(Seal(1, D, 2))


def test_asking_what_is_relevant_changes_nothing():
    with_questions, without = Cluster(4), Cluster(4)
    for cluster in (with_questions, without):
        cluster.work()
        for name in range(3):
            cluster.propose(name)
            while cluster.letters or cluster.local:
                cluster.answer_locally()
                if not cluster.letters:
                    break
                letter = cluster.letters.popleft()
                if cluster is with_questions:
                    for member in cluster.members:
                        member.replica.is_relevant(letter.message)
                cluster.deliver(letter)
    for a, b in zip(with_questions.members, without.members, strict=True):
        assert a.effects == b.effects


def test_equal_inputs_give_equal_effects():
    first, second = (Cluster(7) for _ in range(2))
    for cluster in (first, second):
        cluster.work()
        cluster.commit(*range(3))
        cluster.crash(0)
        cluster.fire("view")
        cluster.run()
        cluster.commit("after")
        cluster.settle()
    assert [m.effects for m in first.members] == [m.effects for m in second.members]


def test_the_view_timer_runs_only_while_something_waits():
    """Requirement 21."""
    solo = Solo()
    assert "view" not in solo.member.timers
    assert only(solo.step(WorkPending(True)), SetTimer) == [SetTimer("view", 2_000)]
    assert solo.step(WorkPending(True)) == []
    assert solo.step(WorkPending(False)) == [CancelTimer("view")]
    effects = solo.receive(PrePrepare(0, 1, D, 0))
    assert SetTimer("view", 2_000) in effects
    solo.step(PayloadReady(1, D))
    solo.prepare()
    solo.commit()
    assert CancelTimer("view") in solo.step(Executed(1, D))


def test_the_view_timer_starts_anew_with_each_execution_while_work_waits():
    solo = Solo()
    solo.step(WorkPending(True))
    effects = solo.decide(1)
    assert not [e for e in only(effects, SetTimer) if e.name == "view"]
    assert SetTimer("view", 2_000) in solo.step(Executed(1, D))


def test_nothing_is_sent_after_an_idle_period():
    """Requirement 45, as far as the core goes."""
    cluster = Cluster(4)
    cluster.commit(*range(5))
    cluster.settle(3)
    assert all(member.timers == {} for member in cluster.members)


def test_an_unknown_timer_is_the_callers_error():
    with pytest.raises(InvariantViolation):
        Solo().step(TimerFired("lunch"))


@pytest.mark.parametrize(
    "kind", [PrePrepare, Prepare, Commit, Seal], ids=lambda kind: kind.__name__
)
def test_any_kind_of_message_may_be_lost_once(kind):
    for receiver in range(4):
        cluster = Cluster(4)
        lost = set()

        def drop(letter, receiver=receiver, lost=lost):
            key = (letter.sender, letter.message)
            if letter.to != receiver or not isinstance(letter.message, kind) or key in lost:
                return False
            lost.add(key)
            return True

        cluster.dropped = drop
        cluster.commit("a", "b")
        cluster.settle()
        assert cluster.heights() == [2] * 4
        assert {m.replica.low for m in cluster.members} == {2}
        cluster.assert_agreement()
        assert all(member.timers == {} for member in cluster.members)


@given(st.integers(0, 2**32), st.sampled_from([2, 4, 5, 7]))
@example(6509, 4)
@example(216, 7)
@settings(max_examples=25, deadline=None)
def test_progress_under_random_loss_and_reordering(seed, n):
    random = Random(seed)
    cluster = Cluster(n)
    cluster.dropped = lambda letter: random.random() < 0.25
    for name in range(4):
        cluster.propose(name)
        for _ in range(30):
            random.shuffle(cluster.letters)
            cluster.run()
            if cluster[0].replica.executed_height > name:
                break
            cluster.fire("resend")
    cluster.dropped = lambda letter: False
    cluster.settle()
    # Who lost every message of the last height cannot know of it, and the others have it sealed and
    # rest. The next one tells (in a node, also the heights that peers state).
    cluster.commit("last")
    cluster.settle()
    assert cluster.heights() == [5] * n
    cluster.assert_agreement()
    assert all(member.timers == {} for member in cluster.members)


def test_a_report_says_which_phase_waits_for_whom():
    cluster = Cluster(4)
    report = cluster[1].replica.phase_report
    assert report().phase == "idle"
    cluster.work()
    assert (report().phase, report().missing) == ("pre-prepare", (0,))
    cluster.crash(2)
    cluster.crash(3)
    cluster.propose("a")
    cluster.run()
    assert (report().phase, report().height, report().missing) == ("prepare", 1, (2, 3))
    assert report().view == 0
    assert report().primary == 0


def test_no_sync_is_asked_for_what_is_only_a_little_late():
    cluster = Cluster(4)
    cluster.commit(*range(10))
    assert not any(member.all_of(NeedSync) for member in cluster.members)
    assert [m.all_of(Stable)[-1].certificate.height for m in cluster.members] == [10] * 4
