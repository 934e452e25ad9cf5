"""HPKE against published vectors, and what wrapped study keys and challenges are bound to."""

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from cryptography.hazmat.bindings._rust import openssl
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite
from hypothesis import given
from hypothesis import strategies as st

from node.exchange import hpke
from node.exchange.hpke import CannotOpen, Challenge, WrapContext
from node.ledger.contracts.registry import KEM_BYTES, SEALED_BYTES_MAX, challenge_digest

VECTORS = json.loads((Path(__file__).parent / "hpke_vectors.json").read_text())
# Numbers of RFC 9180 §7 and of draft-ietf-hpke-pq.
KEMS = {0x0020: KEM.X25519, 0x647A: KEM.MLKEM768_X25519}
KDFS = {0x0001: KDF.HKDF_SHA256, 0x0011: KDF.SHAKE256}
AEADS = {1: AEAD.AES_128_GCM, 2: AEAD.AES_256_GCM, 3: AEAD.CHACHA20_POLY1305}
CONTEXT = WrapContext(
    b"\xc1" * 32, b"\xa1" * 16, b"\xb1" * 16, 3, b"\xd1" * 32, "ukaachen", "charite", b"\xe1" * 16
)
KEY = bytes(range(32))
BOTH = pytest.mark.parametrize("kem", [hpke.X25519, hpke.HYBRID])
PAIRS = {kem: hpke.generate(kem) for kem in (hpke.X25519, hpke.HYBRID)}
LENGTHS = {hpke.X25519: 32 + 32 + 16, hpke.HYBRID: 1_120 + 32 + 16}


def open_vector(vector, private):
    """The package's call with associated data, which the vectors have and its API has not."""
    ids = (vector["kem_id"], vector["kdf_id"], vector["aead_id"])
    suite = Suite(KEMS[ids[0]], KDFS[ids[1]], AEADS[ids[2]])
    enc, ct, info, aad = (bytes.fromhex(vector[name]) for name in ("enc", "ct", "info", "aad"))
    return openssl.hpke._decrypt_with_aad(suite, enc + ct, private, info, aad)


@pytest.mark.parametrize("vector", VECTORS["rfc9180"], ids=lambda v: f"aead{v['aead_id']}")
def test_rfc_9180_vectors_open(vector):
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["skRm"]))
    assert open_vector(vector, private) == bytes.fromhex(vector["pt"])
    assert hpke.public_of(hpke.X25519, bytes.fromhex(vector["skRm"])).hex() == vector["pkRm"]


@pytest.mark.parametrize("vector", VECTORS["pq"], ids=lambda v: f"kdf{v['kdf_id']}")
def test_hybrid_vectors_open(vector):
    # draft-connolly-cfrg-xwing-kem: a seed of 32 bytes gives d || z || X25519 by SHAKE256.
    secret = hashlib.shake_256(bytes.fromhex(vector["skRm"])).digest(96)
    private = MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(secret[:64]),
        X25519PrivateKey.from_private_bytes(secret[64:]),
    )
    assert open_vector(vector, private) == bytes.fromhex(vector["pt"])
    assert hpke.public_of(hpke.HYBRID, secret).hex() == vector["pkRm"]


def test_the_suites_are_those_that_the_module_names():
    named = next(v for v in VECTORS["rfc9180"] if v["aead_id"] == 2)
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(named["skRm"]))
    suite = hpke._SUITES[hpke.X25519]
    sealed, info = bytes.fromhex(named["enc"] + named["ct"]), bytes.fromhex(named["info"])
    aad = bytes.fromhex(named["aad"])
    plain = openssl.hpke._decrypt_with_aad(suite, sealed, private, info, aad)
    assert plain == bytes.fromhex(named["pt"])


@BOTH
def test_a_study_key_comes_out_as_it_went_in(kem):
    secret, public = PAIRS[kem]
    assert (len(secret), len(public)) == (hpke.SECRET_BYTES[kem], KEM_BYTES[kem])
    wrapped = hpke.wrap_study_key(CONTEXT, kem, public, KEY)
    assert len(wrapped) == LENGTHS[kem]
    assert hpke.unwrap_study_key(CONTEXT, kem, secret, wrapped) == KEY
    assert hpke.wrapped_digest(wrapped) == hashlib.sha256(wrapped).digest()
    assert hpke.wrap_study_key(CONTEXT, kem, public, KEY) != wrapped


@BOTH
@pytest.mark.parametrize("name", [field.name for field in fields(WrapContext)])
def test_a_wrapped_key_opens_in_no_other_context(kem, name):
    secret, public = PAIRS[kem]
    wrapped = hpke.wrap_study_key(CONTEXT, kem, public, KEY)
    value = getattr(CONTEXT, name)
    other = {bytes: lambda: b"\x00" + value[1:], int: lambda: value + 1, str: lambda: value + "x"}
    with pytest.raises(CannotOpen):
        hpke.unwrap_study_key(
            replace(CONTEXT, **{name: other[type(value)]()}), kem, secret, wrapped
        )


@BOTH
def test_a_wrapped_key_opens_for_nobody_else(kem):
    wrapped = hpke.wrap_study_key(CONTEXT, kem, PAIRS[kem][1], KEY)
    stranger, _ = hpke.generate(kem)
    with pytest.raises(CannotOpen):
        hpke.unwrap_study_key(CONTEXT, kem, stranger, wrapped)


@BOTH
@given(data=st.data())
def test_whatever_is_damaged_does_not_open(kem, data):
    secret, public = PAIRS[kem]
    wrapped = hpke.wrap_study_key(CONTEXT, kem, public, KEY)
    at = data.draw(st.integers(0, len(wrapped) - 1))
    flipped = bytearray(wrapped)
    flipped[at] ^= data.draw(st.integers(1, 255))
    # X25519 ignores the top bit of its 32nd byte (RFC 7748 §5); HPKE hashes enc, so it counts.
    for damaged in (bytes(flipped), wrapped[:at], data.draw(st.binary(max_size=2_000))):
        with pytest.raises(CannotOpen):
            hpke.unwrap_study_key(CONTEXT, kem, secret, damaged)


def test_what_is_no_study_key_is_neither_wrapped_nor_unwrapped():
    secret, public = PAIRS[hpke.HYBRID]
    with pytest.raises(ValueError, match="32 bytes"):
        hpke.wrap_study_key(CONTEXT, hpke.HYBRID, public, KEY[:-1])
    short = hpke.seal(hpke.HYBRID, public, KEY[:-1], hpke._wrap_info(CONTEXT))
    with pytest.raises(CannotOpen, match="no study key"):
        hpke.unwrap_study_key(CONTEXT, hpke.HYBRID, secret, short)


@pytest.mark.parametrize(
    ("kem", "public"),
    [
        (hpke.X25519, bytes(32)),  # a point of small order
        (hpke.X25519, b"\x01" + bytes(31)),
        (hpke.X25519, bytes(31)),
        (hpke.HYBRID, b"\xff" * 1_216),  # coefficients outside of the field (FIPS 203 §7.2)
        (hpke.HYBRID, bytes(1_215)),
        ("rsa", bytes(256)),
    ],
)
def test_nothing_is_sealed_to_what_is_no_key(kem, public):
    with pytest.raises(ValueError, match=r"."):
        hpke.seal(kem, public, KEY, b"")


@BOTH
def test_a_challenge_is_answered_by_the_key_alone(kem):
    secret, public = PAIRS[kem]
    asked = hpke.challenge(CONTEXT.chain_id, "charite", CONTEXT.key_id, kem, public)
    assert 32 < len(asked.sealed) <= SEALED_BYTES_MAX
    answer = hpke.answer(CONTEXT.chain_id, "charite", CONTEXT.key_id, kem, secret, asked)
    assert challenge_digest(answer) == asked.digest
    others = [
        (b"\x00" * 32, "charite", CONTEXT.key_id, secret, asked),
        (CONTEXT.chain_id, "ukaachen", CONTEXT.key_id, secret, asked),
        (CONTEXT.chain_id, "charite", b"\x00" * 16, secret, asked),
        (CONTEXT.chain_id, "charite", CONTEXT.key_id, hpke.generate(kem)[0], asked),
        (CONTEXT.chain_id, "charite", CONTEXT.key_id, secret, Challenge(asked.sealed, bytes(32))),
        (CONTEXT.chain_id, "charite", CONTEXT.key_id, secret, Challenge(bytes(5_000), bytes(32))),
    ]
    for chain_id, institution, key_id, other, challenge in others:
        with pytest.raises(CannotOpen):
            hpke.answer(chain_id, institution, key_id, kem, other, challenge)


def test_nobody_gets_a_study_key_published_by_calling_it_a_challenge():
    secret, public = PAIRS[hpke.HYBRID]
    wrapped = hpke.wrap_study_key(CONTEXT, hpke.HYBRID, public, KEY)
    trap = Challenge(wrapped, challenge_digest(KEY))
    with pytest.raises(CannotOpen):
        hpke.answer(CONTEXT.chain_id, "charite", CONTEXT.key_id, hpke.HYBRID, secret, trap)
