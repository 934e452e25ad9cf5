"""Numbers that the consortium may change by vote, each between bounds that the program sets.

    "parameter/" + name   -> (format, value)

A name without a row has its default. A changed value is read by the operations that follow; what
was decided with the old one (the end of a grant, of a proposal) stays as it was decided.
"""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from consensus.wire import NotCanonical, pack, unpack
from node.ledger.accounts import Get
from node.ledger.limits import HEIGHT_MAX
from storage.errors import CorruptRecord

RECORD_FORMAT = 1


class Parameter(NamedTuple):
    """What a parameter is without a vote, and what a vote can make of it; bounds are inclusive."""

    default: int
    low: int
    high: int


# Heights are blocks: at one a second, 86,400 are a day.
PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        "access_heights_max": Parameter(200_000, 100, 100_000_000),  # how long a grant may last
        "access_uses_max": Parameter(1_000, 1, 1_000_000),  # how often it may be used
        "break_glass_heights": Parameter(5_000, 10, 1_000_000),  # how long emergency access lasts
        "key_overlap_heights_max": Parameter(100_000, 0, 10_000_000),  # old and new key act both
        "proposal_heights": Parameter(50_000, 100, 10_000_000),  # how long a proposal may wait
        "request_waiting_heights": Parameter(200_000, 100, 100_000_000),  # how long a request may
    }
)


def parameter_key(name: str) -> bytes:
    """Return the state key of a parameter."""
    return b"parameter/" + name.encode()


def get_parameter(get: Get, name: str) -> int:
    """Return the value of a parameter, which must be one of `PARAMETERS`.

    `get` reads the state. Raises `CorruptRecord`.
    """
    row = get(parameter_key(name))
    return PARAMETERS[name].default if row is None else _decode(row)


def encode_parameter(value: int) -> bytes:
    """Return the row of a parameter."""
    return pack((RECORD_FORMAT, value))


@lru_cache(maxsize=64)
def _decode(row: bytes) -> int:
    try:
        match unpack(row):
            case (1, int(value)) if type(value) is int and 0 <= value <= HEIGHT_MAX:
                return value
    except NotCanonical as error:
        raise CorruptRecord("the state holds a parameter that cannot be read") from error
    raise CorruptRecord("the state holds a parameter that cannot be read")
