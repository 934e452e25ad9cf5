"""What `radledger gateway status` shows."""

from typing import Any

from node.cli.output import say, show_pairs, show_table, time_text
from node.gateway.closing import Rules, closes_at
from node.gateway.health import Health
from node.gateway.spool import Spool

EVENTS_SHOWN = 10


def status_of(spool: Spool, rules: Rules, told: Health) -> dict[str, Any]:
    """Return the answer of `status --json`. Raises `SpoolError`."""
    refused = spool.room()
    return {
        "is_well": told.is_well,
        "findings": told.findings,
        "node_height": told.node_height,
        "node_contact_ms": told.node_contact_ms,
        "usage": spool.usage()._asdict(),
        "refusal": None if refused is None else refused.reason,
        "studies": [
            {
                "ref": study.study.hex()[:12],
                "waiting": study.waiting,
                "taken": study.taken,
                "closes_ms": closes_at(study, rules),
                "attempts": study.attempts,
                "reason": study.reason,
            }
            for study in spool.gatherings()
        ],
        "quarantine": [aside._asdict() for aside in spool.asides()],
        "events": [event._asdict() for _, event in spool.index.last_events(EVENTS_SHOWN)],
    }


def show_status(shown: dict[str, Any]) -> None:
    """Print that answer for people: what is wrong first."""
    for finding in shown["findings"]:
        since = f" (since {time_text(finding.since_ms)})" if finding.since_ms else ""
        line = f"{finding.code}: {finding.sentence}{since}"
        say(line, "bold red" if finding.is_stopping else "yellow")
    if not shown["findings"]:
        say("The gateway runs, and nothing keeps it from progress.", "green")
    usage, refusal = shown["usage"], shown["refusal"]
    show_pairs(
        [
            ("instances", usage["files"]),
            ("bytes", usage["bytes"]),
            ("in quarantine", usage["aside_files"]),
            ("takes more", "yes" if refusal is None else f"no: {refusal}"),
        ]
    )
    _show_rows(
        ("study", "waiting", "taken", "closes", "attempts", "reason"),
        shown["studies"],
        ("ref", "waiting", "taken", "closes_ms", "attempts", "reason"),
    )
    _show_rows(
        ("quarantine", "time", "source", "code", "reason"),
        shown["quarantine"],
        ("name", "time_ms", "source", "code", "reason"),
    )
    _show_rows(
        ("time", "event", "source", "code"),
        shown["events"],
        ("time_ms", "kind", "source", "code"),
    )


def _show_rows(heads: tuple[str, ...], rows: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    if rows:
        show_table(heads, [[_cell(name, row[name]) for name in names] for row in rows])


def _cell(name: str, value: Any) -> object:
    return time_text(value) if name.endswith("_ms") else value
