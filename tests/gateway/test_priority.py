"""The gateway gives way to the node: its own process, those that it starts, and its session."""

import os
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
print(os.getpriority(os.PRIO_PROCESS, 0))
print(group.read_text().strip() if group.exists() else "")
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
    process, session, child = done.stdout.splitlines()[:3]
    return int(process), niceness_in(session), int(child)


def niceness_in(autogroup):
    """Of a session. None: it is in no autogroup, as what init started, or there are none at all."""
    return int(autogroup.split()[-1]) if autogroup.strip() else None


@pytest.mark.parametrize("niceness", [10, 19])
def test_the_process_what_it_starts_and_its_session_give_way(niceness):
    process, session, child = told(niceness, own_session=True)
    assert process == child == niceness
    if AUTOGROUP.exists():
        assert session == niceness


def test_a_session_that_is_shared_is_left_as_it_is():
    process, session, child = told(10, own_session=False)
    assert process == child == 10
    assert session == (niceness_in(AUTOGROUP.read_text()) if AUTOGROUP.exists() else None)


def test_a_niceness_of_0_changes_nothing():
    process, session, child = told(0, own_session=True)
    assert process == child == os.getpriority(os.PRIO_PROCESS, 0)
    assert not session
