"""Erasure: the custodian destroyed salt, keys and copies; others attest that they did the same.

The study record stays as a tombstone: without its salt the root opens to nothing, not even for
those who hold the images. An erased study takes nothing but attestations, one per institution.

State, all values canonical msgpack and led by the record format:

    "erasure/" + study id (16) + "/" + institution   -> Attestation
"""

from typing import NamedTuple

from consensus.wire import NotCanonical, Value, pack, unpack
from node.ledger.contracts import forms
from node.ledger.contracts import study as studies
from node.ledger.contracts.base import Context, OperationKind
from node.ledger.contracts.vocabulary import ERASE_REASONS
from node.ledger.errors import Rejected
from storage.errors import CorruptRecord

RECORD_FORMAT = 1
ERASURE_ROLES = frozenset({"administrator", "data_protection_officer", "gateway"})

REJECTIONS = {
    "erasure_attested": "the institution has attested the erasure already",
    "erasure_own": "the custodian's own erasure is on record; others attest theirs",
    "not_custodian": studies.REJECTIONS["not_custodian"],
    "study_erased": studies.REJECTIONS["study_erased"],
    "study_not_erased": "the study is not erased; there is nothing to attest",
    "study_unknown": studies.REJECTIONS["study_unknown"],
}


class Attestation(NamedTuple):
    """That an institution destroyed what it held of an erased study, as stored."""

    format: int
    height: int


class Erase(NamedTuple):
    study_id: bytes
    reason: str


class AttestErasure(NamedTuple):
    study_id: bytes


def attestation_key(study_id: bytes, institution: str) -> bytes:
    """Return the state key of an institution's attestation; `study_id` has 16 bytes."""
    return b"erasure/" + study_id + b"/" + institution.encode()


def decode_attestation(row: bytes) -> Attestation:
    """Return the stored attestation. Raises `CorruptRecord`."""
    try:
        match unpack(row):
            case (1 as record_format, int(height)):
                return Attestation(record_format, height)
    except NotCanonical as error:
        raise CorruptRecord("the state holds an attestation that cannot be read") from error
    raise CorruptRecord("the state holds an attestation that cannot be read")


def parse_erase(arguments: tuple[Value, ...]) -> Erase:
    """(study id, reason)"""
    study_id, reason = forms.fields(arguments, 2)
    return Erase(forms.random_id(study_id, "study_id"), forms.word(reason, ERASE_REASONS, "reason"))


def parse_attest_erasure(arguments: tuple[Value, ...]) -> AttestErasure:
    """(study id,)"""
    (study_id,) = forms.fields(arguments, 1)
    return AttestErasure(forms.random_id(study_id, "study_id"))


def erase(context: Context, asked: Erase) -> None:
    """Turn a study, retired or not, into a tombstone for good."""
    study = studies.existing_study(context, asked.study_id)
    if study.custodian != context.institution:
        raise Rejected("not_custodian")
    if study.erased_height is not None:
        raise Rejected("study_erased")
    if study.retired is None:
        study = studies.close_study(context, asked.study_id, study, asked.reason)
    studies.put_study(context, asked.study_id, study._replace(erased_height=context.height))
    row = studies.listing(asked.study_id, study)
    context.index(studies.INDEX_ERASED, (study.ordinal,), row)
    context.emit("study_erased", asked.study_id, asked.reason, about=asked.study_id)


def attest_erasure(context: Context, asked: AttestErasure) -> None:
    """Record that the sender's institution destroyed what it held of an erased study."""
    study = studies.existing_study(context, asked.study_id)
    if study.erased_height is None:
        raise Rejected("study_not_erased")
    if study.custodian == context.institution:
        raise Rejected("erasure_own")
    key = attestation_key(asked.study_id, context.institution)
    if context.state.get(key) is not None:
        raise Rejected("erasure_attested")
    context.state.put(key, pack(Attestation(RECORD_FORMAT, context.height)))
    context.emit(
        "study_erasure_attested", asked.study_id, context.institution, about=asked.study_id
    )


KINDS = (
    OperationKind("study.erase", ERASURE_ROLES, parse_erase, erase),
    OperationKind("study.attest_erasure", ERASURE_ROLES, parse_attest_erasure, attest_erasure),
)
