"""`radledger proof`: statements about the chain as files that stand alone.

Verifying loads nothing of a node: whoever checks a proof needs no config, key or connection.
"""

import typer

from node.cli.lazy import LazyGroup


class Commands(LazyGroup):
    """Each from a module of its own."""

    table = {
        "make": "node.cli.proof_make:make",
        "verify": "node.cli.proof_verify:verify",
    }


app = typer.Typer(cls=Commands, no_args_is_help=True)


@app.callback()
def proof() -> None:
    """Make proof files, and verify them offline from the genesis alone."""
