"""`radledger study classify`, `retire`, `offer` ...: what becomes of a study, and who keeps it.

These commands belong to the group of `node.cli.study`, apart from what reads DICOM files.
"""

import asyncio
from typing import Annotated

import typer

from node.cli.arguments import (
    DEFAULT_CONFIG,
    ConfigFile,
    read_study_id,
    read_subject_id,
    words_of,
)
from node.cli.failures import explained
from node.cli.output import Json, say, show_json, show_pairs
from node.cli.signing import Call, KeyFile, new_id
from node.ledger.contracts.vocabulary import CONFIDENTIALITY, ERASE_REASONS, RETIRE_REASONS
from node.ledger.queries import StudySummary

app = typer.Typer()

Study = Annotated[
    bytes, typer.Argument(parser=read_study_id, metavar="ID", help="Of the study, 32 hex digits.")
]

_NEXT = {
    "study.classify": "nobody has to act; policies see it from now on",
    "study.retire": "nobody has to act; it stays provable, and can still be erased",
    "study.offer": "an administrator or gateway of {offered_to} accepts it: "
    "radledger study accept {id}",
    "study.withdraw_offer": "nobody has to act; {custodian} keeps it",
    "study.accept": "{custodian} keeps it now; requests to its old custodian give no access any "
    "more and are asked anew",
    "study.erase": "every institution that holds a copy destroys it and attests that: "
    "radledger study attest-erasure {id}",
    "study.attest_erasure": "nobody has to act",
}


@app.command()
def classify(
    study_id: Study,
    level: Annotated[
        str,
        typer.Argument(
            parser=words_of(CONFIDENTIALITY, "a confidentiality"),
            metavar="N|R|V",
            help="Normal, restricted or very restricted (HL7 Confidentiality).",
        ),
    ],
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Say how confidential a study is; policies decide by it."""
    _act(Call(config_file, key, as_json), "study.classify", study_id, level)


@app.command()
def retire(
    study_id: Study,
    reason: Annotated[
        str,
        typer.Option(
            parser=words_of(RETIRE_REASONS, "a reason"),
            metavar="WORD",
            help="Why.",
            autocompletion=lambda: sorted(RETIRE_REASONS),
        ),
    ],
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Close a study for good: no new version, no access; it stays provable."""
    _act(Call(config_file, key, as_json), "study.retire", study_id, reason)


@app.command()
def offer(
    study_id: Study,
    to: Annotated[str, typer.Option("--to", help="The institution that shall keep it.")],
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Offer the custody of a study to another institution."""
    _act(Call(config_file, key, as_json), "study.offer", study_id, to)


@app.command(name="withdraw-offer")
def withdraw_offer(
    study_id: Study,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Take an offer back that was not accepted yet."""
    _act(Call(config_file, key, as_json), "study.withdraw_offer", study_id)


@app.command()
def accept(
    study_id: Study,
    subject_id: Annotated[
        bytes | None,
        typer.Option(
            "--subject",
            parser=read_subject_id,
            metavar="ID",
            help="This institution's own pseudonym of the patient; a new one if not given.",
        ),
    ] = None,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Become custodian of a study that was offered to this institution."""
    subject = new_id() if subject_id is None else subject_id
    _act(Call(config_file, key, as_json), "study.accept", study_id, subject)


@app.command()
def erase(
    study_id: Study,
    reason: Annotated[
        str,
        typer.Option(
            parser=words_of(ERASE_REASONS, "a reason"),
            metavar="WORD",
            help="Why.",
            autocompletion=lambda: sorted(ERASE_REASONS),
        ),
    ],
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Record that a study was destroyed here, for ever. Destroy its data and keys first."""
    _act(Call(config_file, key, as_json), "study.erase", study_id, reason)


@app.command(name="attest-erasure")
def attest_erasure(
    study_id: Study,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Attest that this institution destroyed its copies of an erased study."""
    _act(Call(config_file, key, as_json), "study.attest_erasure", study_id)


def _act(call: Call, name: str, study_id: bytes, *more: object) -> None:
    with explained(call.as_json):
        asyncio.run(_submit(call, name, study_id, more))


async def _submit(call: Call, name: str, study_id: bytes, more: tuple[object, ...]) -> None:
    async with call.actor() as actor:
        submitted = await actor.submit(name, (study_id, *more))
        view = await actor.client.study(study_id)
    if view is None:
        raise RuntimeError("the node changed a study that it does not know")
    study = view.summary
    if call.as_json:
        show_json({"transaction": submitted, "study": study})
        return
    say(f"Recorded at height {submitted.height}.", "green")
    _show(study)
    named = {"id": study.id.hex(), "custodian": study.custodian, "offered_to": study.offered_to}
    say(f"Next: {_NEXT[name].format_map(named)}.", "bold")


def _show(study: StudySummary) -> None:
    show_pairs(
        [
            ("study", study.id),
            ("custodian", study.custodian),
            ("subject", study.subject_id),
            ("status", study.status),
            ("reason", study.retire_reason),
            ("confidentiality", study.confidentiality),
            ("offered to", study.offered_to),
        ]
    )
