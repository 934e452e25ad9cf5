"""`radledger start`: one node, until it is told to end."""

import asyncio
import cProfile
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from node.cli.failures import explained
from node.config import load_config
from node.daemon import VERSION, Node, tune_interpreter

log = logging.getLogger(__name__)


def start(
    config_file: Annotated[Path, typer.Argument(help="The node's TOML file.")] = Path("node.toml"),
    announce: Annotated[
        bool, typer.Option(help="Print one JSON line on standard output once the node listens.")
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
        node = Node(config)
        with _profiled(os.environ.get("RADLEDGER_PROFILE")):
            uvloop.run(_serve(node, announce=announce))


async def _serve(node: Node, *, announce: bool) -> None:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    await node.start()
    if announce:
        line = {"event": "listening", "rpc": node.rpc_url, "pid": os.getpid(), "version": VERSION}
        print(json.dumps(line), flush=True)
    _notify("READY=1")
    ended = asyncio.create_task(node.wait())
    stopping = asyncio.create_task(asked.wait())
    await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    _notify("STOPPING=1")
    await node.stop()
    log.info("node stopped height=%d", node.height)


@contextmanager
def _profiled(path: str | None) -> Iterator[None]:
    """Write what the event loop's thread did to `path`, for `make bench`; None: do nothing."""
    if not path:
        yield
        return
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        profile.dump_stats(path)


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); without a socket in the environment nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(name)
        channel.sendall(state.encode())
