"""What processes and folders use."""

from pathlib import Path

import psutil

from node.testnet.processes import NodeProcess


def cpu_seconds(nodes: list[NodeProcess]) -> list[float]:
    """Return user and system time of each node so far."""
    times = [psutil.Process(node.pid).cpu_times() for node in nodes]
    return [t.user + t.system for t in times]


def resident_mib(nodes: list[NodeProcess]) -> list[float]:
    """Return the resident memory of each node."""
    return [psutil.Process(node.pid).memory_info().rss / 2**20 for node in nodes]


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # LevelDB replaces files while we look
    return total
