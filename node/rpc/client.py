"""A typed client for one node: calls and events over one WebSocket that comes back by itself.

    async with Client("http://127.0.0.1:7620", token) as client:
        submitted = await client.submit(transaction, wait="final")
        async for block in client.events(from_height=submitted.height):
            ...

Calls are pipelined: start as many as you like, each is answered when it is ready. At most
`in_flight_max` are on the way, the others wait here. Answers are the dataclasses of
`node.rpc.service` and `node.ledger.queries`, errors the exceptions of the server's side.
"""

import asyncio
import ssl
from binascii import b2a_base64
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import asdict, fields, replace
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from consensus.wire import NotCanonical, Value, pack, unpack
from node.ledger.errors import Refused
from node.ledger.limits import LIMIT_BOUNDS, Limits
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
from node.ledger.queries.blocks import BlockView, TransactionView
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
from node.ledger.transaction import Transaction, decode_transaction
from node.rpc.codec import NotAnAnswer, decode, decoder
from node.rpc.errors import ConnectionLost, NotAuthorized, RpcError
from node.rpc.link import Link
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
from node.rpc.subscription import Subscription

Outcome: TypeAlias = (
    Submitted | Refused | TimeoutError | RpcError | ConnectionLost | NotAuthorized | NotAnAnswer
)

# Whatever a chain's own limits are, its transactions are within these.
_WIDEST = Limits(**{name: high for name, (_, high) in LIMIT_BOUNDS.items()})

T = TypeVar("T")

_read_submitted = decoder(Submitted)


class Client:
    """Talks to the node at `url` with its RPC token, as an async context manager.

    Entering connects and raises `ConnectionLost` or `NotAuthorized` when that fails. Every method
    raises these, and `RpcError`; `NotAnAnswer` when the node's answer has another form. A call made
    while the connection is away waits for it, `connect_timeout_s` at the most.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        in_flight_max: int = 1_024,
        connect_timeout_s: float = 10.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._link = Link(url, token, in_flight_max, connect_timeout_s, tls)

    async def __aenter__(self) -> "Client":
        await self._link.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._link.close()

    async def submit(
        self,
        transaction: bytes | Transaction,
        wait: Wait = "final",
        timeout_s: float | None = None,
    ) -> Submitted:
        """Hand in a signed transaction and wait until it is `wait`; `timeout_s` None leaves the
        node's own limit.

        Raises `Refused` (with a code) before ordering, `TimeoutError` when it is not so far in
        time, `ConnectionLost`, `RpcError`. A contract's refusal is no error: see `Submitted.code`.
        """
        future = await self._link.start("submit", _submission(transaction, wait, timeout_s))
        submitted: Submitted = _read_submitted(await future)
        return submitted

    async def submit_many(
        self,
        transactions: Iterable[bytes | Transaction],
        wait: Wait = "final",
        timeout_s: float | None = None,
    ) -> list[Outcome]:
        """Hand in many, pipelined; return what became of each, in order."""
        started: list[asyncio.Future[Any] | Outcome] = []
        for transaction in transactions:
            try:
                params = _submission(transaction, wait, timeout_s)
                started.append(await self._link.start("submit", params))
            except (ConnectionLost, NotAuthorized) as error:
                started.append(error)
        futures = [each for each in started if isinstance(each, asyncio.Future)]
        await asyncio.gather(*futures, return_exceptions=True)
        return [
            _outcome(each.exception() or each.result())
            if isinstance(each, asyncio.Future)
            else each
            for each in started
        ]

    async def transaction(self, transaction_id: bytes) -> TransactionView | None:
        """Return an executed transaction by its id (32 bytes), or None."""
        answer = await self._link.call("transaction", [transaction_id.hex()])
        if answer is None:
            return None
        view = decode(TransactionView, answer)
        # Arguments lose their types in JSON; the encoding itself keeps them.
        try:
            exact = decode_transaction(view.transaction.raw, _WIDEST)
        except Refused as error:
            raise NotAnAnswer(f"transaction.raw: {error.code}") from error
        return replace(view, transaction=exact)

    async def block(self, height: int | None = None) -> BlockView | None:
        """Return the executed block at `height`, or the last one; None when there is none."""
        answer = await self._link.call("block", [height])
        return None if answer is None else decode(BlockView, answer)

    async def study(self, study_id: bytes) -> StudyView | None:
        """Return the study with this id (16 bytes), or None."""
        answer = await self._link.call("study", [study_id.hex()])
        return None if answer is None else decode(StudyView, answer)

    async def search(self, query: StudyQuery) -> StudyPage:
        """Return one page. Raises `RpcError` with code "invalid_params" for a senseless query."""
        return decode(StudyPage, await self._link.call("search", _members_of(query)))

    async def consent(self, institution: str, subject_id: bytes) -> ConsentView | None:
        """Return what the custodian `institution` has on record for its subject (16 bytes); None
        when there is nothing: then the default holds, which is refusal."""
        return await self._find(ConsentView, "consent", institution, subject_id)

    async def policies(self, institution: str | None = None) -> PoliciesView:
        """Return the consortium's rules and, if one is named, the institution's."""
        return decode(PoliciesView, await self._link.call("policies", [institution]))

    async def policy_try(self, question: PolicyQuestion) -> PolicyTrial:
        """Return what would become of a request in the next block, and which rule decides."""
        return decode(PolicyTrial, await self._link.call("policy_try", _members_of(question)))

    async def request(self, request_id: bytes) -> RequestView | None:
        """Return the access request with this id (16 bytes), or None."""
        return await self._find(RequestView, "request", request_id)

    async def requests(self, query: RequestQuery) -> RequestPage:
        """Return one page of access requests. Raises `RpcError` as `search` does."""
        return decode(RequestPage, await self._link.call("requests", _members_of(query)))

    async def institution(self, name: str) -> InstitutionView | None:
        """Return the institution of this name, or None."""
        return await self._find(InstitutionView, "institution", name)

    async def institutions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> InstitutionPage:
        """Return one page of all institutions, by name; `limit` None leaves the node's own."""
        return await self._page(InstitutionPage, "institutions", limit, cursor)

    async def members(
        self, institution: str, *, limit: int | None = None, cursor: str | None = None
    ) -> MemberPage:
        """Return one page of an institution's members, by key."""
        return await self._page(MemberPage, "members", limit, cursor, institution)

    async def encryption_keys(
        self, institution: str, *, limit: int | None = None, cursor: str | None = None
    ) -> EncryptionKeyPage:
        """Return one page of an institution's encryption keys, newest first."""
        return await self._page(EncryptionKeyPage, "encryption_keys", limit, cursor, institution)

    async def proposal(self, proposal_id: bytes) -> ProposalView | None:
        """Return the proposal with this id (16 bytes), or None."""
        found = await self._find(ProposalView, "proposal", proposal_id)
        return None if found is None else _with_arguments(found)

    async def proposals(
        self, state: str | None = None, *, limit: int | None = None, cursor: str | None = None
    ) -> ProposalPage:
        """Return one page of proposals, newest first: of one `ProposalView.state`, or all."""
        page = await self._page(ProposalPage, "proposals", limit, cursor, state)
        return replace(page, proposals=tuple(map(_with_arguments, page.proposals)))

    async def proposal_try(self, action: str, arguments: tuple[Value, ...]) -> ProposalTrial:
        """Return what a proposal would do if it were executed in the next block, and who of the
        validators after it is live. Raises `Refused` for arguments of the wrong form."""
        params = [action, _base64(pack(arguments))]
        return decode(ProposalTrial, await self._link.call("proposal_try", params))

    async def audit_trail(
        self, study_id: bytes, *, limit: int | None = None, cursor: str | None = None
    ) -> TrailPage:
        """Return one page of what happened to a study (16 bytes), newest first."""
        return await self._page(TrailPage, "audit_trail", limit, cursor, study_id)

    async def anchors(
        self, institution: str, *, limit: int | None = None, cursor: str | None = None
    ) -> AnchorPage:
        """Return one page of an institution's audit anchors, newest first."""
        return await self._page(AnchorPage, "anchors", limit, cursor, institution)

    async def parameters(self) -> tuple[ParameterView, ...]:
        """Return the parameters that governance may change, by name."""
        return _each(ParameterView, await self._link.call("parameters", []))

    async def proof(self, kind: str, arguments: Sequence[str] = ()) -> ProofFile:
        """Return a proof file for a statement, its arguments as `radledger proof make` takes them.

        Raises `RpcError` with code "invalid_params" for what is no statement, `Refused` when the
        ledger does not bear it out."""
        return decode(ProofFile, await self._link.call("proof", [kind, list(arguments)]))

    async def head(self) -> Head:
        """Return the last executed block's place."""
        return decode(Head, await self._link.call("head", []))

    async def status(self) -> Status:
        """Return how the node is."""
        return decode(Status, await self._link.call("status", []))

    async def readiness(self) -> Readiness:
        """Return whether the node makes progress, and why not."""
        return decode(Readiness, await self._link.call("readiness", []))

    async def validators(self) -> tuple[ValidatorStatus, ...]:
        """Return the validators of the next height, in order."""
        answer = await self._link.call("validators", [])
        return _each(ValidatorStatus, answer)

    async def peers(self) -> tuple[PeerStatus, ...]:
        """Return the peers in the node's config."""
        return _each(PeerStatus, await self._link.call("peers", []))

    async def events(
        self, from_height: int | None = None, names: Iterable[str] = ()
    ) -> AsyncGenerator[BlockEvents, None]:
        """Yield the events of every height from `from_height` on (None: from the next), for ever,
        without gap or repetition, also across reconnects.

        With `names`, only events of these names, and only heights that have some. Raises `Refused`
        when the node does not keep a height any more, and `ConnectionLost` when the client is
        closed.
        """
        subscription = Subscription(from_height, tuple(names))
        try:
            while True:
                if subscription.needs_subscribing:
                    await self._link.subscribe(subscription)
                block = await subscription.get()
                if block is not None:
                    yield block
        finally:
            self._link.unsubscribe(subscription)

    async def _find(self, kind: type[T], method: str, *params: Value) -> T | None:
        answer = await self._link.call(method, [_plain(param) for param in params])
        return None if answer is None else decode(kind, answer)

    async def _page(
        self, kind: type[T], method: str, limit: int | None, cursor: str | None, *params: Value
    ) -> T:
        plain = [*map(_plain, params), limit, cursor]
        return decode(kind, await self._link.call(method, plain))


def _submission(transaction: bytes | Transaction, wait: Wait, timeout_s: float | None) -> list[Any]:
    raw = transaction.raw if isinstance(transaction, Transaction) else transaction
    timeout_ms = None if timeout_s is None else max(1, round(timeout_s * 1000))
    return [_base64(raw), wait, timeout_ms]


def _outcome(answer: Any) -> Outcome:
    if isinstance(answer, Outcome):
        return answer
    if isinstance(answer, BaseException):
        raise answer
    try:
        submitted: Submitted = _read_submitted(answer)
    except NotAnAnswer as error:
        return error
    return submitted


def _each(kind: type[T], answer: object) -> tuple[T, ...]:
    elements: tuple[T, ...] = decoder(tuple[kind, ...])(answer)  # type: ignore[valid-type]
    return elements


def _with_arguments(view: ProposalView) -> ProposalView:
    """Arguments lose their types in JSON; the encoding itself keeps them."""
    try:
        arguments = unpack(view.encoded_arguments)
    except NotCanonical as error:
        raise NotAnAnswer("encoded_arguments are not canonical msgpack") from error
    if type(arguments) is not tuple:
        raise NotAnAnswer("encoded_arguments are not an array")
    return replace(view, arguments=arguments)


def _members_of(query: StudyQuery | RequestQuery | PolicyQuestion) -> dict[str, Any]:
    members = {field.name: _plain(getattr(query, field.name)) for field in fields(query)}
    if "drafts" in members:
        members["drafts"] = [asdict(draft) for draft in members["drafts"]]
    return members


def _plain(value: Any) -> Any:
    return value.hex() if type(value) is bytes else value


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")
