"""`radledger keygen`: an institution's keys and its public card."""

from pathlib import Path
from typing import Annotated

import typer

from node import keys, provision
from node.cli.failures import USAGE, Failure, explained
from node.cli.output import Json, say, show_json, show_pairs
from node.ledger.contracts.vocabulary import COUNTRY_NOT_STATED


def keygen(
    institution: Annotated[
        str, typer.Argument(help="A short name, e.g. st-mary: a-z, 0-9 and -, at most 32.")
    ],
    folder: Annotated[
        Path, typer.Option("--folder", "-f", help="Where the keys go; made if it is not there.")
    ] = Path("."),
    display_name: Annotated[
        str | None, typer.Option(help="The name for people; the short one if not given.")
    ] = None,
    country: Annotated[
        str, typer.Option(help="Two letters of ISO 3166-1; policies may ask. ZZ: not stated.")
    ] = COUNTRY_NOT_STATED,
    observer: Annotated[
        bool, typer.Option("--observer", help="The node will follow the chain without voting.")
    ] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="A file (mode 0600) with the passphrase for the keys.")
    ] = None,
    ask: Annotated[
        bool, typer.Option("--ask-passphrase", help="Ask for the passphrase at the terminal.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the node's and the gateway's keys, encrypted, and the public card institution.json.

    Without a passphrase a random one is made and kept beside the keys. Keys are never overwritten.
    """
    with explained(as_json):
        card = provision.create_identity(
            folder,
            institution,
            institution if display_name is None else display_name,
            passphrase=_passphrase(passphrase_file, ask),
            observer=observer,
            country=country,
        )
        answer = {
            "institution": card.institution,
            "display_name": card.display_name,
            "country": card.country,
            "observer": card.observer,
            "node_key": card.node_key,
            "gateway_key": card.members[0].public_key,
            "card": folder / provision.CARD,
            "files": sorted(path.name for path in folder.iterdir()),
        }
        if as_json:
            show_json(answer)
            return
        show_pairs((name.replace("_", " "), value) for name, value in answer.items())
        say(
            f"Send {folder / provision.CARD} to whoever assembles the genesis; it is public. "
            f"Back up the rest of {folder}: lost keys cannot be made again."
        )


def _passphrase(file: Path | None, ask: bool) -> bytes | None:
    if file is not None and ask:
        raise Failure(USAGE, "--passphrase-file and --ask-passphrase exclude each other")
    if file is not None:
        return keys.read_passphrase(keys.PassphraseFile(file))
    if ask:
        return keys.read_passphrase(keys.PassphrasePrompt(confirm=True))
    return None
