"""`radledger store`: the encrypted store of studies, without the gateway."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

from node.cli.arguments import DEFAULT_CONFIG, ConfigFile
from node.cli.context import Desk
from node.cli.failures import UNABLE, USAGE, WRONG, Failure, explained
from node.cli.output import Json, say, show_json, show_pairs, show_table
from node.config.model import StoreConfig
from node.exchange.store.blobs import BlobStore, open_folder, open_service
from node.exchange.store.errors import StoreError, WrongMasterKey
from node.exchange.store.master import (
    MasterEnvironment,
    MasterFile,
    MasterPassphrase,
    MasterSource,
    create_master_file,
)
from node.exchange.store.migrate import Migration
from node.exchange.store.opening import open_store
from node.exchange.store.records import Usage
from node.exchange.store.scrub import Finding
from node.exchange.store.store import StudyStore
from node.keys import PassphraseEnvironment, PassphraseFile

app = typer.Typer(no_args_is_help=True, help="Look after the encrypted store of studies.")

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")]
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


@app.command()
def keygen(
    file: Annotated[Path, typer.Argument(help="Where the new master key goes.")],
    as_json: Json = False,
) -> None:
    """Make a master key: 256 random bits in a file that only you can read."""
    with explained(as_json):
        create_master_file(file)
        if as_json:
            show_json({"file": file})
            return
        say(f"The store's master key is in {file}.")
        say("Next: name it in the config, [store] master_key_file, and keep a copy elsewhere.")
        say("Without it nobody can ever read the store again.")


@app.command()
def usage(config_file: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show what the store holds and how much room is left."""
    with _opened(config_file, as_json) as (store, _):
        found = store.usage()
        if as_json:
            show_json(found)
        else:
            _show_usage(found)


@app.command()
def scrub(
    collect: Annotated[
        bool, typer.Option("--collect", help="Delete what crashed programs left behind.")
    ] = False,
    config_file: ConfigFile = DEFAULT_CONFIG,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Read every chunk again and say what is rotten, lost or belongs to nothing.

    What is rotten or lost the running gateway brings back from hospitals that hold the same
    ciphertext. Exits with 1 if studies here cannot be read whole.
    """
    with _opened(config_file, as_json) as (store, _):
        with _bar("checking", quiet or as_json) as progress:
            found = list(store.scrub(collect=collect, progress=progress))
        harmful = [finding for finding in found if finding.study_id is not None]
        if as_json:
            show_json(found)
        else:
            _show_findings(found, len(harmful))
        if harmful:
            raise typer.Exit(WRONG)


@app.command()
def migrate(
    folder: Annotated[
        Path | None, typer.Option("--folder", help="The new place: a local folder.")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="The new place: s3://bucket/prefix.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="Of an S3-compatible service other than AWS.")
    ] = None,
    region: Annotated[str, typer.Option("--region", help="Of the bucket.")] = "us-east-1",
    config_file: ConfigFile = DEFAULT_CONFIG,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Copy the store's blobs to another place; the old ones stay.

    It goes on where an earlier call stood. Let it run once with the gateway at work, and once more
    with the gateway stopped; then change the table "store" of the config and start the gateway.
    """
    with _opened(config_file, as_json) as (store, _):
        with _bar("copying", quiet or as_json) as progress:
            moved = store.migrate(_new_place(folder, url, endpoint, region), progress)
        if as_json:
            show_json(moved)
        else:
            _show_migration(moved)
        if not moved.is_complete:
            raise typer.Exit(WRONG)


@app.command()
def rotate(
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="The new master key, made by `store keygen`.")
    ] = None,
    key_environment: Annotated[
        str | None, typer.Option("--key-environment", help="The variable with the new master key.")
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", help="The file of the new passphrase.")
    ] = None,
    passphrase_environment: Annotated[
        str | None,
        typer.Option("--passphrase-environment", help="The variable with the new passphrase."),
    ] = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Seal all study keys under another master key; stop the gateway first.

    The former one then opens nothing any more, but backups of the key file made before: destroy it,
    and with it every study that was erased is gone from the backups too.
    """
    with _opened(config_file, as_json) as (store, config):
        named: list[tuple[str, MasterSource]] = []
        if key_file is not None:
            named.append(("master_key_file", MasterFile(key_file)))
        if key_environment is not None:
            named.append(("master_key_environment", MasterEnvironment(key_environment)))
        if passphrase_file is not None:
            source = MasterPassphrase(PassphraseFile(passphrase_file))
            named.append(("master_passphrase_file", source))
        if passphrase_environment is not None:
            source = MasterPassphrase(PassphraseEnvironment(passphrase_environment))
            named.append(("master_passphrase_environment", source))
        if len(named) != 1:
            raise Failure(USAGE, "name one new master key: --key-file, or one of the others")
        setting, master = named[0]
        count = store.rotate(master)
        if as_json:
            show_json({"studies": count, "key_file": config.key_file, "setting": setting})
            return
        say(f"{count} study keys in {config.key_file} are under the new master key.")
        say(f"Next: set {setting} in [store] of the config, back up the key file, and destroy the")
        say("former master key.")


@contextmanager
def _opened(config_file: Path, as_json: bool) -> Iterator[tuple[StudyStore, StoreConfig]]:
    """Open the store that the config names; say what goes wrong with it."""
    with explained(as_json):
        config = Desk.open(config_file).config.store
        if config is None:
            raise Failure(USAGE, f"{config_file} has no [store]: this node keeps no images")
        try:
            store = open_store(config)
            try:
                yield store, config
            finally:
                store.close()
        except WrongMasterKey as error:
            raise Failure(USAGE, f"{config.key_file}: {error}") from error
        except StoreError as error:
            raise Failure(UNABLE, str(error)) from error


def _new_place(
    folder: Path | None, url: str | None, endpoint: str | None, region: str
) -> BlobStore:
    if folder is not None and url is None:
        return open_folder(folder)
    if url is not None and folder is None:
        if not re.fullmatch(r"s3://[^/]+(/.*)?", url):
            raise Failure(USAGE, f"{url} does not name a bucket: write s3://bucket/prefix")
        return open_service(url, endpoint, region)
    raise Failure(USAGE, "name the new place: --folder, or --url")


@contextmanager
def _bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show bytes, rate and time left on standard error, if somebody watches."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    errors = Console(stderr=True)
    disable = quiet or not errors.is_terminal
    with Progress(*columns, console=errors, transient=True, disable=disable) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _show_usage(usage: Usage) -> None:
    saved = 1 - usage.stored_bytes / usage.bytes if usage.bytes else 0.0
    rows: list[tuple[str, object]] = [
        ("studies", f"{usage.studies:,} ({usage.versions:,} versions)"),
        ("instances", f"{usage.instances:,}"),
        ("as received", _size(usage.bytes)),
        ("stored", f"{_size(usage.stored_bytes)} ({saved:.0%} less)"),
        ("chunks", f"{usage.chunks:,}"),
        ("still to be fetched", f"{usage.missing_chunks:,} chunks"),
        ("quota", "none" if usage.quota_bytes is None else _size(usage.quota_bytes)),
    ]
    if usage.free_bytes is not None:
        rows.append(("free on the disk", _size(usage.free_bytes)))
    show_pairs(rows)


def _show_findings(found: list[Finding], harmful: int) -> None:
    if found:
        show_table(
            ("found", "study", "blob", "bytes", "meaning"),
            [(f.kind.value, f.study_id, f.name, f.stored_bytes, f.sentence) for f in found],
        )
    if harmful:
        say("Next: the running gateway asks the hospitals that hold the same ciphertext; for what")
        say("nobody has, put the named files back from a backup and scrub again.")
    elif found:
        say("All studies are whole; --collect deletes what belongs to nothing.")
    else:
        say("All is well.")


def _show_migration(moved: Migration) -> None:
    say(f"{moved.copied:,} blobs copied ({_size(moved.copied_bytes)}), {moved.present:,} there.")
    if moved.is_complete:
        say("Next: change [store] in the config; the old place may then be deleted.")
        return
    for name in moved.damaged:
        say(f"{name} is damaged here and was not copied.", "bold red")
    say("Next: run `radledger store scrub`, then this command again.")


def _size(count: int) -> str:
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} bytes" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"
