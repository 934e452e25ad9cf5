"""What became of an instance that was offered: four answers, each with what a sender is told."""

from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Named:
    """What the instance calls itself; "" when that could not be read."""

    sop_uid: str = field(default="", repr=False)
    sop_class: str = field(default="", repr=False)
    study_uid: str = field(default="", repr=False)
    series_uid: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Accepted(Named):
    """Durable: it survives power loss, and will be registered."""


@dataclass(frozen=True, slots=True)
class Duplicate(Named):
    """The same instance with the same content is here already; nothing changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(Named):
    """Not taken. `code` is stable; `reason` is a sentence that names no patient.

    Codes: those of `UnreadableInstance`, and no_room (quota, backlog or disk: try again later),
    mismatch (it is not what the sender announced), other_study (not of the study that was asked
    for), other_patient (the study's instances name another patient).
    """

    code: str
    reason: str
    is_kept: bool = False  # whether a copy is in quarantine


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict(Refused):
    """The same SOP Instance UID is here with other content; both are kept, the first one stands."""


Outcome: TypeAlias = Accepted | Duplicate | Conflict | Refused


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a sender says an instance is, before its data set is read."""

    sop_class: str
    sop_uid: str
