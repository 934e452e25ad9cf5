"""`Policies` of federated search by the node's dry run: the contracts' own decision.

A trial costs the node some hundred microseconds, so few are under way at a time, and an outcome is
kept for some seconds: those who search ask again and again about the same studies. Events that may
change outcomes end that at once; terms and hours, which come without an event, within seconds. What
is told by it is no permit: a request is decided by the ledger anew.
"""

import asyncio

from node.exchange.federation.question import Question
from node.exchange.transfer.errors import LedgerUnavailable
from node.gateway.acting import PASSING, Acting
from node.gateway.ledger_events import LedgerEvents
from node.gateway.permits import CHANGES
from node.ledger.queries.access_views import PolicyQuestion
from node.rpc.codec import NotAnAnswer
from node.rpc.errors import NotAuthorized

FRESH_S = 10.0
KEPT_MAX = 50_000
AT_ONCE = 4
_POLICIES = ("policy_published", "policy_retired", "governance_executed")
_UNASKED: tuple[type[Exception], ...] = (*PASSING, NotAuthorized, NotAnAnswer)
# What a search asks the ledger about: the least that a request can ask for.
_HEIGHTS, _USES = 1, 1


class Trials:
    """Outcomes of requests that nobody makes."""

    def __init__(self, acting: Acting) -> None:
        self._acting = acting
        self._kept: dict[PolicyQuestion, tuple[str, float]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._changes = 0

    def attach(self, events: LedgerEvents) -> None:
        """Hear of what may change an outcome."""
        events.on(lambda _: self.forget(), *CHANGES, *_POLICIES)
        events.on_start(self.forget)

    def forget(self) -> None:
        """Ask anew about everything."""
        self._kept.clear()
        self._changes += 1

    async def outcome(self, study_id: bytes, institution: str, question: Question) -> str:
        """Return what the request would meet in the next block. Raises `LedgerUnavailable`."""
        asked = PolicyQuestion(
            study_id,
            institution,
            question.role,
            question.purpose,
            _HEIGHTS,
            _USES,
            question.deidentified,
            question.ethics_digest,
        )
        loop = asyncio.get_running_loop()
        kept = self._kept.get(asked)
        if kept is not None and loop.time() - kept[1] < FRESH_S:
            return kept[0]
        async with self._turns:
            began_s, changes = loop.time(), self._changes
            try:
                trial = await self._acting.client.policy_try(asked)
            except _UNASKED as error:
                raise LedgerUnavailable("the node cannot be asked") from error
        if changes == self._changes:  # else it may be of the state before
            if len(self._kept) >= KEPT_MAX:
                self._kept.clear()
            self._kept[asked] = trial.outcome, began_s
        return trial.outcome
