"""`radledger gov`: what the consortium decides by vote of the institutions with a validator."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from node import keys, provision
from node.cli.arguments import DEFAULT_CONFIG, ConfigFile, Cursor, read_proposal_id
from node.cli.cards import APPLICATION, Application
from node.cli.context import Desk
from node.cli.failures import USAGE, WRONG, Failure, explained
from node.cli.gov_actions import ACTIONS, read_action, usage
from node.cli.gov_report import (
    proposal_next,
    show_page,
    show_parameters,
    show_proposal,
    show_trial,
)
from node.cli.output import Json, say, show_json, show_pairs
from node.cli.signing import Actor, Call, KeyFile, new_id
from node.ledger import genesis_file
from node.ledger.limits import HEIGHT_MAX
from node.ledger.queries.member_views import (
    MEMBERS_LIMIT_MAX,
    ParameterView,
    ProposalPage,
    ProposalTrial,
    ProposalView,
)

app = typer.Typer(no_args_is_help=True, help="Decide together: propose, vote, execute.")

_ACTIONS_HELP = "One of: " + "; ".join(map(usage, ACTIONS)) + "."

Proposal = Annotated[
    bytes,
    typer.Argument(parser=read_proposal_id, metavar="ID", help="Of the proposal, 32 hex digits."),
]
Action = Annotated[
    str,
    typer.Argument(metavar="ACTION", help=_ACTIONS_HELP, autocompletion=lambda: list(ACTIONS)),
]
Words = Annotated[list[str] | None, typer.Argument(metavar="WORD...", help="What it is about.")]


@app.command()
def propose(
    action: Action,
    words: Words = None,
    lifetime: Annotated[
        int, typer.Option(min=1, max=HEIGHT_MAX, help="Heights for which it can be voted on.")
    ] = 10_000,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Put an action to the vote; to propose is to approve. Try it first: `radledger gov try`."""
    with explained(as_json):
        call = Call(config_file, key, as_json)
        asyncio.run(_propose(call, action, words or [], lifetime))


@app.command(name="try")
def try_command(
    action: Annotated[
        str, typer.Argument(metavar="ID | ACTION", help="Of a proposal; or " + _ACTIONS_HELP)
    ],
    words: Words = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show what an action would do: the quorum after it, and who is live. Nothing is sent."""
    with explained(as_json):
        trial = asyncio.run(_try(Desk.open(config_file), action, words or []))
        if as_json:
            show_json(trial)
        else:
            show_trial(trial)
        if trial.problem is not None:
            raise typer.Exit(WRONG)


@app.command()
def vote(
    proposal_id: Proposal,
    approve: Annotated[
        bool | None, typer.Option("--approve/--reject", help="The institution's vote.")
    ] = None,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Give this institution's vote, or change it, until the proposal is executed."""
    with explained(as_json):
        if approve is None:
            raise Failure(USAGE, "say --approve or --reject")
        call = Call(config_file, key, as_json)
        asyncio.run(_act(call, "governance.vote", proposal_id, (proposal_id, approve)))


@app.command()
def withdraw(
    proposal_id: Proposal,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Take back a proposal of this institution."""
    with explained(as_json):
        call = Call(config_file, key, as_json)
        asyncio.run(_act(call, "governance.withdraw", proposal_id, (proposal_id,)))


@app.command()
def execute(
    proposal_id: Proposal,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Bring about what a quorum approves; what the state does not allow stays open."""
    with explained(as_json):
        call = Call(config_file, key, as_json)
        asyncio.run(_act(call, "governance.execute", proposal_id, (proposal_id,)))


@app.command()
def show(
    proposal_id: Proposal,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show a proposal: its votes, what is missing, and when a change reigns."""
    with explained(as_json):
        view = asyncio.run(_find(config_file, proposal_id))
        if as_json:
            show_json(view)
        else:
            show_proposal(view)


@app.command(name="list")
def list_command(
    state: Annotated[
        str | None, typer.Option(help="E.g. open, passed, executed; all if not given.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=MEMBERS_LIMIT_MAX, help="Proposals on one page.")
    ] = 50,
    cursor: Cursor = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """List proposals, newest first."""
    with explained(as_json):
        page = asyncio.run(_list(config_file, state, limit, cursor))
        if as_json:
            show_json(page)
        else:
            show_page(page)


@app.command()
def parameters(config_file: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show the numbers that a vote can change, and their bounds."""
    with explained(as_json):
        found = asyncio.run(_parameters(config_file))
        if as_json:
            show_json({"parameters": found})
        else:
            show_parameters(found)


@app.command()
def application(
    genesis: Annotated[Path, typer.Option("--genesis", "-g", help="The consortium's genesis.")],
    folder: Annotated[
        Path, typer.Option("--folder", "-f", help="Where `radledger keygen` made the keys.")
    ] = Path("."),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it.")
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="The passphrase's file, if it is not kept in the folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write what an institution sends to be let in: public keys, and proof that it holds them."""
    with explained(as_json):
        chain_id = genesis_file.load(genesis).chain_id
        card = provision.Card.load(folder / provision.CARD)
        passphrase = keys.read_passphrase(_passphrase_source(folder, passphrase_file))
        node = keys.load(folder / provision.NODE_KEY, passphrase)
        gateway = keys.load(folder / provision.GATEWAY_KEY, passphrase)
        target = folder / APPLICATION if output is None else output
        made = Application.make(card, chain_id, node, gateway)
        made.save(target)
        answer = {
            "file": target,
            "institution": made.institution,
            "admin_key": made.admin_key,
            "node_key": made.node_key,
            "chain_id": chain_id,
        }
        if as_json:
            show_json(answer)
            return
        show_pairs((name.replace("_", " "), value) for name, value in answer.items())
        say(f"Next: send {target}, which is public, to an institution with a vote, which runs")
        say(f"      radledger gov propose institution-add {target.name}")
        say(f"      radledger gov propose validator-add {target.name}")


def _passphrase_source(folder: Path, file: Path | None) -> keys.PassphraseSource:
    beside = folder / provision.PASSPHRASE
    if file is not None or beside.exists():
        return keys.PassphraseFile(beside if file is None else file)
    return keys.PassphrasePrompt()


async def _propose(call: Call, action: str, words: list[str], lifetime: int) -> None:
    async with call.actor() as actor:
        name, arguments = read_action(action, words, actor.chain_id)
        proposal_id = new_id()
        asked = (proposal_id, name, arguments, lifetime)
        await _submit(call, actor, "governance.propose", proposal_id, asked)


async def _act(call: Call, name: str, proposal_id: bytes, arguments: tuple[object, ...]) -> None:
    async with call.actor() as actor:
        await _submit(call, actor, name, proposal_id, arguments)


async def _submit(
    call: Call, actor: Actor, name: str, proposal_id: bytes, arguments: tuple[object, ...]
) -> None:
    submitted = await actor.submit(name, arguments)
    view = await actor.client.proposal(proposal_id)
    if view is None:
        raise RuntimeError("the node executed a proposal that it does not know")
    if call.as_json:
        show_json({"transaction": submitted, "proposal": view, "next": proposal_next(view)})
    else:
        say(f"Recorded at height {submitted.height}.", "green")
        show_proposal(view)


async def _try(desk: Desk, action: str, words: list[str]) -> ProposalTrial:
    if action not in ACTIONS and not words:
        proposal_id = read_proposal_id(action)
        async with desk.client() as client:
            view = await client.proposal(proposal_id)
            return await client.proposal_try(_known(view).action, _known(view).arguments)
    name, arguments = read_action(action, words, desk.genesis().chain_id)
    async with desk.client() as client:
        return await client.proposal_try(name, arguments)


async def _find(config_file: Path, proposal_id: bytes) -> ProposalView:
    async with Desk.open(config_file).client() as client:
        return _known(await client.proposal(proposal_id))


def _known(view: ProposalView | None) -> ProposalView:
    if view is None:
        raise Failure(WRONG, "no proposal with this id is on the chain")
    return view


async def _list(
    config_file: Path, state: str | None, limit: int, cursor: str | None
) -> ProposalPage:
    async with Desk.open(config_file).client() as client:
        return await client.proposals(state, limit=limit, cursor=cursor)


async def _parameters(config_file: Path) -> tuple[ParameterView, ...]:
    async with Desk.open(config_file).client() as client:
        return await client.parameters()
