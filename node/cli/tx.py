"""`radledger tx`: look a transaction up, or hand in one that was signed elsewhere."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from node.cli.arguments import (
    DEFAULT_CONFIG,
    ConfigFile,
    Timeout,
    WaitOption,
    read_transaction_id,
)
from node.cli.context import Desk
from node.cli.failures import USAGE, WRONG, Failure, explained
from node.cli.output import Json, cell, show_json, show_pairs, show_table, time_text
from node.ledger.block import OK
from node.ledger.limits import LIMIT_BOUNDS
from node.ledger.queries import TransactionView
from node.rpc.service import Submitted, Wait

_BYTES_MAX = LIMIT_BOUNDS["transaction_bytes_max"][1]


class _ShowByDefault(TyperGroup):
    """`tx ID` is `tx show ID`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ShowByDefault,
    no_args_is_help=True,
    help="Look up a transaction (`radledger tx ID`), or submit a signed one.",
)


@app.command()
def show(
    transaction_id: Annotated[
        bytes, typer.Argument(parser=read_transaction_id, metavar="ID", help="64 hex digits.")
    ],
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show an executed transaction, where it is and what came of it."""
    with explained(as_json):
        view = asyncio.run(_find(config_file, transaction_id))
        if view is None:
            raise Failure(
                WRONG, "no executed transaction has this id; it may be waiting, or it was refused"
            )
        if as_json:
            show_json(view)
        else:
            _show(view)


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="The signed transaction's bytes; - for stdin.")],
    wait: WaitOption = "final",
    timeout: Timeout = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Submit a signed transaction and wait; the same bytes again never execute twice."""
    with explained(as_json):
        raw = _read(file)
        submitted = asyncio.run(_submit(config_file, raw, wait, timeout_s=timeout))
        if as_json:
            show_json(submitted)
        else:
            show_pairs(
                [
                    ("transaction", submitted.id),
                    ("state", submitted.state),
                    ("height", submitted.height),
                    ("result", submitted.code),
                    ("failed operation", submitted.operation),
                    ("rule", submitted.rule),
                ]
            )
        if submitted.code not in (OK, None):
            raise typer.Exit(WRONG)


def _read(file: Path) -> bytes:
    if str(file) == "-":
        raw = sys.stdin.buffer.read(_BYTES_MAX + 1)
    else:
        with file.open("rb") as stream:
            raw = stream.read(_BYTES_MAX + 1)
    if len(raw) > _BYTES_MAX:
        raise Failure(USAGE, f"{file}: more than {_BYTES_MAX} bytes: no transaction is so long")
    if not raw:
        raise Failure(USAGE, f"{file} is empty")
    return raw


async def _find(config_file: Path, transaction_id: bytes) -> TransactionView | None:
    async with Desk.open(config_file).client() as client:
        return await client.transaction(transaction_id)


async def _submit(
    config_file: Path, raw: bytes, wait: Wait, *, timeout_s: float | None
) -> Submitted:
    async with Desk.open(config_file).client() as client:
        return await client.submit(raw, wait, timeout_s)


def _show(view: TransactionView) -> None:
    transaction, receipt = view.transaction, view.receipt
    result = (
        receipt.code
        if receipt.operation is None
        else (f"{receipt.code} at operation {receipt.operation}")
    )
    show_pairs(
        [
            ("transaction", transaction.id),
            ("block", f"{view.height}, position {view.position}"),
            ("time", time_text(view.time_ms)),
            ("institution", transaction.institution),
            ("member key", transaction.member_key),
            ("valid until", transaction.valid_until),
            ("result", result),
            ("rule", receipt.rule),
            ("bytes", len(transaction.raw)),
        ]
    )
    show_table(
        ("operation", "arguments"),
        [(operation.name, cell(operation.arguments)) for operation in transaction.operations],
    )
    if receipt.events:
        show_table(
            ("event", "operation", "fields"),
            [(event.name, event.operation, cell(event.fields)) for event in receipt.events],
        )
