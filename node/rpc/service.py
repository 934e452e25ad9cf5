"""What the RPC asks of the node, and the answers it passes on.

`NodeService` is a Protocol: the daemon hands in whatever fits. The client returns the same
dataclasses that the service gave to the server, so a program reads alike on both sides.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from consensus.wire import Value
from node.ledger.queries.access_views import (
    ConsentView,
    PoliciesView,
    PolicyQuestion,
    PolicyTrial,
    RequestPage,
    RequestQuery,
    RequestView,
)
from node.ledger.queries.audit_views import AnchorPage, ProofFile, TrailPage
from node.ledger.queries.blocks import BlockView, EventView, TransactionView
from node.ledger.queries.member_views import (
    EncryptionKeyPage,
    InstitutionPage,
    InstitutionView,
    MemberPage,
    ParameterView,
    ProposalPage,
    ProposalTrial,
    ProposalView,
)
from node.ledger.queries.studies import StudyPage, StudyQuery, StudyView

Wait: TypeAlias = Literal["accepted", "final", "sealed"]
WAITS: tuple[Wait, ...] = ("accepted", "final", "sealed")


@dataclass(frozen=True, slots=True)
class Submitted:
    """How far a transaction had come when the answer was given."""

    id: bytes  # 32 bytes
    state: Wait
    height: int | None = None  # None while only accepted
    position: int | None = None  # index in its block
    code: str | None = None  # of its receipt: "ok", or why a contract refused it
    operation: int | None = None  # index of the operation that failed
    rule: str | None = None  # which rule refused, when the code alone does not say


@dataclass(frozen=True, slots=True)
class Head:
    """The last executed block."""

    height: int
    digest: bytes  # 32 bytes, of its header
    time_ms: int
    stable_height: int  # the last height that a quorum has sealed


@dataclass(frozen=True, slots=True)
class Status:
    institution: str
    chain_id: bytes  # 32 bytes
    version: str  # of the program
    is_validator: bool
    height: int  # executed
    stable_height: int
    view: int
    primary: str  # institution
    mempool_transactions: int
    mempool_bytes: int
    peers_connected: tuple[str, ...]  # institutions
    is_syncing: bool


@dataclass(frozen=True, slots=True)
class ValidatorStatus:
    """One voting institution, in the order of the validator set of the next height."""

    institution: str
    public_key: bytes  # 32 bytes, Ed25519
    index: int
    is_primary: bool
    is_connected: bool  # always True for this node itself


@dataclass(frozen=True, slots=True)
class PeerStatus:
    institution: str
    host: str
    port: int
    is_connected: bool
    is_validator: bool
    height: int | None  # as it last said; None before it did
    bytes_sent: int
    bytes_received: int
    messages_dropped: int  # because its queue was full


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the node makes progress, and why not."""

    is_ready: bool
    reason: str  # a sentence for an operator; empty when ready
    missing: tuple[str, ...]  # institutions that are waited for
    phase: str  # of the lowest open height, e.g. "prepare"; "idle" when none is open
    view: int
    height: int  # executed


@dataclass(frozen=True, slots=True)
class BlockEvents:
    """All events of one executed height, in order; may be none.

    In JSON, byte strings among an event's fields are hexadecimal text, and stay so in the client.
    """

    height: int
    events: tuple[EventView, ...]


class NodeService(Protocol):
    """The node as its RPC sees it. Calls return quickly or await; none blocks the event loop."""

    async def submit(self, raw: bytes, wait: Wait, timeout_s: float) -> Submitted:
        """Admit an encoded transaction and wait until it is `wait`.

        Raises `node.ledger.errors.Refused` before ordering and `TimeoutError` when it took longer;
        the transaction may still become final then.
        """
        ...

    async def transaction(self, transaction_id: bytes) -> TransactionView | None: ...

    async def block(self, height: int | None) -> BlockView | None:
        """Return the block at `height`, or the last one; None when there is none (yet)."""
        ...

    async def study(self, study_id: bytes) -> StudyView | None: ...

    async def search(self, query: StudyQuery) -> StudyPage:
        """Return one page. Raises `node.ledger.queries.BadQuery`."""
        ...

    async def consent(self, institution: str, subject_id: bytes) -> ConsentView | None:
        """Return what the custodian has on record for a subject; None when there is nothing."""
        ...

    async def policies(self, institution: str | None) -> PoliciesView:
        """Return the consortium's rules and, if one is named, the institution's."""
        ...

    async def policy_try(self, question: PolicyQuestion) -> PolicyTrial:
        """Return what would become of a request, without making it."""
        ...

    async def request(self, request_id: bytes) -> RequestView | None: ...

    async def requests(self, query: RequestQuery) -> RequestPage:
        """Return one page. Raises `BadQuery`, as every method with a cursor does."""
        ...

    async def institution(self, name: str) -> InstitutionView | None: ...

    async def institutions(self, limit: int, cursor: str | None) -> InstitutionPage: ...

    async def members(self, institution: str, limit: int, cursor: str | None) -> MemberPage: ...

    async def encryption_keys(
        self, institution: str, limit: int, cursor: str | None
    ) -> EncryptionKeyPage: ...

    async def proposal(self, proposal_id: bytes) -> ProposalView | None: ...

    async def proposals(
        self, state: str | None, limit: int, cursor: str | None
    ) -> ProposalPage: ...

    async def proposal_try(self, action: str, arguments: tuple[Value, ...]) -> ProposalTrial:
        """Return what a proposal would do, without making it. Raises `Refused` for arguments
        that have not the form of the action's."""
        ...

    async def audit_trail(self, study_id: bytes, limit: int, cursor: str | None) -> TrailPage: ...

    async def anchors(self, institution: str, limit: int, cursor: str | None) -> AnchorPage: ...

    async def parameters(self) -> tuple[ParameterView, ...]: ...

    async def proof(self, kind: str, arguments: tuple[str, ...]) -> ProofFile:
        """Return a proof file, once its height is sealed. Raises `BadQuery` for what is no
        statement, and `Refused` when the ledger does not bear it out."""
        ...

    def head(self) -> Head: ...

    def status(self) -> Status: ...

    def validators(self) -> tuple[ValidatorStatus, ...]: ...

    def peers(self) -> tuple[PeerStatus, ...]: ...

    def readiness(self) -> Readiness: ...

    def subscribe(self, from_height: int) -> AsyncGenerator[BlockEvents, None]:
        """Yield every height from `from_height` on, in order, without gap or repetition, for ever.

        Nothing is queued for a subscriber: it is read when it asks (see `node.rpc.feed`). Raises
        `Refused` when a height is not kept any more.
        """
        ...
