"""Transfer of custody: the custodian offers a study, the institution that it names accepts.

Nobody becomes custodian unasked, and nobody keeps another's pseudonym: the new custodian gives its
own, and the lists by custodian and by subject follow, in the order of registration as before.
Refusals on record at the old custodian go on holding for the study (`consent.custody`).

The offer is part of the study record (`study`). Index row, for queries only:

    study_offered (institution, ordinal of the registration)   -> study id
"""

from typing import NamedTuple

from consensus.wire import Value
from node.ledger import accounts
from node.ledger.contracts import forms
from node.ledger.contracts import study as studies
from node.ledger.contracts.base import Context, OperationKind
from node.ledger.contracts.consent import custody, record
from node.ledger.errors import REFUSALS, Rejected
from node.ledger.transaction import INSTITUTION

TRANSFER_ROLES = frozenset({"administrator", "gateway"})

REJECTIONS = {
    "consent_full": record.REJECTIONS["consent_full"],
    "institution_unknown": REFUSALS["institution_unknown"],
    "not_custodian": studies.REJECTIONS["not_custodian"],
    "not_offered": "the study is not offered to the institution, or to none at all",
    "offered_to_self": "the study is with the institution that it was to be offered to",
    "study_erased": studies.REJECTIONS["study_erased"],
    "study_offered": "the study is offered already; withdraw that offer first",
    "study_retired": studies.REJECTIONS["study_retired"],
    "study_unknown": studies.REJECTIONS["study_unknown"],
}


class Offer(NamedTuple):
    study_id: bytes
    institution: str


class WithdrawOffer(NamedTuple):
    study_id: bytes


class Accept(NamedTuple):
    study_id: bytes
    subject_id: bytes


def parse_offer(arguments: tuple[Value, ...]) -> Offer:
    """(study id, institution)"""
    study_id, institution = forms.fields(arguments, 2)
    if (
        type(institution) is not str
        or not institution.isascii()
        or not INSTITUTION.fullmatch(institution)
    ):
        forms.refuse("institution", "the name of an institution: a-z, 0-9 and '-'")
    return Offer(forms.random_id(study_id, "study_id"), institution)


def parse_withdraw_offer(arguments: tuple[Value, ...]) -> WithdrawOffer:
    """(study id,)"""
    (study_id,) = forms.fields(arguments, 1)
    return WithdrawOffer(forms.random_id(study_id, "study_id"))


def parse_accept(arguments: tuple[Value, ...]) -> Accept:
    """(study id, subject id), the latter the new custodian's own pseudonym of the patient"""
    study_id, subject_id = forms.fields(arguments, 2)
    return Accept(forms.random_id(study_id, "study_id"), forms.random_id(subject_id, "subject_id"))


def offer(context: Context, asked: Offer) -> None:
    """Let an institution become the study's custodian if it wants to."""
    study = studies.own_study(context, asked.study_id)
    if study.offered_to is not None:
        raise Rejected("study_offered")
    if asked.institution == context.institution:
        raise Rejected("offered_to_self")
    if accounts.find_institution(context.state.get, asked.institution) is None:
        raise Rejected("institution_unknown")
    studies.put_study(context, asked.study_id, study._replace(offered_to=asked.institution))
    context.index(
        studies.INDEX_OFFERED,
        (asked.institution.encode(), study.ordinal),
        studies.listing(asked.study_id, study),
    )
    context.emit("study_offered", asked.study_id, asked.institution, about=asked.study_id)


def withdraw_offer(context: Context, asked: WithdrawOffer) -> None:
    """Take an offer back before it is accepted."""
    study = studies.own_study(context, asked.study_id)
    if study.offered_to is None:
        raise Rejected("not_offered")
    studies.put_study(context, asked.study_id, studies.without_offer(context, study))
    context.emit("study_offer_withdrawn", asked.study_id, study.offered_to, about=asked.study_id)


def accept(context: Context, asked: Accept) -> None:
    """Make the sender's institution custodian of a study that was offered to it."""
    study = studies.existing_study(context, asked.study_id)
    # Retiring and erasing a study take the offer back, so nothing but an open study gets past this.
    if study.offered_to != context.institution:
        raise Rejected("not_offered")
    moved = studies.without_offer(context, study)._replace(
        custodian=context.institution, subject_id=asked.subject_id
    )
    studies.put_study(context, asked.study_id, moved)
    _move_index_rows(context, asked.study_id, study, moved)
    context.emit(
        "study_accepted",
        asked.study_id,
        study.custodian,
        context.institution,
        about=asked.study_id,
    )
    custody.carry_refusals(
        context, asked.study_id, study.custodian, study.subject_id, asked.subject_id
    )


def _move_index_rows(
    context: Context, study_id: bytes, old: studies.Study, new: studies.Study
) -> None:
    context.unindex(studies.INDEX_CUSTODIAN, (old.custodian.encode(), old.ordinal))
    context.unindex(studies.INDEX_SUBJECT, (old.subject_id, old.ordinal))
    studies.list_study(context, study_id, new)


KINDS = (
    OperationKind("study.offer", TRANSFER_ROLES, parse_offer, offer),
    OperationKind("study.withdraw_offer", TRANSFER_ROLES, parse_withdraw_offer, withdraw_offer),
    OperationKind("study.accept", TRANSFER_ROLES, parse_accept, accept),
)
