"""The command `radledger`: one room for an operator's and a developer's hands."""

import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from node.cli.failures import UNEXPECTED, report

# Where each command is. A module is loaded when its command is asked for: a node (`start`) has no
# use for what reads DICOM files, a third of its memory at rest, nor a client for a whole node.
COMMANDS = {
    "keygen": "node.cli.keygen:keygen",
    "genesis": "node.cli.genesis:genesis",
    "init": "node.cli.init:init",
    "config": "node.cli.config:app",
    "start": "node.cli.start:start",
    "status": "node.cli.status:status",
    "study": "node.cli.study:app",
    "tx": "node.cli.tx:app",
    "block": "node.cli.block:block",
    "events": "node.cli.events:events",
    "testnet": "node.cli.testnet:app",
    "demo": "node.cli.demo.command:demo",
}
TRACEBACK = "RADLEDGER_TRACEBACK"


class Commands(TyperGroup):
    """The commands of the table above, each loaded when it is needed."""

    # Any: typer brings a click of its own in late versions, and uses the package in early ones.
    def list_commands(self, ctx: Any) -> list[str]:
        """Return all names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, or None when there is none of this name."""
        # For a name that is none, all are loaded: typer suggests one that is like it.
        for name in [cmd_name] if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                self.commands[name] = _load(name)
        return self.commands.get(cmd_name)


def _load(name: str) -> Any:
    module, _, attribute = COMMANDS[name].partition(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        group = found
    else:
        group = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        group.command(name)(found)
    command = typer.main.get_command(group)
    command.name = name
    return command


app = typer.Typer(
    name="radledger",
    cls=Commands,
    help="A peer-to-peer ledger for hospitals that share medical imaging.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"radledger {version('radledger')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_show_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """A peer-to-peer ledger for hospitals that share medical imaging."""


def main() -> None:
    """Run the command."""
    try:
        app()
    except Exception as error:  # the last stop: a bug, in one sentence
        if os.environ.get(TRACEBACK):
            raise
        report(
            f"unexpected {type(error).__name__}: {error}",
            f"this is a bug in radledger; set {TRACEBACK}=1 to see where, and report it",
        )
        sys.exit(UNEXPECTED)
