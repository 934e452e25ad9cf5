"""Errors of the transfer, split by who must act."""


class NotPermitted(Exception):
    """The ledger does not permit it; `code` is the contracts' own, such as `consent_refused`."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class LedgerUnavailable(Exception):
    """Nobody can say now whether it is permitted; nothing is given out meanwhile."""


class InvalidOffer(ValueError):
    """An offer is damaged, too large, or not of what the ledger says; the sentence says which."""


class InvalidRecord(ValueError):
    """A file of the transfer's state is damaged or was written by a later version."""


class WrongDigest(ValueError):
    """The sink was handed a chunk whose bytes are not those that its digest names."""


class TransferIncomplete(Exception):
    """No holder serves what is missing now. What has arrived stays: the next call continues.

    `reasons` says of each holder why, by its name; `missing` counts chunks, or is None when not
    even the offer could be had.
    """

    def __init__(self, missing: int | None, reasons: dict[str, str]) -> None:
        each = "; ".join(f"{name}: {reason}" for name, reason in sorted(reasons.items()))
        what = "the offer is" if missing is None else f"{missing} chunks are"
        super().__init__(f"{what} missing, no holder serves it now ({each})")
        self.missing = missing
        self.reasons = reasons
