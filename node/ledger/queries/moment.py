"""One moment of the ledger, as queries read it: the state of the head, for the next height.

An operation that is sent now acts at the next height at the earliest. So what an answer computes
(in force, expired, permitted) is computed for that height.
"""

from dataclasses import dataclass

from node.ledger.accounts import Get
from node.ledger.block import Header
from node.ledger.errors import InvalidBlock
from storage.chain import ChainStore
from storage.errors import CorruptRecord


@dataclass(frozen=True, slots=True)
class Moment:
    """`chain` must be of one moment: hand in one on a snapshot."""

    chain: ChainStore
    height: int  # the next height
    time_ms: int  # of the head's block

    @property
    def get(self) -> Get:
        """Read a state row."""
        return self.chain.state_value


def moment_of(chain: ChainStore) -> Moment:
    """Return the moment that `chain` shows. Raises `CorruptRecord`."""
    head = chain.head()
    if head is None:
        raise CorruptRecord("the database holds no block; start the node with its genesis first")
    return Moment(chain, head + 1, read_header(chain, head).time_ms)


def read_header(chain: ChainStore, height: int) -> Header:
    """Return the header of an executed height. Raises `CorruptRecord`."""
    encoded = chain.header(height)
    try:
        if encoded is not None:
            return Header.decode(encoded)
    except InvalidBlock as error:
        raise CorruptRecord(f"the header of height {height}: {error}") from error
    raise CorruptRecord(f"the header of height {height} is missing; sync anew")
