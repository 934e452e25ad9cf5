"""`radledger study find`: ask the other hospitals what they hold, or how many.

The command belongs to the group of `node.cli.study`. It needs no running gateway of its own: it
asks those of the others, by the addresses in the config.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from node import provision
from node.cli.arguments import DEFAULT_CONFIG, ConfigFile, Purpose, read_digest, words_of
from node.cli.auditing import record
from node.cli.context import Desk
from node.cli.failures import UNABLE, USAGE, Failure, explained
from node.cli.output import Json, cell, plain, say, show_json, show_pairs, show_table
from node.config.model import NodeConfig
from node.exchange.federation import asking
from node.exchange.federation.answer import Answer
from node.exchange.federation.asking import Findings
from node.exchange.federation.errors import InvalidQuestion
from node.exchange.federation.fields import AGE_BANDS, UNCOUNTED, Field
from node.exchange.federation.ports import FederationEvent, Inquiry
from node.exchange.federation.question import LIMIT_MAX, Condition, Kind, Question
from node.exchange.federation.route import event_of
from node.exchange.transfer.holders import Holder
from node.gateway.acting import Acting
from node.gateway.audit.hearing import inquired
from node.gateway.directory import Directory
from node.gateway.exchange_opening import identity_of, settings_of
from node.gateway.index import SpoolError
from node.gateway.inquiries import kept_line
from node.gateway.spool import Spool
from node.ledger.contracts.access_forms import ASKING_ROLES
from node.network.errors import CertificateRefused
from node.rpc.client import Client
from node.studies import Signer

app = typer.Typer()

_MONTH = re.compile(r"([0-9]{4})(?:-([0-9]{2}))?")
_FIELDS = [field.value for field in Field]
_COUNTED = [field.value for field in Field if field not in UNCOUNTED]
_OUTCOMES = {"granted": "at once", "waiting_person": "by a person"}

Words = list[str] | None


def _some(help_text: str, name: str | None = None) -> Any:
    names = [] if name is None else [name]
    return typer.Option(*names, help=f"{help_text} Several are alternatives.")


@app.command()
def find(
    purpose: Purpose = "TREAT",
    role: Annotated[
        str,
        typer.Option(
            parser=words_of(ASKING_ROLES, "the role of a requester"),
            metavar="WORD",
            help="In which access would be asked for: clinician, researcher or gateway.",
        ),
    ] = "clinician",
    modality: Annotated[Words, _some("E.g. CT.")] = None,
    region: Annotated[Words, _some("Coarse, as on the chain, e.g. head.")] = None,
    body_part: Annotated[Words, _some("A term of DICOM, e.g. BRAIN.")] = None,
    age: Annotated[Words, _some(f"A band: {', '.join(AGE_BANDS)}.")] = None,
    sex: Annotated[Words, _some("F, M or O.")] = None,
    manufacturer: Annotated[Words, _some("Of the equipment, as it writes itself.")] = None,
    model: Annotated[Words, _some("Of the equipment.")] = None,
    word: Annotated[
        Words, typer.Option(help="In a description, e.g. contrast; of several all must be there.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="YEAR[-MONTH]", help="Of the study, inclusive.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="YEAR[-MONTH]", help="Of the study, inclusive.")
    ] = None,
    deidentified: Annotated[
        bool, typer.Option("--deidentified", help="A de-identified copy would be enough.")
    ] = False,
    ethics_digest: Annotated[
        bytes | None,
        typer.Option(parser=read_digest, metavar="HEX", help="Of the ethics approval."),
    ] = None,
    count: Annotated[
        bool, typer.Option("--count", help="Not which studies there are, but how many.")
    ] = False,
    by: Annotated[
        Words, typer.Option(help=f"With --count, by these fields: {', '.join(_COUNTED)}.")
    ] = None,
    at: Annotated[
        Words, typer.Option(metavar="INSTITUTION", help="Only these hospitals; all if not given.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=LIMIT_MAX, help="Studies, or values, of each hospital.")
    ] = 100,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, max=300, help="Seconds to wait for answers.")
    ] = 15.0,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Find studies at other hospitals: each tells what its policies would grant to this one.

    A hospital answers about the fields that it has chosen, and says which. Exit status 3 if nobody
    answered; who did not is always told.
    """
    with explained(as_json), _told():
        if by and not count:
            raise Failure(USAGE, "--by goes with --count")
        choices = {
            Field.MODALITY: modality,
            Field.REGION: region,
            Field.BODY_PART: body_part,
            Field.AGE: age,
            Field.SEX: sex,
            Field.MANUFACTURER: manufacturer,
            Field.MODEL: model,
        }
        question = Question(
            kind=Kind.COUNT if count else Kind.FIND,
            purpose=purpose,
            role=role,
            deidentified=deidentified,
            ethics_digest=ethics_digest,
            conditions=_conditions(choices, word or ()),
            since=_month(since, "--since", last=False),
            until=_month(until, "--until", last=True),
            fields=tuple(Field(name) for name in _named(by)) if count else tuple(Field),
            limit=limit,
        )
        findings = asyncio.run(_ask(Desk.open(config_file), question, at or (), timeout_s))
        if as_json:
            show_json(_plain(findings))
        else:
            _show(findings)
        if not findings.answers:
            raise Failure(UNABLE, "nobody answered")


async def _ask(desk: Desk, question: Question, chosen: Sequence[str], timeout_s: float) -> Findings:
    config = desk.config
    if config.exchange is None:
        raise Failure(USAGE, "the config needs [exchange] to ask other hospitals")
    settings = settings_of(config.exchange)
    passphrase = provision.passphrase_of(config.key)
    genesis = desk.genesis()
    identity = await asyncio.to_thread(identity_of, config, passphrase)
    directory = Directory(genesis, settings.places, config.institution)
    async with desk.client() as client:
        # Nothing is signed for a question; who asks is in the connection's certificate.
        signer = Signer(identity.private_key, config.institution, genesis.chain_id)
        await directory.refresh(Acting(client, signer))
        places = [place.institution for place in settings.places]
        ways = _ways(directory, places, chosen)
        holders = [holder for holder in ways.values() if holder is not None]
        custodian_of = _custodian_of(client)
        found = await asking.ask(identity, question, holders, custodian_of, timeout_s=timeout_s)
    for name, holder in ways.items():
        if holder is None:
            found.silent[name] = "the ledger names no active institution with a node of that name"
    await asyncio.to_thread(_keep, config, question, found)
    return found


def _ways(
    directory: Directory, places: Sequence[str], chosen: Sequence[str]
) -> dict[str, Holder | None]:
    for name in chosen:
        if name not in places:
            raise Failure(USAGE, f"no way to {name} is known: name it under [[exchange.peers]]")
    if not places:
        raise Failure(USAGE, "no other hospital is named under [[exchange.peers]]")
    return {name: directory.holder(name) for name in places if not chosen or name in chosen}


def _custodian_of(client: Client) -> Callable[[bytes], Any]:
    async def custodian_of(study_id: bytes) -> str | None:
        study = await client.study(study_id)
        if study is None or study.summary.status == "erased":
            return None
        return study.summary.custodian

    return custodian_of


def _keep(config: NodeConfig, question: Question, found: Findings) -> None:
    """Keep an event of each hospital that was asked, where the gateway keeps its own."""
    if config.gateway is None:
        return
    events: list[FederationEvent] = [
        event_of(Inquiry.ASKED, name, question, answer) for name, answer in found.answers.items()
    ]
    events += [event_of(Inquiry.ASKED, name, question, None, "silent") for name in found.silent]
    record(config, *map(inquired, events))
    spool = Spool(config.gateway.spool_dir)
    try:
        for event in events:
            spool.note(*kept_line(event), is_audited=True)
    finally:
        spool.close()


def _conditions(choices: dict[Field, Words], words: Sequence[str]) -> tuple[Condition, ...]:
    found = [Condition(field, tuple(values)) for field, values in choices.items() if values]
    found += [Condition(Field.WORD, (word.casefold(),)) for word in words]
    return tuple(found)


def _named(by: Words) -> list[str]:
    for name in by or ():
        if name not in _COUNTED:
            raise Failure(USAGE, f"--by is one of {', '.join(_COUNTED)}")
    return by or []


def _month(text: str | None, option: str, *, last: bool) -> int | None:
    """Return the month's number; of a year alone the first or the last."""
    if text is None:
        return None
    match = _MONTH.fullmatch(text)
    if match is None or not 1 <= int(match[2] or 1) <= 12:
        raise Failure(USAGE, f"{option} is a year or a month, as 2024 or 2024-03")
    month = int(match[2]) - 1 if match[2] else (11 if last else 0)
    return int(match[1]) * 12 + month


@dataclass(frozen=True, slots=True)
class _Row:
    institution: str
    study_id: bytes
    outcome: str
    told: dict[str, Any]


def _rows(findings: Findings) -> list[_Row]:
    return [
        _Row(
            name,
            study.study_id,
            study.outcome,
            {field.value: list(values) for field, values in study.told.items()},
        )
        for name, answer in findings.answers.items()
        for study in answer.studies
    ]


def _plain(findings: Findings) -> dict[str, Any]:
    return {
        "studies": plain(_rows(findings)),
        "hospitals": {name: _of_hospital(answer) for name, answer in findings.answers.items()},
        "silent": findings.silent,
    }


def _of_hospital(answer: Answer) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "offered": [field.value for field in answer.offered],
        "unoffered": [field.value for field in answer.unoffered],
        "is_complete": answer.is_complete,
    }
    if answer.kind is Kind.COUNT and not answer.unoffered:
        total = answer.total
        shown |= {
            "least": answer.least,
            "studies": None if total is None else total[0],
            "patients": None if total is None else total[1],
            "by": {tally.field.value: plain(tally.counted) for tally in answer.tallies},
        }
    return shown


def _show(findings: Findings) -> None:
    if any(answer.kind is Kind.COUNT for answer in findings.answers.values()):
        _show_counts(findings)
    else:
        _show_studies(findings)
    for name, answer in findings.answers.items():
        _show_limits(name, answer)
    for name, reason in sorted(findings.silent.items()):
        say(f"{name} did not answer: {reason}", "yellow")


def _show_studies(findings: Findings) -> None:
    rows = _rows(findings)
    if not rows:
        say("No study was found.")
        return
    used = [name for name in _FIELDS if any(name in row.told for row in rows)]
    show_table(
        ("study", "hospital", "granted", *used),
        (
            (
                row.study_id,
                row.institution,
                _OUTCOMES[row.outcome],
                *(cell(row.told.get(name)) for name in used),
            )
            for row in rows
        ),
    )
    say("Ask for one by `radledger access request STUDY`.")


def _show_counts(findings: Findings) -> None:
    answered = {name: a for name, a in findings.answers.items() if not a.unoffered}
    show_table(
        ("hospital", "studies", "patients"),
        ((name, *_numbers(answer)) for name, answer in answered.items()),
        title="At least, rounded down",
    )
    for field in Field:
        rows = [
            (name, each.value, each.studies, each.subjects)
            for name, answer in answered.items()
            for tally in answer.tallies
            if tally.field is field
            for each in tally.counted
        ]
        if rows:
            show_table(("hospital", field.value, "studies", "patients"), rows, title="")
    totals = [answer.total for answer in answered.values() if answer.total is not None]
    sums = [("studies", sum(total[0] for total in totals))]
    sums.append(("patients, if no two hospitals share one", sum(total[1] for total in totals)))
    show_pairs(sums, title="Together, at least")


def _numbers(answer: Answer) -> tuple[object, object]:
    if answer.total is None:
        return f"of fewer than {answer.least} patients", None
    return answer.total


def _show_limits(name: str, answer: Answer) -> None:
    if answer.unoffered:
        missing = ", ".join(field.value for field in answer.unoffered)
        offered = ", ".join(field.value for field in answer.offered) or "nothing"
        say(f"{name} does not answer about {missing}; it does about {offered}.", "yellow")
    elif not answer.is_complete:
        say(f"{name} may have more: ask more narrowly, or for a higher --limit.", "yellow")


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (InvalidQuestion, CertificateRefused) as error:
        raise Failure(USAGE, str(error)) from error
    except SpoolError as error:
        raise Failure(UNABLE, str(error)) from error
