"""What the codes of refusals and failed receipts mean, for people."""

from node.ledger.contracts.table import REJECTIONS
from node.ledger.errors import REFUSALS


def meaning_of_code(code: str) -> str:
    """Return the sentence of a code; one that this program does not know has a general one."""
    return REJECTIONS.get(code) or REFUSALS.get(code) or "a rule of the contract does not allow it"
