"""A terminal at which the demo types commands: each is a process of its own, as for a person.

The processes are forked from a server that has loaded the program already, so that the demo shows
how long the ledger takes, and not how long Python takes to start.
"""

import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from node.cli.context import Desk
from node.cli.demo.stage import Step
from node.cli.main import app
from node.provision import CONFIG

_LOADED = (
    "node.cli.access",
    "node.cli.audit",
    "node.cli.codes",
    "node.cli.config",
    "node.cli.consent",
    "node.cli.events",
    "node.cli.gov",
    "node.cli.init",
    "node.cli.keygen",
    "node.cli.meanings",
    "node.cli.member",
    "node.cli.policy",
    "node.cli.proof_make",
    "node.cli.proof_verify",
    "node.cli.status",
    "node.cli.store",
    "node.cli.study",
)
WORDS_SHOWN = 16
_ID_SHOWN = 8  # characters
_POLL_S = 0.01


class CommandFailed(Exception):
    """A command ended with another exit status than was expected; the text says which and why."""


class Terminal:
    """Runs the command `radledger`; answers are its JSON documents."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["node.cli.demo.terminal", *_LOADED])

    def warm_up(self) -> None:
        """Let the server load the program meanwhile."""
        forkserver.ensure_running()

    async def run(self, words: Sequence[str], status: int = 0) -> Any:
        """Return the answer of `radledger WORDS --json`. Raises `CommandFailed`."""
        with tempfile.TemporaryDirectory(prefix="radledger-") as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            arguments = ([*words, "--json"], str(out), str(err))
            process = self._context.Process(target=_command, args=arguments)
            await asyncio.to_thread(process.start)
            try:
                while process.is_alive():  # noqa: ASYNC110 - a process tells us no other way
                    await asyncio.sleep(0.005)
            finally:
                process.kill()
            process.join()
            said, told = _read(out), _read(err)
        if process.exitcode != status:
            raise CommandFailed(f"{typed(words)} ended with {process.exitcode}: {told or said}")
        return json.loads(said)


@dataclass(frozen=True, slots=True)
class Typist:
    """Types commands at the hospitals whose folders are in `folder`.

    What one hospital's command brought about, the next command finds at any other: a quorum may
    have executed it without that hospital's node, so its node is waited for first.
    """

    folder: Path
    terminal: Terminal
    executed: dict[str, int] = field(default_factory=dict)  # height, by hospital, that is known of

    async def run(
        self,
        step: Step,
        hospital: str,
        *words: str,
        by: str = "",
        status: int = 0,
        quiet: bool = False,
        who: str = "",
    ) -> Any:
        """Type a command at a hospital, signed `by` one of its people, and note it.

        Without a hospital it needs no node; then `who` types it. Raises `CommandFailed`.
        """
        signed = ("--key", str(self.key(hospital, by))) if by else ()
        at = ("--config", str(self.folder / hospital / CONFIG)) if hospital else ()
        if hospital:
            await self.caught_up(hospital, max(self.executed.values(), default=0))
        answer = await self.terminal.run([*words, *signed, *at], status)
        if hospital:
            self.executed[hospital] = max(self.executed.get(hospital, 0), height_in(answer))
        if not quiet:
            step.note(f"{hospital or who}$ {typed([*words, *signed])}")
        return answer

    async def caught_up(self, hospital: str, height: int) -> None:
        """Return once the hospital's own node has executed `height`."""
        if self.executed.get(hospital, 0) >= height:
            return
        async with Desk.open(self.folder / hospital / CONFIG).client() as client:
            while (await client.head()).height < height:  # noqa: ASYNC110 - over the network
                await asyncio.sleep(_POLL_S)
        self.executed[hospital] = height

    def key(self, hospital: str, name: str) -> Path:
        """Return the file of a person's key."""
        return self.folder / hospital / f"{name}.pem"


def height_in(answer: Mapping[str, Any]) -> int:
    """Return at which height the transaction of a command was executed, 0 if it sent none."""
    transaction = answer.get("transaction")
    height = transaction.get("height") if isinstance(transaction, dict) else None
    return height or 0


def typed(words: Sequence[str]) -> str:
    """Return a command as a person types it; long ids, paths and lists are cut."""
    shown = [_short(word) for word in words]
    if len(shown) > WORDS_SHOWN:
        shown = [*shown[:3], "...", shown[-1]]
    return " ".join(("radledger", *shown))


def _short(word: str) -> str:
    if len(word) >= 32 and all(character in "0123456789abcdef" for character in word):
        return word[:_ID_SHOWN] + ".."
    return Path(word).name if os.sep in word and not word.startswith("-") else word


def _read(path: Path) -> str:
    return path.read_text("utf-8").strip() if path.exists() else ""


def _command(words: list[str], out: str, err: str) -> None:
    sys.stdout = open(out, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
    sys.stderr = open(err, "w", encoding="utf-8")  # noqa: SIM115
    try:
        app(words, prog_name="radledger")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
