"""Public keys in operations, and the proof that whoever brings one holds its private half.

The new key signs POSSESSION_TAG + chain id + institution + public key (Ed25519, RFC 8032). Chain id
and key have fixed lengths, so no two statements are one byte string. Without the proof somebody
could register the key of another, and what that one signs would seem to be said here, too.
"""

from consensus.wire import Value
from node.ledger.contracts import forms
from node.ledger.errors import Rejected
from node.ledger.transaction import INSTITUTION
from node.ledger.verifier import is_sound_key, is_valid

POSSESSION_TAG = b"radledger/possession/1"
SIGNATURE_BYTES = 64

REJECTIONS = {
    "possession_unproven": "the signature is not that of the new key over this chain, the "
    "institution and the key",
}


def possession_message(chain_id: bytes, institution: str, public_key: bytes) -> bytes:
    """Return what a new key signs to become one of `institution`'s."""
    return POSSESSION_TAG + chain_id + institution.encode() + public_key


def require_possession(
    chain_id: bytes, institution: str, public_key: bytes, signature: bytes
) -> None:
    """Raise `Rejected("possession_unproven")` unless `signature` proves possession of the key."""
    if not is_valid(public_key, possession_message(chain_id, institution, public_key), signature):
        raise Rejected("possession_unproven")


def public_key(value: Value, argument: str) -> bytes:
    """Return `value` if it is an Ed25519 public key that can be used."""
    if type(value) is not bytes or not is_sound_key(value):
        forms.refuse(argument, "the 32 bytes of a usable Ed25519 public key")
    return value


def signature(value: Value, argument: str) -> bytes:
    """Return `value` if it has the length of an Ed25519 signature."""
    if type(value) is not bytes or len(value) != SIGNATURE_BYTES:
        forms.refuse(argument, f"a signature of {SIGNATURE_BYTES} bytes")
    return value


def institution_name(value: Value, argument: str) -> str:
    """Return `value` if it has the form of an institution's name."""
    if type(value) is not str or INSTITUTION.fullmatch(value) is None:
        forms.refuse(argument, f"an institution's name: {INSTITUTION.pattern}")
    return value
