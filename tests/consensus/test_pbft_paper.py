"""One test per sentence of section 4 of the paper that says what a replica does.

Castro and Liskov, Practical Byzantine Fault Tolerance, OSDI 1999. The sentences are paraphrased;
"2f+1" reads "a quorum" here, because n need not be 3f+1. Where this design departs from the paper
the test says so.
"""

import pytest

from consensus.effects import (
    Broadcast,
    CancelTimer,
    Execute,
    Forget,
    NeedSync,
    ObtainPayload,
    Persist,
    SetTimer,
    Stable,
    ViewEntered,
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
    NULL_DIGEST,
    Commit,
    NewView,
    Prepare,
    PreparedCertificate,
    PrePrepare,
    Seal,
    SealCertificate,
    ViewChange,
)
from consensus.options import Options
from tests.consensus.cluster import GENESIS_CERTIFICATE, Cluster, digest, is_authentic
from tests.consensus.solo import Solo, only, votes

D, OTHER, HEADER = digest("batch"), digest("other"), digest("header")


def prepared(solo, view, height, batch, senders=(2, 3)):
    sign = solo.cluster.signed
    primary = solo.validators.primary(view)
    prepares = tuple((s, sign(Prepare(view, height, batch, s)).signature) for s in senders)
    return PreparedCertificate(sign(PrePrepare(view, height, batch, primary)), prepares)


def change(sender, *certificates, view=1, stable=GENESIS_CERTIFICATE):
    return ViewChange(view, stable, certificates, sender)


def sealed(solo, height, header=HEADER):
    sign = solo.cluster.signed
    signatures = tuple((s, sign(Seal(height, header, s)).signature) for s in (0, 2, 3))
    return SealCertificate(height, header, signatures)


def new_view(solo, changes, proposals, view=1):
    sign = solo.cluster.signed
    primary = solo.validators.primary(view)
    signed_votes = tuple(sign(PrePrepare(view, h, d, primary)) for h, d in proposals)
    return NewView(view, tuple(map(sign, changes)), signed_votes, primary)


# 4.1 and 4.2, the normal case


def test_4_1_the_primary_of_view_v_is_replica_v_mod_n():
    solo = Solo()
    assert [solo.validators.primary(v) for v in (0, 1, 5)] == [0, 1, 1]
    assert solo.replica.primary == 0


def test_4_2_the_primary_assigns_sequence_numbers_and_multicasts_pre_prepares():
    solo = Solo(index=0)
    sent = votes(solo.step(Propose(D)) + solo.step(Propose(OTHER)), PrePrepare)
    assert [(m.view, m.height, m.digest) for m in sent] == [(0, 1, D), (0, 2, OTHER)]


def test_4_2_the_pre_prepare_names_the_request_by_digest_only():
    assert set(PrePrepare.__slots__) == {"view", "height", "digest", "sender", "signature"}


def test_4_2_a_backup_accepts_a_pre_prepare_only_in_its_view():
    solo = Solo()
    assert not only(solo.receive(PrePrepare(1, 1, D, 1)), ObtainPayload)
    assert only(solo.receive(PrePrepare(0, 1, D, 0)), ObtainPayload)


def test_4_2_it_accepts_no_other_digest_for_the_same_view_and_number():
    solo = Solo()
    solo.receive(PrePrepare(0, 1, D, 0))
    assert not only(solo.receive(PrePrepare(0, 1, OTHER, 0)), ObtainPayload)


@pytest.mark.parametrize(("height", "accepted"), [(1, True), (8, True), (9, False)])
def test_4_2_the_number_must_lie_between_the_watermarks(height, accepted):
    solo = Solo(options=Options(window=8))
    assert bool(only(solo.receive(PrePrepare(0, height, D, 0)), ObtainPayload)) == accepted


def test_4_2_a_backup_that_accepts_multicasts_a_prepare_and_logs_both():
    solo = Solo()
    effects = solo.accept()
    assert [(m.view, m.height, m.digest) for m in votes(effects, Prepare)] == [(0, 1, D)]
    assert only(effects, Persist)


def test_4_2_otherwise_it_does_nothing():
    solo = Solo()
    assert solo.receive(PrePrepare(0, 99, D, 0)) == []


def test_4_2_prepares_of_another_view_or_outside_the_watermarks_do_not_count():
    solo = Solo(options=Options(window=8))
    solo.accept()
    assert not votes(solo.prepare(view=1, senders=(2,)), Commit)
    assert not votes(solo.prepare(height=9, senders=(2, 3)), Commit)


@pytest.mark.parametrize("n", [4, 7, 8, 10])
def test_4_2_prepared_needs_the_pre_prepare_and_matching_prepares_of_different_backups(n):
    solo = Solo(n=n)
    quorum = solo.validators.quorum
    backups = list(range(2, quorum))  # with our own prepare: quorum - 1
    solo.accept()
    assert not votes(solo.prepare(senders=backups[:-1] * 2), Commit)
    assert votes(solo.prepare(senders=backups[-1:]), Commit)


def test_4_2_prepares_without_the_pre_prepare_prepare_nothing():
    solo = Solo()
    solo.step(PayloadReady(1, D))
    assert not votes(solo.prepare(senders=(2, 3)), Commit)
    solo.receive(PrePrepare(0, 1, D, 0))
    assert votes(solo.step(PayloadReady(1, D)), Commit)


def test_4_2_a_replica_multicasts_a_commit_when_prepared_becomes_true():
    solo = Solo()
    solo.accept()
    [commit] = votes(solo.prepare(), Commit)
    assert (commit.view, commit.height, commit.digest) == (0, 1, D)


@pytest.mark.parametrize("n", [4, 7, 8, 10])
def test_4_2_committed_local_needs_a_quorum_of_commits_possibly_with_ones_own(n):
    solo = Solo(n=n)
    quorum = solo.validators.quorum
    solo.accept()
    solo.prepare(senders=range(2, quorum))
    others = [s for s in range(n) if s != 1]
    assert not only(solo.commit(senders=others[: quorum - 2]), Execute)
    assert only(solo.commit(senders=others[quorum - 2 : quorum - 1]), Execute) == [Execute(1, D)]


def test_4_2_it_executes_after_all_lower_numbers_are_executed():
    solo = Solo()
    assert not only(solo.decide(2, OTHER), Execute)
    assert only(solo.decide(1), Execute) == [Execute(1, D)]
    assert only(solo.step(Executed(1, HEADER)), Execute) == [Execute(2, OTHER)]


def test_4_2_messages_need_not_arrive_in_order():
    solo = Solo()
    solo.step(PayloadReady(1, D))
    effects = solo.commit(senders=(2,)) + solo.prepare(senders=(2,)) + solo.commit(senders=(0,))
    effects += solo.receive(PrePrepare(0, 1, D, 0))
    assert only(effects + solo.step(PayloadReady(1, D)), Execute) == [Execute(1, D)]


# 4.3, garbage collection


def test_4_3_a_replica_multicasts_a_checkpoint_with_the_digest_of_its_state():
    """Here: a seal over the executed block's header, at every height."""
    solo = Solo()
    solo.decide(1)
    assert [(s.height, s.header) for s in votes(solo.step(Executed(1, HEADER)), Seal)] == [
        (1, HEADER)
    ]


def test_4_3_a_quorum_of_equal_checkpoints_proves_it_stable():
    solo = Solo()
    solo.decide(1)
    solo.step(Executed(1, HEADER))
    assert not only(solo.receive(Seal(1, OTHER, 0)) + solo.receive(Seal(1, HEADER, 2)), Stable)
    [stable] = only(solo.receive(Seal(1, HEADER, 3)), Stable)
    assert is_authentic(stable.certificate, solo.cluster.schedule)


def test_4_3_it_discards_messages_up_to_a_stable_checkpoint_and_earlier_checkpoints():
    solo = Solo()
    solo.decide(1)
    solo.decide(2)
    solo.step(Executed(1, HEADER))
    solo.step(Executed(2, HEADER))
    effects = solo.receive(Seal(2, HEADER, 0)) + solo.receive(Seal(2, HEADER, 2))
    assert len(only(effects, Forget)) == 4
    assert solo.replica._state.slots == {}


def test_4_3_the_low_watermark_is_the_stable_checkpoint_and_the_high_one_k_above():
    solo = Solo(options=Options(window=8))
    assert (solo.replica.low, solo.replica.high) == (0, 8)
    solo.decide(1)
    solo.step(Executed(1, HEADER))
    for sender in (0, 2):
        solo.receive(Seal(1, HEADER, sender))
    assert (solo.replica.low, solo.replica.high) == (1, 9)


# 4.4, view changes


def test_4_4_the_timer_starts_with_a_request_if_it_is_not_running():
    solo = Solo()
    assert SetTimer("view", 2_000) in solo.step(WorkPending(True))
    effects = solo.receive(PrePrepare(0, 1, D, 0))
    assert not [e for e in only(effects, SetTimer) if e.name == "view"]


def test_4_4_it_stops_when_nothing_waits_and_restarts_when_something_else_does():
    solo = Solo()
    solo.step(WorkPending(True))
    solo.decide(1)
    assert SetTimer("view", 2_000) in solo.step(Executed(1, HEADER))
    solo.decide(2)
    solo.step(WorkPending(False))
    assert CancelTimer("view") in solo.step(Executed(2, HEADER))


def test_4_4_when_it_expires_the_backup_asks_for_the_next_view():
    solo = Solo()
    solo.step(WorkPending(True))
    [message] = votes(solo.step(TimerFired("view")), ViewChange)
    assert message.view == 1


def test_4_4_it_stops_accepting_normal_messages():
    """Departure: Commits still count towards a decision, which proves itself in any view."""
    solo = Solo()
    solo.step(WorkPending(True))
    solo.step(TimerFired("view"))
    effects = solo.accept() + solo.prepare(senders=(2, 3))
    assert not [e for e in effects if isinstance(e, Broadcast | ObtainPayload)]
    assert only(solo.commit(senders=(0, 2, 3)), ObtainPayload) == [ObtainPayload(1, D, False)]
    assert only(solo.step(PayloadReady(1, D)), Execute)


def test_4_4_checkpoints_and_view_changes_are_accepted_all_the_same():
    solo = Solo()
    solo.decide(1)
    solo.step(Executed(1, HEADER))
    solo.step(WorkPending(True))
    solo.step(TimerFired("view"))
    assert only(solo.receive(Seal(1, HEADER, 0)) + solo.receive(Seal(1, HEADER, 2)), Stable)


def test_4_4_a_view_change_holds_the_stable_checkpoint_with_proof_and_what_prepared_above():
    solo = Solo()
    solo.decide(1)
    solo.step(Executed(1, HEADER))
    for sender in (0, 2):
        solo.receive(Seal(1, HEADER, sender))
    solo.accept(2)
    solo.prepare(2)
    solo.accept(3)
    solo.step(WorkPending(True))
    [message] = votes(solo.step(TimerFired("view")), ViewChange)
    assert (message.stable.height, len(message.stable.seals)) == (1, 3)
    assert [c.pre_prepare.height for c in message.prepared] == [2]
    assert is_authentic(message, solo.cluster.schedule)


def test_4_4_the_new_primary_multicasts_a_new_view_on_a_quorum_with_its_own():
    solo = Solo()
    solo.step(WorkPending(True))
    solo.step(TimerFired("view"))
    assert not votes(solo.receive(change(2)), NewView)
    assert not votes(solo.receive(change(2)), NewView)
    [message] = votes(solo.receive(change(3)), NewView)
    assert [v.sender for v in message.view_changes] == [1, 2, 3]


def test_4_4_min_s_is_the_latest_stable_checkpoint_and_max_s_the_highest_prepared():
    solo = Solo()
    solo.step(WorkPending(True))
    solo.step(TimerFired("view"))
    solo.receive(change(2, prepared(solo, 0, 6, D), stable=sealed(solo, 4)))
    [message] = votes(solo.receive(change(3, prepared(solo, 0, 3, OTHER))), NewView)
    assert [(v.height, v.digest) for v in message.pre_prepares] == [(5, NULL_DIGEST), (6, D)]


def test_4_4_a_number_prepared_by_someone_gets_the_digest_of_the_highest_view():
    solo = Solo(index=3)
    changes = [
        change(0, prepared(solo, 0, 1, OTHER), view=3),
        change(1, prepared(solo, 2, 1, D, (0, 1)), view=3),
    ]
    for message in changes:  # f+1 ask for view 3: it joins them
        effects = solo.receive(message)
    [message] = votes(effects, NewView)
    assert [v.digest for v in message.pre_prepares] == [D]


def test_4_4_a_number_prepared_by_nobody_gets_the_null_request_which_is_a_no_op():
    solo = Solo(index=2)
    proposals = [(1, NULL_DIGEST), (2, D)]
    changes = [change(s, prepared(solo, 0, 2, D, (1, 3))) for s in (0, 1, 3)]
    effects = solo.receive(new_view(solo, changes, proposals))
    assert [m.height for m in votes(effects, Prepare)] == [1]
    effects = solo.prepare(1, NULL_DIGEST, 1, (0, 3))
    effects += solo.commit(1, NULL_DIGEST, 1, (0, 1, 3))
    assert only(effects, Execute) == [Execute(1, NULL_DIGEST)]


def test_4_4_a_primary_behind_min_s_fetches_the_state():
    solo = Solo(options=Options(window=8))
    solo.step(WorkPending(True))
    solo.step(TimerFired("view"))
    effects = solo.receive(change(2, stable=sealed(solo, 12))) + solo.receive(change(3))
    assert votes(effects, NewView)
    assert only(effects, NeedSync) == [NeedSync(12)]
    assert not solo.replica.can_propose


def test_4_4_a_backup_accepts_a_new_view_that_it_derives_too_and_prepares_its_messages():
    solo = Solo(index=2)
    changes = [change(s, prepared(solo, 0, 1, D, (1, 3))) for s in (0, 1, 3)]
    effects = solo.receive(new_view(solo, changes, [(1, D)]))
    assert ViewEntered(1) in effects
    effects += solo.step(PayloadReady(1, D))
    assert [(m.view, m.height, m.digest) for m in votes(effects, Prepare)] == [(1, 1, D)]


def test_4_4_it_refuses_one_that_it_derives_differently():
    solo = Solo(index=2)
    changes = [change(s, prepared(solo, 0, 1, D, (1, 3))) for s in (0, 1, 3)]
    effects = solo.receive(new_view(solo, changes, [(1, OTHER)]))
    assert not only(effects, ViewEntered)
    assert [m.view for m in votes(effects, ViewChange)] == [2]


def test_4_4_replicas_redo_the_protocol_but_do_not_execute_again():
    solo = Solo(index=2)
    solo.receive(PrePrepare(0, 1, D, 0))
    solo.step(PayloadReady(1, D))
    solo.prepare(senders=(1, 3))
    solo.commit(senders=(0, 1))
    solo.step(Executed(1, HEADER))
    changes = [change(s, prepared(solo, 0, 1, D, (1, 3))) for s in (0, 1, 3)]
    effects = solo.receive(new_view(solo, changes, [(1, D)]))
    effects += solo.prepare(view=1, senders=(0, 3)) + solo.commit(view=1, senders=(0, 1, 3))
    assert votes(effects, Prepare)
    assert votes(effects, Commit)
    assert not only(effects, Execute)


def test_4_4_a_missing_request_is_obtained_from_another_replica():
    solo = Solo(index=2)
    changes = [change(s, prepared(solo, 0, 1, D, (1, 3))) for s in (0, 1, 3)]
    effects = solo.receive(new_view(solo, changes, [(1, D)]))
    assert only(effects, ObtainPayload) == [ObtainPayload(1, D, False)]
    assert not votes(effects, Prepare)


# 4.5.2, liveness


def test_4_5_2_the_timer_of_a_view_change_waits_for_a_quorum_and_doubles():
    solo = Solo(index=3)
    solo.step(WorkPending(True))
    effects = solo.step(TimerFired("view")) + solo.receive(change(0))
    assert not [e for e in only(effects, SetTimer) if e.name == "view"]
    assert SetTimer("view", 4_000) in solo.receive(change(2))
    assert [m.view for m in votes(solo.step(TimerFired("view")), ViewChange)] == [2]
    effects = solo.receive(change(0, view=2)) + solo.receive(change(2, view=2))
    assert SetTimer("view", 8_000) in effects


def test_4_5_2_f_plus_1_view_changes_are_joined_before_the_timer_fires():
    solo = Solo()
    assert not votes(solo.receive(change(0, view=3)), ViewChange)
    [message] = votes(solo.receive(change(2, view=2)), ViewChange)
    assert message.view == 2  # the smallest view in the set


def test_4_5_2_f_faulty_replicas_cannot_force_view_changes():
    cluster = Cluster(7)
    replica = cluster[1].replica
    for view in range(1, 50):
        for faulty in (5, 6):
            replica.step(MessageReceived(cluster.signed(change(faulty, view=view))))
    assert replica.view == 0


def test_4_5_2_the_primary_of_one_view_cannot_hold_up_the_next():
    cluster = Cluster(4)
    cluster.dropped = lambda letter: (
        letter.sender == 0 and isinstance(letter.message, PrePrepare | NewView)
    )
    cluster.work()
    cluster.propose("never heard")
    cluster.run()
    cluster.fire("view", 1, 2, 3)
    cluster.run()
    cluster.commit("b")
    assert cluster.heights()[1:] == [1, 1, 1]
