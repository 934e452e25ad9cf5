"""The receiving process as its parent sees it: started, handed connections, started anew."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable

from node.gateway.link import Lender
from node.gateway.scp import READY, Settings

log = logging.getLogger(__name__)

START_SECONDS = 60.0
STOP_SECONDS = 10.0
_FIRST_DELAY_SECONDS, _LAST_DELAY_SECONDS = 0.5, 30.0


class Receiving:
    """Keeps one receiving process running."""

    def __init__(
        self,
        settings: Settings,
        report: Callable[[str, str, str], None],
        lender: Lender | None = None,
    ) -> None:
        """`lender` answers what the process asks for on behalf of peers; None: nothing."""
        self._settings, self._report, self._lender = settings, report, lender
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process and wait until it is ready. Raises `OSError` or `TimeoutError`."""
        await self._launch()
        self._supervisor = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """End the process."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        await self._end()

    def hand(self, connection: socket.socket, peer: str) -> bool:
        """Give a connection to the process; False when it cannot take one."""
        if self._control is None:
            return False
        try:
            socket.send_fds(self._control, [peer.encode()], [connection.fileno()])
        except OSError:  # it has died, or does not keep up
            return False
        return True

    async def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        passed = [theirs]
        if self._lender is not None:
            answering, asking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._lender.attach(answering)
            passed.append(asking)
        with contextlib.ExitStack() as stack:
            for each in passed:
                stack.enter_context(each)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "node.gateway.scp",
                *(str(each.fileno()) for each in passed),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=[each.fileno() for each in passed],
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(START_SECONDS):
                await _tell(self._process, self._settings.encode())
                if await loop.sock_recv(ours, len(READY)) != READY:
                    raise ConnectionError("the receiving process ended at its start")
        except BaseException:
            ours.close()
            await self._end()
            raise
        self._control = ours
        log.info("receiving process runs pid=%d", self._process.pid)

    async def _supervise(self) -> None:
        delay = _FIRST_DELAY_SECONDS
        while True:
            if self._process is not None:
                code = await self._process.wait()
                log.error("receiving process ended status=%d", code)
                self._report("receiver_ended", "gateway", str(code))
                await self._end()
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_DELAY_SECONDS)
            try:
                await self._launch()
                delay = _FIRST_DELAY_SECONDS
            except (OSError, TimeoutError) as error:
                log.error("receiving process does not start: %s", error)

    async def _end(self) -> None:
        control, self._control = self._control, None
        process, self._process = self._process, None
        if control is not None:
            control.close()
        if process is None:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _tell(process: asyncio.subprocess.Process, message: bytes) -> None:
    """Write all of the standard input of a process. Raises `OSError`."""
    if process.stdin is None:
        raise ConnectionError("the receiving process has no standard input")
    process.stdin.write(message)
    await process.stdin.drain()
    process.stdin.close()
