"""From files to the operations that put their commitments on the chain.

`prepare` reads the files and keeps everything needed in the vault before anything is submitted. The
caller signs `PreparedStudy.operation`, tells the vault `mark_submitted`, sends, and tells it
`mark_final`. Called again at any point, `prepare` goes on from where things stand: a prepared
version keeps its root, a submitted one comes back with the very transaction to send again.

An operation holds random ids, a salted root, two listed words and two buckets: nothing else may be
on the chain.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from node.imaging import commitment, description
from node.imaging.errors import BeingSplit, UnreadableInstance
from node.imaging.limits import LIMITS, Limits
from node.imaging.manifest import Instance, Manifest, first_version, next_version, record_of
from node.imaging.parts import ApartRule, divided
from node.imaging.reader import Conflict, Mapper, Progress, StudyFiles, read_studies
from node.imaging.vault import Vault
from node.imaging.vault_rows import State, VaultStudy, VaultVersion
from node.ledger.contracts.vocabulary import instance_bucket, size_bucket
from node.ledger.transaction import Operation


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller chooses."""

    replace_changed: bool = False  # let an instance's new content succeed the registered one
    # Let the same image in another encoding succeed the registered one: its bytes can be stored.
    replace_encoding: bool = False
    apart: tuple[ApartRule, ...] = ()  # which series become studies of the ledger by themselves
    limits: Limits = LIMITS


class Action(Enum):
    """What is to be done about a study."""

    REGISTER = "register"  # submit `operation`
    AMEND = "amend"  # submit `operation`
    RESUME = "resume"  # find out about `transaction_id`; send `transaction` again if not final
    NOTHING = "nothing"  # registered, and the files say the same
    REFUSED = "refused"  # see `refusal`


@dataclass(frozen=True, slots=True)
class PreparedStudy:
    """One study and what is to be done about it."""

    action: Action
    manifest: Manifest | None  # None if refused before there was one
    operation: Operation | None = None
    transaction_id: bytes | None = None  # 32 bytes
    transaction: bytes | None = None  # the signed bytes, for Action.RESUME
    added: int = 0  # instances that the version before does not have
    changed: tuple[str, ...] = ()  # names of files that differ from what was registered
    replaced: bool = False  # whether `changed` are in `manifest`, or left out
    repeated: tuple[str, ...] = ()  # names of files whose instance was given already
    conflicts: tuple[Conflict, ...] = ()  # left out
    refusal: str = ""  # a sentence


@dataclass(frozen=True, slots=True)
class Preparation:
    """All studies found, and all files that belong to none."""

    studies: tuple[PreparedStudy, ...]
    unreadable: tuple[UnreadableInstance, ...]

    @property
    def operations(self) -> list[Operation]:
        """What to submit; up to 256 of them fit in one transaction."""
        return [study.operation for study in self.studies if study.operation is not None]


def prepare(
    paths: Sequence[Path],
    vault: Vault,
    options: Options = Options(),
    progress: Progress | None = None,
    mapper: Mapper = map,
) -> Preparation:
    """Return what is to be submitted for the studies found in `paths`.

    Reads and hashes every file, so call it from a worker; `mapper` may spread that over processes.
    Raises `ValueError` as `read_studies` does and `VaultError` as the vault does.
    """
    reading = read_studies(paths, progress, mapper, options.limits)
    studies = [
        prepared for files in reading.studies for prepared in _prepare_parts(files, vault, options)
    ]
    return Preparation(tuple(studies), reading.unreadable)


def pending(vault: Vault) -> list[PreparedStudy]:
    """Return what was prepared or submitted and is not final, from the vault alone.

    For resuming without the files: only submitted versions, since the words of an operation that
    was not submitted come from the files.
    """
    unfinished = (v for v in vault.unfinished() if v.state is State.SUBMITTED)
    return [_resume(version) for version in unfinished]


def _prepare_parts(files: StudyFiles, vault: Vault, options: Options) -> list[PreparedStudy]:
    """Return what is to be done about each part of one DICOM study."""
    patients = {_patient(read) for read in files.files.values()}
    if len(patients) > 1:
        return [_refused(files, f"the files of this study name {len(patients)} patients")]
    if not files.files:
        return [_refused(files, "every instance of this study is in conflict with another copy")]
    try:
        parts = divided(files, vault, options.apart)
        return [_prepare_study(group, vault, study, options) for study, group in parts]
    except BeingSplit as error:
        return [_refused(files, str(error))]


def _prepare_study(
    files: StudyFiles, vault: Vault, study: VaultStudy, options: Options
) -> PreparedStudy:
    versions = vault.versions(study.study_id)
    latest = versions[-1] if versions else None
    if latest is not None and latest.state is State.SUBMITTED:
        return _resume(latest)
    final = next((v for v in reversed(versions) if v.state is State.FINAL), None)
    prepared = latest if latest is not None and latest.state is State.PREPARED else None
    return _next(files, vault, study, final, prepared, options)


def _next(
    files: StudyFiles,
    vault: Vault,
    study: VaultStudy,
    final: VaultVersion | None,
    prepared: VaultVersion | None,
    options: Options,
) -> PreparedStudy:
    registered = final.manifest.by_uid() if final else {}
    added = [read for uid, read in files.files.items() if uid not in registered]
    known = [(registered[uid], read) for uid, read in files.files.items() if uid in registered]
    changed = [read for instance, read in known if not is_registered(instance, read)]
    encoded = [
        read
        for instance, read in known
        if is_registered(instance, read) and instance.record.file != read.commitment.file
    ]
    taken = [
        *added,
        *(changed if options.replace_changed else ()),
        *(encoded if options.replace_encoding else ()),
    ]
    names = tuple(read.name for read in changed)
    if final is not None and not taken:
        # A version that was prepared and is not wanted any more stays; it was never submitted.
        return _result(files, Action.NOTHING, final.manifest, None, 0, names, False)
    manifest = _same(prepared, final, taken) or (
        next_version(final.manifest, taken)
        if final
        else first_version(study.study_id, study.salt, taken)
    )
    if prepared is None or manifest is not prepared.manifest:
        vault.put_prepared(manifest)
    action = Action.AMEND if final else Action.REGISTER
    operation = _operation(manifest, study, files.files.values())
    replaced = options.replace_changed and bool(names)
    return _result(files, action, manifest, operation, len(added), names, replaced)


def _same(
    prepared: VaultVersion | None,
    final: VaultVersion | None,
    taken: Sequence[commitment.CommittedFile],
) -> Manifest | None:
    """Return the prepared manifest if it is what `taken` would make of the final one."""
    if prepared is None:
        return None
    known = prepared.manifest.by_uid()
    expected = final.manifest.by_uid() if final else {}
    given = {read.text(commitment.SOP_INSTANCE): read for read in taken}
    if known.keys() != expected.keys() | given.keys():
        return None
    kept = all(known[uid] == expected[uid] for uid in expected.keys() - given.keys())
    # The very bytes, since the record that is to be registered holds F.
    same = all(known[uid].record == record_of(read.commitment) for uid, read in given.items())
    return prepared.manifest if kept and same else None


def is_registered(instance: Instance, read: commitment.CommittedFile) -> bool:
    """Whether `read` is `instance`: the same bytes, or the same K, P and X."""
    known, given = instance.record, read.commitment
    if known.file == given.file:
        return True
    pixels = {p.digest for p in (given.pixels.samples, given.pixels.payload) if p} or {b""}
    same = (known.rules, known.core, known.private) == (given.rules, given.core, given.private)
    return same and known.pixels in pixels


def _patient(read: commitment.CommittedFile) -> tuple[str, str]:
    return read.text(commitment.PATIENT_ID), read.text(commitment.PATIENT_ISSUER)


def _operation(
    manifest: Manifest, study: VaultStudy, files: Iterable[commitment.CommittedFile]
) -> Operation:
    files = list(files)
    buckets = instance_bucket(len(manifest.instances)), size_bucket(manifest.size)
    if manifest.previous_root is None:
        words = description.modality_of(files), description.region_of(files)
        arguments = (study.study_id, study.subject_id, manifest.root, *words, *buckets)
        return Operation("study.register", arguments)
    link = study.study_id, manifest.version, manifest.previous_root, manifest.root
    return Operation("study.amend", (*link, *buckets))


def _result(
    files: StudyFiles,
    action: Action,
    manifest: Manifest,
    operation: Operation | None,
    added: int,
    changed: tuple[str, ...],
    replaced: bool,
) -> PreparedStudy:
    return PreparedStudy(
        action,
        manifest,
        operation,
        added=added,
        changed=changed,
        replaced=replaced,
        repeated=tuple(files.repeated),
        conflicts=tuple(files.conflicts),
    )


def _resume(version: VaultVersion) -> PreparedStudy:
    return PreparedStudy(
        Action.RESUME,
        version.manifest,
        transaction_id=version.transaction_id,
        transaction=version.transaction,
    )


def _refused(files: StudyFiles, sentence: str) -> PreparedStudy:
    return PreparedStudy(Action.REFUSED, None, conflicts=tuple(files.conflicts), refusal=sentence)
