"""Where a node's processor time goes, for `make bench`."""

import cProfile
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "RADLEDGER_PROFILE"


@contextmanager
def profiled() -> Iterator[None]:
    """Write a profile of the event loop's thread to the file that the environment names, if any.

    It counts the thread's processor time, so that waiting for a disk or for a turn is no cost.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        yield
        return
    profile = cProfile.Profile(time.thread_time)
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        profile.dump_stats(path)
