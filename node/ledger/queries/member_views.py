"""Answers about institutions, their members and keys, and how the consortium governs itself."""

from dataclasses import dataclass
from typing import Any

from node.ledger.queries.steps import NextStep

MEMBERS_LIMIT_MAX = 200  # rows on one page of institutions, members, keys or proposals


@dataclass(frozen=True, slots=True)
class InstitutionView:
    """A hospital, or another body that takes part."""

    name: str  # the slug that transactions carry
    display_name: str
    country: str  # ISO 3166-1 alpha-2; "ZZ": not stated
    is_active: bool
    administrators: int  # active ones
    is_validator: bool  # at the next height
    validates_from: int | None  # the height at which a planned change lets it vote
    validates_until: int | None  # the last height at which it votes, by a planned change
    observers: tuple[bytes, ...]  # keys (32 bytes) of its nodes that follow without a vote


@dataclass(frozen=True, slots=True)
class InstitutionPage:
    institutions: tuple[InstitutionView, ...]  # by name
    next_cursor: str | None  # None: complete


@dataclass(frozen=True, slots=True)
class MemberView:
    """Who may sign transactions for an institution."""

    institution: str
    public_key: bytes  # 32 bytes, Ed25519
    roles: tuple[str, ...]  # ascending
    is_active: bool  # as recorded; a suspended member is not
    until_height: int | None  # the last height at which the key acts, after a rotation
    acts: bool  # at the next height: member and institution are active and the key is not over


@dataclass(frozen=True, slots=True)
class MemberPage:
    members: tuple[MemberView, ...]  # by key
    next_cursor: str | None  # None: complete


@dataclass(frozen=True, slots=True)
class EncryptionKeyView:
    """A key to which study keys are wrapped."""

    institution: str
    key_id: bytes  # 16 bytes
    kem: str
    public_key: bytes
    published_height: int
    confirmed_height: int | None  # possession was proved
    retired_height: int | None
    state: str  # "published", "challenged", "confirmed" or "retired"
    next_step: NextStep


@dataclass(frozen=True, slots=True)
class EncryptionKeyPage:
    keys: tuple[EncryptionKeyView, ...]  # newest first
    next_cursor: str | None  # None: complete


@dataclass(frozen=True, slots=True)
class VoteView:
    """How one institution votes."""

    institution: str
    approves: bool
    counts: bool  # it has a validator at the next height


@dataclass(frozen=True, slots=True)
class ProposalView:
    """A proposal, its votes counted as if it were executed in the next block."""

    id: bytes  # 16 bytes
    institution: str  # of the proposer
    member_key: bytes  # 32 bytes, of the proposer
    action: str
    arguments: tuple[Any, ...]  # in JSON, bytes are hexadecimal; the client restores them
    encoded_arguments: bytes  # the same, canonical msgpack: exact in every language
    proposed_height: int
    expires_height: int  # the first height at which it is over
    state: str  # "open", "passed", "executed", "withdrawn" or "expired"
    recorded_state: str  # as it stands in the ledger
    votes: tuple[VoteView, ...]  # by institution
    approvals: int  # that count
    rejections: int  # that count
    n: int  # institutions with a vote at the next height
    quorum: int  # approvals needed
    not_voted: tuple[str, ...]  # institutions with a vote that have not used it, ascending
    problem: str | None  # the code with which executing it would fail as things are
    ended_height: int | None  # executed or withdrawn
    activation_height: int | None  # a change of the validators reigns from here on
    heights_left: int | None  # until then; 0: it reigns at the next height
    height: int  # the next height, for which this is said
    next_step: NextStep


@dataclass(frozen=True, slots=True)
class ProposalPage:
    """Part of the answer, newest first; complete when `next_cursor` is None."""

    proposals: tuple[ProposalView, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class ProposalTrial:
    """What an action would do if it were executed in the next block. Nothing was written."""

    action: str
    height: int  # the next height
    problem: str | None  # the code with which it would fail; None: it would work
    n: int  # of the validator set after it
    f: int  # faults that this set tolerates
    quorum: int  # votes that it needs
    activation_height: int | None  # None: it changes no validators
    added: tuple[str, ...]  # institutions that get a vote, ascending
    removed: tuple[str, ...]  # institutions that lose theirs, ascending
    validators: tuple[str, ...]  # institutions of the set after it, in its order
    live: tuple[str, ...]  # of these, those connected to this node now, itself included
    absent: tuple[str, ...]  # and the others
    has_live_quorum: bool  # those live now are enough to go on after the change


@dataclass(frozen=True, slots=True)
class ParameterView:
    """A number that governance may change within bounds."""

    name: str
    value: int
    default: int
    low: int  # bounds, both inclusive
    high: int
