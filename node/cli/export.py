"""`radledger study export`: a study out of the store onto a medium with a DICOMDIR."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from node.cli.arguments import DEFAULT_CONFIG, ConfigFile, read_study_id
from node.cli.auditing import record
from node.cli.bars import byte_progress
from node.cli.context import Desk
from node.cli.deliver import count_use, summary_of
from node.cli.failures import UNABLE, USAGE, WRONG, Failure, explained
from node.cli.fetch import folder_token, told
from node.cli.output import Json, say, show_json
from node.exchange.store.errors import StoreError, StudyUnknown
from node.exchange.store.opening import open_store
from node.gateway.audit import hearing
from node.gateway.media_out import MediaUnwritable, Written, check_empty, write_media

app = typer.Typer()


@app.command()
def export(
    study_id: Annotated[
        bytes, typer.Argument(parser=read_study_id, metavar="ID", help="32 hex digits.")
    ],
    to: Annotated[Path, typer.Option("--to", help="A new or empty folder: the medium's root.")],
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Write a study of the store as a DICOM file set with a DICOMDIR (IHE PDI), for a disc.

    A study of another hospital counts as one use of its grant for each folder.
    """
    with explained(as_json), told():
        written = asyncio.run(_export(Desk.open(config_file), study_id, to, as_json))
        if as_json:
            show_json({"written": written, "written_to": to})
            return
        say(f"{written.instances} instances are written to {to}, with their DICOMDIR.", "green")
        if written.other_syntax:
            sentence = f"{written.other_syntax} of them are as they were registered, compressed or"
            say(
                f"{sentence} implicit: a viewer of PDI's basic profile may not show these.",
                "yellow",
            )


async def _export(desk: Desk, study_id: bytes, to: Path, quiet: bool) -> Written:
    if desk.config.store is None:
        raise Failure(USAGE, "the config has no [store]: say where studies are kept")
    study = await summary_of(desk, study_id)
    try:
        await asyncio.to_thread(check_empty, to)  # before a use is counted
        if study.custodian != desk.config.institution:
            await count_use(desk, study_id, folder_token(to))
        store = await asyncio.to_thread(open_store, desk.config.store)
        try:
            instances = store.index(study_id).instances
            act = hearing.exported(None, study_id, len(instances))
            await asyncio.to_thread(record, desk.config, act)
            size = sum(each.facts.size for each in instances)
            with byte_progress("writing", size, quiet) as show:
                return await asyncio.to_thread(write_media, store, study_id, None, to, show)
        finally:
            store.close()
    except StudyUnknown as error:
        raise Failure(WRONG, "the store does not hold this study; fetch it first") from error
    except MediaUnwritable as error:
        raise Failure(WRONG, str(error)) from error
    except StoreError as error:
        raise Failure(UNABLE, str(error)) from error
