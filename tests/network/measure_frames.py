"""Prints what a small frame costs over loopback TLS; not a test. Run it as a module.

CPU time of both ends together, per frame, for several numbers of frames queued per loop turn.
"""

import asyncio
import time

import uvloop

from node.network.budgets import Rate
from node.network.frames import Kind
from node.network.send_queue import Priority
from tests.network.harness import Network, turns_until

FRAMES = 200_000
BODY = bytes(300)
UNLIMITED = {kind: Rate(1e12, 1e15) for kind in Kind}


async def measure(per_turn: int) -> float:
    frames = FRAMES if per_turn >= 10 else FRAMES // 10
    async with Network() as network:
        near, far = await network.pair(rates=UNLIMITED)
        received = 0

        def count(_key, _kind, _payload):
            nonlocal received
            received += 1
            far.recorder.frames.clear()

        far.recorder.on_frame = count
        began_s = time.process_time()
        for _ in range(frames // per_turn):
            for _ in range(per_turn):
                near.transport.send(far.key, Kind.CONSENSUS, BODY, Priority.CONSENSUS)
            await asyncio.sleep(0)
            while near.line(far.identity).queued_bytes > 1024 * 1024:
                await asyncio.sleep(0)
        await turns_until(lambda: received == frames)
        return (time.process_time() - began_s) / frames * 1e6


def main() -> None:
    for name, factory in (("uvloop", uvloop.new_event_loop), ("asyncio", asyncio.new_event_loop)):
        for per_turn in (1, 10, 100, 1000):
            with asyncio.Runner(loop_factory=factory) as runner:
                cost_us = runner.run(measure(per_turn))
            print(f"{name:8} {per_turn:5} frames of 300 bytes per turn: {cost_us:6.2f} us each")


if __name__ == "__main__":
    main()
