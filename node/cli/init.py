"""`radledger init`: the config of a node whose keys are made and whose genesis is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from node import provision
from node.cli.arguments import read_address, read_peer
from node.cli.failures import USAGE, Failure, explained
from node.cli.output import Json, say, show_json, show_pairs
from node.config import PeerAddress
from node.ledger import genesis_file
from node.ledger.genesis import Genesis
from node.provision import CARD, CONFIG, GENESIS, NODE_KEY, PASSPHRASE, Card


def init(
    genesis: Annotated[Path, typer.Option("--genesis", "-g", help="The consortium's genesis.")],
    folder: Annotated[
        Path, typer.Option("--folder", "-f", help="Where `radledger keygen` made the keys.")
    ] = Path("."),
    listen: Annotated[
        str, typer.Option(help="host:port on which the other institutions connect.")
    ] = "0.0.0.0:7610",
    peer: Annotated[
        list[str] | None, typer.Option(help="institution=host:port; once for every other node.")
    ] = None,
    rpc_port: Annotated[
        int, typer.Option(min=1, max=65_535, help="Port of the local RPC, on loopback.")
    ] = 7620,
    data_dir: Annotated[
        Path, typer.Option(help="Where the database goes; relative to the folder.")
    ] = Path("data"),
    passphrase_file: Annotated[
        Path | None, typer.Option(help="The passphrase's file, if it is not kept in the folder.")
    ] = None,
    candidate: Annotated[
        bool,
        typer.Option(
            "--candidate", help="The consortium takes this node in by a vote: not in the genesis."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help=f"Replace an existing {CONFIG}.")] = False,
    as_json: Json = False,
) -> None:
    """Write node.toml and the RPC token, after checking that keys, genesis and peers fit."""
    with explained(as_json):
        if (folder / CONFIG).exists() and not force:
            raise Failure(USAGE, f"{folder / CONFIG} exists; --force replaces it")
        address = read_address(listen)
        peers = [_peer(text) for text in peer or ()]
        card = _own_card(folder)
        consortium = genesis_file.load(genesis)
        if candidate:
            _check_candidate(card, consortium, genesis)
        else:
            _check_place(card, consortium, genesis)
        # Whoever came in by a vote, as the candidate does, is in no genesis.
        _check_peers(peers, card, None if candidate else consortium)
        config = provision.node_config(
            card.institution,
            listen=address,
            peers=peers,
            rpc_port=rpc_port,
            data_dir=data_dir,
            passphrase_file=_passphrase_file(folder, passphrase_file),
        )
        target = folder / GENESIS
        _check_target(target, consortium, genesis)
        config = provision.write_node(folder, config)
        if not target.exists():
            genesis_file.save(consortium, target)
        unreached = sorted(_others(card, consortium) - {peer.institution for peer in peers})
        answer = {
            "config": folder / CONFIG,
            "institution": card.institution,
            "role": "candidate" if candidate else "observer" if card.observer else "validator",
            "chain_id": consortium.chain_id,
            "listen": f"{address[0]}:{address[1]}",
            "rpc": f"{config.rpc.host}:{config.rpc.port}",
            "peers": [peer.institution for peer in peers],
            "without_address": unreached,
        }
        if as_json:
            show_json(answer)
            return
        show_pairs((key.replace("_", " "), value) for key, value in answer.items())
        if unreached:
            say(f"No address for {', '.join(unreached)}: they must dial this node.", "yellow")
        say(f"Start it with: radledger start {folder / CONFIG}")
        if candidate:
            say(f"It connects once it is voted in: radledger gov application --genesis {target}")


def _peer(text: str) -> PeerAddress:
    institution, host, port = read_peer(text)
    return PeerAddress(institution=institution, host=host, port=port)


def _own_card(folder: Path) -> Card:
    if not (folder / NODE_KEY).exists():
        raise Failure(USAGE, f"{folder / NODE_KEY} is not there: run `radledger keygen` first")
    return Card.load(folder / CARD)


def _check_place(card: Card, consortium: Genesis, file: Path) -> None:
    nodes = consortium.observers if card.observer else consortium.validators
    place = next((n for n in nodes if n.public_key == card.node_key), None)
    role = "observer" if card.observer else "validator"
    if place is None:
        raise Failure(
            USAGE,
            f"{file} does not list the key of {card.institution} as {role}: "
            f"send {CARD} to whoever assembles the genesis, and use the file that comes back",
        )
    if place.institution != card.institution:
        raise Failure(
            USAGE,
            f"{file} lists this key for {place.institution}, but the card is that of "
            f"{card.institution}",
        )


def _check_candidate(card: Card, consortium: Genesis, file: Path) -> None:
    nodes = (*consortium.validators, *consortium.observers)
    if any(node.public_key == card.node_key for node in nodes):
        raise Failure(USAGE, f"{file} lists this key already: leave --candidate out")


def _check_peers(peers: Sequence[PeerAddress], card: Card, consortium: Genesis | None) -> None:
    names = [peer.institution for peer in peers]
    known = set(names) - {card.institution} if consortium is None else _others(card, consortium)
    problems = [
        f"--peer {name}: "
        + ("is this node itself" if name == card.institution else "is not in the genesis")
        for name in dict.fromkeys(names)
        if name not in known
    ]
    problems += [
        f"--peer {name}: is given {names.count(name)} times"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if problems:
        raise Failure(USAGE, *problems, f"the other nodes are {', '.join(sorted(known))}")


def _others(card: Card, consortium: Genesis) -> set[str]:
    nodes = consortium.validators if card.observer else consortium.validators + consortium.observers
    return {node.institution for node in nodes} - {card.institution}


def _passphrase_file(folder: Path, given: Path | None) -> Path | None:
    if given is not None:
        return given.absolute()
    return Path(PASSPHRASE) if (folder / PASSPHRASE).exists() else None


def _check_target(target: Path, consortium: Genesis, source: Path) -> None:
    """The genesis of another chain is never replaced."""
    if target.exists() and genesis_file.load(target).chain_id != consortium.chain_id:
        raise Failure(USAGE, f"{target} is that of another chain than {source}: move it away")
