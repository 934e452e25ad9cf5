"""Files and folders read into studies: what can be committed to, and everything that cannot.

Nothing here is fatal: a file that is not DICOM, or is damaged, is listed with the reason, and the
others go on. The same instance twice with equal content counts once; with different content it is a
conflict, and neither copy is taken.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from node.imaging import commitment
from node.imaging.commitment import CommittedFile, commit_file
from node.imaging.errors import UnreadableInstance
from node.imaging.limits import LIMITS, Limits
from node.imaging.media import is_named_so, read_media, unreadable_of

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")  # PS3.5 §9.1, which also allows at most 64 characters
UID_CHARACTERS_MAX = 64
_UIDS = (
    (commitment.STUDY_INSTANCE, "Study Instance UID"),
    (commitment.SERIES_INSTANCE, "Series Instance UID"),
    (commitment.SOP_INSTANCE, "SOP Instance UID"),
    (commitment.SOP_CLASS, "SOP Class UID"),
)


class Step(NamedTuple):
    """How far reading has come."""

    files_done: int
    files_total: int
    bytes_done: int


Progress = Callable[[Step], None]


class Mapper(Protocol):
    """`map`, or the method of that name of an executor of threads or processes."""

    def __call__(
        self, function: Callable[[Path], "CommittedFile | UnreadableInstance"], paths: list[Path], /
    ) -> Iterable["CommittedFile | UnreadableInstance"]: ...


@dataclass(frozen=True, slots=True)
class Conflict:
    """One SOP Instance UID under which files of different content were given."""

    names: tuple[str, ...]
    sop_uid: str = field(repr=False)


@dataclass(slots=True)
class StudyFiles:
    """The files of one study, in the order of their names, each instance once."""

    study_uid: str
    files: dict[str, CommittedFile] = field(default_factory=dict)  # by SOP Instance UID
    repeated: list[str] = field(default_factory=list)  # names of further equal copies
    conflicts: list[Conflict] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reading:
    """All that was found."""

    studies: tuple[StudyFiles, ...]
    unreadable: tuple[UnreadableInstance, ...]


def read_studies(
    paths: Sequence[Path],
    progress: Progress | None = None,
    mapper: Mapper = map,
    limits: Limits = LIMITS,
) -> Reading:
    """Return every study found in `paths`, which are files and folders.

    The hashing runs wherever `mapper` runs it: `map` (here), or an executor's `map`, since the
    function that it is given and what that returns can go to other processes. Raises `ValueError`
    if there are more than `limits.files_max` files or nothing is at a path.
    """
    files = list_files(paths, limits)
    read = partial(read_instance, limits=limits)
    instances: list[CommittedFile] = []
    unreadable: list[UnreadableInstance] = []
    size = 0
    for number, result in enumerate(mapper(read, files), 1):
        if isinstance(result, UnreadableInstance):
            unreadable.append(result)
            unreadable += _not_on_media(result, limits)
        else:
            instances.append(result)
            size += result.commitment.size
        if progress is not None:
            progress(Step(number, len(files), size))
    return Reading(tuple(_group(instances)), tuple(unreadable))


def _not_on_media(result: UnreadableInstance, limits: Limits) -> Iterable[UnreadableInstance]:
    """Return what a DICOMDIR names that cannot be had; nothing for any other file."""
    directory = Path(result.name)
    if result.code != "directory" or not is_named_so(directory):
        return ()
    try:
        return tuple(unreadable_of(directory, read_media(directory, limits)))
    except UnreadableInstance as damaged:
        return (damaged,)


def read_instance(path: Path, limits: Limits = LIMITS) -> CommittedFile | UnreadableInstance:
    """Return the commitment to the file at `path` if it is an instance of a study, or why not."""
    try:
        read = commit_file(path, limits)
        check_uids(read)
    except UnreadableInstance as refused:
        return refused
    return read


def check_uids(read: CommittedFile) -> None:
    """Raise `UnreadableInstance` unless the file has every UID that it needs, and each is one."""
    for tag, word in _UIDS:
        _check_uid(read, tag, word)


def list_files(paths: Sequence[Path], limits: Limits = LIMITS) -> list[Path]:
    """Return the files at and below `paths`, in the order of their names, each once.

    Links to folders inside a folder are not followed. Raises `ValueError` as `read_studies` does.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not os.path.lexists(path):
            raise ValueError(f"there is nothing at {path}")
        for file in _walk(path):
            found[file] = None
            if len(found) > limits.files_max:
                raise ValueError(f"more than {limits.files_max} files; register fewer at a time")
    return list(found)


def _walk(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            yield Path(folder, name)


def _check_uid(read: CommittedFile, tag: int, word: str) -> None:
    uid = read.text(tag)
    if not uid:
        raise UnreadableInstance(read.name, "no_uid", f"has no {word}: not an instance of a study")
    if len(uid) > UID_CHARACTERS_MAX or not _UID.fullmatch(uid):
        # It must never reach a file name, a query or a log.
        raise UnreadableInstance(read.name, "bad_uid", f"its {word} is not a UID (PS3.5 §9.1)")


def _group(instances: list[CommittedFile]) -> list[StudyFiles]:
    studies: dict[str, StudyFiles] = {}
    copies: dict[tuple[str, str], list[CommittedFile]] = {}
    for read in instances:
        key = read.text(commitment.STUDY_INSTANCE), read.text(commitment.SOP_INSTANCE)
        copies.setdefault(key, []).append(read)
    for (study_uid, sop_uid), same in copies.items():
        study = studies.setdefault(study_uid, StudyFiles(study_uid))
        if all(is_same_content(same[0], other) for other in same[1:]):
            study.files[sop_uid] = same[0]
            study.repeated.extend(read.name for read in same[1:])
        else:
            study.conflicts.append(Conflict(tuple(read.name for read in same), sop_uid))
    return list(studies.values())


def is_same_content(one: CommittedFile, other: CommittedFile) -> bool:
    """Whether two files hold one instance: the same bytes, or the same K, P and X."""
    a, b = one.commitment, other.commitment
    if a.file == b.file:
        return True
    pixels = a.pixels.chosen.digest == b.pixels.chosen.digest
    return pixels and (a.rules, a.core, a.private) == (b.rules, b.core, b.private)
