"""A consortium with a process for every node: what an operator runs, in miniature.

Nodes are started by the same command that an operator uses; each says on standard output when it
listens. Their logs go to `node.log` in their folders.

Whether a node runs is asked of the system, not remembered: every node holds a lock on its
`node.pid` for as long as it lives, and so another command can find, watch or stop it.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from node import keys
from node.config import ConsensusConfig, NodeConfig
from node.provision import CONFIG
from node.rpc.client import Client
from node.testnet.layout import LOOPBACK, Layout, create_layout, load_layout

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
READY_TIMEOUT_S = 60.0
LOG = "node.log"
PID = "node.pid"
_POLL_S = 0.02
_CLAIM_S = 0.5  # whoever asks whether a node runs holds its lock for a moment
_FIRST_LINE_MAX = 4_096


class NodeProcess:
    """One node as a process of its own."""

    def __init__(self, config: NodeConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self._child: subprocess.Popen[bytes] | None = None  # if it was started here

    @property
    def name(self) -> str:
        """The institution."""
        return self.config.institution

    @property
    def is_running(self) -> bool:
        """Whether the process runs, whoever started it."""
        try:
            descriptor = os.open(self.folder / PID, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    @property
    def pid(self) -> int:
        """The process id. Raises `ValueError` when it does not run."""
        text = (self.folder / PID).read_text("ascii").strip() if self.is_running else ""
        if not text.isdigit():
            raise ValueError(f"{self.name} is not running")
        return int(text)

    @property
    def rpc_url(self) -> str:
        """Where clients connect."""
        return f"http://{LOOPBACK}:{self.config.rpc.port}"

    def client(self) -> Client:
        """Return a client, to be entered by the caller."""
        return Client(self.rpc_url, keys.load_token(self.config.rpc.token_file))

    async def start(
        self, *, detached: bool = False, environment: dict[str, str] | None = None
    ) -> None:
        """Start the node and return once it listens.

        A detached node outlives this process; any other ends with it, even if this one is killed.
        Raises `RuntimeError` when it runs already, or with its last words.
        """
        child = self._spawn(await self._claim(), detached, environment)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await asyncio.to_thread(_first_line, child)
        except TimeoutError:
            await self.kill()
            line = b""
        if not line:
            await asyncio.to_thread(child.wait)
            raise RuntimeError(f"{self.name} did not start: {self.last_words()}")

    async def stop(self) -> None:
        """Ask the node to end, and end it after a while."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """End the node at once, as a power cut would."""
        await self._end(signal.SIGKILL)

    async def wait_ended(self) -> None:
        """Return once the process has ended, however it did."""
        while self.is_running:  # noqa: ASYNC110 - another process tells us no other way
            await asyncio.sleep(_POLL_S)

    def pause(self) -> None:
        """Stop the node in the middle of whatever it does (SIGSTOP)."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused node go on."""
        self._send(signal.SIGCONT)

    def last_words(self, lines: int = 5) -> str:
        """Return the end of the node's log."""
        with contextlib.suppress(OSError):
            text = (self.folder / LOG).read_text(encoding="utf-8", errors="replace")
            return " | ".join(text.strip().splitlines()[-lines:]) or "its log is empty"
        return "it left no log"

    def _spawn(
        self, lock: int, detached: bool, environment: dict[str, str] | None
    ) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-m", "node.cli", "start", "--announce"]
        if not detached:
            arguments.append("--with-parent")
        try:
            with (self.folder / LOG).open("ab") as log:
                self._child = subprocess.Popen(  # noqa: S603 - our own command
                    [*arguments, str(self.folder / CONFIG)],
                    stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for us, and we stop the nodes in order
                    pass_fds=(lock,),
                    env=environment,
                )
            os.pwrite(lock, f"{self._child.pid:<10}\n".encode(), 0)
        finally:
            os.close(lock)
        return self._child

    async def _claim(self) -> int:
        """Return the locked pid file, to be inherited by the node."""
        descriptor = os.open(self.folder / PID, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _CLAIM_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    await asyncio.sleep(_POLL_S)
                    continue
                os.close(descriptor)
                raise RuntimeError(f"{self.name} is running already") from None
            return descriptor

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(self.pid, number)

    async def _end(self, number: signal.Signals) -> None:
        self._send(number)
        self._send(signal.SIGCONT)  # a paused process would not hear the other
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.wait_ended()
        except TimeoutError:
            self._send(signal.SIGKILL)
            await self.wait_ended()
        child, self._child = self._child, None
        if child is not None:
            await asyncio.to_thread(child.wait)
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()


def _first_line(child: subprocess.Popen[bytes]) -> bytes:
    return child.stdout.readline(_FIRST_LINE_MAX) if child.stdout is not None else b""


class ProcessTestnet:
    """N node processes on loopback; an async context manager."""

    __test__ = False

    def __init__(
        self,
        folder: Path,
        validators: int = 4,
        observers: int = 0,
        *,
        consensus: ConsensusConfig | None = None,
    ) -> None:
        """Make a new consortium in `folder`, or take up the one that is there."""
        try:
            self.layout: Layout = load_layout(folder)
        except FileNotFoundError:
            self.layout = create_layout(
                folder, validators=validators, observers=observers, consensus=consensus
            )
        self.nodes = [
            NodeProcess(config, self.layout.node_folder(index))
            for index, config in enumerate(self.layout.configs)
        ]

    async def __aenter__(self) -> Self:
        """Start all nodes."""
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await (self.stop() if kind is None else self.kill())

    def node(self, institution: str) -> NodeProcess:
        """Return the node of an institution. Raises `KeyError`."""
        return {node.name: node for node in self.nodes}[institution]

    async def start(self, nodes: Iterable[int] | None = None, *, detached: bool = False) -> None:
        """Start nodes, all unless named, side by side. Raises `RuntimeError` as a node does."""
        chosen = self.nodes if nodes is None else [self.nodes[index] for index in nodes]
        starting = [asyncio.create_task(node.start(detached=detached)) for node in chosen]
        try:
            await asyncio.gather(*starting)
        finally:
            # After a failure, too, none is left that starts behind the caller's back.
            await asyncio.gather(*starting, return_exceptions=True)

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until every running node is ready and sees every other. Raises `TimeoutError`."""
        running = [node for node in self.nodes if node.is_running]
        names = {node.name for node in running}
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(_wait_ready(node, names - {node.name}) for node in running))

    async def stop(self) -> None:
        """Stop every node that runs, whoever started it."""
        await asyncio.gather(*(node.stop() for node in self.nodes))

    async def kill(self) -> None:
        """End every node at once."""
        await asyncio.gather(*(node.kill() for node in self.nodes))


async def _wait_ready(node: NodeProcess, others: set[str]) -> None:
    async with node.client() as client:
        voters = {validator.institution for validator in await client.validators()}
        while True:
            ready, status = await asyncio.gather(client.readiness(), client.status())
            # Observers do not connect to one another.
            expected = others if status.is_validator else others & voters
            if ready.is_ready and expected <= set(status.peers_connected):
                return
            await asyncio.sleep(_POLL_S)
