"""What became of studies, in words for people and in fields for programs."""

from node.cli.failures import UNABLE, WRONG
from node.cli.output import say, show_table
from node.imaging.errors import UnreadableInstance
from node.imaging.register import Action
from node.imaging.verify import INTACT, Report, StudyReport, StudyStatus, Verdict
from node.ledger.block import OK
from node.studies import Registration, Registrations

ROWS_MAX = 50  # files listed one by one; the JSON has all of them
_HARMLESS = ("foreign", "directory", "no_uid")  # no part of any study


def registration_status(result: Registrations) -> int:
    """Return the command's exit status: whether everything that was given is on the chain."""
    if any(study.is_pending for study in result.studies):
        return UNABLE
    return 0 if result.is_done and not _complaints(result) else WRONG


def registrations_plain(result: Registrations) -> dict[str, object]:
    """Return the result for JSON."""
    return {
        "is_done": registration_status(result) == 0,
        "studies": [_plain(study) for study in result.studies],
        "unreadable": [
            {"file": file.name, "code": file.code, "reason": file.reason}
            for file in result.preparation.unreadable
        ],
    }


def show_registrations(result: Registrations) -> None:
    """Print a table of studies, and everything that was left out, with the reason."""
    if result.studies:
        show_table(
            ("study", "version", "instances", "added", "outcome", "height"),
            [
                (
                    s.prepared.manifest and s.prepared.manifest.study_id,
                    s.prepared.manifest and s.prepared.manifest.version,
                    s.prepared.manifest and len(s.prepared.manifest.instances),
                    s.prepared.added,
                    s.refusal or outcome_of(s),
                    s.submitted and s.submitted.height,
                )
                for s in result.studies
            ],
        )
    else:
        say("There is no DICOM study in what was given.", "red")
    for line in _complaints(result):
        say(line, "yellow")
    ignored = sum(file.code in _HARMLESS for file in result.preparation.unreadable)
    if ignored:
        say(f"{ignored} other files are no instances of a study.")


def outcome_of(study: Registration) -> str:
    """Return one word: registered, amended, unchanged, accepted, pending or refused."""
    if study.is_pending:
        return "pending"
    if study.submitted is None:
        return "unchanged" if study.prepared.action is Action.NOTHING else "refused"
    if study.submitted.code is None:
        return "accepted"
    if study.submitted.code != OK or study.prepared.manifest is None:
        return "refused"
    return "registered" if study.prepared.manifest.previous_root is None else "amended"


def _plain(study: Registration) -> dict[str, object]:
    prepared, submitted, manifest = study.prepared, study.submitted, study.prepared.manifest
    return {
        "outcome": outcome_of(study),
        "study_id": manifest and manifest.study_id,
        "version": manifest and manifest.version,
        "root": manifest and manifest.root,
        "instances": len(manifest.instances) if manifest else 0,
        "added": prepared.added,
        "height": submitted and submitted.height,
        "transaction_id": submitted and submitted.id,
        "code": submitted and submitted.code,
        "waited_ms": round(study.waited_ms, 1),
        "refusal": study.refusal,
        "changed": prepared.changed,
        "is_replaced": prepared.replaced,
        "repeated": prepared.repeated,
        "conflicts": [conflict.names for conflict in prepared.conflicts],
    }


def _complaints(result: Registrations) -> list[str]:
    """Return a line for every file of a study that did not become part of its registration."""
    lines = []
    for study in result.studies:
        prepared = study.prepared
        if prepared.changed and not prepared.replaced:
            lines += [
                f"{name}: differs from what was registered; --replace-changed makes a new version"
                for name in prepared.changed
            ]
        lines += [
            f"{' and '.join(conflict.names)}: one instance, different contents; neither is taken"
            for conflict in prepared.conflicts
        ]
    lines += [str(file) for file in _damaged(result.preparation.unreadable)]
    return lines


def _damaged(unreadable: tuple[UnreadableInstance, ...]) -> list[UnreadableInstance]:
    return [file for file in unreadable if file.code not in _HARMLESS]


def show_report(report: Report) -> None:
    """Print what verification found: counts when all is well, else every file that is not."""
    for study in report.studies:
        _show_study(study)
    for file in _damaged(report.unreadable):
        say(str(file), "yellow")
    if not report.studies:
        say("There is no DICOM study in what was given.", "red")
    ignored = len(report.unreadable) - len(_damaged(report.unreadable))
    if ignored:
        say(f"{ignored} other files are no instances of a study.")


def _show_study(study: StudyReport) -> None:
    name = study.study_id.hex() if study.study_id else "unknown study"
    version = f", version {study.version}" if study.version else ""
    style = "green" if study.status is StudyStatus.INTACT else "red"
    say(f"{name}{version}: {study.status.value}", f"bold {style}")
    for verdict in Verdict:
        count = study.count(verdict)
        if count and verdict in INTACT:
            say(f"  {count} x {verdict.value}")
    rows = [i for i in study.instances if i.verdict not in INTACT]
    if rows:
        show_table(
            ("  file", "instance", "what is wrong"),
            [(f"  {i.name or '-'}", i.label, i.sentence) for i in rows[:ROWS_MAX]],
        )
    if len(rows) > ROWS_MAX:
        say(f"  and {len(rows) - ROWS_MAX} more; --json lists them all")
