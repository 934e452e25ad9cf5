"""Registry: an institution's members and encryption keys, kept by its own administrators.

Members live in `accounts`. Here their rules: a new key proves its possession; a rotated key acts on
for an overlap, together with its successor, and never again; the last administrator that acts for
good can neither be suspended nor lose the role, since nobody could undo that. A patient is a member
with this one role.

Encryption keys, to which study keys are wrapped, cannot sign. Another institution challenges: it
seals 32 random bytes to the key and states their digest; the answer shows that the key opens what
is sealed to it. The sealed bytes stay in the transaction, where the owner's gateway finds them.
A later challenge takes the place of an unanswered one.

    "key/" + institution + "/" + key id (16)    -> EncryptionKey

Index rows, for queries only; the member rows are described in `accounts`:

    encryption_key (institution, ordinal)       -> key id
"""

import hashlib
from typing import NamedTuple

from consensus.wire import NotCanonical, Value, pack, unpack
from node.ledger import accounts
from node.ledger.accounts import ADMINISTRATOR, Get, Member
from node.ledger.contracts import forms, possession
from node.ledger.contracts.base import Context, OperationKind
from node.ledger.errors import Rejected
from node.ledger.genesis import ROLES
from node.ledger.parameters import PARAMETERS, get_parameter
from storage.errors import CorruptRecord

RECORD_FORMAT = 1
CHALLENGE_TAG = b"radledger/key-challenge/1"
SEALED_BYTES_MAX = 1_400
PATIENT = "patient"

# Bytes of a public key: RFC 7748; ML-KEM-768 (FIPS 203, 1,184 bytes) followed by X25519, as X-Wing.
KEM_BYTES = {"x25519": 32, "x25519-mlkem768": 1_216}

MEMBER_ROLES = frozenset({ADMINISTRATOR})
KEY_ROLES = frozenset({ADMINISTRATOR, "gateway"})

REJECTIONS = {
    "member_exists": "the institution has a member with this key already; keys are used once",
    "member_active": "the member is not suspended",
    "member_rotated": "another key has taken this one's place; it takes no change but suspension",
    "last_administrator": "the institution would be left without an administrator",
    "overlap_over_limit": "a longer overlap than the parameter key_overlap_heights_max allows",
    "key_unknown": "the institution has published no encryption key with this id",
    "key_exists": "the institution has published a key with this id already; ids are used once",
    "key_retired": "the encryption key is retired",
    "key_confirmed": "the encryption key is confirmed already",
    "own_key": "a key is challenged by another institution than its own",
    "challenge_missing": "no other institution has challenged the key",
    "challenge_unmet": "the answer is not the one that the challenge asks for",
    **possession.REJECTIONS,
}

INDEX_ENCRYPTION_KEY = "encryption_key"


class EncryptionKey(NamedTuple):
    """A key to which study keys may be wrapped, as stored."""

    format: int
    kem: str
    public_key: bytes
    height: int  # of its publication
    confirmed_height: int | None
    retired_height: int | None
    challenge: bytes | None  # digest of the answer that is awaited

    @property
    def usable(self) -> bool:
        """Whether its possession was proved and it is not retired."""
        return self.confirmed_height is not None and self.retired_height is None


class AddMember(NamedTuple):
    public_key: bytes
    roles: tuple[str, ...]
    possession: bytes


class SetRoles(NamedTuple):
    public_key: bytes
    roles: tuple[str, ...]


class Rotate(NamedTuple):
    old_key: bytes
    new_key: bytes
    possession: bytes
    overlap_heights: int


class PublishKey(NamedTuple):
    key_id: bytes
    kem: str
    public_key: bytes


class ChallengeKey(NamedTuple):
    institution: str
    key_id: bytes
    digest: bytes


class ConfirmKey(NamedTuple):
    key_id: bytes
    answer: bytes


def encryption_key_key(institution: str, key_id: bytes) -> bytes:
    """Return the state key of an encryption key; `key_id` has 16 bytes."""
    return b"key/" + institution.encode() + b"/" + key_id


def encryption_key(get: Get, institution: str, key_id: bytes) -> EncryptionKey | None:
    """Return an institution's encryption key, or None. Raises `CorruptRecord`."""
    row = get(encryption_key_key(institution, key_id))
    return None if row is None else decode_encryption_key(row)


def decode_encryption_key(row: bytes) -> EncryptionKey:
    """Return the stored key. Raises `CorruptRecord`."""
    try:
        value = unpack(row)
        if type(value) is tuple and value[:1] == (RECORD_FORMAT,):
            return EncryptionKey(*value)  # type: ignore[arg-type]
    except (NotCanonical, TypeError) as error:
        raise CorruptRecord("the state holds an encryption key that cannot be read") from error
    raise CorruptRecord("the state holds an encryption key that cannot be read")


def challenge_digest(answer: bytes) -> bytes:
    """Return what a challenge states of the 32 random bytes that it seals."""
    return hashlib.sha256(CHALLENGE_TAG + answer).digest()


def parse_member_add(arguments: tuple[Value, ...]) -> AddMember:
    """(public key, roles, signature by the new key over `possession.possession_message`)"""
    public_key, roles, signature = forms.fields(arguments, 3)
    return AddMember(
        possession.public_key(public_key, "public_key"),
        _roles(roles),
        possession.signature(signature, "possession"),
    )


def parse_member_set_roles(arguments: tuple[Value, ...]) -> SetRoles:
    """(public key, roles)"""
    public_key, roles = forms.fields(arguments, 2)
    return SetRoles(possession.public_key(public_key, "public_key"), _roles(roles))


def parse_member(arguments: tuple[Value, ...]) -> bytes:
    """(public key)"""
    (public_key,) = forms.fields(arguments, 1)
    return possession.public_key(public_key, "public_key")


def parse_member_rotate(arguments: tuple[Value, ...]) -> Rotate:
    """(old key, new key, signature by the new key, overlap in heights)"""
    old_key, new_key, signature, overlap = forms.fields(arguments, 4)
    return Rotate(
        possession.public_key(old_key, "old_key"),
        possession.public_key(new_key, "new_key"),
        possession.signature(signature, "possession"),
        forms.integer(overlap, 0, PARAMETERS["key_overlap_heights_max"].high, "overlap_heights"),
    )


def parse_key_publish(arguments: tuple[Value, ...]) -> PublishKey:
    """(key id, kem, public key)"""
    key_id, kem, public_key = forms.fields(arguments, 3)
    kem = forms.word(kem, KEM_BYTES.keys(), "kem")
    if type(public_key) is not bytes or len(public_key) != KEM_BYTES[kem]:
        forms.refuse("public_key", f"the {KEM_BYTES[kem]} bytes of an encryption key for {kem}")
    return PublishKey(forms.random_id(key_id, "key_id"), kem, public_key)


def parse_key_challenge(arguments: tuple[Value, ...]) -> ChallengeKey:
    """(institution, key id, sealed answer, digest of the answer)"""
    institution, key_id, sealed, digest = forms.fields(arguments, 4)
    if type(sealed) is not bytes or not forms.DIGEST_BYTES < len(sealed) <= SEALED_BYTES_MAX:
        forms.refuse("sealed", f"more than {forms.DIGEST_BYTES}, at most {SEALED_BYTES_MAX} bytes")
    return ChallengeKey(
        possession.institution_name(institution, "institution"),
        forms.random_id(key_id, "key_id"),
        forms.digest(digest, "digest"),
    )


def parse_key_confirm(arguments: tuple[Value, ...]) -> ConfirmKey:
    """(key id, the answer that was sealed)"""
    key_id, answer = forms.fields(arguments, 2)
    return ConfirmKey(forms.random_id(key_id, "key_id"), forms.digest(answer, "answer"))


def parse_key_retire(arguments: tuple[Value, ...]) -> bytes:
    """(key id)"""
    (key_id,) = forms.fields(arguments, 1)
    return forms.random_id(key_id, "key_id")


def member_add(context: Context, asked: AddMember) -> None:
    """Let the holder of a new key act for the sender's institution."""
    _require_new_member(context, asked.public_key)
    _require_possession(context, asked.public_key, asked.possession)
    _replace_member(context, asked.public_key, None, accounts.new_member(asked.roles))
    _index_member(context, asked.public_key)
    context.emit("registry_member_added", context.institution, asked.public_key, *asked.roles)


def member_set_roles(context: Context, asked: SetRoles) -> None:
    """Give a member these roles instead of those it had."""
    member = _lasting_member(context, asked.public_key)
    changed = member._replace(roles=asked.roles)
    _replace_member(context, asked.public_key, member, changed)
    context.emit("registry_member_roles_set", context.institution, asked.public_key, *asked.roles)


def member_suspend(context: Context, public_key: bytes) -> None:
    """Stop a member at once, also a key that was rotated out and still acts."""
    member = _member(context, public_key)
    if not member.active:
        raise Rejected("member_suspended")
    _replace_member(context, public_key, member, member._replace(active=False))
    context.emit("registry_member_suspended", context.institution, public_key)


def member_resume(context: Context, public_key: bytes) -> None:
    """Let a suspended member act again."""
    member = _lasting_member(context, public_key)
    if member.active:
        raise Rejected("member_active")
    _replace_member(context, public_key, member, member._replace(active=True))
    context.emit("registry_member_resumed", context.institution, public_key)


def member_rotate(context: Context, asked: Rotate) -> None:
    """Let a new key take over a member's roles; the old one acts on for `overlap_heights`."""
    member = _lasting_member(context, asked.old_key)
    if not member.active:
        raise Rejected("member_suspended")
    _require_new_member(context, asked.new_key)
    if asked.overlap_heights > get_parameter(context.state.get, "key_overlap_heights_max"):
        raise Rejected("overlap_over_limit")
    _require_possession(context, asked.new_key, asked.possession)
    until_height = context.height + asked.overlap_heights
    _replace_member(context, asked.new_key, None, member)
    _replace_member(context, asked.old_key, member, member._replace(until_height=until_height))
    _index_member(context, asked.new_key)
    context.emit(
        "registry_member_rotated", context.institution, asked.old_key, asked.new_key, until_height
    )


def key_publish(context: Context, asked: PublishKey) -> None:
    """Publish an encryption key of the sender's institution, as yet unconfirmed."""
    key = encryption_key_key(context.institution, asked.key_id)
    if context.state.get(key) is not None:
        raise Rejected("key_exists")
    made = EncryptionKey(
        RECORD_FORMAT, asked.kem, asked.public_key, context.height, None, None, None
    )
    context.state.put(key, pack(made))
    parts = (context.institution.encode(), context.ordinal())
    context.index(INDEX_ENCRYPTION_KEY, parts, asked.key_id)
    context.emit("registry_key_published", context.institution, asked.key_id, asked.kem)


def key_challenge(context: Context, asked: ChallengeKey) -> None:
    """Ask another institution to show that it can open what is sealed to its key."""
    if asked.institution == context.institution:
        raise Rejected("own_key")
    held = _open_key(context, asked.institution, asked.key_id)
    if held.confirmed_height is not None:
        raise Rejected("key_confirmed")
    changed = held._replace(challenge=asked.digest)
    context.state.put(encryption_key_key(asked.institution, asked.key_id), pack(changed))
    context.emit("registry_key_challenged", asked.institution, asked.key_id, context.institution)


def key_confirm(context: Context, asked: ConfirmKey) -> None:
    """Answer the challenge, after which others may wrap study keys to this one."""
    held = _open_key(context, context.institution, asked.key_id)
    if held.confirmed_height is not None:
        raise Rejected("key_confirmed")
    if held.challenge is None:
        raise Rejected("challenge_missing")
    if challenge_digest(asked.answer) != held.challenge:
        raise Rejected("challenge_unmet")
    changed = held._replace(confirmed_height=context.height, challenge=None)
    context.state.put(encryption_key_key(context.institution, asked.key_id), pack(changed))
    context.emit("registry_key_confirmed", context.institution, asked.key_id)


def key_retire(context: Context, key_id: bytes) -> None:
    """Close a key for good: nothing new is wrapped to it."""
    held = _open_key(context, context.institution, key_id)
    changed = held._replace(retired_height=context.height, challenge=None)
    context.state.put(encryption_key_key(context.institution, key_id), pack(changed))
    context.emit("registry_key_retired", context.institution, key_id)


def _roles(value: Value) -> tuple[str, ...]:
    if type(value) is not tuple or not 1 <= len(value) <= len(ROLES):
        forms.refuse("roles", f"an array of 1 to {len(ROLES)} roles")
    roles = tuple(sorted({forms.word(role, ROLES, "roles") for role in value}))
    if len(roles) != len(value):
        forms.refuse("roles", "roles that are each named once")
    if PATIENT in roles and len(roles) > 1:
        forms.refuse("roles", "patient alone, or other roles without it")
    return roles


def _member(context: Context, public_key: bytes) -> Member:
    member = accounts.find_member(context.state.get, context.institution, public_key)
    if member is None:
        raise Rejected("member_unknown")
    return member


def _lasting_member(context: Context, public_key: bytes) -> Member:
    member = _member(context, public_key)
    if member.until_height is not None:
        raise Rejected("member_rotated")
    return member


def _require_new_member(context: Context, public_key: bytes) -> None:
    key = accounts.member_key(context.institution, public_key)
    if context.state.get(key) is not None:
        raise Rejected("member_exists")


def _require_possession(context: Context, public_key: bytes, signature: bytes) -> None:
    possession.require_possession(context.chain_id, context.institution, public_key, signature)


def _replace_member(
    context: Context, public_key: bytes, before: Member | None, after: Member
) -> None:
    """Write a member and, where it changes, how many administrators the institution has."""
    name, state = context.institution, context.state
    change = after.administers - (before is not None and before.administers)
    if change:
        institution = accounts.find_institution(state.get, name)
        if institution is None:
            raise Rejected("institution_unknown")
        left = institution.administrators + change
        if left < 1:
            raise Rejected("last_administrator")
        changed = institution._replace(administrators=left)
        state.put(accounts.institution_key(name), pack(changed))
    state.put(accounts.member_key(name, public_key), pack(after))


def _index_member(context: Context, public_key: bytes) -> None:
    context.index(accounts.INDEX_MEMBER, (context.institution.encode(), public_key))


def _open_key(context: Context, institution: str, key_id: bytes) -> EncryptionKey:
    held = encryption_key(context.state.get, institution, key_id)
    if held is None:
        raise Rejected("key_unknown")
    if held.retired_height is not None:
        raise Rejected("key_retired")
    return held


KINDS = (
    OperationKind("registry.member_add", MEMBER_ROLES, parse_member_add, member_add),
    OperationKind(
        "registry.member_set_roles", MEMBER_ROLES, parse_member_set_roles, member_set_roles
    ),
    OperationKind("registry.member_suspend", MEMBER_ROLES, parse_member, member_suspend),
    OperationKind("registry.member_resume", MEMBER_ROLES, parse_member, member_resume),
    OperationKind("registry.member_rotate", MEMBER_ROLES, parse_member_rotate, member_rotate),
    OperationKind("registry.key_publish", KEY_ROLES, parse_key_publish, key_publish),
    OperationKind("registry.key_challenge", KEY_ROLES, parse_key_challenge, key_challenge),
    OperationKind("registry.key_confirm", KEY_ROLES, parse_key_confirm, key_confirm),
    OperationKind("registry.key_retire", KEY_ROLES, parse_key_retire, key_retire),
)
