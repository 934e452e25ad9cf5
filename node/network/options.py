"""What an operator, a test or the composition root may tune in the transport."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from node.network.budgets import RATES, Rate
from node.network.frames import Kind
from node.network.send_queue import QueueLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportOptions:
    """Times in milliseconds, sizes in bytes; the defaults suit hospitals on one continent."""

    dial_patience_ms: int = 2_000  # without a connection, before the other validator dials
    dial_timeout_ms: int = 5_000  # name lookup, TCP and TLS together
    handshake_timeout_ms: int = 5_000  # TLS, for a connection that was accepted
    hello_timeout_ms: int = 5_000
    goodbye_timeout_ms: int = 1_000  # how long a close may wait for the other side
    backoff_min_ms: int = 50
    backoff_max_ms: int = 10_000
    stable_after_ms: int = 5_000  # a connection that lived this long starts the back-off anew
    ping_interval_ms: int = 2_000
    silence_max_ms: int = 10_000  # nothing heard, although every ping asks for an answer
    stall_max_ms: int = 30_000  # the peer reads nothing while data waits for it
    connections_max: int = 512  # in all, half-open and closing ones included
    half_open_max: int = 128  # accepted, but not yet greeted; the oldest makes room
    write_high_bytes: int = 256 * 1024  # in TLS and socket buffers before the queue holds back
    burst_bytes: int = 512 * 1024  # in one write, unless a single frame is larger
    queue: QueueLimits = field(default_factory=QueueLimits)
    rates: Mapping[Kind, Rate] = field(default_factory=lambda: dict(RATES))
    punish_threshold: float = 100
    punish_fade_per_s: float = 1
    refuse_ms: int = 60_000
