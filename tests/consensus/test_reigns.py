"""Validator sets that take over from one another (requirements 31, 34, 39, 42)."""

import pytest

from consensus.effects import Halt, NeedSync, Persist, Send, Stable
from consensus.errors import InvariantViolation
from consensus.inputs import MessageReceived, Propose
from consensus.messages import (
    Commit,
    Prepare,
    PrePrepare,
    Seal,
    SealCertificate,
    ViewChange,
    encode,
)
from consensus.options import Options
from consensus.validators import ValidatorSchedule
from consensus.wal import accepted_row
from tests.consensus.certificates import change
from tests.consensus.cluster import Cluster, digest, public_key, signed_by, validator_set
from tests.consensus.views import only

D = digest("batch")


def receive(cluster, replica, *messages):
    effects = []
    for message in messages:
        signed = message if isinstance(message, SealCertificate) else cluster.signed(message)
        effects += replica.step(MessageReceived(signed))
    return effects


def changing(height, first=(0, 1, 2, 3), second=(0, 1, 2, 3, 4), **options):
    schedule = ValidatorSchedule(validator_set(first))
    schedule.plan(height, validator_set(second))
    members = max(*first, *second) + 1
    return Cluster(members, Options(**options), schedule)


def test_the_window_ends_before_the_height_of_another_set():
    """Requirement 39."""
    cluster = changing(10)
    replica = cluster[1].replica
    assert (replica.low, replica.high) == (0, 9)
    effects = receive(cluster, replica, PrePrepare(0, 10, D, 0))
    assert effects == []
    cluster.commit(*range(9))
    assert (replica.low, replica.high) == (9, 41)


def test_a_new_set_orders_with_its_own_quorum_and_primaries():
    """Requirement 39: 4 validators (quorum 3) become 7 (quorum 5), among them three new ones."""
    cluster = changing(5, (0, 1, 2, 3), (6, 5, 4, 3, 2, 1, 0))
    assert [m.replica.index for m in cluster.members] == [0, 1, 2, 3, None, None, None]
    cluster.commit(*range(4))
    cluster.settle()
    assert [m.replica.index for m in cluster.members] == [6, 5, 4, 3, 2, 1, 0]
    assert cluster[6].replica.is_primary
    cluster.commit(*range(4, 9))
    assert cluster.heights() == [9] * 7
    assert {len(m.stable.seals) for m in cluster.members} == {5}
    cluster.assert_agreement()


def test_a_removed_validator_becomes_an_observer():
    cluster = changing(5, (0, 1, 2, 3, 4), (1, 2, 3, 4))
    cluster.commit(*range(4))
    assert cluster[0].replica.index is None
    cluster.commit(*range(4, 8))
    cluster.settle()
    assert cluster.heights() == [8] * 5
    assert not [v for v in cluster[0].sent if getattr(v, "height", 0) >= 5]
    cluster.assert_agreement()


def test_views_begin_anew_with_a_set_and_old_view_changes_do_not_matter():
    cluster = changing(5, second=(0, 1, 2, 3))
    cluster.work()
    cluster.fire("view")
    cluster.run()
    cluster.commit(1, 2, 3, 4)
    assert {m.replica.view for m in cluster.members} == {0}
    cluster.commit(5)
    assert cluster.heights() == [5] * 4
    cluster[2].start()  # its rows of the earlier reign are gone
    assert cluster[2].replica.view == 0


def test_rows_of_an_earlier_reign_are_ignored_after_a_restart():
    cluster = changing(3, second=(0, 1, 2, 3))
    cluster.work()
    cluster.fire("view")
    cluster.run()
    old = dict(cluster[2].wal)
    cluster.commit(1, 2)
    cluster[2].wal.update(old)  # Forget is lazy: it may not have reached the disk
    cluster[2].start()
    assert cluster[2].replica.view == 0
    assert not cluster[2].sent_of(ViewChange)[1:]
    cluster.commit(3, 4)
    assert cluster.heights() == [4] * 4


def test_a_node_that_missed_a_change_of_validators_follows_it():
    """Requirement 42."""
    cluster = changing(5, (0, 1, 2, 3), (0, 1, 2, 3, 4), window=4)
    cluster.crash(3)
    cluster.commit(*range(12))
    cluster[3].start()
    cluster.commit("heard of")
    cluster.settle()
    assert cluster.heights() == [13] * 5
    assert cluster[3].replica.index == 3
    cluster.assert_agreement()


def test_a_plan_made_while_running_cuts_the_next_window():
    cluster = Cluster(4, Options(window=4))
    cluster.commit("a")
    cluster.schedule.plan(9, validator_set([0, 1, 2, 3, 9]))
    for name in range(6):
        cluster.commit(name)
    assert {(m.replica.low, m.replica.high) for m in cluster.members} == {(7, 8)}
    cluster.commit("last of the old set")
    assert {(m.replica.low, m.replica.high) for m in cluster.members} == {(8, 12)}
    primary = next(m for m in cluster.members if m.replica.can_propose)
    primary.step(Propose(D))
    cluster.run()
    assert cluster.heights() == [9] * 4


def test_what_comes_early_from_the_next_set_waits_for_its_reign():
    cluster = changing(3, (0, 1, 2, 3), (3, 2, 1, 0))
    first = signed_by(cluster.schedule.at(3), PrePrepare(0, 3, D, 0))  # of member 3, the first now
    cluster.dropped = lambda letter: letter.to == 1 and isinstance(letter.message, Seal)
    cluster.commit(1, 2)
    slow = cluster[1]
    assert (slow.replica.low, slow.replica.executed_height) == (0, 2)
    assert slow.replica.is_relevant(first)
    slow.step(MessageReceived(first))
    assert not slow.sent_of(Prepare)[2:]
    cluster.dropped = lambda letter: False
    slow.step(MessageReceived(cluster[0].stable))
    cluster.answer_locally()
    [vote] = [v for v in slow.sent_of(Prepare) if v.height == 3]
    assert (vote.digest, vote.sender) == (D, 2)
    assert vote == signed_by(cluster.schedule.at(3), vote)


def test_answers_name_their_receiver_by_its_key():
    """The list of effects may be performed when another set reigns."""
    cluster = changing(3, (0, 1, 2, 3), (3, 2, 1, 0))
    cluster.commit(1, 2)
    late = signed_by(cluster.schedule.at(1), Commit(0, 1, digest(1), 3))
    [sent] = only(cluster[1].replica.step(MessageReceived(late)), Send)
    assert sent.to == public_key(3)


# Beyond what can be planned


def lagging(window=4):
    """A replica that executed nothing, and may know no set above height 2 * `window`."""
    cluster = Cluster(4, Options(window=window))
    return cluster, cluster[1].replica


def sealed(cluster, height, senders=(0, 2, 3), header=D):
    seals = ((s, cluster.signed(Seal(height, header, s)).signature) for s in senders)
    return SealCertificate(height, header, tuple(seals))


@pytest.mark.parametrize(
    ("known", "unknown"),
    [
        (Commit(0, 8, D, 2), Commit(0, 9, D, 2)),
        (Seal(8, D, 2), Seal(9, D, 2)),
        (SealCertificate(8, D, ()), SealCertificate(9, D, ())),
        (change(2, stable=7), change(2, stable=8)),
    ],
)
def test_signatures_are_judged_up_to_two_windows_above_what_was_executed(known, unknown):
    _, replica = lagging()
    assert replica.can_judge(known)
    assert not replica.can_judge(unknown)
    assert replica.is_relevant(unknown)  # it says that there is something to fetch


@pytest.mark.parametrize("message", [PrePrepare(0, 9, D, 0), Prepare(0, 9, D, 2)])
def test_votes_beyond_that_are_not_kept(message):
    _, replica = lagging()
    assert not replica.is_relevant(message)


def test_a_certificate_beyond_that_is_fetched_and_never_compared_with_our_own_block():
    cluster, replica = lagging()
    lie = sealed(cluster, 9)
    assert receive(cluster, replica, lie)[0] == NeedSync(9)
    assert not replica.is_relevant(lie)
    cluster.commit(*range(9))  # the others' way to height 9 ends in another header
    assert replica.executed_height == 9
    assert replica.halted is None
    assert not only(cluster[1].effects, Halt)


def test_a_view_change_beyond_that_joins_no_view():
    cluster, replica = lagging()
    for sender in (0, 2, 3):
        receive(cluster, replica, change(sender, view=5, stable=30))
    assert replica.view == 0


# Rows


def test_votes_of_the_next_set_without_the_end_of_the_last_stop_the_node():
    """What would be a vote of another validator, in another's name, must not be guessed at."""
    cluster = changing(3, (0, 1, 2, 3), (3, 2, 1, 0))
    cluster.commit(1)
    row = accepted_row(signed_by(cluster.schedule.at(3), PrePrepare(0, 3, D, 0)))
    cluster[2].wal[row.key] = row.value
    with pytest.raises(InvariantViolation, match="take over at height 3"):
        cluster[2].start()


def test_the_last_certificate_of_a_set_comes_before_the_first_row_of_the_next():
    cluster = changing(3, (0, 1, 2, 3), (3, 2, 1, 0))
    cluster.commit(1, 2, 3)
    for member in cluster.members:
        effects = member.effects
        end = next(
            i for i, e in enumerate(effects) if type(e) is Stable and e.certificate.height == 2
        )
        first = next(
            i
            for i, e in enumerate(effects)
            if type(e) is Persist and e.key.endswith((3).to_bytes(8, "big"))
        )
        assert end < first


def test_a_vote_in_the_first_height_of_a_set_binds_after_a_restart():
    cluster = changing(3, (0, 1, 2, 3), (3, 2, 1, 0))
    cluster.commit(1, 2)
    cluster.dropped = lambda letter: isinstance(letter.message, Commit)
    cluster.propose("first")
    cluster.run()
    before = cluster[2].sent_of(Commit)[-1]
    assert before.height == 3
    cluster[2].start()
    assert cluster[2].replica.index == 1
    assert cluster[2].replica.proposals() == {3: before.digest}
    cluster.dropped = lambda letter: False
    cluster.settle()
    assert cluster.heights() == [3] * 4
    assert {encode(v) for v in cluster[2].sent_of(Commit) if v.height == 3} == {encode(before)}
