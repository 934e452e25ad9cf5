"""Crashes at every persist and send boundary (requirements 20, 31, 33, 34, 43)."""

import pytest

from consensus.effects import Broadcast, Evidence, Execute, ObtainPayload, Persist, SetTimer
from consensus.errors import InvariantViolation
from consensus.inputs import (
    Executed,
    MessageReceived,
    PayloadReady,
    PrimarySuspected,
    Propose,
    TimerFired,
)
from consensus.messages import (
    Commit,
    NewView,
    Prepare,
    PrePrepare,
    Seal,
    SealCertificate,
    ViewChange,
    encode,
)
from consensus.wal import height_of, restore
from tests.consensus.cluster import GENESIS, GENESIS_CERTIFICATE, Cluster, digest

A, B = digest("a"), digest("b")


class Witness:
    """Every message that ever left a member, and whether two of them conflict."""

    def __init__(self, cluster):
        self.said = {}
        self.conflicts = []
        cluster.before_effect = self._see

    def _see(self, member, effect):
        if isinstance(effect, Broadcast):
            self.note(member.index, effect.message)

    def note(self, speaker, message):
        match message:
            case PrePrepare(view, height, what) | Prepare(view, height, what):
                key = (type(message), view, height)
            case Commit(view, height, what):
                key = (Commit, view, height)
            case Seal(height, what):
                key = (Seal, height)
            case ViewChange(view) | NewView(view):
                key, what = (type(message), view), message
        if self.said.setdefault((speaker, *key), what) != what:
            self.conflicts.append((speaker, key))


def crash_before(cluster, member_index, number):
    """Crash the member before its effect of this number."""
    seen = 0
    witness = Witness(cluster)
    see = cluster.before_effect

    def before(member, effect):
        nonlocal seen
        if member.index == member_index:
            seen += 1
            if seen == number:
                cluster.crash(member_index)
                return
        see(member, effect)

    cluster.before_effect = before
    return witness


def scenario(cluster, twist):
    """Three proposals, a view change in between, and another proposal for the same heights."""
    up = lambda: [m for m in cluster.members if m.up]  # noqa: E731
    for name in ("a", "b"):
        for member in up():
            if member.replica.can_propose:
                member.step(Propose(digest((name, twist))))
                break
        cluster.run()
    for member in up():
        member.step(PrimarySuspected(member.replica.view))
    cluster.run()
    for member in up():
        if member.replica.can_propose:
            member.step(Propose(digest(("c", twist))))
            break
    cluster.run()


def effects_in_a_run(member_index):
    cluster = Cluster(4)
    before = len(cluster[member_index].effects)
    scenario(cluster, 0)
    return len(cluster[member_index].effects) - before


@pytest.mark.parametrize("index", [0, 1, 3])
def test_a_crash_before_any_effect_leads_to_no_conflicting_vote(index):
    """Requirement 34: the old primary, the new one, a backup; and the others go on meanwhile."""
    for number in range(1, effects_in_a_run(index) + 1):
        cluster = Cluster(4)
        witness = crash_before(cluster, index, number)
        scenario(cluster, 1)
        assert not cluster[index].up
        cluster[index].start()
        cluster.run()
        scenario(cluster, 2)
        cluster.settle()
        assert witness.conflicts == [], number
        assert not any(member.all_of(Evidence) for member in cluster.members), number
        cluster.assert_agreement()
        if not any(m.replica.can_propose for m in cluster.members):
            cluster.work()
            cluster.fire("view")
            cluster.settle()
        cluster.commit("a last one")
        cluster.commit("for a primary that learned of a new view just now")
        cluster.settle()
        assert len(set(cluster.heights())) == 1, number


def test_the_witness_finds_a_replica_that_forgets():
    """The same scenario with the rows thrown away: the plan can fail."""
    found = False
    for number in range(1, effects_in_a_run(0) + 1):
        cluster = Cluster(4)
        witness = crash_before(cluster, 0, number)
        scenario(cluster, 1)
        cluster[0].wal.clear()
        cluster[0].start()
        scenario(cluster, 2)
        found = found or bool(witness.conflicts)
    assert found


def test_every_vote_is_preceded_by_its_row_in_the_same_list():
    cluster = Cluster(4)
    scenario(cluster, 0)
    for member in cluster.members:
        rows = {}
        for effect in member.effects:
            if isinstance(effect, Persist):
                rows.setdefault(effect.key[:1], set()).add(effect.value)
            elif isinstance(effect, Broadcast):
                _assert_durable(effect.message, rows)


def _assert_durable(message, rows):
    match message:
        case PrePrepare():
            assert encode(message) in rows[b"a"]
        case Prepare(view, height, batch):
            heads = [encode(PrePrepare(view, height, batch, s, b""))[:-2] for s in range(4)]
            assert any(row.startswith(h) for row in rows[b"a"] for h in heads)
        case ViewChange():
            assert encode(message) in rows[b"v"]
        case NewView():
            assert encode(message) in rows[b"n"]
        case Commit():
            assert b"p" in rows


class Restarter:
    """One replica of four whose disk outlives it."""

    def __init__(self, index=1):
        self.cluster = Cluster(4)
        self.index = index
        self.replica = self.cluster[index].replica
        self.wal = {}

    def step(self, happened):
        return self.keep(self.replica.step(happened))

    def keep(self, effects):
        for effect in effects:
            if isinstance(effect, Persist):
                self.wal[effect.key] = effect.value
        return effects

    def receive(self, *messages):
        effects = []
        for message in messages:
            effects += self.step(MessageReceived(self.cluster.signed(message)))
        return effects

    def restart(self, height=0, header=GENESIS):
        self.replica = self.cluster[self.index]._new_replica()
        return self.keep(self.replica.start(self.wal, height, header, GENESIS_CERTIFICATE))


def said(effects, kind):
    return [e.message for e in effects if isinstance(e, Broadcast) and isinstance(e.message, kind)]


def test_an_accepted_proposal_binds_after_a_restart():
    one = Restarter()
    one.receive(PrePrepare(0, 1, A, 0))
    [before] = said(one.step(PayloadReady(1, A)), Prepare)
    effects = one.restart()
    assert ObtainPayload(1, A, False) in effects
    effects = one.receive(PrePrepare(0, 1, B, 0))
    assert [type(e) for e in effects] == [Evidence]
    assert not said(one.step(PayloadReady(1, B)), Prepare)
    assert said(one.step(PayloadReady(1, A)), Prepare) == [before]


def test_a_proposal_that_was_not_voted_for_does_not_bind():
    one = Restarter()
    one.receive(PrePrepare(0, 1, A, 0))
    one.restart()
    one.receive(PrePrepare(0, 1, B, 0))
    assert said(one.step(PayloadReady(1, B)), Prepare)


def test_a_primary_goes_on_above_what_it_proposed():
    one = Restarter(index=0)
    one.step(Propose(A))
    one.step(Propose(B))
    effects = one.restart()
    assert one.replica.next_height == 3
    assert not said(effects, PrePrepare)
    for height, batch in ((1, A), (2, B)):
        one.step(PayloadReady(height, batch))
    effects = one.step(_resend()) + one.step(_resend())
    assert [(m.height, m.digest) for m in said(effects, PrePrepare)] == [(1, A), (2, B)]


def _resend():
    return TimerFired("resend")


def test_a_prepared_certificate_survives_and_is_carried_into_the_next_view():
    """Requirement 20."""
    one = Restarter()
    one.receive(PrePrepare(0, 1, A, 0))
    one.step(PayloadReady(1, A))
    [commit] = said(one.receive(Prepare(0, 1, A, 2)), Commit)
    one.restart()
    assert said(one.step(PayloadReady(1, A)), Commit) == [commit]
    one.restart()
    [message] = said(one.step(PrimarySuspected(0)), ViewChange)
    [certificate] = message.prepared
    assert (certificate.pre_prepare.digest, certificate.pre_prepare.view) == (A, 0)


def test_a_view_change_survives_word_for_word_and_keeps_its_promise():
    """Requirement 20."""
    one = Restarter()
    one.receive(PrePrepare(0, 1, A, 0))
    one.step(PayloadReady(1, A))
    [before] = said(one.step(PrimarySuspected(0)), ViewChange)
    assert said(one.restart(), ViewChange) == [before]
    assert one.replica.view == 1
    effects = one.receive(PrePrepare(0, 2, B, 0), Prepare(0, 1, A, 2), Prepare(0, 1, A, 3))
    effects += one.step(PayloadReady(1, A)) + one.step(PayloadReady(2, B))
    assert not said(effects, Prepare)
    assert not said(effects, Commit)


def test_the_view_survives_with_what_it_carried_over():
    one = Restarter()  # the primary of view 1
    one.receive(PrePrepare(0, 1, A, 0))
    one.step(PayloadReady(1, A))
    one.receive(Prepare(0, 1, A, 2))
    one.step(PrimarySuspected(0))
    changes = [ViewChange(1, GENESIS_CERTIFICATE, (), s) for s in (2, 3)]
    [new_view] = said(one.receive(*changes), NewView)
    effects = one.restart()
    assert (one.replica.view, one.replica.is_primary) == (1, True)
    assert one.replica.next_height == 2
    assert ObtainPayload(1, A, False) in effects
    one.step(PayloadReady(1, A))
    effects = one.step(_resend()) + one.step(_resend())
    assert said(effects, NewView) == [new_view]


def test_a_backup_comes_back_in_the_view_in_which_it_voted():
    one = Restarter(index=2)
    changes = tuple(
        one.cluster.signed(ViewChange(1, GENESIS_CERTIFICATE, (), s)) for s in (0, 1, 3)
    )
    one.receive(NewView(1, changes, (), 1))
    one.receive(PrePrepare(1, 1, A, 1))
    assert said(one.step(PayloadReady(1, A)), Prepare)
    one.restart()
    assert one.replica.view == 1
    effects = one.receive(PrePrepare(0, 1, B, 0), PrePrepare(0, 2, B, 0))
    assert not [e for e in effects if isinstance(e, ObtainPayload | Broadcast)]


def test_an_executed_batch_is_not_fetched_again():
    one = Restarter()
    one.restart(height=1, header=B)
    effects = one.receive(*(Commit(0, 1, A, s) for s in (0, 2, 3)))
    assert not [e for e in effects if isinstance(e, ObtainPayload | Execute)]


def test_an_executed_height_is_sealed_again_and_not_executed_again():
    """Requirement 9."""
    one = Restarter()
    one.receive(PrePrepare(0, 1, A, 0))
    one.step(PayloadReady(1, A))
    one.receive(Prepare(0, 1, A, 2), Commit(0, 1, A, 0), Commit(0, 1, A, 2))
    [before] = said(one.step(Executed(1, B)), Seal)
    effects = one.restart(height=1, header=B)
    assert said(effects, Seal) == [before]
    effects = one.step(PayloadReady(1, A))
    effects += one.receive(Commit(0, 1, A, 0), Commit(0, 1, A, 2), Commit(0, 1, A, 3))
    assert said(effects, Commit)
    assert not [e for e in effects if isinstance(e, Execute)]
    assert one.replica.next_height == 2


def test_a_crash_before_the_execution_executes_after_the_restart():
    cluster = Cluster(4)
    cluster.before_effect = lambda member, effect: (
        cluster.crash(2) if member.index == 2 and isinstance(effect, Execute) else None
    )
    cluster.commit("a")
    assert cluster.heights() == [1, 1, 0, 1]
    cluster.before_effect = None
    cluster[2].start()
    cluster.settle()
    assert cluster.heights() == [1] * 4
    cluster.assert_agreement()


def test_all_nodes_at_once_may_lose_power_at_any_delivery():
    for letters in range(0, 60, 2):
        cluster = Cluster(4)
        witness = Witness(cluster)
        cluster.propose("a")
        cluster.propose("b")
        for _ in range(letters):
            cluster.answer_locally()
            if cluster.letters:
                cluster.deliver(cluster.letters.popleft())
        done = max((m.blocks for m in cluster.members), key=len)
        done = list(done)
        for index in range(4):
            cluster.crash(index)
        cluster.letters.clear()
        for member in cluster.members:
            member.start()
        cluster.settle()
        cluster.commit("c")
        cluster.settle()
        assert len(set(cluster.heights())) == 1
        assert cluster[0].blocks[: len(done)] == done
        assert digest("c") in [batch for batch, _ in cluster[0].blocks]
        assert witness.conflicts == []
        cluster.assert_agreement()


def test_a_restart_without_rows_or_work_is_silent():
    cluster = Cluster(4)
    cluster.commit("a", "b")
    cluster.settle()
    for member in cluster.members:
        before = len(member.sent)
        member.start()
        assert len(member.sent) == before
        assert member.timers == {}


def test_waiting_work_starts_the_timer_at_once():
    one = Restarter()
    replica = one.cluster[1]._new_replica()
    effects = replica.start({}, 0, GENESIS, GENESIS_CERTIFICATE, work_pending=True)
    assert SetTimer("view", 2_000) in effects


@pytest.mark.parametrize(
    "row",
    [
        (b"a" + bytes(7) + b"\x01", b"garbage"),
        (b"a" + bytes(7) + b"\x02", encode(PrePrepare(0, 1, A, 0, bytes(64)))),
        (b"p" + bytes(7) + b"\x01", encode(PrePrepare(0, 1, A, 0, bytes(64)))),
        (b"v", encode(PrePrepare(0, 1, A, 0, bytes(64)))),
        (b"x", encode(ViewChange(1, GENESIS_CERTIFICATE, (), 0, bytes(64)))),
        (b"n", b""),
    ],
)
def test_a_damaged_row_stops_the_node(row):
    with pytest.raises(InvariantViolation, match="damaged"):
        restore(dict([row]), 0)


def test_rows_at_or_below_the_stable_height_mean_nothing():
    key = b"a" + (5).to_bytes(8, "big")
    assert height_of(key) == 5
    assert height_of(b"v") is None
    assert restore({key: b"garbage"}, 5).accepted == []


def test_a_stable_height_above_the_executed_one_is_refused():
    replica = Cluster(4)[0]._new_replica()
    with pytest.raises(InvariantViolation, match="not executed"):
        replica.start({}, 3, A, SealCertificate(4, A, ()))
