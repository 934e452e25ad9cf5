"""The arguments of access operations: their order and form, without the state."""

from typing import NamedTuple

from consensus.wire import Value
from node.ledger.contracts import forms
from node.ledger.contracts.vocabulary import (
    BREAK_GLASS_PURPOSES,
    BREAK_GLASS_REASONS,
    DENY_REASONS,
    FINDINGS,
    PURPOSES,
    REVOKE_REASONS,
)

# Of the arguments' form; the parameters bound them more tightly.
HEIGHTS_MAX = 1 << 31
USES_MAX = 1 << 31

CLINICIAN = "clinician"
ASKING_ROLES = frozenset({CLINICIAN, "researcher", "gateway"})


class Ask(NamedTuple):
    request_id: bytes
    study_id: bytes
    role: str
    purpose: str
    heights: int
    uses_max: int
    deidentified: bool
    ethics_digest: bytes | None
    key_id: bytes | None


class BreakGlass(NamedTuple):
    request_id: bytes
    study_id: bytes
    role: str
    purpose: str
    reason: str
    key_id: bytes | None


class Step(NamedTuple):
    """A request, and a word or a digest that the operation says about it."""

    request_id: bytes
    word: str = ""
    digest: bytes = b""


def parse_request(arguments: tuple[Value, ...]) -> Ask:
    """(request id, study id, role, purpose, heights, uses, deidentified, ethics digest | None,
    key id | None)"""
    request_id, study_id, role, purpose, heights, uses, deidentified, ethics, key_id = forms.fields(
        arguments, 9
    )
    if type(deidentified) is not bool:
        forms.refuse("deidentified", "true or false")
    return Ask(
        forms.random_id(request_id, "request_id"),
        forms.random_id(study_id, "study_id"),
        forms.word(role, ASKING_ROLES, "role"),
        forms.word(purpose, PURPOSES, "purpose"),
        forms.integer(heights, 1, HEIGHTS_MAX, "heights"),
        forms.integer(uses, 1, USES_MAX, "uses_max"),
        deidentified,
        None if ethics is None else forms.digest(ethics, "ethics_digest"),
        None if key_id is None else forms.random_id(key_id, "key_id"),
    )


def parse_break_glass(arguments: tuple[Value, ...]) -> BreakGlass:
    """(request id, study id, role, purpose, reason, key id | None)"""
    request_id, study_id, role, purpose, reason, key_id = forms.fields(arguments, 6)
    return BreakGlass(
        forms.random_id(request_id, "request_id"),
        forms.random_id(study_id, "study_id"),
        forms.word(role, frozenset({CLINICIAN}), "role"),
        forms.word(purpose, BREAK_GLASS_PURPOSES, "purpose"),
        forms.word(reason, BREAK_GLASS_REASONS, "reason"),
        None if key_id is None else forms.random_id(key_id, "key_id"),
    )


def parse_step(arguments: tuple[Value, ...]) -> Step:
    """(request id)"""
    (request_id,) = forms.fields(arguments, 1)
    return Step(forms.random_id(request_id, "request_id"))


def parse_deny(arguments: tuple[Value, ...]) -> Step:
    """(request id, reason)"""
    request_id, reason = forms.fields(arguments, 2)
    return Step(
        forms.random_id(request_id, "request_id"), forms.word(reason, DENY_REASONS, "reason")
    )


def parse_revoke(arguments: tuple[Value, ...]) -> Step:
    """(request id, reason)"""
    request_id, reason = forms.fields(arguments, 2)
    return Step(
        forms.random_id(request_id, "request_id"), forms.word(reason, REVOKE_REASONS, "reason")
    )


def parse_review(arguments: tuple[Value, ...]) -> Step:
    """(request id, finding)"""
    request_id, finding = forms.fields(arguments, 2)
    return Step(forms.random_id(request_id, "request_id"), forms.word(finding, FINDINGS, "finding"))


def parse_deliver(arguments: tuple[Value, ...]) -> Step:
    """(request id, digest of the wrapped key)"""
    request_id, wrapped = forms.fields(arguments, 2)
    return Step(
        forms.random_id(request_id, "request_id"), digest=forms.digest(wrapped, "wrapped_digest")
    )


def parse_receive(arguments: tuple[Value, ...]) -> Step:
    """(request id, root of the version that was received)"""
    request_id, root = forms.fields(arguments, 2)
    return Step(forms.random_id(request_id, "request_id"), digest=forms.digest(root, "root"))
