"""What `/health` and `gateway status` tell; a gateway that runs keeps it in `spool/health.json`."""

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from node.gateway.condition import Finding

FILE = "health.json"
SILENT_MS = 30_000  # so old is what no running gateway has written
_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Health:
    """How the gateway is. Times are ms since 1970."""

    time_ms: int  # of this measurement
    started_ms: int
    node_height: int | None  # None: the node has not answered yet
    node_contact_ms: int | None
    findings: tuple[Finding, ...]

    @property
    def is_well(self) -> bool:
        """Whether nothing keeps the gateway from progress."""
        return not any(each.is_stopping for each in self.findings)


def with_times(
    findings: Iterable[Finding], before: Iterable[Finding], now_ms: int
) -> list[Finding]:
    """Return the findings with the time at which each was first seen."""
    known = {(each.code, _subject(each)): each.since_ms for each in before}
    return [
        Finding(f.code, f.sentence, f.is_stopping, known.get((f.code, _subject(f)), now_ms))
        for f in findings
    ]


def encode(health: Health) -> bytes:
    """Return the JSON of /health."""
    return json.dumps(asdict(health) | {"is_well": health.is_well}).encode()


def save(folder: Path, health: Health) -> None:
    """Keep it beside the spool. Raises `OSError`."""
    new = folder / f"{FILE}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(encode(health))
    new.replace(folder / FILE)


def remove(folder: Path) -> None:
    """Let nothing be told of a gateway that has ended."""
    with contextlib.suppress(OSError):
        (folder / FILE).unlink(missing_ok=True)


def load(folder: Path, now_ms: int) -> Health:
    """Return what the gateway over this spool told last, or that none runs or it is silent."""
    try:
        with open(folder / FILE, "rb") as file:
            told = json.loads(file.read(_BYTES_MAX))
        told.pop("is_well")
        findings = tuple(Finding(**each) for each in told.pop("findings"))
        health = Health(findings=findings, **told)
    except FileNotFoundError:
        return _alone("gateway_down", "the gateway does not run", now_ms)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        what = f"{FILE} of the spool cannot be read: {type(error).__name__}"
        return _alone("gateway_silent", what, now_ms)
    if now_ms - health.time_ms > SILENT_MS:
        seconds = (now_ms - health.time_ms) // 1_000
        what = f"the gateway was killed or hangs: nothing was heard of it for {seconds} s"
        return _alone("gateway_silent", what, now_ms, health.time_ms)
    return health


def _alone(code: str, sentence: str, now_ms: int, since_ms: int = 0) -> Health:
    return Health(now_ms, 0, None, None, (Finding(code, sentence, True, since_ms),))


def _subject(finding: Finding) -> str:
    """Return what the finding is about: its sentence without the reason, which may change."""
    return finding.sentence.partition(":")[0] if finding.code.endswith("_unreachable") else ""
