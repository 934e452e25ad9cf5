"""`radledger block`: one block, and who sealed it."""

import asyncio
from typing import Annotated

import typer

from node.cli.arguments import DEFAULT_CONFIG, ConfigFile
from node.cli.context import Desk
from node.cli.failures import WRONG, Failure, explained
from node.cli.output import Json, cell, show_json, show_pairs, show_table, time_text
from node.cli.seals import Seals, sealed_by, validators_of
from node.ledger.limits import HEIGHT_MAX
from node.ledger.queries import BlockView


def block(
    height: Annotated[
        int | None, typer.Argument(min=0, max=HEIGHT_MAX, help="The last block if not given.")
    ] = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show a block: header, transactions, and the institutions whose seals verify."""
    with explained(as_json):
        desk = Desk.open(config_file)
        view, seals = asyncio.run(_ask(desk, height))
        if as_json:
            show_json({"block": view, "seals": seals, "is_sealed": seals.is_sealed})
        else:
            _show(view, seals)
        if seals.problem:
            raise Failure(WRONG, seals.problem)


async def _ask(desk: Desk, height: int | None) -> tuple[BlockView, Seals]:
    genesis = desk.genesis()
    async with desk.client() as client:
        view = await client.block(height)
        if view is None:
            where = "no block yet" if height is None else f"no block at height {height} yet"
            raise Failure(WRONG, f"there is {where}")
        return view, sealed_by(view, genesis, await validators_of(view, genesis, client))


def _show(view: BlockView, seals: Seals) -> None:
    header = view.header
    sealed = f"{', '.join(seals.institutions)} (quorum {seals.quorum})"
    genesis_or_open = "the genesis needs none" if header.height == 0 else "not sealed yet"
    show_pairs(
        [
            ("height", header.height),
            ("time", time_text(header.time_ms)),
            ("digest", view.header_digest),
            ("parent", header.parent),
            ("transactions", f"{len(view.receipts)}, root {header.transactions_root.hex()}"),
            ("receipts root", header.receipts_root),
            ("state root", header.state_root),
            ("history root", header.history_root),
            ("sealed by", sealed if seals.institutions else genesis_or_open),
        ]
    )
    if view.receipts:
        show_table(
            ("transaction", "result", "rule", "events"),
            [
                (r.transaction_id, r.code, r.rule, cell(tuple(e.name for e in r.events)))
                for r in view.receipts
            ],
        )
