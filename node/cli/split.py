"""`radledger study split`: series of a stored study become a study of the ledger by themselves.

The command belongs to the group of `node.cli.study`. It may run beside the gateway, or without it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from node.cli.arguments import DEFAULT_CONFIG, ConfigFile, read_digest, read_study_id
from node.cli.context import Desk
from node.cli.failures import UNABLE, USAGE, WRONG, Failure, explained
from node.cli.output import Json, say, show_json, show_pairs, show_table
from node.cli.references import chosen_digest
from node.cli.registrar import opened
from node.exchange.store.errors import StoreError, StudyErased, StudyUnknown
from node.exchange.store.opening import open_store
from node.exchange.store.store import StudyStore
from node.exchange.transfer.state import Deliveries
from node.gateway.acting import Acting
from node.gateway.exchange import DELIVERIES
from node.gateway.parting import SplitRefused, Wish
from node.gateway.series import SeriesRefused, SeriesRow, listed
from node.gateway.splitting import Outcome, SplitPending, Splitting

app = typer.Typer()


@app.command()
def split(
    study_id: Annotated[
        bytes, typer.Argument(parser=read_study_id, metavar="STUDY", help="Its id, 32 hex digits.")
    ],
    series: Annotated[
        list[str] | None,
        typer.Option(
            "--series",
            metavar="N",
            help="What to set apart, by its number in the list; several times for several.",
        ),
    ] = None,
    form: Annotated[
        Path | None,
        typer.Option("--form", help="The signed form; a salted digest of it goes on the chain."),
    ] = None,
    form_digest: Annotated[
        bytes | None,
        typer.Option(
            "--form-digest", parser=read_digest, metavar="HEX", help="The same, made elsewhere."
        ),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option("--version", min=1, help="The version of which the list was, as it says."),
    ] = None,
    erase_old: Annotated[
        bool,
        typer.Option("--erase-old", help="Erase the study that was split, for ever."),
    ] = False,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Exclude series of a study from sharing; without --series, list them.

    What is set apart gets a refusal of every use. Run it again after any interruption: it goes on.
    """
    with explained(as_json), _told():
        if not series:
            asyncio.run(_list(Desk.open(config_file), study_id, as_json))
            return
        digest = chosen_digest(form, form_digest, "--form", salted=True)
        wish = Wish(series, digest, version, erase_old)
        asyncio.run(_split(Desk.open(config_file), study_id, wish, as_json))


async def _list(desk: Desk, study_id: bytes, as_json: bool) -> None:
    async with _store(desk) as store:
        index = await asyncio.to_thread(store.index, study_id)
        rows = listed(index)
    if as_json:
        shown = [
            {name: value for name, value in asdict(row).items() if name != "uid"} for row in rows
        ]
        show_json({"study": study_id, "version": index.version, "series": shown, "split": None})
        return
    _show_list(rows)
    command = f"radledger study split {study_id.hex()} --version {index.version}"
    say(f"Next: {command} --series N --form FILE.", "bold")


async def _split(desk: Desk, study_id: bytes, wish: Wish, as_json: bool) -> None:
    async with _store(desk) as store, desk.client() as client, opened(desk) as (vault, signer):
        kept = await asyncio.to_thread(_kept, desk)
        splitting = Splitting(Acting(client, signer), store, vault, kept)
        done = await splitting.split(study_id, wish)
    if as_json:
        show_json({"study": study_id, "version": None, "series": None, "split": done})
    else:
        _show_done(study_id, done)


@asynccontextmanager
async def _store(desk: Desk) -> AsyncIterator[StudyStore]:
    if desk.config.store is None:
        raise Failure(USAGE, "the config needs [store] to split studies")
    store = await asyncio.to_thread(open_store, desk.config.store)
    try:
        yield store
    finally:
        store.close()


def _kept(desk: Desk) -> list[Deliveries]:
    """Return where keys lie that this hospital wrapped to others."""
    if desk.config.exchange is None:
        return []
    return [Deliveries(desk.config.exchange.folder / DELIVERIES)]


def _show_list(rows: list[SeriesRow]) -> None:
    show_table(
        ("N", "series", "modality", "instances", "description"),
        [
            (row.number, row.series_number, row.modality, row.instances, row.description)
            for row in rows
        ],
    )


def _show_done(study_id: bytes, done: Outcome) -> None:
    say("Split: what was set apart is refused to everybody.", "green")
    show_pairs(
        [
            ("the rest", done.rest),
            ("set apart", done.apart),
            ("requests ended", done.ended),
            ("the old study", "erased" if done.is_erased else "retired"),
        ]
    )
    if done.left_to_patient:
        say(
            f"{done.left_to_patient} permissions about the old study were given by the patient's "
            "key; only the patient can give them for the rest.",
            "yellow",
        )
    say("Next: whoever was granted the old study asks for the rest.", "bold")
    if not done.is_erased:
        again = f"radledger study split {study_id.hex()} --series N --erase-old"
        say(f"The old study's images are still here and with its grantees: {again}")


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except SeriesRefused as error:
        raise Failure(USAGE, str(error)) from error
    except SplitRefused as error:
        raise Failure(WRONG, str(error)) from error
    except SplitPending as error:
        raise Failure(UNABLE, str(error), "run the command again to find out") from error
    except (StudyUnknown, StudyErased) as error:
        raise Failure(WRONG, str(error)) from error
    except StoreError as error:
        raise Failure(UNABLE, str(error)) from error
