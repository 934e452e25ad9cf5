"""Study keys on their way from one hospital to another: HPKE (RFC 9180), base mode.

Two ciphersuites, both with HKDF-SHA256 and AES-256-GCM, named as `registry.KEM_BYTES` names them:

    x25519-mlkem768   MLKEM768-X25519, which is X-Wing (KEM 0x647a): images stay sensitive for
                      longer than elliptic curves may last
    x25519            DHKEM(X25519, HKDF-SHA256) (KEM 0x0020), for those that need the RFC alone

A sealed message is enc || ct, as the RFC's single-shot API has it: 1,168 or 80 bytes for a 32-byte
key. The package takes no associated data, so everything that a message belongs to is in `info`:
another purpose, chain, request, study, version, root, institution or key, and it does not open.

Base mode does not authenticate who sealed. The ledger does: the digest of what was sealed stands
there, delivered by the custodian.
"""

import hashlib
import hmac
import secrets
from dataclasses import astuple, dataclass
from typing import TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from consensus.wire import pack
from node.ledger.contracts.registry import KEM_BYTES, SEALED_BYTES_MAX, challenge_digest

X25519 = "x25519"
HYBRID = "x25519-mlkem768"
STUDY_KEY_BYTES = 32
ANSWER_BYTES = 32

# The ML-KEM seed d || z (FIPS 203 §7.1), then the X25519 key.
SECRET_BYTES = {X25519: 32, HYBRID: 96}
_MLKEM_SEED_BYTES, _MLKEM_PUBLIC_BYTES = 64, 1_184
_SUITES = {
    X25519: Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
    HYBRID: Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
}
# Two purposes, two tags: nobody can present a wrapped study key as a challenge and have its owner
# publish the plaintext as the answer.
_WRAP_TAG = "radledger/study-key/1"
_CHALLENGE_TAG = "radledger/key-challenge/1"

_Public: TypeAlias = X25519PublicKey | MLKEM768X25519PublicKey
_Private: TypeAlias = X25519PrivateKey | MLKEM768X25519PrivateKey


class CannotOpen(ValueError):
    """What was sealed does not open: another key, another context, or damaged bytes."""


@dataclass(frozen=True, slots=True)
class WrapContext:
    """What a wrapped study key is for; both sides know all of it from the ledger."""

    chain_id: bytes  # 32 bytes
    request_id: bytes  # 16 bytes
    study_id: bytes  # 16 bytes
    version: int
    root: bytes  # 32 bytes, of that version's manifest
    custodian: str
    institution: str  # that asked
    key_id: bytes  # 16 bytes, of its encryption key


@dataclass(frozen=True, slots=True)
class Challenge:
    """What `registry.key_challenge` says of the answer that it wants."""

    sealed: bytes
    digest: bytes  # 32 bytes


def generate(kem: str) -> tuple[bytes, bytes]:
    """Return a new secret (`SECRET_BYTES`) and its public key (`registry.KEM_BYTES`)."""
    secret = X25519PrivateKey.generate().private_bytes_raw()
    if _known(kem) == HYBRID:
        secret = MLKEM768PrivateKey.generate().private_bytes_raw() + secret
    return secret, public_of(kem, secret)


def public_of(kem: str, secret: bytes) -> bytes:
    """Return the public key of `secret`. Raises `ValueError` for a secret of another length."""
    if len(secret) != SECRET_BYTES[_known(kem)]:
        raise ValueError(f"a secret for {kem} has {SECRET_BYTES[kem]} bytes")
    curve = X25519PrivateKey.from_private_bytes(secret[-32:]).public_key().public_bytes_raw()
    if kem == X25519:
        return curve
    lattice = MLKEM768PrivateKey.from_seed_bytes(secret[:_MLKEM_SEED_BYTES])
    return lattice.public_key().public_bytes_raw() + curve


def seal(kem: str, public_key: bytes, plain: bytes, info: bytes) -> bytes:
    """Return enc || ct of `plain` for the holder of `public_key`; no two calls give the same.

    Raises `ValueError` for a key that is none of this kind, such as a point of small order.
    """
    return _SUITES[_known(kem)].encrypt(plain, _public(kem, public_key), info)


def open_sealed(kem: str, secret: bytes, sealed: bytes, info: bytes) -> bytes:
    """Return what was sealed. Raises `CannotOpen`."""
    try:
        return _SUITES[_known(kem)].decrypt(sealed, _private(kem, secret), info)
    except (InvalidTag, ValueError) as error:
        raise CannotOpen("it was sealed to another key or for another purpose") from error


def wrap_study_key(context: WrapContext, kem: str, public_key: bytes, study_key: bytes) -> bytes:
    """Return the study key, sealed for the institution that asked. Raises `ValueError`."""
    if len(study_key) != STUDY_KEY_BYTES:
        raise ValueError(f"a study key has {STUDY_KEY_BYTES} bytes")
    return seal(kem, public_key, study_key, _wrap_info(context))


def unwrap_study_key(context: WrapContext, kem: str, secret: bytes, wrapped: bytes) -> bytes:
    """Return the 32-byte study key. Raises `CannotOpen`, also when one part of the context differs.

    The caller has compared `wrapped_digest(wrapped)` with the ledger before.
    """
    study_key = open_sealed(kem, secret, wrapped, _wrap_info(context))
    if len(study_key) != STUDY_KEY_BYTES:
        raise CannotOpen(f"what was sealed is no study key of {STUDY_KEY_BYTES} bytes")
    return study_key


def wrapped_digest(wrapped: bytes) -> bytes:
    """Return what `access.deliver` states of a wrapped key: SHA-256 of enc || ct."""
    return hashlib.sha256(wrapped).digest()


def challenge(
    chain_id: bytes, institution: str, key_id: bytes, kem: str, public_key: bytes
) -> Challenge:
    """Return a challenge of another institution's published key; nobody keeps the answer."""
    answer_ = secrets.token_bytes(ANSWER_BYTES)
    info = _challenge_info(chain_id, institution, key_id)
    return Challenge(seal(kem, public_key, answer_, info), challenge_digest(answer_))


def answer(
    chain_id: bytes, institution: str, key_id: bytes, kem: str, secret: bytes, asked: Challenge
) -> bytes:
    """Return the 32 bytes for `registry.key_confirm`.

    Raises `CannotOpen` also when what opens is not what the digest says: the contract would refuse
    it, and nothing is published that nobody asked for.
    """
    if len(asked.sealed) > SEALED_BYTES_MAX:
        raise CannotOpen(f"a challenge has at most {SEALED_BYTES_MAX} bytes")
    plain = open_sealed(kem, secret, asked.sealed, _challenge_info(chain_id, institution, key_id))
    right = hmac.compare_digest(challenge_digest(plain), asked.digest)
    if len(plain) != ANSWER_BYTES or not right:
        raise CannotOpen("what was sealed is not what the challenge asks for")
    return plain


def _wrap_info(context: WrapContext) -> bytes:
    return pack((_WRAP_TAG, *astuple(context)))


def _challenge_info(chain_id: bytes, institution: str, key_id: bytes) -> bytes:
    return pack((_CHALLENGE_TAG, chain_id, institution, key_id))


def _known(kem: str) -> str:
    if kem not in _SUITES:
        raise ValueError(f"an encryption key is one of {', '.join(sorted(_SUITES))}")
    return kem


def _public(kem: str, public_key: bytes) -> _Public:
    if len(public_key) != KEM_BYTES[kem]:
        raise ValueError(f"a public key for {kem} has {KEM_BYTES[kem]} bytes")
    curve = X25519PublicKey.from_public_bytes(public_key[-32:])
    if kem == X25519:
        return curve
    lattice = MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM_PUBLIC_BYTES])
    return MLKEM768X25519PublicKey(lattice, curve)


def _private(kem: str, secret: bytes) -> _Private:
    if len(secret) != SECRET_BYTES[kem]:
        raise ValueError(f"a secret for {kem} has {SECRET_BYTES[kem]} bytes")
    curve = X25519PrivateKey.from_private_bytes(secret[-32:])
    if kem == X25519:
        return curve
    lattice = MLKEM768PrivateKey.from_seed_bytes(secret[:_MLKEM_SEED_BYTES])
    return MLKEM768X25519PrivateKey(lattice, curve)
