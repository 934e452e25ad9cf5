"""Every asynchronous test of this room runs on asyncio's own loop and on uvloop."""

import asyncio

import pytest
import uvloop

from tests.network.harness import Network


def pytest_asyncio_loop_factories():
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def network():
    async with Network() as network:
        yield network
