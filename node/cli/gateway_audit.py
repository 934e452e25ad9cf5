"""`radledger gateway audit`: the gateway's audit trail, proved whole, anchored, and sent again."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from node.cli.arguments import DEFAULT_CONFIG, ConfigFile
from node.cli.context import Desk
from node.cli.failures import UNABLE, USAGE, WRONG, Failure, explained
from node.cli.output import Json, say, show_json, show_pairs, show_table, time_text
from node.cli.signing import Call, KeyFile
from node.config import GatewayConfig
from node.gateway.audit import sent
from node.gateway.audit.anchoring import Anchored, anchor_trail, is_anchored, problem_of
from node.gateway.audit.auditor import folder_of
from node.gateway.audit.chain import Report, verify
from node.gateway.audit.evidence import evidence_file
from node.gateway.audit.reader import first_here, last_here
from node.gateway.audit.segments import segments
from node.gateway.audit.sender import RESEND

app = typer.Typer(no_args_is_help=True, help="The gateway's audit trail.")


@app.command()
def status(config_file: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show how many records there are, what the repository has, and what is anchored."""
    with explained(as_json):
        config = _gateway(Desk.open(config_file))
        folder = _folder(config)
        report, has = verify(folder), sent.load(folder)
        found = segments(folder)
        answer = {
            "folder": folder,
            "first": report.first,
            "last": report.last,
            "bytes": sum(each.path.stat().st_size for each in found),
            "bytes_max": config.audit.bytes_max,
            "repository": _place(config),
            "sent": has.seq,
            "sent_ms": has.time_ms,
            "waiting": max(0, report.last - has.seq),
            "segments": len(found),
            "anchored": sum(is_anchored(each.path) for each in found),
            "times_full": report.full,
        }
        if as_json:
            show_json(answer)
            return
        sent_at = time_text(has.time_ms) if has.time_ms else "never"
        show_pairs(
            [
                ("records", f"{report.first} to {report.last}"),
                ("bytes", f"{answer['bytes']} of {config.audit.bytes_max}"),
                ("repository", answer["repository"] or "none in the config"),
                ("sent", f"up to {has.seq}, noted {sent_at}"),
                ("waiting", answer["waiting"]),
                ("files", f"{answer['segments']}, {answer['anchored']} of them anchored"),
                ("times full", report.full),
            ]
        )


@app.command(name="verify")
def verify_trail(
    offline: Annotated[
        bool, typer.Option("--offline", help="Look at the links alone; ask no node for anchors.")
    ] = False,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Prove that no record is missing, changed, moved or put in; exit status 1 if one is."""
    with explained(as_json):
        desk = Desk.open(config_file)
        folder = _folder(_gateway(desk))
        report = verify(folder)
        anchored = [each.path for each in segments(folder) if evidence_file(each.path).exists()]
        problems = list(report.problems or ())
        if not offline and anchored:
            problems += asyncio.run(_against_anchors(desk, anchored))
        if as_json:
            show_json(_answer(report, problems, 0 if offline else len(anchored)))
        else:
            _show(report, problems, 0 if offline else len(anchored))
        if problems:
            raise typer.Exit(WRONG)


@app.command()
def anchor(
    key: KeyFile = None, config_file: ConfigFile = DEFAULT_CONFIG, as_json: Json = False
) -> None:
    """End the open file of the trail, and anchor on the ledger what is not anchored yet.

    May run beside the gateway, and again after any interruption: it goes on. Once a day is usual.
    """
    with explained(as_json):
        desk = Desk.open(config_file)
        config = _gateway(desk)
        _folder(config)  # says when there is none
        done = asyncio.run(_anchor(Call(config_file, key, as_json), config))
        if as_json:
            show_json({"anchored": done})
            return
        show_table(
            ("file", "outcome", "number", "records", "height"),
            [(d.file.name, d.outcome, d.sequence, d.records, d.height) for d in done],
        )
        say("Next: keep the folder as it is; `radledger gateway audit verify` proves it.")


@app.command()
def resend(
    first: Annotated[int, typer.Option("--from", min=1, help="The first record to send again.")],
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Let the gateway send records again from one on, as after a loss at the repository."""
    with explained(as_json):
        config = _gateway(Desk.open(config_file))
        folder = _folder(config)
        if config.audit.host is None:
            raise Failure(USAGE, "the config names no repository: [gateway.audit] host")
        last, oldest = last_here(folder), first_here(folder)
        if first > last + 1:
            raise Failure(USAGE, f"there is no record {first}: the last one is {last}")
        begin = max(first, oldest)
        (folder / RESEND).write_text(str(begin), "ascii")
        if as_json:
            show_json({"first": begin})
            return
        if begin > first:
            say(f"Records up to {begin - 1} are not here any more.")
        say(f"The gateway sends all records from {begin} on again, once it runs.")


async def _anchor(call: Call, config: GatewayConfig) -> list[Anchored]:
    async with call.actor() as actor:
        return await anchor_trail(config, actor, actor.desk.genesis().time_ms)


async def _against_anchors(desk: Desk, logs: list[Path]) -> list[str]:
    async with desk.client() as client:
        found = [(log.name, await problem_of(client, log)) for log in logs]
    return [f"{name}: {problem}" for name, problem in found if problem]


def _answer(report: Report, problems: list[str], anchors: int) -> dict[str, object]:
    shown = asdict(report)
    return {**shown, "problems": problems, "is_whole": not problems, "anchors": anchors}


def _show(report: Report, problems: list[str], anchors: int) -> None:
    for problem in problems:
        say(problem)
    if not problems:
        say(
            f"Records {report.first} to {report.last} are whole and in order, and agree with "
            f"{anchors} anchors on the ledger."
        )
    if report.trimmed_to:
        say(f"Records up to {report.trimmed_to} were removed here; the repository has them.")
    if report.full:
        say(f"The trail was full {report.full} times: acts of those times are not in it.")


def _gateway(desk: Desk) -> GatewayConfig:
    if desk.config.gateway is None:
        raise Failure(USAGE, "the config has no [gateway]: config/node.toml shows one")
    return desk.config.gateway


def _folder(config: GatewayConfig) -> Path:
    folder = folder_of(config)
    if not folder.is_dir():
        raise Failure(UNABLE, f"there is no audit trail at {folder}: did the gateway ever run?")
    return folder


def _place(config: GatewayConfig) -> str:
    return "" if config.audit.host is None else f"{config.audit.host}:{config.audit.port}"
