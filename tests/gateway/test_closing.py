"""When a study is complete: over times that no clock has to pass."""

from hypothesis import given
from hypothesis import strategies as st

from node.gateway.closing import LAST_RETRY_MS, Rules, closes_at, is_due, retry_after
from node.gateway.index import Gathering

RULES = Rules(quiet_ms=60_000, age_ms_max=600_000)
START = 1_700_000_000_000


def study(first=0, last=0, *, delay=0, taken=0, signalled=False, retry=0):
    times = (START + first, START + last, delay)
    return Gathering(b"s" * 32, *times, 1, taken, signalled, 0, retry, "")


def test_a_study_is_complete_after_a_quiet_period():
    assert not is_due(study(last=5_000), RULES, START + 64_999)
    assert is_due(study(last=5_000), RULES, START + 65_000)


def test_a_study_that_never_rests_is_taken_at_its_maximum_age():
    assert is_due(study(last=599_990), RULES, START + 600_000)


def test_a_signal_closes_at_once():
    assert is_due(study(last=5_000, signalled=True), RULES, START + 5_000)


def test_the_random_delay_holds_a_signalled_study_back_too():
    waiting = study(signalled=True, delay=9_000)
    assert not is_due(waiting, RULES, START + 8_999)
    assert is_due(waiting, RULES, START + 9_000)


def test_what_was_taken_is_gone_on_with_unless_it_rests():
    assert is_due(study(taken=1), RULES, START)
    assert not is_due(study(taken=1, retry=START + 2_000), RULES, START + 1_999)
    assert is_due(study(taken=1, retry=START + 2_000), RULES, START + 2_000)


def test_a_clock_that_was_put_back_holds_nothing_for_long():
    assert is_due(study(last=0), RULES, START - 3_600_000)
    assert is_due(study(taken=1, retry=START), RULES, START - LAST_RETRY_MS - 1)


def test_delays_are_drawn_within_their_bound():
    drawn = {Rules(delay_ms_max=3).draw_delay() for _ in range(200)}
    assert drawn == {0, 1, 2, 3}


def test_retries_grow_and_are_bounded():
    delays = [retry_after(attempts) for attempts in range(40)]
    assert delays == sorted(delays)
    assert delays[-1] == LAST_RETRY_MS


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**5), st.booleans())
def test_every_study_closes_in_time(first, length, delay, signalled):
    gathering = study(first, first + length, delay=delay, signalled=signalled)
    end = closes_at(gathering, RULES)
    assert end <= START + first + RULES.age_ms_max + delay
    assert is_due(gathering, RULES, max(end, gathering.last_ms))
