"""What the DICOMweb server reports of each request, for whoever keeps the audit trail."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class Action(Enum):
    """What was tried."""

    STORE = "store"
    SEARCH = "search"
    RETRIEVE = "retrieve"
    NONE = "none"  # turned away before that was known


@dataclass(frozen=True, slots=True)
class WebAccess:
    """One request and its outcome. The study's UID identifies: keep it out of logs."""

    action: Action
    status: int  # HTTP status; 0: broken off
    code: str  # why it was refused, or ""
    instances: int  # stored, or given
    remote: str  # address of the client
    role: str = ""  # whose token it showed
    study_uid: str = field(default="", repr=False)


class Audit(Protocol):
    """Where accesses are recorded, durably: before the first byte of an answer goes out."""

    async def record(self, access: WebAccess) -> bool:
        """Return False if it could not be recorded: then nothing is given out."""
        ...


class NoAudit:
    """Records nothing."""

    async def record(self, access: WebAccess) -> bool:
        return True
