"""What can go wrong with the audit trail."""


class TrailUnusable(Exception):
    """The trail takes no record now; the sentence says why and what to do."""


class TrailFull(TrailUnusable):
    """The trail has as many bytes as it may have, and nothing of it may be removed."""


class RecordInvalid(ValueError):
    """A line is no record of this format."""


class EvidenceInvalid(ValueError):
    """The evidence of an anchored log cannot be read; the sentence says what to do."""


class PeriodInvalid(ValueError):
    """A log ends before the period begins for which it is to be anchored."""


class AnchorRefused(Exception):
    """The ledger does not take an anchor; `code` says why."""

    def __init__(self, code: str) -> None:
        super().__init__(f"the ledger refuses the anchor: {code}")
        self.code = code


class TrailBroken(Exception):
    """The trail is not whole, so it is not anchored as if it were."""
