"""What a client is told when a request is refused. No sentence carries a value of a data set."""

from dataclasses import dataclass


@dataclass
class Problem(Exception):
    """The request is refused with an HTTP status, a stable code and a sentence."""

    status: int
    code: str
    sentence: str
    retry_after_s: int | None = None

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.sentence}"


def not_found(what: str) -> Problem:
    """Return the refusal for a study, series, instance or frame that is not here."""
    return Problem(404, "not_found", f"there is no such {what} here")


def not_acceptable(sentence: str) -> Problem:
    """Return the refusal for a form that cannot be given."""
    return Problem(406, "not_acceptable", sentence)
