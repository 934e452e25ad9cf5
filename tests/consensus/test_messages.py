"""Encodings, form and authentication of messages (requirements 2 to 5)."""

from dataclasses import fields, is_dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.authentication import (
    seal_checks,
    signatures_of,
    verify_certificate_form,
)
from consensus.errors import InvalidMessage
from consensus.messages import (
    HEIGHT_MAX,
    HEIGHTS_MAX,
    NULL_DIGEST,
    VALIDATORS_MAX,
    VIEW_MAX,
    Commit,
    Domain,
    NewView,
    Prepare,
    PreparedCertificate,
    PrePrepare,
    Seal,
    SealCertificate,
    ViewChange,
    decode,
    decode_prepared,
    encode,
    encode_prepared,
)
from consensus.validators import ValidatorSchedule
from consensus.wire import pack, unpack
from tests.consensus.cluster import (
    CHAIN,
    GENESIS_CERTIFICATE,
    digest,
    is_authentic,
    signed_by,
    validator_set,
)

SET = validator_set(range(4))
SCHEDULE = ValidatorSchedule(SET)
D = digest("batch")


def sign(message):
    return signed_by(SET, message)


def prepared(view=0, height=6, batch=D, senders=(1, 2)):
    primary = SET.primary(view)
    senders = [s for s in senders if s != primary]
    prepares = (sign(Prepare(view, height, batch, s)) for s in senders)
    vote = sign(PrePrepare(view, height, batch, primary))
    return PreparedCertificate(vote, tuple((p.sender, p.signature) for p in prepares))


def certificate(height=5, senders=(0, 1, 3)):
    header = digest("header")
    seals = tuple((s, sign(Seal(height, header, s)).signature) for s in senders)
    return SealCertificate(height, header, seals)


def view_change(sender=1, view=1, stable=None, carried=None):
    carried = (prepared(),) if carried is None else carried
    return sign(ViewChange(view, stable or certificate(), carried, sender))


def new_view():
    quorum = (view_change(0), view_change(1), view_change(3, stable=certificate(6), carried=()))
    votes = tuple(sign(PrePrepare(1, height, D, 1)) for height in (7, 8))
    return sign(NewView(1, quorum, votes, 1))


MESSAGES = [
    sign(PrePrepare(0, 1, D, 0)),
    sign(Prepare(2, 3, D, 1)),
    sign(Prepare(2, 3, NULL_DIGEST, 1)),
    sign(Commit(VIEW_MAX, HEIGHT_MAX, D, 3)),
    sign(Seal(9, D, 2)),
    certificate(),
    GENESIS_CERTIFICATE,
    view_change(),
    view_change(stable=GENESIS_CERTIFICATE, carried=()),
    new_view(),
]
NAMES = [f"{type(m).__name__}-{i}" for i, m in enumerate(MESSAGES)]

SIGNED = [m for m in MESSAGES if m != GENESIS_CERTIFICATE]  # nobody signs the genesis


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_decode_inverts_encode(message):
    assert decode(encode(message)) == message
    assert encode(decode(encode(message))) == encode(message)


def test_a_prepared_certificate_has_bytes_of_its_own():
    assert decode_prepared(encode_prepared(prepared())) == prepared()
    with pytest.raises(InvalidMessage):
        decode(encode_prepared(prepared()))


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_a_genuine_message_is_authentic(message):
    assert is_authentic(message, SCHEDULE)


@pytest.mark.parametrize("message", SIGNED)
def test_flipping_any_one_byte_is_refused(message):
    """Requirement 3, for every byte: of the envelope, of what it quotes, of each signature."""
    encoded = bytearray(encode(message))
    for position in range(len(encoded)):
        encoded[position] ^= 1 << position % 8
        try:
            survived = is_authentic(decode(bytes(encoded)), SCHEDULE)
        except InvalidMessage:
            survived = False
        encoded[position] ^= 1 << position % 8
        assert not survived, position


@given(st.binary(max_size=400))
def test_random_bytes_give_only_the_documented_error(data):
    try:
        message = decode(data)
    except InvalidMessage:
        return
    assert encode(message) == data


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**60)
    | st.binary(max_size=70)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=6).map(tuple),
    max_leaves=20,
)


@given(plain)
def test_any_canonical_value_gives_a_message_or_the_documented_error(value):
    try:
        message = decode(pack(value))
    except InvalidMessage:
        return
    assert encode(message) == pack(value)


@given(st.sampled_from(MESSAGES), st.data())
def test_mutated_messages_give_only_the_documented_error(message, data):
    value = _mutated(unpack(encode(message)), data)
    try:
        mutant = decode(pack(value))
        signatures_of(mutant, SCHEDULE, CHAIN)
    except InvalidMessage:
        return
    assert encode(mutant) == pack(value)


def _mutated(value, data):
    if isinstance(value, tuple) and value and data.draw(st.integers(0, 5)):
        i = data.draw(st.integers(0, len(value) - 1))
        return (*value[:i], _mutated(value[i], data), *value[i + 1 :])
    return data.draw(plain)


@given(st.sampled_from(MESSAGES), st.integers(0, 3000))
def test_truncated_and_extended_messages_are_refused(message, cut):
    encoded = encode(message)
    for data in (encoded[: cut % len(encoded)], encoded + b"\x00", encoded + encoded):
        with pytest.raises(InvalidMessage):
            decode(data)


SIGNATURE = bytes(64)


@pytest.mark.parametrize(
    "value",
    [
        (),
        7,
        (0, 0, 1, D, 0, SIGNATURE),
        (9, 0, 1, D, 0, SIGNATURE),
        (True, 0, 1, D, 0, SIGNATURE),
        (2, 0, 1, D, 0),
        (2, 0, 1, D, 0, SIGNATURE, 0),
        (2, -1, 1, D, 0, SIGNATURE),
        (2, VIEW_MAX + 1, 1, D, 0, SIGNATURE),
        (2, False, 1, D, 0, SIGNATURE),
        (2, 0, 0, D, 0, SIGNATURE),
        (2, 0, HEIGHT_MAX + 1, D, 0, SIGNATURE),
        (2, 0, 1, D[:31], 0, SIGNATURE),
        (2, 0, 1, D.hex()[:32], 0, SIGNATURE),
        (2, 0, 1, D, -1, SIGNATURE),
        (2, 0, 1, D, VALIDATORS_MAX, SIGNATURE),
        (2, 0, 1, D, 0, SIGNATURE[:63]),
        (2, 0, 1, D, 0, b""),
        (4, 0, D, 0, SIGNATURE),
        (5, 0, (0, D, ()), (), 0, SIGNATURE),
        (6, 0, (), (), 0, SIGNATURE),
        (7, 1, D, ((0, SIGNATURE),) * (VALIDATORS_MAX + 1)),
        (7, 1, D, ((0, SIGNATURE, 1),)),
        (7, 1, D, None),
    ],
)
def test_wrong_types_ranges_lengths_and_counts_are_refused(value):
    with pytest.raises(InvalidMessage):
        decode(pack(value))


@pytest.mark.parametrize("message", SIGNED)
def test_a_vote_of_another_chain_or_set_is_refused(message):
    """Requirement 4."""
    assert not is_authentic(message, SCHEDULE, digest("another chain"))
    swapped = ValidatorSchedule(validator_set([0, 1, 2, 9]))
    assert not is_authentic(message, swapped)


def test_a_vote_of_another_phase_or_version_is_refused():
    """Requirement 4."""
    prepare = sign(Prepare(0, 1, D, 1))
    assert not is_authentic(Commit(0, 1, D, 1, prepare.signature), SCHEDULE)
    plain_vote = Prepare(0, 1, D, 1)
    ours, other = Domain(CHAIN, SET.digest), Domain(CHAIN, SET.digest, version=2)
    assert ours.signed_bytes(plain_vote) != other.signed_bytes(plain_vote)


def test_signed_bytes_differ_between_kinds_and_fields():
    domain = Domain(CHAIN, SET.digest)
    votes = [kind(1, 2, D, 3) for kind in (PrePrepare, Prepare, Commit)]
    votes += [Prepare(2, 2, D, 3), Prepare(1, 3, D, 3), Prepare(1, 2, NULL_DIGEST, 3)]
    votes += [Prepare(1, 2, D, 2), Seal(2, D, 3)]
    assert len({domain.signed_bytes(vote) for vote in votes}) == len(votes)


def test_each_nested_signature_is_listed_once():
    message = new_view()
    checks = signatures_of(message, SCHEDULE, CHAIN)
    assert len(checks) == len(set(checks))
    # NewView, 2 proposals, 3 ViewChanges, a prepared certificate (1+2) and two of 3 seals.
    assert len(checks) == 1 + 2 + 3 + 3 + 3 + 3
    listed = {c.signature for c in checks}
    assert set(_signatures_in(message)) == listed


def _signatures_in(value):
    if isinstance(value, bytes):
        if len(value) == 64:
            yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _signatures_in(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _signatures_in(getattr(value, field.name))


def bad(message, **changes):
    return replace(message, **changes)


SHORT = certificate(senders=(0, 1))
BAD_FORMS = {
    "unknown sender": Commit(0, 1, D, 4, SIGNATURE),
    "pre-prepare not from the primary": PrePrepare(1, 1, D, 0, SIGNATURE),
    "pre-prepare of the null block": PrePrepare(0, 1, NULL_DIGEST, 0, SIGNATURE),
    "prepare from the primary": Prepare(2, 1, D, 2, SIGNATURE),
    "seal from nobody": Seal(1, D, 4, SIGNATURE),
    "too few seals": SHORT,
    "too many seals": certificate(senders=(0, 1, 2, 3)),
    "a seal twice": certificate(senders=(0, 1, 1)),
    "seals out of order": certificate(senders=(0, 3, 1)),
    "seals for the genesis": bad(GENESIS_CERTIFICATE, seals=certificate().seals),
    "too few prepares": view_change(carried=(prepared(senders=(1,)),)),
    "prepares of the primary": view_change(
        carried=(
            PreparedCertificate(prepared().pre_prepare, ((0, SIGNATURE), prepared().prepares[0])),
        )
    ),
    "prepared at the stable height": view_change(carried=(prepared(height=5),)),
    "prepared beyond any window": view_change(carried=(prepared(height=5 + HEIGHTS_MAX + 1),)),
    "prepared out of order": view_change(carried=(prepared(height=7), prepared(height=6))),
    "prepared twice": view_change(carried=(prepared(), prepared())),
    "prepared in the view asked for": view_change(carried=(prepared(view=1, senders=(0, 2)),)),
    "prepared by the wrong primary": view_change(
        carried=(bad(prepared(), pre_prepare=bad(prepared().pre_prepare, sender=1)),)
    ),
    "stable without quorum": view_change(stable=SHORT),
    "new view not from the primary": bad(new_view(), sender=0),
    "too few view changes": bad(new_view(), view_changes=new_view().view_changes[:2]),
    "no view changes": bad(new_view(), view_changes=()),
    "a view change twice": bad(new_view(), view_changes=(view_change(0),) * 3),
    "a view change for another view": bad(
        new_view(), view_changes=(view_change(0), view_change(1), view_change(2, view=2))
    ),
    "a gap in the proposals": bad(new_view(), pre_prepares=new_view().pre_prepares[1:]),
    "proposals of another view": bad(
        new_view(), pre_prepares=(sign(PrePrepare(5, 7, D, 1)), sign(PrePrepare(5, 8, D, 1)))
    ),
    "proposals of another primary": bad(new_view(), pre_prepares=(sign(PrePrepare(1, 7, D, 2)),)),
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_a_wrong_form_is_refused_before_any_signature(name):
    """Requirements 2, 5 and 13."""
    with pytest.raises(InvalidMessage):
        signatures_of(BAD_FORMS[name], SCHEDULE, CHAIN)


def test_a_view_change_quotes_no_more_than_a_window_above_its_stable_height():
    """What it may quote an honest primary has to send on to everybody."""
    highest = view_change(carried=(prepared(height=5 + HEIGHTS_MAX),))
    assert signatures_of(highest, SCHEDULE, CHAIN)
    with pytest.raises(InvalidMessage, match="beyond any window"):
        signatures_of(BAD_FORMS["prepared beyond any window"], SCHEDULE, CHAIN)
    with pytest.raises(InvalidMessage):
        decode(encode(view_change(carried=tuple(prepared(height=h) for h in range(6, 72)))))


def test_a_view_change_or_new_view_lies_in_one_reign():
    schedule = ValidatorSchedule(SET)
    schedule.plan(7, validator_set([0, 1, 2, 9]))
    signatures_of(view_change(), schedule, CHAIN)
    with pytest.raises(InvalidMessage, match="reign"):
        signatures_of(view_change(carried=(prepared(height=7),)), schedule, CHAIN)
    with pytest.raises(InvalidMessage, match="two validator sets"):
        signatures_of(new_view(), schedule, CHAIN)


def test_a_block_certificate_is_checked_with_the_set_of_its_height():
    verify_certificate_form(certificate(), SET)
    assert len(seal_checks(certificate(), SET, CHAIN)) == SET.quorum
    assert seal_checks(GENESIS_CERTIFICATE, SET, CHAIN) == []
    with pytest.raises(InvalidMessage):
        verify_certificate_form(certificate(), validator_set(range(7)))
