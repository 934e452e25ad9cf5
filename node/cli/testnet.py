"""`radledger testnet`: a consortium on this machine, in the background."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from node.cli.failures import UNABLE, USAGE, WRONG, Failure, explained
from node.cli.output import Json, console, say, show_json, show_table
from node.ledger.genesis import VALIDATORS_MAX
from node.provision import CONFIG
from node.rpc.errors import ConnectionLost, NotAuthorized, RpcError
from node.rpc.service import Readiness, Status
from node.testnet.layout import load_layout
from node.testnet.processes import NodeProcess, ProcessTestnet

OBSERVERS_MAX = 32
_ANSWER_S = 5.0

app = typer.Typer(no_args_is_help=True, help="Run a whole consortium on this machine.")

Folder = Annotated[Path, typer.Option("--folder", "-f", help="Where the testnet lives.")]
_FOLDER = Path("testnet")


@dataclass(frozen=True, slots=True)
class NodeState:
    """What can be said of one node."""

    institution: str
    is_running: bool
    pid: int | None
    rpc: str
    config: Path
    status: Status | None  # None when it does not answer
    readiness: Readiness | None
    problem: str  # a sentence; empty when it answers


@app.command()
def up(
    folder: Folder = _FOLDER,
    nodes: Annotated[
        int, typer.Option("--nodes", "-n", min=1, max=VALIDATORS_MAX, help="Validators.")
    ] = 4,
    observers: Annotated[
        int, typer.Option(min=0, max=OBSERVERS_MAX, help="Nodes that follow without voting.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Start a testnet that goes on after this command; a new one is made the first time."""
    with explained(as_json):
        states = asyncio.run(_up(folder, nodes, observers, quiet=as_json))
        _answer(folder, states, as_json)
        if not as_json:
            config = states[0].config
            say(f"Ask a node, for instance: radledger status --config {config}")
            say(f"End it with: radledger testnet down --folder {folder}")


@app.command()
def down(
    folder: Folder = _FOLDER,
    as_json: Json = False,
) -> None:
    """Stop all nodes of a testnet. Their data stays: `up` goes on from there."""
    with explained(as_json):
        stopped = asyncio.run(_down(folder, quiet=as_json))
        if as_json:
            show_json({"folder": folder, "stopped": stopped})
        else:
            say(f"stopped: {', '.join(stopped)}" if stopped else "no node was running")


@app.command()
def status(
    folder: Folder = _FOLDER,
    as_json: Json = False,
) -> None:
    """Show every node; exit status 1 unless all are running and ready."""
    with explained(as_json):
        states = asyncio.run(states_of(_existing(folder).nodes))
        _answer(folder, states, as_json)
        if not all(state.readiness is not None and state.readiness.is_ready for state in states):
            raise typer.Exit(WRONG)


async def states_of(nodes: list[NodeProcess]) -> list[NodeState]:
    """Ask all nodes at once."""
    return await asyncio.gather(*(_state(node) for node in nodes))


def show_states(states: list[NodeState]) -> None:
    """Print a row for every node."""
    show_table(
        ("institution", "pid", "role", "height", "sealed", "view", "primary", "ready", "rpc"),
        [_row(state) for state in states],
    )


async def _up(folder: Path, nodes: int, observers: int, *, quiet: bool) -> list[NodeState]:
    _check_shape(folder, nodes, observers)
    async with _spinner(f"starting {nodes + observers} nodes", quiet):
        net = await asyncio.to_thread(ProcessTestnet, folder, nodes, observers)
        idle = [index for index, node in enumerate(net.nodes) if not node.is_running]
        try:
            await net.start(idle, detached=True)
            await net.wait_ready()
        except BaseException as error:
            await asyncio.gather(*(net.nodes[index].kill() for index in idle))
            if isinstance(error, RuntimeError):
                raise Failure(UNABLE, str(error)) from error
            if isinstance(error, TimeoutError):
                raise Failure(UNABLE, f"the nodes did not come together; see {folder}") from error
            raise
        return await states_of(net.nodes)


def _check_shape(folder: Path, nodes: int, observers: int) -> None:
    """A testnet keeps the size that it was made with."""
    try:
        layout = load_layout(folder)
    except FileNotFoundError:
        return
    found = len(layout.configs)
    if found != nodes + observers:
        raise Failure(
            USAGE,
            f"{folder} holds a testnet of {found} nodes, not {nodes + observers}: "
            "name its numbers, or another --folder",
        )


async def _down(folder: Path, *, quiet: bool) -> list[str]:
    net = _existing(folder)
    running = [node.name for node in net.nodes if node.is_running]
    async with _spinner("stopping", quiet):
        await net.stop()
    return running


def _existing(folder: Path) -> ProcessTestnet:
    try:
        load_layout(folder)
    except FileNotFoundError as error:
        raise Failure(USAGE, f"{error}; `radledger testnet up` makes one") from error
    return ProcessTestnet(folder)


async def _state(node: NodeProcess) -> NodeState:
    running = node.is_running
    stands, ready, problem = None, None, "is not running"
    if running:
        try:
            async with asyncio.timeout(_ANSWER_S), node.client() as client:
                stands, ready = await asyncio.gather(client.status(), client.readiness())
                problem = ""
        except (ConnectionLost, NotAuthorized, RpcError, TimeoutError) as error:
            problem = str(error) or "does not answer"
    pid = node.pid if running and node.is_running else None
    config = node.folder / CONFIG
    return NodeState(node.name, running, pid, node.rpc_url, config, stands, ready, problem)


def _answer(folder: Path, states: list[NodeState], as_json: bool) -> None:
    if as_json:
        show_json({"folder": folder, "nodes": states})
    else:
        show_states(states)


def _row(state: NodeState) -> tuple[object, ...]:
    name, stands, ready = state.institution, state.status, state.readiness
    if stands is None or ready is None:
        none = (None,) * 5
        return (name, state.pid, *none, Text(state.problem, "red"), state.rpc)
    verdict = Text("yes", "green") if ready.is_ready else Text(ready.reason, "red")
    role = "validator" if stands.is_validator else "observer"
    place = (stands.height, stands.stable_height, stands.view, stands.primary)
    return (name, state.pid, role, *place, verdict, state.rpc)


@asynccontextmanager
async def _spinner(text: str, quiet: bool) -> AsyncIterator[None]:
    shown = console()
    if quiet or not shown.is_terminal:
        yield
        return
    with shown.status(text):
        yield
