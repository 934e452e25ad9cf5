"""`radledger policy`: the rules by which requests are decided without a person."""

import asyncio
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from node.cli.arguments import (
    DEFAULT_CONFIG,
    ConfigFile,
    Purpose,
    read_study_id,
    words_of,
)
from node.cli.context import Desk
from node.cli.failures import USAGE, WRONG, Failure, explained
from node.cli.output import Json, say, show_json
from node.cli.policy_files import load_policies, policy_path, templates_folder
from node.cli.policy_report import show_policies, show_rule, show_template, show_trial
from node.cli.signing import Call, KeyFile
from node.ledger.contracts.access_forms import ASKING_ROLES
from node.ledger.contracts.policy import CONSENTS, EFFECTS, Publish, parse_publish
from node.ledger.errors import Refused
from node.ledger.limits import HEIGHT_MAX
from node.ledger.policies.templates import InvalidTemplate, load_template, load_templates
from node.ledger.queries.access_views import (
    DRAFTS_MAX,
    PoliciesView,
    PolicyDraft,
    PolicyQuestion,
    PolicyTrial,
)
from node.ledger.transaction import Operation

app = typer.Typer(
    no_args_is_help=True, help="Let requests decide themselves: rules of an institution."
)

Source = Annotated[
    str | None, typer.Argument(metavar="FILE | TEMPLATE", help="A TOML file, or a template's name.")
]


@app.command()
def publish(
    source: Source = None,
    name: Annotated[
        str | None, typer.Option(help="Without a file: of the rule, e.g. night-ct.")
    ] = None,
    effect: Annotated[
        str | None,
        typer.Option(
            parser=words_of(EFFECTS, "an effect"), metavar="WORD", help="permit, ask or deny."
        ),
    ] = None,
    consent: Annotated[
        str,
        typer.Option(
            parser=words_of(CONSENTS, "what consent is needed"),
            metavar="WORD",
            help="required, or not_objected: permitted unless the patient objects.",
        ),
    ] = "required",
    condition: Annotated[str | None, typer.Option(help="When it applies, in CEL.")] = None,
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Add this institution's rules of a file, or replace those of the same name; all or none."""
    with explained(as_json):
        rules = _rules(source, name, effect, consent, condition)
        operations = [Operation("policy.publish", tuple(rule)) for rule in rules]
        call = Call(config_file, key, as_json)
        asyncio.run(_act(call, operations, [rule.name for rule in rules]))


@app.command()
def retire(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Of the rules.")],
    key: KeyFile = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """End rules of this institution. What they granted stays granted: `access revoke` ends that."""
    with explained(as_json):
        operations = [Operation("policy.retire", (name,)) for name in names]
        asyncio.run(_act(Call(config_file, key, as_json), operations, names))


@app.command(name="list")
def list_command(
    institution: Annotated[str | None, typer.Argument(help="This one if not given.")] = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """List the rules for an institution's studies: the consortium's, and its own."""
    with explained(as_json):
        view = asyncio.run(_ask(Desk.open(config_file), institution))
        if as_json:
            show_json(view)
        else:
            show_policies(view)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Of the rule.")],
    institution: Annotated[
        str | None, typer.Option("--institution", help="Whose; this one's if not given.")
    ] = None,
    consortium: Annotated[
        bool, typer.Option("--consortium", help="A rule of the whole consortium.")
    ] = False,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show one rule whole."""
    with explained(as_json):
        view = asyncio.run(_ask(Desk.open(config_file), institution))
        found = [r for r in (view.consortium if consortium else view.own) if r.name == name]
        if not found:
            owner = "the consortium" if consortium else view.institution
            raise Failure(WRONG, f"{owner} has no rule {name}: `radledger policy list` shows all")
        whose = None if consortium else view.institution
        rule = next((each for each in found if each.in_force), found[-1])
        if as_json:
            show_json({"institution": whose, "rule": rule})
        else:
            show_rule(whose, rule)


@app.command(name="try")
def try_command(
    study_id: Annotated[
        bytes, typer.Argument(parser=read_study_id, metavar="STUDY", help="The study's id.")
    ],
    institution: Annotated[str, typer.Option("--by", help="The institution that would ask.")],
    purpose: Purpose,
    role: Annotated[
        str,
        typer.Option(
            parser=words_of(ASKING_ROLES, "the role of a requester"),
            metavar="WORD",
            help="clinician, researcher or gateway.",
        ),
    ] = "clinician",
    heights: Annotated[int, typer.Option(min=1, max=HEIGHT_MAX, help="For how long.")] = 10_000,
    uses: Annotated[int, typer.Option(min=1, max=HEIGHT_MAX, help="How often.")] = 100,
    deidentified: Annotated[
        bool, typer.Option("--deidentified", help="A de-identified copy would do.")
    ] = False,
    ethics: Annotated[bool, typer.Option("--ethics", help="With an ethics approval.")] = False,
    at: Annotated[
        datetime | None, typer.Option(help="At this time (UTC); now if not given.")
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="As if the custodian had published this file's rules."),
    ] = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Say what would become of a request now, which rule decides, and why. Nothing is sent."""
    with explained(as_json):
        question = PolicyQuestion(
            study_id=study_id,
            institution=institution,
            role=role,
            purpose=purpose,
            heights=heights,
            uses_max=uses,
            deidentified=deidentified,
            ethics_digest=secrets.token_bytes(32) if ethics else None,
            time_ms=None if at is None else round(at.replace(tzinfo=UTC).timestamp() * 1000),
            drafts=_drafts(draft),
        )
        trial = asyncio.run(_try(config_file, question))
        if as_json:
            show_json(trial)
        else:
            show_trial(trial)


@app.command()
def check(
    source: Annotated[str, typer.Argument(metavar="FILE | TEMPLATE", help="A TOML file.")],
    as_json: Json = False,
) -> None:
    """Check a file of rules without a node, and list every fault; exit status 2 if there is one."""
    with explained(as_json):
        path = policy_path(source)
        try:
            found, problems = load_template(path), []
        except InvalidTemplate as invalid:
            found, problems = None, invalid.problems
        if as_json:
            rules = [] if found is None else [each._asdict() for each in found.rules]
            show_json(
                {"file": path, "is_valid": not problems, "problems": problems, "rules": rules}
            )
        elif found is not None:
            show_template(path.stem, found)
            say(f"{path} is valid: `radledger policy publish {source}` publishes it.", "green")
        if problems:
            raise Failure(USAGE, *problems) if not as_json else typer.Exit(USAGE)


@app.command()
def templates(
    name: Annotated[
        str | None, typer.Argument(help="Print this one, to be changed and published.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the ready-made templates, or print one, to be changed and published."""
    with explained(as_json):
        if name is not None and not as_json:
            print(policy_path(name).read_text(encoding="utf-8"), end="")
            return
        found = load_templates(templates_folder())
        if name is not None:
            found = {name: load_policies(name)}
        if as_json:
            show_json(
                {
                    "templates": [
                        {
                            "name": each,
                            "title": template.title,
                            "about": template.about,
                            "rules": [rule._asdict() for rule in template.rules],
                        }
                        for each, template in found.items()
                    ]
                }
            )
            return
        for each, template in found.items():
            show_template(each, template)
        say("Print one with `radledger policy templates NAME`; publish it as it is or changed.")


def _rules(
    source: str | None, name: str | None, effect: str | None, consent: str, condition: str | None
) -> tuple[Publish, ...]:
    if source is not None:
        if name is not None or effect is not None or condition is not None:
            raise Failure(USAGE, "give either a file or --name, --effect and --condition")
        return load_policies(source).rules
    if name is None or effect is None or condition is None:
        raise Failure(USAGE, "give a file or template, or --name, --effect and --condition")
    try:
        return (parse_publish((name, effect, consent, condition)),)
    except Refused as refused:
        raise Failure(USAGE, refused.sentence) from refused


def _drafts(source: str | None) -> tuple[PolicyDraft, ...]:
    if source is None:
        return ()
    rules = load_policies(source).rules
    if len(rules) > DRAFTS_MAX:
        raise Failure(USAGE, f"at most {DRAFTS_MAX} rules can be tried at once")
    return tuple(PolicyDraft(*rule) for rule in rules)


async def _act(call: Call, operations: list[Operation], names: list[str]) -> None:
    async with call.actor() as actor:
        submitted = await actor.submit_all(operations)
        view = await actor.client.policies(actor.institution)
        if call.as_json:
            show_json({"transaction": submitted, "rules": names, "policies": view})
            return
        height = submitted.height or 0
        say(f"Recorded at height {height}; it counts from height {height + 1} on.", "green")
        show_policies(view)
        say("Next: nobody has to act; `radledger policy try` shows how a request would fare.")


async def _ask(desk: Desk, institution: str | None) -> PoliciesView:
    async with desk.client() as client:
        return await client.policies(institution or desk.config.institution)


async def _try(config_file: Path, question: PolicyQuestion) -> PolicyTrial:
    async with Desk.open(config_file).client() as client:
        return await client.policy_try(question)
