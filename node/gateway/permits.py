"""What the ledger permits, for the transfer server: asked anew, soon after every change.

An answer is kept for a part of the server's own interval, so that the many chunks of one transfer
cost few questions, and for no longer than until the next event that may end a grant: then it is
asked again, and `on_refused` is told at once. Terms end by height, without an event; the server's
own interval finds them. When the node cannot be asked, nothing is permitted.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from node.exchange.transfer.errors import LedgerUnavailable, NotPermitted
from node.exchange.transfer.ports import Custody, Ground, Permit
from node.gateway.ledger_events import LedgerEvents
from node.ledger.queries.blocks import EventView
from node.rpc.client import Client
from node.rpc.codec import NotAnAnswer
from node.rpc.errors import ConnectionLost, NotAuthorized, RpcError

log = logging.getLogger(__name__)

FRESH_MS = 250  # less than the server's `recheck_ms`
REMEMBERED_MAX = 4_096
FORGOTTEN_MS = 5_000  # a request that nobody has asked about for so long has no transfer

# After these a permit may be another one than before.
CHANGES = (
    "access_granted",
    "access_delivered",
    "access_used",
    "access_revoked",
    "access_expired",
    "consent_granted",
    "consent_restricted",
    "consent_withdrawn",
    "consent_opted_out",
    "consent_opted_in",
    "consent_carried",
    "study_accepted",
    "study_erased",
    "study_retired",
    "governance_institution_suspended",
    "governance_institution_resumed",
)
_FAILURES = (OSError, TimeoutError, RpcError, ConnectionLost, NotAuthorized, NotAnAnswer)


@dataclass(slots=True)
class _Known:
    """The last answer about a ground, or the question that is on its way."""

    asked_s: float
    used_s: float
    answer: "asyncio.Task[Permit | str]"  # or the code why there is none


class LedgerPermits:
    """`Permits` of the transfer server over the node's RPC."""

    def __init__(
        self, client: Client, on_refused: Callable[[Ground, str], None], fresh_ms: int = FRESH_MS
    ) -> None:
        """`on_refused` gets a ground that permits nothing any more to whom it did, and the
        code."""
        self._client, self._on_refused = client, on_refused
        self._fresh_s = fresh_ms / 1000
        self._known: dict[Ground, _Known] = {}
        self._looking: asyncio.Task[None] | None = None
        self._looks_again = False

    def attach(self, events: LedgerEvents) -> None:
        """Hear of what may end a grant."""
        events.on(self._heed, *CHANGES)
        events.on_start(self._changed)

    async def permit(self, ground: Ground) -> Permit:
        """Return what the newest height permits. Raises `NotPermitted`, `LedgerUnavailable`."""
        known = self._fresh(ground)
        try:
            # Shielded: of several who wait for one answer, one may give up.
            answer = await asyncio.shield(known.answer)
        except _FAILURES as error:
            self._known.pop(ground, None)
            raise LedgerUnavailable("the node cannot be asked") from error
        if isinstance(answer, str):
            raise NotPermitted(answer)
        return answer

    async def _ask(self, ground: Ground) -> Permit | str:
        if isinstance(ground, Custody):
            study = await self._client.study(ground.study_id)
            if study is None:
                return "study_unknown"
            summary = study.summary
            if summary.status == "erased":
                return "study_erased"
            return Permit(None, summary.id, summary.custodian, None)
        view = await self._client.request(ground)
        if view is None:
            return "request_unknown"
        if not view.permitted:
            return view.refusal or "request_denied"
        return Permit(view.id, view.study_id, view.institution, view.wrapped_digest)

    def _fresh(self, ground: Ground) -> _Known:
        now_s = asyncio.get_running_loop().time()
        known = self._known.get(ground)
        if known is None or now_s - known.asked_s > self._fresh_s:
            self._forget(now_s)
            task = asyncio.create_task(self._ask(ground))
            task.add_done_callback(_retrieved)
            known = self._known[ground] = _Known(now_s, now_s, task)
        known.used_s = now_s
        return known

    def _forget(self, now_s: float) -> None:
        """Whoever asks about made-up requests must not fill the memory."""
        if len(self._known) < REMEMBERED_MAX:
            return
        old_s = now_s - FORGOTTEN_MS / 1000
        self._known = {key: each for key, each in self._known.items() if each.used_s > old_s}
        if len(self._known) >= REMEMBERED_MAX:
            self._known.clear()

    def _heed(self, view: EventView) -> None:
        self._changed()

    def _changed(self) -> None:
        """Ask anew about whatever was asked lately."""
        for known in self._known.values():
            known.asked_s = float("-inf")
        self._looks_again = True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while self._looks_again:
            self._looks_again = False
            since_s = asyncio.get_running_loop().time() - FORGOTTEN_MS / 1000
            recent = [key for key, known in self._known.items() if known.used_s > since_s]
            await asyncio.gather(*map(self._look_at, recent))

    async def _look_at(self, ground: Ground) -> None:
        before = _holder(self._known.get(ground))
        try:
            permit = await self.permit(ground)
        except NotPermitted as error:
            self._on_refused(ground, error.code)
        except LedgerUnavailable:
            self._on_refused(ground, "ledger_unavailable")
        else:
            if before not in (None, permit.institution):  # custody went over to another one
                self._on_refused(ground, "not_custodian")


def _holder(known: _Known | None) -> str | None:
    """Return whom the last answer permits, if there is one yet."""
    if known is None or not known.answer.done() or known.answer.cancelled():
        return None
    if known.answer.exception() is not None:
        return None
    answer = known.answer.result()
    return answer.institution if isinstance(answer, Permit) else None


def _retrieved(task: "asyncio.Task[Permit | str]") -> None:
    """Whoever asked may have gone; then nobody else takes the error."""
    if not task.cancelled():
        task.exception()
