"""The events that the spool keeps for operators, as acts."""

from node.gateway.audit.acts import Act, Outcome

OUTCOMES = {
    "association_refused": Outcome.SERIOUS,
    "connection_ended": Outcome.SERIOUS,
    "receiver_ended": Outcome.SERIOUS,
    "refused": Outcome.SERIOUS,
    "conflict": Outcome.SERIOUS,
    "lost": Outcome.MAJOR,
    "discarded": Outcome.SUCCESS,
    "peer_not_reached": Outcome.SERIOUS,
    "medium": Outcome.SUCCESS,
}
_FROM_ADDRESS = frozenset({"association_refused"})
_OUTWARD = frozenset({"peer_not_reached"})


def noted(kind: str, source: str, code: str) -> Act:
    """Return the act of an event."""
    outcome = OUTCOMES[kind]
    if kind in _FROM_ADDRESS:
        return Act(kind, outcome, where=source, code=code)
    if kind in _OUTWARD:
        return Act(kind, outcome, to=source, code=code)
    return Act(kind, outcome, who=source, code=code)
