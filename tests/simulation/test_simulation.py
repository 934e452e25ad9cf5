"""A short simulation on every test run; `make simulate` runs the long one."""

from pathlib import Path

import pytest

from tests.simulation.plan import draw
from tests.simulation.world import run

ROOT = Path(__file__).parents[2]
ONCE_FAILED = (Path(__file__).parent / "regression_seeds.txt").read_text().splitlines()


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_short_set_of_seeds(first):
    for seed in range(first, first + 10):
        result = run(draw(seed))
        assert result.violation is None, f"seed {seed}: {result.details}"
        assert result.counters["heights"] > 0


@pytest.mark.parametrize("line", [line for line in ONCE_FAILED if line and line[0] != "#"])
def test_seed_that_once_failed(line):
    result = run(draw(int(line.split()[0])))
    assert result.violation is None, result.details
