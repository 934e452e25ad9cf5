"""`radledger study fetch`: a study that another hospital granted, into the store of this one.

The command belongs to the group of `node.cli.study`. It needs no running gateway: it reaches the
ledger by the node, and the custodian's gateway by the addresses in the config.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from node import keys, provision
from node.cli.advice import lines_about
from node.cli.arguments import DEFAULT_CONFIG, ConfigFile, read_request_id
from node.cli.auditing import record
from node.cli.context import Desk
from node.cli.failures import UNABLE, USAGE, WRONG, Failure, explained
from node.cli.output import Json, say, show_json, show_pairs
from node.cli.signing import meaning_of_code
from node.exchange import encryption_keys
from node.exchange.store.errors import StoreError
from node.exchange.store.opening import open_store
from node.exchange.store.store import StudyStore
from node.exchange.transfer.errors import InvalidRecord, NotPermitted, TransferIncomplete
from node.exchange.transfer.ports import Happening, TransferEvent
from node.gateway.acting import Acting
from node.gateway.audit import hearing
from node.gateway.directory import Directory
from node.gateway.exchange import KEYS
from node.gateway.exchange_opening import identity_of, settings_of
from node.gateway.media_out import MediaUnwritable, check_empty, write_media
from node.gateway.requester import (
    NotAuthentic,
    NotReady,
    Received,
    Requester,
    Step,
    Unreachable,
)
from node.network.errors import CertificateRefused
from node.provision import GATEWAY_KEY
from node.studies import Signer

app = typer.Typer()


@app.command()
def fetch(
    request_id: Annotated[
        bytes,
        typer.Argument(parser=read_request_id, metavar="REQUEST", help="The granted request's id."),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            help="Write the images to this folder, too. That is one use of the grant.",
        ),
    ] = None,
    media: Annotated[
        bool,
        typer.Option("--media", help="With --to: as a medium with a DICOMDIR (IHE PDI)."),
    ] = False,
    wait_s: Annotated[
        float,
        typer.Option("--wait", min=0, help="Seconds to wait for the grant and the study's key."),
    ] = 0.0,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Fetch a granted study, verify it against the ledger and keep it, encrypted, in the store.

    Run it again after any interruption: what has arrived is not fetched again.
    """
    with explained(as_json), told():
        if media and to is None:
            raise Failure(USAGE, "--media says how to write; --to FOLDER says where")
        write = _write_media if media else _write
        desk = Desk.open(config_file)
        received = asyncio.run(_fetch(desk, request_id, wait_s, to, write, as_json))
        if as_json:
            show_json({"received": received, "written_to": to})
            return
        say("Received and verified: every file is the registered one.", "green")
        _show(received)
        if to is not None:
            say(f"Written to {to}.")


async def _fetch(
    desk: Desk,
    request_id: bytes,
    wait_s: float,
    to: Path | None,
    write: "Callable[[StudyStore, Received, Path, _Watch], None]",
    quiet: bool,
) -> Received:
    async with opened_requester(desk) as (requester, store):
        with _progress(quiet) as watch:
            try:
                received = await requester.fetch(request_id, wait_s=wait_s, watch=watch.show)
            except (NotPermitted, NotAuthentic) as error:
                code = error.code if isinstance(error, NotPermitted) else "not_authentic"
                event = TransferEvent(Happening.NOT_TAKEN, None, request_id, code)
                await asyncio.to_thread(record, desk.config, hearing.transferred(event))
                raise
            named = received.request_id, received.study_id, received.instances
            await asyncio.to_thread(record, desk.config, hearing.fetched(*named))
            if to is not None:
                if write is _write_media:
                    await asyncio.to_thread(check_empty, to)  # before a use is counted
                await asyncio.to_thread(record, desk.config, hearing.exported(*named))
                await requester.use(request_id, folder_token(to))
                await asyncio.to_thread(write, store, received, to, watch)
    return received


@asynccontextmanager
async def opened_requester(desk: Desk) -> AsyncIterator[tuple[Requester, StudyStore]]:
    """Open what fetching needs: store, keys, directory. Raises `Failure`, `KeyFileError`, ..."""
    config = desk.config
    if config.store is None or config.exchange is None:
        raise Failure(USAGE, "the config needs [store] and [exchange] to fetch studies")
    settings = settings_of(config.exchange)
    passphrase = provision.passphrase_of(config.key)
    genesis = desk.genesis()
    private = await asyncio.to_thread(keys.load, desk.folder / GATEWAY_KEY, passphrase)
    identity = await asyncio.to_thread(identity_of, config, passphrase)
    secrets = await asyncio.to_thread(encryption_keys.load_all, settings.folder / KEYS, passphrase)
    store = await asyncio.to_thread(open_store, config.store)
    try:
        async with desk.client() as client:
            acting = Acting(client, Signer(private, config.institution, genesis.chain_id))
            directory = Directory(genesis, settings.places, config.institution)
            await directory.refresh(acting)
            requester = Requester(
                acting,
                store,
                lambda: secrets,
                directory,
                identity,
                settings.folder,
                limits=settings.client,
            )
            yield requester, store
    finally:
        store.close()


class _Watch:
    """One bar a step, on standard error: how much, how fast, how long it will take."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks = {what: progress.add_task(what, total=None, visible=False) for what in _STEPS}

    def show(self, step: Step) -> None:
        """Show how far a step has come."""
        task = self._tasks[step.what]
        self._progress.update(task, completed=step.done, total=step.total, visible=True)


_STEPS = ("fetching", "verifying", "writing")


@contextmanager
def _progress(quiet: bool) -> Iterator[_Watch]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    errors = Console(stderr=True)
    # Where nobody watches, a bar is noise in a log.
    disable = quiet or not errors.is_terminal
    with Progress(*columns, console=errors, transient=True, disable=disable) as progress:
        yield _Watch(progress)


def folder_token(folder: Path) -> bytes:
    """Return the name of the use that fills a folder: the same again, since a command that was cut
    off goes on."""
    return hashlib.sha256(str(folder.absolute()).encode()).digest()[:16]


def _write(store: StudyStore, received: Received, folder: Path, watch: _Watch) -> None:
    """Write every instance to a file named by its number, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    study_id, version = received.study_id, received.version
    count = len(store.index(study_id, version).instances)
    width = max(4, len(str(count)))
    done = 0
    for ordinal in range(count):
        path = folder / f"{ordinal + 1:0{width}}.dcm"
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            for piece in store.read(study_id, ordinal, version):
                file.write(piece)
                done += len(piece)
                watch.show(Step("writing", done, received.bytes))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


def _write_media(store: StudyStore, received: Received, folder: Path, watch: _Watch) -> None:
    """Write the study as a file set with a DICOMDIR, whole or not at all."""
    write_media(
        store,
        received.study_id,
        received.version,
        folder,
        lambda done: watch.show(Step("writing", done, received.bytes)),
    )


def _show(received: Received) -> None:
    show_pairs(
        [
            ("study", received.study_id),
            ("version", received.version),
            ("root", received.root),
            ("instances", received.instances),
            ("bytes", received.bytes),
            ("fetched now", f"{received.bytes_fetched} bytes in {received.chunks_fetched} chunks"),
        ]
    )
    if received.absent:
        say(f"{received.absent} instances of the study are not held by its custodian.", "yellow")
    for name in received.liars:
        say(f"{name} served wrong bytes and was left; tell its operator.", "bold red")
    for name, reason in received.left.items():
        if name not in received.liars:
            say(f"{name} was left: {reason}", "yellow")


@contextmanager
def told() -> Iterator[None]:
    """Say in sentences what can go wrong between hospitals, and with the store."""
    try:
        yield
    except NotPermitted as error:
        meaning = meaning_of_code(error.code)
        raise Failure(WRONG, *lines_about(error.code, meaning), code=error.code) from error
    except NotAuthentic as error:
        reason = "nothing was kept; tell the custodian"
        raise Failure(WRONG, f"not what the ledger says: {error}", reason) from error
    except NotReady as error:
        raise Failure(UNABLE, str(error), "try again, or name --wait SECONDS") from error
    except TransferIncomplete as error:
        reason = "what has arrived is kept: run the command again"
        raise Failure(UNABLE, str(error), reason) from error
    except MediaUnwritable as error:
        raise Failure(WRONG, str(error)) from error
    except (Unreachable, CertificateRefused) as error:
        raise Failure(USAGE, str(error)) from error
    except (StoreError, InvalidRecord) as error:
        raise Failure(UNABLE, str(error)) from error
