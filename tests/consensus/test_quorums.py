"""Requirement 1: quorum arithmetic for any n."""

import pytest

from consensus.validators import (
    Validator,
    ValidatorSchedule,
    ValidatorSet,
    faults_tolerated,
    quorum_size,
)
from tests.consensus.cluster import public_key, validator_set

SIZES = range(1, 51)


def overlap(n: int, quorum: int) -> int:
    """Return the least number of members that two quorums share."""
    return 2 * quorum - n


@pytest.mark.parametrize("n", SIZES)
def test_two_quorums_share_a_correct_member_and_f_silent_ones_do_not_stop_them(n):
    f, quorum = faults_tolerated(n), quorum_size(n)
    assert 3 * f < n <= 3 * f + 3
    assert overlap(n, quorum) >= f + 1
    assert quorum <= n - f


@pytest.mark.parametrize("n", SIZES)
def test_no_smaller_quorum_would_do(n):
    assert overlap(n, quorum_size(n) - 1) < faults_tolerated(n) + 1


def test_2f_plus_1_is_unsafe_at_8():
    f = faults_tolerated(8)
    assert overlap(8, 2 * f + 1) < f + 1
    assert quorum_size(8) == 6


@pytest.mark.parametrize("n", [4, 7, 10, 31])
def test_the_quorum_is_2f_plus_1_when_n_is_3f_plus_1(n):
    assert quorum_size(n) == 2 * faults_tolerated(n) + 1


def test_primaries_take_turns():
    validators = validator_set(range(4))
    assert [validators.primary(view) for view in range(6)] == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize(
    "members",
    [
        (),
        (Validator("a", public_key(1)), Validator("b", public_key(1))),
        (Validator("a", public_key(1)), Validator("a", public_key(2))),
        (Validator("a", b"short"),),
    ],
)
def test_a_set_without_distinct_members_is_refused(members):
    with pytest.raises(ValueError):  # noqa: PT011
        ValidatorSet(members)


def test_the_digest_depends_on_members_and_order():
    sets = [validator_set(members) for members in ([0, 1, 2], [1, 0, 2], [0, 1, 2, 3])]
    assert len({s.digest for s in sets}) == 3
    assert validator_set([0, 1, 2]).digest == sets[0].digest


def test_a_schedule_says_who_votes_where():
    first, second, third = (validator_set(range(n)) for n in (4, 5, 6))
    schedule = ValidatorSchedule(first)
    schedule.plan(10, second)
    schedule.plan(20, third)
    assert [schedule.at(h) for h in (0, 9, 10, 19, 20, 99)] == [
        first, first, second, second, third, third,
    ]  # fmt: skip
    assert [schedule.next_change_after(h) for h in (0, 9, 10, 20)] == [10, 10, 20, None]
    assert [schedule.reign_start(h) for h in (0, 9, 10, 19, 20)] == [0, 0, 10, 10, 20]
    with pytest.raises(ValueError, match="not above"):
        schedule.plan(20, first)
