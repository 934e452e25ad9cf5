"""What federated search needs of others: the ledger's policies, and whoever keeps the audit."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

from node.exchange.federation.question import Question


class Policies(Protocol):
    """What the ledger's rules and consents would do, were it asked for a study now."""

    async def outcome(self, study_id: bytes, institution: str, question: Question) -> str:
        """Return what a request of `institution` with the question's purpose and role would meet:
        "granted", "denied", "waiting_consent", "waiting_person" or "rejected".

        Raises `LedgerUnavailable`.
        """
        ...


class Inquiry(StrEnum):
    """Kinds of `FederationEvent`."""

    ANSWERED = "answered"  # we told another hospital something
    REFUSED = "refused"  # we told it nothing, with the code
    ASKED = "asked"  # we asked
    CONFLICT = "conflict"  # a copy elsewhere contradicts ours


@dataclass(frozen=True, slots=True)
class FederationEvent:
    """Something to be audited; carries nothing that identifies a patient."""

    kind: Inquiry
    institution: str  # the other one
    code: str = ""  # of a refusal
    purpose: str = ""
    role: str = ""
    question: str = ""  # "find" or "count", and the fields it is about
    told: int = 0  # studies, or patients of a count


Report: TypeAlias = Callable[[FederationEvent], None]
