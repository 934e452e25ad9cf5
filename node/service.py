"""The node as its RPC sees it: submissions, lookups, status, and why it is not making progress."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from consensus.messages import SealCertificate
from consensus.replica import Replica
from consensus.wire import Value
from node.ledger.admission import Admission
from node.ledger.errors import Refused
from node.ledger.execution import ExecutedBlock
from node.ledger.genesis import Genesis
from node.ledger.mempool import Mempool
from node.ledger.proofs import make as proofs
from node.ledger.proofs.questions import BadRequest, read_request
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
from node.ledger.queries.audits import anchors_page, audit_trail
from node.ledger.queries.blocks import BlockView, EventView, Queries, TransactionView
from node.ledger.queries.consents import find_consent
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
from node.ledger.queries.members import (
    encryption_keys_page,
    find_institution,
    institutions_page,
    members_page,
    parameters,
)
from node.ledger.queries.moment import Moment, moment_of
from node.ledger.queries.paging import BadQuery
from node.ledger.queries.policies import policies, try_policy
from node.ledger.queries.proposals import find_proposal, proposals_page, try_proposal
from node.ledger.queries.requests import find_request, requests_page
from node.ledger.queries.studies import StudyPage, StudyQuery, StudyView, search
from node.ledger.transaction import Transaction, decode_transaction
from node.network.payloads import Role
from node.network.transport import Transport
from node.replication.catch_up import CatchUp
from node.replication.chain import Chain
from node.replication.clocks import wall_ms
from node.replication.waiters import Outcome, Waiters
from node.rpc.feed import EventFeed
from node.rpc.service import (
    BlockEvents,
    Head,
    PeerStatus,
    Readiness,
    Status,
    Submitted,
    ValidatorStatus,
    Wait,
)
from storage.chain import ChainStore
from storage.kv import KeyValueStore, Snapshot

Answer = TypeVar("Answer")

STALLED_AFTER_S = 5.0
_AT_REST = ("idle", "observer")


@dataclass(frozen=True, slots=True)
class About:
    """What does not change while a node runs."""

    institution: str
    public_key: bytes
    version: str
    genesis: Genesis


class Service:
    """Implements `node.rpc.service.NodeService` over the parts of a running node."""

    def __init__(
        self,
        *,
        about: About,
        store: KeyValueStore,
        chain: Chain,
        replica: Replica,
        mempool: Mempool,
        admission: Admission,
        transport: Transport,
        catch_up: CatchUp,
        readers: ThreadPoolExecutor,
        halted: Callable[[], str | None],
        is_listed: Callable[[], bool],
    ) -> None:
        self._about = about
        self._store = store
        self._chain = chain
        self._replica = replica
        self._mempool = mempool
        self._admission = admission
        self._transport = transport
        self._catch_up = catch_up
        self._readers = readers
        self._halted = halted
        self._is_listed = is_listed
        self._waiters = Waiters(catch_up.stable_height)
        self._feed = EventFeed(self._read_events, chain.height)
        self._stable_height = catch_up.stable_height
        self._progress = (chain.height, time.monotonic())

    # What the node tells.

    def block_executed(self, block: ExecutedBlock) -> None:
        """Answer submitters and subscribers of a block that is final and durable."""
        height = block.header.height
        self._waiters.executed(height, block.receipts)
        self._feed.publish(BlockEvents(height, _events(block)))

    def block_stable(self, certificate: SealCertificate) -> None:
        """Answer those who wait for the seals of a height."""
        self._stable_height = max(self._stable_height, certificate.height)
        self._waiters.stable(certificate.height)

    def transaction_dropped(self, transaction: Transaction) -> None:
        """Answer the submitter of a transaction that left the mempool without a block."""
        refused = Refused("expired", "the transaction was not ordered in time; submit it anew")
        self._waiters.dropped(transaction.id, refused)

    # What clients ask.

    async def submit(self, raw: bytes, wait: Wait, timeout_s: float) -> Submitted:
        """Admit an encoded transaction and wait until it is `wait`.

        The same transaction again is no error: the answer is that of the first.
        """
        try:
            async with asyncio.timeout(timeout_s):
                transaction = await self._admission.submit(raw)
        except Refused as refused:
            if refused.code not in ("duplicate", "replayed"):
                raise
            return await self._submitted_before(raw, wait, timeout_s, refused)
        if wait == "accepted":
            return Submitted(transaction.id, "accepted")
        return await self._outcome(
            transaction.id, self._waiters.final(transaction.id), wait, timeout_s
        )

    async def _submitted_before(
        self, raw: bytes, wait: Wait, timeout_s: float, refused: Refused
    ) -> Submitted:
        transaction_id = decode_transaction(raw, self._about.genesis.limits).id
        # Waiting begins before the look into the store, so that a block in between is not missed.
        future = self._waiters.final(transaction_id)
        known = await self.transaction(transaction_id)
        if known is not None:
            self._waiters.give_up(transaction_id, future)
            outcome = Outcome(known.height, known.position, known.receipt)
            return await self._sealed_or_final(transaction_id, outcome, wait, timeout_s)
        if not future.done() and not self._mempool.contains_id(transaction_id):
            self._waiters.give_up(transaction_id, future)
            raise refused
        if wait == "accepted":
            self._waiters.give_up(transaction_id, future)
            return Submitted(transaction_id, "accepted")
        return await self._outcome(transaction_id, future, wait, timeout_s)

    async def _outcome(
        self, transaction_id: bytes, future: asyncio.Future[Outcome], wait: Wait, timeout_s: float
    ) -> Submitted:
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await future
                return await self._sealed_or_final(transaction_id, outcome, wait, timeout_s)
        finally:
            self._waiters.give_up(transaction_id, future)

    async def _sealed_or_final(
        self, transaction_id: bytes, outcome: Outcome, wait: Wait, timeout_s: float
    ) -> Submitted:
        if wait == "sealed":
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._waiters.sealed(outcome.height))
        receipt = outcome.receipt
        return Submitted(
            id=transaction_id,
            state="final" if wait == "accepted" else wait,
            height=outcome.height,
            position=outcome.position,
            code=receipt.code,
            operation=receipt.operation,
            rule=receipt.rule or None,
        )

    async def transaction(self, transaction_id: bytes) -> TransactionView | None:
        """Return an executed transaction."""
        return await self._query(lambda queries: queries.transaction(transaction_id))

    async def block(self, height: int | None) -> BlockView | None:
        """Return the block at `height`, or the last one."""
        wanted = self._chain.height if height is None else height
        return await self._query(lambda queries: queries.block(wanted))

    async def study(self, study_id: bytes) -> StudyView | None:
        """Return one study with its versions."""
        return await self._query(lambda queries: queries.study(study_id))

    async def search(self, query: StudyQuery) -> StudyPage:
        """Return a page of studies, newest first. Raises `BadQuery`."""
        return await self._read(lambda snapshot: search(ChainStore(snapshot), query))

    async def consent(self, institution: str, subject_id: bytes) -> ConsentView | None:
        """Return what a custodian has on record for a subject."""
        return await self._ask(lambda moment: find_consent(moment, institution, subject_id))

    async def policies(self, institution: str | None) -> PoliciesView:
        """Return the consortium's rules and an institution's."""
        return await self._ask(lambda moment: policies(moment, institution))

    async def policy_try(self, question: PolicyQuestion) -> PolicyTrial:
        """Return what would become of a request, without making it."""
        return await self._ask(lambda moment: try_policy(moment, question, wall_ms()))

    async def request(self, request_id: bytes) -> RequestView | None:
        """Return one access request."""
        return await self._ask(lambda moment: find_request(moment, request_id))

    async def requests(self, query: RequestQuery) -> RequestPage:
        """Return a page of access requests, newest first. Raises `BadQuery`."""
        return await self._ask(lambda moment: requests_page(moment, query))

    async def institution(self, name: str) -> InstitutionView | None:
        """Return one institution."""
        return await self._ask(lambda moment: find_institution(moment, name))

    async def institutions(self, limit: int, cursor: str | None) -> InstitutionPage:
        """Return a page of institutions, by name."""
        return await self._ask(lambda moment: institutions_page(moment, limit, cursor))

    async def members(self, institution: str, limit: int, cursor: str | None) -> MemberPage:
        """Return a page of an institution's members, by key."""
        return await self._ask(lambda moment: members_page(moment, institution, limit, cursor))

    async def encryption_keys(
        self, institution: str, limit: int, cursor: str | None
    ) -> EncryptionKeyPage:
        """Return a page of an institution's encryption keys, newest first."""
        return await self._ask(
            lambda moment: encryption_keys_page(moment, institution, limit, cursor)
        )

    async def proposal(self, proposal_id: bytes) -> ProposalView | None:
        """Return one proposal with its votes as they count now."""
        return await self._ask(lambda moment: find_proposal(moment, proposal_id))

    async def proposals(self, state: str | None, limit: int, cursor: str | None) -> ProposalPage:
        """Return a page of proposals, newest first."""
        return await self._ask(lambda moment: proposals_page(moment, state, limit, cursor))

    async def proposal_try(self, action: str, arguments: tuple[Value, ...]) -> ProposalTrial:
        """Return what a proposal would do, and who of the validators after it is live."""
        chain_id, connected = self._about.genesis.chain_id, self._connected_keys()
        return await self._ask(
            lambda moment: try_proposal(moment, chain_id, action, arguments, connected)
        )

    async def audit_trail(self, study_id: bytes, limit: int, cursor: str | None) -> TrailPage:
        """Return a page of what happened to a study, newest first."""
        limits = self._about.genesis.limits
        return await self._ask(lambda moment: audit_trail(moment, limits, study_id, limit, cursor))

    async def anchors(self, institution: str, limit: int, cursor: str | None) -> AnchorPage:
        """Return a page of an institution's audit anchors, newest first."""
        return await self._ask(lambda moment: anchors_page(moment, institution, limit, cursor))

    async def parameters(self) -> tuple[ParameterView, ...]:
        """Return the parameters that governance may change."""
        return await self._ask(parameters)

    async def proof(self, kind: str, arguments: tuple[str, ...]) -> ProofFile:
        """Return a proof file, once a quorum has sealed what it rests on.

        Raises `BadQuery` and `Refused`; whoever asks bounds the time.
        """
        genesis = self._about.genesis
        try:
            asked = read_request(kind, arguments)
            drafted = await self._read(lambda snapshot: proofs.draft(snapshot, genesis, asked))
        except BadRequest as error:
            raise BadQuery(str(error)) from error
        except proofs.CannotProve as error:
            raise Refused("cannot_prove", str(error)) from error
        while True:
            proof = await self._read(lambda snapshot: proofs.finish(snapshot, genesis, drafted))
            if proof is not None:
                return ProofFile(kind, drafted.height, proof)
            # Seals of a later height prove this one as well, where its own were not kept.
            awaited = max(drafted.height, self._stable_height + 1)
            await asyncio.shield(self._waiters.sealed(awaited))

    def head(self) -> Head:
        """Return the last executed block."""
        header = self._chain.head
        return Head(header.height, header.digest, header.time_ms, self._stable_height)

    def status(self) -> Status:
        """Return where the node stands."""
        validators = self._replica.validators.validators
        return Status(
            institution=self._about.institution,
            chain_id=self._about.genesis.chain_id,
            version=self._about.version,
            is_validator=self._replica.index is not None,
            height=self._chain.height,
            stable_height=self._stable_height,
            view=self._replica.view,
            primary=validators[self._replica.primary].institution,
            mempool_transactions=len(self._mempool),
            mempool_bytes=self._mempool.size_bytes,
            peers_connected=tuple(sorted(p.name for p in self._transport.connected.values())),
            is_syncing=self._catch_up.is_behind,
        )

    def validators(self) -> tuple[ValidatorStatus, ...]:
        """Return who votes on the next height that is to be sealed."""
        connected = self._connected_keys()
        members = self._replica.validators.validators
        return tuple(
            ValidatorStatus(
                institution=member.institution,
                public_key=member.public_key,
                index=index,
                is_primary=index == self._replica.primary,
                is_connected=member.public_key in connected,
            )
            for index, member in enumerate(members)
        )

    def peers(self) -> tuple[PeerStatus, ...]:
        """Return every known peer, connected or not."""
        heights = self._catch_up.heights()
        return tuple(
            PeerStatus(
                institution=report.name,
                host=report.address.rpartition(":")[0],
                port=int(report.address.rpartition(":")[2] or 0),
                is_connected=report.state == "connected",
                is_validator=report.role is Role.VALIDATOR,
                height=heights.get(report.key, report.height),
                bytes_sent=report.traffic.bytes_sent,
                bytes_received=report.traffic.bytes_received,
                messages_dropped=report.traffic.frames_dropped,
            )
            for report in self._transport.report()
        )

    def readiness(self) -> Readiness:
        """Return whether the node makes progress, and otherwise who and what is missing."""
        phase = self._replica.phase_report()
        members = self._replica.validators
        connected = self._connected_keys()
        absent = tuple(m.institution for m in members.validators if m.public_key not in connected)
        present = members.n - len(absent)
        silent = tuple(members.validators[index].institution for index in phase.missing)
        reason = ""
        halted = self._halted()
        if halted is not None:
            reason = f"the node has stopped: {halted}"
        elif present < members.quorum:
            reason = (
                f"{present} of {members.n} validators are connected and {members.quorum} are needed"
            )
            if not self._is_listed():
                reason += (
                    "; the chain, as far as this node has it, lists its key neither as a "
                    "validator's nor as an observer's: the others let it in once it is voted in"
                )
        elif self._catch_up.is_behind:
            reason = f"catching up from height {self._chain.height} to {self._catch_up.target}"
        elif self._is_stalled(phase.phase):
            reason = f"no progress at height {phase.height}, phase {phase.phase}: {phase.reason}"
        return Readiness(
            is_ready=not reason,
            reason=reason,
            missing=absent or silent,
            phase=phase.phase,
            view=phase.view,
            height=self._chain.height,
        )

    def _is_stalled(self, phase: str) -> bool:
        """Return whether work has waited at one height for longer than a healthy chain needs."""
        now_s = time.monotonic()
        if phase in _AT_REST or self._chain.height != self._progress[0]:
            self._progress = (self._chain.height, now_s)
        return now_s - self._progress[1] > STALLED_AFTER_S

    def subscribe(self, from_height: int) -> AsyncGenerator[BlockEvents, None]:
        """Yield every height from `from_height` on, for ever."""
        return self._feed.subscribe(from_height)

    def _connected_keys(self) -> set[bytes]:
        return {self._about.public_key, *self._transport.connected}

    async def _read_events(self, height: int) -> BlockEvents:
        found = await self._query(lambda queries: queries.events(height))
        return BlockEvents(height, tuple(found or ()))

    async def _query(self, question: Callable[[Queries], Answer]) -> Answer:
        limits = self._about.genesis.limits
        return await self._read(lambda snapshot: question(Queries(ChainStore(snapshot), limits)))

    async def _ask(self, question: Callable[[Moment], Answer]) -> Answer:
        return await self._read(lambda snapshot: question(moment_of(ChainStore(snapshot))))

    async def _read(self, question: Callable[[Snapshot], Answer]) -> Answer:
        """Ask in a reader's thread, over one moment of the store."""

        def answer() -> Answer:
            snapshot = self._store.snapshot()
            try:
                return question(snapshot)
            finally:
                snapshot.close()

        return await asyncio.get_running_loop().run_in_executor(self._readers, answer)


def _events(block: ExecutedBlock) -> tuple[EventView, ...]:
    height = block.header.height
    return tuple(
        EventView(height, position, receipt.transaction_id, event)
        for position, receipt in enumerate(block.receipts)
        for event in receipt.events
    )
