"""What the gateway measures, as Prometheus text. One registry per gateway; nothing global.

Labels come from small fixed sets; of codes `LABEL_VALUES_MAX`, then "other". No AE title, hospital,
study or patient is in them.
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest

from node.gateway.condition import CODES
from node.rpc.metrics import BoundedLabels

_SHORT_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)


class Total:
    """A counter that follows a number kept elsewhere, which only grows."""

    def __init__(self, counter: Counter) -> None:
        self._counter, self._seen = counter, 0

    def follow(self, value: int) -> None:
        """Bring the counter up to `value`."""
        if value > self._seen:
            self._counter.inc(value - self._seen)
            self._seen = value


class GatewayMetrics:
    """Every metric of a gateway, by attribute; `monitor.py` feeds them, `text` shows them."""

    def __init__(self, version: str = "") -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"radledger_gateway_{name}", text, registry=registry)

        def total(name: str, text: str) -> Total:
            return Total(Counter(f"radledger_gateway_{name}", text, registry=registry))

        def labelled(name: str, text: str, label: str) -> BoundedLabels:
            name = f"radledger_gateway_{name}"
            return BoundedLabels(Counter(name, text, (label,), registry=registry))

        def kinds(name: str, text: str, label: str) -> Gauge:
            return Gauge(f"radledger_gateway_{name}", text, (label,), registry=registry)

        build = kinds("build_info", "Always 1.", "version")
        build.labels(version).set(1)

        self.received_instances = total("received_instances", "Instances taken, ever.")
        self.received_bytes = total("received_bytes", "Bytes of instances taken, ever.")
        self.duplicate_instances = total("duplicate_instances", "Instances that were here.")
        self.refused_instances = labelled(
            "refused_instances", "Instances refused since the start, by code.", "code"
        )
        self.refused_associations = labelled(
            "refused_associations", "Connections refused since the start, by code.", "code"
        )
        self.connections = gauge("connections", "Open DICOM connections.")
        self.associations = gauge("associations", "Open associations.")
        self.is_receiving = gauge("is_receiving", "1 while the receiving process runs.")

        self.spool_instances = gauge("spool_instances", "Instances in the spool.")
        self.spool_bytes = gauge("spool_bytes", "Bytes in the spool.")
        self.spool_bytes_max = gauge("spool_bytes_max", "Bytes that the spool may hold.")
        self.spool_free_bytes = gauge("spool_free_bytes", "Free bytes on the spool's disk.")
        self.quarantine_instances = gauge("quarantine_instances", "Files in quarantine.")
        self.quarantine_bytes = gauge("quarantine_bytes", "Bytes in quarantine.")
        self.studies_waiting = gauge("studies_waiting", "Studies that wait in the spool.")
        self.studies_stuck = gauge("studies_stuck", "Of these, those that were tried in vain.")
        self.oldest_study_seconds = gauge(
            "oldest_study_seconds", "Age of the study that waits longest, 0 without one."
        )
        self.versions_registered = total(
            "versions_registered", "Versions that this gateway put on the chain since the start."
        )
        self.versions_stored = total("versions_stored", "Versions stored since the start.")

        self.deliveries = kinds("deliveries", "Deliveries to the local PACS, by state.", "state")
        self.served_bytes = total("served_bytes", "Ciphertext given to other hospitals.")
        self.fetched_bytes = total("fetched_bytes", "Ciphertext that came and was verified.")
        self.chunks_verified = total("chunks_verified", "Chunks that came with their digest.")
        self.chunks_refused = total("chunks_refused", "Chunks that came with another digest.")
        self.exchange_peers = gauge("exchange_peers", "Hospitals in the config.")
        self.exchange_peers_silent = gauge(
            "exchange_peers_silent", "Of these, those whose exchange does not answer."
        )

        self.store_studies = gauge("store_studies", "Studies in the store.")
        self.store_bytes = gauge("store_bytes", "Bytes of ciphertext in the store.")
        self.store_quota_bytes = gauge("store_quota_bytes", "Its quota, 0 without one.")
        self.store_free_bytes = gauge("store_free_bytes", "Free bytes below it, 0 if unknown.")
        self.store_missing_chunks = gauge("store_missing_chunks", "Chunks rotten, lost or to come.")
        self.scrub_findings = kinds("scrub_findings", "What the last scrub found.", "kind")
        self.scrub_progress = gauge("scrub_progress", "Of the slow scrub, from 0 to 1.")
        self.scrub_time_seconds = gauge(
            "scrub_time_seconds", "When the last scrub ended, since 1970; 0 if never."
        )

        self.node_height = gauge("node_height", "The node's executed height when last asked.")
        self.node_contact_seconds = gauge(
            "node_contact_seconds", "When the node last answered, since 1970; 0 if never."
        )
        self.findings = kinds("findings", "What /health tells, by code.", "code")
        self.is_well = gauge("is_well", "1 while nothing keeps the gateway from progress.")
        self.loop_lag_seconds = Histogram(
            "radledger_gateway_loop_lag_seconds",
            "How late the event loop ran a timer.",
            registry=registry,
            buckets=_SHORT_SECONDS,
        )

    def show_findings(self, counts: Mapping[str, int]) -> None:
        """Set the number of findings of every code."""
        for code in CODES:
            self.findings.labels(code).set(counts.get(code, 0))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
