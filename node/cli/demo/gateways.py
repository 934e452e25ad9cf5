"""Gateways of the demo's hospitals: their settings, and a process for each."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from node.cli.demo.equipment import PACS, SCANNER
from node.provision import CONFIG
from node.testnet.layout import LOOPBACK

START_TIMEOUT_S = 40.0
STOP_TIMEOUT_S = 10.0
QUIET_MS = 300  # a scanner that is done falls silent; a real one pauses longer
MASTER_KEY = "store.master"
LOG = "gateway.log"
_DISK_RESERVE_BYTES = 64 * 2**20


def configure(folder: Path, exchange_port: int, pacs_port: int, others: Mapping[str, int]) -> None:
    """Add gateway, store and exchange to the config in a node's folder; `others` are the ports of
    the other hospitals' exchanges, by institution."""
    lines = [
        "[gateway]",
        'spool_dir = "spool"',
        f'listen_host = "{LOOPBACK}"',
        "listen_port = 0",
        f"quiet_ms = {QUIET_MS}",
        "peers = [",
        f'  {{ ae_title = "{SCANNER}" }},',
        f'  {{ ae_title = "{PACS}", host = "{LOOPBACK}", port = {pacs_port} }},',
        "]",
        "[gateway.limits]",
        f"disk_reserve_bytes = {_DISK_RESERVE_BYTES}",
        "[store]",
        'folder = "studies"',
        'key_file = "studies.keys"',
        f'master_key_file = "{MASTER_KEY}"',
        "[exchange]",
        'folder = "exchange"',
        f'listen_host = "{LOOPBACK}"',
        f"listen_port = {exchange_port}",
    ]
    for name, port in others.items():
        lines += ["[[exchange.peers]]", f'institution = "{name}"']
        lines += [f'host = "{LOOPBACK}"', f"port = {port}"]
    with (folder / CONFIG).open("a", encoding="utf-8") as config:
        config.write("\n" + "\n".join(lines) + "\n")


class GatewayProcess:
    """One gateway, by the command that an operator uses. It ends with this process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.port = 0  # where equipment sends to, once it runs
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Return once it listens. Raises `RuntimeError` with its last words."""
        words = ("-m", "node.cli", "gateway", "start", "--announce", "--with-parent")
        with (self.folder / LOG).open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *words,
                str(self.folder / CONFIG),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; and its receiving process is reached
            )
        line = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT_S):
                if self._process.stdout is not None:
                    line = await self._process.stdout.readline()
        if not line:
            await self.kill()
            raise RuntimeError(f"the gateway of {self.name} did not start: {self.last_words()}")
        self.port = json.loads(line)["port"]

    async def stop(self) -> None:
        """Ask it to end, and end it after a while."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._process.wait()
        await self.kill()

    async def kill(self) -> None:
        """End it at once, with the processes that it started."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def last_words(self, lines: int = 3) -> str:
        """Return the end of its log."""
        text = (self.folder / LOG).read_text(encoding="utf-8", errors="replace")
        return " | ".join(text.strip().splitlines()[-lines:]) or "its log is empty"
