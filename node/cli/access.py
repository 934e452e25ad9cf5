"""`radledger access`: ask for studies of other institutions, decide, hand over, use, review."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from node.cli.access_report import request_next, show_page, show_request
from node.cli.arguments import (
    DEFAULT_CONFIG,
    ConfigFile,
    Cursor,
    Purpose,
    read_digest,
    read_key_id,
    read_request_id,
    read_study_id,
    words_of,
)
from node.cli.context import Desk
from node.cli.failures import USAGE, WRONG, Failure, explained
from node.cli.output import Json, say, show_json
from node.cli.references import chosen_digest
from node.cli.signing import Actor, Call, KeyFile, new_id
from node.ledger.contracts.access_forms import ASKING_ROLES
from node.ledger.contracts.access_record import DENIED, STATES
from node.ledger.contracts.vocabulary import (
    BREAK_GLASS_PURPOSES,
    BREAK_GLASS_REASONS,
    DENY_REASONS,
    FINDINGS,
    REVOKE_REASONS,
)
from node.ledger.limits import HEIGHT_MAX
from node.ledger.queries.access_views import (
    REQUESTS_LIMIT_MAX,
    RequestPage,
    RequestQuery,
    RequestView,
)

app = typer.Typer(no_args_is_help=True, help="Ask for studies of other institutions, and answer.")

Request = Annotated[
    bytes,
    typer.Argument(parser=read_request_id, metavar="ID", help="Of the request, 32 hex digits."),
]
Study = Annotated[
    bytes, typer.Argument(parser=read_study_id, metavar="STUDY", help="The study's id.")
]
KeyId = Annotated[
    bytes | None,
    typer.Option(
        "--key-id",
        parser=read_key_id,
        metavar="ID",
        help="Of this institution's encryption key, to which the study's key is to be wrapped.",
    ),
]


@app.command()
def request(
    study_id: Study,
    purpose: Purpose,
    role: Annotated[
        str,
        typer.Option(
            parser=words_of(ASKING_ROLES, "the role of a requester"),
            metavar="WORD",
            help="In which the signing member asks: clinician, researcher or gateway.",
        ),
    ] = "clinician",
    heights: Annotated[
        int, typer.Option(min=1, max=HEIGHT_MAX, help="For how long, from the grant on.")
    ] = 10_000,
    uses: Annotated[int, typer.Option(min=1, max=HEIGHT_MAX, help="How often at most.")] = 100,
    deidentified: Annotated[
        bool, typer.Option("--deidentified", help="A de-identified copy is enough.")
    ] = False,
    ethics: Annotated[
        Path | None, typer.Option(help="The ethics approval; its salted digest is named.")
    ] = None,
    ethics_digest: Annotated[
        bytes | None,
        typer.Option(parser=read_digest, metavar="HEX", help="The same, made elsewhere."),
    ] = None,
    key_id: KeyId = None,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Ask for access. Consent and policies decide at once if they can; exit status 1 if denied."""
    with explained(as_json):
        approval = chosen_digest(ethics, ethics_digest, "--ethics", salted=True)
        request_id = new_id()
        terms = (role, purpose, heights, uses, deidentified, approval, key_id)
        call = Call(config_file, key, as_json)
        arguments = (request_id, study_id, *terms)
        view = asyncio.run(_act(call, "access.request", request_id, arguments))
        if view.state == DENIED:
            raise typer.Exit(WRONG)


@app.command(name="break-glass")
def break_glass(
    study_id: Study,
    reason: Annotated[
        str,
        typer.Option(
            parser=words_of(BREAK_GLASS_REASONS, "a reason"),
            metavar="WORD",
            help="Why; it will be reviewed.",
            autocompletion=lambda: sorted(BREAK_GLASS_REASONS),
        ),
    ],
    purpose: Annotated[
        str,
        typer.Option(
            parser=words_of(BREAK_GLASS_PURPOSES, "the purpose of an emergency access"),
            metavar="WORD",
            help="ETREAT or TREAT.",
        ),
    ] = "ETREAT",
    key_id: KeyId = None,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Take access in an emergency, against consent and policy; a clinician only, and reviewed."""
    with explained(as_json):
        request_id = new_id()
        arguments = (request_id, study_id, "clinician", purpose, reason, key_id)
        call = Call(config_file, key, as_json)
        asyncio.run(_act(call, "access.break_glass", request_id, arguments))


@app.command()
def approve(
    request_id: Request,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Grant a request that waits for a person, at the custodian."""
    with explained(as_json):
        _step("access.approve", request_id, (), Call(config_file, key, as_json))


@app.command()
def deny(
    request_id: Request,
    reason: Annotated[
        str,
        typer.Option(
            parser=words_of(DENY_REASONS, "a reason"),
            metavar="WORD",
            help="Why.",
            autocompletion=lambda: sorted(DENY_REASONS),
        ),
    ],
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Deny a request that waits, at the custodian or as its patient."""
    with explained(as_json):
        _step("access.deny", request_id, (reason,), Call(config_file, key, as_json))


@app.command()
def revoke(
    request_id: Request,
    reason: Annotated[
        str,
        typer.Option(
            parser=words_of(REVOKE_REASONS, "a reason"),
            metavar="WORD",
            help="Why.",
            autocompletion=lambda: sorted(REVOKE_REASONS),
        ),
    ],
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """End a granted access, at the custodian or as its patient."""
    with explained(as_json):
        _step("access.revoke", request_id, (reason,), Call(config_file, key, as_json))


@app.command()
def cancel(
    request_id: Request,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Take back a request that still waits, at the institution that asked."""
    with explained(as_json):
        _step("access.cancel", request_id, (), Call(config_file, key, as_json))


@app.command()
def deliver(
    request_id: Request,
    wrapped: Annotated[
        Path | None, typer.Option(help="The file with the study's key, wrapped to the requester's.")
    ] = None,
    wrapped_digest: Annotated[
        bytes | None,
        typer.Option(parser=read_digest, metavar="HEX", help="Its SHA-256, if it is elsewhere."),
    ] = None,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Record that the custodian handed the study's key over."""
    with explained(as_json):
        digest = chosen_digest(wrapped, wrapped_digest, "--wrapped", salted=False)
        if digest is None:
            raise Failure(USAGE, "name the wrapped key with --wrapped FILE or --wrapped-digest HEX")
        _step("access.deliver", request_id, (digest,), Call(config_file, key, as_json))


@app.command()
def receive(
    request_id: Request,
    root: Annotated[
        bytes | None,
        typer.Option(
            parser=read_digest,
            metavar="HEX",
            help="Of the version that arrived; the study's current one if not given.",
        ),
    ] = None,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Confirm at the requester that the study arrived whole, by its root."""
    with explained(as_json):
        asyncio.run(_receive(Call(config_file, key, as_json), request_id, root))


@app.command()
def use(
    request_id: Request,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Record one use of a received study; consent and term are asked anew each time."""
    with explained(as_json):
        _step("access.use", request_id, (), Call(config_file, key, as_json))


@app.command()
def expire(
    request_id: Request,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Record that a request's time is over. It counts as over without that, too."""
    with explained(as_json):
        _step("access.expire", request_id, (), Call(config_file, key, as_json))


@app.command()
def review(
    request_id: Request,
    finding: Annotated[
        str,
        typer.Option(
            parser=words_of(FINDINGS, "a finding"), metavar="WORD", help="justified or unjustified."
        ),
    ],
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Review an emergency access, as the custodian's data protection officer; once."""
    with explained(as_json):
        _step("access.review", request_id, (finding,), Call(config_file, key, as_json))


@app.command()
def show(
    request_id: Request,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show a request: its terms, what became of it, whether it permits now, and what is next."""
    with explained(as_json):
        view = asyncio.run(_find(config_file, request_id))
        if view is None:
            raise Failure(WRONG, "no request with this id is on the chain")
        if as_json:
            show_json(view)
        else:
            show_request(view)


@app.command(name="list")
def list_command(
    institution: Annotated[str | None, typer.Option(help="Which asked.")] = None,
    custodian: Annotated[str | None, typer.Option(help="Which was asked.")] = None,
    study: Annotated[
        bytes | None, typer.Option(parser=read_study_id, metavar="ID", help="For which study.")
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            parser=words_of(STATES, "a state"),
            metavar="WORD",
            help="As it is now, e.g. waiting_person.",
            autocompletion=lambda: sorted(STATES),
        ),
    ] = None,
    unreviewed: Annotated[
        bool, typer.Option("--unreviewed", help="Only emergency accesses without a review.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=REQUESTS_LIMIT_MAX, help="Requests on one page.")
    ] = RequestQuery().limit,
    cursor: Cursor = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """List requests, newest first, page by page."""
    with explained(as_json):
        query = RequestQuery(
            institution=institution,
            custodian=custodian,
            study_id=study,
            state=state,
            break_glass_unreviewed=unreviewed,
            limit=limit,
            cursor=cursor,
        )
        page = asyncio.run(_search(config_file, query))
        if as_json:
            show_json(page)
        else:
            show_page(page)


def _step(name: str, request_id: bytes, more: tuple[object, ...], call: Call) -> None:
    asyncio.run(_act(call, name, request_id, (request_id, *more)))


async def _act(
    call: Call, name: str, request_id: bytes, arguments: tuple[object, ...]
) -> RequestView:
    async with call.actor() as actor:
        return await _submit(call, actor, name, request_id, arguments)


async def _submit(
    call: Call, actor: Actor, name: str, request_id: bytes, arguments: tuple[object, ...]
) -> RequestView:
    submitted = await actor.submit(name, arguments)
    view = await actor.client.request(request_id)
    if view is None:
        raise RuntimeError("the node executed a request that it does not know")
    if call.as_json:
        show_json({"transaction": submitted, "request": view, "next": request_next(view)})
    else:
        say(f"Recorded at height {submitted.height}.", "green")
        show_request(view)
    return view


async def _receive(call: Call, request_id: bytes, root: bytes | None) -> None:
    async with call.actor() as actor:
        if root is None:
            root = await _current_root(actor, request_id)
        await _submit(call, actor, "access.receive", request_id, (request_id, root))


async def _current_root(actor: Actor, request_id: bytes) -> bytes:
    asked = await actor.client.request(request_id)
    study = None if asked is None else await actor.client.study(asked.study_id)
    if study is None:
        raise Failure(WRONG, "no request with this id is on the chain", code="request_unknown")
    return study.summary.root


async def _find(config_file: Path, request_id: bytes) -> RequestView | None:
    async with Desk.open(config_file).client() as client:
        return await client.request(request_id)


async def _search(config_file: Path, query: RequestQuery) -> RequestPage:
    async with Desk.open(config_file).client() as client:
        return await client.requests(query)
