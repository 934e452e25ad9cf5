"""`radledger events`: what happens on the chain, as it happens."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from node.cli.arguments import DEFAULT_CONFIG, ConfigFile
from node.cli.context import Desk
from node.cli.failures import USAGE, Failure, explained
from node.cli.output import Json, cell, say, show_json_line
from node.ledger.limits import HEIGHT_MAX
from node.rpc.service import BlockEvents


def events(
    start: Annotated[
        int | None,
        typer.Option("--from", min=0, max=HEIGHT_MAX, help="First height; the next if not given."),
    ] = None,
    end: Annotated[
        int | None,
        typer.Option("--to", min=0, max=HEIGHT_MAX, help="Last height; for ever if not given."),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Only events of this name, e.g. study_registered.")
    ] = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Follow the events of every height, without gap or repetition, until Ctrl-C.

    With --json, one line for each height that has events.
    """
    with explained(as_json):
        if start is not None and end is not None and end < start:
            raise Failure(USAGE, f"--to {end} is below --from {start}")
        asyncio.run(_follow(config_file, start, end, name or (), as_json))


async def _follow(
    config_file: Path, start: int | None, end: int | None, names: Sequence[str], as_json: bool
) -> None:
    async with Desk.open(config_file).client() as client:
        # With an end every height is asked for, or one without such events would not be noticed.
        asked = names if end is None else ()
        async for block in client.events(start, asked):
            if end is not None and block.height > end:
                return
            _show(block, names, as_json)
            if block.height == end:
                return


def _show(block: BlockEvents, names: Sequence[str], as_json: bool) -> None:
    wanted = [view for view in block.events if not names or view.event.name in names]
    if as_json and wanted:
        show_json_line(BlockEvents(block.height, tuple(wanted)))
        return
    for view in wanted:
        event = view.event
        say(
            f"{block.height:>8}  {event.name:<18} {cell(event.fields)}  "
            f"tx {view.transaction_id.hex()}"
        )
