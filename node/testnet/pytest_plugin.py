"""The pytest fixture for whoever builds on RadLedger.

async def test_two_hospitals_agree(testnet):
    async with testnet(validators=4) as net:
        done = await net.submit(0, [operation])
        await net.wait_height(done.height)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.testnet.testnet import Testnet


@pytest.fixture
def testnet(tmp_path: Path) -> Callable[..., Testnet]:
    """Return a function that makes a `Testnet` in the test's own temporary folder."""
    made = 0

    def make(**options: Any) -> Testnet:
        nonlocal made
        made += 1
        return Testnet(folder=tmp_path / f"testnet-{made}", **options)

    return make
