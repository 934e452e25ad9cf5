"""The rows of the key file, as the catalogue answers them."""

from enum import IntEnum
from typing import NamedTuple

SCRUBBED, SCRUBBING = "scrubbed", "scrubbing"  # what scrubs note: the last whole one, a slow one


class State(IntEnum):
    """What is the matter with a study."""

    HELD = 1
    ERASING = 2  # the key is destroyed, chunks are being deleted
    ERASED = 3  # all is gone; it is never taken again
    LEAVING = 4  # as ERASING, but the study may come back


class StudyRow(NamedTuple):
    """One study."""

    sealed: bytes | None
    state: State
    destroyed_ms: int | None
    versions: int
    chunks: int
    stored_bytes: int


class VersionRow(NamedTuple):
    """One version of a study."""

    study_id: bytes
    version: int
    index_digest: bytes
    index_bytes: int
    instances: int
    bytes: int


class ChunkRow(NamedTuple):
    """One chunk."""

    digest: bytes
    study_id: bytes
    stored_bytes: int
    present: bool


class Totals(NamedTuple):
    """Everything held, added up."""

    studies: int
    versions: int
    instances: int
    bytes: int
    stored_bytes: int
    chunks: int
    missing_chunks: int
