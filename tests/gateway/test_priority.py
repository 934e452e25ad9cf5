"""The gateway gives way to the node: its own process, those that it starts, and its session."""

import subprocess
import sys
from pathlib import Path

import pytest

AUTOGROUP = Path("/proc/self/autogroup")
CODE = """
import os, subprocess, sys
from pathlib import Path
from node.gateway.priority import give_way
give_way(int(sys.argv[1]))
group = Path("/proc/self/autogroup")
print(os.getpriority(os.PRIO_PROCESS, 0), group.read_text().split()[-1] if group.exists() else "")
print(subprocess.run(["nice"], capture_output=True, check=True, text=True).stdout)
"""


def told(niceness, *, own_session):
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(niceness)],
        capture_output=True,
        check=True,
        text=True,
        start_new_session=own_session,
    )
    return done.stdout.split()


@pytest.mark.parametrize("niceness", [10, 19])
def test_the_process_what_it_starts_and_its_session_give_way(niceness):
    own, *rest = told(niceness, own_session=True)
    assert own == rest[-1] == str(niceness)
    if AUTOGROUP.exists():
        assert rest[0] == str(niceness)


def test_a_session_that_is_shared_and_a_niceness_of_0_change_nothing_else():
    before = told(0, own_session=True)
    assert before[0] == before[-1]
    if Path("/proc/self/autogroup").exists():
        assert (
            told(10, own_session=False)[1] == Path("/proc/self/autogroup").read_text().split()[-1]
        )
