"""Questions between hospitals as the gateway's events keep them."""

from node.exchange.federation.ports import FederationEvent, Inquiry


def kept_line(event: FederationEvent) -> tuple[str, str, str]:
    """Return kind, source and code for `Spool.note`: who, what for, about what; no values."""
    if event.kind is Inquiry.CONFLICT:
        return "conflict", event.institution, event.code
    parts = [event.question, event.purpose, event.role, f"told {event.told}", event.code]
    kind = "search_asked" if event.kind is Inquiry.ASKED else "search_answered"
    return kind, event.institution, " ".join(filter(None, parts))
