"""What the node measures, as Prometheus text. One registry per node; nothing global.

Labels come from small fixed sets and never from what a peer or client sent; a value beyond
`LABEL_VALUES_MAX` is counted as "other". No patient data, no transaction id, no study id.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

LABEL_VALUES_MAX = 64
CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SHORT_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)


class BoundedLabels:
    """A counter's label values, `LABEL_VALUES_MAX` of them and "other"; children are kept ready."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._children: dict[str, Counter] = {}

    def inc(self, value: str, amount: float = 1) -> None:
        """Add `amount` under the label `value`."""
        child = self._children.get(value)
        if child is None:
            if len(self._children) >= LABEL_VALUES_MAX:
                value = "other"
            child = self._children[value] = self._counter.labels(value)
        child.inc(amount)


class Metrics:
    """Every metric of a node, by attribute; the parts of the node feed them, `text` shows them."""

    def __init__(self, version: str = "") -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"radledger_{name}", text, registry=registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"radledger_{name}", text, registry=registry)

        def labelled(name: str, text: str, label: str) -> BoundedLabels:
            return BoundedLabels(Counter(f"radledger_{name}", text, (label,), registry=registry))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"radledger_{name}", text, registry=registry, buckets=buckets)

        build = Gauge("radledger_build_info", "Always 1.", ("version",), registry=registry)
        build.labels(version).set(1)

        self.height_executed = gauge("height_executed", "Last executed height.")
        self.height_stable = gauge("height_stable", "Last height sealed by a quorum.")
        self.view = gauge("view", "Current view.")
        self.is_primary = gauge("is_primary", "1 while this node is the primary.")
        self.is_syncing = gauge("is_syncing", "1 while this node fetches blocks to catch up.")
        self.is_ready = gauge("is_ready", "1 while this node makes progress.")
        self.view_changes = counter("view_changes", "Views entered after the first.")
        self.evidence = counter("evidence", "Proofs that a validator misbehaved.")
        self.commit_seconds = histogram(
            "commit_seconds", "From submission here to execution here.", _SECONDS
        )
        self.block_seconds = histogram(
            "block_seconds", "From pre-prepare to execution of one height.", _SECONDS
        )
        self.execution_seconds = histogram(
            "execution_seconds", "Execution of one height.", _SHORT_SECONDS
        )
        self.durable_write_seconds = histogram(
            "durable_write_seconds", "One synced write to the database.", _SHORT_SECONDS
        )
        self.block_transactions = histogram(
            "block_transactions", "Transactions in one height.", _COUNTS
        )
        self.transactions_executed = labelled(
            "transactions_executed", "Executed transactions by receipt code.", "code"
        )
        self.transactions_refused = labelled(
            "transactions_refused", "Transactions refused before ordering, by code.", "code"
        )

        self.mempool_transactions = gauge("mempool_transactions", "Waiting transactions.")
        self.mempool_bytes = gauge("mempool_bytes", "Bytes of waiting transactions.")
        self.verify_batch = histogram(
            "verify_batch_signatures", "Signatures verified together.", _COUNTS
        )
        self.verify_seconds = histogram(
            "verify_seconds", "Verification of one batch of signatures.", _SHORT_SECONDS
        )

        self.peers_connected = gauge("peers_connected", "Connected peers.")
        self.peers_configured = gauge("peers_configured", "Peers in the config.")
        self.bytes_sent = counter("network_bytes_sent", "Bytes sent to peers.")
        self.bytes_received = counter("network_bytes_received", "Bytes received from peers.")
        self.frames_dropped = labelled(
            "network_frames_dropped", "Frames to or from peers that were dropped.", "reason"
        )

        self.loop_lag_seconds = histogram(
            "loop_lag_seconds", "How late the event loop ran a timer.", _SHORT_SECONDS
        )
        self.loop_lag_seconds_last = gauge("loop_lag_seconds_last", "The latest such delay.")

        self.rpc_connections = gauge("rpc_websockets", "Open WebSocket connections.")
        self.rpc_subscriptions = gauge("rpc_subscriptions", "Open event subscriptions.")
        self.rpc_in_flight = gauge("rpc_in_flight", "Calls not yet answered.")
        self.rpc_calls = Counter(
            "radledger_rpc_calls", "Answered calls.", ("method", "outcome"), registry=registry
        )
        self.rpc_call_seconds = Histogram(
            "radledger_rpc_call_seconds",
            "From a decoded call to its answer.",
            ("method",),
            registry=registry,
            buckets=_SECONDS,
        )
        self.rpc_rejected = labelled(
            "rpc_rejected", "Requests and connections turned away at the door.", "reason"
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format; its type is `CONTENT_TYPE`."""
        return generate_latest(self.registry)
