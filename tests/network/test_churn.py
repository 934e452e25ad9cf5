"""Peers that vanish at any moment, on either side, leave nothing behind and break nothing."""

import asyncio
import contextlib
import random
from dataclasses import replace

from node.network.frames import Kind, encode_frame
from node.network.payloads import Role, encode_hello
from tests.network.harness import HELLO, client_context, make_identities, turns_until


def our_failures() -> list[object]:
    """What the loop is told of from now on, less the network errors of attempts that were cut
    short: a loop may find nobody left to raise those to."""
    failures: list[object] = []

    def handle(_, context):
        if not isinstance(context.get("exception"), OSError):
            failures.append(context)

    asyncio.get_running_loop().set_exception_handler(handle)
    return failures


class VanishingClient:
    """A client that goes away at a random point: before, during or after TLS and HELLO."""

    def __init__(self, seed, at, context):
        self.random, self.at, self.context = random.Random(seed), at, context

    async def run(self) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            match self.random.randint(0, 2):
                case 0:
                    await self.plain()
                case 1:
                    await self.cancelled()
                case 2:
                    await self.greeted()

    async def turns(self) -> None:
        for _ in range(self.random.randint(0, 10)):
            await asyncio.sleep(0)

    async def plain(self) -> None:
        _, writer = await asyncio.open_connection(*self.at)
        writer.write(self.random.randbytes(self.random.randint(1, 600)))
        await self.turns()
        writer.transport.abort()

    async def cancelled(self) -> None:
        dialling = asyncio.create_task(self.dial())
        await self.turns()
        dialling.cancel()
        _, writer = await dialling
        writer.transport.abort()

    async def greeted(self) -> None:
        _, writer = await self.dial()
        writer.write(encode_frame(Kind.HELLO, encode_hello(HELLO)))
        await self.turns()
        if self.random.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()

    async def dial(self):
        return await asyncio.open_connection(*self.at, ssl=self.context, server_hostname="")


async def test_clients_that_vanish_at_any_moment_leave_nothing_behind(network):
    failures = our_failures()
    alpha, beta, gamma = make_identities("alpha", "beta", "gamma")
    node = await network.start(beta, [alpha.known(), gamma.known()], half_open_max=16)
    good = await network.start(alpha, [beta.known(node.at)])
    await good.until_connected(beta)
    context = client_context(gamma, beta)
    for wave in range(10):
        clients = [VanishingClient(wave * 10 + i, node.at, context) for i in range(10)]
        await asyncio.gather(*(client.run() for client in clients))
    await turns_until(lambda: len(node.transport._all) == 1)
    await turns_until(lambda: not node.transport._listener._half_open)
    assert good.recorder.events == [("connected", "beta")]
    assert failures == []


async def test_servers_that_vanish_at_any_moment_are_dialled_again_and_again(network):
    failures = our_failures()
    chance, made, lost = random.Random(7), [], []

    class Vanishing(asyncio.Protocol):
        def connection_made(self, transport):
            made.append(transport)
            if chance.random() < 0.6:
                transport.write(chance.randbytes(chance.randint(1, 200)))
            transport.abort() if chance.random() < 0.5 else transport.close()

        def connection_lost(self, error):
            lost.append(error)

    server = await asyncio.get_running_loop().create_server(Vanishing, "127.0.0.1", 0)
    alpha, *others = make_identities("alpha", "beta", "gamma", "delta")
    at = server.sockets[0].getsockname()
    observer = replace(HELLO, role=Role.OBSERVER)
    known = [other.known(at) for other in others]
    node = await network.start(alpha, known, hello=observer, backoff_min_ms=1, backoff_max_ms=2)
    await turns_until(lambda: len(made) >= 60)
    await node.transport.close()
    server.close()
    await turns_until(lambda: len(lost) == len(made))
    assert node.recorder.events == []
    assert not node.transport._all
    assert failures == []
