"""Nodes as processes: killed with SIGKILL under load, and all at once."""

from tests.soak.kills import soak


async def test_killed_nodes_lose_nothing_and_rejoin(tmp_path):
    found = await soak(tmp_path, rounds=4, seed=7)
    assert found["executed"] > 0
