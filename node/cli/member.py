"""`radledger member`: who may sign for an institution."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from node import keys
from node.cli.arguments import (
    DEFAULT_CONFIG,
    ConfigFile,
    Cursor,
    read_public_key,
    read_role,
)
from node.cli.cards import CARD_SUFFIX, MemberCard, require_chain
from node.cli.context import Desk
from node.cli.failures import USAGE, Failure, explained
from node.cli.output import Json, say, show_json, show_pairs, show_table
from node.cli.passphrases import made_passphrase
from node.cli.signing import Actor, Call, KeyFile
from node.ledger import genesis_file
from node.ledger.genesis import ROLES
from node.ledger.limits import HEIGHT_MAX
from node.ledger.queries.member_views import MEMBERS_LIMIT_MAX, MemberPage, MemberView
from node.rpc.service import Submitted

app = typer.Typer(no_args_is_help=True, help="Decide who may sign for this institution.")

Key = Annotated[
    bytes, typer.Argument(parser=read_public_key, metavar="KEY", help="The member's public key.")
]
Roles = Annotated[
    list[str],
    typer.Option(
        "--role",
        "-r",
        parser=read_role,
        metavar="WORD",
        help=f"Once for each: {', '.join(sorted(ROLES))}.",
        autocompletion=lambda: sorted(ROLES),
    ),
]


@app.command()
def keygen(
    file: Annotated[Path, typer.Argument(help="The new key's file; encrypted.")],
    institution: Annotated[
        str | None, typer.Option(help="Of the member; the config's if not given.")
    ] = None,
    genesis: Annotated[
        Path | None, typer.Option("--genesis", "-g", help="The chain's; the config's if not given.")
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="A file (mode 0600) with the passphrase for the key.")
    ] = None,
    ask: Annotated[
        bool, typer.Option("--ask-passphrase", help="Ask for the passphrase at the terminal.")
    ] = False,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Make a person's key and its public card. Nothing is sent; an administrator adds the card.

    With --institution and --genesis it runs anywhere, without a node. Without a passphrase a random
    one is made and kept in FILE.passphrase.
    """
    with explained(as_json):
        if (institution is None) != (genesis is None):
            raise Failure(USAGE, "--institution and --genesis belong together")
        if institution is None or genesis is None:
            desk = Desk.open(config_file)
            institution, chain_id = desk.config.institution, desk.genesis().chain_id
        else:
            chain_id = genesis_file.load(genesis).chain_id
        card_file = file.with_name(file.name + CARD_SUFFIX)
        for path in (file, card_file):
            if path.exists():
                raise Failure(USAGE, f"{path} exists and is never overwritten")
        passphrase, is_random = made_passphrase(file, passphrase_file, ask)
        private = keys.generate()
        keys.save(private, file, passphrase, stretch=not is_random)
        card = MemberCard.make(private, chain_id, institution)
        card.save(card_file)
        answer = {
            "institution": institution,
            "public_key": card.public_key,
            "key": file,
            "card": card_file,
        }
        if as_json:
            show_json(answer)
            return
        show_pairs((name.replace("_", " "), value) for name, value in answer.items())
        say(f"Next: send {card_file}, which is public, to an administrator of {institution}:")
        say(f"      radledger member add {card_file} --role ...")


@app.command()
def add(
    card: Annotated[Path, typer.Argument(help="What `member keygen` wrote beside the key.")],
    role: Roles,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Let a key sign for this institution, in the roles given."""
    with explained(as_json):
        new = MemberCard.load(card)
        call = Call(config_file, key, as_json)
        asyncio.run(_add(call, card, new, tuple(sorted(set(role)))))


@app.command()
def roles(
    public_key: Key,
    role: Roles,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Give a member these roles, instead of those it has."""
    with explained(as_json):
        arguments = (public_key, tuple(sorted(set(role))))
        call = Call(config_file, key, as_json)
        asyncio.run(_act(call, "registry.member_set_roles", public_key, arguments))


@app.command()
def suspend(
    public_key: Key,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Let a member sign no more, for instance because its key is lost."""
    with explained(as_json):
        call = Call(config_file, key, as_json)
        asyncio.run(_act(call, "registry.member_suspend", public_key, (public_key,)))


@app.command()
def resume(
    public_key: Key,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Let a suspended member sign again."""
    with explained(as_json):
        call = Call(config_file, key, as_json)
        asyncio.run(_act(call, "registry.member_resume", public_key, (public_key,)))


@app.command()
def rotate(
    public_key: Key,
    card: Annotated[Path, typer.Argument(help="Of the new key, by `member keygen`.")],
    overlap: Annotated[
        int, typer.Option(min=0, max=HEIGHT_MAX, help="Heights for which the old key goes on.")
    ] = 1_000,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Let a new key take over a member's roles; the old one goes on for a while."""
    with explained(as_json):
        new = MemberCard.load(card)
        call = Call(config_file, key, as_json)
        asyncio.run(_rotate(call, card, public_key, new, overlap))


@app.command(name="list")
def list_command(
    institution: Annotated[str | None, typer.Argument(help="This one if not given.")] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=MEMBERS_LIMIT_MAX, help="Members on one page.")
    ] = 50,
    cursor: Cursor = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """List an institution's members, their roles, and whether they can act."""
    with explained(as_json):
        desk = Desk.open(config_file)
        page = asyncio.run(_list(desk, institution or desk.config.institution, limit, cursor))
        if as_json:
            show_json(page)
        else:
            _show_page(page)


async def _add(call: Call, file: Path, card: MemberCard, names: tuple[str, ...]) -> None:
    async with call.actor() as actor:
        _require_fits(actor, card, file)
        arguments = (card.public_key, names, card.possession)
        await _submit(call, actor, "registry.member_add", card.public_key, arguments)


async def _rotate(call: Call, file: Path, old: bytes, card: MemberCard, overlap: int) -> None:
    async with call.actor() as actor:
        _require_fits(actor, card, file)
        arguments = (old, card.public_key, card.possession, overlap)
        await _submit(call, actor, "registry.member_rotate", card.public_key, arguments)


async def _act(call: Call, name: str, public_key: bytes, arguments: tuple[object, ...]) -> None:
    async with call.actor() as actor:
        await _submit(call, actor, name, public_key, arguments)


async def _submit(
    call: Call, actor: Actor, name: str, public_key: bytes, arguments: tuple[object, ...]
) -> None:
    submitted = await actor.submit(name, arguments)
    member = await _member(actor, public_key)
    if call.as_json:
        show_json({"transaction": submitted, "member": member})
    else:
        _show_done(submitted, member)


async def _member(actor: Actor, public_key: bytes) -> MemberView | None:
    """Return the member as it is now; members are listed by key, so a page or two finds it."""
    cursor = None
    while True:
        page = await actor.client.members(actor.institution, limit=MEMBERS_LIMIT_MAX, cursor=cursor)
        for member in page.members:
            if member.public_key == public_key:
                return member
        if page.next_cursor is None:
            return None
        cursor = page.next_cursor


async def _list(desk: Desk, institution: str, limit: int, cursor: str | None) -> MemberPage:
    async with desk.client() as client:
        return await client.members(institution, limit=limit, cursor=cursor)


def _require_fits(actor: Actor, card: MemberCard, file: Path) -> None:
    require_chain(card, actor.chain_id, file)
    if card.institution != actor.institution:
        raise Failure(
            USAGE, f"{file} was made for {card.institution}, but this is {actor.institution}"
        )


def _show_done(submitted: Submitted, member: MemberView | None) -> None:
    say(f"Recorded at height {submitted.height}.", "green")
    if member is None:
        return
    _show_members((member,))
    key = member.public_key.hex()
    if member.acts:
        say(f"Next: its holder signs with --key FILE; `radledger member suspend {key}` stops it.")
    else:
        say(f"Next: nothing; `radledger member resume {key}` lets it sign again.")


def _show_page(page: MemberPage) -> None:
    if page.members:
        _show_members(page.members)
    elif page.next_cursor is None:
        say("No such member.")
    if page.next_cursor is not None:
        say(f"There may be more: --cursor {page.next_cursor}")


def _show_members(members: tuple[MemberView, ...]) -> None:
    show_table(
        ("member", "institution", "roles", "may sign", "until height"),
        [(m.public_key, m.institution, m.roles, m.acts, m.until_height) for m in members],
    )
