"""`radledger gateway`: receive images from this hospital's equipment, register and store them."""

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from node import provision
from node.cli import gateway_audit
from node.cli.arguments import DEFAULT_CONFIG, ConfigFile
from node.cli.auditing import record
from node.cli.bars import file_progress
from node.cli.context import Desk
from node.cli.failures import UNABLE, USAGE, WRONG, Failure, explained
from node.cli.gateway_report import show_status, status_of
from node.cli.notify import notify
from node.cli.output import Json, say, show_json, show_pairs, show_table
from node.cli.parent import end_with_parent
from node.cli.registrar import opened
from node.config import DicomPeer, GatewayConfig, StoreConfig
from node.exchange.store.errors import StoreError
from node.exchange.store.opening import open_store
from node.exchange.store.store import StudyStore
from node.gateway import health
from node.gateway.acting import Acting
from node.gateway.audit.notes import noted
from node.gateway.daemon import GatewayRefused, check_files, quota_of, rules_of
from node.gateway.delivering import dimse_context, web_way
from node.gateway.dialing import Peer
from node.gateway.directory import Directory
from node.gateway.echo import echo
from node.gateway.exchange_opening import identity_of, settings_of
from node.gateway.importing import Import, import_folder
from node.gateway.index import SpoolError
from node.gateway.knocking import unanswered
from node.gateway.parsing import Parsing
from node.gateway.priority import give_way
from node.gateway.quiet import log_to_stderr
from node.gateway.site import Opened, running
from node.gateway.spool import Spool
from node.imaging.errors import UnreadableInstance
from node.keys import KeyFileError

log = logging.getLogger(__name__)

FILES_SHOWN = 50  # of an import, one by one

app = typer.Typer(no_args_is_help=True, help="Receive images, register and store them.")
app.add_typer(gateway_audit.app, name="audit")


@app.command()
def start(
    config_file: Annotated[
        Path, typer.Argument(envvar="RADLEDGER_CONFIG", help="The node's TOML file.")
    ] = DEFAULT_CONFIG,
    announce: Annotated[
        bool,
        typer.Option(
            "--announce",
            "--json",
            help="Print one line of JSON on standard output once the gateway listens.",
        ),
    ] = False,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", hidden=True, help="End when standard input closes.")
    ] = False,
) -> None:
    """Run the gateway beside the node until SIGTERM or SIGINT. Logs go to standard error."""
    with explained(), _told():
        desk = Desk.open(config_file)
        give_way(_gateway(desk).niceness)
        log_to_stderr(logging.getLevelNamesMapping()[desk.config.log.level.upper()])
        uvloop.run(_serve(desk, announce=announce, with_parent=with_parent))


@app.command()
def status(
    config_file: ConfigFile = DEFAULT_CONFIG,
    check_progress: Annotated[
        bool,
        typer.Option("--check", help="Exit with 3 if something keeps the gateway from progress."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what is wrong, what waits, what is in quarantine and why, and the last refusals."""
    with explained(as_json), _told(), _spool(Desk.open(config_file)) as (config, spool):
        told = health.load(spool.folder, time.time_ns() // 1_000_000)
        shown = status_of(spool, rules_of(config), told)
        if as_json:
            show_json(shown)
        else:
            show_status(shown)
        if check_progress and not told.is_well:
            raise typer.Exit(UNABLE)


@app.command()
def check(config_file: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Try everything the gateway needs: node, spool, store, an echo of every peer, and the
    exchange of every other hospital in the config."""
    with explained(as_json), _told():
        desk = Desk.open(config_file)
        config = _gateway(desk)
        findings = {
            "node": asyncio.run(_try_node(desk)),
            "files": _try_files(config),
            "spool": _try_spool(config),
            "store": _try_store(desk.config.store),
            **{f"peer {peer.ae_title}": _try_peer(config, peer) for peer in config.peers},
            **asyncio.run(_try_exchange(desk)),
        }
        if as_json:
            show_json(findings)
        else:
            show_pairs((name, finding or "well") for name, finding in findings.items())
        if any(findings.values()):
            raise typer.Exit(WRONG)


@app.command(name="register-now")
def register_now(config_file: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Take all studies that wait to be complete: the gateway registers them at once."""
    with explained(as_json), _told(), _spool(Desk.open(config_file)) as (_, spool):
        waiting = len(spool.gatherings())
        spool.signal()
        if as_json:
            show_json({"studies": waiting})
        else:
            say(f"Taken to be complete: {waiting}.")


@app.command(name="import")
def import_command(
    folder: Annotated[
        Path, typer.Argument(help="A disc or stick with a DICOMDIR, or any folder of DICOM files.")
    ],
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Take in what is on a medium; the gateway registers it. The medium is left as it is.

    With a DICOMDIR: what it names, and what of that is missing is told. Status 1 unless all came.
    """
    with explained(as_json), _told():
        config = _gateway(Desk.open(config_file))
        parsing = Parsing(config.limits.memory_bytes_max, workers=1)
        spool = Spool(config.spool_dir, quota_of(config), rules_of(config), read=parsing.read)
        try:
            with file_progress("importing", as_json) as show:
                done = import_folder(folder, spool, show, parsing.media)
        except UnreadableInstance as error:
            raise Failure(WRONG, f"the DICOMDIR cannot be used: {error.reason}") from error
        except ValueError as error:
            raise Failure(USAGE, str(error)) from error
        finally:
            parsing.close()
            spool.close()
        if as_json:
            show_json(asdict(done))
        else:
            _show_import(done)
        if not done.is_whole:
            raise typer.Exit(WRONG)


@app.command()
def discard(
    name: Annotated[str, typer.Argument(help="Of a file in quarantine, as `status` shows it.")],
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Remove one file from quarantine for good."""
    with explained(as_json), _told(), _spool(desk := Desk.open(config_file)) as (_, spool):
        if name not in {aside.name for aside in spool.asides()}:
            raise Failure(WRONG, "there is no such file in quarantine")
        record(desk.config, noted("discarded", "operator", ""))
        spool.discard(name)
        if as_json:
            show_json({"discarded": name})
        else:
            say("It is removed.")


def _show_import(done: Import) -> None:
    say(f"{done.taken} instances are taken, {done.known} were here already.")
    if done.refused:
        rows = [(each.file, each.code, each.reason) for each in done.refused[:FILES_SHOWN]]
        show_table(("refused", "code", "reason"), rows)
    for file_id in done.missing[:FILES_SHOWN]:
        say(f"The DICOMDIR names {file_id}, and it is not there.", "yellow")
    if done.outside:
        say(f"The DICOMDIR names {done.outside} files outside of the folder: not taken.", "yellow")
    rest = len(done.refused[FILES_SHOWN:]) + len(done.missing[FILES_SHOWN:])
    if rest:
        say(f"And {rest} more; --json has all of them.", "yellow")


async def _serve(desk: Desk, *, announce: bool, with_parent: bool) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if with_parent:
        end_with_parent(ended)
    level = logging.getLogger().getEffectiveLevel()
    async with (
        _store(desk.config.store) as store,
        desk.client() as client,
        opened(desk) as (vault, signer),
    ):
        given = Opened(client, vault, signer, store, desk.genesis())
        async with running(desk.config, given, log_level=level) as gateway:
            if announce:
                line = {"event": "listening", "port": gateway.front.port, "pid": os.getpid()}
                print(json.dumps(line), flush=True)
            notify("READY=1")
            await ended.wait()
            notify("STOPPING=1")
    log.info("gateway stopped")


@asynccontextmanager
async def _store(config: StoreConfig | None) -> AsyncIterator[StudyStore]:
    if config is None:
        raise Failure(USAGE, "the config has no [store]: say where studies are to be kept")
    store = await asyncio.to_thread(open_store, config)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _spool(desk: Desk) -> Iterator[tuple[GatewayConfig, Spool]]:
    config = _gateway(desk)
    if not (config.spool_dir / "index.db").exists():
        raise Failure(UNABLE, f"there is no spool at {config.spool_dir}: did the gateway ever run?")
    spool = Spool(config.spool_dir, quota_of(config), rules_of(config))
    try:
        yield config, spool
    finally:
        spool.close()


@contextmanager
def _told() -> Iterator[None]:
    """Turn what the gateway's rooms raise into sentences and an exit status."""
    try:
        yield
    except GatewayRefused as error:
        raise Failure(USAGE, str(error)) from error
    except (SpoolError, StoreError) as error:
        raise Failure(UNABLE, str(error)) from error


def _gateway(desk: Desk) -> GatewayConfig:
    if desk.config.gateway is None:
        raise Failure(USAGE, "the config has no [gateway]: config/node.toml shows one")
    return desk.config.gateway


async def _try_node(desk: Desk) -> str:
    try:
        async with desk.client() as client:
            await client.head()
    except Exception as error:  # noqa: BLE001 - it is shown beside the other findings
        return str(error)
    return ""


async def _try_exchange(desk: Desk) -> dict[str, str]:
    """Return what is wrong with the way to each other hospital's exchange, "" for nothing."""
    config = desk.config.exchange
    if config is None:
        return {}
    names = [f"exchange {peer.institution}" for peer in config.peers]
    try:
        passphrase = provision.passphrase_of(desk.config.key)
        identity = identity_of(desk.config, passphrase)
        places = settings_of(config).places
        directory = Directory(desk.genesis(), places, desk.config.institution)
        async with desk.client() as client, opened(desk) as (_, signer):
            await directory.refresh(Acting(client, signer))
        silent = await unanswered(directory, identity)
    except Exception as error:  # noqa: BLE001 - it is shown beside the other findings
        return dict.fromkeys(names, f"cannot be tried: {error}")
    return dict.fromkeys(names, "") | {f"exchange {name}": why for name, why in silent.items()}


def _try_files(config: GatewayConfig) -> str:
    try:
        check_files(config)
    except GatewayRefused as error:
        return str(error)
    return ""


def _try_spool(config: GatewayConfig) -> str:
    try:
        spool = Spool(config.spool_dir, quota_of(config))
    except SpoolError as error:
        return str(error)
    with_room = spool.room()
    spool.close()
    return "" if with_room is None else with_room.reason


def _try_store(config: StoreConfig | None) -> str:
    if config is None:
        return "the config has no [store]"
    try:
        open_store(config).close()
    except Exception as error:  # noqa: BLE001 - it is shown beside the other findings
        return str(error)
    return ""


def _try_peer(config: GatewayConfig, peer: DicomPeer) -> str:
    """Send a C-ECHO to a peer that has an address, and a search to its DICOMweb."""
    try:
        if peer.host is not None and peer.port is not None:
            tls = dimse_context(config, peer)
            finding = echo(config.ae_title, Peer(peer.ae_title, peer.host, peer.port), tls)
            if finding:
                return finding
        if peer.web_url is not None:
            return web_way(config, peer).answers()
    except (OSError, ValueError, KeyFileError) as error:
        return str(error)
    return ""
