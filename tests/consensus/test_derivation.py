"""What a new view carries over, as a pure function (requirements 12, 14, 16, 22)."""

import itertools
import random as randomness

import pytest

from consensus import view_change as derivation
from consensus.messages import NULL_DIGEST
from consensus.validators import quorum_size
from tests.consensus.certificates import A, B, change, prepared
from tests.consensus.cluster import validator_set


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
