"""Liveness and readiness, for service managers, load balancers and people at night."""

from node.rpc import codec
from node.rpc.service import Readiness


def liveness() -> tuple[int, bytes]:
    """Return HTTP status and JSON: the event loop runs, or nobody would answer."""
    return 200, b'{"alive":true}'


def readiness(state: Readiness) -> tuple[int, bytes]:
    """Return 200 or 503, and JSON with the reason: who is missing, in which phase and view."""
    return (200 if state.is_ready else 503), codec.encode(state)
