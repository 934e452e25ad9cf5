"""DICOM files against the records in a proof file: is this what was registered?

A record in a proof has no names of elements or frames (the manifest keeps those), so a difference
is told less closely than `radledger study verify` does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from consensus.wire import NotCanonical, unpack
from node.cli.failures import UNABLE, USAGE, Failure
from node.imaging.commitment import CommittedFile
from node.imaging.errors import UnreadableInstance
from node.imaging.manifest import Instance, Record
from node.imaging.pixels import Form
from node.imaging.reader import Mapper, StudyFiles, read_studies
from node.imaging.rules import RULES_VERSION
from node.imaging.verify import INTACT, InstanceReport, Verdict, compare
from node.ledger.proofs.verify import Proved

_HARMLESS = frozenset({"foreign", "directory", "no_uid"})  # no part of any study
_FORMS = frozenset(form.value for form in Form)
# What import at another hospital rewrites is no part of a record, so it cannot be told apart here.
_SENTENCES = {
    Verdict.REENCODED: "same image, re-encoded or with patient data changed on import",
    Verdict.EXTRA: "not among the proved instances, or altered",
}


@dataclass(frozen=True, slots=True)
class FileReport:
    """What is said of one file."""

    name: str
    verdict: Verdict
    sentence: str


@dataclass(frozen=True, slots=True)
class FilesReport:
    """What is said of all files together."""

    is_intact: bool
    sentence: str
    instances: tuple[FileReport, ...]
    missing: int  # proved instances of which there is no file

    def to_plain(self) -> dict[str, object]:
        """Return the report for JSON."""
        return {
            "is_intact": self.is_intact,
            "missing": self.missing,
            "instances": [
                {"file": each.name, "verdict": each.verdict.value, "sentence": each.sentence}
                for each in self.instances
            ],
        }


def compare_files(paths: Sequence[Path], proved: Proved, mapper: Mapper = map) -> FilesReport:
    """Return whether the files at `paths` are the instances that `proved` is about.

    For a whole manifest every file must be one of its instances and none may be missing; for one
    instance it must be there, whatever else is. Raises `Failure`.
    """
    records = [_record(each) for each in proved.records]
    try:
        reading = read_studies(paths, mapper=mapper)
    except ValueError as error:
        raise Failure(USAGE, str(error)) from error
    found: list[FileReport] = []
    seen: set[bytes] = set()
    for files in reading.studies:
        found += _judged(files, records, seen)
    unreadable = [each for each in reading.unreadable if each.code not in _HARMLESS]
    found += [_unread(each) for each in unreadable]
    missing = len({record.core for record in records} - seen)
    counted = [each for each in found if proved.is_whole or each.verdict is not Verdict.EXTRA]
    is_intact = not missing and all(each.verdict in INTACT for each in counted)
    return FilesReport(is_intact, _sentence(is_intact, missing, proved), tuple(found), missing)


def _judged(files: StudyFiles, records: Sequence[Record], seen: set[bytes]) -> list[FileReport]:
    by_file = {record.file: record for record in records}
    by_core = {record.core: record for record in records}
    found = []
    for read in files.files.values():
        given = read.commitment
        record = by_file.get(given.file) or by_core.get(given.core)
        if record is None:
            found.append(_file_report(InstanceReport(Verdict.EXTRA, read.name, "")))
        else:
            seen.add(record.core)
            found.append(_file_report(compare(_instance(record, read), read)))
    for conflict in files.conflicts:
        found += [
            _file_report(InstanceReport(Verdict.CONFLICT, name, "")) for name in conflict.names
        ]
    return found


def _instance(record: Record, read: CommittedFile) -> Instance:
    """Return an instance that differs from `read` only where the record does."""
    known = read.commitment
    core, private, imported = known.core_elements, known.private_elements, known.import_elements
    return Instance(b"", record, "", "", "", core, private, imported, b"")


def _file_report(report: InstanceReport) -> FileReport:
    return FileReport(report.name, report.verdict, _SENTENCES.get(report.verdict, report.sentence))


def _unread(error: UnreadableInstance) -> FileReport:
    return FileReport(error.name, Verdict.UNDECIDED, f"cannot be read: {error.reason}")


def _sentence(is_intact: bool, missing: int, proved: Proved) -> str:
    if is_intact and proved.is_whole:
        return "All files are what was registered, and none is missing."
    if is_intact:
        return "The instance is what was registered."
    if missing and not proved.is_whole:
        return "No file is the proved instance: another one, or altered."
    return f"Not all is what was registered; {missing} instances are missing."


def _record(encoded: bytes) -> Record:
    try:
        value = unpack(encoded)
    except NotCanonical:
        value = None
    match value:
        case (int(rules), *_) if rules != RULES_VERSION:
            raise Failure(
                UNABLE, f"the record was made by rules {rules}; this program knows {RULES_VERSION}"
            )
        case (
            int(rules),
            int(form),
            bytes(core),
            bytes(pixels),
            bytes(file),
            bytes(private),
            int(size),
        ) if form in _FORMS:
            return Record(rules, form, core, pixels, file, private, size)
    raise Failure(UNABLE, "the proof holds a record of an instance that this program cannot read")
