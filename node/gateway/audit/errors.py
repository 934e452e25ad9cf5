"""What can go wrong with the audit trail."""


class TrailUnusable(Exception):
    """The trail takes no record now; the sentence says why and what to do."""


class TrailFull(TrailUnusable):
    """The trail has as many bytes as it may have, and nothing of it may be removed."""


class RecordInvalid(ValueError):
    """A line is no record of this format."""
