"""The operations of consent: who may grant, restrict, withdraw, opt out and in, and bind a key.

Every operation is about the sender's institution. The bound patient key acts alone; staff names the
digest of a signed form. What the patient set, only the patient ends. Whatever is done at a height
counts for decisions at later heights alone. Opting out needs no room: it always works.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

from consensus.wire import Value
from node.ledger import accounts
from node.ledger.contracts import forms, study
from node.ledger.contracts.base import Context, OperationKind
from node.ledger.contracts.consent import record
from node.ledger.contracts.consent.record import (
    CUSTODIAN,
    DENY,
    PATIENT,
    PERMIT,
    Consent,
    Rule,
    add_rules,
    get_consent,
    put_consent,
)
from node.ledger.contracts.vocabulary import PURPOSES
from node.ledger.errors import REFUSALS, Rejected
from node.ledger.limits import HEIGHT_MAX
from node.ledger.transaction import INSTITUTION

STAFF_ROLES = frozenset({"administrator", "clinician", "data_protection_officer", "gateway"})
CONSENT_ROLES = STAFF_ROLES | {"patient"}
BIND_ROLES = frozenset({"administrator", "gateway"})

REJECTIONS = {
    "binding_unchanged": "the subject is bound to this key, or to none, already",
    "consent_ended": "the rule has ended already",
    "consent_exists": "the subject has a rule with this id; ids are used once",
    "consent_unknown": "the subject has no rule with this id",
    "form_missing": "staff must name the digest of the signed form",
    "form_unexpected": "a patient acts by the bound key alone, without a form",
    "institution_unknown": REFUSALS["institution_unknown"],
    "key_not_patient": "the key to bind is not that of an active member with the role patient",
    "member_unknown": REFUSALS["member_unknown"],
    "not_custodian": study.REJECTIONS["not_custodian"],
    "opted_in": "the subject is not opted out",
    "opted_out": "the subject is opted out already",
    "patient_decides": "the patient set this by key, and only the patient ends it",
    "patient_not_bound": "the sender's key is not the one bound to the patient",
    "study_erased": study.REJECTIONS["study_erased"],
    "study_unknown": study.REJECTIONS["study_unknown"],
    "subject_mismatch": "the study is not one of the subject",
    "until_passed": "the last height of the rule must be above the current one",
} | record.REJECTIONS

# Decides a request that waits for consent anew, as of the next height.
Reconsider: TypeAlias = Callable[[Context, bytes], None]


class NewRule(NamedTuple):
    consent_id: bytes
    subject_id: bytes
    study_id: bytes | None
    recipient: str | None
    purposes: tuple[str, ...]
    until_height: int | None
    form_digest: bytes | None


class Withdraw(NamedTuple):
    subject_id: bytes
    consent_id: bytes
    form_digest: bytes | None


class Opt(NamedTuple):
    subject_id: bytes
    form_digest: bytes | None


class Bind(NamedTuple):
    subject_id: bytes
    patient_key: bytes | None


def kinds(reconsider: Reconsider) -> tuple[OperationKind, ...]:
    """Return the operations. `reconsider(context, request_id)` is called for each request that
    waits when a permission was granted, a prohibition withdrawn or the subject opted in; it may
    call `remove_waiting`, and decides as of the height after the context's."""
    return (
        OperationKind("consent.grant", CONSENT_ROLES, parse_rule, partial(grant, reconsider)),
        OperationKind("consent.restrict", CONSENT_ROLES, parse_rule, restrict),
        OperationKind(
            "consent.withdraw", CONSENT_ROLES, parse_withdraw, partial(withdraw, reconsider)
        ),
        OperationKind("consent.opt_out", CONSENT_ROLES, parse_opt, opt_out),
        OperationKind("consent.opt_in", CONSENT_ROLES, parse_opt, partial(opt_in, reconsider)),
        OperationKind("consent.bind", BIND_ROLES, parse_bind, bind),
    )


def parse_rule(arguments: tuple[Value, ...]) -> NewRule:
    """(consent id, subject id, study id or None, recipient or None, purposes, last height or None,
    form digest or None); purposes are distinct, in any order, none for all."""
    consent_id, subject_id, study_id, recipient, purposes, until, form = forms.fields(arguments, 7)
    return NewRule(
        forms.random_id(consent_id, "consent_id"),
        forms.random_id(subject_id, "subject_id"),
        None if study_id is None else forms.random_id(study_id, "study_id"),
        None if recipient is None else _recipient(recipient),
        _purposes(purposes),
        None if until is None else forms.integer(until, 1, HEIGHT_MAX, "until_height"),
        _form_digest(form),
    )


def parse_withdraw(arguments: tuple[Value, ...]) -> Withdraw:
    """(subject id, consent id, form digest or None)"""
    subject_id, consent_id, form = forms.fields(arguments, 3)
    return Withdraw(
        forms.random_id(subject_id, "subject_id"),
        forms.random_id(consent_id, "consent_id"),
        _form_digest(form),
    )


def parse_opt(arguments: tuple[Value, ...]) -> Opt:
    """(subject id, form digest or None)"""
    subject_id, form = forms.fields(arguments, 2)
    return Opt(forms.random_id(subject_id, "subject_id"), _form_digest(form))


def parse_bind(arguments: tuple[Value, ...]) -> Bind:
    """(subject id, patient's public key of 32 bytes or None)"""
    subject_id, key = forms.fields(arguments, 2)
    return Bind(
        forms.random_id(subject_id, "subject_id"),
        None if key is None else forms.digest(key, "patient_key"),
    )


def _form_digest(value: Value) -> bytes | None:
    return None if value is None else forms.digest(value, "form_digest")


def _recipient(value: Value) -> str:
    if type(value) is not str or not value.isascii() or not INSTITUTION.fullmatch(value):
        forms.refuse("recipient", "the name of an institution: a-z, 0-9 and '-'")
    return value


def _purposes(value: Value) -> tuple[str, ...]:
    if type(value) is not tuple or len(value) > len(PURPOSES):
        forms.refuse("purposes", f"at most {len(PURPOSES)} purposes")
    words = sorted([forms.word(each, PURPOSES, "purposes") for each in value])
    if len(set(words)) != len(words):
        forms.refuse("purposes", "distinct")
    return tuple(words)


def grant(reconsider: Reconsider, context: Context, asked: NewRule) -> None:
    """Permit uses from the next height, and decide what waits for that."""
    _add_rule(context, asked, PERMIT, "consent_granted")
    _reconsider_waiting(reconsider, context, asked.subject_id)


def restrict(context: Context, asked: NewRule) -> None:
    """Forbid uses from the next height."""
    _add_rule(context, asked, DENY, "consent_restricted")


def withdraw(reconsider: Reconsider, context: Context, asked: Withdraw) -> None:
    """End a rule with this height, whatever its effect."""
    consent = _own_consent(context, asked.subject_id)
    by = _authority(context, consent, asked.form_digest)
    rule = next((each for each in consent.rules if each.consent_id == asked.consent_id), None)
    if rule is None:
        raise Rejected("consent_unknown")
    if rule.ended_height is not None or rule.is_over(context.height):
        raise Rejected("consent_ended")
    _require_not_over_patient(rule.by, by)
    ended = rule._replace(ended_height=context.height)
    rules = tuple([ended if each is rule else each for each in consent.rules])
    put_consent(context, context.institution, asked.subject_id, consent._replace(rules=rules))
    context.emit(
        "consent_withdrawn",
        context.institution,
        asked.subject_id,
        asked.consent_id,
        by,
        about=rule.study_id,
    )
    if rule.effect != PERMIT:
        _reconsider_waiting(reconsider, context, asked.subject_id)


def opt_out(context: Context, asked: Opt) -> None:
    """Forbid every use from the next height, whatever the rules say.

    A patient can take over an opt-out that the custodian entered, so that only the patient ends it.
    """
    consent = _own_consent(context, asked.subject_id)
    by = _authority(context, consent, asked.form_digest)
    if consent.is_opted_out:
        if by == CUSTODIAN or consent.opted_out_by == PATIENT:
            raise Rejected("opted_out")
        changed = consent._replace(opted_out_by=by)
    elif consent.opted_out_until == context.height:
        # Ended in this same block: it still counts at this height, and so it just goes on.
        changed = consent._replace(opted_out_until=None, opted_out_by=by)
    else:
        changed = consent._replace(
            opted_out_from=context.height + 1, opted_out_until=None, opted_out_by=by
        )
    put_consent(context, context.institution, asked.subject_id, changed)
    context.emit("consent_opted_out", context.institution, asked.subject_id, by)


def opt_in(reconsider: Reconsider, context: Context, asked: Opt) -> None:
    """End an opt-out with this height; the rules count again, and what waits is decided."""
    consent = _own_consent(context, asked.subject_id)
    by = _authority(context, consent, asked.form_digest)
    if not consent.is_opted_out:
        raise Rejected("opted_in")
    _require_not_over_patient(consent.opted_out_by, by)
    changed = consent._replace(opted_out_until=context.height)
    put_consent(context, context.institution, asked.subject_id, changed)
    context.emit("consent_opted_in", context.institution, asked.subject_id, by)
    _reconsider_waiting(reconsider, context, asked.subject_id)


def bind(context: Context, asked: Bind) -> None:
    """Let a patient's key decide for the subject at once, or, with None, no key any more."""
    consent = _own_consent(context, asked.subject_id)
    if asked.patient_key == consent.patient_key:
        raise Rejected("binding_unchanged")
    if asked.patient_key is not None:
        roles = accounts.member_roles(
            context.state.get, context.institution, asked.patient_key, context.height
        )
        if roles is None:
            raise Rejected("member_unknown")
        if PATIENT not in roles:
            raise Rejected("key_not_patient")
    changed = consent._replace(patient_key=asked.patient_key)
    put_consent(context, context.institution, asked.subject_id, changed)
    word = "unbound" if asked.patient_key is None else "bound"
    context.emit("consent_bound", context.institution, asked.subject_id, word)


def _add_rule(context: Context, asked: NewRule, effect: str, event: str) -> None:
    consent = _own_consent(context, asked.subject_id)
    by = _authority(context, consent, asked.form_digest)
    _check_scope(context, asked)
    if any(rule.consent_id == asked.consent_id for rule in consent.rules):
        raise Rejected("consent_exists")
    rule = Rule(
        asked.consent_id,
        effect,
        asked.study_id,
        asked.recipient,
        asked.purposes,
        context.height + 1,
        asked.until_height,
        None,
        by,
        asked.form_digest,
    )
    add_rules(context, context.institution, asked.subject_id, [(context.ordinal(), rule)])
    context.emit(
        event, context.institution, asked.subject_id, asked.consent_id, by, about=asked.study_id
    )


def _check_scope(context: Context, asked: NewRule) -> None:
    if asked.until_height is not None and asked.until_height <= context.height:
        raise Rejected("until_passed")
    if asked.recipient is not None and (
        context.state.get(accounts.institution_key(asked.recipient)) is None
    ):
        raise Rejected("institution_unknown")
    if asked.study_id is None:
        return
    row = context.state.get(study.study_key(asked.study_id))
    if row is None:
        raise Rejected("study_unknown")
    about = study.decode_study(row)
    if about.custodian != context.institution:
        raise Rejected("not_custodian")
    if about.erased_height is not None:
        raise Rejected("study_erased")
    # A rule under the wrong pseudonym would never decide anything.
    if about.subject_id != asked.subject_id:
        raise Rejected("subject_mismatch")


def _own_consent(context: Context, subject_id: bytes) -> Consent:
    return get_consent(context.state.get, context.institution, subject_id)


def _authority(context: Context, consent: Consent, form_digest: bytes | None) -> str:
    """Return who acts, PATIENT or CUSTODIAN, if the sender may."""
    is_staff = not STAFF_ROLES.isdisjoint(context.roles)
    if form_digest is not None:
        if not is_staff:
            raise Rejected("form_unexpected")
        return CUSTODIAN
    if PATIENT in context.roles and context.member_key == consent.patient_key:
        return PATIENT
    if is_staff:
        raise Rejected("form_missing")
    raise Rejected("patient_not_bound")


def _require_not_over_patient(set_by: str | None, by: str) -> None:
    if set_by == PATIENT and by != PATIENT:
        raise Rejected("patient_decides")


def _reconsider_waiting(reconsider: Reconsider, context: Context, subject_id: bytes) -> None:
    for request_id in _own_consent(context, subject_id).waiting:
        reconsider(context, request_id)
