"""`radledger study deliver`: a study out of the store to a PACS of this hospital."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from node.cli.arguments import DEFAULT_CONFIG, ConfigFile, read_study_id
from node.cli.context import Desk
from node.cli.failures import UNABLE, USAGE, WRONG, Failure, explained
from node.cli.fetch import opened_requester, told
from node.cli.output import Json, say, show_json, show_pairs
from node.exchange.store.opening import open_store
from node.exchange.transfer.errors import NotPermitted
from node.gateway.daemon import quota_of
from node.gateway.deliver import Deliverer, UnknownStudy
from node.gateway.deliver import Progress as Reached
from node.gateway.deliveries import DeliveriesUnusable, State
from node.gateway.delivering import WayUnusable, deliverer, open_deliveries, ways_of
from node.gateway.hand_over import use_token
from node.gateway.holdings import StoreHoldings
from node.gateway.index import SpoolError
from node.gateway.spool import Spool
from node.ledger.contracts.access_record import RECEIVED
from node.ledger.queries.access_views import RequestQuery
from node.ledger.queries.studies import StudySummary

POLL_S = 0.3
STILL_S = 15.0  # without any progress: the gateway may not be running

app = typer.Typer()


@app.command()
def deliver(
    study_id: Annotated[
        bytes, typer.Argument(parser=read_study_id, metavar="ID", help="32 hex digits.")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="AE", help="The PACS: the AE title of a peer.")
    ],
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until it is delivered and verified.")
    ] = True,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Send a study to a PACS of this hospital, read it back and verify it; the gateway does it.

    A study of another hospital counts as one use of its grant for each PACS. What was interrupted
    goes on by itself; the same again while it is under way only shows how far it is.
    """
    with explained(as_json), told(), _told():
        number, reached = asyncio.run(_deliver(Desk.open(config_file), study_id, to, wait, as_json))
        if as_json:
            show_json({"delivery": number, "to": to, "progress": reached})
        else:
            _show(number, to, reached)
        if reached.state is State.FAILED:
            raise typer.Exit(WRONG)


async def _deliver(
    desk: Desk, study_id: bytes, to: str, wait: bool, quiet: bool
) -> tuple[int, Reached]:
    study = await summary_of(desk, study_id)
    async with _opened(desk, study_id, to) as (delivers, study_uid):
        if study.custodian != desk.config.institution:
            await count_use(desk, study_id, use_token(to))
        number = await asyncio.to_thread(delivers.submit, study_uid, to)
        if wait:
            return number, await _watch(delivers, number, quiet)
        return number, await asyncio.to_thread(delivers.progress, number)


async def summary_of(desk: Desk, study_id: bytes) -> StudySummary:
    """Return what the ledger says of a study. Raises `Failure` if it says nothing."""
    async with desk.client() as client:
        view = await client.study(study_id)
    if view is None:
        raise Failure(WRONG, "no study with this id is on the chain")
    return view.summary


async def count_use(desk: Desk, study_id: bytes, token: bytes) -> None:
    """Count a use of the grant under which the study came, once for each `token`."""
    async with opened_requester(desk) as (requester, _), desk.client() as client:
        query = RequestQuery(institution=desk.config.institution, study_id=study_id, state=RECEIVED)
        refused = NotPermitted("request_unknown")
        for request in (await client.requests(query)).requests:
            try:
                # Even of a grant that is spent: this very use may have been counted before.
                await requester.use(request.id, token)
            except NotPermitted as error:
                refused = error
            else:
                return
        raise refused


@asynccontextmanager
async def _opened(desk: Desk, study_id: bytes, to: str) -> AsyncIterator[tuple[Deliverer, str]]:
    """Yield what takes the delivery down for the gateway, and the study's UID."""
    config = desk.config.gateway
    if config is None or desk.config.store is None:
        raise Failure(USAGE, "the config needs [gateway] and [store] to deliver studies")
    ways = ways_of(config)
    if to not in ways:
        known = ", ".join(sorted(ways)) or "none"
        sentence = f"no peer {to} that can be delivered to is in the config; there are: {known}"
        raise Failure(USAGE, sentence, "give it host and port, or web_url")
    if not (config.spool_dir / "index.db").exists():
        raise Failure(UNABLE, f"there is no spool at {config.spool_dir}: start the gateway")
    with ExitStack() as opened:
        store = await asyncio.to_thread(open_store, desk.config.store)
        opened.callback(store.close)
        spool = await asyncio.to_thread(Spool, config.spool_dir, quota_of(config))
        opened.callback(spool.close)
        deliveries = opened.enter_context(closing(open_deliveries(spool)))
        holdings = StoreHoldings(store)
        study_uid = await asyncio.to_thread(holdings.add, study_id)
        if study_uid is None:
            raise Failure(WRONG, "the store does not hold this study whole", "fetch it first")
        yield deliverer(deliveries, spool, holdings, ways), study_uid


async def _watch(delivers: Deliverer, number: int, quiet: bool) -> Reached:
    """Show how far the gateway is until it is at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    errors = Console(stderr=True)
    disable = quiet or not errors.is_terminal
    with Progress(*columns, console=errors, transient=True, disable=disable) as progress:
        task = progress.add_task("delivering", total=None)
        seen, since_s = None, time.monotonic()
        while True:
            reached = await asyncio.to_thread(delivers.progress, number)
            if reached.state is not State.WAITING:
                return reached
            done = reached.sent + 2 * (reached.verified + reached.found)
            progress.update(task, completed=done / 2, total=reached.instances)
            if reached != seen:
                seen, since_s = reached, time.monotonic()
            elif time.monotonic() - since_s > STILL_S:
                raise Failure(
                    UNABLE,
                    f"delivery {number} does not get on: {reached.reason or 'nothing has begun'}",
                    "it goes on by itself once the gateway runs and the PACS answers",
                )
            await asyncio.sleep(POLL_S)


@contextmanager
def _told() -> Iterator[None]:
    """Say in sentences what can go wrong with the PACS and the files of deliveries."""
    try:
        yield
    except WayUnusable as error:
        raise Failure(USAGE, str(error)) from error
    except UnknownStudy as error:
        raise Failure(WRONG, str(error)) from error
    except (SpoolError, DeliveriesUnusable) as error:
        raise Failure(UNABLE, str(error)) from error


def _show(number: int, to: str, reached: Reached) -> None:
    if reached.state is State.DONE:
        say(f"{to} has it: read back, and the images are the same.", "green")
    elif reached.state is State.FAILED:
        say(f"It was not delivered: {reached.reason}", "bold red")
    else:
        say(f"Delivery {number} is noted; the gateway does it.")
    show_pairs(
        [
            ("delivery", number),
            ("instances", reached.instances),
            ("verified", reached.verified),
            ("listed only", reached.found),
            ("sent", reached.sent),
            ("refused", reached.refused),
            ("altered", reached.altered),
        ]
    )
