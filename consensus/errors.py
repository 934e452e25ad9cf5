"""Errors of the consensus room, split by who must act."""


class InvalidMessage(ValueError):
    """A peer broke the protocol: these bytes are no valid message. Drop it, score the peer."""


class InvariantViolation(RuntimeError):
    """Our own logic failed. The node stops at once: safety before liveness."""


def require(condition: bool, sentence: str) -> None:
    """Raise `InvariantViolation(sentence)` unless `condition`; `python -O` does not remove it."""
    if not condition:
        raise InvariantViolation(sentence)
