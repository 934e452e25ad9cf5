"""The form of transactions: one value, one byte string, and a clear word on everything else."""

import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.wire import pack, unpack
from node.ledger.errors import PERMANENT, Refused
from node.ledger.limits import HEIGHT_MAX, Limits
from node.ledger.merkle import leaf_hash
from node.ledger.transaction import (
    TRANSACTION_TAG,
    Operation,
    decode_transaction,
    sign_transaction,
    signed_bytes,
)
from tests.vectors import make

LIMITS = Limits()
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
CHAIN = hashlib.sha256(b"chain").digest()
FIELDS = (
    1,
    CHAIN,
    "st-anna",
    PUBLIC,
    100,
    bytes(16),
    (("study.register", (b"id", 1)), ("study.retire", ())),
    bytes(64),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=9)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)
OPERATIONS = st.builds(
    Operation, st.from_regex(r"[a-z]{1,9}\.[a-z_]{1,9}", fullmatch=True), st.tuples(VALUES, VALUES)
)


def changed(position, value):
    return pack((*FIELDS[:position], value, *FIELDS[position + 1 :]))


def refusal(raw, **options):
    with pytest.raises(Refused) as refused:
        decode_transaction(raw, options.pop("limits", LIMITS), **options)
    assert refused.value.code in PERMANENT
    assert refused.value.permanent
    return refused.value.code, refused.value.sentence


def sign(**changes):
    common = {
        "chain_id": CHAIN,
        "institution": "st-anna",
        "valid_until": 100,
        "operations": [Operation("study.register", (1,))],
    }
    return sign_transaction(KEY.sign, PUBLIC, **(common | changes))


@settings(deadline=None)
@given(st.lists(OPERATIONS, min_size=1, max_size=4), st.integers(1, HEIGHT_MAX))
def test_decode_inverts_sign(operations, valid_until):
    transaction = sign(operations=operations, valid_until=valid_until)
    again = decode_transaction(transaction.raw, LIMITS)
    assert again == transaction
    assert again.operations == tuple(operations)
    assert (again.chain_id, again.institution, again.member_key) == (CHAIN, "st-anna", PUBLIC)
    assert again.valid_until == valid_until


@settings(deadline=None)
@given(st.lists(OPERATIONS, min_size=1, max_size=4))
def test_the_names_are_those_of_the_definition(operations):
    transaction = sign(operations=operations)
    signed = TRANSACTION_TAG + pack(unpack(transaction.raw)[:-1])
    assert transaction.signed == signed_bytes(transaction.raw) == signed
    assert transaction.id == hashlib.sha256(signed).digest()
    assert transaction.digest == leaf_hash(transaction.raw)
    KEY.public_key().verify(transaction.signature, signed)


def test_equal_content_gets_distinct_ids():
    assert sign().id != sign().id
    assert sign(salt=bytes(16)) == sign(salt=bytes(16))


def test_the_id_does_not_depend_on_the_signature_but_the_digest_does():
    first = decode_transaction(pack(FIELDS), LIMITS)
    second = decode_transaction(changed(7, bytes(63) + b"\x01"), LIMITS)
    assert first.id == second.id
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("position", "value", "word"),
    [
        (0, True, "version"),
        (0, "1", "version"),
        (1, bytes(31), "chain id"),
        (1, "x" * 32, "chain id"),
        (2, "", "institution"),
        (2, "St-Anna", "institution"),
        (2, "-anna", "institution"),
        (2, "a" * 33, "institution"),
        (2, "anna\n", "institution"),
        (2, "änna", "institution"),
        (2, b"anna", "institution"),
        (3, bytes(33), "member key"),
        (4, 0, "valid until"),
        (4, -1, "valid until"),
        (4, HEIGHT_MAX + 1, "valid until"),
        (4, True, "valid until"),
        (4, None, "valid until"),
        (5, bytes(15), "salt"),
        (6, (), "operations"),
        (6, None, "operations"),
        (6, (("study.register", ()), ("study.register",)), "operation 1"),
        (6, (("study.register", ()), 7), "operation 1"),
        (6, (("study", ()),), "operation 0"),
        (6, (("Study.register", ()),), "operation 0"),
        (6, (("study.register\n", ()),), "operation 0"),
        (6, (("s" * 33 + ".r", ()),), "operation 0"),
        (6, ((b"study.register", ()),), "operation 0"),
        (6, (("study.register", b""),), "operation 0"),
        (7, bytes(65), "signature"),
        (7, None, "signature"),
    ],
)
def test_a_wrong_field_is_named(position, value, word):
    code, sentence = refusal(changed(position, value))
    assert code == "malformed"
    assert word in sentence


@pytest.mark.parametrize("fields", [FIELDS[:-1], (*FIELDS, 0), (1,), (), 1, None, b"", "x"])
def test_another_shape_is_refused(fields):
    assert refusal(pack(fields))[0] == "malformed"


def test_another_version_is_refused_with_both_versions_named():
    for raw in (changed(0, 2), pack((2, "a shape of its own"))):
        code, sentence = refusal(raw)
        assert code == "version_unknown"
        assert "version 2" in sentence
        assert "version 1" in sentence


def test_another_chain_is_refused():
    other = hashlib.sha256(b"other").digest()
    code, sentence = refusal(pack(FIELDS), chain_id=other)
    assert code == "wrong_chain"
    assert CHAIN.hex()[:8] in sentence
    assert other.hex()[:8] in sentence
    assert decode_transaction(pack(FIELDS), LIMITS, chain_id=CHAIN).chain_id == CHAIN


def test_size_and_number_of_operations_are_bounded():
    raw = pack(FIELDS)
    assert decode_transaction(raw, Limits(transaction_bytes_max=len(raw)))
    assert refusal(raw, limits=Limits(transaction_bytes_max=len(raw) - 1))[0] == "too_large"
    assert decode_transaction(raw, Limits(operations_max=2))
    assert refusal(raw, limits=Limits(operations_max=1))[0] == "too_large"
    most = sign(operations=[Operation("study.retire", ())] * LIMITS.operations_max)
    assert len(most.operations) == LIMITS.operations_max
    with pytest.raises(Refused, match="too_large"):
        sign(operations=[Operation("study.retire", ())] * (LIMITS.operations_max + 1))


@pytest.mark.parametrize(
    "argument",
    [
        b"\xca\x00\x00\x00\x00",  # float
        b"\x80",  # map
        b"\xc7\x00\x05",  # extension
        b"\xcd\x00\x01",  # integer in more bytes than it needs
        b"\xd9\x01a",  # text in more bytes than it needs
        b"\xa1\xff",  # not UTF-8
        b"\xc1",  # not msgpack
        b"\x91" * 700 + b"\xc0",  # nested beyond reason
        b"\x91" * 3000 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",  # announces four billion entries
        b"\xc6\xff\xff\xff\xff",  # announces four gigabytes
    ],
)
def test_what_has_a_second_encoding_is_refused(argument):
    marker = pack("marker")
    raw = changed(6, (("study.register", ("marker",)),)).replace(marker, argument)
    assert refusal(raw)[0] == "malformed"


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data):
    refusal(data)


@settings(deadline=None)
@given(st.data())
def test_truncated_and_extended_bytes_are_refused(data):
    raw = pack(FIELDS)
    assert refusal(raw[: data.draw(st.integers(0, len(raw) - 1))])[0] == "malformed"
    assert refusal(raw + data.draw(st.binary(min_size=1, max_size=9)))[0] == "malformed"


@settings(deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused_or_changes_digest(data):
    raw = bytearray(pack(FIELDS))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        transaction = decode_transaction(bytes(raw), LIMITS)
    except Refused as refused:
        assert refused.permanent  # noqa: PT017 - either way is right, but only this error
    else:
        assert transaction.digest != decode_transaction(pack(FIELDS), LIMITS).digest
        assert pack(unpack(transaction.raw)) == transaction.raw


@settings(deadline=None)
@given(st.tuples(*[VALUES] * 8) | VALUES)
def test_any_value_gets_a_transaction_or_a_refusal(value):
    try:
        decode_transaction(pack(value), LIMITS)
    except Refused as refused:
        assert refused.code in PERMANENT  # noqa: PT017


def test_the_golden_vectors_hold():
    golden = json.loads(make.PATH.read_text())["transactions"]
    assert make.document()["transactions"] == golden
    for row, transaction in zip(golden, make.transactions(), strict=True):
        assert decode_transaction(bytes.fromhex(row["encoding"]), LIMITS) == transaction


def test_refusals_show_no_content():
    secret = "MUELLER^HANS"
    for position in range(8):
        code, sentence = refusal(changed(position, secret))
        assert secret not in code + sentence
