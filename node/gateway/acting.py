"""The gateway as a member: it asks the ledger, and signs what it puts there."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from consensus.wire import Value
from node.exchange.store.errors import BlobsUnavailable
from node.ledger.errors import Refused
from node.ledger.queries.access_views import RequestQuery, RequestView
from node.ledger.queries.member_views import EncryptionKeyView, InstitutionView
from node.ledger.transaction import Operation
from node.rpc.client import Client
from node.rpc.errors import ConnectionLost, RpcError
from node.rpc.service import Submitted
from node.studies import Signer

# Errors of the way to the node and to the store's blobs; the same step later may succeed.
PASSING: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    RpcError,
    ConnectionLost,
    Refused,
    BlobsUnavailable,
)
_PAGE = 200
_PAGES_MAX = 500  # of one listing


@dataclass(frozen=True, slots=True)
class Acting:
    """The institution's gateway, connected to its node."""

    client: Client
    signer: Signer

    @property
    def institution(self) -> str:
        """The institution for which it acts."""
        return self.signer.institution

    @property
    def chain_id(self) -> bytes:
        """Of the consortium's chain, 32 bytes."""
        return self.signer.chain_id

    async def submit(self, name: str, arguments: tuple[Value, ...]) -> Submitted:
        """Sign one operation, hand it in, and return once it is final, done or refused.

        Raises what `Client.submit` does: the operation may or may not take place then. Whoever
        calls finds out by the ledger's state, or by the contract's refusal of the next attempt.
        """
        _, raw = await self.signed(name, arguments)
        return await self.client.submit(raw)

    async def signed(self, name: str, arguments: tuple[Value, ...]) -> tuple[bytes, bytes]:
        """Return (id, encoding) of a transaction; sent again it cannot execute twice."""
        head = await self.client.head()
        return self.signer.transaction([Operation(name, arguments)], head.height)

    async def requests(self, query: RequestQuery) -> AsyncIterator[RequestView]:
        """Yield every request that `query` asks for, page by page."""
        cursor: str | None = None
        for _ in range(_PAGES_MAX):
            page = await self.client.requests(replace(query, limit=_PAGE, cursor=cursor))
            for request in page.requests:
                yield request
            cursor = page.next_cursor
            if cursor is None:
                return

    async def institutions(self) -> list[InstitutionView]:
        """Return all institutions."""
        found: list[InstitutionView] = []
        cursor: str | None = None
        for _ in range(_PAGES_MAX):
            page = await self.client.institutions(limit=_PAGE, cursor=cursor)
            found += page.institutions
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    async def encryption_keys(self, institution: str) -> AsyncIterator[EncryptionKeyView]:
        """Yield an institution's encryption keys, the newest first."""
        cursor: str | None = None
        for _ in range(_PAGES_MAX):
            page = await self.client.encryption_keys(institution, limit=_PAGE, cursor=cursor)
            for key in page.keys:
                yield key
            cursor = page.next_cursor
            if cursor is None:
                return

    async def encryption_key(self, institution: str, key_id: bytes) -> EncryptionKeyView | None:
        """Return one of an institution's encryption keys, or None."""
        async for key in self.encryption_keys(institution):
            if key.key_id == key_id:
                return key
        return None
