"""The table of all operations. A new contract is one module and one line here."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from consensus.wire import Value
from node.ledger.contracts import (
    access,
    audit,
    consent,
    governance,
    policy,
    registry,
    study,
    study_erasure,
    study_transfer,
)
from node.ledger.contracts.base import OperationKind
from node.ledger.errors import REFUSALS, Refused
from node.ledger.transaction import Operation

_CONTRACTS = (
    study,
    study_transfer,
    study_erasure,
    consent,
    policy,
    access,
    audit,
    registry,
    governance,
)

OPERATIONS: Mapping[str, OperationKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            *study.KINDS,
            *study_transfer.KINDS,
            *study_erasure.KINDS,
            *consent.kinds(access.reconsider),
            *policy.KINDS,
            *access.KINDS,
            *audit.KINDS,
            *registry.KINDS,
            *governance.KINDS,
        )
    }
)

# What each code of a failed receipt means, for people; a sentence is never hashed. A receipt may
# also carry a code of `errors.REFUSALS`: what was true at the door need not be true later.
REJECTIONS: Mapping[str, str] = MappingProxyType(
    {
        code: sentence
        for contract in _CONTRACTS
        for code, sentence in contract.REJECTIONS.items()
        if code not in REFUSALS
    }
)


def parse_operation(name: str, arguments: tuple[Value, ...]) -> tuple[OperationKind, Any]:
    """Return the kind of an operation and its parsed arguments.

    Raises `Refused` with the code operation_unknown or operation_invalid.
    """
    kind = OPERATIONS.get(name)
    if kind is None:
        raise Refused("operation_unknown", "no contract has an operation of this name")
    return kind, kind.parse(arguments)


def check_form(operations: Sequence[Operation]) -> None:
    """Check what can be checked without the state. Raises `Refused`; its sentence names the
    operation by its index, counted from 0."""
    for index, operation in enumerate(operations):
        try:
            parse_operation(operation.name, operation.arguments)
        except Refused as refused:
            raise Refused(refused.code, f"operation {index}: {refused.sentence}") from None
