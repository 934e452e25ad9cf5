"""One height after another in one view (requirements 2, 6 to 10, 21, 28, 43)."""

import itertools

import pytest
from hypothesis import given, settings
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
    MessageReceived,
    PayloadReady,
    PayloadRefused,
    Propose,
    TimerFired,
    WorkPending,
)
from consensus.messages import NULL_DIGEST, Commit, Prepare, PrePrepare, Seal, ViewChange
from consensus.options import Options
from tests.consensus.cluster import Cluster, digest, signed_by

D, OTHER = digest("batch"), digest("other batch")


class Bench:
    """One replica of four, alone with the test."""

    def __init__(self, index=1, n=4, options=None):
        self.cluster = Cluster(n, options)
        self.member = self.cluster[index]
        self.replica = self.member.replica
        self.validators = self.cluster.validators

    def receive(self, message):
        return self.replica.step(MessageReceived(signed_by(self.validators, message)))

    def step(self, happened):
        return self.replica.step(happened)

    def accept(self, height=1, batch=D, view=0):
        primary = self.validators.primary(view)
        effects = self.receive(PrePrepare(view, height, batch, primary))
        return effects + self.step(PayloadReady(height, batch))

    def prepare(self, height=1, batch=D, view=0, senders=(2,)):
        return [e for s in senders for e in self.receive(Prepare(view, height, batch, s))]

    def commit(self, height=1, batch=D, view=0, senders=(0, 2)):
        return [e for s in senders for e in self.receive(Commit(view, height, batch, s))]

    def decide(self, height, batch=D):
        return self.accept(height, batch) + self.prepare(height, batch) + self.commit(height, batch)


def votes(effects, kind):
    return [e.message for e in effects if isinstance(e, Broadcast) and isinstance(e.message, kind)]


def only(effects, kind):
    return [e for e in effects if isinstance(e, kind)]


def test_a_backup_obtains_the_batch_before_it_votes():
    bench = Bench()
    effects = bench.receive(PrePrepare(0, 1, D, 0))
    assert only(effects, ObtainPayload) == [ObtainPayload(1, D, True)]
    assert not votes(effects, Prepare)
    effects = bench.step(PayloadReady(1, D))
    [prepare] = votes(effects, Prepare)
    assert (prepare.view, prepare.height, prepare.digest, prepare.sender) == (0, 1, D, 1)
    persisted = next(i for i, e in enumerate(effects) if isinstance(e, Persist))
    assert persisted < effects.index(Broadcast(prepare))


def test_the_batch_of_another_digest_does_not_count():
    bench = Bench()
    bench.receive(PrePrepare(0, 1, D, 0))
    assert not votes(bench.step(PayloadReady(1, OTHER)), Prepare)
    assert not votes(bench.step(PayloadReady(2, D)), Prepare)


def test_no_commit_without_the_batch_however_many_prepare():
    bench = Bench()
    bench.receive(PrePrepare(0, 1, D, 0))
    assert not votes(bench.prepare(senders=(2, 3)), Commit)
    effects = bench.step(PayloadReady(1, D))
    assert votes(effects, Prepare)
    assert votes(effects, Commit)


def test_a_primary_proposes_without_obtaining_and_sends_no_prepare():
    bench = Bench(index=0)
    effects = bench.step(Propose(D))
    assert [type(e) for e in effects[:2]] == [Persist, Broadcast]
    assert votes(effects, PrePrepare)
    assert not only(effects, ObtainPayload)
    assert not votes(effects, Prepare)


def test_commit_follows_a_durable_prepared_certificate():
    bench = Bench()
    bench.accept()
    effects = bench.prepare()
    [commit] = votes(effects, Commit)
    assert isinstance(effects[effects.index(Broadcast(commit)) - 1], Persist)


def test_execution_follows_a_quorum_of_commits_and_the_seal_follows_execution():
    bench = Bench()
    bench.accept()
    bench.prepare()
    assert not only(bench.commit(senders=(0,)), Execute)
    assert only(bench.commit(senders=(2,)), Execute) == [Execute(1, D)]
    header = digest("header")
    effects = bench.step(Executed(1, header))
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
    bench = Bench()
    effects = bench.step(PayloadReady(1, D))
    for message in order:
        effects += bench.receive(message)
        if ObtainPayload(1, D, True) in effects or ObtainPayload(1, D, False) in effects:
            effects += bench.step(PayloadReady(1, D))
    assert len(votes(effects, Prepare)) == 1
    assert len(votes(effects, Commit)) == 1
    assert only(effects, Execute) == [Execute(1, D)]
    assert not only(effects, Evidence)


def test_duplicates_never_raise_a_tally():
    bench = Bench(n=7)  # quorum 5: four matching prepares, one's own counted
    bench.accept()
    assert not votes(bench.prepare(senders=(2, 2, 2, 2, 3)), Commit)
    assert votes(bench.prepare(senders=(4,)), Commit)
    assert not only(bench.commit(senders=(2, 2, 2, 3, 3, 4)), Execute)
    assert only(bench.commit(senders=(5,)), Execute)


def test_only_the_accepted_digest_counts():
    bench = Bench(n=7)
    bench.accept()
    assert not votes(bench.prepare(batch=OTHER, senders=(2, 3, 4, 5, 6)), Commit)
    assert not only(bench.commit(senders=(0, 2)), Execute)


def test_commits_for_two_digests_never_add_up():
    bench = Bench(n=7)
    bench.accept()
    bench.prepare(senders=(2, 3, 4))
    assert not only(bench.commit(batch=OTHER, senders=(3, 4, 5)), Execute)
    assert not only(bench.commit(senders=(0, 2)), Execute)
    assert only(bench.commit(senders=(6,)), Execute) == []
    assert not only(bench.commit(view=1, senders=(3, 4)), Execute)


def test_commits_of_two_views_never_add_up():
    bench = Bench(n=7)
    bench.step(PayloadReady(1, D))
    for sender, view in ((0, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 1)):
        assert not only(bench.commit(view=view, senders=(sender,)), Execute)


def test_a_second_proposal_gets_no_vote_and_is_evidence():
    """Requirement 7."""
    bench = Bench()
    bench.accept()
    effects = bench.receive(PrePrepare(0, 1, OTHER, 0))
    [evidence] = only(effects, Evidence)
    assert (evidence.first.digest, evidence.second.digest) == (D, OTHER)
    assert all(m.signature for m in (evidence.first, evidence.second))
    assert not votes(effects + bench.step(PayloadReady(1, OTHER)), Prepare)
    assert not only(bench.receive(PrePrepare(0, 1, digest(3), 0)), Evidence)


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
    bench = Bench()
    assert not only(bench.receive(first) + bench.receive(first), Evidence)
    [evidence] = only(bench.receive(second), Evidence)
    assert (evidence.first, evidence.second) == (
        signed_by(bench.validators, first),
        signed_by(bench.validators, second),
    )
    assert not only(bench.receive(second) + bench.receive(first), Evidence)


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
    bench = Bench()
    for height in (3, 1, 2):
        assert votes(bench.accept(height, digest(height)), Prepare)


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_execution_is_strictly_height_by_height(order):
    """Requirement 9."""
    bench = Bench()
    effects = [e for h in order for e in bench.decide(h, digest(h))]
    assert only(effects, Execute) == [Execute(1, digest(1))]
    for height in (1, 2, 3):
        effects = bench.step(Executed(height, digest(("header", height))))
        expected = [Execute(height + 1, digest(height + 1))] if height < 3 else []
        assert only(effects, Execute) == expected


def test_one_execution_at_a_time_and_a_repeated_answer_is_a_no_op():
    bench = Bench()
    bench.decide(1, digest(1))
    assert not only(bench.decide(2, digest(2)), Execute)
    assert only(bench.step(Executed(1, D)), Execute)
    assert bench.step(Executed(1, D)) == []
    with pytest.raises(InvariantViolation):
        bench.step(Executed(5, D))


def test_a_decision_without_the_batch_waits_for_it():
    bench = Bench()
    effects = bench.commit(senders=(0, 2, 3))
    assert only(effects, ObtainPayload) == [ObtainPayload(1, D, False)]
    assert not only(effects, Execute)
    assert only(bench.step(PayloadReady(1, D)), Execute) == [Execute(1, D)]


def test_a_stricter_question_is_asked_again_once_the_height_is_decided():
    bench = Bench()
    bench.receive(PrePrepare(0, 1, D, 0))
    effects = bench.commit(senders=(0, 2, 3))
    assert only(effects, ObtainPayload) == [ObtainPayload(1, D, False)]
    effects = bench.step(PayloadRefused(1, D))  # the answer to the first question: too old
    assert only(effects, ObtainPayload) == [ObtainPayload(1, D, False)]
    assert not votes(effects, ViewChange)
    assert only(bench.step(PayloadReady(1, D)), Execute)


def test_a_committed_batch_that_is_refused_stops_the_node():
    bench = Bench()
    bench.commit(senders=(0, 2, 3))
    bench.step(PayloadRefused(1, D))
    assert "finds invalid" in bench.replica.halted
    assert bench.decide(2) == []


def test_an_invalid_proposal_costs_one_view_change_and_no_more():
    """Requirement 10."""
    bench = Bench()
    bench.receive(PrePrepare(0, 1, D, 0))
    [view_change] = votes(bench.step(PayloadRefused(1, D)), ViewChange)
    assert view_change.view == 1
    for height in range(1, 30):
        effects = bench.receive(PrePrepare(0, height, digest(height), 0))
        effects += bench.step(PayloadRefused(height, digest(height)))
        assert not only(effects, ObtainPayload)
        assert not votes(effects, ViewChange)


def test_a_null_block_is_never_proposed_alone():
    bench = Bench()
    assert bench.receive(PrePrepare(0, 1, NULL_DIGEST, 0)) == []
    with pytest.raises(ValueError, match="not all zero"):
        Bench(index=0).step(Propose(NULL_DIGEST))


def test_a_primary_keeps_to_its_window_and_to_what_may_be_in_flight():
    options = Options(window=6, in_flight_max=4)
    bench = Bench(index=0, options=options)
    proposed = []
    while bench.replica.can_propose:
        proposed.append(bench.replica.next_height)
        bench.step(Propose(digest(len(proposed))))
    assert proposed == [1, 2, 3, 4]
    assert bench.step(Propose(D)) == []
    for height in (1, 2):
        for sender in (1, 2):
            bench.receive(Prepare(0, height, digest(height), sender))
            bench.receive(Commit(0, height, digest(height), sender))
    while bench.replica.can_propose:
        proposed.append(bench.replica.next_height)
        bench.step(Propose(digest(len(proposed))))
    assert proposed == [1, 2, 3, 4, 5, 6]
    assert not bench.replica.can_propose  # height 7 is above the high watermark


def test_a_backup_cannot_propose():
    bench = Bench()
    assert not bench.replica.can_propose
    assert bench.step(Propose(D)) == []


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
    bench = Bench(options=options)
    for view in range(1, 2000):
        bench.receive(Prepare(view, 1 + view % 40, digest(view), 2))
        bench.receive(Commit(view, 1 + view % 40, digest(view), 2))
        bench.receive(Seal(1 + view % 40, digest(view), 2))
    state = bench.replica._state
    assert len(state.buffer) <= 20
    assert len(state.slots) <= 8
    assert all(len(slot.commits.counts) <= 1 for slot in state.slots.values())
    assert bench.replica.view == 0
    bench.receive(Prepare(1, 1, D, 3))
    assert bench.replica.view == 1  # the other validator's message was kept all the same


def test_messages_far_above_every_bound_are_not_even_verified():
    bench = Bench()
    assert not bench.replica.is_relevant(Prepare(0, 10_000, D, 2, b""))
    assert not bench.replica.is_relevant(PrePrepare(0, 10_000, D, 0, b""))


def test_late_votes_need_no_verification():
    bench = Bench(n=4)
    bench.accept()
    relevant = bench.replica.is_relevant
    assert relevant(Prepare(0, 1, D, 2))
    bench.prepare(senders=(2,))
    assert not relevant(Prepare(0, 1, D, 2))
    assert not relevant(Prepare(0, 1, D, 3))
    assert relevant(Commit(0, 1, D, 3))
    bench.commit(senders=(0, 2))
    assert not relevant(Commit(0, 1, D, 3))
    assert not relevant(PrePrepare(0, 1, D, 0))
    assert relevant(PrePrepare(0, 1, OTHER, 0))
    bench.step(Executed(1, D))
    bench.receive(Seal(1, D, 0))
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
    bench = Bench()
    assert "view" not in bench.member.timers
    assert only(bench.step(WorkPending(True)), SetTimer) == [SetTimer("view", 2_000)]
    assert bench.step(WorkPending(True)) == []
    assert bench.step(WorkPending(False)) == [CancelTimer("view")]
    effects = bench.receive(PrePrepare(0, 1, D, 0))
    assert SetTimer("view", 2_000) in effects
    bench.step(PayloadReady(1, D))
    bench.prepare()
    bench.commit()
    assert CancelTimer("view") in bench.step(Executed(1, D))


def test_the_view_timer_starts_anew_with_each_execution_while_work_waits():
    bench = Bench()
    bench.step(WorkPending(True))
    effects = bench.decide(1)
    assert not [e for e in only(effects, SetTimer) if e.name == "view"]
    assert SetTimer("view", 2_000) in bench.step(Executed(1, D))


def test_nothing_is_sent_after_an_idle_period():
    """Requirement 45, as far as the core goes."""
    cluster = Cluster(4)
    cluster.commit(*range(5))
    cluster.settle(3)
    assert all(member.timers == {} for member in cluster.members)


def test_an_unknown_timer_is_the_callers_error():
    with pytest.raises(InvariantViolation):
        Bench().step(TimerFired("lunch"))


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


@given(st.randoms(use_true_random=False), st.sampled_from([2, 4, 5, 7]))
@settings(max_examples=25, deadline=None)
def test_progress_under_random_loss_and_reordering(random, n):
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
    assert cluster.heights() == [4] * n
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
