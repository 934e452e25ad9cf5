"""kill -9 under load: nothing acknowledged is lost, nothing is doubled, everybody comes back."""

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

from node import keys
from node.ledger import genesis_file
from node.ledger.errors import Refused
from node.ledger.transaction import sign_transaction
from node.rpc.client import Client
from node.rpc.errors import ConnectionLost
from node.testnet.processes import ProcessTestnet
from tests.bench.audit import check
from tests.bench.load import open_member, registration

CATCH_UP_S = 60.0


class Workload:
    """Clients that hold on to every transaction until some node says what became of it."""

    def __init__(self, net: ProcessTestnet) -> None:
        self._net = net
        self._chain_id = genesis_file.load(net.layout.genesis_file).chain_id
        self._member = open_member(net.layout.node_folder(0))
        self.acknowledged: list[bytes] = []
        self.is_over = False

    async def run(self, index: int) -> None:
        """Submit to one node after another, moving on when one goes away."""
        at = index % len(self._net.nodes)
        while not self.is_over:
            transaction = sign_transaction(
                self._member.sign,
                keys.public_bytes(self._member),
                chain_id=self._chain_id,
                institution=self._net.nodes[0].name,
                valid_until=10_000,
                operations=(registration(),),
            )
            while True:
                try:
                    async with self._net.nodes[at].client() as client:
                        done = await client.submit(transaction.raw, timeout_s=20.0)
                    break
                except (ConnectionLost, TimeoutError, OSError):
                    # Whether it was taken is unknown: the very same bytes go to the next node.
                    at = (at + 1) % len(self._net.nodes)
                    await asyncio.sleep(0.05)
                except Refused as refused:
                    if refused.code not in ("busy", "duplicate"):
                        raise
            if done.code != "ok":
                raise RuntimeError(f"a transaction failed: {done.code}")
            self.acknowledged.append(transaction.id)


async def soak(
    folder: Path, rounds: int, seed: int, say: Callable[[str], None] = lambda line: None
) -> dict[str, int]:
    """Kill one node per round, and all of them in the last; return what was found.

    Raises `RuntimeError` when a transaction is lost or doubled or nodes differ, `TimeoutError` when
    a node does not come back.
    """
    chance = random.Random(seed)
    async with ProcessTestnet(folder) as net:
        load = Workload(net)
        async with asyncio.TaskGroup() as tasks:
            for index in range(6):
                tasks.create_task(load.run(index))
            for number in range(rounds):
                await asyncio.sleep(chance.uniform(0.1, 1.0))
                last = number == rounds - 1
                victims = list(net.nodes) if last else [chance.choice(net.nodes)]
                await asyncio.gather(*(victim.kill() for victim in victims))
                if not last:
                    await asyncio.sleep(chance.uniform(0.0, 1.5))
                await asyncio.gather(*(victim.start() for victim in victims))
                began = time.monotonic()
                height = await caught_up(net)
                names = ", ".join(victim.name for victim in victims)
                say(
                    f"round {number + 1}: killed {names}; height {height}, "
                    f"back in {time.monotonic() - began:.1f} s, {len(load.acknowledged)} final"
                )
            load.is_over = True
        await caught_up(net)
        clients = [node.client() for node in net.nodes]
        try:
            for client in clients:
                await client.__aenter__()
            return await check(clients, load.acknowledged)
        finally:
            for client in clients:
                await client.__aexit__(None, None, None)


async def caught_up(net: ProcessTestnet) -> int:
    """Wait until all nodes have executed what the furthest has now; return that height."""
    async with asyncio.timeout(CATCH_UP_S):
        heights = [await height_of(node.client()) for node in net.nodes]
        goal = max(heights)
        while min(heights) < goal:
            await asyncio.sleep(0.1)
            heights = [await height_of(node.client()) for node in net.nodes]
        return goal


async def height_of(client: Client) -> int:
    """Return a node's executed height; 0 while it cannot be reached."""
    try:
        async with client:
            return (await client.head()).height
    except (ConnectionLost, TimeoutError, OSError):
        return 0
