"""What has become of registered files, in words.

For each instance F, K, P and X are compared with the record in the manifest, and the manifest with
the root on the chain; so what is said here rests on the chain. The names of changed elements come
from short digests in the manifest, which the institution's own vault vouches for.

A report holds no value of a data set; of names only those that the files have here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from pydicom.datadict import dictionary_description

from node.imaging.commitment import PREFIX_BYTES, Commitment, CommittedFile, Elements
from node.imaging.elements import name_of
from node.imaging.errors import UnreadableInstance
from node.imaging.limits import LIMITS, Limits
from node.imaging.manifest import DIGEST_BYTES, Instance, Manifest
from node.imaging.pixels import Form, PixelDigest
from node.imaging.reader import Mapper, Progress, StudyFiles, read_studies
from node.imaging.vault import Vault

_NAMES_MAX = 20


class Verdict(Enum):
    """What holds of one instance."""

    SAME_FILE = "same file"  # F
    REENCODED = "same image, re-encoded"  # K, P and X
    IMPORTED = "patient data changed on import, image intact"  # K, P and X
    PRIVATE = "image intact, private elements changed"  # K and P, but not X
    ALTERED = "altered"  # K or P does not hold
    UNDECIDED = "cannot be compared here"  # the pixels cannot be had in the registered form
    CONFLICT = "several files of different content"
    MISSING = "missing"
    EXTRA = "extra"  # of this study, but not in its manifest


INTACT = frozenset({Verdict.SAME_FILE, Verdict.REENCODED, Verdict.IMPORTED})


class StudyStatus(Enum):
    """What holds of a study."""

    INTACT = "intact"
    ALTERED = "altered"
    PRIVATE = "image intact, private elements changed"
    INCOMPLETE = "incomplete"  # nothing altered, but instances are missing or there are extra ones
    UNDECIDED = "cannot be compared here"  # nothing altered, but not all could be compared
    UNKNOWN = "unknown"  # not in the vault
    NOT_REGISTERED = "not registered"  # in the vault, but not on the chain
    WRONG_MANIFEST = "manifest is not the registered one"


# The first whose verdicts cover all that is found, besides the intact ones.
_NOT_WHOLE = frozenset({Verdict.MISSING, Verdict.EXTRA})
_STATUSES: tuple[tuple[StudyStatus, frozenset[Verdict]], ...] = (
    (StudyStatus.INTACT, frozenset()),
    (StudyStatus.INCOMPLETE, _NOT_WHOLE),
    (StudyStatus.PRIVATE, _NOT_WHOLE | {Verdict.PRIVATE}),
    (StudyStatus.UNDECIDED, _NOT_WHOLE | {Verdict.PRIVATE, Verdict.UNDECIDED}),
)


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """What is said of one instance."""

    verdict: Verdict
    name: str  # of the local file; "" if missing
    label: str  # e.g. "series 2, image 14"; "" if the files do not say
    details: tuple[str, ...] = ()  # e.g. "slice thickness", "pixels of frame 3"

    @property
    def sentence(self) -> str:
        """The verdict in words, e.g. "altered: slice thickness"."""
        what = ", ".join(self.details)
        return f"{self.verdict.value}: {what}" if what else self.verdict.value


@dataclass(frozen=True, slots=True)
class StudyReport:
    """What is said of one study."""

    status: StudyStatus
    study_id: bytes | None  # None if unknown
    version: int | None
    instances: tuple[InstanceReport, ...]

    def count(self, *verdicts: Verdict) -> int:
        """Return how many instances have one of `verdicts`."""
        return sum(instance.verdict in verdicts for instance in self.instances)


@dataclass(frozen=True, slots=True)
class Report:
    """What is said of everything at the paths given."""

    studies: tuple[StudyReport, ...]
    unreadable: tuple[UnreadableInstance, ...]

    @property
    def intact(self) -> bool:
        """Whether there is a study, and every one is intact, and every DICOM file was read."""
        harmless = ("foreign", "directory", "no_uid")  # no part of any study
        readable = all(file.code in harmless for file in self.unreadable)
        statuses = [study.status is StudyStatus.INTACT for study in self.studies]
        return readable and bool(statuses) and all(statuses)

    def to_plain(self) -> dict[str, object]:
        """Return the report as lists, dictionaries and text, for JSON."""
        return {
            "intact": self.intact,
            "studies": [_plain_study(study) for study in self.studies],
            "unreadable": [
                {"file": file.name, "code": file.code, "reason": file.reason}
                for file in self.unreadable
            ],
        }


Registered = tuple[Manifest, bytes | None]  # the manifest and the root on the chain, if any
# By Study Instance UID: every part that the vault has of the study, the main one first.
Find = Callable[[str], Sequence[Registered]]


def registered_in(vault: Vault, root_of: Callable[[bytes], bytes | None]) -> Find:
    """Return a `Find` over the vault; `root_of` gives the root on the chain for a study id.

    Of a part's versions that one is taken whose root is on the chain, else the newest.
    """

    def registered(study_id: bytes) -> Registered | None:
        versions = vault.versions(study_id)
        if not versions:
            return None
        root = root_of(study_id)
        on_chain = (v.manifest for v in versions if v.manifest.root == root)
        return next(on_chain, versions[-1].manifest), root

    def find(study_uid: str) -> list[Registered]:
        found = (registered(part.study_id) for part in vault.parts(study_uid))
        return [each for each in found if each is not None]

    return find


def verify(
    paths: Sequence[Path],
    manifest: Manifest,
    chain_root: bytes | None,
    progress: Progress | None = None,
    mapper: Mapper = map,
    limits: Limits = LIMITS,
) -> Report:
    """Return what has become of the study of `manifest`, whose files are in `paths`.

    `chain_root` is the root of that version on the chain, None if there is none. Files of other
    studies are reported as unknown. Raises `ValueError` as `read_studies` does.
    """
    known = manifest.by_uid().keys()

    def holds(files: StudyFiles) -> Registered | None:
        given = files.files.keys() | {conflict.sop_uid for conflict in files.conflicts}
        return (manifest, chain_root) if known & given else None

    reading = read_studies(paths, progress, mapper, limits)
    studies = [_verify_study(files, holds(files)) for files in reading.studies]
    if all(study.study_id is None for study in studies):
        studies.append(_verify_study(StudyFiles(""), (manifest, chain_root)))
    return Report(tuple(studies), reading.unreadable)


def verify_studies(
    paths: Sequence[Path],
    find: Find,
    progress: Progress | None = None,
    mapper: Mapper = map,
    limits: Limits = LIMITS,
) -> Report:
    """Return what has become of every study in `paths`, as `find` knows it."""
    reading = read_studies(paths, progress, mapper, limits)
    studies = [
        _verify_study(group, registered)
        for files in reading.studies
        for group, registered in _by_part(files, find(files.study_uid))
    ]
    return Report(tuple(studies), reading.unreadable)


def _by_part(
    files: StudyFiles, parts: Sequence[Registered]
) -> list[tuple[StudyFiles, Registered | None]]:
    """Return the files of each part; what no part has is told with the first one."""
    if len(parts) < 2:
        return [(files, parts[0] if parts else None)]
    left = replace(files, files=dict(files.files), conflicts=list(files.conflicts))
    groups: list[tuple[StudyFiles, Registered | None]] = []
    for part in parts[1:]:
        known = part[0].by_uid()
        taken = {uid: left.files.pop(uid) for uid in known.keys() & left.files.keys()}
        conflicts = [each for each in left.conflicts if each.sop_uid in known]
        left.conflicts = [each for each in left.conflicts if each.sop_uid not in known]
        groups.append((StudyFiles(files.study_uid, taken, conflicts=conflicts), part))
    return [(left, parts[0]), *groups]


def _verify_study(files: StudyFiles, registered: Registered | None) -> StudyReport:
    if registered is None:
        extra = (InstanceReport(Verdict.EXTRA, f.name, "") for f in files.files.values())
        return StudyReport(StudyStatus.UNKNOWN, None, None, tuple(extra))
    manifest, chain_root = registered
    instances = tuple(_instances(files, manifest))
    if chain_root is None:
        status = StudyStatus.NOT_REGISTERED
    elif chain_root != manifest.root:
        status = StudyStatus.WRONG_MANIFEST
    else:
        status = _status(instances)
    return StudyReport(status, manifest.study_id, manifest.version, instances)


def _status(instances: Iterable[InstanceReport]) -> StudyStatus:
    verdicts = {instance.verdict for instance in instances} - INTACT
    for status, harmless in _STATUSES:
        if verdicts <= harmless:
            return status
    return StudyStatus.ALTERED


def _instances(files: StudyFiles, manifest: Manifest) -> Iterable[InstanceReport]:
    known = manifest.by_uid()
    for uid, read in files.files.items():
        if uid in known:
            yield compare(known[uid], read)
        else:
            yield InstanceReport(Verdict.EXTRA, read.name, "")
    for conflict in files.conflicts:
        label = known[conflict.sop_uid].label if conflict.sop_uid in known else ""
        yield from (InstanceReport(Verdict.CONFLICT, name, label) for name in conflict.names)
    given = files.files.keys() | {conflict.sop_uid for conflict in files.conflicts}
    for uid, instance in known.items():
        if uid not in given:
            yield InstanceReport(Verdict.MISSING, "", instance.label)


def compare(instance: Instance, read: CommittedFile) -> InstanceReport:
    """Return what has become of `instance` in the file `read`."""
    given, record = read.commitment, instance.record
    if record.file == given.file:
        return InstanceReport(Verdict.SAME_FILE, read.name, instance.label)
    altered: list[str] = []
    if record.core != given.core:
        altered += _changed(instance.core, given.core_elements) or ["the data set"]
    pixels = _pixels_in_form(given, Form(record.form))
    if pixels is not None and pixels.digest != record.pixels:
        altered += _changed_frames(instance, pixels)
    private = []
    if record.private != given.private:
        names = _changed(instance.private, given.private_elements)
        private = names or ["private elements"]
    if altered:
        details = _limited(altered + private)
        return InstanceReport(Verdict.ALTERED, read.name, instance.label, details)
    if pixels is None:
        return _undecided(instance, read)
    if private:
        return InstanceReport(Verdict.PRIVATE, read.name, instance.label, _limited(private))
    return _intact(instance, read)


def _intact(instance: Instance, read: CommittedFile) -> InstanceReport:
    imported = _changed(instance.imported, read.commitment.import_elements)
    verdict = Verdict.IMPORTED if imported else Verdict.REENCODED
    return InstanceReport(verdict, read.name, instance.label, _limited(imported))


def _undecided(instance: Instance, read: CommittedFile) -> InstanceReport:
    if instance.record.form == Form.SAMPLES.value:
        why = "no decoder for this file's compression is installed"
    else:
        why = "it was registered in another compression, from which samples cannot be compared"
    return InstanceReport(Verdict.UNDECIDED, read.name, instance.label, (why,))


def _pixels_in_form(given: Commitment, form: Form) -> PixelDigest | None:
    """Return P of the file in the registered form; None if it cannot be had from this file."""
    pixels = given.pixels
    if form is Form.NONE or (pixels.samples is None and pixels.payload is None):
        return pixels.chosen
    if form is Form.SAMPLES:
        lossy = pixels.payload is not None and pixels.payload.form is Form.LOSSY
        return pixels.payload if lossy else pixels.samples
    same_form = pixels.payload is not None and pixels.payload.form is form
    return pixels.payload if same_form or form is Form.LOSSY else None


def _changed_frames(instance: Instance, given: PixelDigest) -> list[str]:
    width = PREFIX_BYTES
    count = len(given.frames) // DIGEST_BYTES
    if (
        not width
        or count * width != len(instance.frames)
        or given.form.value != instance.record.form
    ):
        return ["pixels"]
    numbers = [
        number + 1
        for number in range(count)
        if instance.frames[number * width : (number + 1) * width]
        != given.frames[number * DIGEST_BYTES : number * DIGEST_BYTES + width]
    ]
    return [f"pixels of frame {number}" for number in numbers] or ["pixels"]


def _changed(known: Elements, given: Elements) -> list[str]:
    """Return the names of the elements that differ, "(removed)" or "(added)" where that is so."""
    before, after = known.by_tag(), given.by_tag()
    names = []
    for tag in sorted(before.keys() | after.keys()):
        if before.get(tag) != after.get(tag):
            suffix = " (removed)" if tag not in after else " (added)" if tag not in before else ""
            names.append(element_name(tag) + suffix)
    return names


def element_name(tag: int) -> str:
    """Return the dictionary's name of the element in lower case, or its number."""
    if tag & 0x10000:
        return f"private element {name_of(tag)}"
    try:
        return str(dictionary_description(tag)).lower()
    except KeyError:
        return f"element {name_of(tag)}"


def _limited(names: list[str]) -> tuple[str, ...]:
    if len(names) <= _NAMES_MAX:
        return tuple(names)
    return (*names[:_NAMES_MAX], f"and {len(names) - _NAMES_MAX} more")


def _plain_study(study: StudyReport) -> dict[str, object]:
    return {
        "status": study.status.value,
        "study_id": study.study_id.hex() if study.study_id else None,
        "version": study.version,
        "instances": [
            {
                "file": instance.name,
                "label": instance.label,
                "verdict": instance.verdict.value,
                "details": list(instance.details),
            }
            for instance in study.instances
        ],
    }
