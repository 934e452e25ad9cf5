"""`radledger exchange keys`: the keys to which other hospitals wrap studies for this one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from node import provision
from node.cli.advice import lines_about
from node.cli.arguments import DEFAULT_CONFIG, ConfigFile, read_key_id
from node.cli.context import Desk
from node.cli.failures import USAGE, WRONG, Failure, explained
from node.cli.output import Json, say, show_json, show_pairs, show_table
from node.cli.signing import Call, meaning_of_code
from node.gateway.acting import Acting
from node.gateway.exchange import KEYS
from node.gateway.key_service import KeyRefused, KeyService
from node.ledger.queries.member_views import EncryptionKeyView
from node.studies import Signer

app = typer.Typer(no_args_is_help=True, help="Exchange studies with other institutions.")
keys_app = typer.Typer(no_args_is_help=True, help="Publish, list and retire encryption keys.")
app.add_typer(keys_app, name="keys")

Kem = Literal["x25519-mlkem768", "x25519"]


@keys_app.command()
def publish(
    kem: Annotated[
        Kem, typer.Option("--kem", help="How study keys are wrapped to it (HPKE, RFC 9180).")
    ] = "x25519-mlkem768",
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Make an encryption key, keep it in the exchange's folder, and publish it.

    Another institution's gateway challenges it and this one's answers; then it is confirmed.
    """
    with explained(as_json):
        view = asyncio.run(_publish(Call(config_file, None, as_json), kem))
        if as_json:
            show_json({"key": view})
            return
        say("Published.", "green")
        _show(view)
        say("Next: another institution's gateway challenges it, and this one's answers.", "bold")


@keys_app.command(name="list")
def list_command(
    institution: Annotated[
        str | None, typer.Argument(help="Whose keys; this institution's if not given.")
    ] = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show an institution's encryption keys, newest first, and which open here."""
    with explained(as_json):
        desk = Desk.open(config_file)
        name = institution or desk.config.institution
        found, files = asyncio.run(_list(desk, name))
        if as_json:
            show_json({"keys": found, "files": sorted(files)})
            return
        own = name == desk.config.institution
        if not found:
            say(f"{name} has published no key.", "yellow")
            return
        show_table(
            ("key", "kem", "state", "published", "confirmed", "retired", "opens here"),
            [
                (
                    key.key_id,
                    key.kem,
                    key.state,
                    key.published_height,
                    key.confirmed_height,
                    key.retired_height,
                    key.key_id.hex() in files if own else None,
                )
                for key in found
            ],
        )


@keys_app.command()
def retire(
    key_id: Annotated[
        bytes, typer.Argument(parser=read_key_id, metavar="KEY", help="The key's id.")
    ],
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Close a key for good: nothing new is wrapped to it. Its file stays, for what was."""
    with explained(as_json):
        view = asyncio.run(_retire(Call(config_file, None, as_json), key_id))
        if as_json:
            show_json({"key": view})
            return
        say("Retired.", "green")
        _show(view)


async def _publish(call: Call, kem: str) -> EncryptionKeyView:
    async with _service(call) as (service, acting):
        key_id = await service.publish(kem)
        return await _view(acting, key_id)


async def _retire(call: Call, key_id: bytes) -> EncryptionKeyView:
    async with _service(call) as (service, acting):
        await service.retire(key_id)
        return await _view(acting, key_id)


async def _list(desk: Desk, institution: str) -> tuple[list[EncryptionKeyView], set[str]]:
    """Return the keys on the ledger, and the ids of those whose files are here."""
    async with desk.client() as client:
        found: list[EncryptionKeyView] = []
        cursor: str | None = None
        while True:
            page = await client.encryption_keys(institution, cursor=cursor)
            found += page.keys
            cursor = page.next_cursor
            if cursor is None:
                return found, _files(desk)


def _files(desk: Desk) -> set[str]:
    if desk.config.exchange is None:
        return set()
    paths = (desk.config.exchange.folder / KEYS).glob("encryption-*.key")
    return {path.stem.removeprefix("encryption-") for path in paths}


@asynccontextmanager
async def _service(call: Call) -> AsyncIterator[tuple[KeyService, Acting]]:
    async with call.actor() as actor:
        config = actor.desk.config
        folder = _folder(actor.desk)
        signer = Signer(actor.private, actor.institution, actor.chain_id)
        acting = Acting(actor.client, signer)
        service = KeyService(acting, folder, provision.passphrase_of(config.key))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            yield service, acting
        except KeyRefused as error:
            lines = lines_about(error.code, meaning_of_code(error.code))
            raise Failure(WRONG, *lines, code=error.code) from error


def _folder(desk: Desk) -> Path:
    if desk.config.exchange is None:
        raise Failure(USAGE, "the config has no [exchange]: name its folder, where keys are kept")
    return desk.config.exchange.folder / KEYS


async def _view(acting: Acting, key_id: bytes) -> EncryptionKeyView:
    view = await acting.encryption_key(acting.institution, key_id)
    if view is None:
        raise RuntimeError("the node changed a key that it does not know")
    return view


def _show(key: EncryptionKeyView) -> None:
    show_pairs([("key", key.key_id), ("kem", key.kem), ("state", key.state)])
