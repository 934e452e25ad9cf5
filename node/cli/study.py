"""`radledger study`: register, verify, show and search."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from node.cli import custody, deliver, export, fetch, find, split
from node.cli.arguments import (
    DEFAULT_CONFIG,
    ConfigFile,
    WaitOption,
    read_study_id,
    read_subject_id,
)
from node.cli.context import Desk
from node.cli.failures import WRONG, Failure, explained
from node.cli.output import Json, say, show_json, show_pairs, show_table
from node.cli.registrar import count_files, opened, readers, vault_of
from node.cli.study_report import (
    registration_status,
    registrations_plain,
    show_registrations,
    show_report,
)
from node.imaging.parts import rules_of_config
from node.imaging.reader import Step
from node.imaging.register import Options
from node.imaging.verify import Report
from node.ledger.contracts.vocabulary import (
    INSTANCE_BUCKET_MAX,
    MODALITIES,
    REGIONS,
    SIZE_BUCKET_MAX,
)
from node.ledger.limits import HEIGHT_MAX
from node.ledger.queries import LIMIT_MAX, StudyPage, StudyQuery, StudyView
from node.rpc.service import Wait
from node.studies import Registrations, register, verify

app = typer.Typer(no_args_is_help=True, help="Register, verify and find imaging studies.")

Paths = Annotated[
    list[Path], typer.Argument(exists=True, help="DICOM files, and folders of them at any depth.")
]
Jobs = Annotated[
    int, typer.Option("--jobs", "-j", min=1, max=256, help="Processes that read many files.")
]
_DEFAULT_JOBS = 4


@app.command(name="register")
def register_command(
    paths: Paths,
    wait: WaitOption = "final",
    replace_changed: Annotated[
        bool,
        typer.Option(
            "--replace-changed",
            help="Let files that differ from what was registered make a new version.",
        ),
    ] = False,
    jobs: Jobs = _DEFAULT_JOBS,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Put commitments to studies on the chain. Run it again after any interruption: it goes on."""
    with explained(as_json):
        desk = Desk.open(config_file)
        apart = rules_of_config(desk.config.gateway)
        options = Options(replace_changed=replace_changed, apart=apart)
        result = asyncio.run(_register(desk, paths, wait, options, jobs, quiet=as_json))
        if as_json:
            show_json(registrations_plain(result))
        else:
            show_registrations(result)
        status = registration_status(result)
        if status:
            raise typer.Exit(status)


@app.command(name="verify")
def verify_command(
    paths: Paths,
    jobs: Jobs = _DEFAULT_JOBS,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Say what has become of registered files; exit status 0 only if all of it is intact."""
    with explained(as_json):
        report = asyncio.run(_verify(Desk.open(config_file), paths, jobs, quiet=as_json))
        if as_json:
            show_json(report.to_plain())
        else:
            show_report(report)
        if not report.intact:
            raise typer.Exit(WRONG)


@app.command()
def show(
    study_id: Annotated[
        bytes, typer.Argument(parser=read_study_id, metavar="ID", help="32 hex digits.")
    ],
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show a study with its versions and what was derived from it."""
    with explained(as_json):
        view = asyncio.run(_find(config_file, study_id))
        if view is None:
            raise Failure(WRONG, "no study with this id is on the chain")
        if as_json:
            show_json(view)
        else:
            _show(view)


@app.command()
def search(
    custodian: Annotated[str | None, typer.Option(help="The institution that keeps it.")] = None,
    modality: Annotated[
        str | None,
        typer.Option(help="E.g. CT; one of DICOM's.", autocompletion=lambda: sorted(MODALITIES)),
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="E.g. head.", autocompletion=lambda: sorted(REGIONS))
    ] = None,
    subject: Annotated[
        bytes | None,
        typer.Option(parser=read_subject_id, metavar="ID", help="A patient's pseudonym."),
    ] = None,
    status: Annotated[
        Literal["active", "retired", "erased"] | None, typer.Option(help="All if not given.")
    ] = None,
    start: Annotated[
        int | None, typer.Option("--from", min=0, max=HEIGHT_MAX, help="Registered from height.")
    ] = None,
    end: Annotated[
        int | None, typer.Option("--to", min=0, max=HEIGHT_MAX, help="Registered up to height.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=LIMIT_MAX, help="Studies on one page.")
    ] = StudyQuery().limit,
    cursor: Annotated[
        str | None, typer.Option(help="Where the page before said that the next begins.")
    ] = None,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Find studies of all institutions, newest first, page by page."""
    with explained(as_json):
        query = StudyQuery(
            custodian=custodian,
            subject_id=subject,
            modality=modality,
            region=region,
            status=status,
            height_from=start,
            height_to=end,
            limit=limit,
            cursor=cursor,
        )
        page = asyncio.run(_search(config_file, query))
        if as_json:
            show_json(page)
        else:
            _show_page(page)


async def _register(
    desk: Desk, paths: list[Path], wait: Wait, options: Options, jobs: int, *, quiet: bool
) -> Registrations:
    async with desk.client() as client, opened(desk) as (vault, signer):
        files = await asyncio.to_thread(count_files, paths)
        with _progress(quiet) as bar, readers(jobs, files) as mapper:
            return await register(
                paths,
                client,
                vault,
                signer,
                wait=wait,
                options=options,
                progress=bar.read,
                on_settled=bar.settled,
                mapper=mapper,
            )


async def _verify(desk: Desk, paths: list[Path], jobs: int, *, quiet: bool) -> Report:
    async with desk.client() as client:
        files = await asyncio.to_thread(count_files, paths)
        with vault_of(desk) as vault, _progress(quiet) as bar, readers(jobs, files) as mapper:
            return await verify(paths, client, vault, bar.read, mapper)


async def _find(config_file: Path, study_id: bytes) -> StudyView | None:
    async with Desk.open(config_file).client() as client:
        return await client.study(study_id)


async def _search(config_file: Path, query: StudyQuery) -> StudyPage:
    async with Desk.open(config_file).client() as client:
        return await client.search(query)


class _Bar:
    """Two bars on standard error: files read, and studies that wait for finality."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._reading = progress.add_task("reading files", total=None)

    def read(self, step: Step) -> None:
        """Show how far reading has come."""
        self._progress.update(self._reading, completed=step.files_done, total=step.files_total)

    def settled(self, waiting: int) -> None:
        """Show how many studies still wait."""
        self._progress.update(self._reading, description=f"{waiting} studies wait for finality")


@contextmanager
def _progress(quiet: bool) -> Iterator[_Bar]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    errors = Console(stderr=True)
    # Where nobody watches, a bar is noise in a log.
    disable = quiet or not errors.is_terminal
    with Progress(*columns, console=errors, transient=True, disable=disable) as progress:
        yield _Bar(progress)


def _show(view: StudyView) -> None:
    study = view.summary
    state = study.status if study.retire_reason is None else f"retired: {study.retire_reason}"
    derivation = study.derivation
    show_pairs(
        [
            ("study", study.id),
            ("custodian", study.custodian),
            ("subject", study.subject_id),
            ("modality", study.modality),
            ("region", study.region),
            ("status", state),
            ("confidentiality", study.confidentiality),
            ("offered to", study.offered_to),
            ("registered", f"height {study.registered_height}"),
            ("derived from", derivation.source if derivation is not None else None),
            ("derived studies", view.derived),
        ]
    )
    show_table(
        ("version", "height", "root", "instances", "size"),
        [
            (v.version, v.height, v.root, _instances(v.instance_bucket), _size(v.size_bucket))
            for v in view.versions
        ],
    )


def _show_page(page: StudyPage) -> None:
    if page.studies:
        show_table(
            (
                "study",
                "custodian",
                "modality",
                "region",
                "instances",
                "version",
                "height",
                "status",
            ),
            [
                (
                    s.id,
                    s.custodian,
                    s.modality,
                    s.region,
                    _instances(s.instance_bucket),
                    s.version,
                    s.registered_height,
                    s.status,
                )
                for s in page.studies
            ],
        )
    elif page.next_cursor is None:
        say("No such study.")
    if page.next_cursor is not None:
        say(f"There may be more: --cursor {page.next_cursor}")


def _instances(bucket: int) -> str:
    """Return the range of counts that an instance bucket stands for."""
    if bucket == INSTANCE_BUCKET_MAX:
        return f"over {2 ** (bucket - 1)}"
    low, high = 2 ** (bucket - 1) + 1 if bucket else 1, 2**bucket
    return str(low) if low == high else f"{low} to {high}"


def _size(bucket: int) -> str:
    """Return the range of sizes that a size bucket stands for."""
    if bucket == SIZE_BUCKET_MAX:
        return f"over {2 ** (bucket - 1)} MiB"
    return f"{2 ** (bucket - 1)} to {2**bucket} MiB" if bucket else "up to 1 MiB"


app.add_typer(custody.app)
app.add_typer(find.app)
app.add_typer(fetch.app)
app.add_typer(deliver.app)
app.add_typer(export.app)
app.add_typer(split.app)
