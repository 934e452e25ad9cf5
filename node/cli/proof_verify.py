"""`radledger proof verify`: what a proof file proves, from the file and the genesis alone."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from node.cli.failures import USAGE, WRONG, Failure, explained
from node.cli.output import Json, say, show_json, show_pairs, show_table, time_text
from node.ledger import genesis_file
from node.ledger.genesis import Genesis
from node.ledger.proofs.describe import Description, describe
from node.ledger.proofs.format import FILE_BYTES_MAX
from node.ledger.proofs.verify import Proved
from node.ledger.proofs.verify import verify as verify_proof
from storage.errors import InvalidProof


def verify(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The proof file.")],
    genesis: Annotated[
        Path, typer.Option("--genesis", "-g", help="The consortium's genesis file.")
    ],
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--files",
            exists=True,
            help="Check these DICOM files too, or folders of them, against a proof of an instance "
            "or a manifest.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a proof file proves; exit status 0 only if it does, and the files are intact.

    Needs no node. The genesis must come from somebody you trust: the whole proof rests on it.
    """
    with explained(as_json):
        proved, loaded = _proved(file, genesis)
        description = describe(proved)
        report = _compared(files, proved) if files else None
        if as_json:
            about = facts(proved, description, loaded)
            compared = None if report is None else report.to_plain()
            show_json({"file": file, "is_proved": True, **about, "files": compared})
        else:
            show(proved, description, loaded)
            if report is not None:
                _show_files(report)
        if report is not None and not report.is_intact:
            raise typer.Exit(WRONG)


def _proved(file: Path, genesis: Path) -> tuple[Proved, Genesis]:
    loaded = genesis_file.load(genesis)
    with file.open("rb") as opened:
        data = opened.read(FILE_BYTES_MAX + 1)
    try:
        return verify_proof(data, loaded), loaded
    except InvalidProof as error:
        raise Failure(WRONG, f"{file} proves nothing: {error}") from error


def _compared(paths: list[Path], proved: Proved) -> Any:
    if not proved.records:
        raise Failure(
            USAGE,
            f"this proof is about {proved.kind}: files are checked against a proof of an instance "
            "or of a manifest (`radledger proof make instance FILE`, `... manifest FOLDER`)",
        )
    # Loaded when it is needed: it reads DICOM files.
    return import_module("node.cli.proof_files").compare_files(paths, proved)


def facts(proved: Proved, description: Description, genesis: Genesis) -> dict[str, object]:
    """Return what is proved and on whose word, for JSON."""
    transaction, receipt = proved.transaction, proved.receipt
    return {
        "kind": proved.kind,
        "statement": description.sentences,
        "chain": genesis.name,
        "chain_id": genesis.chain_id,
        "height": proved.header.height,
        "time_ms": proved.header.time_ms,
        "sealed_height": proved.anchor.height,
        "sealed_by": proved.sealed_by,
        "validators": proved.validators.n,
        "quorum": proved.validators.quorum,
        "validator_changes": proved.changes,
        "rows": [
            {
                "subject": text.subject,
                "key": key,
                "is_there": value is not None,
                "value": text.value,
            }
            for (key, value), text in zip(proved.rows, description.rows, strict=True)
        ],
        "instances": len(proved.records),
        "transaction": None
        if transaction is None or receipt is None
        else {
            "id": transaction.id,
            "institution": transaction.institution,
            "member_key": transaction.member_key,
            "operations": [operation.name for operation in transaction.operations],
            "code": receipt.code,
            "events": receipt.events,
        },
    }


def show(proved: Proved, description: Description, genesis: Genesis) -> None:
    """Print what is proved and on whose word."""
    say("Proved:", "bold")
    for sentence in description.sentences:
        say(f"  - {sentence}")
    changes = ", ".join(f"at height {height}" for height in proved.changes)
    say("")
    show_pairs(
        [
            ("as of", f"height {proved.header.height}, {time_text(proved.header.time_ms)}"),
            ("on chain", f"{genesis.name}, {genesis.chain_id.hex()}"),
            (
                "sealed by",
                f"{', '.join(proved.sealed_by)} ({len(proved.sealed_by)} of "
                f"{proved.validators.n} validators, a quorum)",
            ),
            ("sealed at", f"height {proved.anchor.height}"),
            ("validators changed", changes or "never, up to there"),
        ]
    )


def _show_files(report: Any) -> None:
    say("")
    show_table(("file", "result"), [(i.name, i.sentence) for i in report.instances])
    say(report.sentence, "green" if report.is_intact else "red")
