"""`radledger demo`: runs the play, and leaves nothing behind however it ends."""

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from node.cli.demo.play import Play
from node.cli.demo.stage import Stage, StepFailed
from node.cli.failures import USAGE, WRONG, Failure, explained
from node.cli.output import Json, console, show_json

_PREFIX = "radledger-demo-"


@dataclass(slots=True)
class _Ending:
    """Which signal ended the demo, if one did, and what was shown until then."""

    number: signal.Signals | None = None
    summary: dict[str, object] = field(default_factory=dict)


def demo(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder", "-f", help="An empty or new folder; a temporary one if not given."
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the folder: keys, chains, logs of all nodes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Four hospitals on this machine, in under a minute: register, verify, lose the primary, share,
    send images.

    Exit status 0 only if every step held. All processes are ended, and the folder is removed.
    """
    with explained(as_json), _workplace(folder, keep) as place:
        stage = Stage(console(), quiet=as_json)
        ending = _Ending()
        try:
            asyncio.run(_run(place, stage, ending))
        except StepFailed:
            pass
        except asyncio.CancelledError:
            raise typer.Exit(128 + (ending.number or signal.SIGINT)) from None
        is_ok = all(step.is_ok for step in stage.steps)
        if as_json:
            seconds = round(stage.seconds, 2)
            answer = {"is_ok": is_ok, "seconds": seconds, "summary": ending.summary}
            show_json({**answer, "steps": stage.steps, "folder": place if keep else None})
        else:
            _show_summary(stage, ending.summary, is_ok)
            if keep:
                stage.say(f"kept: {place}; `radledger testnet up --folder {place}` goes on with it")
        if not is_ok:
            raise typer.Exit(WRONG)


async def _run(place: Path, stage: Stage, ending: _Ending) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def end(number: signal.Signals) -> None:
        ending.number = number
        if task is not None:
            task.cancel()

    # Ctrl-C cancels already; a closed terminal and a service manager shall do the same.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            loop.add_signal_handler(number, end, number)
    play = Play(place, stage)
    try:
        ending.summary = await play.perform()
    finally:
        await play.close()


@contextmanager
def _workplace(folder: Path | None, keep: bool) -> Iterator[Path]:
    if folder is None:
        place = Path(tempfile.mkdtemp(prefix=_PREFIX))
    else:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise Failure(USAGE, f"{folder} is not an empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        place = folder
    try:
        yield place
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


def _show_summary(stage: Stage, summary: dict[str, object], is_ok: bool) -> None:
    held = sum(step.is_ok for step in stage.steps)
    if not is_ok:
        stage.say(f"{held} of {len(stage.steps)} steps held; the demo ended there.", "bold red")
        return
    stage.say(
        f"All {held} steps held in {stage.seconds:.1f} s: {summary['studies']} studies with "
        f"{summary['instances']} instances on the chain of {summary['hospitals']} hospitals, "
        f"height {summary['height']}. {summary['killed']} was lost and is back, nothing "
        f"acknowledged was; {summary['exchanged']} images went from hospital to hospital; "
        f"{summary['voted_in']} was voted in; {summary['proofs']} proofs hold "
        "without any node.",
        "bold green",
    )
