"""The command `radledger`: one room for an operator's and a developer's hands."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from node.cli.failures import UNEXPECTED, report
from node.cli.lazy import LazyGroup

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
    "consent": "node.cli.consent:app",
    "policy": "node.cli.policy:app",
    "access": "node.cli.access:app",
    "audit": "node.cli.audit:app",
    "institution": "node.cli.institution:app",
    "member": "node.cli.member:app",
    "gov": "node.cli.gov:app",
    "tx": "node.cli.tx:app",
    "block": "node.cli.block:block",
    "events": "node.cli.events:events",
    "proof": "node.cli.proof:app",
    "store": "node.cli.store:app",
    "gateway": "node.cli.gateway:app",
    "exchange": "node.cli.exchange:app",
    "testnet": "node.cli.testnet:app",
    "demo": "node.cli.demo.command:demo",
}
TRACEBACK = "RADLEDGER_TRACEBACK"


class Commands(LazyGroup):
    """The commands of the table above."""

    table = COMMANDS


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
