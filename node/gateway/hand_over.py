"""Studies that came from other hospitals: listed here, and given on to the PACS that takes them.

    received on the ledger -> listed -> one use of the grant counted for each PACS -> delivery begun

The same study is begun once for each PACS, whatever is restarted in between. A PACS gets what was
received since it first was one that takes, and a person gives it what is older: a use of a grant is
not to be spent on a whole archive because a line was added to a config. A grant without a use left
for a PACS is told once.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence

from node.exchange.transfer.errors import NotPermitted
from node.gateway import arrived
from node.gateway.acting import Acting
from node.gateway.backlog import Backlog
from node.gateway.deliver import Deliverer, Given, UnknownStudy
from node.gateway.deliveries import Deliveries, DeliveriesUnusable
from node.gateway.holdings import Withheld
from node.gateway.ledger_events import LedgerEvents
from node.gateway.requester import Requester
from node.ledger.queries.access_views import RequestView

log = logging.getLogger(__name__)

_TOKEN_BYTES = 16
_SPENT = "uses_spent"


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
        deliveries: Deliveries,
        targets: Sequence[str],
        list_study: Callable[[bytes], str | None],
        report: Callable[[Given], None],
    ) -> None:
        """`targets` are the PACS that take everything; `list_study` waits for the disk, and returns
        the Study Instance UID of what may be delivered, None for what may not. `report` is told,
        in a thread, what a PACS does not get because nothing permits it any more."""
        self._acting, self._requester, self._deliverer = acting, requester, deliverer
        self._deliveries, self._targets = deliveries, targets
        self._list_study, self._report = list_study, report
        self._since: dict[str, int] = {}  # height, by target; without one it gets nothing
        self.backlog: Backlog[bytes] = Backlog("hand over", self._work)

    async def open(self) -> None:
        """Learn, or the first time put down, from when on each PACS takes what is received.

        Raises what `Client` raises, and `DeliveriesUnusable`.
        """
        if not self._targets:
            return
        head = await self._acting.client.head()
        chain_id, next_height = self._acting.chain_id, head.height + 1
        for target in self._targets:
            self._since[target] = await asyncio.to_thread(
                self._deliveries.taken_since, target, chain_id, next_height
            )

    def attach(self, events: LedgerEvents) -> None:
        """Hear of what this hospital received, also by the command line."""
        arrived.follow(events, self._acting, self.backlog)

    async def _work(self, request_id: bytes) -> bool:
        if request_id == arrived.EVERYTHING:
            await arrived.add_all(self._acting, self.backlog)
            return True
        request = await self._acting.client.request(request_id)
        # Not `permitted`: the last use may be counted already, and its delivery not yet begun.
        if request is None or not request.in_force:
            return True
        # Whoever takes it: searches and `study deliver` find only what is listed.
        study_uid = await asyncio.to_thread(self._list_study, request.study_id)
        if study_uid is None:
            return False
        takers = [target for target in self._targets if self._takes(target, request)]
        try:
            for target in takers:
                await self._give(request_id, study_uid, target)
        except (UnknownStudy, Withheld):
            return False
        except DeliveriesUnusable as error:
            log.error("nothing is handed over for now: %s", error)
            return False
        return True

    def _takes(self, target: str, request: RequestView) -> bool:
        since = self._since.get(target)
        received = request.received_height
        return since is not None and received is not None and received >= since

    async def _give(self, request_id: bytes, study_uid: str, target: str) -> None:
        """Begin the delivery, unless it was begun or the grant is spent."""
        if await asyncio.to_thread(self._deliverer.has_begun, study_uid, target):
            return
        if await asyncio.to_thread(self._deliveries.is_spent, target, request_id):
            return
        try:
            await self._requester.use(request_id, use_token(target))
        except NotPermitted as error:
            log.warning("not delivered request=%s code=%s", request_id.hex(), error.code)
            await asyncio.to_thread(self._report, Given(target, study_uid, 0, error.code))
            if error.code == _SPENT:  # told first: at worst twice, but never not at all
                await asyncio.to_thread(self._deliveries.mark_spent, target, request_id)
            return
        await asyncio.to_thread(self._deliverer.submit, study_uid, target)
