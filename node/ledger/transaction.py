"""Signed transactions: canonical bytes, their names, and the check of their form.

    pack((version, chain_id, institution, member_key, valid_until, salt,
          ((name, (argument, ...)), ...), signature))

The signature covers TRANSACTION_TAG and the packed fields before it, and the signing key is among
them: checking a signature needs no state. A transaction has two names:

- `id`, SHA-256 of the signed bytes: what was signed. The state remembers it against replay.
- `digest`, the RFC 6962 leaf hash of the whole encoding: these very bytes, signature included. It
  names the body in a batch and is its leaf in the transaction root.
"""

import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from consensus.wire import NotCanonical, Value, pack, unpack
from node.ledger.errors import Refused
from node.ledger.limits import HEIGHT_MAX, Limits

TRANSACTION_VERSION = 1
TRANSACTION_TAG = b"radledger/transaction/1"
SALT_BYTES = 16

# Rules that all members voted for are shown as "consortium/name", so nobody is called that.
INSTITUTION = re.compile(r"(?!consortium\Z)[a-z0-9][a-z0-9-]{0,31}")
OPERATION_NAME = re.compile(r"[a-z]{1,32}\.[a-z_]{1,32}")

_FIELDS = 8
_SIGNATURE_TAIL = 2 + 64  # msgpack's bin8 head and the signature itself
_SIGNED_HEAD = TRANSACTION_TAG + bytes([0x90 | _FIELDS - 1])  # msgpack's head of an array of seven

_sha256 = hashlib.sha256
_is_institution = INSTITUTION.fullmatch
_is_operation_name = OPERATION_NAME.fullmatch


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a contract, e.g. `study.register`."""

    name: str
    arguments: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction whose form is right. Its signature and its sense are checked by `admission`."""

    chain_id: bytes  # 32 bytes
    institution: str
    member_key: bytes  # 32 bytes, Ed25519, of the member that signs
    valid_until: int  # the last height at which it may execute, inclusive
    salt: bytes = field(repr=False)  # 16 random bytes: equal content gives distinct ids
    operations: tuple[Operation, ...] = field(repr=False)
    signature: bytes = field(repr=False)  # 64 bytes, Ed25519 over `signed`
    raw: bytes = field(repr=False)  # the whole encoding
    id: bytes  # 32 bytes
    digest: bytes  # 32 bytes

    @property
    def signed(self) -> bytes:
        """The bytes that the signature covers."""
        return signed_bytes(self.raw)


def signed_bytes(raw: bytes) -> bytes:
    """Return what the signature of the canonical encoding `raw` covers.

    Equal to TRANSACTION_TAG + pack(the seven fields before the signature): msgpack writes fields
    one after the other, so they are cut out of `raw` instead of being packed again.
    """
    return _SIGNED_HEAD + raw[1:-_SIGNATURE_TAIL]


def transaction_digest(raw: bytes) -> bytes:
    """Return the digest that names the encoding `raw` in batches and in the transaction root."""
    return _sha256(b"\x00" + raw).digest()


def decode_transaction(raw: bytes, limits: Limits, chain_id: bytes | None = None) -> Transaction:
    """Return the transaction that `raw` encodes; checks form only, neither signature nor state.

    With `chain_id`, a transaction of another chain is refused. Raises `Refused` with one of the
    permanent codes; the sentence names the field or the operation, counted from 0.
    """
    if len(raw) > limits.transaction_bytes_max:
        raise Refused(
            "too_large",
            f"{len(raw)} bytes; a transaction has at most {limits.transaction_bytes_max}",
        )
    _, chain, institution, member_key, valid_until, salt, operations, signature = _fields(raw)
    if type(chain) is not bytes or len(chain) != 32:
        raise Refused("malformed", "chain id: must be 32 bytes")
    if chain_id is not None and chain != chain_id:
        raise Refused(
            "wrong_chain",
            f"signed for chain {chain.hex()[:8]}..., this is chain {chain_id.hex()[:8]}...",
        )
    if type(institution) is not str or _is_institution(institution) is None:
        raise Refused("malformed", f"institution: must match {INSTITUTION.pattern}")
    if type(member_key) is not bytes or len(member_key) != 32:
        raise Refused("malformed", "member key: must be 32 bytes")
    if type(valid_until) is not int or not 1 <= valid_until <= HEIGHT_MAX:
        raise Refused("malformed", f"valid until: must be a height from 1 to {HEIGHT_MAX}")
    if type(salt) is not bytes or len(salt) != SALT_BYTES:
        raise Refused("malformed", f"salt: must be {SALT_BYTES} bytes")
    if type(signature) is not bytes or len(signature) != 64:
        raise Refused("malformed", "signature: must be 64 bytes")
    return Transaction(
        chain,
        institution,
        member_key,
        valid_until,
        salt,
        _operations(operations, limits),
        signature,
        raw,
        _sha256(_SIGNED_HEAD + raw[1:-_SIGNATURE_TAIL]).digest(),
        _sha256(b"\x00" + raw).digest(),
    )


def sign_transaction(
    sign: Callable[[bytes], bytes],
    public_key: bytes,
    *,
    chain_id: bytes,
    institution: str,
    valid_until: int,
    operations: Sequence[Operation],
    salt: bytes | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> Transaction:
    """Return a transaction of `operations`, signed by the member with `public_key`.

    `sign` maps the signed bytes to an Ed25519 signature of 64 bytes; `salt` is 16 random bytes
    unless given. Raises `Refused` for what every node would refuse by form.
    """
    fields = (
        TRANSACTION_VERSION,
        chain_id,
        institution,
        public_key,
        valid_until,
        secrets.token_bytes(SALT_BYTES) if salt is None else salt,
        tuple((operation.name, operation.arguments) for operation in operations),
    )
    signature = sign(TRANSACTION_TAG + pack(fields))
    return decode_transaction(pack((*fields, signature)), limits, chain_id)


def _fields(raw: bytes) -> tuple[Value, ...]:
    """Return the eight fields; the version comes first, so that a newer form is told apart."""
    try:
        value = unpack(raw)
    except NotCanonical as error:
        raise Refused("malformed", "the bytes are not canonical msgpack") from error
    if type(value) is not tuple or not value or type(value[0]) is not int:
        raise Refused("malformed", "a transaction is an array that begins with its version")
    if value[0] != TRANSACTION_VERSION:
        raise Refused(
            "version_unknown",
            f"transaction version {value[0]}; this node knows version {TRANSACTION_VERSION}",
        )
    if len(value) != _FIELDS:
        raise Refused("malformed", f"a transaction has {_FIELDS} fields, not {len(value)}")
    return value


def _operations(value: Value, limits: Limits) -> tuple[Operation, ...]:
    if type(value) is not tuple or not value:
        raise Refused("malformed", "operations: must be an array of at least one operation")
    if len(value) > limits.operations_max:
        raise Refused(
            "too_large",
            f"{len(value)} operations; a transaction has at most {limits.operations_max}",
        )
    return tuple([_operation(index, each) for index, each in enumerate(value)])


def _operation(index: int, value: Value) -> Operation:
    if type(value) is not tuple or len(value) != 2:
        raise Refused("malformed", f"operation {index}: must be an array of name and arguments")
    name, arguments = value
    if type(name) is not str or _is_operation_name(name) is None:
        raise Refused("malformed", f"operation {index}: the name must look like 'study.register'")
    if type(arguments) is not tuple:
        raise Refused("malformed", f"operation {index}: the arguments must be an array")
    return Operation(name, arguments)
