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
from collections.abc import AsyncGenerator, Iterable
from dataclasses import fields, replace
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from node.ledger.errors import Refused
from node.ledger.limits import LIMIT_BOUNDS, Limits
from node.ledger.queries import BlockView, StudyPage, StudyQuery, StudyView, TransactionView
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
        params = {f.name: getattr(query, f.name) for f in fields(query)}
        if query.subject_id is not None:
            params["subject_id"] = query.subject_id.hex()
        return decode(StudyPage, await self._link.call("search", params))

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


def _submission(transaction: bytes | Transaction, wait: Wait, timeout_s: float | None) -> list[Any]:
    raw = transaction.raw if isinstance(transaction, Transaction) else transaction
    timeout_ms = None if timeout_s is None else max(1, round(timeout_s * 1000))
    return [b2a_base64(raw, newline=False).decode("ascii"), wait, timeout_ms]


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
