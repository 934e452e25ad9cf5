"""A short simulation on every test run; `python -m tests.simulation` runs the long one."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from consensus.messages import Commit, PrePrepare, Seal, SealCertificate
from consensus.validators import faults_tolerated
from tests.simulation import canaries
from tests.simulation.checker import Violation, smallest_safe_quorum
from tests.simulation.disk import Block, Disk, Transaction
from tests.simulation.plan import draw
from tests.simulation.scheduler import Scheduler
from tests.simulation.world import World, run

HERE = Path(__file__).parent
ONCE_FAILED = [
    line
    for line in (HERE / "regression_seeds.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
QUICK = [
    "small-quorum",
    "no-persist",
    "prepared-ignored",
    "any-commit",
    "view-forgotten",
    "change-at-once",
    "horizon-ignored",
    "sets-forgotten",
    "certificate-last",
]


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_short_set_of_seeds(first):
    heights = reigns = 0
    for seed in range(first, first + 10):
        result = run(draw(seed))
        assert result.violation is None, f"seed {seed}: {result.details}"
        heights += result.counters["heights"]
        reigns += result.counters["reigns"]
    assert heights > 50
    assert reigns >= 1


@pytest.mark.parametrize("line", ONCE_FAILED)
def test_seed_that_once_failed(line):
    result = run(draw(int(line.split()[0])))
    assert result.violation is None, result.details


@pytest.mark.parametrize("name", QUICK)
def test_planted_bug_is_found(name):
    hunt = canaries.hunt(name)
    assert hunt.found is not None, str(hunt)


def test_planted_bug_is_gone_afterwards():
    canaries.hunt("prepared-ignored")
    assert run(draw(0)).violation is None


def test_every_canary_says_within_how_many_seeds():
    assert len(canaries.CANARIES) >= 5
    assert all(0 < canary.seeds <= 200 for canary in canaries.CANARIES.values())


def test_one_seed_is_one_history_whatever_the_hash_seed():
    command = [sys.executable, "-m", "tests.simulation", "--seed", "7", "--trace"]
    histories = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            command, cwd=HERE.parents[1], env=environment, capture_output=True, check=True
        )
        histories.add(done.stdout.rsplit(b"\n1 seeds", 1)[0])
    assert len(histories) == 1
    assert histories.pop().count(b"\n") > 500


def test_seeds_differ():
    plans = [draw(seed) for seed in range(300)]
    assert {plan.n for plan in plans} == set(range(1, 11))
    assert {plan.kind for plan in plans} == {"mixed", "tangled", "stall", "slow"}
    assert all(len(plan.tactics) + len(plan.wiped) <= plan.f for plan in plans)


def test_no_planned_set_has_more_faulty_members_than_it_withstands():
    plans = [plan for seed in range(2, 1202, 4) if (plan := draw(seed)).later_sets]
    assert len(plans) > 200
    sizes = set()
    for plan in plans:
        faulty = {*plan.tactics, *plan.wiped}
        for before, after in pairwise(plan.sets):
            sizes.add(len(after) - len(before))
            assert len(faulty & {key for _, key in after}) <= faults_tolerated(len(after))
            assert len({institution for institution, _ in after}) == len(after)
            assert set(before) != set(after)
    assert sizes == {-1, 0, 1}


def test_quorum_of_the_checker():
    assert [smallest_safe_quorum(n) for n in (1, 4, 5, 7, 8, 10)] == [1, 3, 4, 5, 6, 7]


# The checker itself


@pytest.fixture
def checker():
    world = World(draw(0).with_n(4))
    world.checker.faulty = {3}
    return world.checker


def test_two_votes_in_one_view_are_seen(checker):
    checker.sent(1, Commit(0, 1, b"a" * 32, 1))
    checker.sent(1, Commit(0, 1, b"a" * 32, 1))
    with pytest.raises(Violation, match="two commit votes"):
        checker.sent(1, Commit(0, 1, b"b" * 32, 1))


def test_faulty_validators_may_contradict_themselves(checker):
    checker.sent(3, Commit(0, 1, b"a" * 32, 3))
    checker.sent(3, Commit(0, 1, b"b" * 32, 3))


def test_two_batches_prepared_in_one_view_are_seen(checker):
    checker.sent(0, Commit(0, 1, b"a" * 32, 0))
    with pytest.raises(Violation, match="prepared different batches"):
        checker.sent(1, Commit(0, 1, b"b" * 32, 1))


def test_a_proposal_and_a_prepare_are_one_vote(checker):
    checker.sent(0, PrePrepare(0, 1, b"a" * 32, 0))
    with pytest.raises(Violation, match="two prepare votes"):
        checker.sent(0, PrePrepare(0, 1, b"b" * 32, 0))


def test_a_fork_is_seen(checker):
    checker.durable(0, 1, Block(b"a" * 32, b"x" * 32, None))
    with pytest.raises(Violation, match="another block"):
        checker.durable(1, 1, Block(b"b" * 32, b"y" * 32, None))


def test_a_gap_is_seen(checker):
    with pytest.raises(Violation, match="gap"):
        checker.durable(0, 2, Block(b"a" * 32, b"x" * 32, None))
    with pytest.raises(Violation, match="right after"):
        checker.committed(0, 2, b"a" * 32, 0, True)


def test_execution_without_the_batch_is_seen(checker):
    with pytest.raises(Violation, match="without its batch"):
        checker.committed(0, 1, b"a" * 32, 0, False)


def test_a_forged_or_thin_certificate_is_seen(checker):
    seals = tuple((i, bytes(64)) for i in range(3))
    with pytest.raises(Violation, match="forged seal"):
        checker.stable(0, SealCertificate(1, b"x" * 32, seals))
    with pytest.raises(Violation, match="quorum"):
        checker.stable(0, SealCertificate(1, b"x" * 32, seals[:2]))


def test_two_seals_of_one_height_are_seen(checker):
    checker.sent(1, Seal(1, b"x" * 32, 1))
    with pytest.raises(Violation, match="sealed two headers"):
        checker.sent(1, Seal(1, b"y" * 32, 1))


# The disk


def test_power_cut_loses_what_was_not_synced():
    scheduler, kept = Scheduler(), set()
    for seed in range(20):
        disk = Disk(scheduler, Random(seed), Block(bytes(32), bytes(32), None))
        disk.submit(Transaction(wal=[(b"old", b"1")]))
        scheduler.run(scheduler.now + 10)
        disk.submit(Transaction(wal=[(b"syncing", b"1")]))
        disk.submit(Transaction(wal=[(b"waiting", b"1")]))
        disk.crash()
        kept.add(tuple(sorted(disk.wal)))
        scheduler.run(scheduler.now + 10)
        assert b"waiting" not in disk.wal
    assert kept == {(b"old",), (b"old", b"syncing")}
