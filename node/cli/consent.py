"""`radledger consent`: what a patient allows and forbids, as the custodian keeps it."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from node.cli.arguments import (
    DEFAULT_CONFIG,
    ConfigFile,
    read_consent_id,
    read_digest,
    read_public_key,
    read_purpose,
    read_study_id,
    read_subject_id,
)
from node.cli.context import Desk
from node.cli.failures import USAGE, WRONG, Failure, explained
from node.cli.outlook import next_plain, show_next
from node.cli.output import Json, say, show_json, show_pairs, show_table
from node.cli.references import chosen_digest
from node.cli.signing import Actor, Call, KeyFile, new_id
from node.ledger.limits import HEIGHT_MAX
from node.ledger.queries.access_views import ConsentRuleView, ConsentView
from node.rpc.service import Submitted

app = typer.Typer(
    no_args_is_help=True,
    help="Record what a patient allows and forbids. Everything holds from the next height on.",
)

Subject = Annotated[
    bytes,
    typer.Argument(
        parser=read_subject_id, metavar="SUBJECT", help="The patient's pseudonym, 32 hex digits."
    ),
]
Study = Annotated[
    bytes | None,
    typer.Option(
        "--study", parser=read_study_id, metavar="ID", help="This study only; all if not given."
    ),
]
Recipient = Annotated[
    str | None, typer.Option("--to", help="This institution only; every one if not given.")
]
Purposes = Annotated[
    list[str] | None,
    typer.Option(
        "--purpose",
        parser=read_purpose,
        metavar="WORD",
        help="This HL7 PurposeOfUse only, several times for several; every one if not given.",
    ),
]
Until = Annotated[
    int | None, typer.Option("--until", min=1, max=HEIGHT_MAX, help="The last height.")
]
Lasting = Annotated[
    int | None, typer.Option("--for", min=1, max=HEIGHT_MAX, help="For so many heights.")
]
Form = Annotated[
    Path | None,
    typer.Option("--form", help="The signed form; a salted digest of it goes on the chain."),
]
FormDigest = Annotated[
    bytes | None,
    typer.Option(
        "--form-digest", parser=read_digest, metavar="HEX", help="The same, made elsewhere."
    ),
]


@app.command()
def grant(
    subject_id: Subject,
    study: Study = None,
    to: Recipient = None,
    purpose: Purposes = None,
    until: Until = None,
    lasting: Lasting = None,
    form: Form = None,
    form_digest: FormDigest = None,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Allow: by the patient's key, or with the signed form. Requests that wait are decided anew."""
    with explained(as_json):
        digest = chosen_digest(form, form_digest, "--form", salted=True)
        scope = _Scope(study, to, tuple(sorted(set(purpose or ()))), until, lasting)
        call = Call(config_file, key, as_json)
        asyncio.run(_set(call, "consent.grant", subject_id, scope, digest))


@app.command()
def restrict(
    subject_id: Subject,
    study: Study = None,
    to: Recipient = None,
    purpose: Purposes = None,
    until: Until = None,
    lasting: Lasting = None,
    form: Form = None,
    form_digest: FormDigest = None,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Forbid. The most specific rule decides, and among equals the one that forbids."""
    with explained(as_json):
        digest = chosen_digest(form, form_digest, "--form", salted=True)
        scope = _Scope(study, to, tuple(sorted(set(purpose or ()))), until, lasting)
        call = Call(config_file, key, as_json)
        asyncio.run(_set(call, "consent.restrict", subject_id, scope, digest))


@app.command()
def withdraw(
    subject_id: Subject,
    consent_id: Annotated[
        bytes, typer.Argument(parser=read_consent_id, metavar="ID", help="Of the rule.")
    ],
    form: Form = None,
    form_digest: FormDigest = None,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """End a rule. Access that rested on it stops at the next height, everywhere."""
    with explained(as_json):
        digest = chosen_digest(form, form_digest, "--form", salted=True)
        call, arguments = Call(config_file, key, as_json), (subject_id, consent_id, digest)
        asyncio.run(_act(call, "consent.withdraw", arguments, subject_id, consent_id))


@app.command(name="opt-out")
def opt_out(
    subject_id: Subject,
    form: Form = None,
    form_digest: FormDigest = None,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Forbid everything but emergency access, whatever else is allowed, until `opt-in`."""
    with explained(as_json):
        digest = chosen_digest(form, form_digest, "--form", salted=True)
        call = Call(config_file, key, as_json)
        asyncio.run(_act(call, "consent.opt_out", (subject_id, digest), subject_id))


@app.command(name="opt-in")
def opt_in(
    subject_id: Subject,
    form: Form = None,
    form_digest: FormDigest = None,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """End an opt-out: the rules count again. Requests that wait are decided anew."""
    with explained(as_json):
        digest = chosen_digest(form, form_digest, "--form", salted=True)
        call = Call(config_file, key, as_json)
        asyncio.run(_act(call, "consent.opt_in", (subject_id, digest), subject_id))


@app.command()
def bind(
    subject_id: Subject,
    patient: Annotated[
        bytes | None,
        typer.Option(
            "--patient", parser=read_public_key, metavar="KEY", help="The patient's public key."
        ),
    ] = None,
    none: Annotated[
        bool, typer.Option("--none", help="Unbind: the patient's key is lost, or not wanted.")
    ] = False,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Let a patient act for this pseudonym with a key of its own (a member with role patient)."""
    with explained(as_json):
        if (patient is None) != none:
            raise Failure(USAGE, "give either --patient KEY or --none")
        call = Call(config_file, key, as_json)
        asyncio.run(_act(call, "consent.bind", (subject_id, patient), subject_id))


@app.command()
def show(
    subject_id: Subject,
    institution: Annotated[
        str | None, typer.Option("--institution", help="The custodian; this one if not given.")
    ] = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show what is recorded for a patient, and which rules are in force."""
    with explained(as_json):
        view = asyncio.run(_ask(Desk.open(config_file), institution, subject_id))
        if as_json:
            show_json(view)
        else:
            _show(view)


async def _ask(desk: Desk, institution: str | None, subject_id: bytes) -> ConsentView:
    custodian = institution or desk.config.institution
    async with desk.client() as client:
        return _found(await client.consent(custodian, subject_id), custodian)


def _found(view: ConsentView | None, custodian: str) -> ConsentView:
    if view is None:
        raise Failure(
            WRONG,
            f"{custodian} has nothing on record for this subject: where consent is required, "
            "nothing is permitted",
        )
    return view


@dataclass(frozen=True, slots=True)
class _Scope:
    """What a rule is about, and for how long."""

    study_id: bytes | None
    recipient: str | None
    purposes: tuple[str, ...]
    until: int | None
    lasting: int | None


async def _set(
    call: Call, name: str, subject_id: bytes, scope: _Scope, digest: bytes | None
) -> None:
    if scope.until is not None and scope.lasting is not None:
        raise Failure(USAGE, "--until and --for exclude each other")
    about = (scope.study_id, scope.recipient, scope.purposes)
    consent_id = new_id()
    async with call.actor() as actor:
        until = scope.until
        if scope.lasting is not None:
            until = (await actor.client.head()).height + scope.lasting
        arguments = (consent_id, subject_id, *about, until, digest)
        await _submit(call, actor, name, arguments, subject_id, consent_id)


async def _act(
    call: Call,
    name: str,
    arguments: tuple[object, ...],
    subject_id: bytes,
    consent_id: bytes | None = None,
) -> None:
    async with call.actor() as actor:
        await _submit(call, actor, name, arguments, subject_id, consent_id)


async def _submit(
    call: Call,
    actor: Actor,
    name: str,
    arguments: tuple[object, ...],
    subject_id: bytes,
    consent_id: bytes | None,
) -> None:
    submitted = await actor.submit(name, arguments)
    custodian = actor.institution
    view = _found(await actor.client.consent(custodian, subject_id), custodian)
    if call.as_json:
        answer = {"transaction": submitted, "consent_id": consent_id, "consent": view}
        show_json({**answer, "next": next_plain(view.next_step, subject=subject_id)})
    else:
        _show_done(submitted, consent_id, view)


def _show_done(submitted: Submitted, consent_id: bytes | None, view: ConsentView) -> None:
    height = submitted.height or 0
    say(f"Recorded at height {height}; it counts from height {height + 1} on.", "green")
    if consent_id is not None:
        say(f"consent {consent_id.hex()}")
    _show(view)


def _show(view: ConsentView) -> None:
    opted_out = "no"
    if view.opted_out:
        opted_out = f"since height {view.opted_out_from}, by the {view.opted_out_by}"
    show_pairs(
        [
            ("subject", view.subject_id),
            ("custodian", view.institution),
            ("patient's key", view.patient_key),
            ("opted out", opted_out),
            ("requests that wait", view.waiting),
        ]
    )
    if view.rules:
        headings = ("consent", "rule", "study", "to", "purposes", "from", "until", "by", "state")
        show_table(headings, [_row(rule) for rule in view.rules])
    else:
        say("No rule is recorded: nothing is permitted where consent is required.")
    show_next(view.next_step, subject=view.subject_id)


def _row(rule: ConsentRuleView) -> tuple[object, ...]:
    return (
        rule.consent_id,
        rule.effect,
        rule.study_id or "all",
        rule.recipient or "everybody",
        rule.purposes or "all",
        rule.from_height,
        rule.until_height if rule.ended_height is None else rule.ended_height,
        rule.by,
        rule.state,
    )
