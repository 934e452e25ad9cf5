"""A consortium with a process for every node: what an operator runs, in miniature.

Nodes are started by the same command that an operator uses; each says on standard output when it
listens. Their logs go to `node.log` in their folders.
"""

import asyncio
import contextlib
import signal
import sys
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
LOG = "node.log"
PID = "node.pid"


class NodeProcess:
    """One node as a process of its own."""

    def __init__(self, config: NodeConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.process: asyncio.subprocess.Process | None = None

    @property
    def name(self) -> str:
        """The institution."""
        return self.config.institution

    @property
    def is_running(self) -> bool:
        """Whether the process was started here and has not ended."""
        return self.process is not None and self.process.returncode is None

    @property
    def pid(self) -> int:
        """The process id. Raises `ValueError` when it does not run."""
        if self.process is None or not self.is_running:
            raise ValueError(f"{self.name} is not running")
        return self.process.pid

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
        """Start the node and return once it listens. Raises `RuntimeError` with its last words."""
        arguments = [sys.executable, "-m", "node.cli", "start", "--announce"]
        with (self.folder / LOG).open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *arguments,
                str(self.folder / CONFIG),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=detached,
                env=environment,
            )
        (self.folder / PID).write_text(f"{self.process.pid}\n", encoding="ascii")
        if self.process.stdout is None:
            raise RuntimeError("the process has no standard output")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await self.process.stdout.readline()
        except TimeoutError:
            await self.kill()
            line = b""
        if not line:
            raise RuntimeError(f"{self.name} did not start: {self.last_words()}")

    async def stop(self) -> None:
        """Ask the node to end, and end it after a while."""
        await self._signal(signal.SIGTERM)

    async def kill(self) -> None:
        """End the node at once, as a power cut would."""
        await self._signal(signal.SIGKILL)

    def pause(self) -> None:
        """Stop the node in the middle of whatever it does (SIGSTOP)."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused node go on."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def last_words(self, lines: int = 5) -> str:
        """Return the end of the node's log."""
        with contextlib.suppress(OSError):
            text = (self.folder / LOG).read_text(encoding="utf-8", errors="replace")
            return " | ".join(text.strip().splitlines()[-lines:])
        return "it left no log"

    async def _signal(self, number: signal.Signals) -> None:
        process = self.process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        self.process = None
        (self.folder / PID).unlink(missing_ok=True)


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
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self, nodes: Iterable[int] | None = None, *, detached: bool = False) -> None:
        """Start nodes, all unless named, side by side."""
        chosen = self.nodes if nodes is None else [self.nodes[index] for index in nodes]
        await asyncio.gather(*(node.start(detached=detached) for node in chosen))

    async def stop(self) -> None:
        """Stop every node that runs."""
        await asyncio.gather(*(node.stop() for node in self.nodes if node.is_running))
