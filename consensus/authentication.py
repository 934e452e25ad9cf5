"""Which signatures must verify before a message counts, and what must hold in its form.

Form first, then signatures: whoever lists the signatures of a message has already refused wrong
counts, orders, senders and heights, so `Replica.step` may rely on both. Certificates carry exactly
a quorum, in ascending order of distinct senders, so that none is bigger than it need be.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from consensus.errors import InvalidMessage
from consensus.messages import (
    HEIGHTS_MAX,
    NULL_DIGEST,
    Commit,
    Domain,
    Message,
    NewView,
    Prepare,
    PreparedCertificate,
    PrePrepare,
    Seal,
    SealCertificate,
    ViewChange,
)
from consensus.validators import ValidatorSchedule, ValidatorSet
from consensus.view_change import stable_certificate


class SignatureCheck(NamedTuple):
    """One Ed25519 verification: `signature` over `signed` by `public_key`."""

    public_key: bytes
    signed: bytes
    signature: bytes


def signatures_of(
    message: Message, schedule: ValidatorSchedule, chain_id: bytes
) -> list[SignatureCheck]:
    """Return every distinct signature, nested ones too, that `message` stands on.

    Raises `InvalidMessage` for what is wrong in form, whatever the signatures are.
    """
    match message:
        case PrePrepare() | Prepare() | Commit():
            validators = schedule.at(message.height)
            verify_vote_form(message, validators)
            return [_check(message, validators, chain_id)]
        case Seal():
            validators = schedule.at(message.height)
            _verify_sender(message.sender, validators)
            return [_check(message, validators, chain_id)]
        case SealCertificate():
            return seal_checks(message, schedule.at(message.height), chain_id)
        case ViewChange():
            verify_view_change_form(message, schedule)
            return list(dict.fromkeys(_view_change_checks(message, schedule, chain_id)))
        case NewView():
            verify_new_view_form(message, schedule)
            return list(dict.fromkeys(_new_view_checks(message, schedule, chain_id)))


def seal_checks(
    certificate: SealCertificate, validators: ValidatorSet, chain_id: bytes
) -> list[SignatureCheck]:
    """Return the signatures of `certificate`, which `validators` of its height must have made.

    Height 0 is the genesis and has none. Raises `InvalidMessage` for a wrong form.
    """
    verify_certificate_form(certificate, validators)
    domain = Domain(chain_id, validators.digest)
    return [
        SignatureCheck(
            validators.validators[sender].public_key,
            domain.signed_bytes(Seal(certificate.height, certificate.header, sender)),
            signature,
        )
        for sender, signature in certificate.seals
    ]


def verify_certificate_form(certificate: SealCertificate, validators: ValidatorSet) -> None:
    """Raise `InvalidMessage` unless exactly a quorum sealed, or it is height 0 and nobody did."""
    _verify_bytes(certificate.header, 32)
    wanted = validators.quorum if certificate.height else 0
    _verify_signers(certificate.seals, wanted, validators)


def verify_prepared_form(certificate: PreparedCertificate, validators: ValidatorSet) -> None:
    """Raise `InvalidMessage` unless it is a primary's PrePrepare and quorum-1 backups' Prepares.

    A certificate for the null block is good: a new view may have prepared it.
    """
    vote = certificate.pre_prepare
    _verify_primary(vote, validators)
    _verify_signers(certificate.prepares, validators.quorum - 1, validators)
    if any(sender == vote.sender for sender, _ in certificate.prepares):
        raise InvalidMessage("a prepared certificate counts its primary twice")


def verify_vote_form(message: PrePrepare | Prepare | Commit, validators: ValidatorSet) -> None:
    """Raise `InvalidMessage` unless the sender may cast this vote in its view."""
    _verify_bytes(message.digest, 32)
    _verify_bytes(message.signature, 64)
    if type(message) is PrePrepare:
        _verify_primary(message, validators)
        if message.digest == NULL_DIGEST:
            raise InvalidMessage("a null block is proposed only inside a NewView")
        return
    _verify_sender(message.sender, validators)
    if type(message) is Prepare and message.sender == validators.primary(message.view):
        raise InvalidMessage("the primary sends no Prepare; its PrePrepare counts as one")


def verify_view_change_form(message: ViewChange, schedule: ValidatorSchedule) -> None:
    """Raise `InvalidMessage` unless all that `message` quotes lies in one validator set's reign,
    above its stable height, in ascending order, and in views below the one it asks for."""
    validators = schedule.at(message.stable.height + 1)
    _verify_sender(message.sender, validators)
    _verify_bytes(message.signature, 64)
    verify_certificate_form(message.stable, schedule.at(message.stable.height))
    end = schedule.next_change_after(message.stable.height + 1)
    previous = message.stable.height
    for certificate in message.prepared:
        vote = certificate.pre_prepare
        if vote.height <= previous or (end is not None and vote.height >= end):
            raise InvalidMessage("a ViewChange's heights are out of order or out of its reign")
        # Else an honest primary's NewView, which quotes it, would be more than its peers take.
        if vote.height > message.stable.height + HEIGHTS_MAX:
            raise InvalidMessage("a ViewChange quotes heights beyond any window")
        if vote.view >= message.view:
            raise InvalidMessage("a ViewChange quotes a certificate of the view it asks for")
        verify_prepared_form(certificate, validators)
        previous = vote.height


def verify_new_view_form(message: NewView, schedule: ValidatorSchedule) -> None:
    """Raise `InvalidMessage` unless it is its primary's, quotes exactly a quorum of ViewChanges for
    its view from one reign, and proposes contiguous heights from the stable one on.

    Whether the proposed digests follow from the ViewChanges is the replica's to judge.
    """
    if not message.view_changes:
        raise InvalidMessage("a NewView quotes no ViewChange")
    stable = stable_certificate(message.view_changes)
    validators = schedule.at(stable.height + 1)
    end = schedule.next_change_after(stable.height + 1)
    if message.sender != validators.primary(message.view):
        raise InvalidMessage("a NewView must come from the primary of its view")
    _verify_bytes(message.signature, 64)
    _verify_ascending([v.sender for v in message.view_changes], validators.quorum, validators)
    for view_change in message.view_changes:
        if view_change.view != message.view:
            raise InvalidMessage("a NewView quotes a ViewChange for another view")
        if schedule.next_change_after(view_change.stable.height + 1) != end:
            raise InvalidMessage("a NewView quotes ViewChanges of two validator sets")
        verify_view_change_form(view_change, schedule)
    for height, vote in enumerate(message.pre_prepares, stable.height + 1):
        _verify_primary(vote, validators)
        if vote.view != message.view or vote.height != height or (end and height >= end):
            raise InvalidMessage("a NewView's proposals are out of order, view or reign")


def _new_view_checks(
    message: NewView, schedule: ValidatorSchedule, chain_id: bytes
) -> Iterable[SignatureCheck]:
    validators = schedule.at(stable_certificate(message.view_changes).height + 1)
    yield _check(message, validators, chain_id)
    for vote in message.pre_prepares:
        yield _check(vote, validators, chain_id)
    for view_change in message.view_changes:
        yield from _view_change_checks(view_change, schedule, chain_id)


def _view_change_checks(
    message: ViewChange, schedule: ValidatorSchedule, chain_id: bytes
) -> Iterable[SignatureCheck]:
    validators = schedule.at(message.stable.height + 1)
    yield _check(message, validators, chain_id)
    yield from seal_checks(message.stable, schedule.at(message.stable.height), chain_id)
    for certificate in message.prepared:
        vote = certificate.pre_prepare
        yield _check(vote, validators, chain_id)
        for sender, signature in certificate.prepares:
            prepare = Prepare(vote.view, vote.height, vote.digest, sender, signature)
            yield _check(prepare, validators, chain_id)


def _check(
    message: PrePrepare | Prepare | Commit | Seal | ViewChange | NewView,
    validators: ValidatorSet,
    chain_id: bytes,
) -> SignatureCheck:
    signed = Domain(chain_id, validators.digest).signed_bytes(message)
    return SignatureCheck(
        validators.validators[message.sender].public_key, signed, message.signature
    )


def _verify_primary(vote: PrePrepare, validators: ValidatorSet) -> None:
    _verify_bytes(vote.digest, 32)
    _verify_bytes(vote.signature, 64)
    if vote.sender != validators.primary(vote.view):
        raise InvalidMessage("a PrePrepare must come from the primary of its view")


def _verify_sender(sender: int, validators: ValidatorSet) -> None:
    if not 0 <= sender < validators.n:
        raise InvalidMessage(f"no validator has index {sender}")


def _verify_bytes(value: bytes, length: int) -> None:
    if len(value) != length:
        raise InvalidMessage(f"a digest or signature does not have {length} bytes")


def _verify_signers(
    entries: tuple[tuple[int, bytes], ...], count: int, validators: ValidatorSet
) -> None:
    _verify_ascending([sender for sender, _ in entries], count, validators)
    for _, signature in entries:
        _verify_bytes(signature, 64)


def _verify_ascending(senders: list[int], count: int, validators: ValidatorSet) -> None:
    if len(senders) != count:
        raise InvalidMessage(f"a certificate has {len(senders)} signers instead of {count}")
    if any(a >= b for a, b in pairwise(senders)):
        raise InvalidMessage("a certificate's signers are not distinct and ascending")
    for sender in senders:
        _verify_sender(sender, validators)
