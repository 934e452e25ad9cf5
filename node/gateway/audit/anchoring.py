"""Anchors logs on the ledger, each once, whatever comes between; and compares them with that.

The evidence of an anchor is on the disk before its transaction is sent, so a crash or a lost answer
is gone on with: what is on the ledger already is found by its number and root.
"""

import asyncio
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from node.config.model import GatewayConfig
from node.gateway.audit.auditor import folder_of, open_trail
from node.gateway.audit.chain import verify
from node.gateway.audit.errors import AnchorRefused, PeriodInvalid, TrailBroken
from node.gateway.audit.evidence import (
    Evidence,
    commitment,
    evidence_file,
    first_difference,
    leaves_file,
    load_evidence,
    new_salt,
    save_evidence,
    save_leaves,
)
from node.gateway.audit.segments import anchoring, segments
from node.ledger.block import OK
from node.ledger.queries.audit_views import ANCHORS_LIMIT_MAX, AnchorView
from node.rpc.client import Client
from node.rpc.service import Submitted


class Anchoring(Protocol):
    """Who anchors: a member at the terminal, or the gateway by itself."""

    @property
    def institution(self) -> str:
        """For which the records are kept."""
        ...

    @property
    def client(self) -> Client:
        """The way to its node."""
        ...

    async def submit(self, name: str, arguments: tuple[Any, ...]) -> Submitted:
        """Sign one operation and return once it is final."""
        ...


@dataclass(frozen=True, slots=True)
class Anchored:
    """What became of one log."""

    file: Path
    outcome: str  # "anchored", or "unchanged" when it was before
    sequence: int
    records: int
    root: bytes
    height: int
    evidence: Path


async def anchor_logs(
    actor: Anchoring,
    logs: Sequence[Path],
    start_ms: int,
    end_ms: int | None = None,
    *,
    stretch: bool = False,
) -> list[Anchored]:
    """Anchor each log that is not anchored yet; return what became of each.

    The very first period begins at `start_ms`; a log's ends at `end_ms`, or at its last change.
    With `stretch` a log that ended before its period begins, since another one was anchored
    meanwhile, is given a period of a millisecond. Raises `EvidenceInvalid`, `PeriodInvalid`,
    `AnchorRefused`, `KeyFileError`, `OSError`, and what `Client` raises.
    """
    last = await _latest(actor.client, actor.institution)
    done = []
    for log in logs:
        result = await _settled(actor, log)
        if result is None:
            result, last = await _new_anchor(actor, log, last, start_ms, end_ms, stretch)
        done.append(result)
    return done


async def anchor_trail(config: GatewayConfig, actor: Anchoring, start_ms: int) -> list[Anchored]:
    """End the open file of the trail, and anchor every file that is not anchored yet.

    Of the files that are anchored only the last one is looked at again, for the link. One process
    at a time. Raises `TrailBroken`, `TrailUnusable` (also while another process is at it), and
    what `anchor_logs` does.
    """
    with anchoring(folder_of(config)):
        logs = await asyncio.to_thread(_closed, config)
        done = await anchor_logs(actor, logs, start_ms, stretch=True) if logs else []
        for each in done:
            await asyncio.to_thread(_keep_leaves, each.file)
        return done


def is_anchored(log: Path) -> bool:
    """Whether a file of the trail is anchored, and that was noted."""
    return leaves_file(log).exists()


def _closed(config: GatewayConfig) -> list[Path]:
    """End the open file; return those that are to be anchored, in order."""
    folder = folder_of(config)
    firsts = [each.first for each in segments(folder) if not is_anchored(each.path)]
    before = [each.first for each in segments(folder) if each.first < min(firsts, default=0)]
    if verify(folder, max(before, default=0)).problems:
        raise TrailBroken("it is not whole: `radledger gateway audit verify` says how")
    with closing(open_trail(config)) as trail:
        trail.close_segment()
    closed = [each.path for each in segments(folder) if each.is_closed]
    return [path for path in closed if not is_anchored(path)]


def _keep_leaves(log: Path) -> None:
    evidence = load_evidence(log)
    if evidence is not None:
        save_leaves(log, evidence)


async def _settled(actor: Anchoring, log: Path) -> Anchored | None:
    """Return what an earlier run did with this log, if it came on the chain."""
    evidence = load_evidence(log)
    if evidence is None or evidence.institution != actor.institution:
        return None
    anchor = await _find(actor.client, actor.institution, evidence.sequence)
    if anchor is None or anchor.root.hex() != evidence.root:
        return None
    place = (anchor.sequence, anchor.count, anchor.root, anchor.height)
    return Anchored(log, "unchanged", *place, evidence_file(log))


async def _new_anchor(
    actor: Anchoring,
    log: Path,
    last: AnchorView | None,
    start_ms: int,
    end_ms: int | None,
    stretch: bool,
) -> tuple[Anchored, AnchorView]:
    to_ms = end_ms if end_ms is not None else _last_change(log)
    from_ms = start_ms if last is None else last.to_ms
    if stretch:
        to_ms = max(to_ms, from_ms + 1)
    if to_ms <= from_ms:
        raise PeriodInvalid(
            f"{log} ends at {_time(to_ms)}, before its period begins at {_time(from_ms)}: "
            "give the files in order, or the times with --from and --to"
        )
    before = load_evidence(log)
    salt = new_salt() if before is None else bytes.fromhex(before.salt)
    records, root = await asyncio.to_thread(commitment, log, salt)
    sequence = 1 if last is None else last.sequence + 1
    previous = None if last is None else last.root
    evidence = Evidence(
        actor.institution,
        sequence,
        from_ms,
        to_ms,
        records,
        root.hex(),
        None if previous is None else previous.hex(),
        salt.hex(),
    )
    save_evidence(log, evidence)  # first: without the salt an anchor is worth nothing
    arguments = (sequence, from_ms, to_ms, records, root, previous)
    submitted = await actor.submit("audit.anchor", arguments)
    if submitted.code not in (OK, None):
        raise AnchorRefused(str(submitted.code))
    height = submitted.height or 0
    view = AnchorView(actor.institution, *arguments, height)
    return Anchored(log, "anchored", sequence, records, root, height, evidence_file(log)), view


def _last_change(log: Path) -> int:
    return log.stat().st_mtime_ns // 1_000_000


async def _latest(client: Client, institution: str) -> AnchorView | None:
    page = await client.anchors(institution, limit=1)
    return page.anchors[0] if page.anchors else None


async def _find(client: Client, institution: str, sequence: int) -> AnchorView | None:
    """Return an anchor by its number; they are listed newest first, without gaps."""
    cursor = None
    while True:
        page = await client.anchors(institution, limit=ANCHORS_LIMIT_MAX, cursor=cursor)
        for each in page.anchors:
            if each.sequence == sequence:
                return each
        if page.next_cursor is None or (page.anchors and page.anchors[-1].sequence < sequence):
            return None
        cursor = page.next_cursor


async def problem_of(client: Client, log: Path) -> str:
    """Return what is wrong with a log in a sentence, empty if nothing is. Raises
    `EvidenceInvalid`, `OSError`, and what `Client` raises."""
    evidence = load_evidence(log)
    if evidence is None:
        return f"was never anchored: {evidence_file(log)} is not there"
    anchor = await _find(client, evidence.institution, evidence.sequence)
    if anchor is None:
        return f"there is no anchor {evidence.sequence} of {evidence.institution} on the chain"
    records, root = await asyncio.to_thread(commitment, log, bytes.fromhex(evidence.salt))
    if root == anchor.root:
        return ""
    line = await asyncio.to_thread(first_difference, log, evidence, anchor.root)
    where = "" if line is None else f": line {line} is the first that differs"
    if records != anchor.count:
        return f"holds {records} records, and {anchor.count} were anchored{where}"
    return f"a record was changed since it was anchored{where}"


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1_000, UTC).isoformat(" ", "seconds")
