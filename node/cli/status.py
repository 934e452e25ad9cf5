"""`radledger status`: where the node stands, and who is missing."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from node.cli.arguments import DEFAULT_CONFIG, ConfigFile
from node.cli.context import Desk
from node.cli.failures import UNABLE, explained
from node.cli.output import Json, show_json, show_pairs, show_table
from node.rpc.service import PeerStatus, Readiness, Status, ValidatorStatus


def status(
    config_file: ConfigFile = DEFAULT_CONFIG,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with status 3 unless the node makes progress.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show height, view, primary, readiness with its reason, and all peers."""
    with explained(as_json):
        stands, ready, validators, peers = asyncio.run(_ask(config_file))
        if as_json:
            answer = {"status": stands, "readiness": ready, "validators": validators}
            show_json({**answer, "peers": peers})
        else:
            _show(stands, ready, validators, peers)
        if check and not ready.is_ready:
            raise typer.Exit(UNABLE)


async def _ask(
    config_file: Path,
) -> tuple[Status, Readiness, tuple[ValidatorStatus, ...], tuple[PeerStatus, ...]]:
    async with Desk.open(config_file).client() as client:
        return await asyncio.gather(
            client.status(), client.readiness(), client.validators(), client.peers()
        )


def _show(
    stands: Status,
    ready: Readiness,
    validators: tuple[ValidatorStatus, ...],
    peers: tuple[PeerStatus, ...],
) -> None:
    role = "validator" if stands.is_validator else "observer"
    pairs: list[tuple[str, object]] = [
        ("institution", f"{stands.institution} ({role}), version {stands.version}"),
        ("chain", stands.chain_id),
        ("height", f"{stands.height}, sealed up to {stands.stable_height}"),
        ("view", f"{stands.view}, primary {stands.primary}"),
        ("ready", readiness_text(ready)),
        ("phase", ready.phase),
        ("mempool", f"{stands.mempool_transactions} transactions, {stands.mempool_bytes} bytes"),
    ]
    if ready.missing:
        pairs.insert(5, ("waiting for", ready.missing))
    show_pairs(pairs)
    indexes = {validator.institution: validator.index for validator in validators}
    show_table(
        ("peer", "address", "connected", "votes as", "height", "sent", "received", "dropped"),
        [
            (
                peer.institution,
                f"{peer.host}:{peer.port}" if peer.host else None,
                Text("yes", "green") if peer.is_connected else Text("no", "red"),
                indexes.get(peer.institution) if peer.is_validator else "observer",
                peer.height,
                peer.bytes_sent,
                peer.bytes_received,
                peer.messages_dropped,
            )
            for peer in peers
        ],
    )


def readiness_text(ready: Readiness) -> Text:
    """Return "yes", or "no" and the reason."""
    return Text("yes", "green") if ready.is_ready else Text(f"no: {ready.reason}", "red")
