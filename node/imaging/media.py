"""What a DICOMDIR says is on a medium (PS3.10 §8, PS3.3 F): a CD, a stick, a copy of one.

It comes from outside the hospital and may say anything: files are taken only from below the folder
that it lies in, whatever links or names lead elsewhere.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from node.imaging.commitment import (
    DICOMDIR_CLASS,
    MEDIA_CLASS,
    TRANSFER_SYNTAX,
    meta_elements,
)
from node.imaging.elements import Parser, Span
from node.imaging.errors import UnreadableInstance
from node.imaging.limits import LIMITS, Limits
from node.imaging.source import open_source
from node.imaging.syntax import syntax_of

NAME = "DICOMDIR"
_FILE_ID = 0x00041500
_EXPLICIT = "1.2.840.10008.1.2.1"  # what a DICOMDIR has to be in (PS3.10 §8.6); others occur
_COMPONENTS_MAX = 8  # PS3.10 §8.2


@dataclass(frozen=True, slots=True)
class Media:
    """The files that a DICOMDIR names, in its order, each once."""

    files: tuple[Path, ...]
    missing: tuple[str, ...]  # file ids, their components joined by "/"
    outside: tuple[str, ...]  # ids that are none, or lead out of the folder


class _FileIds:
    """A visitor that keeps the values of Referenced File ID."""

    def __init__(self) -> None:
        self.found: dict[str, None] = {}

    def value(self, tag: int, vr: str, little_endian: bool, data: bytes | Span) -> None:
        if tag == _FILE_ID and isinstance(data, bytes) and data:
            self.found[data.decode("latin_1").rstrip(" \0")] = None

    def begin_sequence(self, tag: int) -> None: ...
    def begin_item(self) -> None: ...
    def end_item(self) -> None: ...
    def end_sequence(self) -> None: ...
    def fragments(self, tag: int, offset_table: bytes, spans: list[Span]) -> None: ...


def is_named_so(path: Path) -> bool:
    """Whether the file has the name of a DICOMDIR; some systems show it in lower case."""
    return path.name.upper().removesuffix(";1").rstrip(".") == NAME


def read_media(directory: Path, limits: Limits = LIMITS) -> Media:
    """Return what the DICOMDIR at `directory` names. Raises `UnreadableInstance`."""
    ids = _FileIds()
    with open_source(directory, limits) as source:
        meta = meta_elements(source)
        if meta.get(MEDIA_CLASS) != DICOMDIR_CLASS:
            raise UnreadableInstance(source.name, "foreign", "is no DICOMDIR (PS3.10 §8.6)")
        syntax = syntax_of(meta.get(TRANSFER_SYNTAX, "")) or syntax_of(_EXPLICIT)
        if syntax is not None:
            Parser(source.stream, source.size, source.name, limits, ids).data_set(syntax)
    if len(ids.found) > limits.files_max:
        reason = f"names more than {limits.files_max} files"
        raise UnreadableInstance(str(directory), "limit", reason)
    return _sorted_out(directory.parent, ids.found)


def unreadable_of(directory: Path, media: Media) -> Iterator[UnreadableInstance]:
    """Yield an entry for everything that the DICOMDIR names and that cannot be had."""
    for file_id in media.missing:
        reason = "the DICOMDIR names it, and it is not there"
        yield UnreadableInstance(f"{directory.parent}/{file_id}", "missing", reason)
    for _ in media.outside:  # the id itself is a stranger's text
        reason = "names a file outside of its own folder, which is not taken"
        yield UnreadableInstance(str(directory), "outside", reason)


def _sorted_out(folder: Path, file_ids: dict[str, None]) -> Media:
    files: dict[Path, None] = {}
    missing, outside = [], []
    root = folder.resolve()
    names: dict[Path, dict[str, str]] = {}
    for file_id in file_ids:
        parts = file_id.split("\\")
        if not 1 <= len(parts) <= _COMPONENTS_MAX or not all(map(_is_component, parts)):
            outside.append(file_id)
            continue
        path = folder
        for part in parts:
            path = path / _name_there(path, part.strip(" "), names)
        if not path.resolve().is_relative_to(root):
            outside.append(file_id)
        elif path.is_file():
            files[path] = None
        else:
            missing.append("/".join(parts))
    return Media(tuple(files), tuple(missing), tuple(outside))


def _is_component(part: str) -> bool:
    """Whether a component names something within a folder; real media use longer names, too."""
    return part.strip(" .") != "" and part.isprintable() and "/" not in part


def _name_there(folder: Path, part: str, names: dict[Path, dict[str, str]]) -> str:
    """Return the name under which the system shows a component: in lower case, or with ";1"."""
    if folder not in names:
        try:
            found = os.listdir(folder)
        except OSError:
            found = []
        names[folder] = {n.upper().removesuffix(";1").rstrip("."): n for n in sorted(found)}
        names[folder] |= {name: name for name in found}
    return names[folder].get(part) or names[folder].get(part.upper(), part)
