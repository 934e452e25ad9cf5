"""`radledger start`: one node, until it is told to end."""

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from node.assembly import StartRefused
from node.cli.failures import UNABLE, USAGE, Failure, explained
from node.cli.meanings import meaning_of
from node.cli.notify import notify
from node.cli.parent import end_with_parent
from node.cli.profiling import profiled
from node.config import load_config
from node.daemon import VERSION, Node, tune_interpreter

log = logging.getLogger(__name__)


def start(
    config_file: Annotated[
        Path, typer.Argument(envvar="RADLEDGER_CONFIG", help="The node's TOML file.")
    ] = Path("node.toml"),
    announce: Annotated[
        bool,
        typer.Option(
            "--announce",
            "--json",
            help="Print one line of JSON on standard output once the node listens.",
        ),
    ] = False,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", hidden=True, help="End when standard input closes.")
    ] = False,
) -> None:
    """Run the node until SIGTERM or SIGINT. Logs go to standard error."""
    with explained():
        config = load_config(config_file)
        logging.basicConfig(
            stream=sys.stderr,
            level=config.log.level.upper(),
            format="%(asctime)s %(levelname)s %(name)s %(message)s",
        )
        tune_interpreter()
        try:
            node = Node(config)
        except StartRefused as error:
            raise Failure(USAGE, str(error)) from error
        with profiled():
            uvloop.run(_serve(node, announce=announce, with_parent=with_parent))


async def _serve(node: Node, *, announce: bool, with_parent: bool) -> None:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    if with_parent:
        end_with_parent(asked)
    await node.start()
    if announce:
        line = {"event": "listening", "rpc": node.rpc_url, "pid": os.getpid(), "version": VERSION}
        print(json.dumps(line), flush=True)
    notify("READY=1")
    ended = asyncio.create_task(node.wait())
    stopping = asyncio.create_task(asked.wait())
    await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    notify("STOPPING=1")
    await _stop(node)
    log.info("node stopped height=%d", node.height)


async def _stop(node: Node) -> None:
    """Stop the node; what ended it goes to the log, whole if it was a bug."""
    try:
        await node.stop()
    except Exception as error:
        if meaning_of(error) is None:
            log.exception("the node ended unexpectedly")
            raise Failure(UNABLE, "the node ended unexpectedly; the log says where") from error
        raise
