"""`radledger genesis`: the cards of all institutions become the file that a chain begins with."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from node.cli.failures import USAGE, Failure, explained
from node.cli.output import Json, say, show_json, show_pairs, show_table
from node.ledger import genesis_file
from node.ledger.genesis import Genesis
from node.provision import GENESIS, Card, InvalidCard, make_genesis

_PLACE = re.compile(r"(institutions|validators|observers)\[(\d+)\]")


def genesis(
    cards: Annotated[
        list[Path], typer.Argument(help="The institutions' cards; their order is that of voting.")
    ],
    name: Annotated[str, typer.Option("--name", "-n", help="The consortium: a-z, 0-9 and -.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write it.")] = Path(
        GENESIS
    ),
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file: the new chain is another one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the genesis of a consortium: check everything, and show what it tolerates."""
    with explained(as_json):
        if output.exists() and not force:
            raise Failure(
                USAGE,
                f"{output} exists; a chain keeps its genesis for ever. Name another file with "
                "--output, or give --force if no node has used it yet",
            )
        loaded = _load(cards)
        made = make_genesis(name, loaded, time.time_ns() // 1_000_000)
        problems = [f"{place}: {sentence}" for place, sentence in made.problems()]
        if problems:
            lines = (_with_card(problem, cards, loaded) for problem in problems)
            raise Failure(USAGE, "no genesis can be made of these cards:", *lines)
        genesis_file.save(made, output)
        if as_json:
            show_json({"file": output, **_facts(made)})
        else:
            _show(made, output)


def _load(paths: Sequence[Path]) -> list[Card]:
    cards, problems = [], []
    for path in paths:
        try:
            cards.append(Card.load(path))
        except InvalidCard as error:
            problems.append(str(error))
    if problems:
        raise Failure(USAGE, "no genesis can be made of these cards:", *problems)
    return cards


def _with_card(problem: str, paths: Sequence[Path], cards: Sequence[Card]) -> str:
    """Return the problem with the card's file for every place in the genesis that it names."""
    pairs = list(zip(paths, cards, strict=True))
    files = {
        "institutions": paths,
        "validators": [path for path, card in pairs if not card.observer],
        "observers": [path for path, card in pairs if card.observer],
    }
    return _PLACE.sub(lambda found: str(files[found[1]][int(found[2])]), problem)


def _facts(made: Genesis) -> dict[str, object]:
    validators = made.validator_set()
    return {
        "name": made.name,
        "chain_id": made.chain_id,
        "n": validators.n,
        "f": validators.f,
        "quorum": validators.quorum,
        "validators": [node.institution for node in made.validators],
        "observers": [node.institution for node in made.observers],
    }


def _show(made: Genesis, output: Path) -> None:
    validators = made.validator_set()
    show_pairs(
        [
            ("file", output),
            ("consortium", made.name),
            ("chain id", made.chain_id),
            ("validators", f"N = {validators.n}"),
            ("tolerates", f"f = {validators.f} of them down or lying"),
            ("quorum", f"{validators.quorum} must agree on every block"),
        ]
    )
    about = {each.name: (each.display_name, each.country) for each in made.institutions}
    rows = [(n.institution, *about[n.institution], "votes") for n in made.validators]
    rows += [(n.institution, *about[n.institution], "observes") for n in made.observers]
    show_table(("institution", "name", "country", "role"), rows)
    if validators.f == 0:
        say("With fewer than 4 validators the chain stops as soon as one of them does.", "yellow")
    say("Give the same file to every institution, and compare the chain id by telephone.")
