"""`radledger audit`: what happened to a study, and anchors of an institution's own records."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from node.cli.arguments import DEFAULT_CONFIG, ConfigFile, Cursor, read_study_id
from node.cli.context import Desk
from node.cli.failures import USAGE, WRONG, Failure, explained
from node.cli.output import Json, cell, say, show_json, show_table, time_text
from node.cli.signing import Call, KeyFile
from node.gateway.audit.anchoring import Anchored, anchor_logs, problem_of
from node.ledger.queries.audit_views import (
    ANCHORS_LIMIT_MAX,
    TRAIL_LIMIT_MAX,
    AnchorPage,
    TrailEntry,
    TrailPage,
)

app = typer.Typer(no_args_is_help=True, help="See what happened, and make records provable.")

Logs = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...", exists=True, dir_okay=False, help="Logs of one line a record, in order."
    ),
]


@app.command()
def trail(
    study_id: Annotated[
        bytes, typer.Argument(parser=read_study_id, metavar="STUDY", help="The study's id.")
    ],
    limit: Annotated[
        int, typer.Option(min=1, max=TRAIL_LIMIT_MAX, help="Events on one page.")
    ] = TRAIL_LIMIT_MAX,
    cursor: Cursor = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show everything that happened to a study, newest first: who, when, in which transaction."""
    with explained(as_json):
        page = asyncio.run(_trail(config_file, study_id, limit, cursor))
        if not page.entries and cursor is None:
            raise Failure(WRONG, "no study with this id is on the chain")
        if as_json:
            show_json(page)
        else:
            _show_trail(page)


@app.command()
def anchor(
    logs: Logs,
    start: Annotated[
        datetime | None,
        typer.Option(
            "--from", help="Begin of the very first period (UTC); the genesis' time if not given."
        ),
    ] = None,
    end: Annotated[
        datetime | None,
        typer.Option("--to", help="End of the period (UTC); the file's last change if not given."),
    ] = None,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Commit to whole logs, each the period since the one before, so that none can change later.

    Only a root goes on the chain. Run it again after any interruption: it goes on.
    """
    with explained(as_json):
        if end is not None and len(logs) > 1:
            raise Failure(USAGE, "--to is for one file; several end with their last changes")
        call = Call(config_file, key, as_json)
        done = asyncio.run(_anchor(call, logs, _milliseconds(start), _milliseconds(end)))
        if as_json:
            show_json({"anchored": done})
        else:
            _show_anchored(done)


@app.command()
def check(
    logs: Logs,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Compare logs with what was anchored; exit status 1 unless all are complete and unchanged."""
    with explained(as_json):
        desk = Desk.open(config_file)
        found = [
            {"file": log, "problem": problem} for log, problem in asyncio.run(_check(desk, logs))
        ]
        is_intact = not any(each["problem"] for each in found)
        if as_json:
            show_json({"is_intact": is_intact, "logs": found})
        else:
            for each in found:
                say(f"{each['file']}: {each['problem'] or 'complete and unchanged'}")
        if not is_intact:
            raise typer.Exit(WRONG)


@app.command()
def anchors(
    institution: Annotated[str | None, typer.Argument(help="This one if not given.")] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=ANCHORS_LIMIT_MAX, help="Anchors on one page.")
    ] = 50,
    cursor: Cursor = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """List an institution's anchors, newest first."""
    with explained(as_json):
        page = asyncio.run(_anchors(Desk.open(config_file), institution, limit, cursor))
        if as_json:
            show_json(page)
        else:
            _show_anchors(page)


async def _trail(config_file: Path, study_id: bytes, limit: int, cursor: str | None) -> TrailPage:
    async with Desk.open(config_file).client() as client:
        return await client.audit_trail(study_id, limit=limit, cursor=cursor)


async def _anchors(
    desk: Desk, institution: str | None, limit: int, cursor: str | None
) -> AnchorPage:
    async with desk.client() as client:
        name = institution or desk.config.institution
        return await client.anchors(name, limit=limit, cursor=cursor)


async def _anchor(
    call: Call, logs: Sequence[Path], start_ms: int | None, end_ms: int | None
) -> list[Anchored]:
    async with call.actor() as actor:
        if start_ms is None:
            start_ms = actor.desk.genesis().time_ms
        return await anchor_logs(actor, logs, start_ms, end_ms)


async def _check(desk: Desk, logs: Sequence[Path]) -> list[tuple[Path, str]]:
    async with desk.client() as client:
        return [(log, await problem_of(client, log)) for log in logs]


def _milliseconds(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.replace(tzinfo=UTC).timestamp() * 1000)


def _show_trail(page: TrailPage) -> None:
    show_table(
        ("height", "time", "event", "by", "fields", "transaction"),
        [_row(entry) for entry in page.entries],
    )
    if page.next_cursor is not None:
        say(f"There is more, older: --cursor {page.next_cursor}")
    say("Next: nobody has to act; `radledger proof make` proves any of it to those without a node.")


def _row(entry: TrailEntry) -> tuple[object, ...]:
    place = (entry.height, time_text(entry.time_ms), entry.name, entry.institution)
    return (*place, cell(entry.fields), entry.transaction_id)


def _show_anchored(done: list[Anchored]) -> None:
    show_table(
        ("file", "outcome", "number", "records", "height", "evidence"),
        [(d.file, d.outcome, d.sequence, d.records, d.height, d.evidence) for d in done],
    )
    say("Next: keep each log with its evidence; `radledger audit check FILE` compares them.")


def _show_anchors(page: AnchorPage) -> None:
    if page.anchors:
        show_table(
            ("number", "from", "to", "records", "root", "height"),
            [
                (a.sequence, time_text(a.from_ms), time_text(a.to_ms), a.count, a.root, a.height)
                for a in page.anchors
            ],
        )
    elif page.next_cursor is None:
        say("Nothing was anchored.")
    if page.next_cursor is not None:
        say(f"There is more, older: --cursor {page.next_cursor}")
