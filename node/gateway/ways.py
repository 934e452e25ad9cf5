"""What delivery needs of a way to the local PACS; DIMSE (`pacs.py`) and DICOMweb are two."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from node.gateway.holdings import HeldInstance

# Given an instance, yields the pieces of its file; what it raises ends the sending of this one.
Read = Callable[[HeldInstance], Iterable[bytes]]
# "" if the PACS has taken it; else a code why not.
OnSent = Callable[[HeldInstance, str], None]
# The file that the PACS gave back, which goes after the call; None if it has none of that UID.
OnFetched = Callable[[HeldInstance, Path | None], None]


class Unreachable(Exception):
    """The PACS cannot be reached, or does not do this now; the text says what was wrong."""


class NotOffered(Exception):
    """The PACS does not offer this service at all."""


class Way(Protocol):
    """One way to a PACS. Blocking."""

    def send(self, instances: Sequence[HeldInstance], read: Read, on_sent: OnSent) -> None:
        """Send instances of one study. Raises `Unreachable` with the rest unsent."""

    def fetch(self, instances: Sequence[HeldInstance], folder: Path, on_fetched: OnFetched) -> None:
        """Read instances back into `folder`. Raises `Unreachable`, `NotOffered`."""

    def lists(self, instances: Sequence[HeldInstance]) -> frozenset[str]:
        """Return the SOP Instance UIDs that the PACS lists. Raises as `fetch` does."""
