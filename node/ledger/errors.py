"""Errors of the ledger room, and every code that a client can be refused with.

A code is stable: clients branch on it, documentation explains it, and the codes of rejections are
hashed into receipts. Sentences may be reworded at any time and are never hashed.
"""

# Codes that no state could change: the bytes themselves are wrong, whoever looks at them and when.
PERMANENT: dict[str, str] = {
    "malformed": "not the canonical encoding of a transaction",
    "too_large": "more bytes or operations than the protocol allows",
    "version_unknown": "a transaction version that this node does not know",
    "wrong_chain": "signed for another chain",
    "operation_unknown": "no contract has an operation of this name",
    "operation_invalid": "the arguments of an operation have the wrong form",
    "signature_invalid": "the signature does not verify under the member key inside",
}

# Codes that depend on the state or the load of the node; trying again later may help.
TEMPORARY: dict[str, str] = {
    "expired": "the chain has passed the height until which the transaction is valid",
    "valid_too_long": "valid for longer than the protocol allows",
    "institution_unknown": "no institution of this name",
    "institution_suspended": "the institution is suspended",
    "member_unknown": "the institution has no member with this key",
    "member_suspended": "the member is suspended",
    "role_missing": "the member lacks the role that the operation needs",
    "replayed": "a transaction with this id was executed before",
    "duplicate": "a transaction with this id waits already or was just executed",
    "quota_exceeded": "the institution has as much waiting as one institution may have",
    "mempool_full": "the node holds as many waiting transactions as it may",
    "cannot_prove": "the ledger does not show what was to be proved",
    "busy": "more transactions wait for their check than the node may hold",
}

REFUSALS: dict[str, str] = PERMANENT | TEMPORARY


class Refused(Exception):
    """A transaction was refused before ordering; goes back to the submitter.

    `code` is a key of `REFUSALS`; `sentence` says what was wrong and where, without any content of
    the transaction.
    """

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code = code
        self.sentence = sentence

    @property
    def permanent(self) -> bool:
        """Whether the bytes are wrong in themselves: no node at any time would accept them."""
        return self.code in PERMANENT

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"


class Rejected(Exception):
    """A contract refused an operation; the transaction stays in its block with a failed receipt.

    `code` and `rule` (which rule refused, when there are several) are hashed into the receipt.
    """

    def __init__(self, code: str, rule: str = "") -> None:
        super().__init__(code, rule)
        self.code = code
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.code} ({self.rule})" if self.rule else self.code


class InvalidBlock(ValueError):
    """Bytes are no batch, header, receipt or block, or its parts do not belong together."""


class InvalidGenesis(ValueError):
    """A genesis file cannot be used; `problems` names every fault with its place in the file."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
