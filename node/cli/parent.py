"""A process ends with the one that started it, even if that is killed: standard input tells."""

import asyncio
import os
import sys


def end_with_parent(ended: asyncio.Event) -> None:
    """Set `ended` once standard input closes. Called in the event loop."""
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _read, ended)


def _read(ended: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 1_024):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        ended.set()
