"""What keeps the gateway from making progress, as an operator is told it: pure decisions.

    measured (`monitor.py`) -> Condition -> findings -> /health, `gateway status`, metrics

Codes are stable and few. Sentences speak of AE titles, hospitals and counts, of no patient.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from node.gateway.spool import DISK_FULL

# What is told of a study that waits, by the name of the error that keeps it; else `study_waits`.
_BY_ERROR = {
    "ConnectionLost": "node_unreachable",
    "NotAuthorized": "node_unreachable",
    "QuotaExceeded": "store_quota",
    "StoreFull": "store_disk_full",
    "BlobsUnavailable": "store_unreachable",
    "WrongMasterKey": "store_key",
}
# All codes, for metrics; those of `_STOPPING` mean that something does not go on.
_STOPPING = (
    "gateway_down",
    "gateway_silent",
    "node_unreachable",
    "node_not_ready",
    "receiver_down",
    "spool_disk_full",
    "spool_full",
    "store_quota",
    "store_disk_full",
    "store_unreachable",
    "store_key",
    "study_waits",
    "pacs_unreachable",
    "exchange_unreachable",
)
_NOTED = ("chunks_missing", "quarantine", "deliveries_failed", "audit_not_anchored")
CODES = (*_STOPPING, *_NOTED)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    code: str  # one of `CODES`
    sentence: str
    is_stopping: bool  # something makes no progress until this is mended
    since_ms: int = 0  # since 1970; when it was first seen, 0: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What was measured."""

    node_problem: str = ""  # why the node cannot be asked
    node_reason: str = ""  # why the node itself makes no progress
    is_receiving: bool = True
    room: str = ""  # why the spool takes nothing
    store_problem: str = ""
    quota_left: int | None = None  # bytes; None: no quota
    waiting: Sequence[str] = ()  # of each study that was tried in vain, why
    pacs: Mapping[str, str] = field(default_factory=dict)  # AE title -> why deliveries wait
    exchange: Mapping[str, str] = field(default_factory=dict)  # hospital -> why it is silent
    missing_chunks: int = 0
    quarantine: int = 0
    deliveries_failed: int = 0
    anchoring_problem: str = ""  # why the audit trail was not anchored when it was due


def findings_of(condition: Condition) -> list[Finding]:
    """Return what is wrong, the causes before what follows from them."""
    found = [Finding(code, text, code in _STOPPING) for code, text in _told(condition)]
    known: dict[str, Finding] = {}
    for each in found:  # one line for each cause: the first says most
        key = each.code if each.code not in _EACH else each.sentence
        known.setdefault(key, each)
    return list(known.values())


_EACH = ("pacs_unreachable", "exchange_unreachable")  # one line for each peer


def _told(condition: Condition) -> Iterator[tuple[str, str]]:
    if condition.node_problem:
        yield "node_unreachable", f"the node cannot be asked: {condition.node_problem}"
    if condition.node_reason:
        yield "node_not_ready", f"the node makes no progress: {condition.node_reason}"
    if not condition.is_receiving:
        yield "receiver_down", "the receiving process does not run; it is started again"
    if condition.room == DISK_FULL:
        yield "spool_disk_full", "the spool's disk is full: senders are refused"
    elif condition.room:
        yield "spool_full", f"the spool is full: senders are refused ({condition.room})"
    if condition.store_problem:
        yield "store_unreachable", f"the store cannot be used: {condition.store_problem}"
    if condition.quota_left is not None and condition.quota_left <= 0:
        yield "store_quota", "the store has reached its quota"
    yield from _waiting(condition.waiting)
    for title, why in sorted(condition.pacs.items()):
        yield "pacs_unreachable", f"deliveries to {title} wait: {why}"
    for name, why in sorted(condition.exchange.items()):
        yield "exchange_unreachable", f"the exchange of {name} does not answer: {why}"
    if condition.missing_chunks:
        yield "chunks_missing", f"chunks that the store lacks: {condition.missing_chunks}"
    if condition.deliveries_failed:
        yield "deliveries_failed", f"deliveries that were given up: {condition.deliveries_failed}"
    if condition.anchoring_problem:
        yield (
            "audit_not_anchored",
            f"the audit trail is not anchored: {condition.anchoring_problem}",
        )
    if condition.quarantine:
        yield "quarantine", f"files in quarantine, for a person to look at: {condition.quarantine}"


def _waiting(reasons: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield one line for each cause, with how many studies it keeps."""
    codes = Counter(_code_of(reason) for reason in reasons)
    for code, count in codes.most_common():
        example = next(reason for reason in reasons if _code_of(reason) == code)
        noun = "study waits" if count == 1 else "studies wait"
        yield code, f"{count} {noun} to be registered and stored: {example}"


def _code_of(reason: str) -> str:
    return _BY_ERROR.get(reason.partition(":")[0], "study_waits")
