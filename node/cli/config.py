"""`radledger config check`: all that would keep a node from starting, before it is started."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from node import keys, provision
from node.cli.failures import USAGE, explained, report
from node.cli.output import Json, say, show_json
from node.config import ConfigError, NodeConfig, load_config
from node.ledger import genesis_file
from node.ledger.errors import InvalidGenesis
from node.ledger.genesis import Genesis

app = typer.Typer(no_args_is_help=True, help="Look after a node's config.")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or may be meant differently."""

    line: int  # in the config; 0 when it is not a line of it
    path: str  # dotted key, or a file
    sentence: str
    is_fatal: bool = True


@app.callback()
def options() -> None:
    """Look after a node's config."""


@app.command()
def check(
    config_file: Annotated[
        Path, typer.Argument(envvar="RADLEDGER_CONFIG", help="The node's TOML file.")
    ] = Path(provision.CONFIG),
    open_key: Annotated[
        bool, typer.Option("--open-key", help="Also open both keys with the passphrase.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a config and all files that it names; every problem is listed, with its line."""
    with explained(as_json):
        findings = _check(config_file, open_key)
        problems = [finding for finding in findings if finding.is_fatal]
        if as_json:
            show_json(
                {
                    "config": config_file,
                    "is_valid": not problems,
                    "problems": problems,
                    "warnings": [finding for finding in findings if not finding.is_fatal],
                }
            )
        else:
            for finding in findings:
                _show(finding, config_file)
            if not problems:
                say(f"{config_file} is valid; the node can start.", "green")
        if problems:
            raise typer.Exit(USAGE)


def _check(config_file: Path, open_key: bool) -> list[Finding]:
    try:
        config = load_config(config_file)
    except ConfigError as error:
        return [Finding(p.line, p.path, p.sentence) for p in error.problems]
    findings = [*_file_findings(config, open_key)]
    try:
        consortium = genesis_file.load(config.genesis_file)
    except InvalidGenesis as error:
        return [*findings, *(Finding(0, str(config.genesis_file), p) for p in error.problems)]
    return [*findings, *_place_findings(config, consortium), *_peer_findings(config, consortium)]


def _file_findings(config: NodeConfig, open_key: bool) -> Iterator[Finding]:
    yield from _finding("rpc.token_file", lambda: keys.load_token(config.rpc.token_file))
    files = (config.key.file, config.key.file.parent / provision.GATEWAY_KEY)
    for file in files:
        yield from _finding("key.file", partial(keys.read_private_file, file))
    if open_key:
        yield from _finding("key", lambda: _open(config, files))
    elif config.key.passphrase_file is not None:
        yield from _finding("key.passphrase_file", lambda: provision.passphrase_of(config.key))
    folder = _existing(config.data_dir)
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(0, "data_dir", f"{folder} is not writable by this user")


def _open(config: NodeConfig, files: tuple[Path, ...]) -> None:
    passphrase = provision.passphrase_of(config.key)
    for file in files:
        keys.load(file, passphrase)


def _finding(path: str, attempt: Callable[[], object]) -> Iterator[Finding]:
    try:
        attempt()
    except keys.KeyFileError as error:
        yield Finding(0, path, str(error))


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _place_findings(config: NodeConfig, consortium: Genesis) -> Iterator[Finding]:
    nodes = (*consortium.validators, *consortium.observers)
    try:
        public_key = provision.public_key_of(config.key.file)
    except keys.KeyFileError:
        public_key = None  # said already
    is_known = public_key is None or any(node.public_key == public_key for node in nodes)
    if public_key is not None and not is_known and _is_carded(config, public_key):
        what = "is not in the genesis: the node takes part once a vote has let it in"
        yield Finding(0, "key.file", what, False)
        return
    own = [node for node in nodes if node.institution == config.institution]
    if not own:
        known = ", ".join(node.institution for node in nodes)
        yield Finding(0, "institution", f"the genesis lists {known}, not {config.institution}")
    elif public_key is not None and all(node.public_key != public_key for node in own):
        yield Finding(
            0, "key.file", f"the genesis lists another key for {config.institution} than this one"
        )


def _is_carded(config: NodeConfig, public_key: bytes) -> bool:
    """Return whether the card beside the key is that of a node which may be voted in."""
    try:
        card = provision.Card.load(config.key.file.with_name(provision.CARD))
    except provision.InvalidCard:
        return False
    return (card.institution, card.node_key) == (config.institution, public_key)


def _peer_findings(config: NodeConfig, consortium: Genesis) -> Iterator[Finding]:
    known = {node.institution for node in (*consortium.validators, *consortium.observers)}
    given = {peer.institution for peer in config.network.peers}
    for name in sorted(given - known):
        what = f"{name} is not in the genesis: it is dialled once a vote has let it in"
        yield Finding(0, "network.peers", what, False)
    voters = {node.institution for node in consortium.validators}
    for name in sorted(voters - given - {config.institution}):
        yield Finding(0, "network.peers", f"no address for {name}: it must dial this node", False)


def _show(finding: Finding, config_file: Path) -> None:
    place = f"{config_file}:{finding.line}" if finding.line else str(config_file)
    what = f"{finding.path}: {finding.sentence}" if finding.path else finding.sentence
    line = f"{place}: {what}"
    if finding.is_fatal:
        report(line)
    else:
        say(f"note: {line}", "yellow")
