"""`radledger institution`: who takes part, who votes, and with which keys."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from node.cli.arguments import DEFAULT_CONFIG, ConfigFile, Cursor
from node.cli.context import Desk
from node.cli.failures import WRONG, Failure, explained
from node.cli.output import Json, say, show_json, show_pairs, show_table
from node.ledger.queries.member_views import (
    MEMBERS_LIMIT_MAX,
    EncryptionKeyPage,
    InstitutionPage,
    InstitutionView,
)

app = typer.Typer(no_args_is_help=True, help="See who takes part in the consortium.")


@app.command(name="list")
def list_command(
    limit: Annotated[
        int, typer.Option(min=1, max=MEMBERS_LIMIT_MAX, help="Institutions on one page.")
    ] = 50,
    cursor: Cursor = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """List all institutions, by name."""
    with explained(as_json):
        page = asyncio.run(_list(config_file, limit, cursor))
        if as_json:
            show_json(page)
        else:
            _show_page(page)


@app.command()
def show(
    name: Annotated[str | None, typer.Argument(help="This institution if not given.")] = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show one institution: whether it votes, its nodes, and its encryption keys."""
    with explained(as_json):
        desk = Desk.open(config_file)
        view, keys = asyncio.run(_ask(desk, name or desk.config.institution))
        if as_json:
            show_json({"institution": view, "keys": keys.keys, "more_keys": keys.next_cursor})
        else:
            _show(view, keys)


async def _list(config_file: Path, limit: int, cursor: str | None) -> InstitutionPage:
    async with Desk.open(config_file).client() as client:
        return await client.institutions(limit=limit, cursor=cursor)


async def _ask(desk: Desk, name: str) -> tuple[InstitutionView, EncryptionKeyPage]:
    async with desk.client() as client:
        view = await client.institution(name)
        if view is None:
            raise Failure(
                WRONG, f"no institution is called {name}: `radledger institution list` shows all"
            )
        return view, await client.encryption_keys(name)


def _show_page(page: InstitutionPage) -> None:
    show_table(
        ("institution", "name", "country", "may act", "node"),
        [(v.name, v.display_name, v.country, v.is_active, _place(v)) for v in page.institutions],
    )
    if page.next_cursor is not None:
        say(f"There may be more: --cursor {page.next_cursor}")


def _show(view: InstitutionView, keys: EncryptionKeyPage) -> None:
    show_pairs(
        [
            ("institution", view.name),
            ("name", view.display_name),
            ("country", view.country),
            ("may act", view.is_active),
            ("administrators", view.administrators),
            ("node", _place(view)),
        ]
    )
    if keys.keys:
        show_table(
            ("encryption key", "kind", "published", "state", "next"),
            [
                (k.key_id, k.kem, k.published_height, k.state, k.next_step.sentence)
                for k in keys.keys
            ],
        )
    if keys.next_cursor is not None:
        say("There are more, older keys.")


def _place(view: InstitutionView) -> str:
    """Return what the institution's nodes do in the consortium, in words."""
    words = []
    if view.is_validator:
        until = view.validates_until
        words.append("votes" if until is None else f"votes up to height {until}")
    if view.validates_from is not None and not view.is_validator:
        words.append(f"votes from height {view.validates_from} on")
    if view.observers:
        words.append(f"{len(view.observers)} observing")
    return ", ".join(words) or "none"
