"""Errors of the network room, split by who must act."""

from enum import IntEnum


class Reason(IntEnum):
    """Why a connection ends; the code of a GOODBYE frame. Numbers are part of the wire format."""

    SHUTDOWN = 1  # the node stops or restarts; come back later
    VERSION = 2  # wire or protocol version is not known here
    CHAIN = 3  # another chain
    UNKNOWN_PEER = 4  # the key is not among the known peers
    MALFORMED = 5  # bytes that are no frame, or no payload of their kind
    SILENT = 6  # nothing was heard for too long
    STALLED = 7  # nothing was read for too long
    REPLACED = 8  # a newer connection of the same peer took over
    PUNISHED = 9  # misbehaviour; refused for a while
    OWN_KEY = 10  # the other side uses this node's own key


class InvalidFrame(ValueError):
    """A peer broke the framing or sent a payload that its kind does not allow."""


class Incompatible(Exception):
    """The peer speaks another version or belongs to another chain; retrying soon is no use."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class CertificateRefused(ValueError):
    """The certificate is not one of a RadLedger node: not Ed25519, not self-signed, or damaged."""


class ListenFailed(OSError):
    """The node cannot listen where its config says; the sentence names the address."""
