"""Studies that came from other hospitals: listed here, and given on to the PACS that takes them.

    received on the ledger -> listed -> one use of the grant counted for each PACS -> delivery begun

The same study is begun once for each PACS, whatever is restarted in between.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence

from node.exchange.transfer.errors import NotPermitted
from node.gateway.acting import Acting
from node.gateway.backlog import Backlog
from node.gateway.deliver import Deliverer, UnknownStudy
from node.gateway.ledger_events import LedgerEvents, id_in, word_in
from node.gateway.requester import Requester
from node.ledger.contracts.access_record import RECEIVED
from node.ledger.queries.access_views import RequestQuery
from node.ledger.queries.blocks import EventView

log = logging.getLogger(__name__)

_EVERYTHING = b""
_TOKEN_BYTES = 16


def use_token(target: str) -> bytes:
    """Return the name of the use that delivers a study to the PACS `target`."""
    return hashlib.sha256(b"deliver:" + target.encode()).digest()[:_TOKEN_BYTES]


class HandOver:
    """Gives on what was received."""

    def __init__(
        self,
        acting: Acting,
        requester: Requester,
        deliverer: Deliverer,
        targets: Sequence[str],
        list_study: Callable[[bytes], str | None],
    ) -> None:
        """`targets` are the PACS that take everything; `list_study` waits for the disk, and returns
        the Study Instance UID of what may be delivered, None for what may not."""
        self._acting, self._requester, self._deliverer = acting, requester, deliverer
        self._targets, self._list_study = targets, list_study
        self.backlog: Backlog[bytes] = Backlog("hand over", self._work)

    def attach(self, events: LedgerEvents) -> None:
        """Hear of what this hospital received, also by the command line."""
        events.on(self._received, "access_received")
        events.on_start(lambda: self.backlog.add(_EVERYTHING))

    def _received(self, view: EventView) -> None:
        if word_in(view, 2) == self._acting.institution:
            self.backlog.add(id_in(view))

    async def _work(self, request_id: bytes) -> bool:
        if request_id == _EVERYTHING:
            query = RequestQuery(institution=self._acting.institution, state=RECEIVED)
            async for received in self._acting.requests(query):
                self.backlog.add(received.id)
            return True
        request = await self._acting.client.request(request_id)
        # Not `permitted`: the last use may be counted already, and its delivery not yet begun.
        if request is None or not request.in_force:
            return True
        study_uid = await asyncio.to_thread(self._list_study, request.study_id)
        if study_uid is None:
            return False
        for target in self._targets:
            if await asyncio.to_thread(self._deliverer.has_begun, study_uid, target):
                continue
            try:
                await self._requester.use(request_id, use_token(target))
                await asyncio.to_thread(self._deliverer.submit, study_uid, target)
            except NotPermitted as error:
                request_hex = request_id.hex()
                log.warning("not delivered request=%s code=%s", request_hex, error.code)
                return True
            except UnknownStudy:
                return False
        return True
