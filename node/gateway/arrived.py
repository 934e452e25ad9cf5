"""What this hospital received from others, to be worked on: as it comes, and all at the start."""

from node.gateway.acting import Acting
from node.gateway.backlog import Backlog
from node.gateway.ledger_events import LedgerEvents, id_in, word_in
from node.ledger.contracts.access_record import RECEIVED
from node.ledger.queries.access_views import RequestQuery
from node.ledger.queries.blocks import EventView

EVERYTHING = b""  # stands in a backlog for all requests that were received


def follow(events: LedgerEvents, acting: Acting, backlog: Backlog[bytes]) -> None:
    """Put into `backlog` what is received, also by the command line, and at the start all."""

    def received(view: EventView) -> None:
        if word_in(view, 2) == acting.institution:
            backlog.add(id_in(view))

    events.on(received, "access_received")
    events.on_start(lambda: backlog.add(EVERYTHING))


async def add_all(acting: Acting, backlog: Backlog[bytes]) -> None:
    """Put every request that was received into `backlog`. Raises what `Client` raises."""
    query = RequestQuery(institution=acting.institution, state=RECEIVED)
    async for request in acting.requests(query):
        backlog.add(request.id)
