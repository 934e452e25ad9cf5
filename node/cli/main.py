"""The command `radledger`: one room for an operator's and a developer's hands."""

import typer

from node.cli.start import start

app = typer.Typer(
    name="radledger",
    help="A peer-to-peer ledger for hospitals that share medical imaging.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(start)


@app.callback()
def options() -> None:
    """A peer-to-peer ledger for hospitals that share medical imaging."""


def main() -> None:
    """Run the command."""
    app()
