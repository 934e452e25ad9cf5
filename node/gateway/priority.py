"""Ledger first: the gateway's processes take what the node and others leave over."""

import os
from contextlib import suppress
from pathlib import Path

_AUTOGROUP = Path("/proc/self/autogroup")  # sched(7): of the session, where no control group rules


def give_way(niceness: int) -> None:
    """Lower the priority of this process and of those that it starts; 0 leaves it as it is.

    On Linux sessions share the processor evenly whatever their processes' niceness is, so it is set
    for the session, too, if that is ours alone. Under systemd the unit's CPUWeight counts instead.
    """
    if niceness <= 0:
        return
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            _AUTOGROUP.write_text(str(niceness))
