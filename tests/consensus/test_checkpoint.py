"""Seals, stability, the window, sync and validator changes (requirements 9, 31 to 33, 37 to 39)."""

import pytest

from consensus.effects import (
    CancelTimer,
    Evidence,
    Execute,
    Forget,
    Halt,
    NeedSync,
    Persist,
    Send,
    SetTimer,
    Stable,
)
from consensus.inputs import (
    Executed,
    MessageReceived,
    PayloadReady,
    Synced,
    TimerFired,
    WorkPending,
)
from consensus.messages import (
    Commit,
    Prepare,
    PrePrepare,
    Seal,
    SealCertificate,
)
from consensus.options import Options
from tests.consensus.cluster import (
    GENESIS,
    Cluster,
    digest,
    is_authentic,
    next_header,
    public_key,
)

D = digest("batch")


def header_of(height):
    header = GENESIS
    for h in range(1, height + 1):
        header = next_header(header, h, digest(h))
    return header


def alone(index=1, n=4, **options):
    cluster = Cluster(n, Options(**options))
    return cluster, cluster[index].replica


def receive(cluster, replica, *messages):
    effects = []
    for message in messages:
        signed = message if isinstance(message, SealCertificate) else cluster.signed(message)
        effects += replica.step(MessageReceived(signed))
    return effects


def decide(cluster, replica, *heights, execute=True):
    effects = []
    for h in heights:
        commits = (Commit(0, h, digest(h), s) for s in range(4) if s != replica.index)
        effects += receive(cluster, replica, *commits)
        effects += replica.step(PayloadReady(h, digest(h)))
        if execute:
            effects += replica.step(Executed(h, header_of(h)))
    return effects


def certificate(cluster, height, header=None, senders=(0, 2, 3)):
    header = header or header_of(height)
    seals = ((s, cluster.signed(Seal(height, header, s)).signature) for s in senders)
    return SealCertificate(height, header, tuple(seals))


def only(effects, kind):
    return [e for e in effects if isinstance(e, kind)]


def seals(height, senders, header=None):
    return [Seal(height, header or header_of(height), s) for s in senders]


def test_a_quorum_of_equal_seals_makes_a_height_stable():
    cluster, replica = alone()
    decide(cluster, replica, 1)
    assert not only(receive(cluster, replica, *seals(1, [0])), Stable)
    [stable] = only(receive(cluster, replica, *seals(1, [3])), Stable)
    assert stable.certificate == certificate(cluster, 1, senders=(0, 1, 3))
    assert is_authentic(stable.certificate, cluster.schedule)
    assert (replica.low, replica.high) == (1, 33)


def test_seals_that_come_before_the_execution_count_after_it():
    cluster, replica = alone()
    decide(cluster, replica, 1, execute=False)
    assert not only(receive(cluster, replica, *seals(1, [0, 2, 3])), Stable)
    assert only(replica.step(Executed(1, header_of(1))), Stable)
    assert replica.low == 1


def test_rows_are_forgotten_only_below_a_stable_height():
    """Requirement 31."""
    cluster, replica = alone()
    written = []
    for height in (1, 2, 3):
        effects = receive(cluster, replica, PrePrepare(0, height, digest(height), 0))
        effects += replica.step(PayloadReady(height, digest(height)))
        effects += receive(cluster, replica, Prepare(0, height, digest(height), 2))
        effects += decide(cluster, replica, height)
        assert not only(effects, Forget)
        written.append({e.key for e in only(effects, Persist)})
    assert all(len(keys) == 2 for keys in written)
    effects = receive(cluster, replica, *seals(2, [0, 3]))
    assert {e.key for e in only(effects, Forget)} == written[0] | written[1]
    assert set(replica._state.slots) == {3}


def test_a_seal_of_a_later_height_makes_the_earlier_ones_stable_too():
    cluster, replica = alone()
    decide(cluster, replica, 1, 2, 3)
    effects = receive(cluster, replica, *seals(3, [0, 2]))
    assert [e.certificate.height for e in only(effects, Stable)] == [3]
    assert replica.low == 3
    assert not only(receive(cluster, replica, *seals(2, [0, 2, 3])), Stable)


def test_two_seals_of_one_validator_count_once():
    cluster, replica = alone()
    decide(cluster, replica, 1)
    effects = receive(cluster, replica, *seals(1, [2, 2, 2]), *seals(1, [2], D))
    assert not only(effects, Stable)
    assert len(only(effects, Evidence)) == 1


def test_a_header_of_ones_own_against_a_quorum_stops_the_node():
    cluster, replica = alone()
    decide(cluster, replica, 1, execute=False)
    replica.step(Executed(1, digest("a flipped bit")))
    effects = receive(cluster, replica, *seals(1, [0, 2, 3]))
    [halt] = only(effects, Halt)
    assert "height 1" in halt.reason
    assert replica.halted == halt.reason
    assert replica.phase_report().phase == "halted"
    assert not replica.is_relevant(cluster.signed(Seal(1, D, 3)))
    assert replica.step(TimerFired("resend")) == []


def test_the_same_when_the_quorum_was_there_first():
    cluster, replica = alone()
    decide(cluster, replica, 1, execute=False)
    receive(cluster, replica, *seals(1, [0, 2, 3]))
    assert only(replica.step(Executed(1, digest("a flipped bit"))), Halt)
    assert replica.low == 0


def test_seals_that_can_no_longer_agree_stop_the_node():
    cluster, replica = alone()
    decide(cluster, replica, 1)
    assert not only(receive(cluster, replica, *seals(1, [0], D)), Halt)
    assert not only(receive(cluster, replica, *seals(1, [2], D)), Halt)
    assert only(receive(cluster, replica, *seals(1, [3])), Halt)  # two against two


def test_f_wrong_seals_stop_nobody():
    cluster, replica = alone(n=7)
    decide(cluster, replica, 1, execute=False)
    receive(cluster, replica, *(Commit(0, 1, digest(1), s) for s in (4, 5, 6)))
    replica.step(Executed(1, header_of(1)))
    effects = receive(cluster, replica, *seals(1, [0], D), *seals(1, [2], digest(5)))
    effects += receive(cluster, replica, *seals(1, [3, 4, 5]))
    assert not only(effects, Halt)
    assert not only(effects, Stable)
    assert only(receive(cluster, replica, *seals(1, [6])), Stable)


def test_execution_goes_on_to_the_high_watermark_and_stops_there_without_seals():
    cluster = Cluster(4, Options(window=3, in_flight_max=3))
    cluster.dropped = lambda letter: isinstance(letter.message, Seal)
    for name in range(3):
        cluster.commit(name)
    assert cluster.heights() == [3] * 4
    assert not any(m.replica.can_propose for m in cluster.members)
    cluster.dropped = lambda letter: False
    cluster.settle(3)
    cluster.commit("on")
    assert cluster.heights() == [4] * 4


# Being behind


def test_f_plus_1_validators_above_the_window_mean_that_a_sync_is_needed():
    cluster, replica = alone(window=8)
    assert not only(receive(cluster, replica, *seals(20, [0]), *seals(30, [0])), NeedSync)
    assert only(receive(cluster, replica, *seals(22, [2])), NeedSync) == [NeedSync(14)]
    assert not only(receive(cluster, replica, *seals(22, [3])), NeedSync)
    assert replica.phase_report().phase == "sync"


def test_one_validator_far_above_the_window_means_nothing():
    cluster, replica = alone(window=8)
    for height in (9, 100, 10**6, 2**50):
        effects = receive(cluster, replica, *seals(height, [3], D), Commit(0, height, D, 3))
        assert not only(effects, NeedSync)


def test_old_messages_above_a_window_that_moved_since_do_not_count():
    cluster, replica = alone(window=8)
    receive(cluster, replica, *seals(10, [0]))
    decide(cluster, replica, *range(1, 9))
    receive(cluster, replica, *seals(8, [0, 2]))
    assert replica.low == 8
    assert not only(receive(cluster, replica, *seals(40, [3])), NeedSync)


def test_a_sealed_height_inside_the_window_is_fetched_when_waiting_brings_nothing():
    cluster, replica = alone()
    effects = receive(cluster, replica, *seals(2, [0, 2, 3]))
    assert not only(effects, NeedSync)
    assert not only(replica.step(TimerFired("resend")), NeedSync)  # it may have come just now
    for _ in range(3):
        assert only(replica.step(TimerFired("resend")), NeedSync) == [NeedSync(2)]


def test_a_sealed_height_is_not_fetched_while_we_come_nearer():
    cluster, replica = alone()
    receive(cluster, replica, *seals(3, [0, 2, 3]))
    for height in (1, 2):
        decide(cluster, replica, height)
        assert not only(replica.step(TimerFired("resend")), NeedSync)
    decide(cluster, replica, 3)
    assert replica.low == 3
    assert not only(replica.step(TimerFired("resend")), NeedSync)


def test_a_certificate_beyond_the_window_is_enough():
    cluster, replica = alone()
    effects = receive(cluster, replica, certificate(cluster, 50))
    assert only(effects, NeedSync) == [NeedSync(50)]


def test_a_syncing_replica_does_not_vote_for_what_it_fetches():
    """Requirement 33."""
    cluster, replica = alone(window=8)
    receive(cluster, replica, *seals(16, [0]), *seals(16, [2]))
    effects = []
    for height in (7, 8):
        effects += receive(cluster, replica, PrePrepare(0, height, digest(height), 0))
        effects += replica.step(PayloadReady(height, digest(height)))
        effects += receive(cluster, replica, Prepare(0, height, digest(height), 2))
        effects += receive(cluster, replica, Prepare(0, height, digest(height), 3))
    sent = [e.message for e in effects if hasattr(e, "message")]
    assert sent == []
    effects = replica.step(Synced(certificate(cluster, 8)))
    effects += receive(cluster, replica, PrePrepare(0, 9, digest(9), 0))
    effects += replica.step(PayloadReady(9, digest(9)))
    assert [type(e.message) for e in effects if hasattr(e, "message")] == [Prepare]


def test_a_syncing_replica_asks_for_no_other_view():
    cluster, replica = alone(window=8)
    replica.step(WorkPending(True))
    effects = receive(cluster, replica, *seals(20, [0], D), *seals(20, [2], D))
    assert CancelTimer("view") in effects
    assert SetTimer("view", 2_000) in replica.step(Synced(certificate(cluster, 20)))


def test_sync_moves_execution_and_stability_and_goes_on_from_there():
    cluster, replica = alone(window=8)
    receive(cluster, replica, *seals(20, [0, 2]))
    effects = replica.step(Synced(certificate(cluster, 20)))
    assert (replica.executed_height, replica.low, replica.high) == (20, 20, 28)
    assert not only(effects, Execute)
    effects = decide(cluster, replica, 21)
    assert only(effects, Execute) == [Execute(21, digest(21))]


def test_decisions_above_the_synced_height_execute_at_once():
    """Requirement 37: decision first, sync later."""
    cluster, replica = alone()
    decide(cluster, replica, 2, 3, execute=False)
    effects = replica.step(Synced(certificate(cluster, 1)))
    assert only(effects, Execute) == [Execute(2, digest(2))]


def test_an_execution_that_sync_overtook_is_a_no_op():
    """Requirement 9."""
    cluster, replica = alone()
    decide(cluster, replica, 1, execute=False)
    replica.step(Synced(certificate(cluster, 5)))
    assert replica.step(Executed(1, header_of(1))) == []
    decide(cluster, replica, 6, execute=False)
    assert not only(replica.step(Executed(6, header_of(6))), Halt)
    assert replica.executed_height == 6


def test_a_sync_that_is_late_only_adds_stability():
    cluster, replica = alone()
    decide(cluster, replica, 1, 2, 3)
    replica.step(Synced(certificate(cluster, 2)))
    assert (replica.executed_height, replica.low) == (3, 2)
    replica.step(Synced(certificate(cluster, 1)))
    assert (replica.executed_height, replica.low) == (3, 2)


def test_a_sync_that_contradicts_ones_own_block_stops_the_node():
    cluster, replica = alone()
    decide(cluster, replica, 1, 2)
    assert only(replica.step(Synced(certificate(cluster, 2, D))), Halt)


def test_a_laggard_that_still_votes_gets_the_certificate_once_per_period():
    cluster, replica = alone()
    decide(cluster, replica, 1)
    receive(cluster, replica, *seals(1, [0, 2]))
    late = cluster.signed(Commit(0, 1, digest(1), 3))
    assert replica.is_relevant(late)
    [sent] = only(replica.step(MessageReceived(late)), Send)
    assert sent == Send(public_key(3), replica._state.stable)
    assert not replica.is_relevant(late)
    assert not only(replica.step(MessageReceived(late)), Send)
    replica.step(TimerFired("resend"))
    assert only(replica.step(MessageReceived(late)), Send)


def test_a_late_seal_is_no_question_but_a_repeated_one_is():
    cluster, replica = alone()
    decide(cluster, replica, 1)
    receive(cluster, replica, *seals(1, [0, 2]))
    assert not only(receive(cluster, replica, *seals(1, [3])), Send)
    assert only(receive(cluster, replica, *seals(1, [3])), Send)


@pytest.mark.parametrize("missed", [1, 3, 40])
def test_a_node_that_missed_heights_catches_up_by_itself(missed):
    """Requirement 38."""
    cluster = Cluster(4, Options(window=8))
    cluster.commit("first")
    cluster.crash(3)
    cluster.commit(*range(missed))
    cluster[3].start()
    cluster.commit("it hears of this one")
    cluster.settle()
    assert cluster.heights() == [missed + 2] * 4
    cluster.assert_agreement()
    cluster.crash(0)  # it votes again: the others cannot do without it
    cluster.work()
    cluster.fire("view")
    cluster.run()
    cluster.commit("with its vote")
    assert cluster.heights()[1:] == [missed + 3] * 3


def test_need_sync_is_repeated_only_by_the_resend_timer():
    cluster = Cluster(4, Options(window=8))
    cluster.sync_works = False
    cluster.crash(3)
    cluster.commit(*range(20))
    cluster[3].start()
    cluster.commit(*range(20, 30))
    first = cluster[3].all_of(NeedSync)
    assert len(first) == len(set(first))
    assert 0 < len(first) <= 12
    for _ in range(3):
        cluster.fire("resend")
        cluster.run()
    assert len(cluster[3].all_of(NeedSync)) == len(first) + 3
    cluster.sync_works = True
    cluster.settle()
    assert cluster.heights() == [30] * 4


def test_an_observer_follows_and_never_speaks():
    cluster = Cluster(4, observers=1)
    observer = cluster[4]
    cluster.commit(*range(50))
    cluster.work()
    cluster.fire("view")
    cluster.settle()
    assert observer.sent == []
    assert observer.replica.index is None
    assert observer.replica.executed_height == 50
    assert observer.replica._state.slots == {}
    assert not observer.replica.can_propose
    assert observer.replica.phase_report().phase == "observer"
    one = cluster.signed(Seal(99, D, 2))
    assert not only(observer.step(MessageReceived(one)), NeedSync)
